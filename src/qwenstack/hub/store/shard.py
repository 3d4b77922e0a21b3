"""Shards: which chunks of which xorbs make a file, as clients send it, and as we answer them.

A shard is a header of 48 bytes, then records of 48 bytes: for each file a header, its segments, a
proof for each segment and the file's SHA-256; a bookend; for each xorb a header and its chunks; a
bookend. An answer to a deduplication query has lookup tables and a footer besides.
Source: huggingface.co/docs/xet/shard.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from qwenstack.hub.store.merkle import from_text, keyed, to_text
from qwenstack.hub.store.packs import PackIndex

SHARD_BYTES_MAX = 64 * 1024 * 1024
_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_HEADER = struct.Struct("<32sQQ")
_HEADER_VERSION = 2
_FOOTER = struct.Struct("<9Q32sQQ48xQQQQ")
_FOOTER_VERSION = 1
_RECORD_BYTES = 48
_FILE_HEAD = struct.Struct("<32sIIQ")
_SEGMENT = struct.Struct("<32sIIII")
_DIGEST = struct.Struct("<32s16x")
_XORB_HEAD = struct.Struct("<32sIIII")
_CHUNK = struct.Struct("<32sIIII")
_BOOKEND = b"\xff" * 32
_WITH_PROOFS = 1 << 31
_WITH_SHA256 = 1 << 30


class ShardError(ValueError):
    """Bytes that are no shard; the message says where."""


class ShardSegment(NamedTuple):
    """A run of a xorb's chunks, `size` bytes; `proof` is the hash over the chunks' hashes."""

    xorb: str
    first: int
    end: int
    size: int
    proof: bytes


class ShardFile(msgspec.Struct, frozen=True):
    """A file as its sender describes it. `sha256` is what the sender says, if anything."""

    hash: str
    segments: tuple[ShardSegment, ...]
    sha256: str | None


class _Reader:
    """Records one after the other; raises ShardError where they end too early."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._place = 0

    def take(self, form: struct.Struct, what: str) -> tuple[bytes | int, ...]:
        if len(self._body) - self._place < form.size:
            raise ShardError(f"the shard ends at byte {len(self._body)}, in {what}")
        values: tuple[bytes | int, ...] = form.unpack_from(self._body, self._place)
        self._place += form.size
        return values

    def need(self, records: int, what: str) -> None:
        """Refuse a count before anything is made of it."""
        if records * _RECORD_BYTES > len(self._body) - self._place:
            raise ShardError(f"the shard claims {records} records for {what}; they are not there")


def read_shard(body: bytes) -> tuple[ShardFile, ...]:
    """The files of an uploaded shard. Raises ShardError; what it says of xorbs is not needed."""
    if len(body) > SHARD_BYTES_MAX:
        raise ShardError(f"the shard has {len(body)} bytes, {SHARD_BYTES_MAX} are allowed")
    reader = _Reader(body)
    tag, version, _ = reader.take(_HEADER, "its header")
    if tag != _TAG or version != _HEADER_VERSION:
        raise ShardError("this is no shard of version 2")
    files: list[ShardFile] = []
    while True:
        digest, flags, count, _ = reader.take(_FILE_HEAD, "a file's header")
        assert isinstance(digest, bytes) and isinstance(flags, int) and isinstance(count, int)
        if digest == _BOOKEND:
            return tuple(files)
        files.append(_read_file(reader, to_text(digest), flags, count))


def _read_file(reader: _Reader, name: str, flags: int, count: int) -> ShardFile:
    if not flags & _WITH_PROOFS:
        raise ShardError(f"file {name} comes without the proofs that its sender has its chunks")
    reader.need(2 * count, f"file {name}")
    runs = [reader.take(_SEGMENT, f"file {name}") for _ in range(count)]
    proofs = [reader.take(_DIGEST, f"file {name}")[0] for _ in range(count)]
    sha256: str | None = None
    if flags & _WITH_SHA256:
        (digest,) = reader.take(_DIGEST, f"file {name}")
        assert isinstance(digest, bytes)
        sha256 = to_text(digest)
    segments: list[ShardSegment] = []
    for (xorb, _, size, first, end), proof in zip(runs, proofs, strict=True):
        assert isinstance(xorb, bytes) and isinstance(size, int) and isinstance(proof, bytes)
        assert isinstance(first, int) and isinstance(end, int)
        if first >= end:
            raise ShardError(f"file {name} has a segment of no chunks")
        segments.append(ShardSegment(to_text(xorb), first, end, size, proof))
    return ShardFile(name, tuple(segments), sha256)


def write_shard(files: Iterable[ShardFile]) -> bytes:
    """An upload's shard of these files, as clients make it; the xorbs' part is empty."""
    parts = [_HEADER.pack(_TAG, _HEADER_VERSION, 0)]
    for file in files:
        flags = _WITH_PROOFS | (_WITH_SHA256 if file.sha256 is not None else 0)
        parts.append(_FILE_HEAD.pack(from_text(file.hash), flags, len(file.segments), 0))
        parts += [
            _SEGMENT.pack(from_text(each.xorb), 0, each.size, each.first, each.end)
            for each in file.segments
        ]
        parts += [_DIGEST.pack(each.proof) for each in file.segments]
        if file.sha256 is not None:
            parts.append(_DIGEST.pack(from_text(file.sha256)))
    parts += [_FILE_HEAD.pack(_BOOKEND, 0, 0, 0), _XORB_HEAD.pack(_BOOKEND, 0, 0, 0, 0)]
    return b"".join(parts)


def dedupe_shard(
    packs: Sequence[PackIndex], *, key: bytes, created_s: int, expires_s: int
) -> bytes:
    """The answer to "is this chunk there?": the packs around it, their chunks' hashes keyed.

    Only who has a chunk recognises its keyed hash, so the answer gives away no content.
    """
    ordered = sorted(packs, key=lambda pack: from_text(pack.hash))
    body: list[bytes] = []
    xorb_lookup: list[bytes] = []
    chunk_lookup: list[tuple[int, int, int]] = []
    record = 0
    for pack in ordered:
        digest = from_text(pack.hash)
        xorb_lookup.append(struct.pack("<QI", _short(digest), record))
        body.append(_XORB_HEAD.pack(digest, 0, len(pack), pack.bytes, pack.bytes))
        for position, chunk in enumerate(pack.hashes):
            veiled = keyed(chunk, key)
            body.append(_CHUNK.pack(veiled, pack.starts[position], pack.size(position), 0, 0))
            chunk_lookup.append((_short(veiled), record, position))
        record += 1 + len(pack)
    body.append(_XORB_HEAD.pack(_BOOKEND, 0, 0, 0, 0))
    files = _FILE_HEAD.pack(_BOOKEND, 0, 0, 0)
    chunk_lookup.sort()
    files_at = _HEADER.size
    xorbs_at = files_at + len(files)
    file_lookup_at = xorbs_at + _RECORD_BYTES * len(body)
    chunk_lookup_at = file_lookup_at + 12 * len(xorb_lookup)
    footer_at = chunk_lookup_at + 16 * len(chunk_lookup)
    stored = sum(pack.bytes for pack in ordered)
    footer = _FOOTER.pack(
        *(_FOOTER_VERSION, files_at, xorbs_at, file_lookup_at, 0, file_lookup_at),
        *(len(xorb_lookup), chunk_lookup_at, len(chunk_lookup), key, created_s, expires_s),
        *(stored, 0, stored, footer_at),
    )
    header = _HEADER.pack(_TAG, _HEADER_VERSION, _FOOTER.size)
    tables = [*xorb_lookup, *(struct.pack("<QII", *each) for each in chunk_lookup)]
    return b"".join([header, files, *body, *tables, footer])


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
