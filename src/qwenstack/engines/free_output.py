"""The text of a free generation taken apart as it comes: stop texts, reasoning, tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from qwenstack.core.generation import Delta, FinishReason, ToolCallDelta
from qwenstack.core.identifiers import new_id

_CALL_OPEN: Final = "<tool_call>"
_CALL_CLOSE: Final = "</tool_call>"
_THINK_OPEN: Final = "<think>"
_THINK_CLOSE: Final = "</think>"
_CALLS_MAX: Final = 64


class StopFinder:
    """Passes text on up to the first of `stops`, which it keeps.

    >>> finder = StopFinder(("END",))
    >>> finder.feed("one E"), finder.feed("ND two"), finder.stopped_by
    ('one ', '', 'END')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether one of them has come."""
        return self.stopped_by is not None

    def feed(self, text: str) -> str:
        """What of the text so far can no longer be a part of a stop."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda each: each[0])
            self._held = ""
            return text[:place]
        cut = len(text) - max(overlap(text, stop) for stop in self._stops)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back and is no stop after all, at the end."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


class _Call(msgspec.Struct):
    name: str
    arguments: dict[str, Any]


def parse_call(block: str) -> tuple[str, str] | None:
    """Name and arguments (JSON text) of what stands between the tags; None if it is no call."""
    try:
        call = msgspec.json.decode(block.strip(), type=_Call)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return None
    return call.name, msgspec.json.encode(call.arguments).decode()


class FreeChoice:
    """One choice. `calls`: tools were offered; `thinking`: its text begins inside of a thought.

    Reasoning is what stands between the think tags at the beginning. A tool call is passed on when
    it is whole; what stands between its tags and is none, as the text it is.
    """

    def __init__(self, index: int, *, calls: bool, thinking: bool = False) -> None:
        self._index = index
        self._calls = calls
        self._part = "reasoning" if thinking else "start"
        self._pending = ""
        self._count = 0

    @property
    def reasoning(self) -> bool:
        """Whether the text is inside of a thought now."""
        return self._part == "reasoning"

    def feed(self, text: str, finish: FinishReason | None) -> Delta | None:
        """What `text`, and the end where `finish` is given, add to the choice."""
        self._pending += text
        ends = finish is not None
        reasoning = self._take_reasoning(ends)
        content, calls = self._take_content(ends)
        if finish is FinishReason.STOP and self._count:
            finish = FinishReason.TOOL_CALLS
        if not (reasoning or content or calls or ends):
            return None
        return Delta(self._index, content, reasoning, calls, finish=finish)

    def _take_reasoning(self, ends: bool) -> str:
        if self._part == "start":
            begun = self._pending.lstrip()
            if begun.startswith(_THINK_OPEN):
                self._part = "reasoning"
                self._pending = begun.removeprefix(_THINK_OPEN)
            elif ends or (begun and not _THINK_OPEN.startswith(begun)):
                self._part = "content"
        if self._part != "reasoning":
            return ""
        text, closed, rest = self._pending.partition(_THINK_CLOSE)
        if closed:
            self._part, self._pending = "content", rest
            return text
        cut = len(text) - (0 if ends else overlap(text, _THINK_CLOSE))
        self._pending = text[cut:]
        return text[:cut]

    def _take_content(self, ends: bool) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if self._part != "content":
            return "", ()
        if not self._calls:
            text, self._pending = self._pending, ""
            return text, ()
        content: list[str] = []
        calls: list[ToolCallDelta] = []
        while True:
            before, opened, rest = self._pending.partition(_CALL_OPEN)
            if not opened:
                cut = len(before) - (0 if ends else overlap(before, _CALL_OPEN))
                content.append(before[:cut])
                self._pending = before[cut:]
                break
            block, closed, after = rest.partition(_CALL_CLOSE)
            if not closed and not ends:
                content.append(before)
                self._pending = opened + rest
                break
            call = parse_call(block) if closed and self._count < _CALLS_MAX else None
            if call is None:
                content += [before, opened, block, closed]
            else:
                content.append(before.rstrip("\n"))
                calls.append(ToolCallDelta(self._count, new_id("call"), *call))
                self._count += 1
                after = after.lstrip("\n")
            self._pending = after
        return "".join(content), tuple(calls)
