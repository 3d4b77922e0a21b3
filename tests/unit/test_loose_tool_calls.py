"""A call written without its template's tags is read as the call; everything else stays text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.generation import (
    Choice,
    CompletionBuilder,
    Delta,
    FinishReason,
    Step,
    Tool,
    ToolCallDelta,
)
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.loose_tool_calls import LooseChoice, read_calls

TOOLS = (Tool(name="get_weather", description="", parameters={"type": "object"}),)
NAMES = frozenset({"get_weather"})
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


def run(
    text: str, cut: list[int], *, several: bool = True, end: FinishReason = FinishReason.STOP
) -> Choice:
    choice = LooseChoice(0, TOOLS, several=several)
    builder = CompletionBuilder()
    cuts = [0, *sorted(min(each, len(text)) for each in cut), len(text)]
    for first, last in itertools.pairwise(cuts):
        if (taken := choice.feed(Delta(text=text[first:last]))) is not None:
            builder.add(Step((taken,)))
    taken = choice.feed(Delta(finish=end))
    assert taken is not None
    builder.add(Step((taken,), TokenUsage(), final=True))
    return builder.build().choices[0]


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"```json\n{CALL}\n```",
        f"```\n{CALL}\n```",
        f"<tools>\n{CALL}\n</tools>",
        f"<tool_call>{CALL}</tool_call>",
        '\n {"name":"get_weather","parameters":{"city":"Paris"}}\n',
    ],
)
@given(cut=st.lists(st.integers(0, 80), max_size=6))
def test_a_bare_call_is_a_call_however_it_is_cut(text: str, cut: list[int]) -> None:
    choice = run(text, cut)
    assert choice.text == ""
    (call,) = choice.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert choice.finish is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    "text",
    [
        "It is warm in Paris.",
        '{"name": "other_tool", "arguments": {}}',
        '{"name": "get_weather", "arguments": "Paris"}',
        '{"name": "get_weather", "arguments": {}, "note": 1}',
        f"{CALL} is what I would call.",
        f"Here: {CALL}",
        "```python\nprint(1)\n```",
        '{"temperature": 20}',
        "{" * 2000,
        '{"name": "get_weather", "arguments": {"city": ',
        "",
    ],
)
@given(cut=st.lists(st.integers(0, 80), max_size=6))
def test_what_is_no_call_stays_the_same_text(text: str, cut: list[int]) -> None:
    choice = run(text, cut)
    assert choice.text == text
    assert choice.tool_calls == ()
    assert choice.finish is FinishReason.STOP


def test_a_call_that_was_cut_off_is_no_call() -> None:
    choice = run(CALL, [], end=FinishReason.LENGTH)
    assert (choice.text, choice.finish) == (CALL, FinishReason.LENGTH)


def test_several_calls_come_in_order_unless_one_only_is_allowed() -> None:
    second = CALL.replace("Paris", "Rome")
    assert [
        json.loads(each.arguments)["city"] for each in run(f"{CALL}\n{second}", []).tool_calls
    ] == [
        "Paris",
        "Rome",
    ]
    assert len(run(f"[{CALL}, {second}]".join(["```json\n", "\n```"]), []).tool_calls) == 2
    assert len(run(f"{CALL}\n{second}", [], several=False).tool_calls) == 1


def test_prose_is_not_held_back() -> None:
    choice = LooseChoice(0, TOOLS, several=True)
    assert choice.feed(Delta(text="It")) == Delta(text="It")
    assert choice.feed(Delta(text="{")) == Delta(text="{")


def test_a_call_that_the_engine_parsed_passes() -> None:
    choice = LooseChoice(0, TOOLS, several=True)
    piece = ToolCallDelta(0, "c", "get_weather", "{}")
    assert choice.feed(Delta(tool_calls=(piece,))) == Delta(tool_calls=(piece,))
    assert choice.feed(Delta(finish=FinishReason.TOOL_CALLS)) == Delta(
        finish=FinishReason.TOOL_CALLS
    )


@given(st.text(max_size=300))
def test_hostile_text_is_read_without_harm(text: str) -> None:
    assert isinstance(read_calls(text, NAMES), tuple)
