"""Schemas that no constrained decoder should be given are refused; honest ones pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engines.constraints import check_schema
from qwenstack.engines.interface import EngineRejected

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=20,
)
KEYWORDS = st.sampled_from(
    [
        "type",
        "items",
        "properties",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "enum",
        "required",
        "pattern",
        "anyOf",
        "allOf",
        "$ref",
        "$defs",
        "minimum",
        "maximum",
        "not",
        "multipleOf",
        "exclusiveMinimum",
        "additionalProperties",
        "const",
        "patternProperties",
    ]
)
SCHEMA_LIKE = st.recursive(
    JSON, lambda inner: st.dictionaries(KEYWORDS, inner, max_size=5), max_leaves=30
)


@given(SCHEMA_LIKE)
def test_any_json_is_accepted_or_refused_and_nothing_else(schema: Any) -> None:
    try:
        check_schema(schema)
    except EngineRejected as refusal:
        assert len(refusal.message) < 1000


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems 3 is above maxItems 2"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "string", "maxLength": 10**6}, "above 2000"),
        ({"enum": []}, "at least one"),
        ({"enum": [str(n) for n in range(50_000)]}, "50000 values"),
        ({"type": "number", "minimum": 2, "maximum": 1}, "no number lies between"),
        ({"type": "number", "minimum": 1, "exclusiveMaximum": 1}, "no number lies between"),
        ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "no multiple of 1"),
        ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}, "no multiple of 7"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "no multiple"),
        ({"type": "nonsense"}, "no JSON type"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "forbids it"),
        ({"properties": {"a": False}, "required": ["a"]}, "required and forbidden"),
        ({"type": "string", "pattern": "(a+)+$"}, "repeats a repetition"),
        ({"type": "string", "pattern": "a{99999}"}, "more than 2000 times"),
        ({"type": "string", "pattern": "["}, "no regular expression"),
        ({"$ref": "https://example.com/schema"}, "leads outside"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "in a circle"),
        ([], "is an object"),
    ],
)
def test_an_impossible_or_explosive_schema_is_refused_with_the_place(
    schema: object, says: str
) -> None:
    with pytest.raises(EngineRejected, match=says):
        check_schema(schema)


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(EngineRejected, match="deeper"):
        check_schema(deep)
    wide = {"properties": {f"p{n}": {"type": "string"} for n in range(5000)}}
    with pytest.raises(EngineRejected, match="parts"):
        check_schema(wide)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        {"type": ["string", "null"], "maxLength": 100},
        {"type": "integer", "minimum": 0, "maximum": 0},
        {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}},
        {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 5},
    ],
)
def test_honest_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(schema)
