"""How long `which` takes: a fresh process for one reference, and a reference in a warm one.

    python benchmarks/which_speed.py [--runs 20]

Cold is what a shell sees: interpreter, imports, the catalogue's compiled copy, one answer as JSON.
It is given as wall time and as processor time, because the first depends on what else the machine
does. Warm is each reference of the table of tests/data/which_table.tsv, the median of its calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TABLE = Path(__file__).parent.parent / "tests" / "data" / "which_table.tsv"
WARM_CALLS = 20


def cold(runs: int) -> dict[str, float]:
    """Milliseconds of fresh processes: least and median of wall time, least of processor time."""
    command = [sys.executable, "-m", "qwenstack.cli.main", "which", "Qwen/Qwen3-8B", "--json"]
    # As installed: with compiled modules, wherever this environment keeps them.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    cache = tempfile.TemporaryDirectory()
    environment["PYTHONPYCACHEPREFIX"] = cache.name
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    walls, spent = [], []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        walls.append((time.perf_counter() - start) * 1e3)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append((after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e3)
    cache.cleanup()
    return {
        "wall_ms_least": round(min(walls), 1),
        "wall_ms_median": round(statistics.median(walls), 1),
        "processor_ms_least": round(min(spent), 1),
        "processor_ms_median": round(statistics.median(spent), 1),
    }


def warm() -> dict[str, float | int | str]:
    """Milliseconds of a call in a warm process, over every reference of the table."""
    from qwenstack.catalog.which import which

    references = [
        json.loads(line.split("\t", 1)[0])
        for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]
    ]
    medians = {}
    for reference in references:
        which(reference, files=False)
        times = []
        for _ in range(WARM_CALLS):
            start = time.perf_counter()
            which(reference, files=False)
            times.append((time.perf_counter() - start) * 1e3)
        medians[reference] = statistics.median(times)
    ordered = sorted(medians.values())
    return {
        "references": len(ordered),
        "ms_median": round(statistics.median(ordered), 3),
        "ms_p99": round(ordered[int(len(ordered) * 0.99)], 3),
        "ms_most": round(ordered[-1], 3),
        "slowest": max(medians, key=medians.__getitem__)[:60],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    print(
        json.dumps(
            {
                "python": sys.version.split()[0],
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "cold": cold(arguments.runs),
                "warm": warm(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
