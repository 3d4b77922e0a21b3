"""The grammar of a tool call or a JSON answer, and taking such output apart as it streams."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.generation import (
    CompletionBuilder,
    Delta,
    FinishReason,
    ResponseFormat,
    Step,
    Tool,
    ToolChoice,
)
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.constrained_output import ConstrainedChoice, output_grammar
from qwenstack.engines.interface import EngineProtocolError, EngineRejected

TEXT = ResponseFormat()
ANY_JSON = ResponseFormat("json_object")
TOOLS = (Tool("a", None, {"type": "object"}), Tool("b", None, {"type": "object"}))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def fold(choice: ConstrainedChoice, parts: list[str], finish: FinishReason) -> list[Delta]:
    deltas = [choice.feed(part, None) for part in parts] + [choice.feed("", finish)]
    return [delta for delta in deltas if delta is not None]


def wrapped(name: str, arguments: str) -> str:
    call = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
    return f"<tool_call>\n{call}\n</tool_call>"


def test_required_admits_every_tool_and_named_only_its_own() -> None:
    required = output_grammar(TOOLS, ToolChoice("required"), TEXT)
    named = output_grammar(TOOLS, ToolChoice("named", "b"), TEXT)
    assert required is not None
    assert named is not None
    assert len(re.findall(r"^call\d+:", required, re.MULTILINE)) == 2
    assert len(re.findall(r"^call\d+:", named, re.MULTILINE)) == 1


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_free_text_has_no_grammar(mode: Any) -> None:
    assert output_grammar(TOOLS, ToolChoice(mode), TEXT) is None
    assert output_grammar((), ToolChoice(), TEXT) is None


def test_a_json_answer_and_a_call_are_both_open_in_auto_mode() -> None:
    assert "start: call | answer" in (output_grammar(TOOLS, ToolChoice(), ANY_JSON) or "")
    assert "start: answer" in (output_grammar(TOOLS, ToolChoice("none"), ANY_JSON) or "")
    assert "start: call\n" in (output_grammar(TOOLS, ToolChoice("required"), ANY_JSON) or "")


def test_a_bad_parameter_schema_names_its_tool() -> None:
    bad = Tool("weather", None, {"type": "object", "properties": {"x": {"type": "int"}}})
    with pytest.raises(EngineRejected, match=r"tools\.weather\.parameters\.properties\.x"):
        output_grammar((bad,), ToolChoice("required"), TEXT)
    with pytest.raises(EngineRejected, match="not among the tools"):
        output_grammar(TOOLS, ToolChoice("named", "c"), TEXT)


@given(
    name=st.text(min_size=1),
    arguments=st.dictionaries(st.text(), JSON, max_size=3),
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
)
def test_a_call_cut_anywhere_streams_back_as_it_was_written(
    name: str, arguments: dict[str, Any], cuts: list[int]
) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    choice = ConstrainedChoice(3, calls=True, answers=False)
    builder = CompletionBuilder()
    for delta in fold(choice, pieces(wrapped(name, written), cuts), FinishReason.STOP):
        builder.add(Step((delta,), TokenUsage(1, 1)))
    (only,) = builder.build().choices
    assert (only.index, only.text, only.finish) == (3, "", FinishReason.TOOL_CALLS)
    (call,) = only.tool_calls
    assert (call.name, call.arguments) == (name, written)
    assert call.id.startswith("call_")


@given(answer=st.dictionaries(st.text(), JSON), cuts=st.lists(st.integers(0, 999), max_size=9))
def test_where_both_are_open_an_answer_stays_text(answer: dict[str, Any], cuts: list[int]) -> None:
    text = json.dumps(answer)
    choice = ConstrainedChoice(0, calls=True, answers=True)
    deltas = fold(choice, pieces(text, cuts), FinishReason.STOP)
    assert "".join(delta.text for delta in deltas) == text
    assert deltas[-1].finish is FinishReason.STOP


@given(cuts=st.lists(st.integers(0, 999), max_size=9))
def test_where_both_are_open_a_call_is_a_call(cuts: list[int]) -> None:
    choice = ConstrainedChoice(0, calls=True, answers=True)
    deltas = fold(choice, pieces(wrapped("f", '{"x": 1}'), cuts), FinishReason.STOP)
    assert all(not delta.text for delta in deltas)
    assert deltas[-1].finish is FinishReason.TOOL_CALLS


@given(st.integers(0, 60))
def test_a_call_that_the_limit_cut_ends_by_length_with_what_there_is(length: int) -> None:
    whole = wrapped("f", '{"city": "Paris"}')
    choice = ConstrainedChoice(0, calls=True, answers=False)
    deltas = fold(choice, [whole[:length]], FinishReason.LENGTH)
    assert deltas[-1].finish is FinishReason.LENGTH
    written = "".join(piece.arguments for delta in deltas for piece in delta.tool_calls)
    assert '{"city": "Paris"}'.startswith(written)


@pytest.mark.parametrize("text", ["", "hello", "<tool_call>\n{", '<tool_call>\nx, "arguments": '])
def test_what_is_no_call_is_the_engines_fault(text: str) -> None:
    with pytest.raises(EngineProtocolError):
        fold(ConstrainedChoice(0, calls=True, answers=False), [text], FinishReason.STOP)


def test_what_is_no_json_is_the_engines_fault() -> None:
    with pytest.raises(EngineProtocolError, match="not the JSON"):
        fold(ConstrainedChoice(0, calls=False, answers=True), ['{"a": '], FinishReason.STOP)
