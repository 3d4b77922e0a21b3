"""How fast the hub's store takes bytes in and gives them out, and how many it keeps.

    python -m benchmarks.hub_store                 # 512 MB, about a minute
    python -m benchmarks.hub_store --megabytes 64

One JSON document. Each speed stands beside the plain read, copy or SHA-256 of the same bytes on the
same machine in the same minute, three rounds, the best of each. The family is a base of as many
tensors as fit and ten fine-tunes that each change three of them entirely.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenstack.hub.store.contents import ContentStore, Expected
from qwenstack.hub.store.gearhash import Cutter
from qwenstack.hub.store.merkle import chunk_hash
from qwenstack.storage.database import open_database

_PIECE = 1024 * 1024
_ROUNDS = 3


def pieces(data: bytes) -> Iterator[bytes]:
    """As they come from a socket or a file."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


class Speed(NamedTuple):
    """MB a second of the clock, and MB a second of processor time, of which a busy machine takes
    nothing away.
    """

    clock: float
    processor: float


def speed(size: int, *works: Callable[[], object]) -> Speed:
    """The best of the works, or of three rounds of the only one."""
    clock = processor = 0.0
    for work in works if len(works) > 1 else works * _ROUNDS:
        started, spent = time.perf_counter(), time.process_time()
        work()
        clock = max(clock, size / 1e6 / (time.perf_counter() - started))
        processor = max(processor, size / 1e6 / (time.process_time() - spent))
    return Speed(round(clock, 1), round(processor, 1))


def cut(data: bytes, *, hashed: bool) -> None:
    """Find the chunks, and their hashes if asked for."""
    cutter = Cutter()
    for piece in pieces(data):
        for chunk in cutter.feed(piece):
            if hashed:
                chunk_hash(chunk)
    list(cutter.finish())


def write_and_flush(data: bytes, path: Path) -> None:
    """The plain copy that a put is compared with."""
    with path.open("wb") as file:
        for piece in pieces(data):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def throughput(folder: Path, size: int) -> dict[str, Speed]:
    """Speeds of each step on random bytes."""
    store = open_store(folder)
    first, second, third = (np.random.default_rng(seed).bytes(size) for seed in range(3))
    shifted = [data[: size // 2] + b"!" + data[size // 2 :] for data in (first, second)]
    digest = hashlib.sha256(first).hexdigest()

    def put(data: bytes) -> Callable[[], object]:
        expect = Expected(hashlib.sha256(data).hexdigest(), len(data))
        return lambda: store.put(pieces(data), expect=expect)

    return {
        "sha256": speed(size, lambda: hashlib.sha256(first).digest()),
        "write and fsync": speed(size, lambda: write_and_flush(first, folder / "plain")),
        "cut": speed(size, lambda: cut(first, hashed=False)),
        "cut and hash chunks": speed(size, lambda: cut(first, hashed=True)),
        "put new bytes": speed(size, put(first), put(second), put(third)),
        "put known bytes": speed(size, *map(put, shifted)),
        "read checked": speed(size, lambda: sum(map(len, store.read(digest)))),
        "verify": speed(size, lambda: store.verify(digest)),
        "plain read": speed(size, lambda: (folder / "plain").read_bytes()),
    }


def family(folder: Path, size: int) -> dict[str, int]:
    """Stored bytes of a base and ten fine-tunes."""
    store = open_store(folder)
    count = 24
    random = np.random.default_rng(1)
    tensors = [random.bytes(size // count) for _ in range(count)]
    plain = changed = 0
    for tune in range(11):
        own = list(tensors)
        for which in random.choice(count, 3, replace=False) if tune else ():
            own[which] = random.bytes(len(tensors[0]))
            changed += len(own[which])
        header = f"fine-tune {tune}".encode().ljust(4096)
        plain += len(header) + sum(map(len, own))
        store.put(iter([header, *own]))
    kept = sum(each.bytes for each in store.objects.list())
    return {
        "whole files": plain,
        "base and changed tensors": sum(map(len, tensors)) + changed,
        "stored": kept,
        "database": sum(path.stat().st_size for path in folder.glob("hub.db*")),
    }


def open_store(folder: Path) -> ContentStore:
    """A fresh store."""
    folder.mkdir(parents=True, exist_ok=True)
    return ContentStore(open_database(f"sqlite:///{folder / 'hub.db'}"), folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    size = arguments.megabytes * 1_000_000
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        answer = {
            "megabytes": arguments.megabytes,
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "mb_per_s": {
                step: found._asdict()
                for step, found in throughput(Path(name) / "speed", size).items()
            },
            "bytes": family(Path(name) / "family", size // 2),
        }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
