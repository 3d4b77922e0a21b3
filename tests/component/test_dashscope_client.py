"""The official DashScope client, unmodified, against the surface over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import dashscope
import pytest
from dashscope.api_entities.aio_session import close_shared_aio_session

from qwenstack.core.generation import Message, TextPart, ToolCall, ToolChoice
from qwenstack.core.refusals import RefusalKind
from tests.component.canned_openai import CannedServer
from tests.component.canned_scripts import SCRIPTS

KEY = "sk-canned"
USER = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture(scope="module")
def server() -> Iterator[CannedServer]:
    server = CannedServer(SCRIPTS)
    before, dashscope.base_http_api_url = dashscope.base_http_api_url, server.dashscope_url
    yield server
    dashscope.base_http_api_url = before
    server.close()


def call(model: str, **fields: Any) -> Any:
    return dashscope.Generation.call(model, **{"messages": USER, "api_key": KEY, **fields})


def test_a_generation_is_answered_whole(server: CannedServer) -> None:
    answer = call("hello", result_format="message")
    assert answer.status_code == HTTPStatus.OK
    assert answer.request_id == "req_canned"
    [choice] = answer.output.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == "Hello 世界"
    assert choice.message.reasoning_content == "I greet."
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (12, 6, 18)
    assert usage.prompt_tokens_details["cached_tokens"] == 4
    assert usage.output_tokens_details["reasoning_tokens"] == 2


def test_a_prompt_with_the_text_format_is_answered_as_text(server: CannedServer) -> None:
    answer = call("hello", prompt="Hi", messages=None, result_format="text")
    assert answer.output.text == "Hello 世界"
    assert answer.output.finish_reason == "stop"
    assert server.calls[-1].request.messages == (Message(role="user", content=(TextPart("Hi"),)),)


def test_a_stream_in_increments(server: CannedServer) -> None:
    events = list(call("hello", stream=True, result_format="message", incremental_output=True))
    contents = [event.output.choices[0].message.content for event in events]
    assert contents == ["", "Hello", " 世界", ""]
    reasons = [event.output.choices[0].finish_reason for event in events]
    assert reasons == ["null", "null", "null", "stop"]
    assert events[-1].usage.total_tokens == 18


def test_a_cumulative_stream_asked_of_the_client(server: CannedServer) -> None:
    """The client asks for increments then, and adds them up itself."""
    events = list(call("hello", stream=True, result_format="message", incremental_output=False))
    contents = [event.output.choices[0].message.content for event in events]
    assert contents == ["", "Hello", "Hello 世界", "Hello 世界"]
    assert events[-1].output.choices[0].message.reasoning_content == "I greet."


def test_a_cumulative_stream_asked_of_the_server(server: CannedServer) -> None:
    events = list(call("hello", stream=True, result_format="message"))
    contents = [event.output.choices[0].message.content for event in events]
    assert contents == ["", "Hello", "Hello 世界", "Hello 世界"]
    assert {event.output.choices[0].message.reasoning_content for event in events} == {"I greet."}


@pytest.mark.parametrize("incremental", [True, False, None])
def test_tool_calls_stream_and_can_be_answered(
    server: CannedServer, incremental: bool | None
) -> None:
    events = list(
        call(
            "tool",
            stream=True,
            result_format="message",
            incremental_output=incremental,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
    )
    assert server.calls[-1].request.tool_choice == ToolChoice("named", "weather")
    assert events[-1].output.choices[0].finish_reason == "tool_calls"
    if incremental:
        arguments = {0: "", 1: ""}
        for event in events:
            for piece in event.output.choices[0].message.get("tool_calls") or []:
                arguments[piece["index"]] += piece["function"].get("arguments") or ""
        assert arguments == {0: '{"city":"Paris"}', 1: '{"city":"Rome"}'}
        return
    message = events[-1].output.choices[0].message
    assert [each["function"]["arguments"] for each in message.tool_calls] == [
        '{"city":"Paris"}',
        '{"city":"Rome"}',
    ]
    results = [
        {"role": "tool", "tool_call_id": each["id"], "content": "sunny"}
        for each in message.tool_calls
    ]
    answer = call("hello", messages=[*USER, message, *results], tools=TOOLS)
    assert answer.status_code == HTTPStatus.OK
    asked = server.calls[-1].request.messages[1]
    assert asked.tool_calls[0] == ToolCall("call_1", "weather", '{"city":"Paris"}')


@pytest.mark.parametrize("incremental", [True, False, None])
def test_two_choices_stream(server: CannedServer, incremental: bool | None) -> None:
    texts, reasons = {0: "", 1: ""}, {}
    for event in call(
        "two", stream=True, result_format="message", n=2, incremental_output=incremental
    ):
        for choice in event.output.choices:
            index = choice.get("index", 0)
            # What the client merges for several choices is a plain dict.
            content = choice["message"]["content"]
            texts[index] = texts[index] + content if incremental else content or texts[index]
            reasons[index] = choice["finish_reason"]
        tokens = event.usage["output_tokens"]
    assert texts == {0: "a", 1: "bc"}
    assert reasons == {0: "stop", 1: "stop"}
    assert tokens == 6


def test_a_json_schema_is_honoured(server: CannedServer) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    answer = call(
        "json",
        result_format="message",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
    )
    assert answer.output.choices[0].message.content == '{"name":"Paris","size":2}'
    assert server.calls[-1].request.response_format.schema == schema
    call("json", response_format={"type": "json_object"})
    assert server.calls[-1].request.response_format.type == "json_object"


def test_thinking_is_asked_for(server: CannedServer) -> None:
    call("hello", enable_thinking=True, thinking_budget=50, max_tokens=7, seed=1, top_k=20)
    request = server.calls[-1].request
    assert (request.thinking, request.thinking_budget, request.max_tokens) == (True, 50, 7)
    assert (request.sampling.seed, request.sampling.top_k) == (1, 20)


def test_log_probabilities_come_back(server: CannedServer) -> None:
    answer = call("likely", result_format="message", logprobs=True, top_logprobs=1)
    [token] = answer.output.choices[0].logprobs["content"]
    assert (token["token"], token["top_logprobs"][0]["token"]) == ("a", "b")


@pytest.mark.parametrize("incremental", [True, False, None])
def test_a_multimodal_conversation(server: CannedServer, incremental: bool | None) -> None:
    asked: list[Any] = [
        {"role": "system", "content": [{"text": "Be kind."}]},
        {
            "role": "user",
            "content": [{"image": "https://example.org/a.png"}, {"text": "What is it?"}],
        },
    ]
    converse: Any = dashscope.MultiModalConversation.call
    whole = converse("hello", messages=asked, api_key=KEY)
    assert whole.output.choices[0].message.content == [{"text": "Hello 世界"}]
    events = list(
        converse("hello", messages=asked, api_key=KEY, stream=True, incremental_output=incremental)
    )
    texts = [
        "".join(part["text"] for part in event.output.choices[0].message.content)
        for event in events
    ]
    if incremental:
        assert "".join(texts) == "Hello 世界"
    else:
        assert texts[-1] == "Hello 世界"


def test_embeddings(server: CannedServer) -> None:
    answer = dashscope.TextEmbedding.call("e", ["a", "b"], api_key=KEY, text_type="document")
    assert answer.status_code == HTTPStatus.OK
    assert [row["embedding"] for row in answer.output["embeddings"]] == [[0.5, 0.0], [0.5, 1.0]]
    assert answer.usage["total_tokens"] == 3
    one = dashscope.TextEmbedding.call("e", "a", api_key=KEY)
    assert len(one.output["embeddings"]) == 1


def test_a_stream_that_breaks_ends_with_the_error(server: CannedServer) -> None:
    *_, last = call("dying", stream=True, result_format="message", incremental_output=True)
    assert last.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    assert last.code == "ModelServingError"
    assert "The engine stopped" in last.message


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (RefusalKind.INVALID_REQUEST, 400, "InvalidParameter"),
        (RefusalKind.INVALID_KEY, 401, "InvalidApiKey"),
        (RefusalKind.MODEL_NOT_FOUND, 404, "ModelNotFound"),
        (RefusalKind.OUT_OF_CREDIT, 400, "Arrearage"),
        (RefusalKind.RATE_REQUESTS, 429, "Throttling.RateQuota"),
        (RefusalKind.RATE_TOKENS, 429, "Throttling.AllocationQuota"),
        (RefusalKind.CONTENT_FILTERED, 400, "DataInspectionFailed"),
    ],
)
def test_refusals_carry_the_vendors_codes(
    server: CannedServer, kind: RefusalKind, status: int, code: str, stream: bool
) -> None:
    answer = call(kind.value, stream=stream)
    answer = next(iter(answer)) if stream else answer
    assert (answer.status_code, answer.code) == (status, code)
    assert answer.message == f"This is {kind.value}."
    assert answer.request_id == "req_canned"


def test_a_bad_field_is_named_to_the_caller(server: CannedServer) -> None:
    answer = call("hello", max_tokens=-1)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert "parameters.max_tokens" in answer.message
    answer = call("hello", temperature=9)
    assert "temperature" in answer.message
    answer = call("hello", response_format={"type": "xml"})
    assert "parameters.response_format.type" in answer.message


def test_a_wrong_key_is_refused(server: CannedServer) -> None:
    answer = call("hello", api_key="sk-wrong")
    assert (answer.status_code, answer.code) == (401, "InvalidApiKey")


async def test_the_asynchronous_client_streams(server: CannedServer) -> None:
    generate: Any = dashscope.AioGeneration.call
    stream = await generate(
        "hello",
        messages=USER,
        api_key=KEY,
        stream=True,
        result_format="message",
        incremental_output=True,
    )
    texts = [event.output.choices[0].message.content async for event in stream]
    assert "".join(texts) == "Hello 世界"
    await close_shared_aio_session()
