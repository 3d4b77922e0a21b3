"""What the store gives back, and what it raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Bytes that the store holds. `xet_hash` is 64 hexadecimal digits as the Xet protocol writes
    them; `git_oid` is the SHA-1 that git gives these bytes as a blob, and empty where they came as
    a large file, for which a pointer stands in git.
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


class Repacked(msgspec.Struct, frozen=True):
    """What was copied together: so many packs, of which so many bytes are needed, of all."""

    packs: int
    needed_bytes: int
    bytes: int


class Forecast(msgspec.Struct, frozen=True):
    """What a sweep would remove, and what a repack after it would copy together."""

    swept: Swept
    repacked: Repacked


FaultKind = Literal[
    "missing-pack",
    "short-pack",
    "corrupt-pack",
    "orphan-pack",
    "dangling-segment",
    "wrong-content",
    "missing-content",
]

Progress = Callable[[int, int], None]
"""Called with the bytes done and all bytes."""


def untold(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


class Fault(msgspec.Struct, frozen=True):
    """Something that isn't as the database says. `contents` are the SHA-256s that it concerns."""

    kind: FaultKind
    detail: str
    pack: str | None = None
    contents: tuple[str, ...] = ()

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost: an orphan is what an upload left that is under way or died."""
        return self.kind == "orphan-pack"


class StoreError(Exception):
    """The store cannot do what was asked; see the kinds of it below."""


class ContentMismatch(StoreError):
    """The bytes that came are not those that were announced. Nothing became visible."""


class ContentMissing(StoreError):
    """No content has this SHA-256."""


class ContentCorrupt(StoreError):
    """What lies in a pack is not what was put there; the message names pack and content."""


class BundleError(StoreError):
    """A bundle that is damaged, forged, not trusted or does not fit; the message says why."""
