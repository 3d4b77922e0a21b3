"""llama-server's way of counting several choices: a usage for each, without its number."""

from __future__ import annotations

import json
from typing import Any

from qwenstack.core.generation import Step
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.openai_wire import DONE, StreamDecoder


def chunk(**fields: Any) -> bytes:
    return json.dumps({"choices": []} | fields).encode()


def token(index: int, text: str, predicted: int) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    return chunk(choices=[choice], timings={"cache_n": 24, "prompt_n": 6, "predicted_n": predicted})


def ending(index: int, completion: int) -> tuple[bytes, bytes]:
    """The two events in which llama-server ends a choice (as recorded, 2026-11)."""
    choice = {"index": index, "delta": {}, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": 24},
    }
    timings = {"cache_n": 24, "prompt_n": 6, "predicted_n": completion}
    return chunk(choices=[choice]), chunk(usage=usage, timings=timings)


EVENTS = [
    token(1, "Hello", 1),
    token(0, "Hi", 1),
    token(1, "!", 2),
    *ending(1, 3),
    token(0, " you", 2),
    token(0, " there", 3),
    *ending(0, 4),
]


def steps(reads: list[list[bytes]]) -> list[Step]:
    decoder = StreamDecoder(2)
    return [step for read in reads if (step := decoder.step(read)) is not None]


def test_several_choices_are_all_counted_and_their_prompt_once() -> None:
    for reads in ([[event] for event in (*EVENTS, DONE)], [[*EVENTS, DONE]]):
        final = steps(reads)[-1]
        assert final.final
        assert final.usage == TokenUsage(prompt=30, completion=7, cached=24)


def test_the_running_count_is_of_all_choices_and_never_falls() -> None:
    counts = [step.usage.completion for step in steps([[event] for event in EVENTS]) if step.usage]
    assert counts == sorted(counts)
    assert counts[1] == 2
    assert counts[-1] == 7
