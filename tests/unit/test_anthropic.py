"""Anthropic's Messages surface: what is read of a request, and how answers are written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from qwenstack.core.generation import (
    Choice,
    Completion,
    Delta,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    ResponseFormat,
    Step,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.anthropic import AnthropicMessages, AnthropicTokenCount
from tests.generated_steps import fold, generations
from tests.openai_schema import read_sse

SURFACE = AnthropicMessages()
USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
MARK = {"type": "ephemeral"}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 9, "messages": [USER], **fields}).encode()


def read(**fields: Any) -> GenerationRequest:
    return SURFACE.parse(body(**fields), {}).request


def refused(**fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(**fields)
    return caught.value


@pytest.mark.parametrize("kind", ["any", "tool"])
def test_thinking_and_a_forced_tool_are_refused_together_as_the_vendor_does(kind: str) -> None:
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    choice = {"type": kind, **({"name": "f"} if kind == "tool" else {})}
    for thinking in ({"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}):
        fields = {"tools": tools, "thinking": thinking, "max_tokens": 2000}
        assert "forces tool use" in refused(tool_choice=choice, **fields).message
        assert read(tool_choice={"type": "auto"}, **fields).thinking
    read(tools=tools, tool_choice=choice, thinking={"type": "disabled"})


def test_the_smallest_request() -> None:
    call = SURFACE.parse(body(), {})
    assert call.request == GenerationRequest(
        model="m", messages=(Message(role="user", content=(TextPart("Hi"),)),), max_tokens=9
    )
    assert call.stream is False


def test_a_system_prompt_comes_first_as_text_or_blocks() -> None:
    assert read(system="Be kind.").messages[0] == Message(
        role="system", content=(TextPart("Be kind."),)
    )
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": MARK}]
    assert read(system=blocks).messages[0].content == (TextPart("a"), TextPart("b", True))
    assert read(system="").messages[0].role == "user"


def test_tool_results_become_messages_in_their_order() -> None:
    messages = read(
        messages=[
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1]}},
                    {"type": "tool_use", "id": "2", "name": "g", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "first"},
                    {"type": "tool_result", "tool_use_id": "2", "content": "two"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "1",
                        "content": [{"type": "text", "text": "one"}],
                        "cache_control": MARK,
                    },
                    {"type": "text", "text": "last"},
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a"}},
                ],
            },
        ]
    ).messages
    assert messages[1:] == (
        Message(
            role="assistant",
            content=(TextPart("I look."),),
            reasoning="Hm.",
            tool_calls=(ToolCall("1", "f", '{"a":[1]}'), ToolCall("2", "g", "{}")),
        ),
        Message(role="user", content=(TextPart("first"),)),
        Message(role="tool", content=(TextPart("two"),), tool_call_id="2"),
        Message(role="tool", content=(TextPart("one", True),), tool_call_id="1"),
        Message(role="user", content=(TextPart("last"), ImagePart("https://example.org/a"))),
    )


def test_a_failed_tool_without_words_says_so() -> None:
    asked = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "is_error": True}
    messages = read(
        messages=[
            USER,
            {"role": "assistant", "content": [asked]},
            {"role": "user", "content": [result]},
        ]
    ).messages
    assert messages[2].text == "The tool failed."


def test_an_image_in_the_request() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    [message] = read(
        messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]
    ).messages
    assert message.content == (ImagePart("data:image/png;base64,aGk="),)


@pytest.mark.parametrize(
    ("choice", "ours", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "f"}, ToolChoice("named", "f"), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_tool_choices(choice: dict[str, Any], ours: ToolChoice, parallel: bool) -> None:
    request = read(tools=[TOOL], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (ours, parallel)
    assert request.tools[0].parameters == {"type": "object"}


@pytest.mark.parametrize(
    ("thinking", "ours"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, (True, 1024)),
        ({"type": "adaptive"}, (True, None)),
        ({"type": "disabled"}, (False, None)),
        (None, (None, None)),
    ],
)
def test_thinking(thinking: Any, ours: tuple[bool | None, int | None]) -> None:
    request = read(thinking=thinking, max_tokens=2000)
    assert (request.thinking, request.thinking_budget) == ours


def test_sampling_and_stops() -> None:
    request = read(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"])
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert request.stop == ("END",)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_json_schema(place: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = read(**{place: {"format": form} if place == "output_config" else form})
    assert request.response_format == ResponseFormat(
        "json_schema", "output", {"type": "object"}, strict=True
    )


def test_a_marker_for_the_whole_request_goes_after_the_last_text() -> None:
    assert read(cache_control=MARK).messages[-1].content == (TextPart("Hi", True),)


def test_what_changes_nothing_is_taken() -> None:
    taken = read(
        metadata={"user_id": "u"},
        service_tier="auto",
        speed="standard",
        mcp_servers=[],
        output_config={"effort": "high"},
    )
    assert taken == read()


def test_at_most_four_markers() -> None:
    blocks = [{"type": "text", "text": "a", "cache_control": MARK}] * 4
    assert len(read(system=blocks).messages[0].content) == 4
    assert "at most 4" in refused(system=blocks, cache_control=MARK).message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "'max_tokens': 0"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "between 0 and 1"),
        ({"top_p": 0}, "'top_p'"),
        ({"top_k": -1}, "'top_k': -1"),
        ({"stop_sequences": [" "]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 17}, "at most 16"),
        ({"messages": []}, "1 to"),
        ({"messages": [{"role": "user", "content": ""}]}, "must not be empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "empty"),
        ({"messages": [USER, {"role": "assistant", "content": "The"}]}, "can't be continued"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "must be greater"),
        ({"tools": [{**TOOL, "name": "no spaces"}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "same name"),
        ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "type 'object'"),
        ({"tools": [{**TOOL, "surprise": 1}]}, "tools[0].surprise: Extra inputs are not"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "no tool search"),
        ({"tools": [{**TOOL, "allowed_callers": ["code_execution"]}]}, "allowed_callers"),
        ({"tools": [{**TOOL, "input_examples": [{}]}]}, "examples"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"tool_choice": {"type": "any"}}, "needs 'tools'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, '"g" is not in'),
        ({"container": "c"}, "No code is run"),
        ({"mcp_servers": [{"type": "url"}]}, "MCP servers in your client"),
        ({"inference_geo": "eu"}, "region"),
        ({"diagnostics": {"previous_message_id": None}}, "no cache diagnostics"),
        ({"context_management": {}}, "Nothing is removed"),
        ({"speed": "fast"}, "one speed"),
        ({"unheard_of": 1}, "unheard_of: Extra inputs are not permitted"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], words: str) -> None:
    refusal = refused(**fields)
    assert words in refusal.message
    assert refusal.kind in (RefusalKind.INVALID_REQUEST, RefusalKind.UNSUPPORTED)


@pytest.mark.parametrize(
    ("role", "block", "words"),
    [
        ("user", {"type": "document", "source": {"type": "text"}}, "'text' block"),
        ("user", {"type": "search_result", "title": "x"}, "'text' block"),
        ("assistant", {"type": "server_tool_use", "id": "1"}, "No tools are run here"),
        ("assistant", {"type": "web_search_tool_result"}, "No tools are run here"),
        ("user", {"type": "hologram"}, "hologram"),
        ("user", {"type": "thinking", "thinking": "x"}, "role 'user' can't hold"),
        ("assistant", {"type": "tool_result", "tool_use_id": "1"}, "role 'assistant' can't hold"),
        ("user", {"type": "tool_result", "tool_use_id": "1"}, "must answer a 'tool_use'"),
        ("user", {"type": "image", "source": {"type": "url", "url": "http://x"}}, "https: URL"),
        ("user", {"type": "image", "source": {"type": "file", "file_id": "f"}}, "source"),
    ],
)
def test_a_block_that_cannot_be_taken_is_named(
    role: str, block: dict[str, Any], words: str
) -> None:
    refusal = refused(messages=[USER, {"role": role, "content": [block]}, USER])
    assert words in refusal.message
    assert "messages[1].content[0]" in refusal.message


def test_counting_reads_the_same_prompt_and_needs_no_max_tokens() -> None:
    fields = {"model": "m", "messages": [USER], "system": "s", "tools": [TOOL]}
    counted = AnthropicTokenCount().parse(json.dumps(fields).encode())
    assert counted.messages == read(**fields).messages
    assert counted.tools == read(**fields).tools
    assert json.loads(AnthropicTokenCount().encode(7)) == {"input_tokens": 7}


USAGE = TokenUsage(5, 2)


def whole(choice: Choice, usage: TokenUsage = USAGE) -> Any:
    call = SURFACE.parse(body(), {})
    return json.loads(SURFACE.encode(call, Completion((choice,), usage), "req_1", 0))


def choice(**fields: Any) -> Choice:
    defaults: dict[str, Any] = {
        "index": 0,
        "text": "",
        "reasoning": "",
        "tool_calls": (),
        "logprobs": (),
        "finish": FinishReason.STOP,
    }
    return Choice(**{**defaults, **fields})


def test_usage_splits_the_input_by_cache() -> None:
    usage = whole(choice(), TokenUsage(100, 7, 10, 20, 30, reasoning=3))["usage"]
    assert usage == {
        "input_tokens": 40,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 30,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }


@pytest.mark.parametrize(
    ("finish", "calls", "reason"),
    [
        (FinishReason.STOP, (), "end_turn"),
        (FinishReason.LENGTH, (), "max_tokens"),
        (FinishReason.TOOL_CALLS, (ToolCall("1", "f", "{}"),), "tool_use"),
        (FinishReason.STOP, (ToolCall("1", "f", "{}"),), "tool_use"),
        (FinishReason.CONTENT_FILTER, (), "refusal"),
    ],
)
def test_stop_reasons(finish: FinishReason, calls: tuple[ToolCall, ...], reason: str) -> None:
    assert whole(choice(finish=finish, tool_calls=calls))["stop_reason"] == reason


@pytest.mark.parametrize(
    ("arguments", "input_"),
    [
        ("", {}),
        ('{"a":1}', {"a": 1}),
        ('{"a":', {"INVALID_JSON": '{"a":'}),
        ("7", {"INVALID_JSON": "7"}),
    ],
)
def test_tool_input_is_always_an_object(arguments: str, input_: dict[str, Any]) -> None:
    [block] = whole(choice(tool_calls=(ToolCall("1", "f", arguments),)))["content"]
    assert block == {"type": "tool_use", "id": "1", "name": "f", "input": input_}


def stream(steps: list[Step]) -> list[Any]:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True), {}), "req_1", 0)
    data = b"".join(encoder.finish(step) if step.final else encoder.step(step) for step in steps)
    return read_sse(encoder.start() + data)


def test_the_prompts_tokens_stand_at_the_start_where_they_are_known() -> None:
    first = Step((Delta(text="a"),), TokenUsage(5, 1))
    last = Step((Delta(finish=FinishReason.STOP),), TokenUsage(5, 2), final=True)
    events = stream([first, last])
    assert events[0][1]["message"]["usage"]["input_tokens"] == 5
    assert events[0][1]["message"]["usage"]["output_tokens"] == 0
    assert events[-2][1]["usage"]["output_tokens"] == 2


@pytest.mark.parametrize(
    ("told", "called", "expected"),
    [
        ("END", False, ("stop_sequence", "END")),
        (None, False, ("end_turn", None)),
        ("never sent", False, ("end_turn", None)),
        ("END", True, ("tool_use", None)),
    ],
)
def test_the_stop_sequence_that_ended_the_answer_is_told_where_the_engine_says_it(
    told: str | None, called: bool, expected: tuple[str, str | None]
) -> None:
    call = SURFACE.parse(body(stop_sequences=["END", "OVER"]), {})
    calls = (ToolCallDelta(0, "1", "f", "{}"),) if called else ()
    delta = Delta(text="a", tool_calls=calls, finish=FinishReason.STOP, stopped_by=told)
    step = Step((delta,), TokenUsage(5, 1), final=True)
    answer = json.loads(SURFACE.encode(call, fold([step]), "req_1", 0))
    assert (answer["stop_reason"], answer["stop_sequence"]) == expected
    encoder = SURFACE.encoder(call, "req_1", 0)
    ending = read_sse(encoder.start() + encoder.finish(step))[-2][1]["delta"]
    assert (ending["stop_reason"], ending["stop_sequence"]) == expected


@settings(max_examples=150, deadline=None)
@given(generations(choices=1))
def test_a_stream_tells_what_the_whole_answer_tells(steps: list[Step]) -> None:
    events = stream(steps)
    for name, event in events:
        assert name == event["type"]
        EVENT.validate_python(event)
    assert [events[0][0], events[-2][0], events[-1][0]] == [
        "message_start", "message_delta", "message_stop"
    ]  # fmt: skip
    blocks: dict[int, Any] = {}
    stopped: set[int] = set()
    for name, event in events:
        if name == "content_block_start":
            assert event["index"] == len(blocks)
            assert stopped == set(blocks)
            blocks[event["index"]] = {**event["content_block"], "json": ""}
        elif name == "content_block_stop":
            stopped.add(event["index"])
        elif name == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            for field, into in (
                ("text", "text"), ("thinking", "thinking"), ("partial_json", "json")
            ):  # fmt: skip
                block[into] = block.get(into, "") + delta.get(field, "")
    assert stopped == set(blocks)
    completion = fold(steps)
    only = completion.choices[0]
    told = list(blocks.values())
    assert "".join(block["text"] for block in told if block["type"] == "text") == only.text
    assert (
        "".join(block["thinking"] for block in told if block["type"] == "thinking")
        == only.reasoning
    )
    calls = {block["id"]: block["json"] for block in told if block["type"] == "tool_use"}
    assert calls == {call.id: call.arguments for call in only.tool_calls}
    answer = json.loads(SURFACE.encode(SURFACE.parse(body(), {}), completion, "req_1", 0))
    AnthropicMessage.model_validate(answer)
    assert events[-2][1]["delta"]["stop_reason"] == answer["stop_reason"]
    assert events[-2][1]["usage"] == answer["usage"]


@given(st.integers(0, 3))
def test_a_broken_stream_has_no_message_stop(after: int) -> None:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True), {}), "req_1", 0)
    data = encoder.start()
    for _ in range(after):
        data += encoder.step(Step((Delta(text="a"),)))
    data += encoder.fail(Refusal(RefusalKind.ENGINE_FAILED, "It died."))
    events = read_sse(data)
    assert events[-1][0] == "error"
    assert "message_stop" not in [name for name, _ in events]
