"""Chat completions: each field is honoured, without effect, or refused by name; answers fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.generation import (
    AudioPart,
    Delta,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    Sampling,
    Step,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.interface import GenerationSurface
from qwenstack.studio.surfaces.openai_chat import ChatSurface
from tests.generated_steps import fold, generations
from tests.openai_schema import check, read_sse

SURFACE: GenerationSurface = ChatSurface()
USER = {"role": "user", "content": "Hi"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
OTHER_TOOL = {"type": "function", "function": {"name": "clock"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True},
}


def parse(**fields: Any) -> GenerationRequest:
    body = {"model": "qwen-plus", "messages": [USER], **fields}
    return SURFACE.parse(json.dumps(body).encode(), {}).request


def refused(**fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    assert caught.value.kind in (RefusalKind.INVALID_REQUEST, RefusalKind.UNSUPPORTED)
    assert len(caught.value.message) < 500
    return caught.value


@pytest.mark.parametrize(
    "metadata",
    [{str(key): "v" for key in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}],
)
def test_metadata_beyond_openais_bounds_is_refused(metadata: dict[str, str]) -> None:
    assert refused(metadata=metadata).param == "metadata"


def test_a_service_tier_that_there_is_nowhere_is_refused() -> None:
    assert refused(service_tier="express").param == "service_tier"


def messages(*wire: dict[str, Any]) -> tuple[Message, ...]:
    return parse(messages=list(wire)).messages


def test_the_plainest_request_is_read() -> None:
    assert parse() == GenerationRequest(
        model="qwen-plus", messages=(Message(role="user", content=(TextPart("Hi"),)),)
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 10**9}, {"max_tokens": 10**9}),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"n": 8}, {"n": 8}),
        ({"temperature": 0}, {"sampling": Sampling(temperature=0.0)}),
        ({"temperature": 2, "top_p": 1}, {"sampling": Sampling(temperature=2.0, top_p=1.0)}),
        ({"top_k": 20, "min_p": 0.1}, {"sampling": Sampling(top_k=20, min_p=0.1)}),
        ({"top_k": -1}, {"sampling": Sampling(top_k=0)}),
        ({"repetition_penalty": 1.1}, {"sampling": Sampling(repetition_penalty=1.1)}),
        ({"presence_penalty": -2}, {"sampling": Sampling(presence_penalty=-2.0)}),
        ({"frequency_penalty": 2}, {"sampling": Sampling(frequency_penalty=2.0)}),
        ({"seed": 7}, {"sampling": Sampling(seed=7)}),
        (
            {"seed": 7, "temperature": 0.5, "top_k": 1},
            {"sampling": Sampling(seed=7, temperature=0.5, top_k=1)},
        ),
        ({"logit_bias": {"42": -100}}, {"sampling": Sampling(logit_bias=((42, -100.0),))}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"enable_thinking": False}, {"thinking": False}),
        ({"enable_thinking": True, "thinking_budget": 100}, {"thinking_budget": 100}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"thinking": True}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "high"}, {"thinking": True}),
        ({"reasoning_effort": "high", "enable_thinking": True}, {"thinking": True}),
    ],
)
def test_a_field_is_honoured(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = parse(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u1"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "flex"},
        {"prompt_cache_key": "k"},
        {"prompt_cache_options": {"mode": "explicit"}},
        {"prompt_cache_retention": "24h"},
        {"safety_identifier": "s"},
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"result_format": "message"},
        {"incremental_output": True},
        {"enable_search": False},
        {"vl_high_resolution_images": False},
        {"tools": []},
        {"tool_choice": "auto"},
        {"stream": False},
        {"temperature": None, "top_p": None, "n": None, "stop": None, "tools": None},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"audio": None, "prediction": None, "web_search_options": None, "functions": None},
    ],
)
def test_a_field_without_effect_is_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1, "temperature": 3}, "temperature"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": ""}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "m" * 300}, "model"),
        ({"messages": []}, "messages"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"store": True}, "store"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"verbosity": "low"}, "verbosity"),
        ({"enable_search": True}, "enable_search"),
        ({"translation_options": {"target_lang": "en"}}, "translation_options"),
        ({"vl_high_resolution_images": True}, "vl_high_resolution_images"),
        ({"result_format": "text"}, "result_format"),
        ({"stream": True, "incremental_output": False}, "incremental_output"),
        ({"chat_template_kwargs": {"tools_in_user": 1}}, "chat_template_kwargs.tools_in_user"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"thinking_budget": 0}, "thinking_budget"),
        (
            {"thinking_budget": 1, "chat_template_kwargs": {"thinking_budget": 2}},
            "chat_template_kwargs",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": 1}}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": f"t{number}"}}
                    for number in range(129)
                ]
            },
            "tools",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "?", "schema": {}},
                }
            },
            "response_format.json_schema.name",
        ),
    ],
)
def test_a_bad_or_unsupported_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    refusal = refused(**fields)
    assert refusal.param == param
    assert param.split(".")[0].split("[")[0] in refusal.message


def test_an_unknown_field_is_refused_as_openai_does() -> None:
    assert refused(colour="red").message == "Unrecognized request argument supplied: colour"


def test_a_missing_model_or_messages_is_named() -> None:
    for body, param in ((b'{"messages":[]}', "model"), (b'{"model":"m"}', "messages")):
        with pytest.raises(Refusal) as caught:
            SURFACE.parse(body, {})
        assert caught.value.param == param


def test_a_deep_or_huge_tool_schema_is_refused() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"properties": deep}
    for schema in (deep, {"enum": list(range(30_000))}):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        assert refused(tools=[tool]).param == "tools[0].function.parameters"


def test_roles_and_parts_become_ours() -> None:
    assert messages(
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny.", "refusal": None, "annotations": []},
    ) == (
        Message(role="system", content=(TextPart("Be kind."),)),
        Message(role="user", content=(TextPart("a"),), name="ann"),
        Message(role="assistant", reasoning="hm", tool_calls=(ToolCall("c1", "weather", "{}"),)),
        Message(role="tool", content=(TextPart("sunny"),), tool_call_id="c1"),
        Message(role="assistant", content=(TextPart("It is sunny."),)),
    )


def test_images_and_audio_are_read() -> None:
    image = "data:image/png;base64,AAAA"
    parts = [
        {"type": "image_url", "image_url": {"url": "https://a.example/x.png", "detail": "low"}},
        {"type": "image_url", "image_url": image},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "data:;base64,AAAA", "format": "mp3"}},
    ]
    [message] = messages({"role": "user", "content": parts})
    assert message.content == (
        ImagePart("https://a.example/x.png"),
        ImagePart(image),
        AudioPart("AAAA", "wav"),
        AudioPart("AAAA", "mp3"),
    )


def test_cache_markers_are_read() -> None:
    marked = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    openai = {"type": "text", "text": "b", "prompt_cache_breakpoint": {"mode": "explicit"}}
    [message] = messages({"role": "user", "content": [marked, openai]})
    assert message.content == (TextPart("a", True), TextPart("b", True))
    assert refused(messages=[{"role": "user", "content": [marked] * 5}]).param == "cache_control"


@pytest.mark.parametrize(
    ("wire", "param"),
    [
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "assistant", "content": "x", "partial": True}, "messages[0].partial"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": "c9"}, "messages[0].tool_call_id"),
        (
            {"role": "user", "content": [{"type": "video_url", "video_url": "x"}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "size": 1}]},
            "messages[0].content[0].size",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}],
            },
            "messages[0].content[0].input_audio.data",
        ),
        (
            {
                "role": "system",
                "content": [{"type": "image_url", "image_url": "https://a.example/x"}],
            },
            "messages[0].content[0].type",
        ),
    ],
)
def test_a_bad_message_is_refused_by_its_place(wire: dict[str, Any], param: str) -> None:
    assert refused(messages=[wire]).param == param


def test_tool_choices_are_read() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    tools = [TOOL, OTHER_TOOL]
    assert parse(tools=tools).tool_choice == ToolChoice()
    assert parse(tools=tools, tool_choice="required").tool_choice == ToolChoice("required")
    assert parse(tools=tools, tool_choice=named).tool_choice == ToolChoice("named", "weather")
    request = parse(tools=tools, tool_choice=allowed)
    assert [tool.name for tool in request.tools] == ["weather"]
    assert request.tool_choice == ToolChoice("required")


def test_a_json_schema_is_read() -> None:
    response_format = parse(response_format=FORMAT).response_format
    assert (response_format.name, response_format.strict) == ("city", True)
    assert response_format.schema == {"type": "object"}
    assert parse(response_format={"type": "json_object"}).response_format.type == "json_object"


def test_no_message_repeats_unbounded_input() -> None:
    huge = "x" * 100_000
    for fields in ({"stop": [huge]}, {"model": huge}, {"tool_choice": huge}, {huge: 1}):
        refused(**fields)


def stream(steps: list[Step], **fields: Any) -> list[Any]:
    body = {"model": "qwen-plus", "messages": [USER], "stream": True, **fields}
    call = SURFACE.parse(json.dumps(body).encode(), {})
    assert call.stream
    encoder = SURFACE.encoder(call, "req_7", 1_700_000_000)
    data = encoder.start() + b"".join(
        [encoder.finish(step) if step.final else encoder.step(step) for step in steps]
    )
    return [event for _, event in read_sse(data)]


HELLO = [
    Step((Delta(reasoning="hm"),)),
    Step((Delta(text="Hel"), Delta(text='lo "\n"'))),
    Step((Delta(finish=FinishReason.STOP),), TokenUsage(5, 4, cached=2, reasoning=1), final=True),
]


def test_a_stream_has_role_thoughts_text_finish_and_end() -> None:
    events = stream(HELLO)
    assert events.pop() == "[DONE]"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}
    texts = [event["choices"][0]["delta"].get("content", "") for event in events[2:]]
    assert texts == ["Hel", 'lo "\n"', ""]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in event for event in events)
    assert {event["id"] for event in events} == {"chatcmpl-req_7"}


def test_usage_comes_once_and_only_when_asked_for() -> None:
    events = stream(HELLO, stream_options={"include_usage": True})
    assert [event["usage"] for event in events[:-2]] == [None] * 5
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def test_explicit_cache_figures_are_marked_ephemeral() -> None:
    step = Step((), TokenUsage(100, 1, cached_explicit=40, cache_creation=10), final=True)
    usage = stream([step], stream_options={"include_usage": True})[-2]["usage"]
    assert usage["prompt_tokens_details"] == {
        "cached_tokens": 40,
        "cache_creation_input_tokens": 10,
        "cache_type": "ephemeral",
    }


def test_tool_calls_stream_in_pieces() -> None:
    steps = [
        Step((Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", ""),)),)),
        Step((Delta(tool_calls=(ToolCallDelta(0, arguments='{"a"'),)),)),
        Step((Delta(tool_calls=(ToolCallDelta(0, arguments=":1}"),)),)),
        Step((Delta(finish=FinishReason.TOOL_CALLS),), TokenUsage(1, 1), final=True),
    ]
    events = stream(steps)
    pieces = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[1:4]]
    assert pieces[0] == {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert pieces[1] == {"index": 0, "function": {"arguments": '{"a"'}}
    assert events[4]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_broken_stream_has_no_done() -> None:
    call = SURFACE.parse(
        json.dumps({"model": "m", "messages": [USER], "stream": True}).encode(), {}
    )
    encoder = SURFACE.encoder(call, "req_7", 1)
    data = encoder.start() + encoder.step(Step((Delta(text="a"),)))
    data += encoder.fail(Refusal(RefusalKind.ENGINE_FAILED, "It died."))
    assert read_sse(data)[-1][1]["error"]["code"] == "ModelServingError"


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_every_chunk_and_answer_fits_the_schema_and_both_say_the_same(
    data: st.DataObject, n: int, include_usage: bool
) -> None:
    steps = data.draw(generations(choices=n))
    events = stream(steps, n=n, stream_options={"include_usage": include_usage})
    assert events.pop() == "[DONE]"
    texts, thoughts, calls, ends = [""] * n, [""] * n, [""] * n, [""] * n
    for event in events:
        check(event, "CreateChatCompletionStreamResponse")
        for choice in event["choices"]:
            index, delta = choice["index"], choice["delta"]
            texts[index] += delta.get("content") or ""
            thoughts[index] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                calls[index] += call["function"]["arguments"]
            ends[index] += choice["finish_reason"] or ""
    completion = fold(steps)
    call = SURFACE.parse(json.dumps({"model": "m", "messages": [USER], "n": n}).encode(), {})
    answer = json.loads(SURFACE.encode(call, completion, "req_1", 1_700_000_000))
    check(answer, "CreateChatCompletionResponse")
    for choice in answer["choices"]:
        index, message = choice["index"], choice["message"]
        assert (message["content"] or "") == texts[index]
        assert message.get("reasoning_content", "") == thoughts[index]
        assert choice["finish_reason"] == ends[index]
        whole = [call["function"]["arguments"] for call in message.get("tool_calls", [])]
        assert sorted("".join(whole)) == sorted(calls[index])
    assert (events[-1].get("usage") == answer["usage"]) is include_usage
