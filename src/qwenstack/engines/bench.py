"""Measuring an engine on this machine: tokens a second and time to the first, by concurrency."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

import msgspec

from qwenstack.core.generation import GenerationRequest, Message, Sampling, TextPart
from qwenstack.engines.interface import Engine

_PROMPT = (
    "Explain, step by step and in plain words, how a bicycle stays upright while it is ridden, "
    "and what changes when it stands still."
)


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency's figures: `tokens_per_s` over all streams, medians of the rest."""

    concurrency: int
    tokens_per_s: float
    first_token_ms: float
    tokens: int
    wall_s: float


async def measure(
    engine: Engine,
    concurrency: int,
    *,
    tokens: int = 64,
    rounds: int = 2,
    on_round: Callable[[], None] = lambda: None,
) -> Measurement:
    """Run `rounds` times `concurrency` streams of at most `tokens` tokens; keep the best round.

    The best and not the mean: what disturbs a measurement only ever makes it slower.
    """
    best: Measurement | None = None
    for number in range(rounds):
        start = time.perf_counter()
        streams = await asyncio.gather(
            *(_stream(engine, tokens, number * concurrency + each) for each in range(concurrency))
        )
        wall_s = time.perf_counter() - start
        total = sum(count for count, _ in streams)
        current = Measurement(
            concurrency=concurrency,
            tokens_per_s=total / wall_s,
            first_token_ms=statistics.median(first_s for _, first_s in streams) * 1000,
            tokens=total,
            wall_s=wall_s,
        )
        if best is None or current.tokens_per_s > best.tokens_per_s:
            best = current
        on_round()
    assert best is not None
    return best


async def _stream(engine: Engine, tokens: int, number: int) -> tuple[int, float]:
    # A different beginning for each, so that no prompt comes out of the prefix cache.
    text = f"({number}) {_PROMPT}"
    request = GenerationRequest(
        model="bench",
        messages=(Message(role="user", content=(TextPart(text),)),),
        max_tokens=tokens,
        sampling=Sampling(temperature=0.0),
    )
    start = time.perf_counter()
    first_s = 0.0
    count = 0
    async for step in engine.generate(request):
        if step.deltas and not first_s:
            first_s = time.perf_counter() - start
        if step.usage is not None:
            count = step.usage.completion
    return count, first_s
