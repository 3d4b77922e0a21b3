"""Xorbs on the wire: chunks, each behind a header of 8 bytes, compressed or not.

A header is the version (0), the length on the wire in 3 bytes, the compression in one and the
chunk's length in 3, all little-endian. Clients may let a footer follow, which begins with
`XETBLOB`; it tells nothing that the chunks don't. Source: huggingface.co/docs/xet/xorb.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import lz4.frame  # type: ignore[import-untyped]
import numpy as np

from qwenstack.hub.store.gearhash import CHUNK_BYTES_MAX
from qwenstack.hub.store.packs import PACK_BYTES_MAX, PACK_CHUNKS_MAX, PackIndex

HEADER_BYTES = 8
FOOTER_BYTES_MAX = 1024 * 1024
XORB_BYTES_MAX = PACK_BYTES_MAX + PACK_CHUNKS_MAX * HEADER_BYTES + FOOTER_BYTES_MAX
_FOOTER_START = b"XETBLOB"
_NONE, _LZ4, _GROUPED_LZ4 = 0, 1, 2
_HEADER = struct.Struct("<II")


class XorbError(ValueError):
    """Bytes that are no xorb; the message names the chunk and what is wrong with it."""


def chunk_header(size: int) -> bytes:
    """The header of a chunk that follows uncompressed."""
    return _HEADER.pack(size << 8, _NONE | size << 8)


def wire_offset(pack: PackIndex, position: int) -> int:
    """Where a chunk's header stands when the pack is sent with no compression."""
    return pack.starts[position] + HEADER_BYTES * position


def read_xorb(body: bytes | memoryview) -> Iterator[bytes]:
    """The chunks of a xorb, uncompressed. Raises XorbError; never makes more than is announced."""
    view = memoryview(body)
    if len(view) > XORB_BYTES_MAX:
        raise XorbError(f"the xorb has {len(view)} bytes, {XORB_BYTES_MAX} are allowed")
    place = total = number = 0
    while place < len(view):
        if view[place : place + len(_FOOTER_START)] == _FOOTER_START:
            if len(view) - place > FOOTER_BYTES_MAX:
                raise XorbError(f"the xorb's footer has more than {FOOTER_BYTES_MAX} bytes")
            break
        chunk, place = _read_chunk(view, place, number)
        number += 1
        total += len(chunk)
        if number > PACK_CHUNKS_MAX or total > PACK_BYTES_MAX:
            raise XorbError(
                f"the xorb has more than {PACK_CHUNKS_MAX} chunks or {PACK_BYTES_MAX} bytes"
            )
        yield chunk
    if not number:
        raise XorbError("the xorb has no chunks")


def write_xorb(chunks: Iterable[bytes], *, compress: bool = False) -> bytes:
    """A xorb of these chunks, without a footer."""
    parts: list[bytes] = []
    for chunk in chunks:
        packed = lz4.frame.compress(chunk) if compress else chunk
        if len(packed) < len(chunk):
            parts.append(_HEADER.pack(len(packed) << 8, _LZ4 | len(chunk) << 8))
            parts.append(packed)
        else:
            parts.append(chunk_header(len(chunk)))
            parts.append(chunk)
    return b"".join(parts)


def _read_chunk(view: memoryview, place: int, number: int) -> tuple[bytes, int]:
    if len(view) - place < HEADER_BYTES:
        raise XorbError(f"the xorb ends in the header of chunk {number}")
    low, high = _HEADER.unpack_from(view, place)
    version, packed_size = low & 0xFF, low >> 8
    scheme, size = high & 0xFF, high >> 8
    start = place + HEADER_BYTES
    if version != 0:
        raise XorbError(f"chunk {number} has header version {version}, 0 is known")
    if not 0 < size <= CHUNK_BYTES_MAX:
        raise XorbError(f"chunk {number} claims {size} bytes, 1 to {CHUNK_BYTES_MAX} are allowed")
    if not 0 < packed_size <= 2 * CHUNK_BYTES_MAX or len(view) - start < packed_size:
        raise XorbError(
            f"chunk {number} claims {packed_size} bytes on the wire; they are not there"
        )
    packed = view[start : start + packed_size]
    if scheme == _NONE:
        chunk = bytes(packed)
    elif scheme in (_LZ4, _GROUPED_LZ4):
        chunk = _decompress(packed, size, number)
    else:
        raise XorbError(f"chunk {number} has compression {scheme}; 0, 1 and 2 are known")
    if len(chunk) != size:
        raise XorbError(f"chunk {number} claims {size} bytes and has {len(chunk)}")
    if scheme == _GROUPED_LZ4:
        chunk = ungroup(chunk)
    return chunk, start + packed_size


def _decompress(packed: memoryview, size: int, number: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        chunk: bytes = decompressor.decompress(packed, max_length=size + 1)
    except RuntimeError as error:
        raise XorbError(f"chunk {number} is no LZ4 frame: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise XorbError(f"chunk {number} is not one LZ4 frame of the {size} bytes that it claims")
    return chunk


def ungroup(grouped: bytes) -> bytes:
    """Undo the grouping of every fourth byte, which helps to compress 32-bit numbers."""
    octets = np.frombuffer(grouped, np.uint8)
    whole = np.empty(len(octets), np.uint8)
    start = 0
    for lane in range(4):
        count = (len(octets) - lane + 3) // 4
        whole[lane::4] = octets[start : start + count]
        start += count
    return whole.tobytes()
