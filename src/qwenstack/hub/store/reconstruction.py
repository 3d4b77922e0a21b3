"""How a Xet client puts a file together: which chunks of which xorbs, and where they are fetched.

The answers' shapes are the protocol's (huggingface.co/docs/xet/api): chunk ranges end before their
`end`, byte ranges with it. A xorb is sent with no compression, so that a chunk's place on the wire
follows from its place in the pack.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import msgspec

from qwenstack.hub.store.packs import PackIndex, PackTable
from qwenstack.hub.store.reading import Layout, read_packs
from qwenstack.hub.store.xorb import wire_offset

SignUrl = Callable[[str, int, int], str]
"""The address of chunks `first` to `end` of a xorb."""


class Range(msgspec.Struct, frozen=True):
    """Chunks, or bytes."""

    start: int
    end: int


class Term(msgspec.Struct, frozen=True):
    """A run of chunks that comes next in the file."""

    hash: str
    unpacked_length: int
    range: Range


class FetchInfo(msgspec.Struct, frozen=True):
    """Version 1: where a run of chunks is fetched."""

    range: Range
    url: str
    url_range: Range


class Reconstruction(msgspec.Struct, frozen=True):
    """Version 1 of the answer."""

    offset_into_first_range: int
    terms: list[Term]
    fetch_info: dict[str, list[FetchInfo]]


class Part(msgspec.Struct, frozen=True):
    """Version 2: a run of chunks and its bytes on the wire."""

    chunks: Range
    bytes: Range


class Fetch(msgspec.Struct, frozen=True):
    """Version 2: an address and what it gives."""

    url: str
    ranges: list[Part]


class Reconstruction2(msgspec.Struct, frozen=True):
    """Version 2 of the answer."""

    offset_into_first_range: int
    terms: list[Term]
    xorbs: dict[str, list[Fetch]]


def reconstruct(
    table: PackTable, layout: Layout, start: int, end: int, sign_url: SignUrl
) -> Reconstruction:
    """How to make bytes `start` to `end` of a content, at least one. Raises ContentCorrupt."""
    which = layout.overlapping(start, end)
    packs = read_packs(table, layout, which)
    terms: list[Term] = []
    runs: dict[str, list[tuple[int, int]]] = {}
    offset = 0
    for number in which:
        row, place = layout.rows[number], layout.starts[number]
        pack = packs[row.pack]
        low = max(bisect.bisect_right(pack.starts, row.offset + start - place) - 1, row.first)
        high = min(bisect.bisect_left(pack.starts, row.offset + end - place), row.end)
        if not terms:
            offset = start - (place + pack.starts[low] - row.offset)
        size = pack.starts[high] - pack.starts[low]
        terms.append(Term(row.pack, size, Range(low, high)))
        runs.setdefault(row.pack, []).append((low, high))
    fetch_info = {
        name: [_fetch_info(packs[name], low, high, sign_url) for low, high in _joined(found)]
        for name, found in runs.items()
    }
    return Reconstruction(offset, terms, fetch_info)


def second_version(first: Reconstruction) -> Reconstruction2:
    """The same in the newer shape, with one range an address."""
    xorbs = {
        name: [Fetch(info.url, [Part(info.range, info.url_range)]) for info in infos]
        for name, infos in first.fetch_info.items()
    }
    return Reconstruction2(first.offset_into_first_range, first.terms, xorbs)


def _fetch_info(pack: PackIndex, low: int, high: int, sign_url: SignUrl) -> FetchInfo:
    on_wire = Range(wire_offset(pack, low), wire_offset(pack, high) - 1)
    return FetchInfo(Range(low, high), sign_url(pack.hash, low, high), on_wire)


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs that touch or overlap become one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(runs):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined
