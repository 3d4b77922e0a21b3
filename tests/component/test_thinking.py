"""Thoughts of an embedded model: apart from the answer, counted, priced, bounded or left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from qwenstack.core.generation import (
    Choice,
    CompletionBuilder,
    FinishReason,
    GenerationRequest,
    Message,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolChoice,
)
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.interface import EngineRejected
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.studio.settings import (
    DeploymentSettings,
    LlamaCppSettings,
    Settings,
)
from tests.studio import RunningStudio, Upstream, serve
from tests.thinking_model import ANSWER, THOUGHT, write_thinking_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

THOUGHTS = "".join(THOUGHT)
WORDS = "".join(ANSWER)
WHERE: Any = [{"role": "user", "content": "Where?"}]
WEATHER = Tool(
    "get_weather",
    "The weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
FORM = ResponseFormat("json_schema", "x", {"const": "Paris"})


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[False, True], ids=["own", "template"]
)
async def thinker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LlamaCpp]:
    """A model that opens its think block itself, and one whose template does."""
    async for engine in running(tmp_path_factory.mktemp("m") / "m.gguf", opens=request.param):
        yield engine


async def running(path: Path, **kind: bool) -> AsyncIterator[LlamaCpp]:
    write_thinking_model(path, **kind)
    settings = LlamaCppOptions(parallel=2, context_tokens=1024, threads=1)
    engine = LlamaCpp(path, digest="sha256:0", region="test", settings=settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def run(engine: LlamaCpp, **fields: Any) -> tuple[Choice, TokenUsage]:
    builder = CompletionBuilder()
    request = GenerationRequest(
        model="m",
        messages=(Message(role="user", content=(TextPart("Where?"),)),),
        sampling=Sampling(temperature=0.0),
        **{"max_tokens": 40, **fields},
    )
    async for step in engine.generate(request):
        builder.add(step)
        if step.usage is not None:
            assert step.usage.reasoning <= step.usage.completion
    completion = builder.build()
    return completion.choices[0], completion.usage


@pytest.mark.parametrize("thinking", [None, True], ids=["default", "on"])
async def test_thoughts_come_apart_from_the_answer_and_are_counted(
    thinker: LlamaCpp, thinking: bool | None
) -> None:
    choice, usage = await run(thinker, thinking=thinking)
    assert (choice.reasoning, choice.text) == (THOUGHTS, WORDS)
    assert choice.finish is FinishReason.STOP
    # The tag is a thought's where the model wrote it; the answer ends with a token of no text.
    assert len(THOUGHT) <= usage.reasoning <= len(THOUGHT) + 1
    assert usage.completion - usage.reasoning == len(("</think>", "\n\n", *ANSWER, "<|im_end|>"))


async def test_a_model_that_is_told_not_to_think_does_not(thinker: LlamaCpp) -> None:
    choice, usage = await run(thinker, thinking=False)
    assert (choice.reasoning, choice.text) == ("", WORDS)
    assert (usage.reasoning, usage.completion) == (0, len(ANSWER) + 1)


async def test_a_thought_that_max_tokens_cuts_is_all_reasoning(thinker: LlamaCpp) -> None:
    choice, usage = await run(thinker, max_tokens=5)
    assert choice.text == ""
    assert THOUGHTS.startswith(choice.reasoning) and choice.reasoning
    assert choice.finish is FinishReason.LENGTH
    assert 0 < usage.reasoning <= usage.completion == 5


async def test_a_budget_ends_the_thought_and_not_the_answer(thinker: LlamaCpp) -> None:
    choice, usage = await run(thinker, thinking_budget=3)
    assert THOUGHTS.startswith(choice.reasoning) and len(choice.reasoning) < len(THOUGHTS)
    assert choice.text == WORDS
    assert usage.reasoning > 0


@pytest.mark.parametrize("opens", [False, True], ids=["own", "template"])
async def test_a_tool_is_called_after_a_thought(tmp_path: Path, opens: bool) -> None:
    async for engine in running(tmp_path / "m.gguf", opens=opens, calls=True):
        choice, usage = await run(engine, tools=(WEATHER,))
        assert choice.reasoning == THOUGHTS
        (call,) = choice.tool_calls
        assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
        assert (choice.text, choice.finish) == ("", FinishReason.TOOL_CALLS)
        assert usage.reasoning > 0


async def test_json_closes_the_think_block_unless_thoughts_were_asked_for(
    thinker: LlamaCpp,
) -> None:
    choice, usage = await run(thinker, response_format=FORM)
    assert (choice.reasoning, choice.text, usage.reasoning) == ("", '"Paris"', 0)
    with pytest.raises(EngineRejected, match="thinking cannot be combined"):
        await run(thinker, response_format=FORM, thinking=True)
    with pytest.raises(EngineRejected, match="thinking cannot be combined"):
        forced = ToolChoice("required")
        await run(thinker, tools=(WEATHER,), tool_choice=forced, thinking=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def studio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStudio]:
    home = tmp_path_factory.mktemp("home")
    write_thinking_model(home / "m.gguf")
    engine = LlamaCppSettings(
        model=str(home / "m.gguf"), parallel=2, context_tokens=4096, threads=1
    )
    settings = Settings(
        deployments=(DeploymentSettings(engine=engine, name="m", max_output_tokens=2000),)
    )
    async with serve(settings, home, Upstream()) as studio:
        yield studio


async def test_each_surface_delivers_thoughts_in_its_own_shape_and_charges_them(
    studio: RunningStudio,
) -> None:
    key = await studio.tenant()
    async with openai.AsyncOpenAI(base_url=f"{studio.url}/v1", api_key=key) as client:
        chat: Any = await client.chat.completions.create(model="m", messages=WHERE, temperature=0)
        stream = await client.chat.completions.create(
            model="m", messages=WHERE, temperature=0, stream=True
        )
        pieces: list[Any] = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    assert chat.choices[0].message.reasoning_content == THOUGHTS
    assert chat.choices[0].message.content == WORDS
    reasoning = chat.usage.completion_tokens_details.reasoning_tokens
    assert 0 < reasoning < chat.usage.completion_tokens
    assert "".join(getattr(each, "reasoning_content", "") or "" for each in pieces) == THOUGHTS
    assert "".join(each.content or "" for each in pieces) == WORDS
    async with anthropic.AsyncAnthropic(base_url=studio.url, api_key=key) as client:
        message = await client.messages.create(
            model="m",
            max_tokens=1100,
            messages=WHERE,
            extra_body={"temperature": 0},
            thinking={"type": "enabled", "budget_tokens": 1024},
        )
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == THOUGHTS  # type: ignore[union-attr]
    body = {"model": "m", "input": {"messages": WHERE}}
    parameters = {"result_format": "message", "temperature": 0.01, "enable_thinking": True}
    async with studio.session.post(
        f"{studio.url}/api/v1/services/aigc/text-generation/generation",
        json={**body, "parameters": parameters},
        headers={"Authorization": f"Bearer {key}"},
    ) as answer:
        native = await answer.json()
    assert native["output"]["choices"][0]["message"]["reasoning_content"] == THOUGHTS
    charges = await studio.charges()
    assert len(charges) == 4
    assert {charge.usage.reasoning for charge in charges} == {reasoning}
    meters = {line.meter for charge in charges for line in charge.lines}
    assert {"output", "reasoning"} <= meters
