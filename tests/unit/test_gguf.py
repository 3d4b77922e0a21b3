"""The GGUF header reader: right on a sound file, clear and bounded on any other."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.engines.gguf import GgufError, read_header


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


METADATA = (
    entry("general.architecture", 8, text("qwen3")),
    entry("general.name", 8, text("Tiny")),
    entry("general.license", 8, text("apache-2.0")),
    entry("general.file_type", 4, u32(7)),
    entry("qwen3.context_length", 4, u32(4096)),
    entry("qwen3.embedding_length", 4, u32(32)),
    entry("qwen3.block_count", 4, u32(2)),
    entry("tokenizer.chat_template", 8, text("{{ messages }}")),
    entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("c")),
    entry("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        + struct.pack("<IQ", kind, offset)
    )


TENSORS = (tensor("a", (32, 4), 8, 0), tensor("b", (8,), 0, 160))  # 136 bytes of Q8_0, 32 of F32


def gguf(
    metadata: tuple[bytes, ...] = METADATA,
    tensors: tuple[bytes, ...] = TENSORS,
    *,
    data_bytes: int = 192,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    count = len(tensors) if tensor_count is None else tensor_count
    keys = len(metadata) if key_count is None else key_count
    head = b"GGUF" + struct.pack("<IQQ", 3, count, keys) + b"".join(metadata) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    return str(caught.value)


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    header = read_header(path)
    assert (header.architecture, header.quantisation, header.context_tokens) == (
        "qwen3",
        "Q8_0",
        4096,
    )
    assert (header.parameters, header.tensors, header.vocabulary, header.layers) == (136, 2, 3, 2)
    assert header.chat_template == "{{ messages }}"
    assert header.licence == "apache-2.0"
    assert header.is_qwen
    assert not header.embeds


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a GGUF"),
        (b"PK\x03\x04" + bytes(100), "safetensors"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(100), "version 99"),
        (gguf(key_count=2**63), "metadata count"),
        (gguf(tensor_count=2**40), "tensor count"),
        (gguf(data_bytes=10), "cut short"),
        (gguf()[:200], "cut short"),
        (gguf(tensors=()), "vocabulary only"),
        (gguf(metadata=METADATA[1:]), "architecture"),
        (gguf(metadata=(*METADATA, METADATA[0])), "twice"),
        (gguf(metadata=(*METADATA, entry("split.count", 2, struct.pack("<H", 3)))), "shards"),
        (gguf(metadata=(*METADATA, entry("x", 8, struct.pack("<Q", 2**50)))), "claims"),
        (gguf(metadata=(*METADATA, entry("x", 9, struct.pack("<IQ", 8, 2**60)))), "length of 'x'"),
        (gguf(metadata=(*METADATA, entry("x", 9, struct.pack("<IQ", 9, 1)))), "array of type 9"),
        (gguf(metadata=(*METADATA, entry("x", 77, b""))), "unknown type 77"),
        (gguf(metadata=(*METADATA, entry("general.alignment", 4, u32(0)))), "alignment"),
        (gguf(tensors=(tensor("t", (2**62, 2**62), 0, 0),)), "claims"),
        (gguf(tensors=(tensor("t", (8,), 0, 2**62),)), "past its end"),
        (gguf(tensors=(tensor("t", (8,), 0, 3),)), "not aligned"),
        (gguf(tensors=(tensor("t", (1,) * 9, 0, 0),)), "9 dimensions"),
    ],
)
def test_what_no_honest_file_asserts_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    assert words in refusal(tmp_path, content)


@settings(max_examples=400, deadline=None)
@given(bits=st.lists(st.integers(0, 8 * len(gguf()) - 1), min_size=1, max_size=8))
def test_flipped_bits_give_a_header_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int]
) -> None:
    content = bytearray(gguf())
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except GgufError as error:
        assert len(str(error)) > 20
    else:
        assert header.parameters <= 8 * header.file_bytes


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, len(gguf()) - 1))
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(gguf()[:length])
    if length >= len(gguf()) - 30:  # only padding is missing
        return
    with pytest.raises(GgufError):
        read_header(path)
