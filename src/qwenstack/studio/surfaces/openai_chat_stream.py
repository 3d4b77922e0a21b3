"""The event stream of chat completions.

A chunk's constant head (id, object, created, model) is made once for the stream, so that a delta of
plain text costs one string escape and one concatenation.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from qwenstack.core.generation import Delta, FinishReason, Step, ToolCallDelta
from qwenstack.core.refusals import Refusal
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.openai_errors import error_event
from qwenstack.studio.surfaces.openai_logprobs import ChatLogprobs, chosen_logprobs
from qwenstack.studio.surfaces.openai_usage import usage_of

_ENCODE = msgspec.json.Encoder().encode
_STREAM_END = b"data: [DONE]\n\n"


class FunctionChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a tool call's function."""

    name: str | None = None
    arguments: str | UnsetType = UNSET


class ToolCallChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a tool call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionChunk | None = None


class ChatStream:
    """Encodes the steps of one streamed chat completion."""

    def __init__(
        self, model: str, n: int, include_usage: bool, request_id: str, created: int
    ) -> None:
        self._request_id = request_id
        self._n = n
        self._include_usage = include_usage
        self._head = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":['
            % (_ENCODE(f"chatcmpl-{request_id}"), created, _ENCODE(model))
        )
        # OpenAI: with include_usage, every chunk before the last carries a null usage.
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._text_tail = b'},"finish_reason":null}' + self._tail
        self._text_heads = [
            self._head + b'{"index":%d,"delta":{"content":' % index for index in range(n)
        ]
        self._reasoning_heads = [
            self._head + b'{"index":%d,"delta":{"reasoning_content":' % index for index in range(n)
        ]
        self._finished = [False] * n

    def start(self) -> bytes:
        """The chunk that names the role, for each choice."""
        tail = b'"role":"assistant","content":"","refusal":null},"finish_reason":null}' + self._tail
        return b"".join(
            [self._head + b'{"index":%d,"delta":{' % index + tail for index in range(self._n)]
        )

    def step(self, step: Step) -> bytes:
        """A chunk for each delta (several where a delta holds several kinds of content)."""
        pieces: list[bytes] = []
        heads, tail = self._text_heads, self._text_tail
        for delta in step.deltas:
            if delta.reasoning or delta.tool_calls or delta.logprobs or delta.finish is not None:
                pieces.append(self._mixed(delta))
            elif delta.text:
                pieces += (heads[delta.index], _ENCODE(delta.text), tail)
        return b"".join(pieces)

    def finish(self, step: Step) -> bytes:
        """The last deltas, the usage where it was asked for, and `[DONE]`."""
        pieces = [self.step(step)]
        for index, finished in enumerate(self._finished):
            if not finished:
                pieces.append(self._finish(index, FinishReason.STOP))
        if self._include_usage:
            pieces.append(self._usage(step.usage or TokenUsage()))
        pieces.append(_STREAM_END)
        return b"".join(pieces)

    def fail(self, refusal: Refusal) -> bytes:
        """An error event. No `[DONE]` follows: a broken stream must not look whole."""
        return error_event(refusal, self._request_id)

    def _mixed(self, delta: Delta) -> bytes:
        index, pieces = delta.index, []
        if delta.reasoning:
            pieces.append(self._reasoning_heads[index] + _ENCODE(delta.reasoning) + self._text_tail)
        if delta.text or delta.logprobs:
            tail = self._text_tail
            if delta.logprobs:
                logprobs = _ENCODE(ChatLogprobs(chosen_logprobs(delta.logprobs)))
                tail = b'},"logprobs":%b,"finish_reason":null}' % logprobs + self._tail
            pieces.append(self._text_heads[index] + _ENCODE(delta.text) + tail)
        if delta.tool_calls:
            calls = _ENCODE([_tool_call(piece) for piece in delta.tool_calls])
            pieces.append(
                self._head
                + b'{"index":%d,"delta":{"tool_calls":%b' % (index, calls)
                + self._text_tail
            )
        if delta.finish:
            pieces.append(self._finish(index, delta.finish))
        return b"".join(pieces)

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        self._finished[index] = True
        return (
            self._head
            + b'{"index":%d,"delta":{},"finish_reason":"%b"}' % (index, reason.value.encode())
            + self._tail
        )

    def _usage(self, usage: TokenUsage) -> bytes:
        return self._head + b'],"usage":%b}\n\n' % _ENCODE(usage_of(usage))


def _tool_call(piece: ToolCallDelta) -> ToolCallChunk:
    function = FunctionChunk(piece.name, piece.arguments)
    if piece.id is None:
        return ToolCallChunk(piece.position, function=function)
    return ToolCallChunk(piece.position, piece.id, "function", function)
