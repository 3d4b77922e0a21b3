"""Manifests: what files a commit has. Stored once for equal trees, never changed."""

from __future__ import annotations

import bisect
import functools
import hashlib
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, func, select

from qwenstack.hub.store.rows import insert_new
from qwenstack.storage.hub_tables import manifests


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file of a release.

    `lfs` says that it came as a large file: `git_oid` is then its pointer's, as in Git.
    """

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
    document: bytes | None = connection.scalar(query)
    if document is None:
        raise LookupError(f"no manifest {digest}")
    return _decoded(bytes(document))


def manifest_bytes(connection: Connection, digest: str) -> int:
    """What the list of files itself takes in the database."""
    query = select(func.length(manifests.c.document)).where(manifests.c.digest == digest)
    return int(connection.scalar(query) or 0)


def write_manifest(connection: Connection, manifest: Manifest) -> str:
    """Store the manifest if it is new; its digest.

    Two trees of the same files that differ only in what came as a large file share a digest; the
    one that was there first says how it shows.
    """
    digest = release_digest(manifest)
    there = select(manifests.c.digest).where(manifests.c.digest == digest)
    if connection.scalar(there) is None:
        document = msgspec.msgpack.encode(manifest)
        insert_new(connection, manifests, [{"digest": digest, "document": document}])
    return digest


def find_entry(manifest: Manifest, path: str) -> Entry | None:
    """The file at `path`."""
    place = bisect.bisect_left(manifest, path, key=lambda entry: entry.path)
    if place < len(manifest) and manifest[place].path == path:
        return manifest[place]
    return None


def entries_below(manifest: Manifest, folder: str) -> Manifest:
    """The files under `folder`, at any depth; all of them for the empty path."""
    if not folder:
        return manifest
    start = bisect.bisect_left(manifest, folder + "/", key=lambda entry: entry.path)
    # The character after the slash ends the run of paths that start with `folder/`.
    end = bisect.bisect_left(manifest, folder + "0", key=lambda entry: entry.path)
    return manifest[start:end]


@functools.lru_cache(maxsize=8)
def _decoded(document: bytes) -> Manifest:
    return _decode(document)
