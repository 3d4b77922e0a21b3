"""The official Anthropic client, unmodified, against the surface over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pydantic
import pytest
from anthropic.types import MessageParam, ToolParam

from qwenstack.core.generation import Message, TextPart, ToolCall, ToolChoice
from qwenstack.core.refusals import RefusalKind
from tests.component.canned_openai import COUNTED_TOKENS, CannedServer
from tests.component.canned_scripts import SCRIPTS


class City(pydantic.BaseModel):
    name: str
    size: int


USER: list[MessageParam] = [{"role": "user", "content": "Hi"}]
TOOLS: list[ToolParam] = [
    {
        "name": "weather",
        "description": "The weather in a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@pytest.fixture(scope="module")
def server() -> Iterator[CannedServer]:
    server = CannedServer(SCRIPTS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: CannedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.host, api_key="sk-canned", max_retries=0) as client:
        yield client


def test_a_message_is_answered_whole(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="hello", max_tokens=9, messages=USER)
    thinking, text = answer.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "I greet."
    assert text.type == "text"
    assert text.text == "Hello 世界"
    assert answer.stop_reason == "end_turn"
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 4, 6)
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 2


def test_an_answer_cut_by_max_tokens_says_so(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="cut", max_tokens=1, messages=USER)
    assert answer.stop_reason == "max_tokens"


def test_a_stream_accumulates_to_the_whole_answer(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="hello", max_tokens=9, messages=USER)
    with client.messages.stream(model="hello", max_tokens=9, messages=USER) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert texts == ["Hel", "lo", " 世界"]
    assert final.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)


def test_the_events_come_in_the_vendors_order(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(model="hello", max_tokens=9, messages=USER, stream=True)
    assert [event.type for event in stream] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_omitted_thoughts_leave_an_empty_block(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="hello",
        max_tokens=2000,
        messages=USER,
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    ) as stream:
        final = stream.get_final_message()
    assert final.content[0].type == "thinking"
    assert final.content[0].thinking == ""


def test_tool_calls_stream_as_json_and_can_be_answered(
    client: anthropic.Anthropic, server: CannedServer
) -> None:
    with client.messages.stream(
        model="tool",
        max_tokens=9,
        messages=USER,
        tools=TOOLS,
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ) as stream:
        final = stream.get_final_message()
    request = server.calls[-1].request
    assert request.tool_choice == ToolChoice("named", "weather")
    assert request.parallel_tool_calls is False
    uses = [block for block in final.content if block.type == "tool_use"]
    assert [(use.id, use.name, use.input) for use in uses] == [
        ("call_1", "weather", {"city": "Paris"}),
        ("call_2", "weather", {"city": "Rome"}),
    ]
    assert final.stop_reason == "tool_use"
    client.messages.create(
        model="hello",
        max_tokens=9,
        tools=TOOLS,
        messages=[
            *USER,
            {"role": "assistant", "content": final.content},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_2",
                        "content": [{"type": "text", "text": "rain"}],
                    },
                    {"type": "text", "text": "Compare."},
                ],
            },
        ],
    )
    _, asked, first, second, last = server.calls[-1].request.messages
    assert asked.tool_calls[0] == ToolCall("call_1", "weather", '{"city":"Paris"}')
    assert (first.role, first.tool_call_id, first.text) == ("tool", "call_1", "sunny")
    assert (second.role, second.tool_call_id, second.text) == ("tool", "call_2", "rain")
    assert last == Message(role="user", content=(TextPart("Compare."),))


def test_an_answer_with_thoughts_can_be_sent_back(
    client: anthropic.Anthropic, server: CannedServer
) -> None:
    first = client.messages.create(model="hello", max_tokens=9, messages=USER)
    client.messages.create(model="hello", max_tokens=9, messages=[*USER, first.to_param(), *USER])
    assert server.calls[-1].request.messages[1] == Message(
        role="assistant", content=(TextPart("Hello 世界"),), reasoning="I greet."
    )


def test_an_answer_is_parsed_into_the_callers_type(
    client: anthropic.Anthropic, server: CannedServer
) -> None:
    answer = client.messages.parse(model="json", max_tokens=9, messages=USER, output_format=City)
    assert answer.parsed_output == City(name="Paris", size=2)
    form = server.calls[-1].request.response_format
    assert form.type == "json_schema"
    assert form.schema is not None
    assert set(form.schema["properties"]) == {"name", "size"}


def test_running_counts_stand_in_the_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="counting", max_tokens=9, messages=USER) as stream:
        usage = stream.get_final_message().usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 4, 6)


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="hello", messages=USER, system="x", tools=TOOLS)
    assert count.input_tokens == COUNTED_TOKENS


def test_a_stream_that_breaks_raises(client: anthropic.Anthropic) -> None:
    seen = []
    with pytest.raises(anthropic.APIStatusError, match="The engine stopped") as caught:
        for event in client.messages.create(
            model="dying", max_tokens=9, messages=USER, stream=True
        ):
            seen.append(event.type)
    assert caught.value.type == "api_error"
    assert "message_stop" not in seen


@pytest.mark.parametrize(
    ("kind", "error", "type_"),
    [
        (RefusalKind.INVALID_REQUEST, anthropic.BadRequestError, "invalid_request_error"),
        (RefusalKind.INVALID_KEY, anthropic.AuthenticationError, "authentication_error"),
        (RefusalKind.ACCESS_DENIED, anthropic.PermissionDeniedError, "permission_error"),
        (RefusalKind.MODEL_NOT_FOUND, anthropic.NotFoundError, "not_found_error"),
        (RefusalKind.OUT_OF_CREDIT, anthropic.APIStatusError, "billing_error"),
        (RefusalKind.BODY_TOO_LARGE, anthropic.APIStatusError, "request_too_large"),
        (RefusalKind.RATE_REQUESTS, anthropic.RateLimitError, "rate_limit_error"),
        (RefusalKind.OVERLOADED, anthropic.InternalServerError, "overloaded_error"),
        (RefusalKind.ENGINE_TIMEOUT, anthropic.InternalServerError, "timeout_error"),
        (RefusalKind.INTERNAL, anthropic.InternalServerError, "api_error"),
    ],
)
def test_refusals_become_typed_exceptions(
    client: anthropic.Anthropic,
    kind: RefusalKind,
    error: type[anthropic.APIStatusError],
    type_: str,
) -> None:
    with pytest.raises(error) as caught:
        client.messages.create(model=kind.value, max_tokens=9, messages=USER)
    assert caught.value.type == type_
    assert caught.value.request_id == "req_canned"
    assert f"This is {kind.value}." in caught.value.message


def test_a_bad_field_is_named_to_the_caller(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="'max_tokens': -1"):
        client.messages.create(model="hello", max_tokens=-1, messages=USER)
    with pytest.raises(anthropic.BadRequestError, match="x: Extra inputs are not permitted"):
        client.messages.create(model="hello", max_tokens=9, messages=USER, extra_body={"x": 1})


def test_server_tools_are_refused_by_name(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        client.messages.create(
            model="hello",
            max_tokens=9,
            messages=USER,
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}],
        )


def test_the_client_retries_a_rate_limit_when_told_to(server: CannedServer) -> None:
    before = len(server.calls)
    with (
        anthropic.Anthropic(base_url=server.host, api_key="sk-canned", max_retries=2) as client,
        pytest.raises(anthropic.RateLimitError),
    ):
        client.messages.create(model="rate_tokens", max_tokens=9, messages=USER)
    assert len(server.calls) - before == 3
