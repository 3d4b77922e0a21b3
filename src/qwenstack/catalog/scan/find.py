"""Every model reference in a tree: walk, filter, extract, and answer each name once.

Files are searched in batches, in this process or in several: a batch is the paths of some folders,
and what comes back is the places found in it, in order, whoever worked on it.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from qwenstack.catalog.scan.walk import Trouble, WalkLimits, walk
from qwenstack.catalog.which.answer import Answer
from qwenstack.catalog.which.decide import which
from qwenstack.catalog.which.index import Index, index
from qwenstack.catalog.which.mentions import find
from qwenstack.catalog.which.reading import Setting

if TYPE_CHECKING:
    from qwenstack.catalog.scan.prefilter import Candidate

FILE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of a longer file, the first part is looked at and the rest is said to be left out."""

PLACES_MAX: Final = 100_000
_PLACES_PER_FILE_MAX: Final = 2_000
_EXCERPT_CHARACTERS: Final = 160
_BATCH_FILES: Final = 1_000
_BATCHES_AHEAD: Final = 8
_PROCESSES_FROM_FILES: Final = 8_000
_TROUBLES_KEPT: Final = 1_000
_PROSE: Final = (".md", ".rst", ".txt", ".adoc", ".html")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A reference in a file. `line` and `column` count from 1, the column in characters."""

    path: str
    line: int
    column: int
    reference: str
    setting: Setting
    text: str
    """The line, or what stands around the reference in a long one."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A place and what the reference in it is."""

    place: Place
    answer: Answer


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a scan found. `troubles` are the places that were not looked at, or not whole."""

    root: str
    files: int
    bytes_read: int
    binary: int
    findings: tuple[Finding, ...]
    troubles: tuple[Trouble, ...]
    truncated: bool = False


class Found(msgspec.Struct, frozen=True):
    """What one batch gives: its places, and what it looked at."""

    places: tuple[Place, ...]
    files: int
    bytes_read: int
    binary: int
    troubles: tuple[Trouble, ...]


def scan(
    root: Path,
    *,
    limits: WalkLimits | None = None,
    file_bytes_max: int = FILE_BYTES_MAX,
    jobs: int = 0,
    catalogue: Index | None = None,
    seen: Callable[[int], None] = lambda files: None,
) -> Report:
    """Scan the tree at `root`, or the one file that it is. Raises OSError if it is not there.

    `jobs` is the number of processes, 0 for as many as help. `seen` is told how many files are
    done.
    """
    found = catalogue or index()
    places: list[Place] = []
    totals = [0, 0, 0]
    troubles: list[Trouble] = []
    truncated = False
    top, batches = _batches(root, limits or WalkLimits(), troubles)
    for batch in _search(batches, top, file_bytes_max, jobs):
        places += batch.places
        totals = [
            totals[0] + batch.files,
            totals[1] + batch.bytes_read,
            totals[2] + batch.binary,
        ]
        troubles += batch.troubles[: max(0, _TROUBLES_KEPT - len(troubles))]
        seen(totals[0])
        if len(places) >= PLACES_MAX:
            del places[PLACES_MAX:]
            truncated = True
            break
    return Report(
        root=written(str(root)),
        files=totals[0],
        bytes_read=totals[1],
        binary=totals[2],
        findings=tuple(_answered(places, found)),
        troubles=tuple(Trouble(written(each.path), each.reason) for each in troubles),
        truncated=truncated,
    )


def _batches(
    root: Path, limits: WalkLimits, troubles: list[Trouble]
) -> tuple[str, Iterator[list[str]]]:
    if root.is_file():
        return f"{root.parent}/", iter([[str(root)]])
    os.scandir(root).close()  # says now, and not as a trouble, that it is no folder
    return str(root).rstrip("/") + "/", _walked(str(root), limits, troubles)


def _walked(root: str, limits: WalkLimits, troubles: list[Trouble]) -> Iterator[list[str]]:
    batch: list[str] = []
    for paths in walk(root, limits, troubles):
        batch += paths
        while len(batch) >= _BATCH_FILES:
            yield batch[:_BATCH_FILES]
            batch = batch[_BATCH_FILES:]
    if batch:
        yield batch


def _search(
    batches: Iterator[list[str]], top: str, file_bytes_max: int, jobs: int
) -> Iterator[Found]:
    first = list(itertools.islice(batches, _PROCESSES_FROM_FILES // _BATCH_FILES))
    every = itertools.chain(first, batches)
    large = len(first) * _BATCH_FILES >= _PROCESSES_FROM_FILES
    workers = jobs or (min(os.cpu_count() or 1, 8) if large else 1)
    if workers <= 1 or len(first) < 2:
        for batch in every:
            yield search(batch, top, file_bytes_max)
        return
    yield from _search_in_processes(every, top, file_bytes_max, workers)


def _search_in_processes(
    batches: Iterator[list[str]], top: str, file_bytes_max: int, workers: int
) -> Iterator[Found]:
    """As `search`, batch by batch in order; only so many batches are under way at a time."""
    # Only a large scan pays for these imports and processes.
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing import get_context

    # A fork has the catalogue already; but it is safe only while no other thread holds a lock.
    alone = threading.active_count() == 1 and sys.platform == "linux"
    context = get_context("fork" if alone else "spawn")
    ahead: collections.deque[Future[Found]] = collections.deque()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            for batch in batches:
                ahead.append(pool.submit(search, batch, top, file_bytes_max))
                if len(ahead) > workers * _BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def search(paths: Sequence[str], top: str, file_bytes_max: int = FILE_BYTES_MAX) -> Found:
    """The places in `paths`; file names are given relative to `top`."""
    # Imported here, so that a process that forks has no threads of numpy's.
    from qwenstack.catalog.scan.prefilter import Tally, candidates

    tally = Tally()
    found = index()
    places = [
        place
        for candidate in candidates(paths, tally, file_bytes_max=file_bytes_max)
        for place in places_in(candidate, top, found)
    ]
    return Found(tuple(places), tally.files, tally.bytes_read, tally.binary, tuple(tally.troubles))


def places_in(candidate: Candidate, top: str, found: Index) -> Iterator[Place]:
    """The references in one file's text."""
    text = candidate.data.decode("utf-8", "replace")
    path = written(candidate.path.removeprefix(top))
    prose = path.casefold().endswith(_PROSE)
    line, counted = 1, 0
    for number, mention in enumerate(find(text, found, prose=prose)):
        if number >= _PLACES_PER_FILE_MAX:
            return
        line += text.count("\n", counted, mention.start)
        counted = mention.start
        begin = text.rfind("\n", 0, mention.start) + 1
        shown = max(begin, mention.start - _EXCERPT_CHARACTERS // 2)
        excerpt = text[shown : shown + _EXCERPT_CHARACTERS].partition("\n")[0]
        yield Place(
            path=path,
            line=line,
            column=mention.start - begin + 1,
            reference=mention.text,
            setting=mention.setting,
            text=excerpt.strip(),
        )


def written(path: str) -> str:
    """A path as it can be written down: bytes in it that are no UTF-8 as `\\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _answered(places: list[Place], found: Index) -> Iterator[Finding]:
    answers: dict[tuple[str, Setting], Answer] = {}
    for place in places:
        key = (place.reference, place.setting)
        if key not in answers:
            answers[key] = which_text(place.reference, found, place.setting)
        yield Finding(place=place, answer=answers[key])


def which_text(reference: str, found: Index, setting: Setting) -> Answer:
    """The answer for a name found in a text: never for a file of that name on this machine."""
    return which(reference, catalogue=found, setting=setting, files=False)
