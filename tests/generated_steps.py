"""Hypothesis strategies for what an engine may send, shared by the tests of all surfaces."""

from __future__ import annotations

from hypothesis import strategies as st

from qwenstack.core.generation import (
    Completion,
    CompletionBuilder,
    Delta,
    FinishReason,
    Step,
    TokenLogprob,
    ToolCallDelta,
)
from qwenstack.core.tokens import TokenUsage

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LOGPROB = st.floats(max_value=0, allow_nan=False)


@st.composite
def logprobs(draw: st.DrawFn) -> TokenLogprob:
    """A chosen token with up to two alternatives."""
    tops = draw(st.lists(st.builds(TokenLogprob, token=TEXT, logprob=LOGPROB), max_size=2))
    return TokenLogprob(draw(TEXT), draw(LOGPROB), top=tuple(tops))


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    """Counts that hold together."""
    count = st.integers(0, 1000)
    cached, explicit, creation = draw(st.tuples(count, count, count))
    reasoning = draw(count)
    return TokenUsage(
        prompt=cached + explicit + creation + draw(count),
        completion=reasoning + draw(count),
        cached=cached,
        cached_explicit=explicit,
        cache_creation=creation,
        reasoning=reasoning,
    )


@st.composite
def deltas(draw: st.DrawFn, choices: int, tools: bool) -> Delta:
    """A delta of one of the choices."""
    calls: list[ToolCallDelta] = []
    if tools and draw(st.booleans()):
        position = draw(st.integers(0, 2))
        calls.append(ToolCallDelta(position, f"call_{position}", f"tool_{position}", draw(TEXT)))
    return Delta(
        index=draw(st.integers(0, choices - 1)),
        text=draw(TEXT),
        reasoning=draw(st.just("") | TEXT),
        tool_calls=tuple(calls),
        logprobs=tuple(draw(st.lists(logprobs(), max_size=2))),
    )


@st.composite
def generations(draw: st.DrawFn, *, choices: int = 1, tools: bool = True) -> list[Step]:
    """The steps of a whole generation, the last one final."""
    steps = [
        Step(tuple(draw(st.lists(deltas(choices, tools), max_size=4))))
        for _ in range(draw(st.integers(0, 4)))
    ]
    ends = tuple(
        Delta(index=index, finish=draw(st.sampled_from(FinishReason))) for index in range(choices)
    )
    return [*steps, Step(ends, draw(usages()), final=True)]


def fold(steps: list[Step]) -> Completion:
    """The completion that the steps make."""
    builder = CompletionBuilder()
    for step in steps:
        builder.add(step)
    return builder.build()
