"""Output held to a grammar: the grammar of a tool call or a JSON answer, and reading it back.

The grammars are llguidance's Lark dialect. A tool call is wrapped as Qwen's and Hermes' chat
templates wrap it, on one line and in one spacing, so that a streamed one can be taken apart as it
comes. JSON is admitted in the one spacing that models are trained on; free white space would let a
small model emit blanks until its limit.
"""

from __future__ import annotations

import json
from typing import Any, Final

from qwenstack.core.generation import (
    Delta,
    FinishReason,
    ResponseFormat,
    Tool,
    ToolCallDelta,
    ToolChoice,
)
from qwenstack.core.identifiers import new_id
from qwenstack.engines.constraints import check_schema
from qwenstack.engines.interface import EngineProtocolError, EngineRejected

TOOLS_MAX: Final = 128
_SPACING: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_OPEN: Final = "<tool_call>\n"
_NAME: Final = '{"name": '
_ARGUMENTS: Final = ', "arguments": '
_CLOSE: Final = "}\n</tool_call>"
_ANSWER_CHARACTERS_MAX: Final = 4_000_000


def output_grammar(tools: tuple[Tool, ...], choice: ToolChoice, form: ResponseFormat) -> str | None:
    """The grammar that an output must keep to; None where it is free.

    `required` and `named` admit one tool call only. A JSON `form` admits such an answer, and with
    `auto` tools a call instead. Raises EngineRejected for a schema that `check_schema` refuses.
    """
    forced = bool(tools) and choice.mode in ("required", "named")
    answers = form.type != "text" and not forced
    if not forced and not answers:
        return None
    rules = ["%llguidance {}"]
    starts = []
    if forced or (tools and choice.mode == "auto"):
        starts.append("call")
        rules += _call_rules(tools, choice)
    if answers:
        starts.append("answer")
        rules.append(f"answer: %json {_json(_answer_schema(form))}")
    rules.insert(1, f"start: {' | '.join(starts)}")
    return "\n".join(rules)


def _call_rules(tools: tuple[Tool, ...], choice: ToolChoice) -> list[str]:
    wanted = [tool for tool in tools if choice.mode != "named" or tool.name == choice.name]
    if not wanted:
        raise EngineRejected(f"tool_choice names {choice.name!r}, which is not among the tools")
    if len(wanted) > TOOLS_MAX:
        raise EngineRejected(f"there are {len(wanted)} tools; at most {TOOLS_MAX} can be chosen of")
    rules = [f"call: {' | '.join(f'call{number}' for number in range(len(wanted)))}"]
    for number, tool in enumerate(wanted):
        parameters: dict[str, Any] = tool.parameters or {"type": "object"}
        check_schema(parameters, f"tools.{tool.name}.parameters")
        before = _OPEN + _NAME + json.dumps(tool.name, ensure_ascii=False) + _ARGUMENTS
        rules.append(
            f"call{number}: {_literal(before)} arguments{number} {_literal(_CLOSE)}\n"
            f"arguments{number}: %json {_json(_as_object(parameters))}"
        )
    return rules


def _as_object(parameters: dict[str, Any]) -> dict[str, Any]:
    """Arguments are an object, also where the schema leaves its type out."""
    return parameters if "type" in parameters else {"type": "object", **parameters}


def _answer_schema(form: ResponseFormat) -> dict[str, Any]:
    if form.type == "json_object" or form.schema is None:
        return {"type": "object"}
    check_schema(form.schema, "response_format")
    return form.schema


def _json(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": _SPACING}, ensure_ascii=False)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class ConstrainedChoice:
    """Takes apart the text of one choice that `output_grammar` held, as it comes.

    `calls` says whether the grammar admits a tool call, `answers` whether it admits JSON text.
    """

    def __init__(self, index: int, *, calls: bool, answers: bool) -> None:
        self._index = index
        self._calls = calls
        self._answers = answers
        self._is_call = calls and not answers
        self._undecided = calls and answers
        self._pending = ""
        self._named = False
        self._closed = False
        self._answer: list[str] = []
        self._answer_characters = 0

    def feed(self, text: str, finish: FinishReason | None) -> Delta | None:
        """What `text`, and the end where `finish` is given, add to the choice.

        Raises EngineProtocolError where the output does not keep to the grammar after all.
        """
        if self._undecided:
            self._pending += text
            if finish is None and self._pending != _OPEN and _OPEN.startswith(self._pending):
                return None
            self._undecided = False
            self._is_call = self._pending.startswith(_OPEN)
            text, self._pending = self._pending, ""
        if not self._is_call:
            return self._feed_answer(text, finish)
        pieces = self._feed_call(text)
        if finish is FinishReason.STOP:
            if not self._closed:
                raise EngineProtocolError("the engine wrote no whole tool call")
            finish = FinishReason.TOOL_CALLS
        if not pieces and finish is None:
            return None
        return Delta(self._index, tool_calls=pieces, finish=finish)

    def _feed_answer(self, text: str, finish: FinishReason | None) -> Delta | None:
        self._answer_characters += len(text)
        if self._answer_characters > _ANSWER_CHARACTERS_MAX:
            raise EngineProtocolError("the engine's JSON answer is over its limit of characters")
        self._answer.append(text)
        if finish is FinishReason.STOP:
            try:
                json.loads("".join(self._answer))
            except (ValueError, RecursionError) as error:
                # llguidance gives a grammar up, with a warning only, when it grows too large.
                raise EngineProtocolError(
                    "the engine's answer is not the JSON asked for"
                ) from error
        return Delta(self._index, text, finish=finish) if text or finish is not None else None

    def _feed_call(self, text: str) -> tuple[ToolCallDelta, ...]:
        if self._closed:
            return ()
        self._pending += text
        if not self._named:
            start = self._pending.find(_ARGUMENTS)
            if start < 0:
                return ()
            name = self._name(self._pending[:start])
            self._pending = self._pending[start + len(_ARGUMENTS) :]
            self._named = True
            return (ToolCallDelta(0, new_id("call"), name, self._arguments()),)
        arguments = self._arguments()
        return (ToolCallDelta(0, arguments=arguments),) if arguments else ()

    def _name(self, head: str) -> str:
        try:
            name = json.loads(head.removeprefix(_OPEN + _NAME))
        except ValueError as error:
            raise EngineProtocolError("the engine wrote a tool call that is none") from error
        return str(name)

    def _arguments(self) -> str:
        """The arguments that are certain: a line feed cannot be in them, so it begins the end."""
        end = self._pending.find(_CLOSE)
        if end >= 0:
            self._closed = True
            arguments, self._pending = self._pending[:end], ""
            return arguments
        held = next(
            (n for n in range(len(_CLOSE) - 1, 0, -1) if self._pending.endswith(_CLOSE[:n])), 0
        )
        cut = len(self._pending) - held
        arguments, self._pending = self._pending[:cut], self._pending[cut:]
        return arguments
