"""Any body at all gives a call or a refusal on Anthropic's routes; nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.refusals import Refusal
from qwenstack.studio.surfaces.anthropic import AnthropicMessages, AnthropicTokenCount
from qwenstack.studio.surfaces.anthropic_request import MessagesRequest
from tests.generated_json import json_values

WORDS = [
    "text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document",
    "base64", "url", "ephemeral", "5m", "user", "assistant", "system", "auto", "any", "tool",
    "none", "enabled", "disabled", "adaptive", "object", "json_schema", "custom", "a", "image/png",
    "https://x", "web_search_20250305", "mcp_tool_use", "", "\u0000",
]  # fmt: skip
KEYS = [
    "type", "text", "content", "role", "source", "data", "url", "media_type", "id", "name",
    "input", "tool_use_id", "cache_control", "ttl", "thinking", "signature", "budget_tokens",
    "input_schema", "properties", "format", "schema", "effort", "is_error", "user_id", "display",
]  # fmt: skip
JSON = json_values(WORDS, KEYS)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(WORDS[:7])},
    optional={
        "text": st.text(max_size=3),
        "source": st.just({"type": "base64", "media_type": "image/png", "data": "aGk="}) | JSON,
        "id": st.sampled_from(["a", "b", ""]),
        "tool_use_id": st.sampled_from(["a", "b"]),
        "name": st.sampled_from(["f", ""]),
        "input": st.just({}) | JSON,
        "content": st.text(max_size=2) | JSON,
        "thinking": st.text(max_size=2),
        "signature": st.just(""),
        "data": st.just("x"),
        "cache_control": st.just({"type": "ephemeral"}) | JSON,
        "is_error": st.booleans(),
    },
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=2) | st.lists(BLOCK, max_size=3),
    }
)
MINIMAL = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}


def call_or_refusal(body: bytes) -> None:
    surface, counting = AnthropicMessages(), AnthropicTokenCount()
    for parse in (lambda: surface.parse(body, {}), lambda: counting.parse(body)):
        try:
            parse()
        except Refusal as refusal:
            assert refusal.message
            assert len(refusal.message) < 600
            assert surface.refuse(refusal, "r").status == 400


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*MessagesRequest.__struct_fields__, "unheard_of"]), JSON, max_size=4
    )
)
def test_any_value_in_any_field_gives_a_call_or_a_refusal(fields: dict[str, Any]) -> None:
    call_or_refusal(json.dumps({**MINIMAL, **fields}).encode())


@settings(max_examples=300, deadline=None)
@given(st.lists(TURN, max_size=4))
def test_any_conversation_gives_a_call_or_a_refusal(turns: list[Any]) -> None:
    call_or_refusal(json.dumps({**MINIMAL, "messages": turns}).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_call_or_a_refusal(body: bytes) -> None:
    call_or_refusal(body)


@pytest.mark.parametrize("field", ["messages", "tools", "system", "tool_choice"])
def test_deep_json_is_refused(field: str) -> None:
    body = json.dumps({**MINIMAL, field: None}).replace("null", "[" * 100_000 + "]" * 100_000)
    call_or_refusal(body.encode())
