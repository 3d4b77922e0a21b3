"""The JSON door: any bytes give a value or a Refusal that says what to change."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.surfaces.json_body import check_free_form, decode, shorten, show


class Inner(msgspec.Struct):
    size: int


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: list[Inner] = []
    ratio: float | None = None
    schema: dict[str, Any] = {}
    weights: dict[str, float] = {}


DECODER = msgspec.json.Decoder(Body)


def refused(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(DECODER, body)
    assert caught.value.kind is RefusalKind.INVALID_REQUEST
    assert len(caught.value.message) < 400
    return caught.value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_refusal(body: bytes) -> None:
    try:
        decode(DECODER, body)
    except Refusal as refusal:
        assert refusal.message


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_json_is_a_value_or_a_refusal(value: object) -> None:
    for document in (value, {"name": value}, {"name": "x", "inner": value}):
        try:
            decode(DECODER, json.dumps(document).encode())
        except Refusal as refusal:
            assert refusal.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"name":"\xff"}',
        b'{"\xff":1}',
        b'{"name":"\xed\xa0\x80"}',
        b'{"name":"\\ud800"}',
        b'{"name":"x","ratio":NaN}',
        b'{"name":"x","ratio":Infinity}',
        b'{"name":"x","ratio":1e400}',
        b'{"name":"x","ratio":' + b"9" * 100_000 + b"}",
        b'\xef\xbb\xbf{"name":"x"}',
        b'{"name":"x"} trailing',
        b'{"name":"x","schema":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b"[" * 100_000,
        b"null",
        b"[]",
    ],
)
def test_malformed_bodies_are_refused(body: bytes) -> None:
    refused(body)


def test_an_empty_body_is_called_empty() -> None:
    assert "empty" in refused(b"").message
    assert "empty" in refused(b"  \n").message


def test_invalid_utf8_is_called_so() -> None:
    assert "UTF-8" in refused(b'{"name":"\xff"}').message


def test_a_wrong_type_names_field_and_value() -> None:
    refusal = refused(b'{"name":"x","inner":[{"size":1},{"size":"big"}]}')
    assert refusal.param == "inner[1].size"
    assert '"big"' in refusal.message
    assert "inner[1].size" in refusal.message


def test_a_wrong_value_in_a_map_names_the_map() -> None:
    refusal = refused(b'{"name":"x","weights":{"7":"heavy"}}')
    assert refusal.param == "weights[...]"


def test_an_unknown_field_is_named_as_openai_does() -> None:
    refusal = refused(b'{"name":"x","colour":1}')
    assert refusal.message == "Unrecognized request argument supplied: colour"
    assert refusal.param == "colour"


def test_a_missing_field_is_named() -> None:
    refusal = refused(b'{"name":"x","inner":[{}]}')
    assert refusal.param == "inner[0].size"
    assert refusal.message == "Missing required parameter: 'inner[0].size'."


def test_an_unbounded_field_name_is_cut() -> None:
    refusal = refused(b'{"' + b"k" * 100_000 + b'":1}')
    assert len(refusal.param or "") <= 81


def test_an_unbounded_value_is_cut() -> None:
    refusal = refused(b'{"name":"x","ratio":"' + b"v" * 100_000 + b'"}')
    assert "…" in refusal.message


def test_the_last_of_two_equal_keys_counts() -> None:
    assert decode(DECODER, b'{"name":"first","name":"last"}').name == "last"


def test_free_form_values_are_bounded_in_depth_and_number() -> None:
    deep: Any = 1
    for _ in range(70):
        deep = {"a": deep}
    with pytest.raises(Refusal, match="levels deep") as caught:
        check_free_form(deep, "schema")
    assert caught.value.param == "schema"
    with pytest.raises(Refusal, match="more than 20000 values"):
        check_free_form({"enum": list(range(20_001))}, "schema")
    check_free_form({"a": [{"b": list(range(1000))}]}, "schema")


def test_shown_values_are_cut() -> None:
    assert show("x" * 1000) == '"' + "x" * 79 + "…"
    assert show([1, 2]) == "[1,2]"
    assert show(10**30)
    assert len(show("\u0000" * 1000)) <= 81
    assert shorten("x" * 100).endswith("…")
