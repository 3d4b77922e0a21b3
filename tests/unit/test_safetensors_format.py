"""The safetensors check: takes what the reference writes, and never what the reference refuses."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from qwenstack.hub.formats.safetensors import (
    DTYPE_BITS,
    SafetensorsError,
    SafetensorsHeader,
    compare_index,
    read_header,
    read_index,
)


def document(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def read(content: bytes) -> SafetensorsHeader:
    return read_header(io.BytesIO(content), len(content))


def accepted(content: bytes) -> bool:
    try:
        read(content)
    except SafetensorsError:
        return False
    return True


def reference(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    views: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    return views


def accepted_by_reference(content: bytes) -> bool:
    try:
        reference(content)
    except SafetensorError:
        return False
    return True


A = tensor("F32", [2], 0, 8)
A_RAW = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'

SOUND = save(
    {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((3,), np.uint8),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(7, np.int64),
    },
    {"format": "pt"},
)


def test_what_the_reference_writes_is_read_with_the_same_tensors() -> None:
    header = read(SOUND)
    assert {t.name: (t.dtype, list(t.shape)) for t in header.tensors} == {
        name: (view["dtype"], view["shape"]) for name, view in reference(SOUND)
    }
    assert header.metadata == {"format": "pt"}
    assert sum(t.elements for t in header.tensors) == 6 + 3 + 0 + 1
    assert header.data_start + header.tensors[-1].end == header.file_bytes == len(SOUND)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_each_dtype_has_the_references_size(dtype: str) -> None:
    for size in range(72):
        content = document({"a": tensor(dtype, [8], 0, size)}, bytes(size))
        assert accepted(content) == accepted_by_reference(content) == (size == DTYPE_BITS[dtype])


def test_a_reader_that_gives_a_byte_at_a_time_is_read_to_the_end() -> None:
    class Dripping(io.RawIOBase):
        def __init__(self) -> None:
            self._file = io.BytesIO(SOUND)

        def read(self, size: int = -1) -> bytes:
            return self._file.read(min(size, 1))

    assert read_header(Dripping(), len(SOUND)) == read(SOUND)


# Named for the trick, with words of the refusal.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut short"),
    "half_a_length": (b"\x01\0\0", "cut short"),
    "header_of_2_63_bytes": (struct.pack("<Q", 2**63) + b"{}", "claims"),
    "header_over_the_limit": (struct.pack("<Q", 100_000_001) + b"{}", "over 100000000"),
    "header_longer_than_the_file": (struct.pack("<Q", 99) + b"{}", "cut short"),
    "empty_header": (document(b""), "begins with"),
    "header_begins_with_space": (document(b" {}"), "begins with"),
    "header_is_a_list": (document(b"[]"), "begins with"),
    "byte_order_mark": (document(b"\xef\xbb\xbf{}"), "begins with"),
    "nul_after_the_header": (document(b"{}\0"), "control character"),
    "second_document": (document(b"{}{}"), "follows"),
    "not_utf8": (document(b'{"\xff":1}'), "UTF-8"),
    "half_a_surrogate_pair": (
        document(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "UTF-8",
    ),
    "control_character": (document(b'{"a\nb":1}'), "no string"),
    "duplicate_tensor": (document(b"{" + A_RAW + b"," + A_RAW + b"}", bytes(8)), "twice"),
    "duplicate_tensor_by_escape": (
        document(b"{" + A_RAW + b"," + A_RAW.replace(b'"a"', b'"\\u0061"') + b"}", bytes(8)),
        "twice",
    ),
    "duplicate_field": (
        document(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "twice",
    ),
    "duplicate_metadata": (document(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "duplicate_metadata_key": (document(b'{"__metadata__":{"a":"1","a":"2"}}'), "twice"),
    "unknown_field": (document({"a": {**A, "code": "x"}}, bytes(8)), "'code'"),
    "metadata_of_numbers": (document({"__metadata__": {"a": 1}}), "no string"),
    "metadata_nested": (document({"__metadata__": {"a": {}}}), "no string"),
    "unknown_dtype": (document({"a": tensor("F33", [2], 0, 8)}, bytes(8)), "F33"),
    "lower_case_dtype": (document({"a": tensor("f32", [2], 0, 8)}, bytes(8)), "f32"),
    "negative_offset": (
        document(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}'),
        "whole numbers",
    ),
    "minus_nought": (
        document(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}', b"x"),
        "whole numbers",
    ),
    "fractional_shape": (
        document(b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"x"),
        "whole numbers",
    ),
    "exponent_in_shape": (
        document(b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"x"),
        "whole numbers",
    ),
    "three_offsets": (
        document(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', b"x"),
        "range of two",
    ),
    "range_backwards": (document({"a": tensor("U8", [1], 1, 0)}, b"x"), "hole|begins"),
    "shape_overflows_64_bits": (
        document({"a": tensor("F32", [2**40, 2**40], 0, 8)}, bytes(8)),
        "2\\^64",
    ),
    "shape_overflows_before_a_nought": (
        document({"a": tensor("F32", [2**40, 2**40, 0], 0, 0)}),
        "2\\^64",
    ),
    "size_overflows_64_bits": (document({"a": tensor("F32", [2**62], 0, 0)}), "2\\^64 bits"),
    "wraps_to_the_right_size": (
        document({"a": tensor("F32", [2**62 + 2], 0, 8)}, bytes(8)),
        "2\\^64 bits",
    ),
    "range_of_2_63_bytes": (document({"a": tensor("U8", [2**60], 0, 2**60)}), "cut short"),
    "number_over_64_bits": (document({"a": tensor("U8", [2**64], 0, 1)}, b"x"), "2\\^64"),
    "number_of_a_million_digits": (
        document(b'{"a":{"dtype":"U8","shape":[' + b"9" * 1_000_000 + b"]}}"),
        "whole numbers",
    ),
    "range_longer_than_the_shape": (document({"a": tensor("F32", [2], 0, 9)}, bytes(9)), "takes 8"),
    "hole_at_the_start": (document({"a": tensor("U8", [1], 1, 2)}, b"xx"), "hole"),
    "hole_between": (document({"a": A, "b": tensor("U8", [1], 9, 10)}, bytes(10)), "hole"),
    "overlap": (document({"a": A, "b": tensor("F32", [2], 4, 12)}, bytes(12)), "overlaps"),
    "same_range_twice": (document({"a": A, "b": A}, bytes(8)), "overlaps"),
    "truncated_data": (document({"a": A}, bytes(7)), "cut short"),
    "trailing_bytes": (document({"a": A}, bytes(9)), "1 bytes follow"),
    "archive_behind_the_tensors": (document({"a": A}, bytes(8) + b"PK\5\6" + bytes(18)), "follow"),
    "ends_within_a_byte": (document({"a": tensor("F4", [3], 0, 2)}, b"xx"), "within a byte"),
    "nested_10000_deep": (document(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), "missing"),
    "name_of_a_megabyte": (document({"a" * 1_000_000: A}, bytes(8)), "over 4096"),
    "shape_of_1000_dimensions": (
        document({"a": tensor("U8", [1] * 1000, 0, 1)}, b"x"),
        "short list",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_by_name(name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(SafetensorsError, match=words):
        read(content)


def test_a_null_metadata_is_none_as_in_the_reference() -> None:
    content = document(b'{"__metadata__":null}')
    assert accepted(content)
    assert accepted_by_reference(content)


SEEDS = [
    SOUND,
    document({"a": A, "b": tensor("BF16", [2, 2], 8, 16)}, bytes(16)),
    document({"__metadata__": {"k": "v"}, "x": tensor("F4", [4], 0, 2)}, bytes(2)),
    document({}),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound file with a few edits, mostly in its header; its length follows it or doesn't."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    head = 8 + int.from_bytes(content[:8], "little")
    repair = draw(st.booleans())
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        reach = head if draw(st.integers(0, 9)) else len(content)
        at = draw(st.integers(8 if repair else 0, max(8, reach - 1)))
        kind = draw(st.sampled_from(["space", "digit", "set", "insert", "delete", "token", "copy"]))
        if kind == "space":
            # Beside a bracket or a comma, where it changes nothing.
            places = [n for n in range(9, head) if content[n - 1] in b",[{:"]
            content.insert(draw(st.sampled_from(places or [head])), 32)
            head += 1
        elif kind == "digit":
            digits = [n for n in range(8, head) if 48 <= content[n] <= 57]
            if digits:
                content[draw(st.sampled_from(digits))] = draw(st.integers(48, 57))
        elif kind == "set" and at < len(content):
            content[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            content.insert(at, draw(st.sampled_from(b'0123456789{}[]",:.-eE\\u \n\x00\xff')))
            head += 1
        elif kind == "delete" and at < len(content):
            del content[at]
            head -= 1
        elif kind == "token":
            token = draw(st.sampled_from([b"F4", b"null", b"18446744073709551615", b"0,", b'"a":']))
            content[at:at] = token
            head += len(token)
        else:
            piece = content[at : at + draw(st.integers(1, 60))]
            content[at:at] = piece
            head += len(piece)
    if repair and head >= 8:
        content[:8] = struct.pack("<Q", head - 8)
    return bytes(content)


@settings(max_examples=1500, deadline=None)
@given(mutated())
@example(document(b'{"__metadata__":{"a":null}}'))
def test_no_mutation_is_accepted_that_the_reference_refuses(content: bytes) -> None:
    if accepted(content):
        assert accepted_by_reference(content)


DTYPES = st.sampled_from(sorted(DTYPE_BITS))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 5), max_size=4)), max_size=6),
    st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3),
    st.lists(st.text(max_size=12), min_size=6, max_size=6, unique=True),
    st.integers(0, 16),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(-1, 1)), max_size=2),
)
def test_what_the_reference_accepts_of_the_specified_form_is_accepted(
    tensors: list[tuple[str, list[int]]],
    metadata: dict[str, str],
    names: list[str],
    padding: int,
    shifts: list[tuple[int, int, int]],
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in zip(names, tensors, strict=False):
        bits = int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[dtype]
        header[name] = tensor(dtype, shape, end, end + bits // 8)
        end += bits // 8
    for which, side, by in shifts:
        if which < len(tensors):
            offsets = header[names[which]]["data_offsets"]
            offsets[side] = max(0, offsets[side] + by)
    content = document(json.dumps(header).encode() + b" " * padding, bytes(end))
    assert accepted(content) == accepted_by_reference(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_it(noise: bytes) -> None:
    assert not accepted(noise) or accepted_by_reference(noise)


def index(weights: dict[str, str], total: object = 8) -> bytes:
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weights}).encode()


SHARD = read(document({"a": A}, bytes(8)))


def test_an_index_that_agrees_with_its_shards_has_no_faults() -> None:
    assert compare_index(read_index(index({"a": "1.safetensors"})), {"1.safetensors": SHARD}) == []
    assert compare_index(read_index(index({"a": "x"}, 8.0)), {"x": SHARD}) == []


@pytest.mark.parametrize(
    ("weights", "total", "words"),
    [
        ({"a": "x", "b": "x"}, 8, "does not hold: 'b'"),
        ({"b": "x"}, 8, "does not place there: 'a'"),
        ({"a": "x", "b": "gone"}, 8, "'gone', which is not there"),
        ({"a": "x"}, 9, "total_size 9"),
    ],
)
def test_an_index_that_contradicts_its_shards_says_where(
    weights: dict[str, str], total: int, words: str
) -> None:
    assert words in " ".join(compare_index(read_index(index(weights, total)), {"x": SHARD}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no shard index"),
        (b"[]", "no shard index"),
        (b'{"weight_map":{"a":1}}', "no shard index"),
        (b'{"weight_map":{"a":"x","a":"y"}}', "twice"),
        (b'{"weight_map":{"a":"../x"}}', "beside it"),
        (b'{"weight_map":{"a":"/x"}}', "beside it"),
        (b'{"weight_map":{"a":".."}}', "beside it"),
        (b'{"weight_map":{},"metadata":{"a":' + b"[" * 100_000, "no shard index"),
    ],
)
def test_a_hostile_index_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(SafetensorsError, match=words):
        read_index(content)
