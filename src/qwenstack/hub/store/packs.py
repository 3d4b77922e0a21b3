"""Packs: chunks one after the other, as the disk has them and as the database describes them.

A pack is a Xet xorb whose chunks are stored raw, without the protocol's headers, so that any run of
them is a run of bytes of a file. Its bytes are durable before its row is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock

from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, select, update
from sqlalchemy.exc import IntegrityError

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.hub.store.kinds import StoreError
from qwenstack.hub.store.merkle import HASH_BYTES, Leaf, to_text, xorb_hash
from qwenstack.hub.store.objects import Objects, write_all
from qwenstack.hub.store.rows import batches, insert_new, insert_one
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import chunks, packs, segments

PACK_BYTES_MAX = 64 * 1024 * 1024
PACK_CHUNKS_MAX = 8 * 1024
_LEAF = struct.Struct("<32sI")
_INDEXES_KEPT = 256
# A pack's last use is written again after this time, not for each use; far below any sweep's grace.
_USE_INTERVAL_US = 60 * 1_000_000
_TRIES_MAX = 5
_WRITTEN_AT_ONCE = 256


class PackIndex:
    """What a pack holds: its chunks' hashes, and where each starts."""

    __slots__ = ("bytes", "hash", "hashes", "object", "starts")

    def __init__(self, hash_text: str, object_name: str, leaves: Sequence[Leaf]) -> None:
        self.hash = hash_text
        self.object = object_name
        self.hashes = [digest for digest, _ in leaves]
        starts = [0]
        for _, size in leaves:
            starts.append(starts[-1] + size)
        self.starts = starts  # one more than chunks: the last is the pack's end
        self.bytes = starts[-1]

    def __len__(self) -> int:
        return len(self.hashes)

    def size(self, position: int) -> int:
        """The length of a chunk in bytes."""
        return self.starts[position + 1] - self.starts[position]

    def leaves(self, first: int = 0, end: int | None = None) -> list[Leaf]:
        """Hash and length of the chunks `first` to `end`."""
        end = len(self.hashes) if end is None else end
        return [(self.hashes[place], self.size(place)) for place in range(first, end)]


def encode_leaves(leaves: Iterable[Leaf]) -> bytes:
    """A pack's chunks as its row holds them."""
    return b"".join(_LEAF.pack(digest, size) for digest, size in leaves)


def decode_leaves(document: bytes) -> list[Leaf]:
    """The opposite; raises ValueError for a document of another form."""
    if len(document) % _LEAF.size:
        raise ValueError(f"a pack's chunk list has {len(document)} bytes, no multiple of 36")
    return list(_LEAF.iter_unpack(document))


def _now(step: Callable[[], None]) -> None:
    step()


class PackWriter:
    """A pack in the making: chunks are appended to a spooled file. `write` gets the steps of the
    writing, to be done in order; without it they are done at once.
    """

    def __init__(
        self, objects: Objects, write: Callable[[Callable[[], None]], None] = _now
    ) -> None:
        self._objects = objects
        self._write = write
        self._path = objects.spool()
        self._file = self._path.open("wb", buffering=0)
        self._unwritten: list[bytes | memoryview] = []
        self.leaves: list[Leaf] = []
        self.bytes = 0
        self._positions: dict[bytes, int] = {}

    def has_room(self, size: int) -> bool:
        """Whether a chunk of `size` bytes still fits."""
        return self.bytes + size <= PACK_BYTES_MAX and len(self.leaves) < PACK_CHUNKS_MAX

    def append(self, digest: bytes, data: bytes | memoryview) -> int:
        """Add a chunk; its position. Its bytes must not change before they are
        written."""
        self._unwritten.append(data)
        if len(self._unwritten) == _WRITTEN_AT_ONCE:
            self.flush()
        self._positions.setdefault(digest, len(self.leaves))
        self.leaves.append((digest, len(data)))
        self.bytes += len(data)
        return len(self.leaves) - 1

    def position(self, digest: bytes) -> int | None:
        """Where this pack has a chunk already."""
        return self._positions.get(digest)

    def flush(self) -> None:
        """Write what was added since the last time. Raises OSError."""
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            self._write(partial(write_all, self._file.fileno(), unwritten))

    def close(self) -> PackIndex:
        """Make the bytes durable under a name; the row is `PackTable.register`'s to write."""
        self.flush()
        self._file.close()
        index = PackIndex(to_text(xorb_hash(self.leaves)), new_id("pack"), self.leaves)
        self._objects.keep(index.object, self._path)
        return index

    def discard(self) -> None:
        """Leave nothing; to be called whenever `close` was not reached."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class PackTable:
    """The rows of packs and chunks, with the packs read last kept in memory."""

    def __init__(self, database: Engine, objects: Objects) -> None:
        self._database = database
        self._objects = objects
        self._known: dict[str, PackIndex] = {}
        self._lock = Lock()

    def register(self, index: PackIndex) -> PackIndex:
        """Write the pack's rows; if an equal pack is there already, keep that one instead."""
        now = now_us()
        row: dict[str, object] = {
            "hash": index.hash,
            "bytes": index.bytes,
            "chunks": encode_leaves(index.leaves()),
            "object": index.object,
            "created_us": now,
            # So far back that whoever uses it next, however soon, is noted: see `withdraw`.
            "used_us": now - _USE_INTERVAL_US - 1,
        }
        there = update(packs).where(packs.c.hash == index.hash).values(used_us=now)
        for _ in range(_TRIES_MAX):
            with self._database.begin() as connection:
                if insert_one(connection, packs, row):
                    add_chunks(connection, index)
                    break
                if not connection.execute(there).rowcount:
                    continue  # swept between the two statements: now it is free to insert
            known = self.read([index.hash], fresh=True).get(index.hash)
            if known is not None:
                self._objects.delete(index.object)
                return known
        else:
            raise StoreError(f"pack {index.hash} is swept again and again; try later")
        self._remember(index)
        return index

    def read(self, hashes: Iterable[str], *, fresh: bool = False) -> dict[str, PackIndex]:
        """The packs of `hashes` that there are. `fresh` asks the database for each."""
        wanted = set(hashes)
        with self._lock:
            found = {} if fresh else {h: self._known[h] for h in wanted & self._known.keys()}
        missing = sorted(wanted - found.keys())
        if missing:
            with reading(self._database) as connection:
                for rows in batches(missing):
                    query = select(packs.c.hash, packs.c.object, packs.c.chunks)
                    for row in connection.execute(query.where(packs.c.hash.in_(rows))):
                        index = PackIndex(row.hash, row.object, decode_leaves(bytes(row.chunks)))
                        found[index.hash] = index
                        self._remember(index)
        return found

    def locate(self, digests: Sequence[bytes]) -> dict[bytes, tuple[PackIndex, int]]:
        """Where chunks are stored, of those that are."""
        places: list[tuple[bytes, str, int]] = []
        with reading(self._database) as connection:
            for batch in batches(digests):
                query = select(chunks.c.hash, chunks.c.pack, chunks.c.position)
                places += [
                    (bytes(row.hash), row.pack, row.position)
                    for row in connection.execute(query.where(chunks.c.hash.in_(batch)))
                ]
        indexes = self.read({pack for _, pack, _ in places})
        return {
            digest: (indexes[pack], position)
            for digest, pack, position in places
            if pack in indexes
        }

    def use(self, hashes: Iterable[str]) -> set[str]:
        """Note that packs are used now, so that no sweep takes them; which of them still exist."""
        wanted = sorted(set(hashes))
        with self._database.begin() as connection:
            mark_used(connection, wanted)
            present: set[str] = set()
            for batch in batches(wanted):
                query = select(packs.c.hash).where(packs.c.hash.in_(batch))
                present.update(connection.scalars(query))
        self.forget(set(wanted) - present)
        return present

    def withdraw(self, hashes: Sequence[str]) -> None:
        """Remove packs of one's own that came to nothing, but for those that another uses since."""
        self.remove(hashes, packs.c.used_us < packs.c.created_us)

    def remove(self, hashes: Sequence[str], *conditions: ColumnElement[bool]) -> list[PackIndex]:
        """Remove the packs that meet the conditions and that no content refers to; which those
        were. Rows go before bytes: what a kill leaves is an object that no row names.
        """
        unused = (*conditions, ~exists().where(segments.c.pack == packs.c.hash))
        removed: list[PackIndex] = []
        for batch in batches(hashes):
            doomed = delete(packs).where(packs.c.hash.in_(batch), *unused)
            try:
                with self._database.begin() as connection:
                    gone = connection.execute(
                        doomed.returning(packs.c.hash, packs.c.object, packs.c.chunks)
                    ).all()
                    names = [row.hash for row in gone]
                    connection.execute(delete(chunks).where(chunks.c.pack.in_(names)))
            except IntegrityError:
                continue  # a content came to refer to one of them: the next sweep looks again
            self.forget(names)
            for row in gone:
                self._objects.delete(row.object)
                removed.append(PackIndex(row.hash, row.object, decode_leaves(bytes(row.chunks))))
        return removed

    def path(self, index: PackIndex) -> Path:
        """The file with the pack's bytes; raises FileNotFoundError."""
        try:
            return self._objects.local(index.object)
        except FileNotFoundError:
            # Another process may have swept the pack, and stored an equal one since.
            again = self.read([index.hash], fresh=True).get(index.hash)
            if again is None or again.object == index.object:
                raise
            return self._objects.local(again.object)

    def forget(self, hashes: Iterable[str]) -> None:
        """Drop packs from memory."""
        with self._lock:
            for each in hashes:
                self._known.pop(each, None)

    def _remember(self, index: PackIndex) -> None:
        with self._lock:
            self._known.pop(index.hash, None)
            self._known[index.hash] = index
            while len(self._known) > _INDEXES_KEPT:
                del self._known[next(iter(self._known))]


def add_chunks(connection: Connection, index: PackIndex) -> None:
    """Let those of a pack's chunks be found in it that are found in none."""
    places = dict[bytes, int]()
    for position, digest in enumerate(index.hashes):
        places.setdefault(digest, position)
    # In one order, so that two uploads of the same chunks never wait for each other in a ring.
    rows = [
        {"hash": digest, "pack": index.hash, "position": places[digest]}
        for digest in sorted(places)
    ]
    insert_new(connection, chunks, rows)


def mark_used(connection: Connection, hashes: Sequence[str]) -> None:
    """Set the packs' last use to now, where it is not recent anyway."""
    now = now_us()
    for batch in batches(hashes):
        connection.execute(
            update(packs)
            .where(packs.c.hash.in_(batch), packs.c.used_us < now - _USE_INTERVAL_US)
            .values(used_us=now)
        )


assert _LEAF.size == HASH_BYTES + 4
