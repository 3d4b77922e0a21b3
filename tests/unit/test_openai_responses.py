"""The Responses API: items in, items and events out, nothing kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.generation import (
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
from qwenstack.studio.surfaces.openai_responses import ResponsesSurface
from tests.generated_steps import fold, generations
from tests.openai_schema import check, check_event, read_sse

SURFACE: GenerationSurface = ResponsesSurface()
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "qwen", "input": "Hi", **fields}).encode()


def parse(**fields: Any) -> GenerationRequest:
    return SURFACE.parse(body(**fields), {}).request


def refused(**fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    assert caught.value.kind in (RefusalKind.INVALID_REQUEST, RefusalKind.UNSUPPORTED)
    return caught.value


@pytest.mark.parametrize(
    "metadata",
    [{str(key): "v" for key in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}],
)
def test_metadata_beyond_openais_bounds_is_refused(metadata: dict[str, str]) -> None:
    assert refused(metadata=metadata).param == "metadata"


def test_what_cannot_be_included_anywhere_is_refused() -> None:
    assert "include" in (refused(include=["message.secrets"]).param or "")


def test_a_service_tier_that_there_is_nowhere_is_refused() -> None:
    assert refused(service_tier="express").param == "service_tier"


def test_text_and_instructions_become_messages() -> None:
    assert parse(instructions="Be kind.").messages == (
        Message(role="system", content=(TextPart("Be kind."),)),
        Message(role="user", content=(TextPart("Hi"),)),
    )


def test_the_items_of_one_turn_become_one_message() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is it?"},
                {"type": "input_image", "image_url": "https://a.example/x.png"},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}],
        },
        CALL,
        {**CALL, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "rain"}],
        },
        {"role": "assistant", "content": "It is mixed."},
        {"role": "assistant", "content": "Bye."},
    ]
    assert parse(input=items).messages == (
        Message(role="system", content=(TextPart("Be kind."),)),
        Message(
            role="user", content=(TextPart("What is it?"), ImagePart("https://a.example/x.png"))
        ),
        Message(
            role="assistant",
            content=(TextPart("Let me look."),),
            reasoning="hm",
            tool_calls=(ToolCall("c1", "weather", "{}"), ToolCall("c2", "weather", "{}")),
        ),
        Message(role="tool", content=(TextPart("sunny"),), tool_call_id="c1"),
        Message(role="tool", content=(TextPart("rain"),), tool_call_id="c2"),
        Message(role="assistant", content=(TextPart("It is mixed."),)),
        Message(role="assistant", content=(TextPart("Bye."),)),
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 1, "top_p": 0.5}, {"sampling": Sampling(temperature=1.0, top_p=0.5)}),
        ({"reasoning": {"effort": "none"}}, {"thinking": False}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"thinking": True}),
        ({"reasoning": {}}, {"thinking": None}),
        ({"top_logprobs": 3}, {"logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
        ({"include": ["reasoning.encrypted_content"]}, {"logprobs": None}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": ToolChoice("required")}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}},
            {"tool_choice": ToolChoice("named", "weather")},
        ),
        ({"store": True}, {"max_tokens": None}),
        ({"truncation": "disabled", "service_tier": "auto", "user": "u"}, {"n": 1}),
    ],
)
def test_a_field_is_honoured(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = parse(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


def test_a_json_schema_is_read() -> None:
    form = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    response_format = parse(text={"format": form}).response_format
    assert (response_format.type, response_format.name) == ("json_schema", "city")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"reasoning": {"effort": "none"}, "enable_thinking": True}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"n": 2}, "n"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]},
            "input[0].call_id",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input[0].encrypted_content",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
    ],
)
def test_a_bad_or_unsupported_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def stream(steps: list[Step], **fields: Any) -> list[Any]:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True, **fields), {}), "req_1", 5)
    data = encoder.start() + b"".join(
        [encoder.finish(step) if step.final else encoder.step(step) for step in steps]
    )
    pairs = read_sse(data)
    assert all(name == event["type"] for name, event in pairs)
    return [event for _, event in pairs]


THINK_SAY_CALL = [
    Step((Delta(reasoning="h"), Delta(reasoning="m"))),
    Step((Delta(text="Let me look."),)),
    Step((Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"a":'),)),)),
    Step((Delta(tool_calls=(ToolCallDelta(0, arguments="1}"),)),)),
    Step(
        (Delta(finish=FinishReason.TOOL_CALLS),),
        TokenUsage(10, 6, cached=4, reasoning=2),
        final=True,
    ),
]


def test_a_stream_follows_the_published_grammar() -> None:
    events = stream(THINK_SAY_CALL)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert response["output"][2]["arguments"] == '{"a":1}'
    assert response["usage"]["input_tokens_details"] == {
        "cached_tokens": 4,
        "cache_write_tokens": 0,
    }
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert response["store"] is False


def test_a_cut_answer_is_incomplete() -> None:
    steps = [
        Step((Delta(text="Once"),)),
        Step((Delta(finish=FinishReason.LENGTH),), TokenUsage(1, 1), final=True),
    ]
    last = stream(steps)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_broken_stream_fails_with_what_there_is() -> None:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True), {}), "req_1", 5)
    data = encoder.start() + encoder.step(Step((Delta(text="Onc"),)))
    data += encoder.fail(Refusal(RefusalKind.ENGINE_FAILED, "x" * 10_000))
    events = [event for _, event in read_sse(data)]
    for event in events:
        check_event(event)
    failed, error = events[-2:]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["output"][0]["content"][0]["text"] == "Onc"
    assert failed["response"]["error"]["code"] == "server_error"
    assert error["error"]["code"] == error["code"] == "ModelServingError"
    assert len(error["message"]) < 3000


@pytest.mark.parametrize("kind", RefusalKind)
def test_every_failure_has_a_published_code(kind: RefusalKind) -> None:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True), {}), "req_1", 5)
    for _, event in read_sse(encoder.start() + encoder.fail(Refusal(kind, "No."))):
        check_event(event)


ECHOED: dict[str, Any] = {
    "instructions": "Be kind.",
    "tools": [TOOL, {"type": "function", "name": "bare"}],
    "tool_choice": {"type": "function", "name": "weather"},
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "top_logprobs": 2,
    "max_output_tokens": 10,
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
}


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([{}, ECHOED]))
def test_every_event_and_answer_fits_the_schema_and_both_say_the_same(
    data: st.DataObject, fields: dict[str, Any]
) -> None:
    steps = data.draw(generations())
    events = stream(steps, **fields)
    for event in events:
        check_event(event)
    answer = json.loads(SURFACE.encode(SURFACE.parse(body(**fields), {}), fold(steps), "req_1", 5))
    check(answer, "Response")
    streamed = events[-1]["response"]
    assert {key: streamed[key] for key in answer if key != "output"} == {
        key: answer[key] for key in answer if key != "output"
    }
    for kind, field in (("reasoning", "content"), ("message", "content")):
        texts = ["", ""]
        for number, response in enumerate((answer, streamed)):
            for item in response["output"]:
                if item["type"] == kind:
                    texts[number] += "".join(part["text"] for part in item[field])
        assert texts[0] == texts[1]
    calls = [
        sorted(
            (item["call_id"], item["name"], item["arguments"])
            for item in response["output"]
            if item["type"] == "function_call"
        )
        for response in (answer, streamed)
    ]
    assert calls[0] == calls[1]


def test_answers_repeat_the_request() -> None:
    answer = json.loads(
        SURFACE.encode(SURFACE.parse(body(**ECHOED), {}), fold(THINK_SAY_CALL), "req_1", 5)
    )
    for field in ("instructions", "tool_choice", "metadata", "temperature", "max_output_tokens"):
        assert answer[field] == ECHOED[field]
    assert answer["tools"][0] == {**TOOL, "description": None}
    assert answer["text"]["format"]["name"] == "n"
