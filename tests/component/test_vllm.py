"""A real vLLM behind the gateway, by the official OpenAI client. Only where one is at hand."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from qwenstack.studio.deployments import Deployment
from tests.component.vllm_server import CONTEXT_TOKENS, NAME, VllmServer, store_for_vllm
from tests.studio import MODEL, RunningStudio, running_studio

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
LONG: Any = [{"role": "user", "content": "Write the numbers from 1 to 500, one a line."}]
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": ARGUMENTS},
}


@pytest.fixture(scope="module")
def vllm(
    default_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    python = os.environ.get("QWENSTACK_VLLM_PYTHON")
    if not python:
        pytest.skip("no vLLM: set QWENSTACK_VLLM_PYTHON to a Python that has it")
    folder = tmp_path_factory.mktemp("vllm")
    store_for_vllm(default_model_path, folder / "model", python)
    server = VllmServer(python, folder / "model", folder / "log")
    server.start()
    yield server
    server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio(
    vllm: VllmServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningStudio]:
    engine = {"urls": (vllm.url,), "upstream_model": NAME, "dialect": "vllm"}
    home = tmp_path_factory.mktemp("home")
    async with running_studio(home, engine=engine, max_output_tokens=1024) as studio:
        yield studio


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(studio: RunningStudio) -> AsyncIterator[openai.AsyncOpenAI]:
    key = await studio.tenant()
    async with openai.AsyncOpenAI(
        base_url=f"{studio.url}/v1", api_key=key, max_retries=0, timeout=300
    ) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, messages: Any = PARIS, **fields: Any) -> Any:
    fields = {"max_tokens": 32, "temperature": 0, **fields}
    return await client.chat.completions.create(model=MODEL, messages=messages, **fields)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.2)


def deployment(studio: RunningStudio) -> Deployment:
    return studio.installation.deployments.get(MODEL)


async def test_vllm_tells_its_version_and_context(studio: RunningStudio) -> None:
    engine = deployment(studio).engine
    assert engine.identity.version[0].isdigit()
    assert engine.capabilities.context_tokens == CONTEXT_TOKENS
    assert await engine.healthy()


async def test_an_answer_comes_whole_and_streamed_with_one_usage(
    client: openai.AsyncOpenAI,
) -> None:
    whole = await ask(client)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    stream = await ask(client, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def test_what_came_from_the_prefix_cache_is_told_and_charged(
    client: openai.AsyncOpenAI, studio: RunningStudio
) -> None:
    messages = [{"role": "user", "content": "Paris is the capital of France. " * 40 + "And Spain?"}]
    first = await ask(client, messages, max_tokens=4)
    second = await ask(client, messages, max_tokens=4, n=2, temperature=1)
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= 128
    assert second.usage.completion_tokens == 8
    assert any(charge.usage.cached == cached for charge in await studio.charges())


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "get_weather"}}],
    ids=["required", "named"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_forced_call_comes_and_ends_the_choice(
    client: openai.AsyncOpenAI, choice: Any, stream: bool
) -> None:
    answer = await ask(
        client, WEATHER, tools=[TOOL], tool_choice=choice, max_tokens=64, stream=stream
    )
    if stream:
        pieces = [chunk.choices[0] async for chunk in answer if chunk.choices]
        calls = [call.function for each in pieces for call in each.delta.tool_calls or ()]
        name = next(call.name for call in calls if call.name)
        arguments = "".join(call.arguments or "" for call in calls)
        finish = next(each.finish_reason for each in pieces if each.finish_reason)
    else:
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        finish = answer.choices[0].finish_reason
    assert name == "get_weather"
    assert set(json.loads(arguments)) == {"city"}
    assert finish == "tool_calls"


async def test_no_tool_is_called_where_none_may_be(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, WEATHER, tools=[TOOL], tool_choice="none", max_tokens=8)
    assert not answer.choices[0].message.tool_calls
    assert (await ask(client, WEATHER, tools=[TOOL], max_tokens=64)).choices[0].message is not None


async def test_an_answer_keeps_to_its_schema(client: openai.AsyncOpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": ARGUMENTS}}
    answer = await ask(client, response_format=form, max_tokens=64)
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}


async def test_logprobs_come_with_just_the_alternatives_asked_for(
    client: openai.AsyncOpenAI,
) -> None:
    for asked in (0, 2):
        answer = await ask(client, logprobs=True, top_logprobs=asked, max_tokens=3)
        content = answer.choices[0].logprobs.content
        assert len(content) == 3
        assert all(each.logprob <= 0 and each.bytes for each in content)
        assert {len(each.top_logprobs) for each in content} == {asked}


async def test_stop_n_and_seed_are_honoured(client: openai.AsyncOpenAI) -> None:
    stopped = await ask(client, stop=["Paris"])
    assert "Paris" not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"
    several = await ask(client, n=3, temperature=1.0, seed=5, max_tokens=6)
    again = await ask(client, n=3, temperature=1.0, seed=5, max_tokens=6)
    texts = [choice.message.content for choice in several.choices]
    assert len(texts) == 3
    assert texts == [choice.message.content for choice in again.choices]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context"),
        ({"extra_body": {"foo": 1}}, "foo"),
        ({"extra_body": {"thinking_budget": 5}}, "think"),
        ({"logit_bias": {"999999999": 5}}, "logit_bias"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            "nonsense",
        ),
    ],
    ids=["context", "unknown", "budget", "bias", "schema"],
)
async def test_what_vllm_refuses_is_refused_with_the_reason(
    client: openai.AsyncOpenAI, fields: Any, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        await ask(client, **fields)
    assert "--reasoning" not in str(caught.value), "the caller cannot set vLLM's flags"
    if said == "context":
        assert caught.value.code == "context_length_exceeded"


async def test_anthropics_clients_hear_which_stop_sequence_vllm_met(studio: RunningStudio) -> None:
    key = await studio.tenant("stops")
    async with anthropic.AsyncAnthropic(
        base_url=studio.url, api_key=key, max_retries=0, timeout=300
    ) as client:
        for stops, expected in (
            (["never", "Paris"], ("stop_sequence", "Paris")),
            (["never"], ("end_turn", None)),
        ):
            answer = await client.messages.create(
                model=MODEL,
                messages=PARIS,
                max_tokens=60,
                stop_sequences=stops,
                extra_body={"temperature": 0},
            )
            assert (answer.stop_reason, answer.stop_sequence) == expected


async def test_a_client_that_leaves_stops_vllm_and_pays_for_what_it_got(
    client: openai.AsyncOpenAI, studio: RunningStudio, vllm: VllmServer
) -> None:
    before = vllm.metric("generation_tokens_total")
    stream = await ask(client, LONG, stream=True, max_tokens=1000)
    got = 0
    async for chunk in stream:
        got += bool(chunk.choices and chunk.choices[0].delta.content)
        if got == 5:
            break
    await stream.close()

    async def stopped() -> bool:
        return vllm.metric("num_requests_running") == 0

    async def billed() -> bool:
        return any(each.outcome == "interrupted" for each in await studio.charges())

    await eventually(stopped)
    await eventually(billed)
    assert vllm.metric("generation_tokens_total") - before < 500, "vLLM wrote it to its end"
    (charge,) = [each for each in await studio.charges() if each.outcome == "interrupted"]
    assert 5 <= charge.usage.completion < 500
    assert charge.usage.prompt > 20


async def test_a_vllm_killed_in_mid_stream_breaks_the_answer_off_and_serves_again(
    client: openai.AsyncOpenAI, studio: RunningStudio, vllm: VllmServer
) -> None:
    stream = await ask(client, LONG, stream=True, max_tokens=1000)
    got = 0
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            got += bool(chunk.choices and chunk.choices[0].delta.content)
            if got == 3:
                vllm.kill()
    assert got < 900
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client)
    assert caught.value.status_code == 503
    assert not await deployment(studio).engine.healthy()
    await asyncio.to_thread(vllm.start)
    assert "Paris" in (await ask(client)).choices[0].message.content
    assert await studio.problems() == []
