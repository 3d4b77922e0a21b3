"""Manifests: what files a commit has. Stored once for equal trees, never changed."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, select

from qwenstack.storage.hub_tables import manifests


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file of a release. `git_oid` is the git blob's SHA-1; `lfs` says how it came and shows."""

    path: str
    size: int
    sha256: str
    git_oid: str
    lfs: bool
    xet_hash: str


Manifest = tuple[Entry, ...]
"""Sorted by path, no path twice."""

_decode = msgspec.msgpack.Decoder(Manifest).decode


def make_manifest(entries: Iterable[Entry]) -> Manifest:
    """The entries in a manifest's order."""
    return tuple(sorted(entries, key=lambda entry: entry.path))


def release_digest(manifest: Manifest) -> str:
    """The release's SHA-256, over `path NUL size NUL sha256 LF` of each file in order."""
    digest = hashlib.sha256()
    for entry in manifest:
        digest.update(f"{entry.path}\0{entry.size}\0{entry.sha256}\n".encode())
    return digest.hexdigest()


def read_manifest(connection: Connection, digest: str) -> Manifest:
    """The manifest with this digest; raises LookupError for none."""
    query = select(manifests.c.document).where(manifests.c.digest == digest)
    document = connection.scalar(query)
    if document is None:
        raise LookupError(f"no manifest {digest}")
    return _decode(document)


def find_entry(manifest: Manifest, path: str) -> Entry | None:
    """The file at `path`."""
    place = bisect.bisect_left(manifest, path, key=lambda entry: entry.path)
    if place < len(manifest) and manifest[place].path == path:
        return manifest[place]
    return None
