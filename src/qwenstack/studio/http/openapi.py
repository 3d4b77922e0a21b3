"""The published OpenAPI document, made from the structs that requests are read with."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from qwenstack.studio.http.admin import PREFIX, ROUTES
from qwenstack.studio.http.batches import NewBatch
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.surfaces.anthropic_request import MessagesRequest
from qwenstack.studio.surfaces.dashscope import EmbeddingBody
from qwenstack.studio.surfaces.dashscope_request import DashScopeRequest
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.openai_chat import ChatRequest
from qwenstack.studio.surfaces.openai_completions import CompletionRequest
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingFields
from qwenstack.studio.surfaces.openai_responses import ResponseRequest

_DASHSCOPE = "/api/v1/services"
_INFERENCE: tuple[tuple[str, str, Any], ...] = (
    ("/v1/chat/completions", "OpenAI chat completion", ChatRequest),
    ("/v1/completions", "OpenAI text completion", CompletionRequest),
    ("/v1/responses", "OpenAI response", ResponseRequest),
    ("/v1/embeddings", "OpenAI embeddings", EmbeddingFields),
    ("/v1/batches", "Create a batch", NewBatch),
    ("/v1/messages", "Anthropic message", MessagesRequest),
    (f"{_DASHSCOPE}/aigc/text-generation/generation", "DashScope generation", DashScopeRequest),
    (
        f"{_DASHSCOPE}/aigc/multimodal-generation/generation",
        "DashScope multimodal generation",
        DashScopeRequest,
    ),
    (
        f"{_DASHSCOPE}/embeddings/text-embedding/text-embedding",
        "DashScope embeddings",
        EmbeddingBody,
    ),
)
_READING: tuple[tuple[str, str], ...] = (
    ("/v1/models", "List models"),
    ("/v1/usage", "Usage of the calling key's workspace"),
    ("/v1/models/{model}", "Show a model"),
    ("/v1/files", "List files"),
    ("/v1/files/{file}", "Show a file"),
    ("/v1/batches", "List batches"),
    ("/v1/batches/{batch}", "Show a batch"),
    ("/healthz", "Whether the process lives"),
    ("/readyz", "Whether requests will be served"),
)


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    bodies = [each.body for each in ROUTES if each.body is not None]
    answers = [each.answer for each in ROUTES]
    requests = [kind for _, _, kind in _INFERENCE]
    kinds = [*bodies, *answers, *requests]
    schemas, components = msgspec.json.schema_components(
        kinds, schema_hook=_any, ref_template="#/components/schemas/{name}"
    )
    known = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for path, summary, kind in _INFERENCE:
        paths.setdefault(path, {})["post"] = _operation(path, summary, known[repr(kind)], None)
    for path, summary in _READING:
        paths.setdefault(path, {})["get"] = _operation(path, summary, None, None)
    for route in ROUTES:
        body = None if route.body is None else known[repr(route.body)]
        operation = _operation(
            PREFIX + route.path, route.summary, body, known[repr(route.answer)], route.query
        )
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "QwenStack", "version": "1", "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _any(_kind: type) -> dict[str, Any]:
    """The schema of a field that takes any JSON, since it is refused or passed on unread."""
    return {"description": "Any JSON."}


async def serve_document(exchange: Exchange) -> None:
    """GET /openapi.json."""
    await exchange.reply(Reply(200, msgspec.json.encode(document())))


def _operation(
    path: str,
    summary: str,
    body: dict[str, Any] | None,
    answer: dict[str, Any] | None,
    query: tuple[str, ...] = (),
) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ] + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in query]
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "Done",
                "content": {"application/json": {"schema": answer or {}}},
            },
            "4XX": {
                "description": "Refused: the message says why and what to do",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "503": {
                "description": "Not now: see Retry-After",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
        },
    }
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return operation
