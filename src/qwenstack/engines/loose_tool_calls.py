"""Reading a tool call that a model wrote without the tags of its template.

Small models call a tool with the right JSON but leave `<tool_call>` out, or put a code fence or
`<tools>` around it (Qwen2.5-Coder-0.5B does so nearly always, tried 2026-11). The engine's parser
takes that for text. Here it becomes the call that it is, under narrow conditions: the answer is
nothing but such JSON, each object names a tool that was offered, and its arguments are an object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from qwenstack.core.generation import (
    Delta,
    FinishReason,
    GenerationRequest,
    Step,
    TokenLogprob,
    Tool,
    ToolCallDelta,
)
from qwenstack.core.identifiers import new_id

# What can stand before and after the JSON.
_WRAPPINGS: Final = (
    ("```json", "```"),
    ("```", "```"),
    ("<tool_call>", "</tool_call>"),
    ("<tools>", "</tools>"),
    ("{", ""),
)
_HELD_CHARACTERS_MAX: Final = 65_536
_CALLS_MAX: Final = 32
_DECODER: Final = json.JSONDecoder()


async def read_loose_calls(
    steps: AsyncGenerator[Step, None], request: GenerationRequest
) -> AsyncGenerator[Step, None]:
    """`steps` of `request`; where tools may be called, with the calls that stand there as text."""
    if not (request.tools and request.messages and request.tool_choice.mode == "auto"):
        async with aclosing(steps):
            async for step in steps:
                yield step
        return
    several = request.parallel_tool_calls
    choices = [LooseChoice(index, request.tools, several=several) for index in range(request.n)]
    async with aclosing(steps):
        async for step in steps:
            deltas = tuple(
                taken
                for delta in step.deltas
                if (taken := choices[delta.index].feed(delta)) is not None
            )
            # The usage of what is held back is not told: it was not delivered.
            if deltas or step.final:
                yield Step(deltas, step.usage, step.final)


class LooseChoice:
    """One choice of a chat with tools: hands text on, and holds back what may be a call.

    Text is held from the first character on for as long as it can still become a call, so an answer
    in prose is not delayed.
    """

    def __init__(self, index: int, tools: tuple[Tool, ...], *, several: bool) -> None:
        self._index = index
        self._names = frozenset(tool.name for tool in tools)
        self._several = several
        self._holding = True
        self._held = ""
        self._logprobs: tuple[TokenLogprob, ...] = ()

    def feed(self, delta: Delta) -> Delta | None:
        """What `delta` adds to the choice; None while it is held back."""
        if not self._holding:
            return delta
        if delta.tool_calls or delta.reasoning:
            # The engine's own parser took it, or the model still thinks.
            if delta.tool_calls:
                self._holding = False
            return self._let_go(delta) if self._held else delta
        self._held += delta.text
        self._logprobs += delta.logprobs
        if delta.finish is None:
            if _may_become_call(self._held):
                return None
            return self._let_go(Delta(self._index))
        calls = self._calls() if delta.finish is FinishReason.STOP else ()
        if not calls:
            ending = Delta(self._index, finish=delta.finish, stopped_by=delta.stopped_by)
            return self._let_go(ending)
        return Delta(
            self._index,
            tool_calls=calls,
            logprobs=self._logprobs,
            finish=FinishReason.TOOL_CALLS,
        )

    def _let_go(self, delta: Delta) -> Delta:
        """`delta` with the held text before its own: it was no call."""
        held, logprobs = self._held, self._logprobs
        self._held, self._logprobs = "", ()
        self._holding = False
        return Delta(
            self._index,
            text=held + delta.text,
            reasoning=delta.reasoning,
            tool_calls=delta.tool_calls,
            logprobs=logprobs + delta.logprobs,
            finish=delta.finish,
            stopped_by=delta.stopped_by,
        )

    def _calls(self) -> tuple[ToolCallDelta, ...]:
        found = read_calls(self._held, self._names)
        return tuple(
            ToolCallDelta(position, new_id("call"), name, arguments)
            for position, (name, arguments) in enumerate(found if self._several else found[:1])
        )


def read_calls(text: str, names: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Name and JSON arguments of each call, where `text` is calls and nothing else; else empty.

    >>> read_calls('{"name": "clock", "arguments": {"zone": "UTC"}}', frozenset({"clock"}))
    (('clock', '{"zone": "UTC"}'),)
    """
    text = text.strip()
    opening, closing = next((pair for pair in _WRAPPINGS if text.startswith(pair[0])), ("", ""))
    if not opening:
        return ()
    if opening != "{":
        text = text.removeprefix(opening).strip().removesuffix(closing).strip()
    calls: list[tuple[str, str]] = []
    try:
        values = _values(text)
    except (ValueError, RecursionError):
        return ()
    for value in values:
        call = _call(value, names)
        if call is None or len(calls) == _CALLS_MAX:
            return ()
        calls.append(call)
    return tuple(calls)


def _values(text: str) -> list[Any]:
    """The JSON values of which `text` is made, one after the other, or of one list."""
    values: list[Any] = []
    position = 0
    while position < len(text):
        value, position = _DECODER.raw_decode(text, position)
        values += value if isinstance(value, list) else [value]
        while position < len(text) and text[position] in " \t\r\n,;":
            position += 1
    return values


def _call(value: object, names: frozenset[str]) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not set(value) <= {"name", "arguments", "parameters"}:
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _may_become_call(text: str) -> bool:
    text = text.lstrip()
    if len(text) > _HELD_CHARACTERS_MAX:
        return False
    return any(text.startswith(opening) or opening.startswith(text) for opening, _ in _WRAPPINGS)
