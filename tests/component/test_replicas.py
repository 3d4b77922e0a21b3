"""Several remote engines as one, against real servers that come, go and fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from qwenstack.core.generation import EmbeddingRequest, GenerationRequest, Message, Step, TextPart
from qwenstack.engines.breaker import BreakerOptions
from qwenstack.engines.interface import (
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.openai_http import OpenAIEngine
from qwenstack.engines.openai_settings import OpenAIServer
from qwenstack.engines.replicas import Replicas
from tests.component.scripted_upstream import Exchange, Script, Upstream, answer, text, upstream

CHAT = GenerationRequest(
    model="m", messages=(Message(role="user", content=(TextPart("capital of France?"),)),)
)
# Long enough that no health check and no end of a rest falls into a test by itself.
CALM = BreakerOptions(failures=3, rest_s=60.0, health_interval_s=60.0)


@asynccontextmanager
async def replicas(
    *scripts: Script, options: BreakerOptions = CALM, first_byte_s: float = 10.0
) -> AsyncIterator[tuple[Replicas, list[Upstream]]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(upstream(script)) for script in scripts]
        made = Replicas(
            [
                OpenAIEngine(
                    OpenAIServer(base_url=server.base_url, region="test", first_byte_s=first_byte_s)
                )
                for server in servers
            ],
            options,
        )
        await made.start()
        stack.push_async_callback(made.close)
        async with asyncio.timeout(20):
            yield made, servers


async def run(made: Replicas) -> list[Step]:
    return [step async for step in made.generate(CHAT)]


def status(code: int) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(code, b"{}")

    return script


async def dies_mid_stream(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.send(text("Par"))
    await asyncio.sleep(0.05)
    exchange.drop()


async def hangs(exchange: Exchange) -> None:
    await exchange.gone()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


# --- Another replica ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_request_that_one_replica_cannot_take_is_answered_by_another(code: int) -> None:
    async with replicas(status(code), answer) as (made, _):
        for _ in range(4):
            steps = await run(made)
            assert steps[-1].final


async def test_after_the_first_step_no_other_replica_is_asked() -> None:
    async with replicas(dies_mid_stream, dies_mid_stream) as (made, servers):
        steps = []
        with pytest.raises(EngineProtocolError):
            async for step in made.generate(CHAT):
                steps.append(step)
        assert len(steps) == 1
        assert sum(len(server.generations()) for server in servers) == 1


async def test_an_answer_that_says_nothing_before_it_breaks_is_still_another_replicas() -> None:
    async def opens_and_dies(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.send(text(""))
        await asyncio.sleep(0.05)
        exchange.drop()

    async with replicas(opens_and_dies, answer) as (made, servers):
        for _ in range(2):
            steps = await run(made)
            assert steps[-1].final
            words = "".join(delta.text for step in steps for delta in step.deltas)
            assert words == "Paris"
        assert servers[0].generations()


async def test_a_request_that_is_itself_at_fault_is_asked_of_no_other_replica() -> None:
    async with replicas(status(400), status(400)) as (made, servers):
        for _ in range(10):
            with pytest.raises(EngineRejected):
                await run(made)
        assert sum(len(server.generations()) for server in servers) == 10
        assert await made.healthy()


async def test_a_request_is_given_to_a_bounded_number_of_replicas() -> None:
    options = BreakerOptions(failures=99, attempts_max=2, health_interval_s=60.0)
    async with replicas(*[status(503)] * 4, options=options) as (made, servers):
        with pytest.raises(EngineUnavailable, match="503"):
            await run(made)
        assert sum(len(server.generations()) for server in servers) == 2


async def test_embeddings_and_counts_go_to_another_replica_too() -> None:
    async def embeds(exchange: Exchange) -> None:
        await exchange.whole(
            200, b'{"data":[{"index":0,"embedding":[1.0]}],"usage":{"prompt_tokens":2}}'
        )

    async with replicas(status(503), embeds) as (made, _):
        for _ in range(2):
            result = await made.embed(EmbeddingRequest(model="m", inputs=("a",)))
            assert result.vectors == ((1.0,),)


# --- Choosing -------------------------------------------------------------------------------------


async def test_the_least_loaded_replica_is_chosen() -> None:
    release = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await release.wait()
        await answer(exchange)

    async with replicas(waits, waits, waits) as (made, servers):
        tasks = [asyncio.create_task(run(made)) for _ in range(9)]
        await asyncio.sleep(0.3)
        assert [len(server.generations()) for server in servers] == [3, 3, 3]
        release.set()
        await asyncio.gather(*tasks)


async def test_equally_idle_replicas_take_turns() -> None:
    async with replicas(answer, answer) as (made, servers):
        for _ in range(10):
            await run(made)
        assert [len(server.generations()) for server in servers] == [5, 5]


async def test_a_client_that_leaves_takes_its_load_with_it() -> None:
    async with replicas(hangs, hangs) as (made, servers):
        for _ in range(6):
            task = asyncio.create_task(run(made))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert [len(server.generations()) for server in servers] == [3, 3]
        assert await made.healthy()


# --- The breaker ----------------------------------------------------------------------------------


async def test_a_replica_that_keeps_failing_is_left_alone() -> None:
    async with replicas(status(500), answer) as (made, servers):
        for _ in range(20):
            await run(made)
        assert len(servers[0].generations()) == CALM.failures
        assert len(servers[1].generations()) == 20


async def test_streams_that_break_off_count_as_failures() -> None:
    async with replicas(dies_mid_stream) as (made, servers):
        for _ in range(CALM.failures):
            with pytest.raises(EngineProtocolError):
                await run(made)
        # Each began well, which closes a breaker but forgives nothing.
        with pytest.raises(EngineUnavailable, match="failed lately"):
            await run(made)
        assert len(servers[0].generations()) == CALM.failures
        assert not await made.healthy()


async def test_a_replica_that_hangs_is_left_alone() -> None:
    async with replicas(hangs, first_byte_s=0.1) as (made, _):
        for _ in range(CALM.failures):
            with pytest.raises(EngineTimeout):
                await run(made)
        with pytest.raises(EngineUnavailable, match="failed lately"):
            await run(made)


async def test_after_a_rest_one_request_tries_a_replica_and_success_brings_it_back() -> None:
    well = False

    async def script(exchange: Exchange) -> None:
        await (answer(exchange) if well else exchange.whole(503, b"{}"))

    options = BreakerOptions(failures=2, rest_s=0.3, health_interval_s=60.0)
    async with replicas(script, options=options) as (made, servers):
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="503"):
                await run(made)
        with pytest.raises(EngineUnavailable, match="failed lately"):
            await run(made)
        await asyncio.sleep(0.4)
        with pytest.raises(EngineUnavailable, match="503"):
            await run(made)  # the trial fails, so it rests again
        with pytest.raises(EngineUnavailable, match="failed lately"):
            await run(made)
        assert len(servers[0].generations()) == 3
        well = True
        await asyncio.sleep(0.4)
        for _ in range(3):
            assert (await run(made))[-1].final


async def test_only_one_of_many_requests_is_the_trial() -> None:
    release = asyncio.Event()
    failing = True

    async def script(exchange: Exchange) -> None:
        if failing:
            await exchange.whole(503, b"{}")
            return
        await release.wait()
        await answer(exchange)

    options = BreakerOptions(failures=1, rest_s=0.2, health_interval_s=60.0)
    async with replicas(script, options=options) as (made, servers):
        with pytest.raises(EngineUnavailable):
            await run(made)
        failing = False
        await asyncio.sleep(0.3)
        tasks = [asyncio.create_task(run(made)) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert len(servers[0].generations()) == 2
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, list) for result in results) == 1
        assert (await run(made))[-1].final


async def test_a_trial_whose_client_leaves_does_not_lock_the_replica_out() -> None:
    state = "failing"

    async def script(exchange: Exchange) -> None:
        if state == "failing":
            await exchange.whole(503, b"{}")
        elif state == "hanging":
            await exchange.gone()
        else:
            await answer(exchange)

    options = BreakerOptions(failures=1, rest_s=0.1, health_interval_s=60.0)
    async with replicas(script, options=options) as (made, _):
        with pytest.raises(EngineUnavailable):
            await run(made)
        state = "hanging"
        await asyncio.sleep(0.2)
        trial = asyncio.create_task(run(made))
        await asyncio.sleep(0.1)
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        state = "well"
        assert (await run(made))[-1].final


# --- Health ---------------------------------------------------------------------------------------


async def test_health_checks_find_a_dead_replica_without_a_request() -> None:
    options = BreakerOptions(failures=2, rest_s=0.2, health_interval_s=0.05)
    async with AsyncExitStack() as stack:
        dying = AsyncExitStack()
        server = await dying.enter_async_context(upstream(answer))
        engine = OpenAIEngine(OpenAIServer(base_url=server.base_url, region="test"))
        made = Replicas([engine], options)
        await made.start()
        stack.push_async_callback(made.close)
        assert await made.healthy()
        await dying.aclose()

        async def ill() -> bool:
            return not await made.healthy()

        async with asyncio.timeout(10):
            await eventually(ill)


async def test_a_replica_that_is_down_at_the_start_joins_when_it_comes_up() -> None:
    options = BreakerOptions(health_interval_s=0.05)
    up = False

    async def late(exchange: Exchange) -> None:
        if exchange.path == "/v1/models":
            await exchange.whole(*((200, b'{"data":[]}') if up else (503, b"{}")))
        else:
            await answer(exchange)

    async with upstream(answer) as first, upstream(late, models=False) as second:
        engines = [
            OpenAIEngine(OpenAIServer(base_url=server.base_url, region="test"))
            for server in (first, second)
        ]
        made = Replicas(engines, options)
        await made.start()
        try:
            await run(made)
            await run(made)
            assert len(first.generations()) == 2
            up = True

            async def joined() -> bool:
                await run(made)
                return bool(second.generations())

            async with asyncio.timeout(10):
                await eventually(joined)
        finally:
            await made.close()


async def test_start_fails_when_no_replica_answers() -> None:
    async with upstream(answer) as server:
        base_url = server.base_url
    engine = OpenAIEngine(OpenAIServer(base_url=base_url, region="test"))
    with pytest.raises(EngineUnavailable, match="none of 1 replicas answers"):
        await Replicas([engine], CALM).start()


def test_replicas_in_different_regions_are_refused() -> None:
    engines = [
        OpenAIEngine(OpenAIServer(base_url="http://127.0.0.1:1/v1", region=region))
        for region in ("eu", "us")
    ]
    with pytest.raises(ValueError, match="one region, but these have eu, us"):
        Replicas(engines)


def test_no_replica_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one replica"):
        Replicas([])
