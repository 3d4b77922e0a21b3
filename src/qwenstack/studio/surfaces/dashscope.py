"""DashScope's native API: text and multimodal generation, and text embeddings.

Routes: `/api/v1/services/aigc/text-generation/generation`,
`/api/v1/services/aigc/multimodal-generation/generation`,
`/api/v1/services/embeddings/text-embedding/text-embedding`.

Streams are cumulative unless `incremental_output` is true: every event then repeats all that was
generated, text, thoughts and tool calls. Usage stands in every event, as the engine counts it;
where the engine keeps no running count, it is 0 in all but the last. Only the last event says why
a choice ended: the vendor's client takes nothing after that.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import (
    Choice,
    Completion,
    CompletionBuilder,
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    FinishReason,
    Step,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces import dashscope_errors
from qwenstack.studio.surfaces.dashscope_request import read_generation
from qwenstack.studio.surfaces.interface import Call, EmbeddingCall, Reply, StreamEncoder
from qwenstack.studio.surfaces.json_body import decode
from qwenstack.studio.surfaces.openai_fields import check_model, check_positive
from qwenstack.studio.surfaces.openai_logprobs import chosen_logprobs

_ENCODER = msgspec.json.Encoder()
_INPUTS_MAX = 25
_REFUSED_HEADERS = {
    b"x-dashscope-async": "send the request without it and wait for the answer.",
    b"x-dashscope-datainspection": "contents are not inspected here.",
    b"x-dashscope-plugin": "no plugins are run here; use tools.",
    b"x-dashscope-encryptionkey": "use TLS in front of this server.",
}


class Shape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    text: bool
    multimodal: bool
    incremental: bool
    several: bool


class DashScopeGeneration:
    """The two generation routes; `multimodal` wraps an answer's text in a content list."""

    stream_content_type = b"text/event-stream;charset=UTF-8"

    def __init__(self, *, multimodal: bool) -> None:
        self.name = "dashscope.multimodal" if multimodal else "dashscope.text"
        self._multimodal = multimodal

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a request; raises Refusal."""
        for name, reason in _REFUSED_HEADERS.items():
            if headers.get(name):
                raise Refusal(RefusalKind.UNSUPPORTED, f"{name.decode()} is not offered: {reason}")
        wire, request = read_generation(body)
        parameters = wire.parameters
        sse = headers.get(b"x-dashscope-sse", b"").lower() == b"enable"
        # Chat models answer with messages where nothing is said; `text` is the older form.
        text = parameters.result_format == "text" and not self._multimodal
        if text and request.n > 1:
            raise invalid(
                f"'n' is {request.n}, and the result_format 'text' has room for one answer; send "
                "the result_format 'message'.",
                "n",
            )
        return Call(
            request=request,
            stream=sse or b"text/event-stream" in headers.get(b"accept", b""),
            wire=Shape(text, self._multimodal, bool(parameters.incremental_output), request.n > 1),
        )

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The whole answer."""
        shape = _shape(call)
        output = _output(shape, [_Part.whole(choice) for choice in completion.choices])
        return _answer(output, completion.usage, request_id)

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """The encoder of one stream."""
        return _Stream(_shape(call), call.request.n, request_id)

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in DashScope's shape."""
        return dashscope_errors.refuse(refusal, request_id)


class _Part(msgspec.Struct):
    """What one choice holds in one event."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = []
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None

    @staticmethod
    def whole(choice: Choice) -> _Part:
        return _Part(
            choice.text,
            choice.reasoning,
            [_call(position, call) for position, call in enumerate(choice.tool_calls)],
            choice.logprobs,
            choice.finish,
        )


class _Stream:
    """The events of one stream: what a step brought, or all so far."""

    def __init__(self, shape: Shape, choices: int, request_id: str) -> None:
        self._shape = shape
        self._request_id = request_id
        self._number = 0
        self._usage = TokenUsage()
        self._builder = CompletionBuilder()
        self._builder.add(Step((), TokenUsage()))
        self._choices = choices
        self._ends: list[FinishReason | None] = [None] * choices

    def start(self) -> bytes:
        return b""

    def step(self, step: Step) -> bytes:
        if step.usage is not None:
            self._usage = step.usage
        if not step.deltas:
            return b""
        return self._event(self._parts(step, ended=False))

    def finish(self, step: Step) -> bytes:
        if step.usage is not None:
            self._usage = step.usage
        return self._event(self._parts(step, ended=True))

    def fail(self, refusal: Refusal) -> bytes:
        self._number += 1
        return dashscope_errors.error_event(refusal, self._request_id, self._number)

    def _parts(self, step: Step, *, ended: bool) -> list[_Part]:
        for delta in step.deltas:
            self._ends[delta.index] = delta.finish or self._ends[delta.index]
        if self._shape.incremental:
            parts = _increments(step.deltas, self._choices)
        else:
            self._builder.add(Step(step.deltas))
            parts = [_Part() for _ in range(self._choices)]
            for choice in self._builder.build().choices:
                parts[choice.index] = _Part.whole(choice)
        for part, end in zip(parts, self._ends, strict=True):
            part.finish = (end or FinishReason.STOP) if ended else None
        return parts

    def _event(self, parts: list[_Part]) -> bytes:
        self._number += 1
        return b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%s\n\n" % (
            self._number,
            _answer(_output(self._shape, parts), self._usage, self._request_id),
        )


def _increments(deltas: tuple[Delta, ...], choices: int) -> list[_Part]:
    parts = [_Part() for _ in range(choices)]
    for delta in deltas:
        part = parts[delta.index]
        part.text += delta.text
        part.reasoning += delta.reasoning
        part.calls = [*part.calls, *(_call_delta(call) for call in delta.tool_calls)]
        part.logprobs += delta.logprobs
    return parts


def _shape(call: Call) -> Shape:
    assert isinstance(call.wire, Shape)
    return call.wire


def _output(shape: Shape, parts: list[_Part]) -> dict[str, Any]:
    if shape.text:
        first = parts[0]
        return {"text": first.text, "finish_reason": _finish(first.finish)}
    return {"choices": [_choice(shape, part, index) for index, part in enumerate(parts)]}


def _choice(shape: Shape, part: _Part, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if shape.multimodal:
        message["content"] = [{"text": part.text}] if part.text else []
    if part.reasoning:
        message["reasoning_content"] = part.reasoning
    if part.calls:
        message["tool_calls"] = part.calls
    choice: dict[str, Any] = {"finish_reason": _finish(part.finish), "message": message}
    if shape.several:
        choice["index"] = index
    if part.logprobs:
        choice["logprobs"] = {"content": chosen_logprobs(part.logprobs)}
    return choice


def _finish(reason: FinishReason | None) -> str:
    # The vendor writes the string "null" while a choice goes on.
    return "null" if reason is None else reason.value


def _call(position: int, call: ToolCall) -> dict[str, Any]:
    return {
        "index": position,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    return {
        "index": call.position,
        "id": call.id or "",
        "type": "function",
        "function": {"name": call.name or "", "arguments": call.arguments},
    }


def _answer(output: dict[str, Any], usage: TokenUsage, request_id: str) -> bytes:
    return _ENCODER.encode({"output": output, "usage": _usage(usage), "request_id": request_id})


def _usage(usage: TokenUsage) -> dict[str, Any]:
    details: dict[str, Any] = {"cached_tokens": usage.cached + usage.cached_explicit}
    if usage.cached_explicit or usage.cache_creation:
        details["cache_creation_input_tokens"] = usage.cache_creation
        details["cache_type"] = "ephemeral"
    return {
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": details,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class _EmbeddingInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    texts: list[str]


class EmbeddingParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parameters` of an embedding request."""

    text_type: Literal["query", "document"] | None = None
    dimension: int | None = None
    output_type: str | None = None
    instruct: str | None = None


class EmbeddingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an embedding request."""

    model: str
    input: _EmbeddingInput
    parameters: EmbeddingParameters = EmbeddingParameters()


_EMBEDDINGS = msgspec.json.Decoder(EmbeddingBody)


class DashScopeEmbeddings:
    """The text embedding route."""

    name = "dashscope.embeddings"

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> EmbeddingCall:
        """Read a request; raises Refusal."""
        wire = decode(_EMBEDDINGS, body)
        texts, parameters = wire.input.texts, wire.parameters
        if not 1 <= len(texts) <= _INPUTS_MAX:
            raise invalid(
                f"'input.texts' has {len(texts)} texts; send 1 to {_INPUTS_MAX}.", "input.texts"
            )
        if not all(texts):
            raise invalid("'input.texts' holds an empty text.", "input.texts")
        if parameters.output_type not in (None, "dense"):
            raise invalid("'parameters.output_type' must be dense.", "parameters.output_type")
        if parameters.instruct is not None:
            raise invalid("'parameters.instruct' is not offered here.", "parameters.instruct")
        return EmbeddingCall(
            request=EmbeddingRequest(
                model=check_model(wire.model),
                inputs=tuple(texts),
                dimensions=check_positive("parameters.dimension", parameters.dimension),
            )
        )

    def encode(
        self, call: EmbeddingCall, result: EmbeddingResult, request_id: str, created: int
    ) -> bytes:
        """The whole answer."""
        vectors = [
            {"text_index": index, "embedding": vector}
            for index, vector in enumerate(result.vectors)
        ]
        return _ENCODER.encode(
            {
                "output": {"embeddings": vectors},
                "usage": {"total_tokens": result.usage.prompt},
                "request_id": request_id,
            }
        )

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in DashScope's shape."""
        return dashscope_errors.refuse(refusal, request_id)
