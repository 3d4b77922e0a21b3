"""Bytes by content: what is put in is found by its SHA-256, whole, verified and deduplicated.

A content is a list of segments, each a run of chunks that lie one after the other in a pack. A
pack is written once and never changed; its rows in the database come after its bytes, and a
content's rows after its packs', so that whatever the database names can be read. Times are UTC
microseconds. Every method blocks: a coroutine calls it through `asyncio.to_thread`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import msgspec
from sqlalchemy import Engine


class Content(msgspec.Struct, frozen=True):
    """Bytes that the store holds. `xet_hash` is 64 hexadecimal digits as the Xet protocol writes
    them; `git_oid` is the SHA-1 that git gives these bytes as a blob.
    """

    sha256: str
    size: int
    xet_hash: str
    git_oid: str


class Expected(NamedTuple):
    """What the sender says of the bytes to come."""

    sha256: str
    size: int


class Segment(NamedTuple):
    """`bytes` bytes of a content, at `offset` of the file `path`: ready for sendfile."""

    path: Path
    offset: int
    bytes: int


class Swept(msgspec.Struct, frozen=True):
    """What a sweep removed."""

    contents: int
    packs: int
    bytes: int


FaultKind = Literal[
    "missing-pack", "short-pack", "corrupt-pack", "orphan-pack", "dangling-segment", "wrong-content"
]


class Fault(msgspec.Struct, frozen=True):
    """Something that isn't as the database says. `contents` are the SHA-256s that it concerns."""

    kind: FaultKind
    detail: str
    pack: str | None = None
    contents: tuple[str, ...] = ()


class StoreError(Exception):
    """The store cannot do what was asked; see the three kinds."""


class ContentMismatch(StoreError):
    """The bytes that came are not those that were announced. Nothing became visible."""


class ContentMissing(StoreError):
    """No content has this SHA-256."""


class ContentCorrupt(StoreError):
    """What lies in a pack is not what was put there; the message names pack and content."""


class ContentStore:
    """All contents below `folder`, with their rows in `database`. Safe to share among threads and
    among processes.
    """

    def __init__(self, database: Engine, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def put(self, pieces: Iterable[bytes], *, expect: Expected | None = None) -> Content:
        """Keep the bytes of `pieces` durably; raises ContentMismatch, OSError when the disk is
        full. After an error nothing is visible.
        """
        raise NotImplementedError

    def put_all(self, files: Iterable[bytes]) -> list[Content]:
        """Keep small files, such as a commit's, together in as few packs as hold them."""
        raise NotImplementedError

    def find(self, sha256: str) -> Content | None:
        """The content with this SHA-256."""
        raise NotImplementedError

    def find_many(self, sha256s: Iterable[str]) -> dict[str, Content]:
        """Those of `sha256s` that the store holds."""
        raise NotImplementedError

    def hold(self, sha256s: Iterable[str]) -> set[str]:
        """Keep contents from being swept for the grace period from now on; which of them exist.

        To be called before something new refers to a content that was there already.
        """
        raise NotImplementedError

    def segments(self, sha256: str, start: int = 0, end: int | None = None) -> list[Segment]:
        """Where bytes `start` to `end` of a content lie, in order; raises ContentMissing."""
        raise NotImplementedError

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` to `end`, each chunk checked; raises ContentMissing, ContentCorrupt."""
        raise NotImplementedError

    def open(self, sha256: str) -> BinaryIO:
        """A seekable reader of a content, buffered, unchecked; raises ContentMissing."""
        raise NotImplementedError

    def verify(self, sha256: str) -> None:
        """Read a content and check all its hashes; raises ContentMissing, ContentCorrupt."""
        raise NotImplementedError

    def sweep(self, live: Iterable[str], *, older_than_us: int) -> Swept:
        """Remove what is not in `live` and has not been used since the instant `older_than_us`."""
        raise NotImplementedError

    def check(self) -> Iterator[Fault]:
        """Read everything and tell what is wrong."""
        raise NotImplementedError
