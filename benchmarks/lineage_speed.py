"""How fast a fingerprint is made, against reading and hashing the same file, and how fast a
million of them are searched.

    python benchmarks/lineage_speed.py MODEL.gguf [MODEL.safetensors …]

Each file is read once before, so that all of it is in memory's page cache. The least CPU time of
five runs counts, so that other work on the machine does not. Memory is what a process of its own
holds in the end beside the mapped file, over one that only imports.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import numpy as np

from qwenstack.hub.lineage.codes import CodeMatrix
from qwenstack.hub.lineage.fingerprint import PAIRS, Fingerprint, fingerprint
from qwenstack.hub.lineage.model import open_path

ROUNDS = 5
ENTRIES = 1_000_000
_PIECE = 1 << 22


def best_s(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least CPU time of `rounds` runs, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def read(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_print(path: Path) -> Fingerprint:
    return fingerprint(open_path(path))


def peak_mib(path: Path) -> tuple[float, float]:
    """Peak anonymous memory of importing alone, and of importing and fingerprinting."""
    script = (
        "import sys, pathlib; from qwenstack.hub.lineage.fingerprint import fingerprint; "
        "from qwenstack.hub.lineage.model import open_path; "
        "[fingerprint(open_path(pathlib.Path(p))) for p in sys.argv[1:]]; "
        "print(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])"
    )

    def run(*arguments: str) -> float:
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024

    return run(), run(str(path))


def files(paths: list[Path]) -> None:
    print("file                              GB    read GB/s  sha256 GB/s  print GB/s  share  MiB")
    print(
        "                                        (CPU seconds, so that a busy machine counts less)"
    )
    for path in paths:
        size = path.stat().st_size / 1e9
        read(path)
        works: tuple[Callable[[Path], object], ...] = (read, sha256, make_print)
        seconds = [best_s(functools.partial(work, path)) for work in works]
        speeds = [size / each for each in seconds]
        before, after = peak_mib(path)
        print(
            f"{path.name[:32]:32} {size:6.3f} {speeds[0]:10.2f} {speeds[1]:12.2f} "
            f"{speeds[2]:11.2f} {speeds[2] / speeds[1]:6.0%} {after - before:5.0f}"
        )


def queries(folder: Path, asked: Fingerprint) -> None:
    """Fill a matrix with random codes, hide one relative in it, and look for it."""
    random = np.random.default_rng(0)
    matrix = CodeMatrix(folder)
    each = 100_000
    for _ in range(ENTRIES // each):
        tokens = random.integers(-100, 101, (each, 3 * PAIRS), dtype=np.int8)
        ranges = tokens.reshape(each, 3, PAIRS)
        signs = np.concatenate([ranges[:, 0, : PAIRS // 2], ranges[:, 1, : PAIRS // 2]], axis=1)
        planes = np.packbits(signs > 0, axis=1).view(np.uint64)
        matrix.extend(planes, tokens, [random.bytes(32) for _ in range(each)])
    matrix.append([(b"k" * 32, asked)])
    cpu: list[float] = []
    wall: list[float] = []
    for _ in range(50):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = matrix.nearest(asked, 10)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    assert found[0][0] == b"k" * 32
    print(
        f"{len(matrix)} fingerprints: query {1e3 * float(np.median(wall)):.1f} ms median, "
        f"{1e3 * min(wall):.1f} ms best, {1e3 * float(np.median(cpu)):.1f} ms of CPU"
    )


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        sys.exit(__doc__)
    files(paths)
    with tempfile.TemporaryDirectory() as folder:
        queries(Path(folder), make_print(paths[0]))


if __name__ == "__main__":
    main()
