"""What OpenAI-compatible servers are asked: each dialect in its own words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from qwenstack.core.generation import (
    AudioPart,
    EmbeddingRequest,
    GenerationRequest,
    ImagePart,
    Message,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from qwenstack.engines.interface import EngineRejected
from qwenstack.engines.openai_body import (
    Dialect,
    Wording,
    encode_chat_prompt,
    encode_embeddings,
    encode_generation,
    encode_text_prompt,
)
from qwenstack.engines.openai_settings import OpenAIServer

HELLO = (Message(role="user", content=(TextPart("hello"),)),)
CHAT = GenerationRequest(model="qwen-plus", messages=HELLO)
DIALECTS: list[Dialect] = ["vllm", "sglang", "llama_server", "model_studio", "openai"]


def asked(
    request: GenerationRequest, dialect: Dialect = "openai", **wording: Any
) -> dict[str, Any]:
    body = encode_generation(request, Wording(dialect=dialect, **wording))
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def test_a_plain_chat_asks_for_nothing_but_a_stream_with_usage() -> None:
    assert asked(CHAT) == {
        "model": "qwen-plus",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_server_may_know_the_model_by_another_name() -> None:
    assert asked(CHAT, model="Qwen/Qwen3-8B")["model"] == "Qwen/Qwen3-8B"


def test_a_running_count_is_asked_for_in_the_dialects_words() -> None:
    vllm = asked(CHAT, "vllm", running_usage=True)
    assert vllm["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    llama = asked(CHAT, "llama_server", running_usage=True)
    assert llama["timings_per_token"] is True
    assert llama["stream_options"] == {"include_usage": True}


def test_every_sampling_field_is_sent_under_the_servers_name() -> None:
    sampling = Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=20,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        seed=0,
        logit_bias=((42, -100.0),),
    )
    request = GenerationRequest(
        model="m", messages=HELLO, sampling=sampling, max_tokens=5, n=2, stop=("a", "b")
    )
    vllm, llama = asked(request, "vllm"), asked(request, "llama_server")
    assert vllm["temperature"] == 0.0
    assert vllm["seed"] == 0
    assert (vllm["n"], vllm["max_tokens"], vllm["stop"]) == (2, 5, ["a", "b"])
    assert vllm["logit_bias"] == {"42": -100.0}
    assert vllm["repetition_penalty"] == 1.1
    assert llama["repeat_penalty"] == 1.1
    assert "repetition_penalty" not in llama


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (
            "vllm",
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 100},
        ),
        ("sglang", {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 100}}),
        (
            "llama_server",
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 100},
        ),
        ("model_studio", {"enable_thinking": True, "thinking_budget": 100}),
        ("openai", {"enable_thinking": True, "thinking_budget": 100}),
    ],
)
def test_thinking_is_asked_for_in_the_dialects_words(
    dialect: Dialect, expected: dict[str, Any]
) -> None:
    request = GenerationRequest(model="m", messages=HELLO, thinking=True, thinking_budget=100)
    body = asked(request, dialect)
    fields = {name for name in body if "thinking" in name or name == "chat_template_kwargs"}
    assert {name: body[name] for name in fields} == expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_thinking_left_open_is_not_mentioned(dialect: Dialect) -> None:
    assert b"thinking" not in encode_generation(CHAT, Wording(dialect=dialect))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cache_marker_goes_to_model_studio_only(dialect: Dialect) -> None:
    part = TextPart("long", cache_marker=True)
    request = GenerationRequest(model="m", messages=(Message(role="user", content=(part,)),))
    (sent,) = asked(request, dialect)["messages"][0]["content"]
    if dialect == "model_studio":
        assert sent == {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    else:
        assert sent == {"type": "text", "text": "long"}


def test_a_conversation_with_tools_images_and_audio_arrives_whole() -> None:
    request = GenerationRequest(
        model="m",
        messages=(
            Message(
                role="user",
                content=(TextPart("see"), ImagePart("https://x/y.png"), AudioPart("QUJD", "wav")),
            ),
            Message(
                role="assistant", reasoning="hm", tool_calls=(ToolCall("call_1", "now", "{}"),)
            ),
            Message(role="tool", content=(TextPart("12:00"),), tool_call_id="call_1"),
            Message(role="assistant"),
        ),
        tools=(Tool("now", "the time", {"type": "object"}, strict=True),),
        tool_choice=ToolChoice("named", "now"),
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", "out", {"type": "object"}, strict=True),
        logprobs=2,
    )
    body = asked(request)
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "now", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "call_1"},
        {"role": "assistant", "content": ""},
    ]
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "now",
                "description": "the time",
                "parameters": {"type": "object"},
                "strict": True,
            },
        }
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "now"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "out", "schema": {"type": "object"}, "strict": True},
    }
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


def test_logprobs_of_the_chosen_token_only_ask_for_no_alternatives() -> None:
    body = asked(GenerationRequest(model="m", messages=HELLO, logprobs=0))
    assert body["logprobs"] is True
    assert "top_logprobs" not in body


@pytest.mark.parametrize("prompt", ["once", (1, 2, 3)])
def test_a_raw_prompt_is_sent_as_it_is(prompt: str | tuple[int, ...]) -> None:
    body = asked(GenerationRequest(model="m", prompt=prompt, logprobs=3))
    assert body["prompt"] == (prompt if isinstance(prompt, str) else list(prompt))
    assert body["logprobs"] == 3
    assert "messages" not in body


def test_extra_fields_are_added_as_they_are() -> None:
    body = asked(CHAT, extra={"cache_prompt": True, "nested": {"a": [1]}})
    assert body["cache_prompt"] is True
    assert body["nested"] == {"a": [1]}
    assert body["model"] == "qwen-plus"


def test_embeddings_are_asked_for() -> None:
    request = EmbeddingRequest(model="m", inputs=("a", (1, 2)), dimensions=8)
    assert json.loads(encode_embeddings(request, Wording(dialect="vllm"))) == {
        "model": "m",
        "input": ["a", [1, 2]],
        "encoding_format": "base64",
        "dimensions": 8,
    }
    body = json.loads(encode_embeddings(request, Wording(dialect="model_studio")))
    assert body["encoding_format"] == "float"


def test_counting_a_chat_sends_what_the_template_sees() -> None:
    request = GenerationRequest(
        model="m", messages=HELLO, tools=(Tool("now"),), thinking=False, max_tokens=5
    )
    body = json.loads(encode_chat_prompt(request, Wording(dialect="vllm")))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["tools"][0]["function"]["name"] == "now"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "max_tokens" not in body


def test_counting_text_leaves_out_what_starts_a_prompt() -> None:
    vllm = json.loads(encode_text_prompt("a", "m", Wording(dialect="vllm"), special=False))
    assert vllm == {"model": "m", "prompt": "a", "add_special_tokens": False}
    llama = json.loads(encode_text_prompt("a", "m", Wording(dialect="llama_server"), special=False))
    assert llama == {"content": "a", "add_special": False, "parse_special": True}


# --- Settings -------------------------------------------------------------------------------------


def test_the_key_never_shows_in_what_a_log_would_print() -> None:
    server = OpenAIServer(base_url="http://h:1/v1", region="r", api_key="sk-secret")
    assert "sk-secret" not in repr(server)
    assert "sk-secret" not in f"{server}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_url": "h:1/v1"}, "base_url"),
        ({"base_url": "ftp://h/v1"}, "base_url"),
        ({"base_url": "http://user:pw@h/v1"}, "credentials"),
        ({"base_url": "http://h/v1?x=1"}, "query"),
        ({"base_url": "http://h/v1", "api_key": "a\r\nX-Evil: 1"}, "api_key"),
        ({"base_url": "http://h/v1", "api_key": ""}, "api_key"),
        ({"base_url": "http://h/v1", "idle_s": 0.0}, "idle_s"),
        ({"base_url": "http://h/v1", "max_connections": -1}, "max_connections"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        OpenAIServer(region="r", **fields)
    assert "pw" not in str(caught.value)


def test_routes_beside_the_versioned_ones_are_found() -> None:
    server = OpenAIServer(base_url="https://h/compatible-mode/v1/", region="r")
    assert str(server.url("/chat/completions")) == "https://h/compatible-mode/v1/chat/completions"
    assert str(server.root_url("/health")) == "https://h/compatible-mode/health"


def test_model_studio_is_told_that_several_calls_may_come_since_it_makes_one_unasked() -> None:
    request = msgspec.structs.replace(CHAT, tools=(Tool("now"),))
    assert asked(request, "model_studio")["parallel_tool_calls"] is True
    assert "parallel_tool_calls" not in asked(request, "vllm")
    one = msgspec.structs.replace(request, parallel_tool_calls=False)
    assert asked(one, "model_studio")["parallel_tool_calls"] is False


@pytest.mark.parametrize("sampling", [Sampling(logit_bias=((1, 5.0),)), Sampling(min_p=0.1)])
def test_what_model_studio_would_pass_over_in_silence_is_refused(sampling: Sampling) -> None:
    with pytest.raises(EngineRejected, match="is not had by Model Studio"):
        asked(msgspec.structs.replace(CHAT, sampling=sampling), "model_studio")


def test_llama_server_is_asked_which_stop_text_it_met() -> None:
    request = msgspec.structs.replace(CHAT, stop=("a",))
    assert asked(request, "llama_server")["verbose"] is True
    assert "verbose" not in asked(CHAT, "llama_server")
    assert "verbose" not in asked(request, "vllm")
