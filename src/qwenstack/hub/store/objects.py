"""Where packs lie: whole objects by name, written once, in a folder.

An object is spooled to a file beside the others, flushed to the disk, and then given its name; the
folder is flushed too, so that a name that was given survives a power cut.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from qwenstack.core.durable import sync_folder

_NAME = re.compile(r"[a-z0-9_]{1,48}")
_SPOOL_PREFIX = ".new-"


def write_all(descriptor: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Write pieces one after the other, at most 1 024 of them. Raises OSError."""
    views = [memoryview(each) for each in pieces if len(each)]
    while views:
        written = os.writev(descriptor, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


class Listed(NamedTuple):
    """An object that is there."""

    name: str
    bytes: int
    modified_us: int


class Objects(Protocol):
    """What the store needs of a place for its packs."""

    def spool(self) -> Path:
        """A new empty file to write an object into."""
        ...

    def keep(self, name: str, spooled: Path) -> None:
        """Make a spooled file the object `name`, durably; takes the file. Raises OSError."""
        ...

    def local(self, name: str) -> Path:
        """A file that holds the object; raises FileNotFoundError, OSError."""
        ...

    def list(self) -> Iterator[Listed]:
        """All objects."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; none is no error."""
        ...

    def tidy(self, older_than_us: int) -> None:
        """Remove spooled files that nobody has written to since `older_than_us`."""
        ...


class FolderObjects:
    """Objects as files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def spool(self) -> Path:
        """A new empty file in the same folder, hence on the same disk."""
        descriptor, path = tempfile.mkstemp(dir=self._folder, prefix=_SPOOL_PREFIX)
        os.close(descriptor)
        return Path(path)

    def keep(self, name: str, spooled: Path) -> None:
        """Flush the file, rename it, flush the folder."""
        target = self._path(name)
        with spooled.open("rb") as file:
            os.fsync(file.fileno())
        spooled.chmod(0o444)
        spooled.replace(target)
        sync_folder(self._folder)

    def local(self, name: str) -> Path:
        """The object's own file; raises FileNotFoundError."""
        path = self._path(name)
        if not path.is_file():
            raise FileNotFoundError(f"pack file {path} is missing")
        return path

    def list(self) -> Iterator[Listed]:
        """All objects, in no order."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield Listed(entry.name, status.st_size, status.st_mtime_ns // 1000)

    def delete(self, name: str) -> None:
        """Remove the file."""
        self._path(name).unlink(missing_ok=True)

    def tidy(self, older_than_us: int) -> None:
        """Remove what a killed upload left in the folder."""
        for path in self._folder.glob(_SPOOL_PREFIX + "*"):
            try:
                if path.stat().st_mtime_ns // 1000 < older_than_us:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!a} is no object name")
        return self._folder / name


def open_objects(url: str | None, folder: Path) -> Objects:
    """The place for a hub's packs: `packs` in its folder, or the bucket of an s3:// URL.

    Raises StoreError for another URL.
    """
    if url is None:
        return FolderObjects(folder / "packs")
    # Imported here: the client is large, and most hubs have no bucket.
    from qwenstack.hub.store.s3 import open_bucket

    return open_bucket(url, folder / "packs-cache")
