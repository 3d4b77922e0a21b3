"""Any body at all gives a call or a refusal, on every OpenAI route; nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.refusals import Refusal
from qwenstack.studio.surfaces.openai_chat import ChatRequest, ChatSurface
from qwenstack.studio.surfaces.openai_completions import CompletionRequest, CompletionsSurface
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingFields, EmbeddingsSurface
from qwenstack.studio.surfaces.openai_errors import refuse
from qwenstack.studio.surfaces.openai_responses import ResponseRequest, ResponsesSurface

Parse = Callable[[bytes, dict[bytes, bytes]], Any]

ROUTES: dict[str, tuple[Parse, type, dict[str, Any]]] = {
    "chat": (
        ChatSurface().parse,
        ChatRequest,
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
    "completions": (CompletionsSurface().parse, CompletionRequest, {"model": "m", "prompt": "x"}),
    "responses": (ResponsesSurface().parse, ResponseRequest, {"model": "m", "input": "x"}),
    "embeddings": (EmbeddingsSurface().parse, EmbeddingFields, {"model": "m", "input": "x"}),
}

WORDS = st.sampled_from(
    [
        "role", "content", "type", "text", "function", "name", "tools", "user", "assistant", "tool",
        "json_schema", "schema", "image_url", "url", "input_audio", "data", "format", "message",
        "function_call", "function_call_output", "call_id", "output", "reasoning", "input_text",
        "output_text", "summary", "tool_calls", "id", "tool_call_id", "arguments", "mode",
        "allowed_tools", "effort", "none", "low", "auto", "required", "ephemeral", "cache_control",
        "include_usage", "enable_thinking", "", "\u0000", "wav", "base64", "message.output_text",
    ]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=15,
)


def call_or_refusal(parse: Parse, body: bytes) -> None:
    try:
        parse(body, {})
    except Refusal as refusal:
        assert refusal.message
        assert len(refusal.message) < 600
        assert refuse(refusal, "r").status == 400


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_gives_a_call_or_a_refusal(route: str, data: st.DataObject) -> None:
    parse, request, minimal = ROUTES[route]
    names = st.sampled_from([*request.__struct_fields__, "unheard_of"])  # type: ignore[attr-defined]
    fields = data.draw(st.dictionaries(names, JSON, max_size=4))
    call_or_refusal(parse, json.dumps({**minimal, **fields}).encode())


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_call_or_a_refusal(route: str, body: bytes) -> None:
    call_or_refusal(ROUTES[route][0], body)


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.none() | st.text(max_size=3) | st.lists(JSON, max_size=2),
        "tool_calls": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.sampled_from(["a", "b", ""]),
                    "function": st.fixed_dictionaries({"name": WORDS, "arguments": WORDS}),
                }
            ),
            max_size=2,
        ),
        "tool_call_id": st.sampled_from(["a", "b", "c"]),
        "reasoning_content": st.none() | WORDS,
        "refusal": st.none() | WORDS,
    },
)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]),
        "role": st.sampled_from(["system", "developer", "user", "assistant"]),
        "content": st.none() | st.text(max_size=3) | st.lists(JSON, max_size=2),
        "call_id": st.sampled_from(["a", "b", ""]),
        "name": WORDS,
        "arguments": WORDS,
        "output": st.none() | WORDS,
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGE, max_size=4))
def test_any_conversation_gives_a_call_or_a_refusal(conversation: list[Any]) -> None:
    body = json.dumps({"model": "m", "messages": conversation}).encode()
    call_or_refusal(ChatSurface().parse, body)


@settings(max_examples=200, deadline=None)
@given(st.lists(ITEM, max_size=4))
def test_any_items_give_a_call_or_a_refusal(items: list[Any]) -> None:
    body = json.dumps({"model": "m", "input": items}).encode()
    call_or_refusal(ResponsesSurface().parse, body)
