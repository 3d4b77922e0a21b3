"""What the published document says of each route: bodies, answers, queries and errors.

The router decides what is served; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

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


class Published(msgspec.Struct, frozen=True, kw_only=True):
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
    streams: bool = False
    form: bool = False
    errors: Errors | None = "openai"
    open: bool = False
    runs: bool = False
    not_now: Any = None


def published() -> Iterator[Published]:
    """Every operation, under every path that it is served at."""
    yield from _OPERATIONS
    for prefix in OPENAI_PREFIXES:
        for each in _OPENAI:
            yield msgspec.structs.replace(each, path=prefix + each.path)
    for prefix in ANTHROPIC_PREFIXES:
        for each in _ANTHROPIC:
            yield msgspec.structs.replace(each, path=prefix + each.path)
    for each in _DASHSCOPE:
        yield msgspec.structs.replace(each, path=DASHSCOPE_PREFIX + each.path)
    for route in ADMIN_ROUTES:
        yield Published(
            method=route.method,
            path=ADMIN_PREFIX + route.path,
            summary=route.summary,
            answer=(route.answer,),
            body=route.body,
            query=route.query,
        )


_OPERATIONS = (
    Published(
        method="GET",
        path="/healthz",
        summary="Whether the process lives",
        answer=(Alive,),
        errors=None,
        open=True,
    ),
    Published(
        method="GET",
        path="/readyz",
        summary="Whether requests will be served",
        answer=(Readiness,),
        errors=None,
        open=True,
        not_now=Readiness,
    ),
    Published(
        method="GET",
        path="/openapi.json",
        summary="This document",
        answer=(dict[str, Any],),
        errors=None,
        open=True,
    ),
    Published(
        method="GET",
        path="/metrics",
        summary="Metrics for Prometheus, in its text format or OpenMetrics as asked",
        media="text/plain",
        open=True,
    ),
)
_OPENAI = (
    Published(
        method="POST",
        path="/chat/completions",
        summary="OpenAI chat completion",
        answer=(ChatAnswer,),
        body=ChatRequest,
        streams=True,
        runs=True,
    ),
    Published(
        method="POST",
        path="/completions",
        summary="OpenAI text completion",
        answer=(CompletionAnswer,),
        body=CompletionRequest,
        streams=True,
        runs=True,
    ),
    Published(
        method="POST",
        path="/responses",
        summary="OpenAI response",
        answer=(Outcome, Echo),
        body=ResponseRequest,
        streams=True,
        runs=True,
    ),
    Published(
        method="POST",
        path="/embeddings",
        summary="OpenAI embeddings",
        answer=(EmbeddingAnswer,),
        body=EmbeddingFields,
        runs=True,
    ),
    Published(method="GET", path="/models", summary="List models", answer=(ModelList,)),
    Published(method="GET", path="/models/{model}", summary="Show a model", answer=(ModelCard,)),
    Published(
        method="GET",
        path="/usage",
        summary="Usage of the calling key's workspace",
        answer=(list[UsageLine],),
        query=("key", "by", "start", "end"),
    ),
    Published(
        method="POST", path="/files", summary="Upload a file", answer=(FileObject,), form=True
    ),
    Published(
        method="GET",
        path="/files",
        summary="List files",
        answer=(FileList,),
        query=("purpose", "after", "limit"),
    ),
    Published(method="GET", path="/files/{file}", summary="Show a file", answer=(FileObject,)),
    Published(
        method="GET",
        path="/files/{file}/content",
        summary="A file's content",
        media="application/jsonl",
    ),
    Published(
        method="DELETE", path="/files/{file}", summary="Delete a file", answer=(DeletedFile,)
    ),
    Published(
        method="POST",
        path="/batches",
        summary="Create a batch",
        answer=(BatchObject,),
        body=NewBatch,
    ),
    Published(
        method="GET",
        path="/batches",
        summary="List batches",
        answer=(BatchList,),
        query=("after", "limit"),
    ),
    Published(method="GET", path="/batches/{batch}", summary="Show a batch", answer=(BatchObject,)),
    Published(
        method="POST",
        path="/batches/{batch}/cancel",
        summary="Cancel a batch",
        answer=(BatchObject,),
    ),
)
_ANTHROPIC = (
    Published(
        method="POST",
        path="/messages",
        summary="Anthropic message",
        answer=(MessageAnswer,),
        body=MessagesRequest,
        streams=True,
        runs=True,
        errors="anthropic",
    ),
    Published(
        method="POST",
        path="/messages/count_tokens",
        summary="Count the tokens of an Anthropic message",
        answer=(TokenCount,),
        body=PromptFields,
        runs=True,
        errors="anthropic",
    ),
)
_DASHSCOPE = (
    Published(
        method="POST",
        path="/aigc/text-generation/generation",
        summary="DashScope generation",
        answer=(GenerationAnswer,),
        body=DashScopeRequest,
        streams=True,
        runs=True,
        errors="dashscope",
    ),
    Published(
        method="POST",
        path="/aigc/multimodal-generation/generation",
        summary="DashScope multimodal generation",
        answer=(GenerationAnswer,),
        body=DashScopeRequest,
        streams=True,
        runs=True,
        errors="dashscope",
    ),
    Published(
        method="POST",
        path="/embeddings/text-embedding/text-embedding",
        summary="DashScope embeddings",
        answer=(DashScopeVectors,),
        body=EmbeddingBody,
        runs=True,
        errors="dashscope",
    ),
)
