"""The event stream of an Anthropic message.

Blocks follow each other: one is closed when the next begins. A piece of an earlier tool call still
goes to that call's block, by its index.
"""

from __future__ import annotations

from typing import Any

import msgspec

from qwenstack.core.generation import Delta, FinishReason, Step, ToolCallDelta
from qwenstack.core.refusals import Refusal
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.anthropic_errors import error_event
from qwenstack.studio.surfaces.anthropic_usage import usage_of

_ENCODE = msgspec.json.Encoder().encode
_TEXT, _THINKING = -1, -2
_STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}


def stop_reason(
    finish: FinishReason, sequence: str | None, *, called: bool
) -> tuple[str, str | None]:
    """Why the answer ended, in Anthropic's words, and the stop sequence that ended it.

    `called`: it holds a tool call. Some engines say plain `stop` after one that `tool_choice`
    forced.
    """
    if called and finish is FinishReason.STOP:
        return "tool_use", None
    if sequence is not None and finish is FinishReason.STOP:
        return "stop_sequence", sequence
    return _STOP_REASONS[finish], None


def stopped_by(told: str | None, stops: tuple[str, ...]) -> str | None:
    """The stop sequence that the engine met, where it says one of those that were sent."""
    return told if told in stops else None


class MessageStream:
    """Encodes the steps of one streamed message. `show_thoughts` False leaves thoughts empty."""

    def __init__(
        self, model: str, stops: tuple[str, ...], show_thoughts: bool, request_id: str
    ) -> None:
        self._model = model
        self._stops = stops
        self._show_thoughts = show_thoughts
        self._request_id = request_id
        self._usage = TokenUsage()
        self._finish = FinishReason.STOP
        self._stopped_by: str | None = None
        # What the open block holds: _TEXT, _THINKING, the position of a tool call, or nothing.
        self._open: int | None = None
        self._blocks = 0
        self._tool_blocks: dict[int, int] = {}
        self._head = b""

    def start(self) -> bytes:
        """`message_start`, with the prompt's tokens where the engine has said them by now."""
        usage = msgspec.structs.replace(self._usage, completion=0, reasoning=0)
        message: dict[str, Any] = {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(usage),
        }
        return _event(b"message_start", b'"message":' + _ENCODE(message))

    def step(self, step: Step) -> bytes:
        """The events of a step."""
        if step.usage is not None:
            self._usage = step.usage
        pieces: list[bytes] = []
        for delta in step.deltas:
            self._delta(delta, pieces)
        return b"".join(pieces)

    def finish(self, step: Step) -> bytes:
        """The last deltas, why the message ended, and the exact usage."""
        pieces = [self.step(step)]
        self._close(pieces)
        reason, sequence = stop_reason(
            self._finish, self._stopped_by, called=bool(self._tool_blocks)
        )
        ending = {"stop_reason": reason, "stop_sequence": sequence}
        pieces.append(
            _event(
                b"message_delta",
                b'"delta":%b,"usage":%b' % (_ENCODE(ending), _ENCODE(usage_of(self._usage))),
            )
        )
        pieces.append(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
        return b"".join(pieces)

    def fail(self, refusal: Refusal) -> bytes:
        """An error event. No `message_stop` follows: a broken stream must not look whole."""
        return error_event(refusal, self._request_id)

    def _delta(self, delta: Delta, pieces: list[bytes]) -> None:
        if delta.reasoning:
            if self._open != _THINKING:
                self._begin(_THINKING, b'{"type":"thinking","thinking":"","signature":""}', pieces)
            if self._show_thoughts:
                pieces.append(
                    self._head
                    + b'{"type":"thinking_delta","thinking":'
                    + _ENCODE(delta.reasoning)
                    + b"}}\n\n"
                )
        if delta.text:
            if self._open != _TEXT:
                self._begin(_TEXT, b'{"type":"text","text":""}', pieces)
            pieces.append(
                self._head + b'{"type":"text_delta","text":' + _ENCODE(delta.text) + b"}}\n\n"
            )
        for call in delta.tool_calls:
            self._tool_piece(call, pieces)
        if delta.finish is not None:
            self._finish = delta.finish
            self._stopped_by = stopped_by(delta.stopped_by, self._stops)

    def _tool_piece(self, call: ToolCallDelta, pieces: list[bytes]) -> None:
        index = self._tool_blocks.get(call.position)
        if index is None:
            index = self._tool_blocks[call.position] = self._blocks
            block = {"type": "tool_use", "id": call.id or "", "name": call.name or "", "input": {}}
            self._begin(call.position, _ENCODE(block), pieces)
        if call.arguments:
            pieces.append(
                _delta_head(index)
                + b'{"type":"input_json_delta","partial_json":'
                + _ENCODE(call.arguments)
                + b"}}\n\n"
            )

    def _begin(self, kind: int, block: bytes, pieces: list[bytes]) -> None:
        self._close(pieces)
        index = self._blocks
        self._blocks += 1
        self._open = kind
        self._head = _delta_head(index)
        pieces.append(
            _event(b"content_block_start", b'"index":%d,"content_block":%b' % (index, block))
        )

    def _close(self, pieces: list[bytes]) -> None:
        if self._open is None:
            return
        if self._open == _THINKING:
            # The vendor ends thoughts with a signature; ours need none.
            pieces.append(self._head + b'{"type":"signature_delta","signature":""}}\n\n')
        pieces.append(_event(b"content_block_stop", b'"index":%d' % (self._blocks - 1)))
        self._open = None


def _event(name: bytes, fields: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (name, name, fields)


def _delta_head(index: int) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
        % index
    )
