"""Text of a free generation is taken apart the same way however it is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.generation import FinishReason
from qwenstack.engines.free_output import FreeChoice, StopFinder, parse_call

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PIECE = st.sampled_from(
    [CALL, "<tool_call>", "</tool_call>", "<think>", "</think>", "{", "text ", "\n", "é", "<"]
)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def whole(pieces: list[str], *, calls: bool) -> tuple[str, str, list[tuple[str, str]], object]:
    choice = FreeChoice(0, calls=calls)
    text, reasoning, found, finish = "", "", [], None
    for place, piece in enumerate(pieces or [""]):
        end = FinishReason.STOP if place >= len(pieces) - 1 else None
        delta = choice.feed(piece, end)
        if delta is not None:
            text += delta.text
            reasoning += delta.reasoning
            found += [(call.name or "", call.arguments) for call in delta.tool_calls]
            finish = delta.finish
    return text, reasoning, found, finish


@given(st.lists(PIECE, max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_where_a_text_is_cut_changes_no_reasoning_and_no_call(
    pieces: list[str], places: list[int]
) -> None:
    text = "".join(pieces)
    once = whole([text], calls=True)
    often = whole(cut(text, places), calls=True)
    # Only white space beside a call may differ: what was sent cannot be taken back.
    assert "".join(once[0].split()) == "".join(often[0].split())
    assert once[1:] == often[1:]


@given(st.lists(PIECE, max_size=6), st.lists(st.integers(0, 400), max_size=12))
def test_without_tools_nothing_is_lost_but_the_tags_of_a_thought(
    pieces: list[str], places: list[int]
) -> None:
    text = "".join(pieces)
    found = whole(cut(text, places), calls=False)
    assert found == whole([text], calls=False)
    if not text.lstrip().startswith("<think>"):
        assert found[0] == text


def test_a_call_becomes_a_tool_call_and_what_is_none_stays_text() -> None:
    assert whole(["Sure.\n", CALL], calls=True) == (
        "Sure.\n",
        "",
        [("f", '{"a":1}')],
        FinishReason.TOOL_CALLS,
    )
    broken = "<tool_call>nonsense</tool_call>"
    assert whole([broken], calls=True) == (broken, "", [], FinishReason.STOP)
    assert whole(["<think>why", "</think>so"], calls=True)[:2] == ("so", "why")


@pytest.mark.parametrize("block", ["", "[]", '{"name": 1, "arguments": {}}', '{"name": "f"}', "{"])
def test_no_call_is_made_of_what_is_none(block: str) -> None:
    assert parse_call(block) is None


@given(
    st.text("abS", max_size=30),
    st.lists(st.text("abS", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_text_ends_before_the_first_stop_however_it_comes(
    text: str, stops: list[str], places: list[int]
) -> None:
    finder = StopFinder(stops)
    passed = ""
    for piece in cut(text, places):
        passed += finder.feed(piece)
    if not finder.stopped:
        passed += finder.flush()
    assert not any(stop in passed for stop in stops)
    assert text.startswith(passed)
    assert finder.stopped == any(stop in text for stop in stops)
    assert not finder.stopped or text[len(passed) :].startswith(finder.stopped_by or "?")
    if not finder.stopped:
        assert passed == text
