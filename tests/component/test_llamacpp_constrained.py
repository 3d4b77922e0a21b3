"""What the embedded engine is held to: forced tool calls, schemas, embeddings, logprobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from qwenstack.core.generation import (
    Completion,
    CompletionBuilder,
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Message,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolChoice,
)
from qwenstack.engines.interface import EngineProtocolError, EngineRejected
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from tests.thinking_model import write_thinking_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEATHER = Tool(
    "get_weather",
    "The weather in a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
ANY_JSON = ResponseFormat("json_object")
CLOCK = Tool("get_time", "The time in a city", {"type": "object", "properties": {}})


def ask(text: str, **fields: object) -> GenerationRequest:
    message = Message(role="user", content=(TextPart(text),))
    return GenerationRequest(
        model="m",
        messages=(message,),
        max_tokens=128,
        sampling=Sampling(temperature=0.0, seed=1),
        **fields,  # type: ignore[arg-type]
    )


async def run(engine: LlamaCpp, request: GenerationRequest) -> Completion:
    builder = CompletionBuilder()
    async for step in engine.generate(request):
        builder.add(step)
    return builder.build()


@pytest.mark.parametrize(
    "choice",
    [ToolChoice("required"), ToolChoice("named", "get_weather")],
    ids=["required", "named"],
)
async def test_a_forced_tool_call_comes_and_keeps_to_its_schema(
    llamacpp_engine: LlamaCpp, choice: ToolChoice
) -> None:
    tools = (WEATHER,) if choice.mode == "required" else (CLOCK, WEATHER)
    completion = await run(
        llamacpp_engine, ask("How warm is it in Paris?", tools=tools, tool_choice=choice)
    )
    (only,) = completion.choices
    assert only.finish is FinishReason.TOOL_CALLS
    (call,) = only.tool_calls
    assert call.name == "get_weather"
    arguments = json.loads(call.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")
    assert completion.usage.completion > 0
    assert completion.usage.prompt > 50


async def test_a_model_that_may_call_a_tool_calls_it(llamacpp_engine: LlamaCpp) -> None:
    request = ask("How warm is it in Paris?", tools=(WEATHER,))
    (only,) = (await run(llamacpp_engine, request)).choices
    (call,) = only.tool_calls
    assert (call.name, only.text) == ("get_weather", "")
    assert json.loads(call.arguments)["city"].startswith("Paris")
    assert only.finish is FinishReason.TOOL_CALLS


async def test_no_tool_is_called_where_none_may_be(llamacpp_engine: LlamaCpp) -> None:
    request = ask("Say hello.", tools=(WEATHER,), tool_choice=ToolChoice("none"))
    completion = await run(llamacpp_engine, request)
    assert completion.choices[0].tool_calls == ()


async def test_an_answer_keeps_to_its_json_schema(llamacpp_engine: LlamaCpp) -> None:
    schema = {
        "type": "object",
        "properties": {
            "capital": {"type": "string", "maxLength": 30},
            "population": {"type": "integer", "minimum": 1, "maximum": 99_999_999},
        },
        "required": ["capital", "population"],
        "additionalProperties": False,
    }
    form = ResponseFormat("json_schema", "city", schema)
    completion = await run(llamacpp_engine, ask("The capital of France?", response_format=form))
    answer = json.loads(completion.choices[0].text)
    assert set(answer) == {"capital", "population"}
    assert isinstance(answer["population"], int)


async def test_a_forced_call_streams_in_pieces(llamacpp_engine: LlamaCpp) -> None:
    request = ask("Weather in Paris?", tools=(WEATHER,), tool_choice=ToolChoice("required"))
    pieces = []
    counts = []
    async for step in llamacpp_engine.generate(request):
        pieces += [piece for delta in step.deltas for piece in delta.tool_calls]
        counts.append(step.usage.completion if step.usage else 0)
    assert [piece.name for piece in pieces if piece.name] == ["get_weather"]
    assert len([piece for piece in pieces if piece.arguments]) > 3
    assert counts[len(counts) // 2] > 0
    assert (await run(llamacpp_engine, request)).usage.prompt == await llamacpp_engine.count_prompt(
        request
    )


async def test_a_call_or_a_json_answer_where_both_are_open(llamacpp_engine: LlamaCpp) -> None:
    request = ask("Weather in Paris?", tools=(WEATHER,), response_format=ANY_JSON)
    (only,) = (await run(llamacpp_engine, request)).choices
    if only.tool_calls:
        assert json.loads(only.tool_calls[0].arguments)
    else:
        assert isinstance(json.loads(only.text), dict)


async def test_any_json_object(llamacpp_engine: LlamaCpp) -> None:
    request = ask("Describe Paris in JSON: name, country.", response_format=ANY_JSON, n=2)
    for choice in (await run(llamacpp_engine, request)).choices:
        assert isinstance(json.loads(choice.text), dict)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "^(?=a)b"}, "."),
        ({"not": {"type": "string"}}, "not"),
    ],
)
async def test_what_the_grammar_cannot_hold_is_refused_and_not_dropped(
    llamacpp_engine: LlamaCpp, schema: dict[str, object], reason: str
) -> None:
    form = ResponseFormat("json_schema", "x", schema)
    for _ in range(2):
        with pytest.raises(EngineRejected, match=reason):
            await run(llamacpp_engine, ask("go", response_format=form))


async def test_thinking_and_json_exclude_each_other(llamacpp_engine: LlamaCpp) -> None:
    with pytest.raises(EngineRejected, match="thinking"):
        await run(llamacpp_engine, ask("go", response_format=ANY_JSON, thinking=True))


async def test_a_schema_that_killed_llama_cpp_is_refused_before_it_sees_it(
    llamacpp_engine: LlamaCpp,
) -> None:
    form = ResponseFormat("json_schema", "x", {"type": "array", "minItems": 9, "maxItems": 2})
    with pytest.raises(EngineRejected, match="minItems 9 is above maxItems 2"):
        await run(llamacpp_engine, ask("go", response_format=form))
    assert (await run(llamacpp_engine, ask("Say hi."))).choices[0].text


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tiny(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCpp]:
    """A model that costs nothing, for what the schema alone decides."""
    path = tmp_path_factory.mktemp("tiny") / "m.gguf"
    write_thinking_model(path)
    settings = LlamaCppOptions(parallel=2, context_tokens=1024, threads=1, warms=True)
    engine = LlamaCpp(path, digest="sha256:0", region="test", settings=settings)
    await engine.start()
    yield engine
    await engine.close()


async def test_the_first_grammar_is_paid_for_at_the_start(tiny: LlamaCpp) -> None:
    assert tiny._warming is not None
    await tiny._warming
    assert len(tiny._trials._verdicts) == 1
    await run(tiny, ask("Where?", response_format=ANY_JSON))
    assert len(tiny._trials._verdicts) == 1, "it was another grammar than requests have"


async def test_a_pattern_that_grows_as_it_is_followed_never_passes_for_kept(
    llamacpp_engine: LlamaCpp,
) -> None:
    schema = {"type": "string", "maxLength": 2000, "pattern": "^.*a.{20}b$"}
    await refused_once_tried(llamacpp_engine, 'Answer with the JSON string "Paris".', schema)


async def test_a_union_that_grows_as_it_is_followed_never_passes_for_kept(tiny: LlamaCpp) -> None:
    properties = {f"p{number}": {"type": "string"} for number in range(1000)}
    await refused_once_tried(tiny, "Where?", {"type": "object", "properties": properties})


async def refused_once_tried(engine: LlamaCpp, text: str, schema: dict[str, object]) -> None:
    request = ask(text, response_format=ResponseFormat("json_schema", "x", schema))
    with pytest.raises(EngineProtocolError, match="gave up"):
        await run(engine, request)
    with pytest.raises(EngineRejected, match="grows too large"):
        await run(engine, request)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "minItems": 2000},
        {"type": "object", "maxProperties": 2000},
        {"type": "string", "minLength": 2000, "maxLength": 2000},
        {"type": "string", "pattern": "^.*a.{20}b$"},
    ],
    ids=["minItems", "maxProperties", "minLength", "pattern"],
)
async def test_a_large_schema_takes_the_engine_from_nobody(
    tiny: LlamaCpp, schema: dict[str, object]
) -> None:
    form = ResponseFormat("json_schema", "x", schema)
    before = tiny._server.child.resident_bytes()
    asking = asyncio.create_task(run(tiny, ask("Where?", response_format=form)))
    for _ in range(5):
        assert (await run(tiny, ask("Where?"))).choices[0].text
    with contextlib.suppress(EngineProtocolError):
        await asking
    assert tiny._server.child.restarts == 0
    assert tiny._server.child.resident_bytes() - before < 256 * 2**20


async def test_embeddings_are_unit_vectors_and_near_for_near_texts(
    llamacpp_engine: LlamaCpp,
) -> None:
    texts = ("a cat sat on the mat", "a kitten lay on the rug", "quarterly revenue grew by 4 %")
    result = await llamacpp_engine.embed(EmbeddingRequest(model="m", inputs=texts))
    assert len(result.vectors) == 3
    assert all(abs(math.hypot(*vector) - 1) < 1e-3 for vector in result.vectors)
    near, far = (
        sum(a * b for a, b in zip(result.vectors[0], other, strict=True))
        for other in result.vectors[1:]
    )
    assert near > far
    assert result.usage.prompt == await llamacpp_engine.count_prompt(
        EmbeddingRequest(model="m", inputs=texts)
    )
    assert len(result.vectors[0]) == llamacpp_engine.capabilities.embedding_width


@pytest.mark.parametrize("alternatives", [0, 3])
async def test_logprobs_come_with_just_the_alternatives_asked_for(
    llamacpp_engine: LlamaCpp, alternatives: int
) -> None:
    completion = await run(llamacpp_engine, ask("Say hi.", logprobs=alternatives))
    logprobs = completion.choices[0].logprobs
    assert logprobs
    assert all(entry.logprob <= 0 for entry in logprobs)
    assert {len(entry.top) for entry in logprobs} == {alternatives}


async def test_several_choices_each_end_and_are_counted(llamacpp_engine: LlamaCpp) -> None:
    completion = await run(llamacpp_engine, ask("Say hi.", n=2))
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert all(choice.text for choice in completion.choices)
    counts = [await llamacpp_engine.count_text(choice.text) for choice in completion.choices]
    # Each choice ends with a token that is no text.
    assert completion.usage.completion == sum(counts) + 2
