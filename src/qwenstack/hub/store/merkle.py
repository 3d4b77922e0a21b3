"""The hashes of Xet: of a chunk, of a run of chunks, of a xorb and of a file.

All are BLAKE3 with a key for each purpose. A xorb's and a file's are roots of a tree over the
chunks' hashes and lengths, whose nodes have two to nine children. As text a hash is written as four
64-bit numbers in little-endian order, so that the digits of each 8 bytes stand reversed.
Source: huggingface.co/docs/xet/hashing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from blake3 import blake3

HASH_BYTES = 32
_DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_RANGE_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")
_ZERO = bytes(HASH_BYTES)
_CHILDREN_MIN = 3  # before a hash may end a node early
_CHILDREN_MAX = 9
_WORDS = struct.Struct("<4Q")
_TEXT = struct.Struct(">4Q")

Leaf = tuple[bytes, int]
"""A chunk's hash and its length in bytes."""


def to_text(digest: bytes) -> str:
    """A hash as the protocol writes it, 64 hexadecimal digits."""
    return _TEXT.pack(*_WORDS.unpack(digest)).hex()


def from_text(text: str) -> bytes:
    """The 32 bytes of a written hash; raises ValueError for anything but 64 lower-case digits."""
    if len(text) != 2 * HASH_BYTES or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"{text[:80]!a} is no hash: 64 lower-case hexadecimal digits are")
    return _WORDS.pack(*_TEXT.unpack(bytes.fromhex(text)))


def chunk_hash(data: bytes | memoryview) -> bytes:
    """The hash of a chunk's bytes."""
    return blake3(data, key=_DATA_KEY).digest()


def xorb_hash(leaves: Sequence[Leaf]) -> bytes:
    """The hash of a xorb that holds these chunks."""
    return _root(leaves)


def file_hash(leaves: Sequence[Leaf]) -> bytes:
    """The hash of a file that these chunks make; 32 zero bytes for the empty file."""
    return keyed(_root(leaves), _ZERO) if leaves else _ZERO


def range_hash(hashes: Iterable[bytes]) -> bytes:
    """What proves, in a shard, that its sender knows the chunks of a run."""
    return blake3(b"".join(hashes), key=_RANGE_KEY).digest()


def keyed(digest: bytes, key: bytes) -> bytes:
    """A hash that only a holder of the original can recognise, for the answers of deduplication."""
    return blake3(digest, key=key).digest()


def _root(leaves: Sequence[Leaf]) -> bytes:
    if not leaves:
        return _ZERO
    level = list(leaves)
    while len(level) > 1:
        parents: list[Leaf] = []
        start = 0
        while start < len(level):
            end = _node_end(level, start)
            parents.append(_node(level[start:end]))
            start = end
        level = parents
    return level[0][0]


def _node_end(level: Sequence[Leaf], start: int) -> int:
    """A node ends after its maximum, or after a hash from the third on that divides by four."""
    limit = min(start + _CHILDREN_MAX, len(level))
    for index in range(start + _CHILDREN_MIN - 1, limit):
        if level[index][0][24] & 3 == 0:  # the lowest byte of the last number
            return index + 1
    return limit


def _node(children: Sequence[Leaf]) -> Leaf:
    text = "".join(f"{to_text(digest)} : {size}\n" for digest, size in children)
    return blake3(text.encode(), key=_NODE_KEY).digest(), sum(size for _, size in children)
