"""What users, operators and kernels do to the embedded engine besides asking it a question."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qwenstack.core.generation import (
    EmbeddingRequest,
    GenerationRequest,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
)
from qwenstack.engines.interface import EngineRejected, EngineUnavailable
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions

PARENT = """
import asyncio, sys
from pathlib import Path
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
async def main():
    options = LlamaCppOptions(parallel=1, context_tokens=512)
    engine = LlamaCpp(Path(sys.argv[1]), digest="sha256:0", region="test", settings=options)
    await engine.start()
    print(engine._server.child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def small(path: Path) -> LlamaCpp:
    settings = LlamaCppOptions(parallel=1, context_tokens=512)
    return LlamaCpp(path, digest="sha256:0", region="test", settings=settings)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


async def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
async def test_a_hung_child_does_not_outlive_its_killed_parent(default_model_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(default_model_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(await asyncio.to_thread(parent.stdout.readline)))
        os.kill(child.pid, signal.SIGSTOP)
        await eventually(lambda: child.status() == psutil.STATUS_STOPPED)
        parent.kill()
    try:
        await eventually(lambda: gone(child))
    finally:
        if not gone(child):
            child.kill()


async def test_close_while_the_embedder_loads_leaves_no_child(default_model_path: Path) -> None:
    before = children()
    engine = small(default_model_path)
    await engine.start()
    generating = children()
    embedding = asyncio.create_task(engine.embed(EmbeddingRequest(model="m", inputs=("hi",))))
    await eventually(lambda: children() > generating)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await embedding
    assert children() <= before


async def test_an_embedding_input_is_taken_to_its_limit_and_refused_over_it(
    default_model_path: Path,
) -> None:
    engine = small(default_model_path)
    await engine.start()
    try:
        whole = await engine.embed(EmbeddingRequest(model="m", inputs=((5,) * 512,)))
        assert whole.usage.prompt == 512
        for over in ((5,) * 513, "a b " * 2000):
            with pytest.raises(EngineRejected, match="512") as caught:
                await engine.embed(EmbeddingRequest(model="m", inputs=(over,)))
            assert caught.value.context_length
    finally:
        await engine.close()


BAD_CALL = (
    Message(role="user", content=(TextPart("hi"),)),
    Message(role="assistant", tool_calls=(ToolCall("c1", "f", "not json"),)),
    Message(role="tool", tool_call_id="c1", content=(TextPart("x"),)),
)
IMAGE = (Message(role="user", content=(ImagePart("data:image/png;base64,AAAA"),)),)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("messages", "words"), [(BAD_CALL, "JSON"), (IMAGE, "image")], ids=["tool call", "image"]
)
async def test_what_only_the_caller_can_mend_is_a_rejection_and_no_outage(
    llamacpp_engine: LlamaCpp, messages: tuple[Message, ...], words: str
) -> None:
    request = GenerationRequest(model="m", messages=messages, max_tokens=2)
    with pytest.raises(EngineRejected, match=words):
        async for _ in llamacpp_engine.generate(request):
            pass


@pytest.mark.asyncio(loop_scope="session")
async def test_more_choices_than_slots_are_refused_with_the_number(
    llamacpp_engine: LlamaCpp,
) -> None:
    messages = (Message(role="user", content=(TextPart("hi"),)),)
    request = GenerationRequest(model="m", messages=messages, max_tokens=2, n=5)
    with pytest.raises(EngineRejected, match="n is 5; this engine writes at most 4"):
        async for _ in llamacpp_engine.generate(request):
            pass
