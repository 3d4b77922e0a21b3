"""The official OpenAI client, unmodified, against the surfaces over a real socket."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pydantic
import pytest

from qwenstack.core.generation import Message, TextPart, ToolCall
from qwenstack.core.refusals import RefusalKind
from tests.component.canned_openai import CannedServer
from tests.component.canned_scripts import SCRIPTS


class City(pydantic.BaseModel):
    name: str
    size: int


TOOLS: list[openai.types.chat.ChatCompletionFunctionToolParam] = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
RESPONSE_TOOLS: list[openai.types.responses.FunctionToolParam] = [
    {
        "type": "function",
        "name": "weather",
        "strict": False,
        "parameters": {"type": "object", "properties": {}},
    }
]
USER: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[CannedServer]:
    server = CannedServer(SCRIPTS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: CannedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="sk-canned", max_retries=0) as client:
        yield client


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="hello", messages=USER)
    assert answer.choices[0].message.content == "Hello 世界"
    assert answer.choices[0].message.model_extra == {"reasoning_content": "I greet."}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 6)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id == "req_canned"


def test_a_chat_streams_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="hello", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == "Hello 世界"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 18


def test_the_chat_stream_helper_accumulates_a_tool_call(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tool", messages=USER, tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.arguments for call in calls] == ['{"city":"Paris"}', '{"city":"Rome"}']
    assert final.choices[0].finish_reason == "tool_calls"


def test_an_answer_with_tool_calls_can_be_sent_back(
    client: openai.OpenAI, server: CannedServer
) -> None:
    answer = client.chat.completions.create(model="tool", messages=USER, tools=TOOLS)
    message = answer.choices[0].message
    assert message.tool_calls is not None
    results: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    client.chat.completions.create(
        model="hello",
        messages=[*USER, message, *results],  # type: ignore[list-item]
    )
    assert server.calls[-1].request.messages[1].tool_calls[0] == ToolCall(
        "call_1", "weather", '{"city":"Paris"}'
    )


def test_a_json_schema_is_parsed_into_the_callers_type(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="json", messages=USER, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Paris", size=2)


def test_log_probabilities_come_through(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="likely", messages=USER, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].bytes == [98]
    legacy = client.completions.create(model="likely", prompt="x", logprobs=1)
    assert legacy.choices[0].logprobs is not None
    assert legacy.choices[0].logprobs.tokens == ["a"]


def test_qwen_fields_go_in_the_extra_body(client: openai.OpenAI, server: CannedServer) -> None:
    client.chat.completions.create(
        model="hello", messages=USER, extra_body={"enable_thinking": True, "top_k": 20}
    )
    request = server.calls[-1].request
    assert (request.thinking, request.sampling.top_k) == (True, 20)


def test_a_stream_that_breaks_raises(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="dying", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="The engine stopped"):
        list(stream)


def test_legacy_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="hello", prompt="x")
    assert whole.choices[0].text == "I greet.Hello 世界"
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(model="hello", prompt="x", stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].text


def test_a_response_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="hello", input="Hi", instructions="Be kind.")
    assert answer.output_text == "Hello 世界"
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 2


def test_the_response_stream_helper_gives_the_final_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tool", input="Hi", tools=RESPONSE_TOOLS) as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.arguments for call in calls] == ['{"city":"Paris"}', '{"city":"Rome"}']


def test_a_response_stream_can_be_read_event_by_event(client: openai.OpenAI) -> None:
    with client.responses.stream(model="hello", input="Hi") as helper:
        texts = [event.text for event in helper if event.type == "response.output_text.done"]
    assert texts == ["Hello 世界"]
    deltas = [
        event.delta
        for event in client.responses.create(model="hello", input="Hi", stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert deltas == ["Hel", "lo", " 世界"]


def test_response_output_can_be_sent_back(client: openai.OpenAI, server: CannedServer) -> None:
    first = client.responses.create(model="hello", input="Hi")
    client.responses.create(
        model="hello",
        input=[
            {"role": "user", "content": "Hi"},
            *first.output,  # type: ignore[list-item]
            {"role": "user", "content": "More"},
        ],
    )
    assert server.calls[-1].request.messages[1] == Message(
        role="assistant", content=(TextPart("Hello 世界"),), reasoning="I greet."
    )


def test_a_response_is_parsed_into_the_callers_type(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="json", input="Hi", text_format=City)
    assert answer.output_parsed == City(name="Paris", size=2)


def test_a_response_stream_that_breaks_fails_and_raises(client: openai.OpenAI) -> None:
    seen = []
    with pytest.raises(openai.APIError, match="The engine stopped"):
        for event in client.responses.create(model="dying", input="Hi", stream=True):
            seen.append(event.type)
    assert seen[-1] == "response.failed"


def test_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    # Left alone, the client asks for base64 and unpacks it.
    packed = client.embeddings.create(model="e", input=["a", "b"])
    floats = client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    vectors = [list(row.embedding) for row in packed.data]
    assert vectors == [row.embedding for row in floats.data] == [[0.5, 0.0], [0.5, 1.0]]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == set(SCRIPTS)
    assert client.models.retrieve("hello").id == "hello"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (RefusalKind.INVALID_KEY, openai.AuthenticationError),
        (RefusalKind.ACCESS_DENIED, openai.PermissionDeniedError),
        (RefusalKind.MODEL_NOT_FOUND, openai.NotFoundError),
        (RefusalKind.OUT_OF_CREDIT, openai.BadRequestError),
        (RefusalKind.RATE_REQUESTS, openai.RateLimitError),
        (RefusalKind.RATE_TOKENS, openai.RateLimitError),
        (RefusalKind.CONFLICT, openai.ConflictError),
        (RefusalKind.CONTENT_FILTERED, openai.BadRequestError),
        (RefusalKind.OVERLOADED, openai.InternalServerError),
        (RefusalKind.ENGINE_TIMEOUT, openai.InternalServerError),
    ],
)
def test_refusals_become_typed_exceptions(
    client: openai.OpenAI, kind: RefusalKind, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(model=kind.value, messages=USER)
    assert caught.value.message.count(f"This is {kind.value}.") == 1
    assert caught.value.request_id == "req_canned"
    assert caught.value.code


def test_a_bad_field_is_named_to_the_caller(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="hello", messages=USER, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: x"):
        client.chat.completions.create(model="hello", messages=USER, extra_body={"x": 1})


def test_a_wrong_key_is_an_authentication_error(server: CannedServer) -> None:
    with (
        openai.OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert "sk-wrong" not in str(caught.value)


def test_the_client_retries_a_rate_limit_when_told_to(server: CannedServer) -> None:
    before = len(server.calls)
    with (
        openai.OpenAI(base_url=server.base_url, api_key="sk-canned", max_retries=2) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(model="rate_tokens", messages=USER)
    assert len(server.calls) - before == 3
