"""Several workers' metrics as one: each counts in files of its own, and any of them adds all up.

A file is named after its worker's *place*, not after its process: who takes a dead worker's place
counts on from where that one was killed, so that no sum ever falls and no file is left over. The
counts are mapped into memory, and what is written there survives a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, values
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_FOLDER = "metrics"
# The library's files, by the beginning of their names. Some hundred models fit.
_FILE_BYTES = {
    "counter": 256 * 1024,
    "histogram": 2 * 1024 * 1024,
    "gauge_livesum": 64 * 1024,
    "gauge_livemin": 64 * 1024,
    "gauge_livemax": 64 * 1024,
}


class Place(msgspec.Struct, frozen=True):
    """Where one of several workers counts: its number, and the folder that they share."""

    folder: Path
    number: int


def folder_of(home: Path, port: int) -> Path:
    """The folder of the workers behind a port, which only one group of this machine can have."""
    return home / _FOLDER / str(port)


def begin(folder: Path) -> None:
    """Make the folder, empty: counting begins with the group."""
    end(folder)
    folder.mkdir(parents=True)


def end(folder: Path) -> None:
    """Remove what the group counted."""
    shutil.rmtree(folder, ignore_errors=True)


def worker_died(place: Place) -> None:
    """Take a dead worker's gauges out; what it counted stays."""
    mark_process_dead(place.number, str(place.folder))  # type: ignore[no-untyped-call]


def count_at(place: Place) -> None:
    """Let every metric that this process makes from now on count at `place`.

    Raises OSError where the disk has no room for it.
    """
    for kind, size in _FILE_BYTES.items():
        _make_room(place.folder / f"{kind}_{place.number}.db", size)
    # The library reads the folder there, and has no other way to be told.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(place.folder)
    values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
        lambda: place.number
    )


def _make_room(path: Path, size: int) -> None:
    """Have a file of zeros, unless there is one to count on in.

    The library would make it with holes. What is mapped and has no place on a full disk kills the
    process that touches it.
    """
    if not path.exists():
        fresh = path.with_suffix(".new")
        try:
            fresh.write_bytes(bytes(size))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def sums(place: Place, *others: Collector) -> CollectorRegistry:
    """What a scrape of any worker shows: all counts added up, each process, and `others`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(place.folder))  # type: ignore[no-untyped-call]
    registry.register(_EachProcess())
    for other in others:
        registry.register(other)
    return registry


class _EachProcess(Collector):
    """The `process_*` metrics of every worker, by `pid`: a sum would fall whenever one ends."""

    def collect(self) -> Iterator[Metric]:
        """Read each worker's from the operating system."""
        families: dict[str, Metric] = {}
        for pid in _siblings():
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from families.values()


def _siblings() -> list[int]:
    """The processes that this one's supervisor runs: Linux tells; elsewhere this one alone."""
    parent = os.getppid()
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
        return [int(each) for each in children.split()]
    return [os.getpid()]
