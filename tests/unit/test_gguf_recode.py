"""Recoding a GGUF file changes how weights are stored and no weight."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engines.gguf import GgufLayout, read_header, read_layout
from qwenstack.engines.gguf_recode import needs_recoding, q5_0_as_q8_0, recode

BLOCK = st.binary(min_size=22, max_size=22)


def q5_0_weights(block: bytes) -> list[int]:
    """The block's integers, one at a time, as ggml's reference loop takes them."""
    fifth = int.from_bytes(block[2:6], "little")
    nibbles = block[6:]
    low = [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]
    return [(value | (fifth >> place & 1) << 4) - 16 for place, value in enumerate(low)]


def recoded_bytes(blocks: bytes) -> bytes:
    return q5_0_as_q8_0(np.frombuffer(blocks, np.uint8)).tobytes()


def layout_of(path: Path) -> GgufLayout:
    with path.open("rb") as file:
        return read_layout(file, path.stat().st_size)


@given(st.lists(BLOCK, max_size=4))
def test_every_block_keeps_its_scale_and_its_weights(blocks: list[bytes]) -> None:
    recoded = recoded_bytes(b"".join(blocks))
    for place, block in enumerate(blocks):
        new = recoded[place * 34 : (place + 1) * 34]
        assert new[:2] == block[:2]
        assert list(struct.unpack("32b", new[2:])) == q5_0_weights(block)


def gguf_file(path: Path, tensors: list[tuple[str, int, int, bytes]]) -> Path:
    """A GGUF file with tensors of (name, type, weights, data)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("qwen2")
    body = b""
    for name, kind, weights, data in tensors:
        head += text(name) + struct.pack("<IQIQ", 1, weights, kind, len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return path


def test_a_recoded_file_holds_the_other_tensors_unchanged(tmp_path: Path) -> None:
    five = bytes(range(22)) * 3
    other = struct.pack("<5f", *range(5))
    source = gguf_file(
        tmp_path / "a.gguf", [("x", 0, 5, other), ("q", 6, 96, five), ("y", 0, 5, other)]
    )
    assert needs_recoding(layout_of(source))
    target = tmp_path / "sub" / "b.gguf"
    recode(source, target)
    layout = layout_of(target)
    data = target.read_bytes()[layout.data_start :]
    found = {
        each.name: (each.type_name, data[each.offset : each.offset + (each.bytes or 0)])
        for each in layout.tensors
    }
    assert found == {"x": ("F32", other), "q": ("Q8_0", recoded_bytes(five)), "y": ("F32", other)}
    assert not needs_recoding(layout)
    assert read_header(target).architecture == "qwen2"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_cannot_be_rewritten_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "bad.gguf"
    source.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises((KeyError, ValueError)):
        recode(source, tmp_path / "out" / "b.gguf")
    assert list((tmp_path / "out").iterdir()) == []
