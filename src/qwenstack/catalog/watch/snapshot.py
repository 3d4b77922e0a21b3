"""A hub's repos as they stood at one instant, and the folder in which such snapshots are kept."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

import msgspec

FORMAT: Final = 1
_SNAPSHOT_BYTES_MAX: Final = 512 * 1024 * 1024
_UNSAFE: Final = re.compile(r"[^a-z0-9.-]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class SnapshotError(Exception):
    """A snapshot that cannot be read; the message says which and why."""


class FileState(msgspec.Struct, frozen=True):
    """One file: `oid` is the SHA-256 of a large file, the git blob's SHA-1 of another."""

    path: str
    size: int
    oid: str


class RepoState(msgspec.Struct, frozen=True, kw_only=True):
    """One repo. `licence` is what its card declares; `texts` are its licence files by path, each
    the SHA-256 of a text in the snapshot folder."""

    id: str
    sha: str
    created: str = ""
    modified: str = ""
    licence: str | None = None
    licence_name: str | None = None
    base_models: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    files: tuple[FileState, ...] = ()
    texts: dict[str, str] = {}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `endpoint` showed of `author`. `partial` names repos that could not be read:
    what is missing there is unknown, not gone."""

    format: int = FORMAT
    endpoint: str
    author: str
    taken_at: str
    repos: tuple[RepoState, ...]
    partial: tuple[str, ...] = ()


class SnapshotFolder:
    """Snapshots of one author on one endpoint, oldest first, and the licence texts that they cite.

    A snapshot is there whole or not at all; a text is kept once, by its SHA-256.
    """

    def __init__(self, root: Path, endpoint: str, author: str) -> None:
        host = _UNSAFE.sub("-", endpoint.partition("://")[2].lower()).strip("-")
        self.folder = root / host / _UNSAFE.sub("-", author.lower()).strip("-.")
        self._texts = root / "texts"

    def save(self, snapshot: Snapshot) -> Path:
        """Write a snapshot durably; its name is its instant."""
        name = _UNSAFE.sub("-", snapshot.taken_at.lower())
        path = self.folder / f"{name}.json"
        _write(path, msgspec.json.encode(snapshot, order="sorted"))
        return path

    def save_text(self, text: bytes) -> str:
        """Keep a licence text; its SHA-256."""
        digest = hashlib.sha256(text).hexdigest()
        path = self._texts / digest
        if not path.exists():
            _write(path, text)
        return digest

    def text(self, digest: str) -> str:
        """A kept text; empty where it is not there any more or is damaged."""
        path = self._texts / digest
        if not _SHA256.fullmatch(digest) or not path.is_file():
            return ""
        data = path.read_bytes()
        return data.decode("utf-8", "replace") if _is(data, digest) else ""

    def paths(self) -> list[Path]:
        """Every snapshot's file, oldest first."""
        return sorted(self.folder.glob("*.json"))

    def latest(self) -> Snapshot | None:
        """The newest snapshot."""
        paths = self.paths()
        return read_snapshot(paths[-1]) if paths else None


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot in a file; raises SnapshotError."""
    try:
        if path.stat().st_size > _SNAPSHOT_BYTES_MAX:
            raise SnapshotError(f"{path} is larger than any snapshot")
        snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"{path} is no snapshot: {error}") from error
    if snapshot.format != FORMAT:
        raise SnapshotError(f"{path} has format {snapshot.format}; this program knows {FORMAT}")
    return snapshot


def _is(data: bytes, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
