"""One remote engine against real servers on loopback, most of which misbehave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from qwenstack.core.generation import (
    CompletionBuilder,
    EmbeddingRequest,
    GenerationRequest,
    Message,
    Step,
    TextPart,
)
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines import server_calls
from qwenstack.engines.interface import (
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.openai_http import OpenAIEngine
from qwenstack.engines.openai_settings import OpenAIServer
from tests.component.scripted_upstream import (
    DONE,
    FINISH,
    USAGE,
    Exchange,
    Script,
    Upstream,
    answer,
    chunked,
    event,
    text,
    upstream,
)

CHAT = GenerationRequest(
    model="m", messages=(Message(role="user", content=(TextPart("capital of France?"),)),)
)


@asynccontextmanager
async def engine(script: Script, **fields: Any) -> AsyncIterator[tuple[OpenAIEngine, Upstream]]:
    async with upstream(script) as server:
        made = OpenAIEngine(OpenAIServer(base_url=server.base_url, region="test", **fields))
        await made.start()
        try:
            yield made, server
        finally:
            await made.close()


async def run(made: OpenAIEngine, request: GenerationRequest = CHAT) -> list[Step]:
    return [step async for step in made.generate(request)]


async def fails(made: OpenAIEngine, kind: type[EngineError]) -> tuple[EngineError, list[Step]]:
    steps: list[Step] = []
    with pytest.raises(kind) as caught:
        async for step in made.generate(CHAT):
            steps.append(step)
    assert type(caught.value) is kind
    return caught.value, steps


def said(steps: list[Step]) -> str:
    builder = CompletionBuilder()
    for step in steps:
        builder.add(step)
    return builder.build().choices[0].text


# --- What a good server gets and gives ------------------------------------------------------------


async def test_a_streamed_answer_comes_whole_with_the_servers_usage() -> None:
    async with engine(answer) as (made, _):
        steps = await run(made)
        assert said(steps) == "Paris"
        assert [step.final for step in steps].count(True) == 1
        assert steps[-1].usage == TokenUsage(5, 2)


async def test_all_events_of_one_write_come_in_one_step() -> None:
    async with engine(answer) as (made, _):
        (step,) = await run(made)
        assert [delta.text for delta in step.deltas] == ["Par", "is", ""]


async def test_each_write_is_passed_on_before_the_next_one_comes() -> None:
    passed = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("Par"))
        await passed.wait()
        await exchange.send(text("is"), FINISH, USAGE, DONE)
        await exchange.end()

    async with engine(script) as (made, _), asyncio.timeout(10):
        steps = []
        async for step in made.generate(CHAT):
            steps.append(step)
            passed.set()
        assert said(steps) == "Paris"


async def test_an_answer_cut_at_every_byte_is_the_same() -> None:
    stream = text("Pär") + text("is") + FINISH + USAGE + DONE

    async def script(exchange: Exchange) -> None:
        cut = int(exchange.body["messages"][0]["content"])
        await exchange.begin()
        await exchange.send(stream[:cut])
        await asyncio.sleep(0)
        await exchange.send(stream[cut:])
        await exchange.end()

    async with engine(script) as (made, _):
        for cut in range(1, len(stream)):
            part = TextPart(str(cut))
            request = GenerationRequest(
                model="m", messages=(Message(role="user", content=(part,)),)
            )
            assert said(await run(made, request)) == "Päris"


async def test_the_connection_is_kept_for_the_next_request() -> None:
    async with engine(answer) as (made, server):
        for _ in range(20):
            await run(made)
        assert server.connections == 1


async def test_the_connection_is_kept_when_the_body_ends_after_the_last_event() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"), FINISH, USAGE, DONE)
        await asyncio.sleep(0.02)
        await exchange.end()

    async with engine(script) as (made, server):
        for _ in range(5):
            steps = made.generate(CHAT)
            step = await anext(steps)
            assert step.final
            await steps.aclose()
            await asyncio.sleep(0.1)
        assert server.connections == 1


async def test_a_pooled_connection_that_the_server_just_closed_costs_no_request() -> None:
    async def script(exchange: Exchange) -> None:
        await answer(exchange)
        await exchange.reader.read(1)  # the next request, on the same connection
        exchange.drop()

    async with engine(script) as (made, _):
        for _ in range(5):
            assert said(await run(made)) == "Paris"


async def test_a_request_that_the_server_died_of_after_a_while_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_calls, "_STALE_S", 0.05)
    asked = 0

    async def script(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await answer(exchange)
        await exchange.reader.readuntil(b"\r\n\r\n")
        asked += 1
        await asyncio.sleep(0.1)
        exchange.drop()

    async with engine(script) as (made, _):
        assert said(await run(made)) == "Paris"
        await fails(made, EngineUnavailable)
    assert asked == 2


async def test_a_server_that_streams_nothing_but_answers_whole_is_understood() -> None:
    choice = {"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2}

    async def script(exchange: Exchange) -> None:
        await exchange.whole(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    async with engine(script) as (made, _):
        steps = await run(made)
        assert said(steps) == "Paris"
        assert steps[-1].final


async def test_a_stream_that_ends_without_done_but_whole_is_accepted() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("Paris"), FINISH, USAGE.rstrip())
        await exchange.end()

    async with engine(script) as (made, _):
        assert said(await run(made)) == "Paris"


async def test_a_raw_prompt_goes_to_the_completions_route() -> None:
    choice = {"index": 0, "text": "Paris", "finish_reason": "stop"}

    async def script(exchange: Exchange) -> None:
        assert exchange.path == "/v1/completions"
        await exchange.begin()
        await exchange.send(event({"choices": [choice]}), USAGE, DONE)
        await exchange.end()

    async with engine(script) as (made, _):
        assert said(await run(made, GenerationRequest(model="m", prompt="France:"))) == "Paris"


@pytest.mark.parametrize(("several", "names"), [(True, ["f", "g"]), (False, ["f"])])
async def test_one_tool_call_comes_at_most_where_the_server_does_not_keep_to_that(
    several: bool, names: list[str]
) -> None:
    async def script(exchange: Exchange) -> None:
        calls = [
            {"index": index, "id": name, "function": {"name": name, "arguments": "{}"}}
            for index, name in enumerate("fg")
        ]
        choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}
        await exchange.begin()
        await exchange.send(event({"choices": [choice]}), USAGE, DONE)
        await exchange.end()

    request = msgspec.structs.replace(CHAT, parallel_tool_calls=several)
    async with engine(script) as (made, _):
        builder = CompletionBuilder()
        for step in await run(made, request):
            builder.add(step)
    assert [call.name for call in builder.build().choices[0].tool_calls] == names


async def test_the_key_goes_into_the_header_and_nowhere_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def script(exchange: Exchange) -> None:
        key = exchange.headers["authorization"]
        await exchange.whole(401, json.dumps({"error": {"message": f"bad key {key}"}}).encode())

    async with engine(script, api_key="sk-upstream") as (made, server):
        error, _ = await fails(made, EngineUnavailable)
        assert server.requests[0].headers["authorization"] == "Bearer sk-upstream"
    chain: BaseException | None = error
    while chain is not None:
        assert "sk-upstream" not in repr(chain)
        chain = chain.__cause__
    assert "sk-upstream" not in caplog.text


async def test_a_large_answer_comes_whole_through_a_small_buffer() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        for _ in range(500):
            await exchange.send(*[text("x" * 100)] * 20)
        await exchange.send(FINISH, USAGE, DONE)
        await exchange.end()

    async with engine(script, read_buffer_bytes=4096) as (made, _):
        steps = []
        async for step in made.generate(CHAT):
            steps.append(step)
            if len(steps) % 50 == 0:
                await asyncio.sleep(0.001)
        assert said(steps) == "x" * 1_000_000


async def test_a_consumer_that_stops_reading_stops_the_server() -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.begin()
        for _ in range(10_000):
            await exchange.send(text("x" * 10_000))
            sent += 10_000

    async with engine(script, read_buffer_bytes=65_536, idle_s=0.3) as (made, _):
        steps = made.generate(CHAT)
        await anext(steps)
        await asyncio.sleep(1.0)
        stalled = sent
        await asyncio.sleep(0.5)
        assert sent == stalled  # it waits, though the idle time-out has passed: we are the slow one
        assert sent < 20_000_000  # what socket buffers and ours hold
        await anext(steps)
        await steps.aclose()


# --- Cancelling -----------------------------------------------------------------------------------


async def test_closing_the_generator_closes_the_connection_to_the_server() -> None:
    gone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"))
        await exchange.gone()
        gone.set()

    async with engine(script) as (made, _), asyncio.timeout(10):
        steps = made.generate(CHAT)
        await anext(steps)
        await steps.aclose()
        await gone.wait()


async def test_cancelling_before_the_first_byte_reaches_the_server_too() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        came.set()
        await exchange.gone()
        gone.set()

    async with engine(script) as (made, _), asyncio.timeout(10):
        task = asyncio.create_task(run(made))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


@pytest.mark.parametrize("begins", [False, True])
async def test_closing_the_engine_ends_what_runs_in_it(begins: bool) -> None:
    came = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if begins:
            await exchange.begin()
        came.set()
        await exchange.gone()

    async with engine(script) as (made, _), asyncio.timeout(10):
        task = asyncio.create_task(run(made))
        await came.wait()
        await asyncio.sleep(0.05)
        await made.close()
        with pytest.raises(EngineUnavailable):
            await task
        with pytest.raises(EngineUnavailable, match="not started"):
            await run(made)


# --- Misbehaving servers --------------------------------------------------------------------------


async def test_a_server_that_dies_mid_stream_breaks_the_answer_off() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("Par"))
        await asyncio.sleep(0.05)
        exchange.drop()

    async with engine(script) as (made, _):
        error, steps = await fails(made, EngineProtocolError)
        assert [delta.text for step in steps for delta in step.deltas] == ["Par"]
        assert not error.retryable


@pytest.mark.parametrize("begins", [False, True])
async def test_a_server_that_dies_before_the_first_event_may_be_replaced(begins: bool) -> None:
    async def script(exchange: Exchange) -> None:
        if begins:
            await exchange.begin()
            await asyncio.sleep(0.02)
        exchange.drop()

    async with engine(script) as (made, server):
        error, steps = await fails(made, EngineUnavailable)
        assert steps == []
        assert error.retryable
        assert len(server.requests) <= 2


async def test_a_stream_that_ends_early_but_cleanly_is_no_answer() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("Par"))
        await exchange.end()

    async with engine(script) as (made, _):
        await fails(made, EngineProtocolError)


async def test_an_empty_stream_may_be_asked_of_another_server() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.end()

    async with engine(script) as (made, _):
        await fails(made, EngineUnavailable)


async def test_a_server_that_nobody_runs_is_unavailable() -> None:
    async with upstream(answer) as server:
        base_url = server.base_url
    made = OpenAIEngine(OpenAIServer(base_url=base_url, region="test"))
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await made.start()
    assert not await made.healthy()


@pytest.mark.parametrize("begins", [False, True])
async def test_silence_before_the_first_event_has_a_limit_of_its_own(begins: bool) -> None:
    async def script(exchange: Exchange) -> None:
        if begins:
            await exchange.begin()
        await exchange.gone()

    async with engine(script, first_byte_s=0.2, idle_s=60) as (made, _), asyncio.timeout(10):
        await fails(made, EngineTimeout)


async def test_silence_between_events_has_a_limit_of_its_own() -> None:
    gone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"))
        await exchange.gone()
        gone.set()

    async with engine(script, first_byte_s=60, idle_s=0.2) as (made, _), asyncio.timeout(10):
        _, steps = await fails(made, EngineTimeout)
        assert len(steps) == 1
        await gone.wait()


async def test_an_answer_that_never_ends_has_a_limit() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        while True:
            await exchange.send(text("a"))
            await asyncio.sleep(0.02)

    async with engine(script, total_s=0.5) as (made, _), asyncio.timeout(10):
        await fails(made, EngineTimeout)


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: <html>\n\n",
        b"data: {}\n\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
        b"data: " + b"[" * 50_000 + b"\n\n",
    ],
)
async def test_garbage_in_the_stream_is_named_as_such(garbage: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"), garbage)
        await exchange.gone()

    async with engine(script) as (made, _):
        await fails(made, EngineProtocolError)


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 99])
async def test_what_is_not_http_is_named_as_such(raw: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.raw(raw)
        await exchange.gone()

    async with engine(script, api_key="sk-upstream") as (made, _), asyncio.timeout(10):
        error, _ = await fails(made, EngineProtocolError)
        assert error.__cause__ is None


async def test_a_broken_chunked_body_is_an_engine_error() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"))
        await asyncio.sleep(0.02)
        await exchange.raw(b"zz\r\nnonsense\r\n")
        await exchange.gone()

    async with engine(script) as (made, _), asyncio.timeout(10):
        await fails(made, EngineProtocolError)


async def test_an_event_over_the_limit_is_refused_before_it_is_whole() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.raw(chunked(b"data: "))
        while True:
            await exchange.raw(chunked(b"x" * 10_000))

    async with engine(script, max_event_bytes=100_000) as (made, _), asyncio.timeout(10):
        await fails(made, EngineProtocolError)


async def test_a_whole_body_over_the_limit_is_refused() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(200, b"x" * 1_000_000)

    async with engine(script, max_body_bytes=100_000) as (made, _):
        error, _ = await fails(made, EngineProtocolError)
        assert "more than 100000 bytes" in str(error)


async def test_an_endless_error_body_does_not_hide_the_status() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await exchange.raw(chunked(b"x" * 10_000))

    async with engine(script) as (made, _), asyncio.timeout(10):
        error, _ = await fails(made, EngineUnavailable)
        assert "503" in str(error)


async def test_a_stream_without_usage_is_no_answer() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text("a"), FINISH, DONE)
        await exchange.end()

    async with engine(script) as (made, _):
        await fails(made, EngineProtocolError)


async def test_a_rejection_reaches_the_caller_with_the_servers_reason() -> None:
    async def script(exchange: Exchange) -> None:
        body = {"error": {"message": "maximum context length is 9", "code": 400}}
        await exchange.whole(400, json.dumps(body).encode())

    async with engine(script) as (made, server):
        error, _ = await fails(made, EngineRejected)
        assert isinstance(error, EngineRejected)
        assert error.context_length
        await fails(made, EngineRejected)
        assert server.connections == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404, 429, 500, 503])
async def test_every_other_status_is_unavailability(status: int) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(status, b'{"error":{"message":"no"}}')

    async with engine(script) as (made, _):
        error, _ = await fails(made, EngineUnavailable)
        assert error.retryable


async def test_an_error_event_before_the_first_delta_may_be_asked_of_another_server() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(event({"error": {"message": "boom", "code": 500}}), DONE)
        await exchange.end()

    async with engine(script) as (made, _):
        await fails(made, EngineUnavailable)


async def test_more_requests_than_connections_wait_and_a_full_pool_has_a_limit() -> None:
    release = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await release.wait()
        await answer(exchange)

    options = {"max_connections": 1, "pool_wait_s": 0.1, "connect_s": 0.1}
    async with engine(script, **options) as (made, _), asyncio.timeout(10):
        first = asyncio.create_task(run(made))
        await asyncio.sleep(0.05)
        error, _ = await fails(made, EngineUnavailable)
        assert "in time" in str(error)
        release.set()
        assert said(await first) == "Paris"
        assert said(await run(made)) == "Paris"


# --- Everything besides generating ----------------------------------------------------------------


async def test_embeddings_are_fetched() -> None:
    async def script(exchange: Exchange) -> None:
        assert exchange.path == "/v1/embeddings"
        data = [{"index": 0, "embedding": [3.0, 4.0]}]
        await exchange.whole(
            200, json.dumps({"data": data, "usage": {"prompt_tokens": 2}}).encode()
        )

    async with engine(script) as (made, _):
        result = await made.embed(EmbeddingRequest(model="m", inputs=("a",)))
        assert result.vectors == ((0.6, 0.8),)
        assert result.usage == TokenUsage(2)


async def test_vllm_counts_a_chat_a_prompt_and_a_text() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/version":
            await exchange.whole(200, b'{"version":"0.32.0"}')
            return
        assert exchange.path == "/tokenize"
        count = 12 if "messages" in exchange.body else len(exchange.body["prompt"])
        await exchange.whole(200, json.dumps({"count": count, "tokens": [1] * count}).encode())

    async with engine(script, dialect="vllm") as (made, _):
        assert made.identity.version == "0.32.0"
        assert made.capabilities.context_tokens == 4096
        assert made.capabilities.running_usage
        assert made.capabilities.counts_prompts
        assert await made.count_prompt(CHAT) == 12
        assert await made.count_prompt(GenerationRequest(model="m", prompt="abc")) == 3
        assert await made.count_prompt(GenerationRequest(model="m", prompt=(1, 2))) == 2
        assert await made.count_prompt(EmbeddingRequest(model="m", inputs=("ab", (1,), "c"))) == 4
        assert await made.count_text("abcd") == 4


async def test_llama_server_counts_through_its_template_route() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/props":
            props = {"build_info": "b9000", "default_generation_settings": {"n_ctx": 2048}}
            await exchange.whole(200, json.dumps(props).encode())
        elif exchange.path == "/apply-template":
            await exchange.whole(200, b'{"prompt":"<|im_start|>user"}')
        else:
            assert exchange.path == "/tokenize"
            assert exchange.body["add_special"] is True
            assert exchange.body["content"] == "<|im_start|>user"
            await exchange.whole(200, b'{"tokens":[1,2,3]}')

    async with engine(script, dialect="llama_server") as (made, _):
        assert made.identity.version == "b9000"
        assert await made.count_prompt(CHAT) == 3


async def test_a_server_that_counts_nothing_says_so() -> None:
    async with engine(answer) as (made, _):
        assert not made.capabilities.counts_prompts
        with pytest.raises(EngineRejected, match="counts no prompts"):
            await made.count_prompt(CHAT)


async def test_a_model_that_vllm_does_not_serve_is_noticed_at_the_start() -> None:
    async with upstream(answer) as server:
        made = OpenAIEngine(
            OpenAIServer(
                base_url=server.base_url, region="test", dialect="vllm", upstream_model="other"
            )
        )
        with pytest.raises(EngineUnavailable, match="serves m, not 'other'"):
            await made.start()


async def test_start_waits_for_a_server_that_is_still_loading() -> None:
    asked = 0

    async def script(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await exchange.whole(*((503, b"{}") if asked < 3 else (200, b'{"data":[]}')))

    async with upstream(script, models=False) as server:
        made = OpenAIEngine(
            OpenAIServer(base_url=server.base_url, region="test", start_wait_s=20.0)
        )
        await made.start()
        assert asked == 3
        await made.close()


async def test_health_is_false_for_a_server_that_hangs_or_fails() -> None:
    async def script(exchange: Exchange) -> None:
        assert exchange.path == "/health"
        if not answers:
            await exchange.gone()
            return
        await exchange.whole(answers.pop(), b"{}")

    answers: list[int] = []
    async with engine(script, dialect="sglang", version="1", probe_s=0.3) as (made, _):
        assert not await made.healthy()
        answers += [200, 503]
        assert not await made.healthy()
        assert await made.healthy()
