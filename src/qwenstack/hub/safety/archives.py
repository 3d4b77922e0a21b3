"""Walking zip and tar archives without unpacking them anywhere: bounded, and each path checked.

The standard library's readers believe a directory's claimed size and a header's claimed length, so
both are checked here first: a zip's directory is measured before `zipfile` reads it, and tar is
walked header by header by this module's own reader.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol

import msgspec

from qwenstack.hub.formats.reading import Readable, read_up_to
from qwenstack.hub.safety.budget import BOMB_BYTES_MIN, RATIO_MAX, Budget, LimitReached
from qwenstack.hub.safety.findings import Findings
from qwenstack.hub.safety.magic import is_tar_header

_DIRECTORY_BYTES_MAX: Final = 32 * 1024 * 1024
_BLOCK: Final = 512
_NAME_RECORD_BYTES_MAX: Final = 64 * 1024
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_PAX_RECORD: Final = re.compile(rb"(\d{1,8}) ([^=]{1,256})=")
_READABLE_ZIP: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_LINKS: Final = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
                 b"6": "a pipe"}  # fmt: skip


class Member(msgspec.Struct, frozen=True):
    """A file in an archive: its path and unpacked size as they are stated there."""

    path: str
    size: int


class Visit(Protocol):
    """Looks at one member; `open_member` gives its bytes front to back."""

    def __call__(self, member: Member, open_member: Callable[[], Readable], /) -> None:
        """Look at this member; it may be read until this returns."""


def check_path(path: str, findings: Findings) -> None:
    """Note a member's path that leads out of the folder, or that systems read differently."""
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or ".." in parts or _DRIVE.match(path) or "\0" in path:
        findings.add("archive-path", f"the member {path!r} leads out of its folder", path)


def walk_zip(file: BinaryIO, file_bytes: int, budget: Budget, found: Findings, see: Visit) -> None:
    """Check a zip archive's directory, then let `see` look at each member.

    Raises LimitReached.
    """
    try:
        _measure_directory(file, file_bytes)
        file.seek(0)
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        found.add("archive-damaged", f"the zip archive's directory is damaged: {error}")
        return
    with archive:
        members = archive.infolist()
        _check_sizes(members, file_bytes, found)
        for info in members:
            budget.spend_member()
            check_path(info.orig_filename, found)
            mode = info.external_attr >> 16
            if mode & 0o170000 in (0o120000, 0o060000, 0o020000, 0o010000, 0o140000):
                found.add("archive-link", "the member is a link or a device", info.filename)
            elif info.flag_bits & 0x41 or info.compress_type not in _READABLE_ZIP:
                found.add(
                    "archive-opaque", "the member is encrypted or oddly packed", info.filename
                )
            elif not info.is_dir():
                _see_zipped(archive, info, found, see)


def _see_zipped(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, found: Findings, see: Visit
) -> None:
    try:
        see(Member(info.filename, info.file_size), lambda: archive.open(info))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, ValueError) as error:
        # PyTorch's own reader opens what this one refuses, so that it can't count as harmless.
        found.add("archive-damaged", f"the member can't be unpacked: {error}", info.filename)


def _measure_directory(file: BinaryIO, file_bytes: int) -> None:
    """Raises LimitReached where the directory that `zipfile` would read at once is too large."""
    tail_bytes = min(file_bytes, 65_557)
    file.seek(file_bytes - tail_bytes)
    tail = read_up_to(file, tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise zipfile.BadZipFile("it has no directory")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    locator = tail[max(at - 20, 0) : at]
    if locator.startswith(b"PK\x06\x07"):
        file.seek(int.from_bytes(locator[8:16], "little") % 2**63)
        size = int.from_bytes(read_up_to(file, 56)[40:48], "little")
        # zipfile looks right before the locator, whatever that says.
        file.seek(max(file_bytes - tail_bytes + at - 76, 0))
        size = max(size, int.from_bytes(read_up_to(file, 56)[40:48], "little"))
    if size > _DIRECTORY_BYTES_MAX:
        if size > file_bytes:
            raise zipfile.BadZipFile(f"it claims a directory of {size} bytes")
        raise LimitReached(f"an archive's directory of {size} bytes")


def _check_sizes(members: list[zipfile.ZipInfo], file_bytes: int, found: Findings) -> None:
    packed = sum(info.compress_size for info in members)
    unpacked = sum(info.file_size for info in members)
    if packed > file_bytes or _overlap(members):
        found.add("archive-bomb", "members of the archive overlap: it holds less than it lists")
    if unpacked > max(BOMB_BYTES_MIN, RATIO_MAX * file_bytes):
        found.add("archive-bomb", f"{file_bytes} bytes unpack to {unpacked}")
    if len({info.filename for info in members}) < len(members):
        found.add("archive-damaged", "the archive lists a path twice: readers differ on what it is")


def _overlap(members: list[zipfile.ZipInfo]) -> bool:
    """Whether two members share bytes, as the bombs of D. Fifield do (USENIX WOOT 2019)."""
    end = 0
    for info in sorted(members, key=lambda member: member.header_offset):
        if info.header_offset < end:
            return True
        name_bytes = len(info.orig_filename.encode("utf-8", "replace"))
        # A name in an older encoding is no longer in bytes than it is in UTF-8.
        least = name_bytes if info.orig_filename.isascii() else 0
        end = info.header_offset + 30 + least + info.compress_size
    return False


def walk_tar(stream: Readable, budget: Budget, found: Findings, see: Visit) -> None:
    """Walk a tar archive front to back and let `see` look at each member.

    Raises LimitReached.
    """
    path: str | None = None
    size_of_next: int | None = None
    for header in _tar_headers(stream, found):
        kind, size = header[156:157], _tar_number(header[124:136])
        if size_of_next is not None and kind not in b"xgLK":
            size, size_of_next = size_of_next, None
        if size is None or size < 0:
            found.add("archive-damaged", "a member's size is no number")
            return
        budget.spend_member()
        padded = -(-size // _BLOCK) * _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _NAME_RECORD_BYTES_MAX:
                found.add("archive-damaged", f"a record of names claims {size} bytes")
                return
            record = read_up_to(stream, padded)[:size]
            path, size_of_next = _named(kind, record, path, size_of_next)
            continue
        name = path if path is not None else _tar_name(header)
        path = None
        check_path(name, found)
        if kind in _LINKS:
            found.add("archive-link", f"the member is {_LINKS[kind]}", name)
        member = _Limited(stream, size)
        if kind in (b"0", b"\0", b"7", b"S"):
            see(Member(name, size), lambda member=member: member)  # type: ignore[misc]
        if not _skip(stream, padded - member.taken):
            found.add("archive-damaged", "the archive ends within a member", name)
            return


def _tar_headers(stream: Readable, found: Findings) -> Iterator[bytes]:
    while True:
        block = read_up_to(stream, _BLOCK)
        if not any(block):
            return  # the zero blocks at the end, or no more bytes
        if not is_tar_header(block):
            found.add("archive-damaged", "a member's header doesn't hold its checksum")
            return
        yield block


def _named(
    kind: bytes, record: bytes, path: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """The path and the size that a record sets for the member after it."""
    if kind == b"L":
        return record.rstrip(b"\0").decode("utf-8", "replace"), size
    if kind == b"x":
        at = 0
        while match := _PAX_RECORD.match(record, at):
            end = at + int(match[1])
            value = record[match.end() : end - 1]
            if match[2] in (b"path", b"GNU.sparse.name"):
                path = value.decode("utf-8", "replace")
            elif match[2] == b"size" and value.isdigit() and len(value) < 20:
                size = int(value)
            if end <= at:
                break
            at = end
    return path, size


def _tar_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "replace")


def _tar_number(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256
        return int.from_bytes(field, "big") & ((1 << 95) - 1)
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if set(digits) <= set(b"01234567") else None


class _Limited:
    """A member's bytes within the archive's stream."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream = stream
        self._left = size
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(min(size, self._left)) or b""
        self._left -= len(piece)
        self.taken += len(piece)
        return piece


def _skip(stream: Readable, count: int) -> bool:
    """Go `count` bytes on, by a seek where the stream has one; false at its end."""
    seek = getattr(stream, "skip", None)
    if seek is not None:
        return bool(seek(count))
    while count > 0:
        piece = stream.read(min(count, 1024 * 1024)) or b""
        if not piece:
            return False
        count -= len(piece)
    return True
