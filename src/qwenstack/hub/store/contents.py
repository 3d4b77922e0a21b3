"""Bytes by content: what is put in is found by its SHA-256, whole, verified and deduplicated.

A content is a list of segments, each a run of chunks that lie one after the other in a pack. A
pack is written once and never changed; its rows in the database come after its bytes, and a
content's rows after its packs', so that whatever the database names can be read. Times are UTC
microseconds. Every method blocks: a coroutine calls it through `asyncio.to_thread`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.store.checking import check
from qwenstack.hub.store.kinds import (
    Content,
    ContentCorrupt,
    ContentMismatch,
    ContentMissing,
    Expected,
    Fault,
    FaultKind,
    Forecast,
    Progress,
    Repacked,
    Segment,
    StoreError,
    Swept,
    untold,
)
from qwenstack.hub.store.objects import FolderObjects, Objects
from qwenstack.hub.store.packs import PackTable
from qwenstack.hub.store.reading import (
    checked_chunks,
    clamp,
    file_segments,
    open_layout,
    read_layout,
    verify_layout,
)
from qwenstack.hub.store.repacking import repack
from qwenstack.hub.store.rows import batches
from qwenstack.hub.store.sweeping import forecast, sweep
from qwenstack.hub.store.writing import Intake
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents

__all__ = [
    "Content",
    "ContentCorrupt",
    "ContentMismatch",
    "ContentMissing",
    "ContentStore",
    "Expected",
    "Fault",
    "FaultKind",
    "Segment",
    "StoreError",
    "Swept",
]


class ContentStore:
    """All contents below `folder`, with their rows in `database`. Safe to share among threads and
    among processes.
    """

    def __init__(self, database: Engine, folder: Path, objects: Objects | None = None) -> None:
        self.database = database
        self.objects: Objects = objects or FolderObjects(folder / "packs")
        self.packs = PackTable(database, self.objects)

    def put(self, pieces: Iterable[bytes], *, expect: Expected | None = None) -> Content:
        """Keep the bytes of `pieces` durably; raises ContentMismatch, StoreError, OSError when the
        disk is full. After an error nothing is visible.

        Without `expect` they are taken for a file that stands in Git by itself, and its Git hash is
        computed.
        """
        if expect is None:
            with self.intake() as intake:
                intake.take(pieces)
                return intake.commit()[0]
        with closing(self.receive(expect)) as arrival:
            for piece in pieces:
                arrival.feed(piece)
            return arrival.keep()

    def receive(self, expect: Expected) -> Arrival:
        """To keep a content whose bytes come piece by piece; the caller closes it."""
        known = self.find(expect.sha256) if self.hold([expect.sha256]) else None
        return Arrival(self.intake(), expect, known)

    def put_all(self, files: Iterable[bytes]) -> list[Content]:
        """Keep small files, such as a commit's, together in as few packs as hold them."""
        with self.intake() as intake:
            for file in files:
                intake.take([file], Expected(hashlib.sha256(file).hexdigest(), len(file)))
            return intake.commit()

    def intake(self) -> Intake:
        """To take several contents in that become visible together."""
        return Intake(self.database, self.objects, self.packs)

    def find(self, sha256: str) -> Content | None:
        """The content with this SHA-256."""
        return self.find_many([sha256]).get(sha256)

    def find_many(self, sha256s: Iterable[str]) -> dict[str, Content]:
        """Those of `sha256s` that the store holds."""
        found: dict[str, Content] = {}
        columns = (contents.c.sha256, contents.c.size, contents.c.xet_hash, contents.c.git_oid)
        with reading(self.database) as connection:
            for batch in batches(sorted(set(sha256s))):
                query = select(*columns).where(contents.c.sha256.in_(batch))
                found.update((row.sha256, Content(*row)) for row in connection.execute(query))
        return found

    def hold(self, sha256s: Iterable[str]) -> set[str]:
        """Keep contents from being swept for the grace period from now on; which of them exist.

        To be called before something new refers to a content that was there already.
        """
        held: set[str] = set()
        with self.database.begin() as connection:
            for batch in batches(sorted(set(sha256s))):
                there = contents.c.sha256.in_(batch)
                connection.execute(update(contents).where(there).values(used_us=now_us()))
                held.update(connection.scalars(select(contents.c.sha256).where(there)))
        return held

    def segments(self, sha256: str, start: int = 0, end: int | None = None) -> list[Segment]:
        """Where bytes `start` to `end` of a content lie, in order, for sendfile: unchecked.

        Raises ContentMissing, ContentCorrupt when a pack is gone.
        """
        return file_segments(self.packs, read_layout(self.database, sha256), start, end)

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `end`, each chunk checked; raises ContentMissing, ContentCorrupt."""
        layout = read_layout(self.database, sha256)
        start, end = clamp(layout.content.size, start, end)
        for place, _, data in checked_chunks(self.packs, layout, start, end):
            yield bytes(data[max(start - place, 0) : end - place])

    def open(self, sha256: str) -> BinaryIO:
        """A seekable, buffered reader; reading checks each chunk and raises ContentCorrupt.

        Raises ContentMissing.
        """
        return open_layout(self.packs, read_layout(self.database, sha256))

    def verify(self, sha256: str) -> None:
        """Read a content and check all its hashes; raises ContentMissing, ContentCorrupt."""
        verify_layout(self.packs, read_layout(self.database, sha256))

    def sweep(self, live: Iterable[str], *, older_than_us: int) -> Swept:
        """Remove what is not in `live` and has not been used since the instant `older_than_us`."""
        return sweep(self.database, self.objects, self.packs, live, older_than_us=older_than_us)

    def forecast(self, live: Iterable[str], *, older_than_us: int) -> Forecast:
        """What `sweep` and `repack` would do."""
        return forecast(self.database, self.objects, live, older_than_us=older_than_us)

    def repack(self, *, older_than_us: int, progress: Progress = untold) -> Repacked:
        """Copy together what is needed of packs that are mostly not, and not used since
        `older_than_us`; a sweep of the same grace removes them a day later.
        """
        return repack(
            self.database,
            self.objects,
            self.packs,
            older_than_us=older_than_us,
            progress=progress,
        )

    def check(self, progress: Progress = untold) -> Iterator[Fault]:
        """Read everything and tell what is wrong."""
        return check(self.database, self.objects, self.packs, progress)


class Arrival:
    """A content that comes piece by piece. Nothing shows before `keep`; without it nothing stays.

    One that the store holds already is only hashed: the bytes must still be the announced ones.
    """

    def __init__(self, intake: Intake, expect: Expected, known: Content | None) -> None:
        self._intake = intake
        self._expect = expect
        self._known = known
        self._file = intake.begin(expect, with_git=False)
        self._sha256, self._size = hashlib.sha256(), 0

    def feed(self, piece: bytes | memoryview) -> None:
        """The next bytes, which must not change any more; raises ContentMismatch, OSError."""
        if self._known is None:
            self._file.feed(piece)
            return
        self._size += len(piece)
        if self._size <= self._expect.size:
            self._sha256.update(piece)

    def keep(self) -> Content:
        """All bytes came: make them durable and visible.

        Raises ContentMismatch, StoreError, OSError.
        """
        if self._known is None:
            self._intake.end(self._file)
            return self._intake.commit()[0]
        if (self._sha256.hexdigest(), self._size) != self._expect:
            raise ContentMismatch(
                f"announced were {self._expect.size} bytes with SHA-256 {self._expect.sha256}; "
                "other bytes came"
            )
        return self._known

    def close(self) -> None:
        """Let go of what was not kept. Raises OSError."""
        self._intake.close()
