"""The GGUF layout check: takes what the reference writes, refuses what ggml's reader would."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.engines.gguf import GgufError, GgufLayout
from qwenstack.hub.formats.gguf import check
from tests.unit.test_gguf import METADATA, TENSORS, entry, gguf, tensor, text


def layout(content: bytes) -> GgufLayout:
    return check(io.BytesIO(content), len(content))


def written(path: Path) -> bytes:
    writer = reference.GGUFWriter(path, "qwen3")
    writer.add_file_type(7)
    writer.add_token_list(["a", "b"])
    writer.add_chat_template(
        [{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}]
    )
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    quantised = np.zeros((2, 34), np.uint8)
    writer.add_tensor("q", quantised, raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("half", np.ones((3,), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_what_the_reference_writes_is_taken_with_its_tensors_and_templates(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    found = layout(written(path))
    listed = reference.GGUFReader(path).tensors
    assert [(t.name, t.type_name, t.shape) for t in found.tensors] == [
        (t.name, t.tensor_type.name, tuple(int(n) for n in t.shape)) for t in listed
    ]
    assert [found.data_start + t.offset for t in found.tensors] == [t.data_offset for t in listed]
    assert found.templates == {"": "D", "tools": "T"}
    assert (found.architecture, found.quantisation) == ("qwen3", "Q8_0")
    assert found.lengths["tokenizer.ggml.tokens"] == 2


def test_a_shard_and_a_vocabulary_are_taken() -> None:
    shard = (*METADATA, entry("split.count", 2, struct.pack("<H", 3)))
    assert layout(gguf(shard)).values["split.count"] == 3
    assert layout(gguf(tensors=(), data_bytes=0)).tensors == ()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "tensors_overlap": (gguf(tensors=(TENSORS[0], tensor("b", (8,), 0, 128))), "overlaps"),
    "same_bytes_twice": (gguf(tensors=(TENSORS[0], tensor("b", (32, 4), 8, 0))), "overlaps"),
    "hole_between": (
        gguf(tensors=(TENSORS[0], tensor("b", (8,), 0, 192)), data_bytes=224),
        "hole",
    ),
    "begins_late": (gguf(tensors=(tensor("b", (8,), 0, 32),), data_bytes=64), "hole"),
    "bytes_after_the_end": (gguf(data_bytes=256), "follow its last"),
    "archive_in_the_padding": (
        gguf(tensors=(tensor("b", (3,), 0, 0),), data_bytes=12) + b"PK\5\6" + bytes(16),
        "not zero",
    ),
    "truncated_in_the_data": (gguf(data_bytes=191), "cut short"),
    "same_name_twice": (gguf(tensors=(TENSORS[0], tensor("a", (8,), 0, 160))), "twice"),
    "name_longer_than_ggml_takes": (
        gguf(tensors=(tensor("n" * 64, (8,), 0, 0),), data_bytes=32),
        "over 63",
    ),
    "unknown_type": (gguf(tensors=(tensor("t", (8,), 250, 0),), data_bytes=32), "type 250"),
    "row_is_no_whole_block": (
        gguf(tensors=(tensor("t", (16, 2), 8, 0),), data_bytes=64),
        "whole blocks",
    ),
    "tensors_2_40": (gguf(tensor_count=2**40), "tensor count"),
    "keys_2_63": (gguf(key_count=2**63), "metadata count"),
    "array_of_2_60_strings": (
        gguf((*METADATA, entry("x", 9, struct.pack("<IQ", 8, 2**60)))),
        "length of 'x'",
    ),
    "string_of_2_50_bytes": (gguf((*METADATA, entry("x", 8, struct.pack("<Q", 2**50)))), "claims"),
    "array_of_arrays": (gguf((*METADATA, entry("x", 9, struct.pack("<IQ", 9, 1)))), "type 9"),
    "shape_wraps_64_bits": (
        gguf(tensors=(tensor("t", (2**32, 2**32, 8), 0, 0),)),
        "more than",
    ),
    "offset_wraps_64_bits": (gguf(tensors=(tensor("t", (8,), 0, 2**64 - 32),)), "past its end"),
    "template_is_no_text": (
        gguf((*METADATA[:7], entry("tokenizer.chat_template", 8, struct.pack("<Q", 1) + b"\xff"))),
        "UTF-8",
    ),
    "key_twice": (gguf((*METADATA, entry("general.name", 8, text("other")))), "twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_layout_is_refused_by_name(name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(GgufError, match=words):
        layout(content)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_no_mutation_crashes_it_and_what_it_takes_lies_within_the_file(data: st.DataObject) -> None:
    content = bytearray(gguf())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "delete", "insert"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del content[at]
        else:
            content.insert(at, data.draw(st.integers(0, 255)))
    try:
        found = layout(bytes(content))
    except GgufError:
        return
    end = found.data_start
    for t in found.tensors:
        assert t.bytes is not None
        assert found.data_start + t.offset >= end
        end = found.data_start + t.offset + t.bytes
    assert end <= len(content) < end + found.alignment
