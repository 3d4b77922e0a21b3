"""Xet's cuts, hashes, xorbs and shards are the real client's, and nothing hostile passes."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lz4.frame  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.hub.store.gearhash import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, TABLE, Cutter
from qwenstack.hub.store.merkle import (
    chunk_hash,
    file_hash,
    from_text,
    keyed,
    range_hash,
    to_text,
    xorb_hash,
)
from qwenstack.hub.store.packs import PACK_BYTES_MAX, PACK_CHUNKS_MAX, PackIndex
from qwenstack.hub.store.shard import (
    ShardError,
    ShardFile,
    ShardSegment,
    dedupe_shard,
    read_shard,
    write_shard,
)
from qwenstack.hub.store.xorb import XorbError, XorbReader, chunk_header, ungroup, write_xorb

hf_xet = pytest.importorskip("hf_xet", reason="no Xet client: the wheel hf-xet is missing")


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def cut(data: bytes, *sizes: int) -> list[bytes]:
    """The chunks of `data`, fed in pieces of these sizes over and over."""
    cutter, chunks, place, turn = Cutter(), [], 0, 0
    while place < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        chunks += [bytes(chunk) for chunk in cutter.feed(data[place : place + size])]
        place, turn = place + size, turn + 1
    return chunks + [bytes(chunk) for chunk in cutter.finish()]


def slow_cut(data: bytes) -> list[bytes]:
    """The rule as the protocol states it, a byte at a time."""
    chunks, start, state = [], 0, 0
    for place, octet in enumerate(data):
        state = ((state << 1) + TABLE[octet]) % 2**64
        size = place + 1 - start
        rare = size >= CHUNK_BYTES_MIN and state >> 48 == 0
        if rare or size == CHUNK_BYTES_MAX:
            chunks.append(data[start : place + 1])
            start, state = place + 1, 0
    return chunks + ([data[start:]] if start < len(data) else [])


def read_xorb(body: bytes, piece_bytes: int = 2**30) -> Iterator[bytes]:
    """The chunks of a xorb that comes in such pieces, two at a time."""
    reader = XorbReader()
    pieces = [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]
    for start in range(0, len(pieces), 2):
        yield from map(bytes, reader.feed(pieces[start : start + 2]))
    reader.finish()


def leaves_of(chunks: list[bytes]) -> list[tuple[bytes, int]]:
    return [(chunk_hash(chunk), len(chunk)) for chunk in chunks]


@pytest.mark.parametrize("kind", ["random", "zeros", "period"])
@pytest.mark.parametrize(
    "size", [0, 1, 63, 64, 65, 8191, 8192, 8193, 65_536, 131_072, 131_073, 1_000_003, 9_000_000]
)
def test_a_files_hash_is_the_one_that_the_real_client_computes(
    kind: str, size: int, tmp_path: Path
) -> None:
    data = {
        "random": lambda: random_bytes(size),
        "zeros": lambda: bytes(size),
        "period": lambda: (random_bytes(997) * (size // 997 + 1))[:size],
    }[kind]()
    path = tmp_path / "file"
    path.write_bytes(data)
    (theirs,) = hf_xet.hash_files([str(path)])
    assert to_text(file_hash(leaves_of(cut(data)))) == theirs.hash


def test_the_compiled_cut_is_the_byte_by_byte_one() -> None:
    data = random_bytes(2_200_000, 7)
    assert cut(data) == cut(data, 1_050_000, 70_000) == slow_cut(data)
    assert cut(bytes(300_000) + data[:9000]) == slow_cut(bytes(300_000) + data[:9000])


def test_nothing_is_compiled_before_something_is_cut() -> None:
    code = "import sys, qwenstack.hub.store.gearhash; sys.exit('wasmtime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


def test_chunks_of_streams_in_many_threads_do_not_mix() -> None:
    streams = [random_bytes(3_000_000, seed) for seed in range(6)]
    with ThreadPoolExecutor(len(streams)) as pool:
        found = list(pool.map(lambda data: cut(data, 400_000, 1_200_000), streams))
    assert found == [cut(data) for data in streams]
    cutters = [Cutter() for _ in streams]
    mixed: list[list[bytes]] = [[] for _ in streams]
    for start in range(0, 3_000_000, 1_100_000):
        for cutter, chunks, data in zip(cutters, mixed, streams, strict=True):
            chunks += map(bytes, cutter.feed(data[start : start + 1_100_000]))
    for cutter, chunks in zip(cutters, mixed, strict=True):
        chunks += map(bytes, cutter.finish())
    assert mixed == found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(100, 2_000_000), min_size=1, max_size=5), st.integers(0, 2**32))
def test_chunks_do_not_depend_on_the_pieces_that_come(sizes: list[int], seed: int) -> None:
    data = random_bytes(3_000_000, seed)
    assert cut(data, *sizes) == cut(data)


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=1, max_size=5000), st.integers(0, 2**32))
def test_bytes_put_in_front_change_only_the_first_chunks(front: bytes, seed: int) -> None:
    data = random_bytes(2_000_000, seed)
    before, after = cut(data), cut(front + data)
    kept = set(before) & set(after)
    assert sum(map(len, kept)) > len(data) / 2
    assert before[-1] == after[-1]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400_000), st.integers(0, 255))
def test_chunks_keep_their_bounds(size: int, octet: int) -> None:
    for data in (random_bytes(size, octet), bytes([octet]) * size):
        chunks = cut(data)
        assert b"".join(chunks) == data
        assert all(CHUNK_BYTES_MIN <= len(chunk) <= CHUNK_BYTES_MAX for chunk in chunks[:-1])


def test_a_hash_as_text_is_read_back() -> None:
    digest = bytes(range(32))
    assert to_text(digest).startswith("0706050403020100")
    assert from_text(to_text(digest)) == digest
    for bad in ("", "0" * 63, "g" * 64, "A" * 64, "0" * 65, "٠" * 64):
        with pytest.raises(ValueError, match="no hash"):
            from_text(bad)


# From the protocol's published reference hashes: chunks of 100, 200, … bytes.
_REFERENCE = [
    ("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100),
    ("c3e67584b5c4fc2a89837ec39e40f2c8a6bb0b2987ac94cd4b31e5fbdd210a72", 200),
    ("0d2beb91b9196929a5ddec9f6e306924ddf4a24268e3e59fd8464738d525af37", 300),
]


def test_the_tree_hashes_are_the_published_ones() -> None:
    leaves = [(from_text(text), size) for text, size in _REFERENCE]
    assert to_text(xorb_hash(leaves)) == (
        "71ec1275fca074724e2dd666921b3277c7cee603e4d025bcab2d4050015be2bc"
    )
    assert to_text(file_hash(leaves)) == (
        "54e55dccc6653c612bdb5576c5d3cb34bb31bc4e100248abccf4c908b3ef7715"
    )
    assert to_text(xorb_hash(leaves[:1])) == _REFERENCE[0][0]
    assert to_text(xorb_hash(leaves[:1] * 4)) == (
        "89f2ada89ff8c96763c6b25010e6dd76a4c05b1466207633ea559acf2093211b"
    )


# --- xorbs ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=20),
    st.booleans(),
    st.integers(1, 3000),
)
def test_a_xorb_is_read_back(chunks: list[bytes], compress: bool, piece_bytes: int) -> None:
    body = write_xorb(chunks, compress=compress) + b"XETBLOB and more"
    assert list(read_xorb(body, piece_bytes)) == chunks


@given(st.binary(max_size=70))
def test_grouping_by_four_is_undone(data: bytes) -> None:
    assert ungroup(b"".join(data[lane::4] for lane in range(4))) == data


def test_a_footer_after_the_chunks_is_passed_over() -> None:
    body = write_xorb([b"one", b"two"]) + b"XETBLOB\x01" + random_bytes(300)
    assert list(read_xorb(body)) == [b"one", b"two"]


def grouped(data: bytes) -> bytes:
    packed: bytes = lz4.frame.compress(b"".join(data[lane::4] for lane in range(4)))
    return struct.pack("<II", len(packed) << 8, 2 | len(data) << 8) + packed


def test_a_grouped_chunk_is_read() -> None:
    data = np.arange(5001, dtype=np.float32).tobytes() + b"xyz"
    assert list(read_xorb(grouped(data))) == [data]


def bomb() -> bytes:
    """A small frame that wants to become 100 MB and claims to be one chunk."""
    large_blocks = lz4.frame.BLOCKSIZE_MAX4MB
    packed: bytes = lz4.frame.compress(bytes(100_000_000), block_size=large_blocks)[:200_000]
    return struct.pack("<II", len(packed) << 8, 1 | CHUNK_BYTES_MAX << 8) + packed


HOSTILE_XORBS = {
    "empty": b"",
    "no chunk before the footer": b"XETBLOB\x01",
    "half a header": b"\0\1\0",
    "unknown version": b"\x01" + chunk_header(3)[1:] + b"abc",
    "unknown compression": struct.pack("<II", 3 << 8, 9 | 3 << 8) + b"abc",
    "no bytes": chunk_header(0),
    "more than a chunk": chunk_header(CHUNK_BYTES_MAX + 1) + bytes(CHUNK_BYTES_MAX + 1),
    "header longer than the body": chunk_header(100) + b"abc",
    "length that lies": struct.pack("<II", 3 << 8, 0 | 4 << 8) + b"abc",
    "no LZ4": struct.pack("<II", 20 << 8, 1 | 3 << 8) + bytes(20),
    "LZ4 of another length": struct.pack("<II", len(lz4.frame.compress(b"abc")) << 8, 1 | 2 << 8)
    + lz4.frame.compress(b"abc"),
    "bytes after the LZ4 frame": struct.pack(
        "<II", (len(lz4.frame.compress(b"abc")) + 1) << 8, 1 | 3 << 8
    )
    + lz4.frame.compress(b"abc")
    + b"!",
    "bomb": bomb(),
    "too many chunks": write_xorb([b"x"] * (PACK_CHUNKS_MAX + 1)),
    "long footer": write_xorb([b"x"]) + b"XETBLOB" + bytes(1024 * 1024),
}


@pytest.mark.parametrize("name", HOSTILE_XORBS)
@pytest.mark.parametrize("piece_bytes", [3, 1000, 2**30])
def test_a_hostile_xorb_is_refused_with_its_reason(name: str, piece_bytes: int) -> None:
    with pytest.raises(XorbError, match=r"xorb|chunk"):
        list(read_xorb(HOSTILE_XORBS[name], piece_bytes))


def test_more_than_64_mib_in_a_small_body_are_refused() -> None:
    chunk = bytes(CHUNK_BYTES_MAX)
    body = write_xorb([chunk] * (PACK_BYTES_MAX // CHUNK_BYTES_MAX + 1), compress=True)
    assert len(body) < 1_000_000
    with pytest.raises(XorbError, match="more than"):
        for _ in read_xorb(body):
            pass


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_xorb_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    body = bytearray(write_xorb([b"abc" * 100, random_bytes(500)], compress=True))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        for chunk in read_xorb(bytes(body)):
            assert len(chunk) <= CHUNK_BYTES_MAX
    except XorbError:
        pass


# --- shards -----------------------------------------------------------------------------------

digests = st.binary(min_size=32, max_size=32).filter(lambda digest: digest != b"\xff" * 32)
segments_of_a_shard = st.builds(
    lambda xorb, first, count, size, proof: ShardSegment(
        to_text(xorb), first, first + count, size, proof
    ),
    digests,
    st.integers(0, 8000),
    st.integers(1, 100),
    st.integers(0, 2**32 - 1),
    digests,
)
shard_files = st.builds(
    ShardFile,
    digests.map(to_text),
    st.lists(segments_of_a_shard, max_size=4).map(tuple),
    st.none() | digests.map(to_text),
)


@settings(deadline=None)
@given(st.lists(shard_files, max_size=4))
def test_a_shard_is_read_back(files: list[ShardFile]) -> None:
    assert read_shard(write_shard(files)) == tuple(files)


@settings(max_examples=50, deadline=None)
@given(st.lists(shard_files, min_size=1, max_size=3), st.data())
def test_a_truncated_shard_is_refused(files: list[ShardFile], data: st.DataObject) -> None:
    body = write_shard(files)
    with pytest.raises(ShardError):
        read_shard(body[: data.draw(st.integers(0, len(body) - 97))])


@settings(max_examples=200, deadline=None)
@given(st.lists(shard_files, min_size=1, max_size=2), st.data())
def test_a_damaged_shard_never_crashes(files: list[ShardFile], data: st.DataObject) -> None:
    body = bytearray(write_shard(files))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ShardError):
        read_shard(bytes(body))


def test_a_shard_that_claims_four_billion_segments_is_refused_at_once() -> None:
    body = bytearray(write_shard([ShardFile("0" * 64, (), None)]))
    struct.pack_into("<I", body, 48 + 36, 2**32 - 1)
    with pytest.raises(ShardError, match="not there"):
        read_shard(bytes(body))


def test_a_file_without_proofs_is_refused() -> None:
    body = bytearray(write_shard([ShardFile("0" * 64, (), None)]))
    struct.pack_into("<I", body, 48 + 32, 0)
    with pytest.raises(ShardError, match="proofs"):
        read_shard(bytes(body))


def test_an_answer_to_a_query_veils_the_hashes_it_names() -> None:
    chunks = cut(random_bytes(500_000))
    pack = PackIndex(to_text(xorb_hash(leaves_of(chunks))), "pack_x", leaves_of(chunks))
    key = b"k" * 32
    body = dedupe_shard([pack], key=key, created_s=1, expires_s=2)
    for chunk in chunks:
        assert chunk_hash(chunk) not in body
        assert keyed(chunk_hash(chunk), key) in body
    assert key in body[-200:]
    assert from_text(pack.hash) in body


def test_a_proof_needs_every_chunk_of_the_run() -> None:
    hashes = [bytes([number]) * 32 for number in range(3)]
    assert range_hash(hashes) != range_hash(hashes[:2])
    assert range_hash(hashes) != range_hash(reversed(hashes))
