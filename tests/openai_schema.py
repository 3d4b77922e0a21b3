"""Holds JSON to OpenAI's published schemas (tests/data/openai-subset.json, its licence beside it).

The document is OpenAPI 3.1 but still writes `nullable` in places, which JSON Schema doesn't know:
it is turned into "or null" here.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec

_DOCUMENT = Path(__file__).parent / "data" / "openai-subset.json"

# OpenAI's own stream sends a null finish_reason until the last chunk; its schema for the legacy
# route describes the whole answer only.
LEGACY_CHUNK = "CreateCompletionResponseChunk"


def _with_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_null(value) for key, value in node.items()}
    if node.pop("nullable", False) is True:
        return {"anyOf": [node, {"type": "null"}]}
    return node


@functools.cache
def _schemas() -> dict[str, Any]:
    document = _with_null(json.loads(_DOCUMENT.read_text()))
    schemas: dict[str, Any] = document["components"]["schemas"]
    chunk = json.loads(json.dumps(schemas["CreateCompletionResponse"]))
    finish = chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]
    chunk["properties"]["choices"]["items"]["properties"]["finish_reason"] = {
        "anyOf": [finish, {"type": "null"}]
    }
    chunk["properties"]["usage"] = {"anyOf": [chunk["properties"]["usage"], {"type": "null"}]}
    schemas[LEGACY_CHUNK] = chunk
    return schemas


@functools.cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": _schemas()}}
    return jsonschema.Draft202012Validator(schema)


@functools.cache
def _event_schemas() -> dict[str, str]:
    names: dict[str, str] = {}
    for name, schema in _schemas().items():
        kinds = schema.get("properties", {}).get("type", {}).get("enum", [])
        if name.startswith("Response") and name.endswith("Event") and len(kinds) == 1:
            names[kinds[0]] = name
    return names


def check(value: Any, name: str) -> None:
    """Raise jsonschema.ValidationError where `value` is not what schema `name` describes."""
    _validator(name).validate(value)


def check_event(value: Any) -> None:
    """The same for an event of the Responses stream, by its own `type`."""
    check(value, _event_schemas()[value["type"]])


def read_sse(data: bytes) -> list[tuple[str | None, Any]]:
    """The (event, JSON) pairs of a stream; the `[DONE]` mark is the JSON text "[DONE]"."""
    events: list[tuple[str | None, Any]] = []
    assert not data or data.endswith(b"\n\n")
    for block in data.split(b"\n\n")[:-1]:
        name: str | None = None
        for line in block.split(b"\n"):
            if line.startswith(b"event: "):
                name = line[7:].decode()
            else:
                assert line.startswith(b"data: ")
                text = line[6:]
        events.append((name, "[DONE]" if text == b"[DONE]" else msgspec.json.decode(text)))
    return events
