"""A compiled copy of the catalogue in the user's cache folder, so that a command starts fast.

The copy is a convenience and never evidence: it is used only if it is the user's own file, was made
from exactly these data files (names, sizes, modification times) by this version of the types, has
not been damaged, and decodes into them. Otherwise the files are read again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from qwenstack.catalog import model
from qwenstack.catalog.model import Records

_R = TypeVar("_R", bound=Records)

_BYTES_MAX = 64 * 1024 * 1024
_MAGIC = b"qwenstack-catalogue-1\n"


def cache_path(folder: Path) -> Path:
    """Where the compiled copy of the data in `folder` is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(root) / "qwenstack" / f"catalogue-{name}.msgpack"


def key_of(folder: Path) -> bytes:
    """What the copy was made from: 32 bytes over names, sizes and times of data and code."""
    digest = hashlib.sha256(_MAGIC)
    code = Path(model.__file__)
    with os.scandir(folder) as entries:
        paths = sorted(entry.path for entry in entries if entry.name.endswith(".toml"))
    # Reading and checking decide what a record is as much as the types do.
    for path in (*map(Path, paths), code, code.with_name("read.py"), code.with_name("check.py")):
        found = path.stat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.digest()


def read(path: Path, key: bytes, kind: type[_R]) -> _R | None:
    """The records in the copy at `path`, or None if it is not there or not to be used."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size > _BYTES_MAX or not _own(found):
                return None
            raw = file.read(_BYTES_MAX)
    except OSError:
        return None
    start = len(_MAGIC)
    payload = raw[start + 64 :]
    if raw[:start] != _MAGIC or raw[start : start + 32] != key:
        return None
    if raw[start + 32 : start + 64] != hashlib.sha256(payload).digest():
        return None
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, RecursionError):
        return None


def write(path: Path, key: bytes, records: Records) -> None:
    """Put a copy at `path`, all at once; where the folder can't be written, do nothing."""
    import tempfile  # Only who writes pays for it.

    payload = msgspec.msgpack.encode(records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + key + hashlib.sha256(payload).digest() + payload)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def _own(found: os.stat_result) -> bool:
    """Whether a file is the user's own, and nobody else may write it."""
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
