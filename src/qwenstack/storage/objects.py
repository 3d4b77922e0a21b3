"""Objects in a folder, by id: written whole or not at all, read in pieces."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwenstack.core.durable import sync_folder

_NAME = re.compile(r"[a-z0-9_]{1,64}")
_PIECE_BYTES = 1024 * 1024


class ObjectFolder:
    """Immutable objects below one folder. Names are ids of our own making, never a caller's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, pieces: Iterable[bytes]) -> tuple[int, str]:
        """Write an object durably: it is visible once whole. Its size in bytes and its SHA-256."""
        digest, size = hashlib.sha256(), 0
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._path(name))
            sync_folder(self._folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return size, digest.hexdigest()

    def pieces(self, name: str) -> Iterator[bytes]:
        """The object, piece by piece; raises FileNotFoundError."""
        with self._path(name).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def lines(self, name: str) -> Iterator[bytes]:
        """The object's lines without their ends."""
        with self._path(name).open("rb") as file:
            for line in file:
                yield line.rstrip(b"\r\n")

    def delete(self, name: str) -> None:
        """Remove an object; none is no error."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no object name")
        return self._folder / name
