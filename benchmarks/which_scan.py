"""How fast a tree is scanned, beside ripgrep searching it for the same patterns.

    python benchmarks/which_scan.py [--files 100000] [--runs 5] [--tree PATH]

The tree is made once: source-like text, log-normal sizes, one file in fifty with a reference. Both
search it warm, alternately, ignore nothing else and heed .gitignore; ripgrep lists matching files,
`which --scan` also extracts, resolves and reports every reference. Needs `rg` (Debian: ripgrep).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwenstack.catalog.which.mentions import NEEDLES

WORDS = re.split(
    r"\s+",
    "import return def class self config value result path token list dict model data queue tensor "
    "dashboard quick query total time default string number index equal layer width embed yield "
    "strategy energy type policy key-value read-only well-known",
)
REFERENCES = ('"Qwen/Qwen3-8B"', '"qwen-plus"', '"Qwen/Qwen2.5-3B-Instruct"', "ollama run qwen3:8b")


# As installed: with compiled modules, wherever this environment keeps them.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def make(root: Path, files: int) -> int:
    """Write the tree; returns its bytes."""
    random_ = random.Random(1)
    text = " ".join(random_.choice(WORDS) for _ in range(250_000))
    base = re.sub(r"(.{40,90}) ", r"\1\n", text).encode()
    total = 0
    for number in range(files):
        folder = root / f"d{number // 4000:03}" / f"s{number // 100 % 40:03}"
        if number % 100 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        size = int(min(200_000, random_.lognormvariate(7.9, 1.2)))
        start = random_.randrange(0, len(base) - 200_000)
        data = base[start : start + size]
        if number % 50 == 0:
            data += b"\nmodel = " + random_.choice(REFERENCES).encode() + b"\n"
        (folder / f"f{number % 100}.py").write_bytes(data)
        total += len(data)
    return total


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and of the processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        command,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tree", type=Path)
    arguments = parser.parse_args()
    if shutil.which("rg") is None:
        sys.exit("ripgrep (rg) is not installed")
    made = arguments.tree is None
    tree = arguments.tree or Path(tempfile.mkdtemp(prefix="which-scan-"))
    if made:
        make(tree, arguments.files)
    ENVIRONMENT["PYTHONPYCACHEPREFIX"] = f"{tree}-bytecode"
    patterns = "|".join(re.escape(each) for each in NEEDLES)
    rg = ["rg", "--hidden", "-i", "-l", "-e", patterns, str(tree)]
    ours = [sys.executable, "-m", "qwenstack.cli.main", "which", "--scan", str(tree)]
    found = json.loads(
        subprocess.run([*ours, "--json"], check=True, capture_output=True, env=ENVIRONMENT).stdout
    )
    listed = subprocess.run(rg, check=False, capture_output=True).stdout.count(b"\n")
    pairs = [(timed(rg), timed(ours)) for _ in range(arguments.runs)]
    theirs, us = (statistics.median(each[0] for each in side) for side in zip(*pairs, strict=True))
    ratios = [ours_[0] / rg_[0] for rg_, ours_ in pairs]
    print(
        json.dumps(
            {
                "files": found["files"],
                "bytes": found["bytes_read"],
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "ripgrep_files_listed": listed,
                "references_found": len(found["findings"]),
                "ripgrep_s": round(theirs, 2),
                "which_scan_s": round(us, 2),
                "ripgrep_processor_s": round(min(each[0][1] for each in pairs), 2),
                "which_scan_processor_s": round(min(each[1][1] for each in pairs), 2),
                "files_per_s": round(found["files"] / us),
                "ratio_median": round(statistics.median(ratios), 2),
                "ratio_least_and_most": [round(min(ratios), 2), round(max(ratios), 2)],
            },
            indent=2,
        )
    )
    shutil.rmtree(ENVIRONMENT["PYTHONPYCACHEPREFIX"], ignore_errors=True)
    if made:
        shutil.rmtree(tree)


if __name__ == "__main__":
    main()
