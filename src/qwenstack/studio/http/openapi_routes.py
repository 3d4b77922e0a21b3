"""What the published document says of each route: bodies, answers, queries and errors.

The router decides what is served; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from qwenstack.studio.http.admin import PREFIX as ADMIN_PREFIX
from qwenstack.studio.http.admin import ROUTES as ADMIN_ROUTES
from qwenstack.studio.http.batches import (
    BatchList,
    BatchObject,
    DeletedFile,
    FileList,
    FileObject,
    NewBatch,
)
from qwenstack.studio.http.health import Alive, Readiness
from qwenstack.studio.http.prefixes import ANTHROPIC_PREFIXES, DASHSCOPE_PREFIX, OPENAI_PREFIXES
from qwenstack.studio.surfaces.anthropic import MessageAnswer, TokenCount
from qwenstack.studio.surfaces.anthropic_request import MessagesRequest, PromptFields
from qwenstack.studio.surfaces.dashscope import EmbeddingAnswer as DashScopeVectors
from qwenstack.studio.surfaces.dashscope import EmbeddingBody
from qwenstack.studio.surfaces.dashscope_answer import GenerationAnswer
from qwenstack.studio.surfaces.dashscope_request import DashScopeRequest
from qwenstack.studio.surfaces.openai_chat import ChatAnswer, ChatRequest
from qwenstack.studio.surfaces.openai_completions import CompletionAnswer, CompletionRequest
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingAnswer, EmbeddingFields
from qwenstack.studio.surfaces.openai_models import ModelCard, ModelList
from qwenstack.studio.surfaces.openai_response_answer import Echo, Outcome
from qwenstack.studio.surfaces.openai_responses import ResponseRequest
from qwenstack.studio.usage import UsageLine

Errors = Literal["openai", "anthropic", "dashscope"]


class Published(msgspec.Struct, frozen=True):
    """One operation.

    `answer` are the structs that its JSON answer has the fields of, together; none where `media`
    says what else comes. `streams`: it may answer with server-sent events. `form`: the body is an
    uploaded file. `errors` None: it refuses nothing. `open`: it needs no key.
    `runs`: a model is asked. `not_now` is the struct of its answer 503, where that is no refusal.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    answer: tuple[Any, ...] = ()
    body: Any = None
    query: tuple[str, ...] = ()
    media: str = "application/json"
    errors: Errors | None = "openai"
    streams: bool = False
    runs: bool = False
    form: bool = False
    open: bool = False
    not_now: Any = None


def published() -> Iterator[Published]:
    """Every operation, under every path that it is served at."""
    yield from _OPERATIONS
    for prefix in OPENAI_PREFIXES:
        for each in _OPENAI:
            yield replace(each, path=prefix + each.path)
    for prefix in ANTHROPIC_PREFIXES:
        for each in _ANTHROPIC:
            yield replace(each, path=prefix + each.path)
    for each in _DASHSCOPE:
        yield replace(each, path=DASHSCOPE_PREFIX + each.path)
    for route in ADMIN_ROUTES:
        path = ADMIN_PREFIX + route.path
        yield Published(route.method, path, route.summary, (route.answer,), route.body, route.query)


_OPERATIONS = (
    Published("GET", "/healthz", "Whether the process lives", (Alive,), errors=None, open=True),
    Published(
        "GET",
        "/readyz",
        "Whether requests will be served",
        (Readiness,),
        errors=None,
        open=True,
        not_now=Readiness,
    ),
    Published("GET", "/openapi.json", "This document", (dict[str, Any],), errors=None, open=True),
    Published(
        "GET",
        "/metrics",
        "Metrics for Prometheus, in its text format or OpenMetrics as asked",
        media="text/plain",
        open=True,
    ),
)
_CHAT = Published(
    "POST",
    "/chat/completions",
    "OpenAI chat completion",
    (ChatAnswer,),
    ChatRequest,
    streams=True,
    runs=True,
)
_OPENAI = (
    _CHAT,
    replace(
        _CHAT,
        path="/completions",
        summary="OpenAI text completion",
        answer=(CompletionAnswer,),
        body=CompletionRequest,
    ),
    replace(
        _CHAT,
        path="/responses",
        summary="OpenAI response",
        answer=(Outcome, Echo),
        body=ResponseRequest,
    ),
    Published(
        "POST", "/embeddings", "OpenAI embeddings", (EmbeddingAnswer,), EmbeddingFields, runs=True
    ),
    Published("GET", "/models", "List models", (ModelList,)),
    Published("GET", "/models/{model}", "Show a model", (ModelCard,)),
    Published(
        "GET",
        "/usage",
        "Usage of the calling key's workspace",
        (list[UsageLine],),
        query=("key", "by", "start", "end"),
    ),
    Published("POST", "/files", "Upload a file", (FileObject,), form=True),
    Published("GET", "/files", "List files", (FileList,), query=("purpose", "after", "limit")),
    Published("GET", "/files/{file}", "Show a file", (FileObject,)),
    Published("GET", "/files/{file}/content", "A file's content", media="application/jsonl"),
    Published("DELETE", "/files/{file}", "Delete a file", (DeletedFile,)),
    Published("POST", "/batches", "Create a batch", (BatchObject,), NewBatch),
    Published("GET", "/batches", "List batches", (BatchList,), query=("after", "limit")),
    Published("GET", "/batches/{batch}", "Show a batch", (BatchObject,)),
    Published("POST", "/batches/{batch}/cancel", "Cancel a batch", (BatchObject,)),
)
_ANTHROPIC = (
    replace(
        _CHAT,
        path="/messages",
        summary="Anthropic message",
        answer=(MessageAnswer,),
        body=MessagesRequest,
        errors="anthropic",
    ),
    Published(
        "POST",
        "/messages/count_tokens",
        "Count the tokens of an Anthropic message",
        (TokenCount,),
        PromptFields,
        errors="anthropic",
        runs=True,
    ),
)
_GENERATION = replace(
    _CHAT,
    path="/aigc/text-generation/generation",
    summary="DashScope generation",
    answer=(GenerationAnswer,),
    body=DashScopeRequest,
    errors="dashscope",
)
_DASHSCOPE = (
    _GENERATION,
    replace(
        _GENERATION,
        path="/aigc/multimodal-generation/generation",
        summary="DashScope multimodal generation",
    ),
    Published(
        "POST",
        "/embeddings/text-embedding/text-embedding",
        "DashScope embeddings",
        (DashScopeVectors,),
        EmbeddingBody,
        errors="dashscope",
        runs=True,
    ),
)
