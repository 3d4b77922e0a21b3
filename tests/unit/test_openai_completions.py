"""Legacy completions: one raw prompt in, the old shapes out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    Sampling,
    Step,
    TokenLogprob,
)
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.interface import GenerationSurface
from qwenstack.studio.surfaces.openai_completions import CompletionsSurface
from tests.generated_steps import fold, generations
from tests.openai_schema import LEGACY_CHUNK, check, read_sse

SURFACE: GenerationSurface = CompletionsSurface()


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "qwen", "prompt": "Once", **fields}).encode()


def parse(**fields: Any) -> GenerationRequest:
    return SURFACE.parse(body(**fields), {}).request


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", "Once"),
        (["Once"], "Once"),
        ([1, 2], (1, 2)),
        ([[1, 2]], (1, 2)),
    ],
)
def test_one_prompt_in_any_form_is_read(prompt: Any, expected: Any) -> None:
    assert parse(prompt=prompt).prompt == expected


def test_max_tokens_has_the_published_default() -> None:
    assert parse().max_tokens == 16
    assert parse(max_tokens=5).max_tokens == 5


def test_fields_are_honoured() -> None:
    request = parse(n=2, best_of=2, temperature=0.5, seed=1, stop=["a"], logprobs=5, echo=False)
    assert (request.n, request.stop, request.logprobs) == (2, ("a",), 5)
    assert request.sampling == Sampling(temperature=0.5, seed=1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
    ],
)
def test_a_bad_or_unsupported_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert caught.value.kind in (RefusalKind.INVALID_REQUEST, RefusalKind.UNSUPPORTED)


def stream(steps: list[Step], **fields: Any) -> list[Any]:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True, **fields), {}), "req_1", 5)
    data = encoder.start() + b"".join(
        [encoder.finish(step) if step.final else encoder.step(step) for step in steps]
    )
    return [event for _, event in read_sse(data)]


def test_logprobs_have_running_offsets_and_no_infinity() -> None:
    tokens = (
        TokenLogprob("ab", -0.5, top=(TokenLogprob("x", -math.inf),)),
        TokenLogprob("c", -1.0),
    )
    steps = [
        Step((Delta(text="ab", logprobs=tokens[:1]),)),
        Step((Delta(text="c", logprobs=tokens[1:], finish=FinishReason.LENGTH),)),
        Step((), TokenUsage(1, 2), final=True),
    ]
    events = stream(steps, logprobs=1)
    assert events[0]["choices"][0]["logprobs"] == {
        "tokens": ["ab"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"x": -9999.0, "ab": -0.5}],
        "text_offset": [0],
    }
    assert events[1]["choices"][0]["logprobs"]["text_offset"] == [2]
    assert events[1]["choices"][0]["finish_reason"] == "length"
    answer = json.loads(SURFACE.encode(SURFACE.parse(body(), {}), fold(steps), "r", 5))
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 2]


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_every_chunk_and_answer_fits_the_schema_and_both_say_the_same(
    data: st.DataObject, n: int, include_usage: bool
) -> None:
    steps = data.draw(generations(choices=n, tools=False))
    events = stream(steps, n=n, stream_options={"include_usage": include_usage})
    assert events.pop() == "[DONE]"
    answer = json.loads(SURFACE.encode(SURFACE.parse(body(n=n), {}), fold(steps), "req_1", 5))
    check(answer, "CreateCompletionResponse")
    ends = [""] * n
    lengths = [0] * n
    for event in events:
        check(event, LEGACY_CHUNK)
        for choice in event["choices"]:
            ends[choice["index"]] += choice["finish_reason"] or ""
            lengths[choice["index"]] += len(choice["text"])
    assert ends == [choice["finish_reason"] for choice in answer["choices"]]
    assert lengths == [len(choice["text"]) for choice in answer["choices"]]
    assert (events[-1].get("usage") == answer["usage"]) is include_usage


def test_a_broken_stream_has_no_done() -> None:
    encoder = SURFACE.encoder(SURFACE.parse(body(stream=True), {}), "req_1", 5)
    data = encoder.step(Step((Delta(text="a"),)))
    data += encoder.fail(Refusal(RefusalKind.ENGINE_TIMEOUT, "It fell silent."))
    assert read_sse(data)[-1][1]["error"]["code"] == "RequestTimeOut"
