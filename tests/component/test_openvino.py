"""OpenVINO GenAI as an engine, with the default model in its real child process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from qwenstack.core.generation import (
    Completion,
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
from qwenstack.engines.interface import EngineError, EngineRejected, EngineUnavailable
from qwenstack.engines.models import DEFAULT_MODEL

pytest.importorskip("openvino_genai", reason="OpenVINO GenAI is for Linux on x86-64 only")

from qwenstack.engines.openvino import OpenVino, OpenVinoOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = (
    Tool(
        "weather",
        "The weather of a city",
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    ),
    Tool("stop", None, {}),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(default_model_path: Path) -> AsyncIterator[OpenVino]:
    running = OpenVino(
        default_model_path,
        digest=f"sha256:{DEFAULT_MODEL.source.sha256}",
        region="test",
        recoded=default_model_path.parent,
        settings=OpenVinoOptions(parallel=4, context_tokens=1024),
    )
    await running.start()
    yield running
    await running.close()


def ask(text: str, **fields: Any) -> GenerationRequest:
    fields.setdefault("max_tokens", 32)
    fields.setdefault("sampling", Sampling(temperature=0.0))
    message = Message(role="user", content=(TextPart(text),))
    return GenerationRequest(model="m", messages=(message,), **fields)


async def complete(engine: OpenVino, request: GenerationRequest) -> Completion:
    builder = CompletionBuilder()
    async for step in engine.generate(request):
        builder.add(step)
    return builder.build()


async def test_it_answers_and_counts_what_it_read_and_wrote(engine: OpenVino) -> None:
    request = ask("What is the capital of France?", logprobs=0)
    whole = await complete(engine, request)
    choice = whole.choices[0]
    assert "Paris" in choice.text
    assert choice.finish is FinishReason.STOP
    assert "".join(each.token for each in choice.logprobs) == choice.text
    assert all(each.logprob <= 0 for each in choice.logprobs)
    assert whole.usage.prompt == await engine.count_prompt(request)
    # The end mark is a token that was generated, too.
    assert whole.usage.completion == await engine.count_text(choice.text) + 1


async def test_many_generations_run_together_and_none_sees_another(engine: OpenVino) -> None:
    words = ["apple", "river", "seven", "cloud", "stone", "bread", "glass", "tiger", "piano"]
    asked = [ask(f"Repeat this word and nothing else: {word}", max_tokens=8) for word in words]
    answers = await asyncio.gather(*(complete(engine, each) for each in asked))
    for word, answer in zip(words, answers, strict=True):
        assert word in answer.choices[0].text.lower()


async def test_max_tokens_stop_and_n_are_kept(engine: OpenVino) -> None:
    short = await complete(engine, ask("Tell me a long story.", max_tokens=5))
    assert short.choices[0].finish is FinishReason.LENGTH
    assert short.usage.completion == 5
    stopped = await complete(engine, ask("Count from 1 to 9, with commas.", stop=("5",)))
    assert "4" in stopped.choices[0].text
    assert "5" not in stopped.choices[0].text
    assert stopped.choices[0].finish is FinishReason.STOP
    assert stopped.choices[0].stopped_by == "5"
    three = await complete(
        engine, ask("Name a colour.", n=3, sampling=Sampling(temperature=1.0, seed=1))
    )
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.prompt < 100  # counted once


@pytest.mark.parametrize(
    ("choice", "names"),
    [(ToolChoice("required"), {"weather", "stop"}), (ToolChoice("named", "stop"), {"stop"})],
)
async def test_a_tool_call_that_must_come_comes(
    engine: OpenVino, choice: ToolChoice, names: set[str]
) -> None:
    whole = await complete(engine, ask("Hello!", tools=TOOLS, tool_choice=choice))
    found = whole.choices[0]
    if found.finish is FinishReason.LENGTH:
        pytest.fail("the call was not finished within its limit")
    assert found.text == ""
    assert found.finish is FinishReason.TOOL_CALLS
    (call,) = found.tool_calls
    assert call.name in names
    assert isinstance(json.loads(call.arguments), dict)


# Each but the last asks the model for what its schema forbids. (White space is free in JSON: pushed
# hard enough, the model writes blanks up to its limit.)
HELD: list[tuple[dict[str, Any], str]] = [
    ({"type": "integer", "minimum": 50, "maximum": 60}, "Say 3"),
    ({"type": "string", "minLength": 3, "maxLength": 5}, "Say hello world"),
    ({"type": ["string", "null"], "maxLength": 4}, "Say hello world"),
    ({"type": "string", "pattern": "^[0-9]{3}-[a-z]{2}$"}, "Say hello"),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}, "Say [1]"),
    ({"enum": ["red", 5, None]}, "Say hello"),
    ({"const": {"a": [1, "x"]}}, "Say hello"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "Say hello"),
    ({"type": "string", "format": "date"}, "Say hello"),
    (
        {
            "$defs": {"p": {"type": "object", "properties": {"x": {"type": "integer"}},
                            "required": ["x"], "additionalProperties": False}},
            "type": "object",
            "properties": {"p": {"$ref": "#/$defs/p"}},
            "required": ["p"],
            "additionalProperties": False,
        },
        "Give p with x 7, as JSON.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text"), HELD)
async def test_an_answer_satisfies_its_schema_against_the_prompt(
    engine: OpenVino, schema: dict[str, Any], text: str
) -> None:
    form = ResponseFormat("json_schema", schema=schema)
    whole = await complete(engine, ask(text, response_format=form, max_tokens=64))
    assert whole.choices[0].finish is FinishReason.STOP
    jsonschema.validate(json.loads(whole.choices[0].text), schema)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ask("word " * 3000), "context length is 1024"),
        (ask("x" * 500_000), "context length is 1024"),
        (ask("hi", logprobs=2), "top_logprobs 0"),
        (ask("hi", sampling=Sampling(logit_bias=((1, 1.0),))), "logit_bias"),
        (ask("hi", tools=TOOLS, tool_choice=ToolChoice("named", "x")), "not among the tools"),
        (GenerationRequest(model="m", prompt=(999_999,)), "no token"),
        (
            ask(
                "x",
                response_format=ResponseFormat(
                    "json_schema", schema={"type": "string", "pattern": "(?=a)a"}
                ),
            ),
            "cannot be held to",
        ),
    ],
)
async def test_what_cannot_be_done_is_refused_and_the_rest_goes_on(
    engine: OpenVino, request_: GenerationRequest, says: str
) -> None:
    beside = asyncio.create_task(complete(engine, ask("What is the capital of France?")))
    with pytest.raises(EngineRejected, match=says):
        await complete(engine, request_)
    assert "Paris" in (await beside).choices[0].text


async def test_a_reader_that_leaves_frees_its_places(engine: OpenVino) -> None:
    for _ in range(12):  # three times as many as run at once
        generation = engine.generate(ask("Write a long story.", max_tokens=900))
        await anext(generation)
        await generation.aclose()
    whole = await complete(engine, ask("What is the capital of France?"))
    assert "Paris" in whole.choices[0].text


async def test_a_child_that_is_killed_costs_its_requests_and_no_more(engine: OpenVino) -> None:
    pid = engine.child.pid
    assert pid is not None
    generation = engine.generate(ask("Write a long story.", max_tokens=900))
    await anext(generation)
    os.kill(pid, 9)
    with pytest.raises(EngineError):
        async for _ in generation:
            pass
    whole = await complete(engine, ask("What is the capital of France?"))
    assert "Paris" in whole.choices[0].text
    assert engine.child.restarts == 1


TELLTALE = """
import socket, sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in
    ("socket.connect", "socket.getaddrinfo", "os.fork", "subprocess.Popen") else None)
from qwenstack.engines.openvino_model import import_without_telemetry
import_without_telemetry()
print(seen, "openvino_telemetry.main" in sys.modules)
"""


async def test_importing_it_calls_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TELLTALE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[] False"


async def test_a_file_that_it_does_not_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from tests.unit.test_gguf_recode import gguf_file

    odd = gguf_file(tmp_path / "odd.gguf", [("x", 13, 256, bytes(176))])
    with pytest.raises(EngineUnavailable, match=r"reads no Q5_K tensors.*llama\.cpp"):
        OpenVino(odd, digest="sha256:0", region="test", recoded=tmp_path)
