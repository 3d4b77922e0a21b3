"""DashScope's generation answers, whole and streamed.

Streams are cumulative unless `incremental_output` is true: every event then repeats all that was
generated, text, thoughts and tool calls. Usage stands in every event, as the engine counts it;
where the engine keeps no running count, it is 0 in all but the last. Only the last event says why
a choice ended: the vendor's client takes nothing after that.

JSON escapes each character on its own, so that what was generated is kept as escaped text: an
event is put together from it, and a cumulative one costs a copy and no second encoding.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from qwenstack.core.generation import Completion, Delta, FinishReason, Step, ToolCallDelta
from qwenstack.core.refusals import Refusal
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.dashscope_errors import error_event
from qwenstack.studio.surfaces.openai_logprobs import ChosenLogprob, chosen_logprobs
from qwenstack.studio.surfaces.openai_usage import CompletionDetails, PromptDetails

_ENCODE = msgspec.json.Encoder().encode
# The vendor writes the string "null" while a choice goes on.
_GOES_ON = "null"


class FunctionAnswer(msgspec.Struct, frozen=True):
    """The function of a tool call."""

    name: str
    arguments: str


class CallAnswer(msgspec.Struct, frozen=True):
    """A tool call."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionAnswer


class MessageAnswer(msgspec.Struct, frozen=True):
    """The message of a choice; the multimodal route has its text in a list."""

    role: Literal["assistant"]
    content: str | list[dict[str, str]]
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[CallAnswer, ...] | UnsetType = UNSET


class ChoiceAnswer(msgspec.Struct, frozen=True):
    """An element of `choices`; `index` where several were asked for."""

    finish_reason: str
    message: MessageAnswer
    index: int | UnsetType = UNSET
    logprobs: dict[str, tuple[ChosenLogprob, ...]] | UnsetType = UNSET


class OutputAnswer(msgspec.Struct, frozen=True):
    """`text` and `finish_reason` in the result format `text`, else `choices`."""

    text: str | UnsetType = UNSET
    finish_reason: str | UnsetType = UNSET
    choices: tuple[ChoiceAnswer, ...] | UnsetType = UNSET


class UsageAnswer(msgspec.Struct, frozen=True):
    """`usage`."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    output_tokens_details: CompletionDetails


class GenerationAnswer(msgspec.Struct, frozen=True):
    """A whole answer, and the data of a stream's event, which are put together below."""

    output: OutputAnswer
    usage: UsageAnswer
    request_id: str


class Shape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    text: bool
    multimodal: bool
    incremental: bool
    several: bool


def whole_answer(shape: Shape, completion: Completion, request_id: str) -> bytes:
    """The answer of a call that does not stream."""
    parts = []
    for choice in completion.choices:
        calls = [
            ToolCallDelta(position, call.id, call.name, call.arguments)
            for position, call in enumerate(choice.tool_calls)
        ]
        part = _Part()
        part.add(
            Delta(
                text=choice.text,
                reasoning=choice.reasoning,
                tool_calls=tuple(calls),
                logprobs=choice.logprobs,
                finish=choice.finish,
            )
        )
        parts.append(part)
    output = _output(shape, parts, ended=True)
    usage = _usage(completion.usage)
    return f'{{"output":{output},"usage":{usage},"request_id":"{_escape(request_id)}"}}'.encode()


class GenerationStream:
    """The events of one stream of `choices` choices."""

    def __init__(self, shape: Shape, choices: int, request_id: str) -> None:
        self._shape = shape
        self._request_id = request_id
        self._tail = f',"request_id":"{_escape(request_id)}"}}\n\n'
        self._number = 0
        self._usage = _usage(TokenUsage())
        self._parts = [_Part() for _ in range(choices)]

    def start(self) -> bytes:
        """Nothing: the first event brings the first tokens."""
        return b""

    def step(self, step: Step) -> bytes:
        """One event for all deltas of a step."""
        if step.usage is not None:
            self._usage = _usage(step.usage)
        if not step.deltas:
            return b""
        return self._event(step, ended=False)

    def finish(self, step: Step) -> bytes:
        """The last event, with the exact usage and why each choice ended."""
        if step.usage is not None:
            self._usage = _usage(step.usage)
        return self._event(step, ended=True)

    def fail(self, refusal: Refusal) -> bytes:
        """The event of a stream that broke."""
        self._number += 1
        return error_event(refusal, self._request_id, self._number)

    def _event(self, step: Step, *, ended: bool) -> bytes:
        parts = self._parts
        for delta in step.deltas:
            parts[delta.index].add(delta)
        self._number += 1
        output = _output(self._shape, parts, ended=ended)
        if self._shape.incremental:
            for part in parts:
                part.clear()
        return (
            f"id:{self._number}\nevent:result\n:HTTP_STATUS/200\n"
            f'data:{{"output":{output},"usage":{self._usage}{self._tail}'
        ).encode()


class _CallText:
    """A tool call as escaped text, without quotes."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = self.name = self.arguments = ""


class _Part:
    """What one choice holds in one event: its texts escaped, without quotes."""

    __slots__ = ("calls", "end", "logprobs", "reasoning", "text")

    def __init__(self) -> None:
        self.text = self.reasoning = self.logprobs = ""
        self.calls: dict[int, _CallText] = {}
        self.end: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.text += _escape(delta.text)
        if delta.reasoning:
            self.reasoning += _escape(delta.reasoning)
        for piece in delta.tool_calls:
            self._add_call(piece)
        if delta.logprobs:
            entries = _ENCODE(chosen_logprobs(delta.logprobs))[1:-1].decode()
            self.logprobs += f",{entries}" if self.logprobs else entries
        if delta.finish is not None:
            self.end = delta.finish

    def _add_call(self, piece: ToolCallDelta) -> None:
        call = self.calls.get(piece.position)
        if call is None:
            call = self.calls[piece.position] = _CallText()
        call.id = call.id or _escape(piece.id or "")
        call.name = call.name or _escape(piece.name or "")
        call.arguments += _escape(piece.arguments)

    def clear(self) -> None:
        """Forget what an event has told; why the choice ended is told in the last only."""
        self.text = self.reasoning = self.logprobs = ""
        if self.calls:
            self.calls.clear()


def _escape(text: str) -> str:
    return _ENCODE(text)[1:-1].decode()


def _output(shape: Shape, parts: list[_Part], *, ended: bool) -> str:
    if shape.text:
        return f'{{"text":"{parts[0].text}","finish_reason":"{_finish(parts[0], ended)}"}}'
    if len(parts) == 1:
        return f'{{"choices":[{_choice(shape, parts[0], 0, ended)}]}}'
    choices = [_choice(shape, part, index, ended) for index, part in enumerate(parts)]
    return f'{{"choices":[{",".join(choices)}]}}'


def _choice(shape: Shape, part: _Part, index: int, ended: bool) -> str:
    if not shape.multimodal:
        message = f'"{part.text}"'
    else:
        message = f'[{{"text":"{part.text}"}}]' if part.text else "[]"
    if part.reasoning:
        message += f',"reasoning_content":"{part.reasoning}"'
    if part.calls:
        message += f',"tool_calls":[{",".join(_calls(part.calls, shape.incremental))}]'
    after = f',"index":{index}' if shape.several else ""
    if part.logprobs:
        after += f',"logprobs":{{"content":[{part.logprobs}]}}'
    return (
        f'{{"finish_reason":"{_finish(part, ended)}",'
        f'"message":{{"role":"assistant","content":{message}}}{after}}}'
    )


def _finish(part: _Part, ended: bool) -> str:
    return (part.end or FinishReason.STOP).value if ended else _GOES_ON


def _calls(calls: dict[int, _CallText], incremental: bool) -> list[str]:
    """The calls in order. Whole ones are numbered from 0; a piece keeps its call's number."""
    ordered = sorted(calls.items())
    if not incremental:
        ordered = [(number, call) for number, (_, call) in enumerate(ordered)]
    return [
        f'{{"index":{number},"id":"{call.id}","type":"function",'
        f'"function":{{"name":"{call.name}","arguments":"{call.arguments}"}}}}'
        for number, call in ordered
    ]


def _usage(usage: TokenUsage) -> str:
    explicit = ""
    if usage.cached_explicit or usage.cache_creation:
        explicit = f',"cache_creation_input_tokens":{usage.cache_creation}'
        explicit += ',"cache_type":"ephemeral"'
    return (
        f'{{"input_tokens":{usage.prompt},"output_tokens":{usage.completion},'
        f'"total_tokens":{usage.prompt + usage.completion},'
        f'"prompt_tokens_details":{{"cached_tokens":{usage.cached + usage.cached_explicit}'
        f'{explicit}}},"output_tokens_details":{{"reasoning_tokens":{usage.reasoning}}}}}'
    )
