"""OpenVINO's decoder is given only schemas that it holds an answer to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engines.interface import EngineRejected
from qwenstack.engines.openvino_schema import check_held
from tests.unit.test_constraints import SCHEMA_LIKE


@given(SCHEMA_LIKE | st.dictionaries(st.text(max_size=8), st.integers()))
def test_any_json_is_accepted_or_refused_and_nothing_else(schema: Any) -> None:
    try:
        check_held(schema, "schema")
    except EngineRejected as refusal:
        assert len(refusal.message) < 1000


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "integer", "multipleOf": 7}, "'multipleOf'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"allOf": [{"type": "string"}]}, "'allOf'"),
        ({"oneOf": [{"type": "string"}]}, "'oneOf'"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "'propertyNames'"),
        ({"$defs": {"a": {}}, "$ref": "#/$defs/a", "maxLength": 3}, "beside '\\$ref'"),
        ({"anyOf": [{"type": "null"}], "type": "object"}, "beside 'anyOf'"),
        ({"type": "string", "pattern": "a+", "minLength": 3}, "beside 'pattern'"),
        ({"type": "string", "format": "email"}, "'format' can only be"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "not among the properties"),
        ({"pattern": "a"}, "without a 'type'"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {}}}}},
            "schema.properties.a.items: 'not'",
        ),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems 2 is above"),
    ],
)
def test_what_would_be_dropped_without_a_word_is_refused_by_name(
    schema: dict[str, Any], says: str
) -> None:
    with pytest.raises(EngineRejected, match=says):
        check_held(schema, "schema")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "enum": ["a", "b"], "description": "a letter"},
        {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "N"},
        {"type": "object", "properties": {"d": {"type": "string", "format": "date"}}},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    ],
)
def test_what_is_held_passes(schema: dict[str, Any]) -> None:
    check_held(schema, "schema")
