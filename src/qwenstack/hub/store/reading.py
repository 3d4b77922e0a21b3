"""Getting bytes out: where they lie, and the bytes themselves, each chunk checked by its hash."""

from __future__ import annotations

import bisect
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from sqlalchemy import Engine, select

from qwenstack.hub.store.kinds import Content, ContentCorrupt, ContentMissing, Segment
from qwenstack.hub.store.merkle import Leaf, chunk_hash, file_hash, to_text
from qwenstack.hub.store.packs import PackIndex, PackTable
from qwenstack.hub.store.writing import Run, git_hash
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents, segments

_BLOCK_BYTES = 1024 * 1024
_BUFFER_BYTES = 128 * 1024


class SegmentRow(NamedTuple):
    """A segment as its row has it."""

    pack: str
    first: int
    end: int
    offset: int
    bytes: int


class Layout(NamedTuple):
    """A content and where it lies; `starts` are the segments' places in it, ended by its size."""

    content: Content
    rows: list[SegmentRow]
    starts: list[int]

    def overlapping(self, start: int, end: int) -> range:
        """Which segments hold bytes of `start` to `end`."""
        if start >= end:
            return range(0)
        first = bisect.bisect_right(self.starts, start) - 1
        return range(first, bisect.bisect_left(self.starts, end))


def read_layout(database: Engine, sha256: str) -> Layout:
    """Where a content lies; raises ContentMissing."""
    columns = (segments.c.pack, segments.c.first_chunk, segments.c.end_chunk)
    query = (
        select(*columns, segments.c.pack_offset, segments.c.bytes)
        .where(segments.c.sha256 == sha256)
        .order_by(segments.c.position)
    )
    with reading(database) as connection:
        row = connection.execute(select(contents).where(contents.c.sha256 == sha256)).first()
        if row is None:
            raise ContentMissing(f"the store holds no content with SHA-256 {sha256}")
        rows = [SegmentRow(*each) for each in connection.execute(query)]
    starts = list(accumulate((each.bytes for each in rows), initial=0))
    content = Content(row.sha256, row.size, row.xet_hash, row.git_oid)
    if starts[-1] != content.size:
        raise ContentCorrupt(
            f"the segments of content {sha256} have {starts[-1]} bytes, it has {content.size}"
        )
    return Layout(content, rows, starts)


def layout_of(content: Content, runs: Sequence[Run]) -> Layout:
    """Where a content lies that has no rows yet."""
    rows = [
        SegmentRow(
            run.pack.hash,
            run.first,
            run.end,
            run.pack.starts[run.first],
            run.pack.starts[run.end] - run.pack.starts[run.first],
        )
        for run in runs
    ]
    return Layout(content, rows, list(accumulate((row.bytes for row in rows), initial=0)))


def clamp(size: int, start: int, end: int | None) -> tuple[int, int]:
    """The bytes of a content that `start` and `end` mean; raises ValueError for negative ones."""
    end = size if end is None else min(end, size)
    if start < 0 or end < 0:
        raise ValueError(f"bytes {start} to {end} are no range")
    return min(start, end), end


def file_segments(table: PackTable, layout: Layout, start: int, end: int | None) -> list[Segment]:
    """The stretches of files that hold the bytes; raises ContentCorrupt when a pack is gone."""
    start, end = clamp(layout.content.size, start, end)
    which = layout.overlapping(start, end)
    indexes = read_packs(table, layout, which)
    found: list[Segment] = []
    for number in which:
        row, place = layout.rows[number], layout.starts[number]
        skipped = max(start - place, 0)
        taken = min(end - place, row.bytes) - skipped
        try:
            path = table.path(indexes[row.pack])
        except FileNotFoundError as error:
            raise _gone(layout, row.pack) from error
        found.append(Segment(path, row.offset + skipped, taken))
    return found


def read_packs(table: PackTable, layout: Layout, which: Sequence[int]) -> dict[str, PackIndex]:
    """The indexes of the packs that these segments lie in; raises ContentCorrupt."""
    wanted = {layout.rows[number].pack for number in which}
    indexes = table.read(wanted)
    for each in wanted - indexes.keys():
        raise _gone(layout, each)
    return indexes


def checked_chunks(
    table: PackTable, layout: Layout, start: int, end: int | None
) -> Iterator[tuple[int, Leaf, memoryview]]:
    """The chunks that hold the bytes, whole, with their place in the content; each one checked.

    Raises ContentCorrupt naming the pack, the chunk and the content.
    """
    start, end = clamp(layout.content.size, start, end)
    which = layout.overlapping(start, end)
    for number in which:
        row = layout.rows[number]
        index = read_packs(table, layout, [number])[row.pack]
        if row.end > len(index) or index.starts[row.first] != row.offset:
            raise ContentCorrupt(
                f"segment {number} of content {layout.content.sha256} is no run of chunks of pack "
                f"{row.pack}"
            )
        place = layout.starts[number]
        low = max(bisect.bisect_right(index.starts, row.offset + start - place) - 1, row.first)
        high = min(bisect.bisect_left(index.starts, row.offset + end - place), row.end)
        try:
            for position, data in pack_chunks(table, Run(index, low, high)):
                offset = place + index.starts[position] - row.offset
                yield offset, (index.hashes[position], len(data)), data
        except FileNotFoundError as error:
            raise _gone(layout, row.pack) from error
        except ContentCorrupt as error:
            raise ContentCorrupt(f"{error}; content {layout.content.sha256} needs it") from error


def pack_chunks(table: PackTable, run: Run) -> Iterator[tuple[int, memoryview]]:
    """The chunks of a run with their positions, each checked by its hash.

    Raises FileNotFoundError, ContentCorrupt.
    """
    pack = run.pack
    with table.path(pack).open("rb", buffering=0) as file:
        first = run.first
        while first < run.end:
            limit = pack.starts[first] + _BLOCK_BYTES
            end = min(max(bisect.bisect_right(pack.starts, limit) - 1, first + 1), run.end)
            file.seek(pack.starts[first])
            block = memoryview(_read_exactly(file, pack.starts[end] - pack.starts[first], pack))
            for position in range(first, end):
                place = pack.starts[position] - pack.starts[first]
                data = block[place : place + pack.size(position)]
                if chunk_hash(data) != pack.hashes[position]:
                    raise ContentCorrupt(
                        f"chunk {position} of pack {pack.hash} (file {pack.object}, byte "
                        f"{pack.starts[position]}) is not what was stored"
                    )
                yield position, data
            first = end


def verify_layout(table: PackTable, layout: Layout) -> None:
    """Read a content and check its chunks, SHA-256, Git and Xet hashes; raises ContentCorrupt."""
    chunks = ((leaf, data) for _, leaf, data in checked_chunks(table, layout, 0, None))
    found = describe(chunks, layout.content)
    if found != layout.content:
        packs = ", ".join(sorted({row.pack for row in layout.rows})) or "none"
        raise ContentCorrupt(
            f"content {layout.content.sha256} hashes to {found.sha256} though its chunks are "
            f"sound: its segments are wrong (packs {packs})"
        )


def describe(chunks: Iterable[tuple[Leaf, memoryview]], said: Content) -> Content:
    """What chunks are, by their bytes; the Git hash only if `said` has one."""
    sha256, git = hashlib.sha256(), git_hash(said.size)
    leaves: list[Leaf] = []
    for leaf, data in chunks:
        sha256.update(data)
        if said.git_oid:
            git.update(data)
        leaves.append(leaf)
    size = sum(length for _, length in leaves)
    git_oid = git.hexdigest() if said.git_oid else ""
    return Content(sha256.hexdigest(), size, to_text(file_hash(leaves)), git_oid)


class ContentReader(io.RawIOBase):
    """A content as a seekable file. Every read is of whole, checked chunks.

    The first read at a place fetches one chunk; who reads on gets those that follow by the block.
    """

    def __init__(self, table: PackTable, layout: Layout) -> None:
        super().__init__()
        self._table = table
        self._layout = layout
        self._place = 0
        self._chunk_start = 0
        self._chunk: memoryview = memoryview(b"")
        self._following: Iterator[tuple[int, Leaf, memoryview]] | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; beyond the end nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._layout.content.size}
        place = base[whence] + offset
        if place < 0:
            raise ValueError(f"cannot seek to byte {place}")
        self._place = place
        return place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from one chunk; 0 at the end."""
        if self._place >= self._layout.content.size or not len(buffer):
            return 0
        if not 0 <= self._place - self._chunk_start < len(self._chunk):
            self._fetch()
        begin = self._place - self._chunk_start
        taken = self._chunk[begin : begin + len(buffer)]
        buffer[: len(taken)] = taken
        self._place += len(taken)
        return len(taken)

    def close(self) -> None:
        """Let go of the pack that is read."""
        self._following = None
        super().close()

    def _fetch(self) -> None:
        """Make the chunk at the place the current one."""
        reads_on = len(self._chunk) > 0 and self._place == self._chunk_start + len(self._chunk)
        if not reads_on:
            self._following = None
        end = None if reads_on else self._place + 1
        found = self._following or checked_chunks(self._table, self._layout, self._place, end)
        if reads_on:
            self._following = found
        self._chunk_start, _, self._chunk = next(found)


def open_layout(table: PackTable, layout: Layout) -> BinaryIO:
    """A buffered `ContentReader`."""
    return io.BufferedReader(ContentReader(table, layout), _BUFFER_BYTES)


def _read_exactly(file: io.FileIO, size: int, pack: PackIndex) -> bytearray:
    block = bytearray(size)
    filled = 0
    with memoryview(block) as view:
        while filled < size:
            count = file.readinto(view[filled:])
            if not count:
                raise ContentCorrupt(
                    f"pack {pack.hash} (file {pack.object}) ends before its {pack.bytes} bytes"
                )
            filled += count
    return block


def _gone(layout: Layout, pack: str) -> ContentCorrupt:
    return ContentCorrupt(f"pack {pack} is missing; content {layout.content.sha256} needs it")
