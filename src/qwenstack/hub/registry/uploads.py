"""Unfinished uploads of large files: their parts on disk until the whole is in the store.

A part is written beside its place and renamed when it is whole, so one that is there is whole. A
second try of the same file in the same repo finds the parts of the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from qwenstack.core.identifiers import new_id
from qwenstack.hub.errors import TooMany
from qwenstack.storage.hub_tables import uploads
from qwenstack.storage.rows import read_row

_PIECE_BYTES = 4 * 1024 * 1024


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that comes in parts of `part_bytes`, the last one shorter."""

    id: str
    sha256: str
    size: int
    part_bytes: int
    repo_id: str
    account: str
    guest: bool
    created_us: int

    @property
    def parts(self) -> int:
        """How many parts there are; they are numbered from 1."""
        return -(-self.size // self.part_bytes)

    def part_size(self, number: int) -> int:
        """The bytes of a part."""
        return min(self.part_bytes, self.size - (number - 1) * self.part_bytes)


def begin_upload(
    connection: Connection,
    *,
    repo_id: str,
    sha256: str,
    size: int,
    part_bytes: int,
    account: str,
    guest: bool,
    at_us: int,
    uploads_max: int,
) -> Upload:
    """The upload of this file to this repo: the one under way, or a new one. Raises TooMany."""
    where = (uploads.c.repo_id == repo_id, uploads.c.sha256 == sha256, uploads.c.size == size)
    row = connection.execute(select(uploads).where(*where).limit(1)).one_or_none()
    if row is not None:
        return read_row(row, Upload)
    count = select(func.count()).select_from(uploads).where(uploads.c.account == account)
    if (connection.scalar(count) or 0) >= uploads_max:
        raise TooMany(f"{account} has {uploads_max} unfinished uploads; finish some first.")
    upload = Upload(
        id=new_id("up"),
        sha256=sha256,
        size=size,
        part_bytes=part_bytes,
        repo_id=repo_id,
        account=account,
        guest=guest,
        created_us=at_us,
    )
    connection.execute(insert(uploads).values(**msgspec.structs.asdict(upload)))
    return upload


def under_way(connection: Connection, repo_id: str, account: str) -> set[tuple[str, int]]:
    """The contents (SHA-256 and size) of the account's unfinished uploads to a repo."""
    query = select(uploads.c.sha256, uploads.c.size).where(
        uploads.c.repo_id == repo_id, uploads.c.account == account
    )
    return {(row.sha256, row.size) for row in connection.execute(query)}


def find_upload(connection: Connection, upload_id: str) -> Upload | None:
    """The unfinished upload with this id."""
    row = connection.execute(select(uploads).where(uploads.c.id == upload_id)).one_or_none()
    return None if row is None else read_row(row, Upload)


def end_upload(connection: Connection, upload_id: str) -> None:
    """Forget an upload that is in the store, or will not be."""
    connection.execute(delete(uploads).where(uploads.c.id == upload_id))


def old_uploads(connection: Connection, before_us: int) -> list[Upload]:
    """Those that began before an instant."""
    query = select(uploads).where(uploads.c.created_us < before_us)
    return [read_row(row, Upload) for row in connection.execute(query)]


def part_path(folder: Path, upload: Upload, number: int) -> Path:
    """Where a whole part lies."""
    return folder / upload.id / f"{number:05}"


def parts_there(folder: Path, upload: Upload) -> list[int]:
    """The numbers of the parts that came whole."""
    return [
        number for number in range(1, upload.parts + 1) if part_is_there(folder, upload, number)
    ]


def part_is_there(folder: Path, upload: Upload, number: int) -> bool:
    """Whether a part came whole."""
    path = part_path(folder, upload, number)
    return path.is_file() and path.stat().st_size == upload.part_size(number)


def read_pieces(path: Path) -> Iterator[bytes]:
    """A file, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def remove_parts(folder: Path, upload_id: str) -> None:
    """Remove what an upload left on disk; nothing is no error."""
    shutil.rmtree(folder / upload_id, ignore_errors=True)


def remove_strangers(folder: Path, known: Iterable[str]) -> None:
    """Remove what lies in the upload folder and belongs to no upload that is known."""
    kept = set(known)
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
