"""What OpenAI-compatible servers answer: steps, usage, errors, embeddings."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.generation import (
    CompletionBuilder,
    EmbeddingRequest,
    FinishReason,
    Step,
    ToolCall,
)
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.interface import (
    EngineProtocolError,
    EngineRejected,
    EngineUnavailable,
)
from qwenstack.engines.openai_errors import decode_error
from qwenstack.engines.openai_wire import (
    DONE,
    StreamDecoder,
    decode_completion,
    decode_embeddings,
)

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def chunk(*, index: int = 0, finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}).encode()


def usage_chunk(usage: dict[str, Any] = USAGE) -> bytes:
    return json.dumps({"id": "x", "choices": [], "usage": usage}).encode()


def final(payloads: list[bytes], choices: int = 1) -> Step:
    step = StreamDecoder(choices).step(payloads)
    assert step is not None
    assert step.final
    return step


def test_all_events_of_one_read_make_one_step() -> None:
    step = StreamDecoder().step([chunk(role="assistant"), chunk(content="a"), chunk(content="b")])
    assert step is not None
    assert [delta.text for delta in step.deltas] == ["a", "b"]
    assert not step.final


def test_the_beginning_of_an_answer_makes_one_empty_step() -> None:
    decoder = StreamDecoder()
    assert decoder.step([]) is None
    assert decoder.step([chunk(role="assistant", content="")]) == Step()
    assert decoder.step([chunk(role="assistant", content="")]) is None
    assert not decoder.began


@pytest.mark.parametrize(
    ("fields", "stopped_by"),
    [
        ({"stop_reason": "END"}, "END"),
        ({"matched_stop": "END"}, "END"),
        ({"stop_reason": 151645}, None),
        ({"matched_stop": 151645}, None),
        ({"__verbose": {"stopping_word": "END", "stop_type": "word"}}, "END"),
        ({"__verbose": {"stopping_word": "", "stop_type": "eos"}}, None),
        ({"stop_reason": None}, None),
        ({"stop_reason": {"a": [1]}}, None),
        ({}, None),
    ],
)
def test_the_stop_text_that_ended_a_choice_is_told_where_the_server_says_it(
    fields: dict[str, Any], stopped_by: str | None
) -> None:
    top = {name: value for name, value in fields.items() if name.startswith("__")}
    own = {name: value for name, value in fields.items() if name not in top}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **own}], **top}
    step = final([chunk(content="a"), json.dumps(end).encode(), usage_chunk(), DONE])
    assert step.deltas[-1].stopped_by == stopped_by
    builder = CompletionBuilder()
    builder.add(step)
    assert builder.build().choices[0].stopped_by == stopped_by


@given(st.lists(st.integers(1, 4), max_size=10))
def test_the_grouping_of_events_into_reads_changes_nothing(sizes: list[int]) -> None:
    payloads = [
        chunk(role="assistant"),
        chunk(reasoning_content="hm"),
        chunk(content="Par"),
        chunk(content="is"),
        chunk(finish="stop"),
        usage_chunk(),
        DONE,
    ]
    decoder, builder, position = StreamDecoder(), CompletionBuilder(), 0
    for size in [*sizes, len(payloads)]:
        step = decoder.step(payloads[position : position + size])
        position += size
        if step is not None:
            builder.add(step)
    choice = builder.build().choices[0]
    assert (choice.text, choice.reasoning, choice.finish) == ("Paris", "hm", FinishReason.STOP)
    assert builder.build().usage == TokenUsage(7, 3)
    assert decoder.done


def test_reasoning_is_read_under_both_names() -> None:
    step = StreamDecoder().step([chunk(reasoning_content="a"), chunk(reasoning="b")])
    assert step is not None
    assert [delta.reasoning for delta in step.deltas] == ["a", "b"]


def test_a_choice_that_called_ends_in_its_call_though_the_server_says_stop() -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "now", "arguments": "{}"}}
    payloads = [chunk(tool_calls=[call]), chunk(finish="stop"), usage_chunk(), DONE]
    builder = CompletionBuilder()
    builder.add(final(payloads))
    assert builder.build().choices[0].finish is FinishReason.TOOL_CALLS


def test_a_tool_call_comes_in_pieces() -> None:
    head = {"index": 0, "id": "call_1", "type": "function"}
    payloads = [
        chunk(tool_calls=[{**head, "function": {"name": "now", "arguments": ""}}]),
        chunk(content=None, tool_calls=[{"index": 0, "function": {"arguments": '{"z":'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        chunk(finish="tool_calls"),
        usage_chunk(),
        DONE,
    ]
    builder = CompletionBuilder()
    builder.add(final(payloads))
    choice = builder.build().choices[0]
    assert choice.tool_calls == (ToolCall("call_1", "now", '{"z":1}'),)
    assert choice.finish is FinishReason.TOOL_CALLS


def test_of_several_tool_calls_only_the_first_is_taken_where_one_was_asked_for() -> None:
    def call(position: int, **function: str) -> dict[str, Any]:
        return {"index": position, "id": f"c{position}", "function": function}

    payloads = [
        chunk(tool_calls=[call(0, name="f", arguments='{"a"')]),
        chunk(tool_calls=[call(0, arguments=":1}"), call(1, name="g", arguments="{}")]),
        chunk(tool_calls=[call(1, arguments="")], finish="tool_calls"),
        usage_chunk(),
        DONE,
    ]
    for one_call, names in ((True, ["f"]), (False, ["f", "g"])):
        builder = CompletionBuilder()
        step = StreamDecoder(one_call=one_call).step(payloads)
        assert step is not None
        builder.add(step)
        calls = builder.build().choices[0].tool_calls
        assert [each.name for each in calls] == names
        assert calls[0].arguments == '{"a":1}'


@pytest.mark.parametrize("count", [-1, 2**40 + 1, 2**63])
def test_counts_that_no_request_can_have_are_no_usage(count: int) -> None:
    for usage in ({"prompt_tokens": count}, {"prompt_tokens": 1, "completion_tokens": count}):
        with pytest.raises(EngineProtocolError, match="no chunk"):
            StreamDecoder().step([usage_chunk(usage)])
    running = json.loads(chunk(content="a")) | {"timings": {"prompt_n": 1, "predicted_n": count}}
    with pytest.raises(EngineProtocolError, match="no chunk"):
        StreamDecoder().step([json.dumps(running).encode()])


def test_chat_logprobs_are_read_with_bytes_and_alternatives() -> None:
    entry = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": None, "bytes": None}],
    }
    choice = {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [entry]}}
    step = StreamDecoder().step([json.dumps({"choices": [choice]}).encode()])
    assert step is not None
    (logprob,) = step.deltas[0].logprobs
    assert (logprob.token, logprob.logprob, logprob.bytes) == ("é", -0.5, (195, 169))
    assert logprob.top[0].logprob == -math.inf


def test_text_completion_logprobs_are_read_from_their_parallel_lists() -> None:
    lists = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -2.0}]}
    choice = {"index": 0, "text": "a", "logprobs": lists}
    step = StreamDecoder().step([json.dumps({"choices": [choice]}).encode()])
    assert step is not None
    (logprob,) = step.deltas[0].logprobs
    assert [(top.token, top.logprob) for top in logprob.top] == [("a", -1.0), ("b", -2.0)]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("repetition_detected_in_2031", FinishReason.STOP),
    ],
)
def test_every_finish_reason_ends_the_choice(reason: str, finish: FinishReason) -> None:
    assert final([chunk(finish=reason), usage_chunk(), DONE]).deltas[-1].finish is finish


def test_a_generation_that_the_server_gave_up_is_no_answer() -> None:
    with pytest.raises(EngineProtocolError, match="gave the generation up"):
        StreamDecoder().step([chunk(content="a"), chunk(finish="abort")])


def test_a_finish_reason_said_twice_counts_once() -> None:
    step = final([chunk(content="a", finish="stop"), chunk(finish="stop"), usage_chunk(), DONE])
    assert [delta.finish for delta in step.deltas] == [FinishReason.STOP]


# --- What is missing or wrong ---------------------------------------------------------------------


def test_a_stream_without_usage_is_no_answer() -> None:
    with pytest.raises(EngineProtocolError, match="without saying its usage"):
        StreamDecoder().step([chunk(content="a", finish="stop"), DONE])


def test_a_running_count_does_not_stand_in_for_the_last_one() -> None:
    running = json.loads(chunk(content="a")) | {"usage": USAGE}
    with pytest.raises(EngineProtocolError, match="without saying its usage"):
        StreamDecoder().step([json.dumps(running).encode(), chunk(finish="stop"), DONE])


def test_usage_in_the_chunk_that_finishes_is_final() -> None:
    last = json.loads(chunk(finish="stop")) | {"usage": USAGE}
    assert final([chunk(content="a"), json.dumps(last).encode(), DONE]).usage == TokenUsage(7, 3)


def test_a_stream_without_a_finish_reason_is_no_answer() -> None:
    with pytest.raises(EngineProtocolError, match="1 of 1 choices unfinished"):
        StreamDecoder().step([chunk(content="a"), usage_chunk(), DONE])


def test_a_missing_alternative_is_noticed() -> None:
    with pytest.raises(EngineProtocolError, match="1 of 2 choices unfinished"):
        StreamDecoder(2).step([chunk(finish="stop"), usage_chunk(), DONE])


@pytest.mark.parametrize("index", [-1, 1, 10**9])
def test_an_alternative_nobody_asked_for_is_refused(index: int) -> None:
    with pytest.raises(EngineProtocolError, match="were asked for"):
        StreamDecoder(1).step([chunk(index=index, content="a")])


def test_text_after_the_end_of_a_choice_is_refused() -> None:
    with pytest.raises(EngineProtocolError, match="after its end"):
        StreamDecoder().step([chunk(finish="stop"), chunk(content="more")])


def test_events_after_done_are_refused() -> None:
    decoder = StreamDecoder()
    decoder.step([chunk(finish="stop"), usage_chunk(), DONE])
    with pytest.raises(EngineProtocolError, match="after the end"):
        decoder.step([chunk(content="more")])
    with pytest.raises(EngineProtocolError, match="after the end"):
        StreamDecoder().step([chunk(finish="stop"), usage_chunk(), DONE, chunk(content="more")])


@pytest.mark.parametrize(
    "payload",
    [
        b"garbage",
        b"{}",
        b"[]",
        b"null",
        b'{"choices":[{"delta":{"content":5}}]}',
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[{"delta":{"content":"a',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":2}}',
        b'{"choices":[],"usage":{"prompt_tokens":1e99}}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}',
    ],
)
def test_garbage_is_named_as_such_alone_and_among_good_events(payload: bytes) -> None:
    for payloads in ([payload], [chunk(content="a"), payload], [payload, chunk(content="a")]):
        with pytest.raises(EngineProtocolError):
            StreamDecoder().step(payloads)


def test_two_broken_events_do_not_make_a_good_one_together() -> None:
    with pytest.raises(EngineProtocolError):
        StreamDecoder().step([b'{"choices":[{"delta":{"content":"a', b'b"}}]}'])


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_no_bytes_whatever_raise_anything_but_an_engine_error(payloads: list[bytes]) -> None:
    with contextlib.suppress(EngineProtocolError, EngineRejected, EngineUnavailable):
        StreamDecoder().step(payloads)


# --- Usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, TokenUsage(10, 5)),
        (
            {
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            TokenUsage(10, 5, cached=4, reasoning=2),
        ),
        (
            {
                "prompt_tokens_details": {
                    "cached_tokens": 4,
                    "cache_creation_input_tokens": 3,
                    "cache_type": "ephemeral",
                }
            },
            TokenUsage(10, 5, cached_explicit=4, cache_creation=3),
        ),
        ({"prompt_tokens_details": None, "reasoning_tokens": 5}, TokenUsage(10, 5, reasoning=5)),
    ],
)
def test_usage_keeps_what_is_priced_apart(details: dict[str, Any], expected: TokenUsage) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5} | details
    assert final([chunk(finish="stop"), usage_chunk(usage), DONE]).usage == expected


def test_a_running_count_comes_with_each_step() -> None:
    decoder = StreamDecoder()
    for count in (1, 2):
        event = json.loads(chunk(content="a"))
        event["usage"] = {"prompt_tokens": 7, "completion_tokens": count}
        step = decoder.step([json.dumps(event).encode()])
        assert step is not None
        assert step.usage == TokenUsage(7, count)


def test_the_running_counts_of_alternatives_are_added_up() -> None:
    decoder = StreamDecoder(2)
    payloads = []
    for index, count in ((0, 4), (1, 6)):
        event = json.loads(chunk(index=index, content="a"))
        event["usage"] = {"prompt_tokens": 7, "completion_tokens": count}
        payloads.append(json.dumps(event).encode())
    step = decoder.step(payloads)
    assert step is not None
    assert step.usage == TokenUsage(7, 10)
    last = decoder.step(
        [
            chunk(index=0, finish="stop"),
            chunk(index=1, finish="stop"),
            usage_chunk({"prompt_tokens": 7, "completion_tokens": 11}),
            DONE,
        ]
    )
    assert last is not None
    assert last.usage == TokenUsage(7, 11)


def test_llama_servers_timings_are_a_running_count() -> None:
    event = json.loads(chunk(content="a"))
    event["timings"] = {"prompt_n": 3, "cache_n": 4, "predicted_n": 2, "predicted_ms": 1.5}
    step = StreamDecoder().step([json.dumps(event).encode()])
    assert step is not None
    assert step.usage == TokenUsage(7, 2, cached=4)


# --- Whole bodies ---------------------------------------------------------------------------------


def test_thoughts_are_counted_where_llama_server_does_not() -> None:
    def piece(number: int, **delta: str) -> bytes:
        timings = {"prompt_n": 3, "cache_n": 4, "predicted_n": number}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return json.dumps({"choices": [choice], "timings": timings}).encode()

    decoder = StreamDecoder()
    step = decoder.step([piece(1, reasoning_content="a"), piece(2, reasoning_content="b")])
    assert step is not None
    assert step.usage == TokenUsage(7, 2, cached=4, reasoning=2)
    step = decoder.step([piece(4, content="c"), chunk(finish="stop"), usage_chunk(), DONE])
    assert step is not None
    assert step.usage == TokenUsage(7, 3, reasoning=2)


def test_a_whole_body_is_one_final_step() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    step = decode_completion(json.dumps(body | {"usage": USAGE}).encode())
    assert step.final
    assert step.usage == TokenUsage(7, 3)
    assert step.deltas[0].tool_calls[0].name == "f"


def test_a_whole_text_completion_is_read_too() -> None:
    body = {"choices": [{"index": 0, "text": "hi", "finish_reason": "length"}], "usage": USAGE}
    step = decode_completion(json.dumps(body).encode())
    assert (step.deltas[0].text, step.deltas[0].finish) == ("hi", FinishReason.LENGTH)


# --- Errors ---------------------------------------------------------------------------------------

_CONTEXT_BODIES = [
    {"error": {"message": "too long", "code": "context_length_exceeded"}},
    {
        "object": "error",
        "message": "This model's maximum context length is 4096 tokens. However, you requested",
        "code": 400,
    },
    {"error": {"message": "The decoder prompt (length 9) is longer than the maximum model length"}},
    {
        "object": "error",
        "message": "The input (9 tokens) is longer than the model's context length",
    },
    {"error": {"code": 400, "message": "exceeds it", "type": "exceed_context_size_error"}},
    {"code": "InvalidParameter", "message": "Range of input length should be [1, 129024]"},
]


@pytest.mark.parametrize("body", _CONTEXT_BODIES)
def test_a_prompt_over_the_context_is_told_apart_on_every_server(body: dict[str, Any]) -> None:
    error = decode_error(400, json.dumps(body).encode())
    assert isinstance(error, EngineRejected)
    assert error.context_length


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejection_repeats_the_servers_reason(status: int) -> None:
    error = decode_error(status, b'{"error":{"message":"temperature must be\\n below 2"}}')
    assert isinstance(error, EngineRejected)
    assert error.message == "temperature must be below 2"
    assert not error.context_length


@pytest.mark.parametrize("status", [302, 401, 403, 404, 408, 429, 500, 502, 503, 504])
def test_all_else_is_unavailability_and_says_nothing_of_the_servers_words(status: int) -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-upstream"}}'
    error = decode_error(status, body, hide=("sk-upstream",))
    assert isinstance(error, EngineUnavailable)
    assert error.retryable
    assert "sk-upstream" not in str(error)


def test_advice_to_the_operator_is_cut_out_of_a_rejection() -> None:
    said = "thinking_token_budget is set but reasoning_config is not configured."
    body = {"error": {"message": f"{said} Please set --reasoning-parser to use it.", "code": 400}}
    error = decode_error(400, json.dumps(body).encode())
    assert isinstance(error, EngineRejected)
    assert error.message == said


def test_the_upstream_key_is_cut_out_of_a_rejection() -> None:
    error = decode_error(400, b'{"message":"key sk-upstream is odd"}', hide=("sk-upstream",))
    assert str(error) == "key … is odd"


def test_an_account_in_arrears_is_the_operators_fault_not_the_callers() -> None:
    error = decode_error(400, b'{"error":{"code":"Arrearage","message":"Access denied"}}')
    assert isinstance(error, EngineUnavailable)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[1]", b'{"error":"plain words"}'])
def test_any_error_body_gives_an_error(body: bytes) -> None:
    assert isinstance(decode_error(400, body), EngineRejected)
    assert isinstance(decode_error(500, body), EngineUnavailable)


def test_a_long_reason_is_cut() -> None:
    error = decode_error(400, json.dumps({"message": "x" * 100_000}).encode())
    assert len(str(error)) <= 600


def test_an_error_event_is_what_it_stands_for_before_the_first_delta() -> None:
    refused = b'{"error":{"message":"bad","type":"BadRequestError","code":400}}'
    with pytest.raises(EngineRejected, match="bad"):
        StreamDecoder().step([refused])
    with pytest.raises(EngineUnavailable):
        StreamDecoder().step([b'{"error":{"message":"boom","code":500}}'])
    with pytest.raises(EngineUnavailable):
        StreamDecoder().step([b'{"error":"boom"}'])


def test_the_upstream_key_is_cut_out_of_an_error_event_too() -> None:
    refused = b'{"error":{"message":"key sk-upstream is odd","code":400}}'
    with pytest.raises(EngineRejected, match="key … is odd"):
        StreamDecoder(hide=("sk-upstream",)).step([refused])


def test_an_error_event_after_the_first_delta_breaks_the_answer_off() -> None:
    decoder = StreamDecoder()
    decoder.step([chunk(content="a")])
    with pytest.raises(EngineProtocolError, match="broke its stream off"):
        decoder.step([b'{"error":{"message":"bad","code":400}}'])


# --- Embeddings -----------------------------------------------------------------------------------

TWO = EmbeddingRequest(model="m", inputs=("a", "b"))


def _embeddings(*items: object) -> bytes:
    data = [{"index": index, "embedding": item} for index, item in enumerate(items)]
    return json.dumps({"data": data[::-1], "usage": {"prompt_tokens": 4}}).encode()


def test_embeddings_are_unit_vectors_in_the_order_of_the_inputs() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.0, -2.0)).decode()
    result = decode_embeddings(_embeddings([3.0, 4.0], packed), TWO)
    assert result.vectors == ((0.6, 0.8), (0.0, -1.0))
    assert result.usage == TokenUsage(4)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"junk",
        _embeddings([1.0]),
        _embeddings([1.0], [1.0], [1.0]),
        _embeddings([1.0], [1.0, 0.0]),
        _embeddings([0.0], [1.0]),
        _embeddings([], []),
        _embeddings("AAA", [1.0]),
        _embeddings("AAAAAAA=", [1.0]),
        _embeddings(base64.b64encode(struct.pack("<f", math.nan)).decode(), [1.0]),
        b'{"data":[{"index":0,"embedding":[1.0]},{"index":0,"embedding":[1.0]}],'
        b'"usage":{"prompt_tokens":1}}',
        b'{"data":[{"embedding":[1.0]},{"embedding":[1.0]}]}',
    ],
)
def test_broken_embeddings_are_refused(body: bytes) -> None:
    with pytest.raises(EngineProtocolError):
        decode_embeddings(body, TWO)
