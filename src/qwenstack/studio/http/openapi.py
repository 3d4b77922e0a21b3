"""The published OpenAPI document, made from the structs that are read and written."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, cast, get_args

import msgspec

from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.openapi_routes import Errors, Published, published
from qwenstack.studio.surfaces import anthropic_errors, dashscope_errors, openai_errors
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.usage import Grouping

Schema = dict[str, Any]

_ERRORS: dict[Errors, Any] = {
    "openai": openai_errors,
    "anthropic": anthropic_errors,
    "dashscope": dashscope_errors,
}
# What an operation that runs no model can be refused with.
_PLAIN_STATUSES = frozenset({400, 401, 403, 404, 405, 409, 413, 500, 503})
_SURFACES = b"qwenstack.studio.surfaces."
_TEXT: Schema = {"type": "string"}
_EVENTS: Schema = {
    "description": "Server-sent events in the vendor's shapes; comments are signs of life."
}
_QUERY: dict[str, Schema] = {
    "by": {"type": "string", "enum": list(get_args(Grouping))},
    "key": {"type": "string", "const": "self"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "start": {"type": "string", "description": "ISO 8601; UTC unless it says"},
    "end": {"type": "string", "description": "ISO 8601; UTC unless it says"},
    "month": {"type": "string", "description": "As 2026-11"},
}
_FORM: Schema = {
    "type": "object",
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
    },
    "required": ["purpose", "file"],
}
_REQUEST_ID: Schema = {"x-request-id": {"schema": _TEXT, "description": "Ours, never the client's"}}
_RETRY: Schema = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds"}}
_STREAM_HEADER: Schema = {
    "name": "X-DashScope-SSE",
    "in": "header",
    "description": "Asks for a stream",
    "schema": {"type": "string", "enum": ["enable", "disable"]},
}


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    operations = list(published())
    schemas, components = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, schemas)
    made = {
        "openapi": "3.1.0",
        "info": {"title": "QwenStack", "version": "1", "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": dict(_refusals(schemas)),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"key": []}, {"x-api-key": []}],
    }
    # Structs of one name in several modules are told apart by them; ours need no longer path.
    text = msgspec.json.encode(made).replace(_SURFACES, b"")
    return cast(dict[str, Any], msgspec.json.decode(text))


async def serve_document(exchange: Exchange) -> None:
    """GET /openapi.json."""
    await exchange.reply(Reply(200, msgspec.json.encode(document())))


def _schemas(operations: list[Published]) -> tuple[dict[str, Schema], Schema]:
    """A reference for each type that an operation names, and what they refer to."""
    kinds: dict[str, Any] = {repr(each.ErrorBody): each.ErrorBody for each in _ERRORS.values()}
    for operation in operations:
        for kind in (*operation.answer, operation.body, operation.not_now):
            if kind is not None:
                kinds[repr(kind)] = kind
    references, components = msgspec.json.schema_components(
        kinds.values(), schema_hook=_any, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(kinds, references, strict=True)), components


def _any(_kind: type) -> Schema:
    """The schema of a field that takes any JSON, since it is refused or passed on unread."""
    return {"description": "Any JSON."}


def _refusals(schemas: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    for name, errors in _ERRORS.items():
        for status in errors.statuses():
            answer = _answer(
                "Refused: the message says why, and what to do",
                {"application/json": {"schema": schemas[repr(errors.ErrorBody)]}},
            )
            if status in (429, 503, 529):
                answer["headers"] |= _RETRY
            yield f"{name}_{status}", answer


def _operation(each: Published, schemas: dict[str, Schema]) -> Schema:
    operation: Schema = {
        "operationId": _operation_id(each),
        "summary": each.summary,
        "parameters": _parameters(each),
        "responses": _responses(each, schemas),
    }
    if each.open:
        operation["security"] = []
    if each.form:
        operation["requestBody"] = _body("multipart/form-data", _FORM)
    elif each.body is not None:
        operation["requestBody"] = _body("application/json", schemas[repr(each.body)])
    return operation


def _operation_id(each: Published) -> str:
    words = [word.strip("{}") for word in re.split(r"[/.]", each.path) if word]
    return "_".join([each.method.lower(), *words]).replace("-", "_")


def _parameters(each: Published) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", each.path)
    ]
    for name in each.query:
        parameters.append({"name": name, "in": "query", "schema": _QUERY.get(name, _TEXT)})
    if each.streams and each.errors == "dashscope":
        parameters.append(_STREAM_HEADER)
    return parameters


def _responses(each: Published, schemas: dict[str, Schema]) -> Schema:
    answers = [schemas[repr(kind)] for kind in each.answer]
    content: Schema
    if answers:
        content = {each.media: {"schema": answers[0] if len(answers) == 1 else {"allOf": answers}}}
    else:
        content = {each.media: {"schema": _TEXT}}
    if each.streams:
        content["text/event-stream"] = {"schema": _EVENTS}
    responses: Schema = {"200": _answer("Done", content)}
    if each.not_now is not None:
        content = {"application/json": {"schema": schemas[repr(each.not_now)]}}
        responses["503"] = _answer("Not now", content)
    if each.errors is not None:
        for status in _ERRORS[each.errors].statuses():
            if each.runs or status in _PLAIN_STATUSES:
                name = f"{each.errors}_{status}"
                responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return responses


def _answer(description: str, content: Schema) -> Schema:
    return {"description": description, "headers": dict(_REQUEST_ID), "content": content}


def _body(media: str, schema: Schema) -> Schema:
    return {"required": True, "content": {media: {"schema": schema}}}
