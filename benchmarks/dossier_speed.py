"""How long a dossier takes once the evidence exists: composing, rendering in six formats, signing.

    python benchmarks/dossier_speed.py [--runs 5]

The evidence is what a release with `--files` files, a long card and a results file gives: the
catalogue's for Qwen/Qwen3-8B and made-up digests, findings and results. Times are processor time of
this process, so that other work on the machine doesn't count; `cold` is a fresh process, imports
and all. The aim is 3 seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwenstack.catalog.load import load
from qwenstack.catalog.which import which
from qwenstack.core.evidence import Evidence
from qwenstack.dossier.compose import compose
from qwenstack.dossier.gather.catalogue import from_answer
from qwenstack.dossier.render import render_all
from qwenstack.dossier.seal import load_key, problems, sign

REFERENCE = "Qwen/Qwen3-8B"
BENCHMARKS = ("mmlu", "gsm8k", "arc_challenge", "hellaswag", "winogrande", "bbh", "ifeval")


def evidence(files: int) -> list[Evidence]:
    """What a release of so many files says."""
    found = from_answer(which(REFERENCE), load())

    def say(claim: str, value: str | float, digest: str | None = None) -> None:
        found.append(
            Evidence(
                subject=REFERENCE,
                claim=claim,
                value=value,
                source="benchmark",
                method="computed",
                observed_at="2026-11-24",
                digest=digest,
            )
        )

    for number in range(files):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        say(f"weights.file.{name}", "4000000000 bytes", hashlib.sha256(name.encode()).hexdigest())
    say("weights.release-digest", hashlib.sha256(b"release").hexdigest())
    say("weights.scan", "clean")
    for name in ("intended-use", "training-data", "limitations", "evaluation", "usage"):
        say(f"card.{name}", f"“{'what the card says of it ' * 12}” (under “{name}”)")
    for task in BENCHMARKS:
        say(f"evaluation.claimed.{task}.5-shot", 71.5)
        say(f"evaluation.measured.{task}.acc.5-shot", 0.7)
    return found


def once(found: list[Evidence], folder: Path) -> dict[str, float]:
    """Seconds of processor time of each step."""
    marks = [time.process_time()]
    document = compose(REFERENCE, found)
    marks.append(time.process_time())
    files = render_all(document)
    marks.append(time.process_time())
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dossier.sig.json").write_bytes(sign(files, load_key(folder.parent / "key.pem")))
    marks.append(time.process_time())
    assert problems(folder) == []
    marks.append(time.process_time())
    steps = ("compose", "render", "write_and_sign", "verify")
    spent = [later - earlier for earlier, later in itertools.pairwise(marks)]
    made = dict(zip(steps, spent, strict=True))
    return {**made, "dossier": sum(spent[:3])}


def cold(home: Path) -> float:
    """Seconds of processor time of `qwenstack dossier` in a fresh process."""
    command = [sys.executable, "-m", "qwenstack.cli.main", "dossier", REFERENCE]
    command += ["--home", str(home), "--out", str(home / "cold.dossier")]
    subprocess.run(command, check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print the medians as JSON; exit with 1 where a dossier takes over 3 seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()
    found = evidence(options.files)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        runs = [once(found, out) for _ in range(options.runs)]
        fresh = cold(Path(folder))
    medians = {step: round(statistics.median(run[step] for run in runs), 3) for step in runs[0]}
    print(json.dumps({"evidence": len(found), **medians, "cold": round(fresh, 3)}, indent=2))
    sys.exit(medians["dossier"] > 3 or fresh > 3)


if __name__ == "__main__":
    main()
