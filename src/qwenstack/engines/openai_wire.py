"""What OpenAI-compatible servers answer, decoded: stream chunks and whole bodies. No I/O.

Understood are vLLM, SGLang, llama-server, Alibaba Model Studio's compatible mode and whatever else
keeps to OpenAI's shapes. Only the fields that a `Step` needs are decoded; the rest is skipped.
`openai_body` is the other direction, `openai_errors` reads what is no answer.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Annotated, Final

import msgspec

from qwenstack.core.generation import (
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    FinishReason,
    Step,
    TokenLogprob,
    ToolCallDelta,
)
from qwenstack.core.tokens import COUNT_MAX, TokenUsage
from qwenstack.engines.interface import EngineError, EngineProtocolError
from qwenstack.engines.openai_errors import WireErrorDetail, error_for, status_of

DONE: Final = b"[DONE]"

_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class WirePromptDetails(msgspec.Struct, gc=False):
    """`usage.prompt_tokens_details`; `cache_type` is Model Studio's."""

    cached_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_type: str | None = None


class WireCompletionDetails(msgspec.Struct, gc=False):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: _Count | None = None


class WireUsage(msgspec.Struct, gc=False):
    """`usage`; SGLang puts `reasoning_tokens` at its top level."""

    prompt_tokens: _Count
    completion_tokens: _Count | None = None
    prompt_tokens_details: WirePromptDetails | None = None
    completion_tokens_details: WireCompletionDetails | None = None
    reasoning_tokens: _Count | None = None


class WireTimings(msgspec.Struct, gc=False):
    """llama-server's `timings`: a running count of tokens where `timings_per_token` was asked.

    `prompt_n` leaves out the `cache_n` tokens that came from the prefix cache.
    """

    prompt_n: _Count = 0
    cache_n: _Count = 0
    predicted_n: _Count = 0


class WireFunction(msgspec.Struct, gc=False):
    """`function` of a tool call, whole or a piece."""

    name: str | None = None
    arguments: str | None = None


class WireToolCall(msgspec.Struct, gc=False):
    """One entry of `tool_calls`."""

    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None


class WireDelta(msgspec.Struct, gc=False):
    """`delta` of a chunk, or `message` of a whole body."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireToolCall] | None = None


class WireTopLogprob(msgspec.Struct, gc=False):
    """An alternative token. JSON has no minus infinity, so some servers send null."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None


class WireTokenLogprob(msgspec.Struct, gc=False):
    """A chosen token in `logprobs.content`."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[WireTopLogprob] | None = None


class WireLogprobs(msgspec.Struct, gc=False):
    """`logprobs`: `content` on chat routes, the three parallel lists on `/completions`."""

    content: list[WireTokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class WireChoice(msgspec.Struct, gc=False):
    """A choice of any of the four shapes: chat or text, chunk or whole.

    Which stop text ended it stands in vLLM's `stop_reason` and SGLang's `matched_stop`; a number
    there is a token's id.
    """

    index: int = 0
    delta: WireDelta | None = None
    message: WireDelta | None = None
    text: str | None = None
    logprobs: WireLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: object = None
    matched_stop: object = None


class WireVerbose(msgspec.Struct, gc=False):
    """llama-server's `__verbose`, where it was asked for: which stop text ended the choice."""

    stopping_word: object = None


class WireChunk(msgspec.Struct, gc=False):
    """A stream event or a whole answer."""

    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    timings: WireTimings | None = None
    error: WireErrorDetail | str | None = None
    verbose: WireVerbose | None = msgspec.field(default=None, name="__verbose")


_chunk_decoder = msgspec.json.Decoder(WireChunk)
_chunks_decoder = msgspec.json.Decoder(list[WireChunk])

_FINISH: Final[dict[str, FinishReason]] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "sensitive": FinishReason.CONTENT_FILTER,
}
# vLLM and SGLang say these when the generation was given up, not finished.
_BROKEN_FINISH: Final = frozenset({"abort", "error"})


class StreamDecoder:
    """Turns the event payloads of one streamed generation into `Step`s.

    The first is empty where the first events say that an answer begins, and nothing of it.
    `choices` is the number of alternatives that was asked for; `hide` are strings that no error
    may repeat (the upstream's key). `one_call`: of several tool calls of a choice only the first is
    taken, since not every server keeps to `parallel_tool_calls`. Feed the payloads of each network
    read to `step`; when the stream ends, `end` says whether it ended whole. `done` is set once the
    final step has been returned.
    """

    __slots__ = (
        "_called",
        "_choices",
        "_ended",
        "_exact",
        "_finished",
        "_first_calls",
        "_hide",
        "_opened",
        "_running",
        "_thoughts",
        "_usage",
        "began",
        "done",
    )

    def __init__(
        self, choices: int = 1, *, hide: tuple[str, ...] = (), one_call: bool = False
    ) -> None:
        self._choices = choices
        self._hide = hide
        self._first_calls: dict[int, int] | None = {} if one_call else None
        self._finished: set[int] = set()
        self._called: set[int] = set()
        self._thoughts: dict[int, int] = {}
        self._usage: TokenUsage | None = None
        self._exact = False
        self._ended: int | None = None
        self._running: dict[int, TokenUsage] = {}
        self._opened = False
        self.began = False
        self.done = False

    def step(self, payloads: list[bytes]) -> Step | None:
        """One step with all that `payloads` bring; None when that is nothing.

        Raises EngineProtocolError for garbage, and what an in-stream `error` stands for.
        """
        if not payloads:
            return None
        if self.done:
            raise EngineProtocolError("the engine went on after the end of its stream")
        ends = payloads[-1] == DONE
        chunks = _decode_chunks(payloads[:-1] if ends else payloads)
        deltas: list[Delta] = []
        usage: WireUsage | None = None
        finished, wanted = self._finished, self._choices
        for chunk in chunks:
            if chunk.error is not None:
                raise self._stream_error(chunk.error)
            if chunk.usage is not None:
                usage = chunk.usage
            choices = chunk.choices
            if choices is None:
                if chunk.usage is None and chunk.timings is None:
                    raise EngineProtocolError("the engine sent an event that holds no chunk")
                choices = []
            for choice in choices:
                piece = choice.delta
                if (
                    piece is not None
                    and piece.content
                    and choice.finish_reason is None
                    and piece.tool_calls is None
                    and choice.logprobs is None
                    and choice.index not in finished
                    and 0 <= choice.index < wanted
                ):
                    # Nearly every chunk; spelt out here because a call for each one shows in the
                    # requests per second. All other cases are `_take`'s.
                    reasoning = piece.reasoning_content or piece.reasoning or ""
                    deltas.append(Delta(choice.index, piece.content, reasoning))
                else:
                    self._take(choice, deltas, chunk.verbose)
            if wanted > 1:
                self._count_choice(chunk)
            if chunk.timings is not None:
                self._count_thoughts(choices, chunk.timings)
            if chunk.usage is not None and len(finished) == wanted:
                self._exact = True  # counts from before the last token are running counts only
        if deltas:
            self.began = True
        return self._make_step(deltas, usage, chunks, ends)

    def end(self) -> Step | None:
        """Close the stream at its clean end: the final step, or None when it has been returned.

        Raises EngineProtocolError where the engine owes a finish reason or its usage.
        """
        if self.done:
            return None
        self._check_whole()
        self.done = True
        return Step((), self._usage, final=True)

    def _make_step(
        self, deltas: list[Delta], wire: WireUsage | None, chunks: list[WireChunk], ends: bool
    ) -> Step | None:
        usage: TokenUsage | None = None
        last = chunks[-1] if chunks else None
        if self._running and last is not None and (last.choices or last.timings is not None):
            # Each choice has been counted for itself, until vLLM's and SGLang's last chunk.
            usage = _sum_over_choices(self._running)
        elif wire is not None:
            usage = token_usage(wire)
        elif last is not None and last.timings is not None:
            usage = _running_usage(last.timings)
        if self._thoughts and usage is not None and not usage.reasoning:
            thoughts = min(sum(self._thoughts.values()), usage.completion)
            usage = msgspec.structs.replace(usage, reasoning=thoughts)
        if wire is not None:
            self._usage = usage
        if ends:
            self._check_whole()
            self.done = True
            return Step(tuple(deltas), self._usage, final=True)
        if not deltas and usage is None and (self._opened or not chunks):
            return None
        self._opened = True
        return Step(tuple(deltas), usage)

    def _take(self, choice: WireChoice, deltas: list[Delta], verbose: WireVerbose | None) -> None:
        """Append what one choice of one chunk brings."""
        index = choice.index
        piece = choice.delta or choice.message
        reason = choice.finish_reason
        if piece is not None:
            text = piece.content
            reasoning = piece.reasoning_content or piece.reasoning or ""
            calls = _tool_calls(piece.tool_calls) if piece.tool_calls else ()
            if calls:
                self._called.add(index)
        else:
            text, reasoning, calls = choice.text, "", ()
        if calls and self._first_calls is not None:
            first = self._first_calls.setdefault(index, calls[0].position)
            calls = tuple(call for call in calls if call.position == first)
        logprobs = () if choice.logprobs is None else _logprobs(choice.logprobs)
        finish = None if not reason else self._finish(index, reason)
        if text or reasoning or calls or logprobs or finish is not None:
            if not 0 <= index < self._choices or (index in self._finished and finish is None):
                raise self._stray(index)
            if finish is not None:
                self._finished.add(index)
                self._ended = index
            told = None if finish is None else _stopped_by(choice, verbose)
            deltas.append(Delta(index, text or "", reasoning, calls, logprobs, finish, told))

    def _finish(self, index: int, reason: str) -> FinishReason | None:
        """The reason in our own terms; None where the choice has ended already."""
        if index in self._finished or reason == "null":
            return None
        if reason in _BROKEN_FINISH:
            raise EngineProtocolError(f"the engine gave the generation up ({reason!r})")
        # A reason nobody told us of still ends the choice, and what was generated is whole.
        finish = _FINISH.get(reason, FinishReason.STOP)
        # vLLM says "stop" of a call that the request named (tried on 0.32).
        called = finish is FinishReason.STOP and index in self._called
        return FinishReason.TOOL_CALLS if called else finish

    def _stray(self, index: int) -> EngineProtocolError:
        if index in self._finished:
            return EngineProtocolError(f"the engine went on with choice {index} after its end")
        return EngineProtocolError(
            f"the engine sent choice {index}, but {self._choices} were asked for"
        )

    def _count_choice(self, chunk: WireChunk) -> None:
        """Keep the count of one of several choices, which every server tells in its own way.

        vLLM and SGLang put a usage on each chunk of a choice. llama-server puts timings there, and
        sends a usage for each choice, without its number, right after the choice's end.
        """
        if chunk.usage is not None:
            usage = token_usage(chunk.usage)
        elif chunk.timings is not None:
            usage = _running_usage(chunk.timings)
        else:
            return
        if chunk.choices:
            self._running[chunk.choices[0].index] = usage
        elif chunk.timings is not None and self._ended is not None:
            self._running[self._ended] = usage

    def _count_thoughts(self, choices: list[WireChoice], timings: WireTimings) -> None:
        """Count what llama-server does not: a choice's tokens at its last piece of a thought."""
        for choice in choices:
            piece = choice.delta
            if piece is not None and (piece.reasoning_content or piece.reasoning):
                self._thoughts[choice.index] = timings.predicted_n

    def _check_whole(self) -> None:
        missing = self._choices - len(self._finished)
        if missing:
            raise EngineProtocolError(
                f"the engine ended its stream with {missing} of {self._choices} choices unfinished"
            )
        if not self._exact:
            raise EngineProtocolError("the engine ended its stream without saying its usage")

    def _stream_error(self, error: WireErrorDetail | str) -> EngineError:
        """An `error` event: after the first delta nothing may be retried or refused any more."""
        detail = WireErrorDetail(message=error) if isinstance(error, str) else error
        status = status_of(detail)
        if self.began:
            return EngineProtocolError("the engine broke its stream off with an error event")
        return error_for(status, detail, hide=self._hide)


def decode_completion(body: bytes, choices: int = 1, *, one_call: bool = False) -> Step:
    """A whole (not streamed) chat or text completion, as the one final step.

    Raises EngineProtocolError for garbage, a missing choice, finish reason or usage.
    """
    decoder = StreamDecoder(choices, one_call=one_call)
    step = decoder.step([body, DONE])
    assert step is not None  # `step` returns a final step or raises where DONE is given
    return step


def token_usage(wire: WireUsage) -> TokenUsage:
    """The counts in our own terms. Raises EngineProtocolError when they contradict themselves.

    Model Studio's `cache_type` is `ephemeral` for hits of the explicit cache only, whose price
    differs, so they are kept apart.
    """
    prompt_details = wire.prompt_tokens_details
    completion_details = wire.completion_tokens_details
    if prompt_details is None and completion_details is None and not wire.reasoning_tokens:
        return TokenUsage(wire.prompt_tokens, wire.completion_tokens or 0)
    cached = cached_explicit = creation = 0
    if prompt_details is not None:
        cached = prompt_details.cached_tokens or 0
        creation = prompt_details.cache_creation_input_tokens or 0
        if prompt_details.cache_type == "ephemeral":
            cached, cached_explicit = 0, cached
    reasoning = wire.reasoning_tokens or 0
    if completion_details is not None:
        reasoning = completion_details.reasoning_tokens or reasoning
    usage = TokenUsage(
        wire.prompt_tokens,
        wire.completion_tokens or 0,
        cached,
        cached_explicit,
        creation,
        reasoning,
    )
    fault = usage.inconsistency()
    if fault is not None:
        raise EngineProtocolError(f"the engine's usage contradicts itself: {fault}")
    return usage


def _running_usage(timings: WireTimings) -> TokenUsage:
    """llama-server's count so far; its prompt leaves out what came from the prefix cache."""
    return TokenUsage(
        prompt=timings.prompt_n + timings.cache_n,
        completion=timings.predicted_n,
        cached=timings.cache_n,
    )


def _sum_over_choices(running: dict[int, TokenUsage]) -> TokenUsage:
    """The prompt once, the completions of all choices."""
    last = next(reversed(running.values()))
    return msgspec.structs.replace(
        last,
        completion=sum(usage.completion for usage in running.values()),
        reasoning=sum(usage.reasoning for usage in running.values()),
    )


def _decode_chunks(payloads: list[bytes]) -> list[WireChunk]:
    """Decode payloads in one pass where they are clean, and find the culprit where not."""
    try:
        if len(payloads) == 1:
            return [_chunk_decoder.decode(payloads[0])]
        chunks = _chunks_decoder.decode(b"[" + b",".join(payloads) + b"]")
        if len(chunks) == len(payloads):
            return chunks
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    chunks = []
    for position, payload in enumerate(payloads):
        if payload == DONE:
            if any(rest.strip() for rest in payloads[position + 1 :]):
                raise EngineProtocolError("the engine went on after the end of its stream")
            break
        if not payload.strip():
            continue
        try:
            chunks.append(_chunk_decoder.decode(payload))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineProtocolError(f"the engine sent what is no chunk: {error}") from error
    return chunks


def _stopped_by(choice: WireChoice, verbose: WireVerbose | None) -> str | None:
    told = choice.stop_reason or choice.matched_stop
    if told is None and verbose is not None:
        told = verbose.stopping_word
    return told if isinstance(told, str) and told else None


def _tool_calls(calls: list[WireToolCall]) -> tuple[ToolCallDelta, ...]:
    return tuple(
        ToolCallDelta(
            position if call.index is None else call.index,
            call.id,
            None if call.function is None else call.function.name,
            "" if call.function is None else call.function.arguments or "",
        )
        for position, call in enumerate(calls)
    )


def _logprob(value: float | None) -> float:
    return -math.inf if value is None else value


def _logprobs(wire: WireLogprobs) -> tuple[TokenLogprob, ...]:
    if wire.content is not None:
        return tuple(
            TokenLogprob(
                entry.token,
                _logprob(entry.logprob),
                tuple(entry.bytes or ()),
                tuple(
                    TokenLogprob(top.token, _logprob(top.logprob), tuple(top.bytes or ()))
                    for top in entry.top_logprobs or ()
                ),
            )
            for entry in wire.content
        )
    tokens, chosen, tops = wire.tokens or [], wire.token_logprobs or [], wire.top_logprobs or []
    if len(tokens) != len(chosen) or len(tops) not in (0, len(tokens)):
        raise EngineProtocolError("the engine sent logprobs whose lists differ in length")
    return tuple(
        TokenLogprob(
            token,
            _logprob(logprob),
            top=tuple(
                TokenLogprob(name, _logprob(value))
                for name, value in ((tops[position] if tops else None) or {}).items()
            ),
        )
        for position, (token, logprob) in enumerate(zip(tokens, chosen, strict=True))
    )


class _WireVector(msgspec.Struct, gc=False):
    embedding: list[float] | str
    index: int | None = None


class _WireEmbeddings(msgspec.Struct, gc=False):
    data: list[_WireVector]
    usage: WireUsage


_embeddings_decoder = msgspec.json.Decoder(_WireEmbeddings)


def decode_embeddings(body: bytes, request: EmbeddingRequest) -> EmbeddingResult:
    """Vectors as float lists or as base64 of little-endian float32, made unit length.

    Raises EngineProtocolError for garbage, a missing, surplus or broken vector, or missing usage.
    """
    try:
        wire = _embeddings_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineProtocolError(f"the engine sent what are no embeddings: {error}") from error
    expected = len(request.inputs)
    vectors: list[tuple[float, ...] | None] = [None] * expected
    for position, item in enumerate(wire.data):
        index = position if item.index is None else item.index
        if not 0 <= index < expected or vectors[index] is not None:
            raise EngineProtocolError(f"the engine sent embedding {index} of {expected} unasked")
        vectors[index] = _unit_vector(item.embedding)
    whole = tuple(vector for vector in vectors if vector is not None)
    if len(whole) != expected:
        raise EngineProtocolError(f"the engine sent {len(whole)} of {expected} embeddings")
    if len({len(vector) for vector in whole}) > 1:
        raise EngineProtocolError("the engine sent embeddings of different widths")
    return EmbeddingResult(whole, token_usage(wire.usage))


def _unit_vector(wire: list[float] | str) -> tuple[float, ...]:
    if isinstance(wire, str):
        try:
            raw = base64.b64decode(wire, validate=True)
            vector = struct.unpack(f"<{len(raw) // 4}f", raw)
        except (binascii.Error, struct.error, ValueError) as error:
            raise EngineProtocolError(f"the engine sent a broken embedding: {error}") from error
    else:
        vector = tuple(wire)
    length = math.hypot(*vector)
    if not length > 0 or math.isinf(length):
        raise EngineProtocolError("the engine sent an embedding without a direction")
    if abs(length - 1) > 1e-4:
        return tuple(value / length for value in vector)
    return vector
