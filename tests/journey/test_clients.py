"""What a newcomer does: `qwenstack up`, then the vendor's own client with only its URL changed.

The three official clients, unmodified, against one real process with the real default model; at
the end the ledger agrees with every usage that they saw.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import dashscope
import huggingface_hub
import msgspec
import openai
import pytest

from qwenstack.core.tokens import TokenUsage

READY_TIMEOUT_S = 240
STOP_TIMEOUT_S = 30
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
DESCRIBE: Any = [{"role": "user", "content": "Paris, the capital of France, as JSON."}]
CITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
FUNCTION: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": ARGUMENTS,
    },
}
JSON_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": CITY_SCHEMA, "strict": True},
}


class Up(msgspec.Struct):
    """A running `qwenstack up` and what its clients have been told so far, by surface."""

    base_url: str
    api_key: str
    model: str
    home: str
    admin_key: str = ""
    hub: str = ""
    hub_token: str = ""
    release: str = ""
    seen: dict[str, TokenUsage] = {}
    requests: Counter[str] = msgspec.field(default_factory=Counter)

    def saw(self, surface: str, prompt: int, completion: int, cached: int = 0) -> None:
        """Note the usage of one answer."""
        usage = TokenUsage(prompt=prompt, completion=completion, cached=cached)
        self.seen[surface] = self.seen.get(surface, TokenUsage()) + usage
        self.requests[surface] += 1

    def saw_openai(self, usage: Any) -> None:
        """Note a chat completion's usage."""
        cached = usage.prompt_tokens_details.cached_tokens
        self.saw("openai.chat", usage.prompt_tokens, usage.completion_tokens, cached)

    def saw_dashscope(self, usage: Any) -> None:
        """Note a native generation's usage."""
        cached = usage.prompt_tokens_details["cached_tokens"]
        self.saw("dashscope.text", usage.input_tokens, usage.output_tokens, cached)

    def saw_anthropic(self, usage: anthropic.types.Usage) -> None:
        """Note a message's usage; its input is what came from no cache."""
        cached = usage.cache_read_input_tokens or 0
        self.saw("anthropic.messages", usage.input_tokens + cached, usage.output_tokens, cached)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qwenstack.cli.main", *arguments]


@pytest.fixture(scope="module")
def up(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`qwenstack up --json --port 0` on a fresh home."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "QWENSTACK_HOME": str(home),
        "QWENSTACK_MODEL_CACHE": str(default_model_path.parent),
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command("up", "--json", "--port", "0"),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], READY_TIMEOUT_S)
        line = process.stdout.readline() if ready else b""
        assert line, (home / "log").read_text()[-3000:]
        yield msgspec.json.decode(line, type=Up)
    finally:
        process.terminate()
        try:
            assert process.wait(STOP_TIMEOUT_S) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def openai_client(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{up.base_url}/v1", api_key=up.api_key, max_retries=0, timeout=180
    ) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(up: Up) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=up.base_url, api_key=up.api_key, max_retries=0, timeout=180
    ) as client:
        yield client


@pytest.fixture
def dashscope_generate(up: Up, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{up.base_url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", up.api_key)
    return dashscope.Generation.call


def test_the_model_that_is_served_lies_in_the_hub_beside(
    up: Up, default_model_path: Path, tmp_path: Path
) -> None:
    api = huggingface_hub.HfApi(endpoint=up.hub, token=up.hub_token)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not (api.repo_exists(up.release) and api.file_exists(up.release, "README.md")):
        assert time.monotonic() < deadline, "the default model was never published"
        time.sleep(0.5)
    siblings = api.model_info(up.release, files_metadata=True).siblings or []
    sizes = {each.rfilename: each.size for each in siblings}
    assert sizes[default_model_path.name] == default_model_path.stat().st_size


def test_openai_chats_and_streams(up: Up, openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model=up.model, messages=QUESTION, max_tokens=12)
    assert "Paris" in (answer.choices[0].message.content or "")
    up.saw_openai(answer.usage)
    chunks = list(
        openai_client.chat.completions.create(
            model=up.model,
            messages=QUESTION,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3
    up.saw_openai(chunks[-1].usage)


def test_openai_calls_a_tool_and_answers_with_its_result(
    up: Up, openai_client: openai.OpenAI
) -> None:
    asked = openai_client.chat.completions.create(
        model=up.model,
        messages=WEATHER,
        tools=[FUNCTION],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
    )
    up.saw_openai(asked.usage)
    message: Any = asked.choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"]
    told = openai_client.chat.completions.create(
        model=up.model,
        messages=[
            *WEATHER,
            message,
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"},
        ],
        tools=[FUNCTION],
        tool_choice="none",
        max_tokens=12,
    )
    up.saw_openai(told.usage)
    assert told.choices[0].message.content
    assert told.choices[0].message.tool_calls is None


def test_openai_holds_the_answer_to_a_schema(up: Up, openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=up.model, messages=DESCRIBE, response_format=JSON_SCHEMA, max_tokens=60
    )
    up.saw_openai(answer.usage)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "country"}


def test_openai_embeds(up: Up, openai_client: openai.OpenAI) -> None:
    answer = openai_client.embeddings.create(
        model=up.model, input=["The cat sat.", "A cat was sitting.", "Interest rates rose."]
    )
    up.saw("openai.embeddings", answer.usage.prompt_tokens, 0)
    first, second, third = (row.embedding for row in answer.data)

    def likeness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert likeness(first, first) == pytest.approx(1, abs=1e-3)
    assert likeness(first, second) > likeness(first, third)


def test_openai_raises_typed_errors(up: Up, openai_client: openai.OpenAI) -> None:
    chat = openai_client.chat.completions
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="sk-wrong").chat.completions.create(
            model=up.model, messages=QUESTION
        )
    with pytest.raises(openai.NotFoundError) as caught:
        chat.create(model="nobody", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    for tokens in (0, -1, 10**9):
        with pytest.raises(openai.BadRequestError) as bad:
            chat.create(model=up.model, messages=QUESTION, max_tokens=tokens)
        assert bad.value.param == "max_tokens"


def test_dashscope_chats_and_streams(up: Up, dashscope_generate: Any) -> None:
    answer = dashscope_generate(up.model, messages=QUESTION, max_tokens=12, result_format="message")
    assert "Paris" in answer.output.choices[0].message.content
    up.saw_dashscope(answer.usage)
    for incremental in (True, False):
        events = list(
            dashscope_generate(
                up.model,
                messages=QUESTION,
                max_tokens=12,
                result_format="message",
                stream=True,
                incremental_output=incremental,
            )
        )
        texts = [event.output.choices[0].message.content for event in events]
        assert "Paris" in ("".join(texts) if incremental else texts[-1])
        assert events[-1].output.choices[0].finish_reason == "stop"
        up.saw_dashscope(events[-1].usage)


def test_dashscope_calls_a_tool(up: Up, dashscope_generate: Any) -> None:
    answer = dashscope_generate(
        up.model,
        messages=WEATHER,
        tools=[FUNCTION],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
        result_format="message",
    )
    up.saw_dashscope(answer.usage)
    [call] = answer.output.choices[0].message.tool_calls
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"]


def test_dashscope_holds_the_answer_to_a_schema(up: Up, dashscope_generate: Any) -> None:
    answer = dashscope_generate(
        up.model,
        messages=DESCRIBE,
        response_format=JSON_SCHEMA,
        max_tokens=60,
        result_format="message",
    )
    up.saw_dashscope(answer.usage)
    assert set(json.loads(answer.output.choices[0].message.content)) == {"city", "country"}


@pytest.mark.usefixtures("dashscope_generate")
def test_dashscope_embeds(up: Up) -> None:
    answer = dashscope.TextEmbedding.call(up.model, ["The cat sat.", "A dog ran."])
    up.saw("dashscope.embeddings", answer.usage["total_tokens"], 0)
    first, second = (row["embedding"] for row in answer.output["embeddings"])
    assert len(first) == len(second) > 100


def test_dashscope_answers_with_the_vendors_codes(up: Up, dashscope_generate: Any) -> None:
    wrong = dashscope_generate(up.model, messages=QUESTION, api_key="sk-wrong")
    assert (wrong.status_code, wrong.code) == (401, "InvalidApiKey")
    unknown = dashscope_generate("nobody", messages=QUESTION)
    assert (unknown.status_code, unknown.code) == (404, "ModelNotFound")
    for tokens in (0, -1, 10**9):
        bad = dashscope_generate(up.model, messages=QUESTION, max_tokens=tokens)
        assert (bad.status_code, bad.code) == (400, "InvalidParameter")
        assert "max_tokens" in bad.message


def test_anthropic_chats_and_streams(up: Up, anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.create(
        model=up.model, messages=QUESTION, max_tokens=12, system="Answer in one sentence."
    )
    assert answer.content[0].type == "text"
    assert "Paris" in answer.content[0].text
    assert answer._request_id
    up.saw_anthropic(answer.usage)
    with anthropic_client.messages.stream(
        model=up.model, messages=QUESTION, max_tokens=12
    ) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "Paris" in "".join(texts)
    assert len(texts) > 3
    assert final.stop_reason == "end_turn"
    up.saw_anthropic(final.usage)


def test_anthropic_calls_a_tool_and_answers_with_its_result(
    up: Up, anthropic_client: anthropic.Anthropic
) -> None:
    tool: anthropic.types.ToolParam = {
        "name": "get_weather",
        "description": "The weather in a city.",
        "input_schema": {**ARGUMENTS, "type": "object"},
    }
    asked = anthropic_client.messages.create(
        model=up.model,
        messages=WEATHER,
        tools=[tool],
        tool_choice={"type": "tool", "name": "get_weather"},
        max_tokens=60,
    )
    up.saw_anthropic(asked.usage)
    assert asked.stop_reason == "tool_use"
    [use] = [block for block in asked.content if block.type == "tool_use"]
    assert use.name == "get_weather"
    assert use.input["city"]
    told = anthropic_client.messages.create(
        model=up.model,
        messages=[
            *WEATHER,
            asked.to_param(),
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": use.id,
                        "content": "18 degrees and sunny",
                    }
                ],
            },
        ],
        tools=[tool],
        tool_choice={"type": "none"},
        max_tokens=12,
    )
    up.saw_anthropic(told.usage)
    assert [block.type for block in told.content] == ["text"]


def test_anthropic_holds_the_answer_to_a_schema(
    up: Up, anthropic_client: anthropic.Anthropic
) -> None:
    answer = anthropic_client.messages.create(
        model=up.model,
        messages=DESCRIBE,
        max_tokens=60,
        output_config={"format": {"type": "json_schema", "schema": CITY_SCHEMA}},
    )
    up.saw_anthropic(answer.usage)
    assert answer.content[0].type == "text"
    assert set(json.loads(answer.content[0].text)) == {"city", "country"}


def test_anthropic_counts_what_it_will_be_charged_for(
    up: Up, anthropic_client: anthropic.Anthropic
) -> None:
    count = anthropic_client.messages.count_tokens(model=up.model, messages=QUESTION)
    answer = anthropic_client.messages.create(model=up.model, messages=QUESTION, max_tokens=1)
    up.saw_anthropic(answer.usage)
    usage = answer.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert answer.stop_reason == "max_tokens"


def test_anthropic_raises_typed_errors(up: Up, anthropic_client: anthropic.Anthropic) -> None:
    messages = anthropic_client.messages
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="sk-wrong").messages.create(
            model=up.model, messages=QUESTION, max_tokens=9
        )
    with pytest.raises(anthropic.AuthenticationError):
        anthropic_client.with_options(api_key="sk-wrong").messages.count_tokens(
            model=up.model, messages=QUESTION
        )
    with pytest.raises(anthropic.NotFoundError) as caught:
        messages.create(model="nobody", messages=QUESTION, max_tokens=9)
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id
    for tokens in (0, -1, 10**9):
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            # Streamed, as the client itself refuses to wait for so long an answer.
            messages.create(model=up.model, messages=QUESTION, max_tokens=tokens, stream=True)


def test_the_ledger_agrees_with_what_the_clients_saw(up: Up, openai_client: openai.OpenAI) -> None:
    """Last in this file: it looks back on all of them, and on one request of its own."""
    answer = openai_client.chat.completions.create(model=up.model, messages=QUESTION, max_tokens=2)
    up.saw_openai(answer.usage)
    shown = subprocess.run(
        command("usage", "--json", "--by", "surface"),
        env={**os.environ, "QWENSTACK_HOME": up.home},
        capture_output=True,
        check=True,
        timeout=60,
    )
    lines = json.loads(shown.stdout)["lines"]
    counted = {line["group"]: msgspec.convert(line["usage"], TokenUsage) for line in lines}
    assert counted == up.seen
    assert {line["group"]: line["requests"] for line in lines} == up.requests
    assert all(line["interrupted"] == 0 for line in lines)
