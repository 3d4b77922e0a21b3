"""The event stream of the Responses API.

Its grammar: `created`, `in_progress`; for each output item `output_item.added`, its content,
`output_item.done`; then one of `completed`, `incomplete`, `failed`. Thoughts and text are one open
item at a time; function calls stay open to the end, because an engine may interleave them.
`sequence_number` counts all events from 0.
"""

from __future__ import annotations

import msgspec

from qwenstack.core.generation import Delta, FinishReason, Step, TokenLogprob, ToolCallDelta
from qwenstack.core.refusals import Refusal
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.openai_errors import ErrorFields, error_fields
from qwenstack.studio.surfaces.openai_response_answer import (
    CallItem,
    ItemIds,
    ItemStatus,
    MessageItem,
    Outcome,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    encode_response,
    incomplete_details,
    output_logprobs,
    response_failure,
    response_usage,
)

_ENCODE = msgspec.json.Encoder().encode


class StreamError(msgspec.Struct, frozen=True):
    """The fields of an `error` event."""

    code: str
    message: str
    param: str | None
    error: ErrorFields
    request_id: str


class _OpenText:
    """A message or reasoning item that is being written."""

    def __init__(self, item_id: str, position: int, reasoning: bool) -> None:
        self.id = item_id
        self.position = position
        self.reasoning = reasoning
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        where = b'"item_id":%b,"output_index":%d,"content_index":0' % (_ENCODE(item_id), position)
        self.where = where
        kind = b"response.reasoning_text" if reasoning else b"response.output_text"
        self.kind = kind
        self.delta_head = b'event: %b.delta\ndata: {"type":"%b.delta",%b,"delta":' % (
            kind,
            kind,
            where,
        )

    def part(self) -> OutputText | ReasoningText:
        text = "".join(self.pieces)
        if self.reasoning:
            return ReasoningText(text)
        return OutputText(text, logprobs=output_logprobs(tuple(self.logprobs)))

    def item(self, status: ItemStatus) -> OutputItem:
        part = self.part()
        content = () if status == "in_progress" else (part,)
        if isinstance(part, ReasoningText):
            return ReasoningItem(self.id, status, (part,) if content else ())
        return MessageItem(self.id, status, (part,) if content else ())


class _OpenCall:
    """A function call that is being written."""

    def __init__(self, item_id: str, position: int, call_id: str) -> None:
        self.id = item_id
        self.position = position
        self.call_id = call_id
        self.name = ""
        self.arguments: list[str] = []
        self.where = b'"item_id":%b,"output_index":%d' % (_ENCODE(item_id), position)

    def item(self, status: ItemStatus) -> CallItem:
        arguments = "" if status == "in_progress" else "".join(self.arguments)
        return CallItem(self.id, status, self.call_id, self.name, arguments)


class ResponsesStream:
    """Encodes the steps of one streamed response."""

    def __init__(self, echo: bytes, request_id: str, created: int) -> None:
        self._echo = echo
        self._ids = ItemIds(request_id)
        self._request_id = request_id
        self._created = created
        self._sequence = 0
        self._positions = 0
        self._text: _OpenText | None = None
        self._calls: dict[int, _OpenCall] = {}
        self._done: dict[int, OutputItem] = {}
        self._finish = FinishReason.STOP

    def start(self) -> bytes:
        """`response.created` and `response.in_progress`."""
        response = self._response("in_progress")
        return self._event(b"response.created", b'"response":' + response) + self._event(
            b"response.in_progress", b'"response":' + response
        )

    def step(self, step: Step) -> bytes:
        """The events of each delta."""
        pieces: list[bytes] = []
        for delta in step.deltas:
            self._delta(delta, pieces)
        return b"".join(pieces)

    def finish(self, step: Step) -> bytes:
        """The last deltas, what closes the open items, and the whole response."""
        pieces: list[bytes] = []
        for delta in step.deltas:
            self._delta(delta, pieces)
        if not self._positions:
            self._open_text(False, pieces)
        details = incomplete_details(self._finish)
        self._close_all("completed" if details is None else "incomplete", pieces)
        status: Status = "completed" if details is None else "incomplete"
        response = encode_response(
            Outcome(
                id=self._ids.response,
                created_at=self._created,
                status=status,
                output=self._output(),
                incomplete_details=details,
                usage=response_usage(step.usage or TokenUsage()),
            ),
            self._echo,
        )
        pieces.append(self._event(b"response." + status.encode(), b'"response":' + response))
        return b"".join(pieces)

    def fail(self, refusal: Refusal) -> bytes:
        """`response.failed`, then `error`, at which the official client raises APIError.

        The published `error` event is flat; OpenAI's server nests the same fields in `error`, and
        the client looks there. Both are given.
        """
        if self._text is not None:
            self._done[self._text.position] = self._text.item("incomplete")
        for call in self._calls.values():
            self._done[call.position] = call.item("incomplete")
        response = encode_response(
            Outcome(
                id=self._ids.response,
                created_at=self._created,
                status="failed",
                output=self._output(),
                error=response_failure(refusal),
            ),
            self._echo,
        )
        failed = self._event(b"response.failed", b'"response":' + response)
        error = error_fields(refusal)
        fields = StreamError(error.code, error.message, error.param, error, self._request_id)
        return failed + self._event(b"error", _ENCODE(fields)[1:-1])

    def _delta(self, delta: Delta, pieces: list[bytes]) -> None:
        if delta.reasoning:
            self._write(True, delta.reasoning, (), pieces)
        if delta.text or delta.logprobs:
            self._write(False, delta.text, delta.logprobs, pieces)
        for piece in delta.tool_calls:
            self._write_call(piece, pieces)
        if delta.finish is not None:
            self._finish = delta.finish

    def _write(
        self,
        reasoning: bool,
        text: str,
        logprobs: tuple[TokenLogprob, ...],
        pieces: list[bytes],
    ) -> None:
        item = self._text
        if item is None or item.reasoning is not reasoning:
            item = self._open_text(reasoning, pieces)
        item.pieces.append(text)
        if reasoning:
            tail = b',"sequence_number":%d}\n\n' % self._sequence
        elif logprobs:
            item.logprobs.extend(logprobs)
            tail = b',"logprobs":%b,"sequence_number":%d}\n\n' % (
                _ENCODE(output_logprobs(logprobs)),
                self._sequence,
            )
        else:
            tail = b',"logprobs":[],"sequence_number":%d}\n\n' % self._sequence
        self._sequence += 1
        pieces.append(item.delta_head + _ENCODE(text) + tail)

    def _write_call(self, piece: ToolCallDelta, pieces: list[bytes]) -> None:
        call = self._calls.get(piece.position)
        if call is None:
            self._close_text("completed", pieces)
            position = self._take_position()
            item_id = self._ids.item("fc", position)
            call = _OpenCall(item_id, position, piece.id or f"call_{item_id}")
            call.name = piece.name or ""
            self._calls[piece.position] = call
            pieces.append(self._item_event(b"added", position, call.item("in_progress")))
        if piece.arguments:
            call.arguments.append(piece.arguments)
            fields = call.where + b',"delta":' + _ENCODE(piece.arguments)
            pieces.append(self._event(b"response.function_call_arguments.delta", fields))

    def _open_text(self, reasoning: bool, pieces: list[bytes]) -> _OpenText:
        self._close_text("completed", pieces)
        position = self._take_position()
        item_id = self._ids.item("rs" if reasoning else "msg", position)
        item = self._text = _OpenText(item_id, position, reasoning)
        pieces.append(self._item_event(b"added", position, item.item("in_progress")))
        pieces.append(
            self._event(
                b"response.content_part.added", item.where + b',"part":' + _ENCODE(item.part())
            )
        )
        return item

    def _close_text(self, status: ItemStatus, pieces: list[bytes]) -> None:
        item = self._text
        if item is None:
            return
        self._text = None
        part = item.part()
        fields = item.where + b',"text":' + _ENCODE(part.text)
        if isinstance(part, OutputText):
            fields += b',"logprobs":' + _ENCODE(part.logprobs)
        pieces.append(self._event(item.kind + b".done", fields))
        fields = item.where + b',"part":' + _ENCODE(part)
        pieces.append(self._event(b"response.content_part.done", fields))
        self._close_item(item.position, item.item(status), pieces)

    def _close_all(self, status: ItemStatus, pieces: list[bytes]) -> None:
        self._close_text(status, pieces)
        for call in self._calls.values():
            item = call.item(status)
            fields = call.where + b',"name":%b,"arguments":%b' % (
                _ENCODE(call.name),
                _ENCODE(item.arguments),
            )
            pieces.append(self._event(b"response.function_call_arguments.done", fields))
            self._close_item(call.position, item, pieces)
        self._calls = {}

    def _close_item(self, position: int, item: OutputItem, pieces: list[bytes]) -> None:
        self._done[position] = item
        pieces.append(self._item_event(b"done", position, item))

    def _take_position(self) -> int:
        position = self._positions
        self._positions += 1
        return position

    def _output(self) -> tuple[OutputItem, ...]:
        return tuple([self._done[position] for position in sorted(self._done)])

    def _response(self, status: Status) -> bytes:
        outcome = Outcome(id=self._ids.response, created_at=self._created, status=status)
        return encode_response(outcome, self._echo)

    def _item_event(self, what: bytes, position: int, item: OutputItem) -> bytes:
        return self._event(
            b"response.output_item." + what,
            b'"output_index":%d,"item":%b' % (position, _ENCODE(item)),
        )

    def _event(self, kind: bytes, fields: bytes) -> bytes:
        number = self._sequence
        self._sequence += 1
        return b'event: %b\ndata: {"type":"%b",%b,"sequence_number":%d}\n\n' % (
            kind,
            kind,
            fields,
            number,
        )
