"""Putting bytes in: cut into chunks, kept once, described by segments.

A chunk that some pack holds already is not written again, unless that would fragment the content: a
stretch of known chunks between new ones is referred to only from `STRETCH_CHUNKS_MIN` chunks on
(about 256 KiB), so that reading stays a few long runs. At a content's start and end any length
counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, update
from sqlalchemy.exc import IntegrityError

from qwenstack.core.instants import now_us
from qwenstack.hub.store.beside import Beside
from qwenstack.hub.store.gearhash import Cutter
from qwenstack.hub.store.kinds import (
    Content,
    ContentCorrupt,
    ContentMismatch,
    Expected,
    StoreError,
)
from qwenstack.hub.store.merkle import Leaf, chunk_hash, file_hash, to_text
from qwenstack.hub.store.objects import Objects
from qwenstack.hub.store.packs import PackIndex, PackTable, PackWriter, mark_used
from qwenstack.hub.store.rows import insert_new, insert_one
from qwenstack.storage.hub_tables import contents, segments

STRETCH_CHUNKS_MIN = 4
_PIECE_BYTES = 4 * 1024 * 1024
# Less is hashed sooner than another thread is told to.
_BESIDE_BYTES_MIN = 256 * 1024
_TRIES_MAX = 5
# Of pieces that are not written yet, each of up to `_PIECE_BYTES`.
_UNWRITTEN_MAX = 2


class Run(NamedTuple):
    """Chunks `first` to `end` of a pack, in a content's order."""

    pack: PackIndex
    first: int
    end: int


class _Place(NamedTuple):
    pack: PackIndex | PackWriter
    position: int


class _Chunk(NamedTuple):
    digest: bytes
    data: memoryview


class _Taken(NamedTuple):
    """A content whose bytes all came. Its Git hash may be left to be made from the packs."""

    content: Content
    runs: list[_OpenRun]
    lacks_git: bool


class _OpenRun:
    """A run whose pack may still be in the making."""

    __slots__ = ("end", "first", "pack")

    def __init__(self, place: _Place) -> None:
        self.pack: PackIndex | PackWriter = place.pack
        self.first = place.position
        self.end = place.position + 1

    def continues(self, place: _Place) -> bool:
        return place.pack is self.pack and place.position == self.end


class Intake:
    """Takes contents in, one after the other, into shared packs; `commit` makes them visible.

    Used as a context manager: what was not committed leaves nothing but packs that another upload
    has begun to use.
    """

    def __init__(self, database: Engine, objects: Objects, table: PackTable) -> None:
        self._database = database
        self._objects = objects
        self._table = table
        self._writer: PackWriter | None = None
        # With the one in the making, those that are written still; then by what they have become.
        self._open: list[PackWriter] = []
        self._closed: dict[PackWriter, PackIndex] = {}
        self._made: list[str] = []
        self._in_use: dict[str, bool] = {}
        self._files: list[_Taken] = []
        self._committed = False
        # Beside the cutting: a content's own hash, and the writing of a pack while the one before
        # is made durable. They leave Python's lock.
        self.hashing = Beside(1)
        self._writing = Beside(_UNWRITTEN_MAX)
        self._settling = Beside(1)

    def __enter__(self) -> Intake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was not committed. Raises OSError."""
        for thread in (self.hashing, self._writing, self._settling):
            thread.close()
        for writer in self._open:
            if writer not in self._closed:
                writer.discard()
        if not self._committed:
            self._table.withdraw(self._made)

    def take(self, pieces: Iterable[bytes], expect: Expected | None = None) -> None:
        """Take one content in, whole, with its Git hash; raises ContentMismatch, OSError."""
        file = self.begin(expect, with_git=True)
        for piece in pieces:
            file.feed(piece)
        self.end(file)

    def begin(self, expect: Expected | None, *, with_git: bool) -> Incoming:
        """A content whose bytes come piece by piece; `end` takes it."""
        return Incoming(self, expect, with_git=with_git)

    def end(self, file: Incoming) -> None:
        """All bytes of a content came; raises ContentMismatch, OSError."""
        self._files.append(file.finish())

    def commit(self) -> list[Content]:
        """Make all that was taken in durable and visible, and describe it, in the order of `take`.

        Raises OSError, StoreError.
        """
        self._close_writer()
        self._writing.wait()
        self._settling.wait()
        try:
            files = [self._described(taken) for taken in self._files]
            with self._database.begin() as connection:
                for content, runs in files:
                    add_content(connection, content, runs)
                mark_used(connection, sorted(self._in_use))
            self._committed = True
        except (IntegrityError, FileNotFoundError) as error:
            raise StoreError(
                "a pack that this upload reused was swept meanwhile; upload once more, and sweep "
                "with a longer grace period than an upload takes"
            ) from error
        return [content for content, _ in files]

    def flush(self) -> None:
        """Write what was appended, soon: a few pieces may be left to write."""
        if self._writer is not None:
            self._writer.flush()

    def write(self, chunk: _Chunk) -> _Place:
        """Append a chunk to the pack in the making."""
        if self._writer is not None and not self._writer.has_room(len(chunk.data)):
            self._close_writer()
        if self._writer is None:
            self._writer = PackWriter(self._objects, self._writing.do)
            self._open.append(self._writer)
        return _Place(self._writer, self._writer.append(chunk.digest, chunk.data))

    def find(self, digests: Sequence[bytes]) -> dict[bytes, _Place]:
        """Where chunks are, in the packs that are closed."""
        self._open = [writer for writer in self._open if writer not in self._closed]
        located = self._table.locate(digests)
        unsure = {pack.hash for pack, _ in located.values()} - self._in_use.keys()
        if unsure:
            present = self._table.use(unsure)
            self._in_use.update((each, each in present) for each in unsure)
        return {
            digest: _Place(pack, position)
            for digest, (pack, position) in located.items()
            if self._in_use[pack.hash]
        }

    def find_here(self, digest: bytes) -> _Place | None:
        """Where a chunk is in the packs that were not closed at the last `find`."""
        for writer in reversed(self._open):
            position = writer.position(digest)
            if position is not None:
                return _Place(writer, position)
        return None

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.flush()
            settle = partial(self._settle, writer)
            self._writing.do(lambda: self._settling.do(settle))

    def _settle(self, writer: PackWriter) -> None:
        made = writer.close()
        # Before its row is there: this upload is not another that uses the pack.
        self._in_use[made.hash] = True
        index = self._table.register(made)
        if index is made:  # else an equal one was there
            self._made.append(index.hash)
        self._closed[writer] = index

    def _described(self, taken: _Taken) -> tuple[Content, list[Run]]:
        content, open_runs, lacks_git = taken
        runs = [
            Run(
                self._closed[run.pack] if isinstance(run.pack, PackWriter) else run.pack,
                run.first,
                run.end,
            )
            for run in open_runs
        ]
        if lacks_git:
            digest = git_hash(content.size)
            for piece in run_bytes(self._table, runs):
                digest.update(piece)
            content = msgspec.structs.replace(content, git_oid=digest.hexdigest())
        return content, runs


class Incoming:
    """One content on its way in."""

    def __init__(self, intake: Intake, expect: Expected | None, *, with_git: bool) -> None:
        self._intake = intake
        self._expect = expect
        self._cutter = Cutter()
        self._sha256 = hashlib.sha256()
        # Git's hash begins with the size; without one it is made from the packs, at the commit.
        self._with_git = with_git
        self._git = git_hash(expect.size) if with_git and expect is not None else None
        self._size = 0
        self._leaves: list[Leaf] = []
        self._runs: list[_OpenRun] = []
        self._stretch: list[tuple[_Chunk, _Place]] = []
        self._stretch_accepted = True  # at the start any length counts

    def feed(self, piece: bytes | memoryview) -> None:
        """The next bytes, which must not change any more; raises ContentMismatch, OSError."""
        self._size += len(piece)
        if self._expect is not None and self._size > self._expect.size:
            raise ContentMismatch(f"more than the {self._expect.size} announced bytes came")
        view = memoryview(piece)
        for start in range(0, len(view), _PIECE_BYTES):
            self._take(view[start : start + _PIECE_BYTES])

    def finish(self) -> _Taken:
        """All bytes came; raises ContentMismatch, OSError."""
        self._place(self._cutter.finish())
        self._accept_stretch()  # at the end any length counts
        self._intake.hashing.wait()
        sha256 = self._sha256.hexdigest()
        if self._expect is not None and self._expect != (sha256, self._size):
            raise ContentMismatch(
                f"announced were {self._expect.size} bytes with SHA-256 {self._expect.sha256}; "
                f"{self._size} bytes with SHA-256 {sha256} came"
            )
        git_oid = self._git.hexdigest() if self._git is not None else ""
        content = Content(sha256, self._size, to_text(file_hash(self._leaves)), git_oid)
        return _Taken(content, self._runs, self._with_git and self._git is None)

    def _take(self, piece: memoryview) -> None:
        if len(piece) < _BESIDE_BYTES_MIN:
            self._intake.hashing.wait()
            self._hash(piece)
        else:
            self._intake.hashing.do(partial(self._hash, piece))
        self._place(self._cutter.feed(piece))

    def _hash(self, piece: memoryview) -> None:
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    def _place(self, chunks: Sequence[memoryview]) -> None:
        if not chunks:
            return
        batch = [_Chunk(chunk_hash(data), data) for data in chunks]
        self._leaves += [(chunk.digest, len(chunk.data)) for chunk in batch]
        known = self._find(list(dict.fromkeys(chunk.digest for chunk in batch)))
        for chunk in batch:
            place = self._next(chunk.digest) or known.get(chunk.digest)
            place = place or self._intake.find_here(chunk.digest)
            if place is None:
                self._end_stretch()
                self._append(self._intake.write(chunk))
            elif self._stretch_accepted:
                self._append(place)
            else:
                self._stretch.append((chunk, place))
                if len(self._stretch) >= STRETCH_CHUNKS_MIN:
                    self._accept_stretch()
        self._intake.flush()

    def _find(self, digests: list[bytes]) -> dict[bytes, _Place]:
        """Where chunks are. Of new bytes only every fourth is asked for: a stretch that is long
        enough to be referred to has one of those, or the first or last.
        """
        asked = list(dict.fromkeys([*digests[::STRETCH_CHUNKS_MIN], digests[-1]]))
        known = self._intake.find(asked)
        return self._intake.find(digests) if known else known

    def _next(self, digest: bytes) -> _Place | None:
        """The place right after the last one, if it holds this chunk: the longest run wins."""
        if self._stretch:
            last, position = self._stretch[-1][1]
            position += 1
        elif self._runs:
            last, position = self._runs[-1].pack, self._runs[-1].end
        else:
            return None
        if isinstance(last, PackIndex) and position < len(last):
            return _Place(last, position) if last.hashes[position] == digest else None
        return None

    def _append(self, place: _Place) -> None:
        if self._runs and self._runs[-1].continues(place):
            self._runs[-1].end += 1
        else:
            self._runs.append(_OpenRun(place))

    def _accept_stretch(self) -> None:
        for _, place in self._stretch:
            self._append(place)
        self._stretch.clear()
        self._stretch_accepted = True

    def _end_stretch(self) -> None:
        """A new chunk follows: a stretch too short to refer to is written again."""
        for chunk, _ in self._stretch:
            self._append(self._intake.write(chunk))
        self._stretch.clear()
        self._stretch_accepted = False


def add_content(connection: Connection, content: Content, runs: Sequence[Run]) -> None:
    """Write a content's rows, or note that it is used when it is there already.

    Raises IntegrityError when a pack is gone, StoreError.
    """
    now = now_us()
    row = {**msgspec.structs.asdict(content), "created_us": now, "used_us": now}
    there = update(contents).where(contents.c.sha256 == content.sha256).values(used_us=now)
    for _ in range(_TRIES_MAX):
        if insert_one(connection, contents, row):
            insert_new(connection, segments, _segment_rows(content.sha256, runs))
            return
        if connection.execute(there).rowcount:
            return
        # It was swept between the two statements: now it is free to insert.
    raise StoreError(f"content {content.sha256} is swept again and again; try later")


def git_hash(size: int) -> hashlib._Hash:
    """Git's hash of a blob of `size` bytes, before its first byte."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def run_bytes(table: PackTable, runs: Iterable[Run]) -> Iterator[bytes]:
    """The bytes of runs, in pieces, unchecked."""
    for run in runs:
        with table.path(run.pack).open("rb") as file:
            file.seek(run.pack.starts[run.first])
            left = run.pack.starts[run.end] - run.pack.starts[run.first]
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise ContentCorrupt(f"pack {run.pack.hash} is shorter than it was written")
                left -= len(piece)
                yield piece


def _segment_rows(sha256: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "sha256": sha256,
            "position": position,
            "pack": run.pack.hash,
            "first_chunk": run.first,
            "end_chunk": run.end,
            "pack_offset": run.pack.starts[run.first],
            "bytes": run.pack.starts[run.end] - run.pack.starts[run.first],
        }
        for position, run in enumerate(runs)
    ]
