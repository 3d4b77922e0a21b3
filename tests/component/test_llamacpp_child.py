"""The engine's child process: whatever happens to it costs the requests in it and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio

from qwenstack.core.generation import GenerationRequest, Message, Sampling, TextPart
from qwenstack.engines.interface import (
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.llamacpp_child import LlamaCppConfiguration, missing_cpu_feature

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 256


def ask(text: str, max_tokens: int = 16) -> GenerationRequest:
    return GenerationRequest(
        model="m",
        messages=(Message(role="user", content=(TextPart(text),)),),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0.0),
    )


LONG = ask("Count from 1 to 500, one number a line.", 400)


async def answer(engine: LlamaCpp, request: GenerationRequest) -> str:
    texts = [
        delta.text async for step in engine.generate(request) for delta in step.deltas if delta.text
    ]
    return "".join(texts)


async def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.05)


def make(path: Path, **options: object) -> LlamaCpp:
    defaults: dict[str, object] = {"parallel": 2, "context_tokens": CONTEXT}
    settings = msgspec.convert(defaults | options, LlamaCppOptions)
    return LlamaCpp(path, digest="sha256:0", region="test", settings=settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(default_model_path: Path) -> AsyncIterator[LlamaCpp]:
    """An engine whose child the tests of this file may kill."""
    engine = make(default_model_path, silence_s_max=2.0)
    await engine.start()
    yield engine
    await engine.close()


async def busy_slots(engine: LlamaCpp) -> int:
    return sum(bool(slot["is_processing"]) for slot in await engine._server.slots())


async def test_closing_a_generation_frees_its_slot(engine: LlamaCpp) -> None:
    generations = [engine.generate(LONG) for _ in range(2)]
    for generation in generations:
        await anext(generation)
    assert await busy_slots(engine) == 2
    for generation in generations:
        await generation.aclose()

    async def idle() -> bool:
        return await busy_slots(engine) == 0

    await eventually(idle)


async def test_cancelling_the_consumer_before_the_first_token_frees_the_slot(
    engine: LlamaCpp,
) -> None:
    task = asyncio.create_task(answer(engine, LONG))
    await eventually(lambda: busy_slots(engine))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def idle() -> bool:
        return await busy_slots(engine) == 0

    await eventually(idle)


@pytest.mark.parametrize("extra", [0, 5000])
async def test_a_prompt_over_the_context_is_refused_as_such(engine: LlamaCpp, extra: int) -> None:
    with pytest.raises(EngineRejected) as caught:
        await answer(engine, ask("word " * (CONTEXT + extra)))
    assert caught.value.context_length
    assert await answer(engine, ask("Say hi."))


async def test_a_context_that_fills_up_ends_the_answer_by_length(engine: LlamaCpp) -> None:
    numbers = "".join(f"{number}\n" for number in range(100, 158))  # 4 tokens a line
    request = msgspec.structs.replace(LONG, messages=(), prompt=numbers, max_tokens=10_000)
    reasons = []
    async for step in engine.generate(request):
        reasons += [delta.finish.value for delta in step.deltas if delta.finish is not None]
        if step.final:
            assert step.usage is not None
            assert step.usage.total <= CONTEXT
    assert reasons == ["length"]


async def test_kill_9_of_the_child_costs_only_the_requests_in_it(engine: LlamaCpp) -> None:
    child = engine._server.child
    generation = engine.generate(LONG)
    await anext(generation)
    killed = child.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineError) as caught:
        async for _ in generation:
            pass
    assert "broke" in str(caught.value) or "ended" in str(caught.value)
    assert "Paris" in await answer(engine, ask("What is the capital of France?"))
    assert child.pid != killed
    assert child.last_failure == "it was ended by SIGKILL"
    assert await engine.healthy()


async def test_a_child_that_hangs_is_replaced(engine: LlamaCpp) -> None:
    child = engine._server.child
    stuck = child.pid
    assert stuck is not None
    generation = engine.generate(LONG)
    await anext(generation)
    os.kill(stuck, signal.SIGSTOP)
    with pytest.raises((EngineUnavailable, EngineTimeout, EngineError)):
        async for _ in generation:
            pass
    await eventually(lambda: child.last_failure == "it did not react for 2 s")
    assert not psutil.pid_exists(stuck)
    assert await answer(engine, ask("Say hi."))


async def test_a_child_over_its_memory_limit_is_replaced(default_model_path: Path) -> None:
    engine = make(default_model_path, memory_bytes_max=200 * 2**20)
    with pytest.raises(EngineUnavailable, match="over its limit of 200 MiB"):
        await engine.start()
    assert engine._server.child.pid is None
    assert not await engine.healthy()


async def test_a_running_child_over_its_memory_limit_is_replaced(engine: LlamaCpp) -> None:
    child = engine._server.child
    before = child.pid
    spec = child._spec
    child._spec = msgspec.structs.replace(spec, memory_bytes_max=child.resident_bytes() // 2)
    try:
        await eventually(lambda: not child.ready)
    finally:
        child._spec = spec
    assert await answer(engine, ask("Say hi."))
    assert child.pid != before
    assert "over its limit" in str(child.last_failure)


async def test_close_ends_running_generations(default_model_path: Path) -> None:
    engine = make(default_model_path)
    await engine.start()
    pid = engine._server.child.pid
    generation = engine.generate(LONG)
    await anext(generation)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        async for _ in generation:
            pass
    assert pid is not None
    assert not psutil.pid_exists(pid)
    with pytest.raises(EngineUnavailable):
        await answer(engine, LONG)


PARENT = """
import asyncio, sys
from pathlib import Path
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
async def main():
    options = LlamaCppOptions(parallel=1, context_tokens=512)
    engine = LlamaCpp(Path(sys.argv[1]), digest="sha256:0", region="test", settings=options)
    await engine.start()
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("loaded", [False, True], ids=["while loading", "while serving"])
async def test_kill_9_of_the_parent_ends_the_child(default_model_path: Path, loaded: bool) -> None:
    command = [sys.executable, "-c", PARENT, str(default_model_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        children: list[psutil.Process] = []

        def started() -> bool:
            children[:] = psutil.Process(parent.pid).children()
            return bool(children)

        await eventually(started)
        assert parent.stdout is not None
        if loaded:
            assert await asyncio.to_thread(parent.stdout.readline) == b"ready\n"
        parent.kill()
    await eventually(lambda: not children[0].is_running())


async def test_a_model_of_unknown_architecture_is_named(
    default_model_path: Path, tmp_path: Path
) -> None:
    with default_model_path.open("rb") as file:
        content = bytearray(file.read())
    for marker in (b"general.architecture", b"qwen2.context_length", b"qwen2.block_count"):
        at = content.find(b"qwen2", content.find(marker))
        content[at : at + 5] = b"qwenX"
    path = tmp_path / "unknown.gguf"
    path.write_bytes(content)
    engine = make(path)
    with pytest.raises(EngineUnavailable, match="unknown model architecture: 'qwenX'"):
        await engine.start()


async def test_a_processor_without_avx2_is_told_so(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu sse4_2 avx f16c fma\n")
    message = missing_cpu_feature(cpuinfo, machine="x86_64")
    assert message is not None
    assert "AVX2" in message
    assert missing_cpu_feature(cpuinfo, machine="aarch64") is None
    cpuinfo.write_text("processor : 0\nflags : fpu avx avx2 f16c fma\n")
    assert missing_cpu_feature(cpuinfo, machine="x86_64") is None


async def test_the_childs_key_is_in_no_process_list(engine: LlamaCpp) -> None:
    pid = engine._server.child.pid
    key = msgspec.json.decode(
        engine._server.child._spec.configuration, type=LlamaCppConfiguration
    ).api_key
    assert len(key) > 30
    assert key not in " ".join(psutil.Process(pid).cmdline())
    assert key not in str(psutil.Process(pid).environ())
