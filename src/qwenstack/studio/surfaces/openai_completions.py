"""POST /v1/completions: OpenAI's legacy route, one raw prompt without a chat template.

What each published field does here stands in docs/openai-surface.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.generation import Choice, Completion, Delta, GenerationRequest, Step
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.interface import SSE_COMMENT, Call, Reply, StreamEncoder
from qwenstack.studio.surfaces.json_body import decode, show
from qwenstack.studio.surfaces.openai_errors import error_event, refuse
from qwenstack.studio.surfaces.openai_fields import (
    CHOICES_MAX,
    PenaltyFields,
    check_model,
    check_positive,
    check_stream_options,
    out_of_range,
    penalty_sampling,
    stop_strings,
    unsupported,
)
from qwenstack.studio.surfaces.openai_logprobs import LegacyLogprobs, legacy_logprobs
from qwenstack.studio.surfaces.openai_usage import Usage, usage_of

LOGPROBS_MAX = 5
TOKEN_ID_MAX = 2**31 - 1
# OpenAI's published default; chat has none.
MAX_TOKENS_UNSAID = 16


class CompletionRequest(
    PenaltyFields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """The body of a completion request."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class CompletionShape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    include_usage: bool


_DECODER = msgspec.json.Decoder(CompletionRequest)
_ENCODE = msgspec.json.Encoder().encode


class CompletionsSurface:
    """The legacy completions route."""

    name = "openai.completions"
    stream_content_type = b"text/event-stream; charset=utf-8"
    sign_of_life = SSE_COMMENT

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a completion request."""
        return parse_completion(body)

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The `text_completion` object."""
        return _ENCODE(
            CompletionAnswer(
                f"cmpl-{request_id}",
                "text_completion",
                created,
                call.request.model,
                tuple([_answer_choice(choice) for choice in completion.choices]),
                usage_of(completion.usage),
            )
        )

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """An encoder of `text_completion` events."""
        wire = call.wire
        include_usage = isinstance(wire, CompletionShape) and wire.include_usage
        return CompletionStream(
            call.request.model, call.request.n, include_usage, request_id, created
        )

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """The error answer."""
        return refuse(refusal, request_id)


def parse_completion(body: bytes) -> Call:
    """Read a completion request; raises Refusal for what is wrong in it."""
    wire = decode(_DECODER, body)
    stream = bool(wire.stream)
    include_usage = check_stream_options(wire.stream_options, stream)
    n = check_positive("n", wire.n, CHOICES_MAX) or 1
    if wire.best_of not in (None, n):
        raise unsupported(
            "best_of", f"Unsupported value for 'best_of': {show(wire.best_of)}. Use 'n' instead."
        )
    if wire.echo:
        raise unsupported("echo", "Unsupported value for 'echo': true. The prompt is not repeated.")
    if wire.suffix:
        raise unsupported(
            "suffix",
            "Unsupported parameter: 'suffix'. Write the model's own fill-in-the-middle tokens in "
            "'prompt'.",
        )
    if wire.logprobs is not None and not 0 <= wire.logprobs <= LOGPROBS_MAX:
        raise out_of_range("logprobs", wire.logprobs, f"between 0 and {LOGPROBS_MAX}")
    max_tokens = check_positive("max_tokens", wire.max_tokens)
    request = GenerationRequest(
        model=check_model(wire.model),
        prompt=_read_prompt(wire.prompt),
        max_tokens=MAX_TOKENS_UNSAID if max_tokens is None else max_tokens,
        n=n,
        sampling=penalty_sampling(wire),
        stop=stop_strings(wire.stop),
        logprobs=wire.logprobs,
    )
    return Call(request=request, stream=stream, wire=CompletionShape(include_usage))


def _read_prompt(prompt: str | list[str | int | list[int]]) -> str | tuple[int, ...]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0] if isinstance(prompt[0], str) else [*prompt[0]]
    if not prompt:
        raise invalid("Invalid value for 'prompt': it must not be empty.", "prompt")
    if isinstance(prompt, str):
        return prompt
    if all(isinstance(token, int) for token in prompt):
        return read_tokens(prompt, "prompt")
    if any(isinstance(token, int) for token in prompt):
        raise invalid(
            "Invalid value for 'prompt': it mixes token ids with texts; send one of them.", "prompt"
        )
    raise unsupported(
        "prompt",
        f"Unsupported value for 'prompt': a list of {len(prompt)} prompts. Send one request for "
        "each, or use /v1/batches.",
    )


def read_tokens(tokens: list[str | int | list[int]], param: str) -> tuple[int, ...]:
    """Token ids; whether the model has them is the engine's to say."""
    ids = []
    for token in tokens:
        if not isinstance(token, int) or not 0 <= token <= TOKEN_ID_MAX:
            raise out_of_range(param, token, "a list of token ids from 0")
        ids.append(token)
    return tuple(ids)


class AnswerChoice(msgspec.Struct, frozen=True):
    """An element of `choices`."""

    text: str
    index: int
    logprobs: LegacyLogprobs | None
    finish_reason: str | None


class CompletionAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: tuple[AnswerChoice, ...]
    usage: Usage


def _finish_reason(reason: str) -> str:
    # The legacy route has no tools: whatever ended the choice there, it ended.
    return "stop" if reason == "tool_calls" else reason


def _answer_choice(choice: Choice) -> AnswerChoice:
    return AnswerChoice(
        choice.reasoning + choice.text,
        choice.index,
        legacy_logprobs(choice.logprobs, 0) if choice.logprobs else None,
        _finish_reason(choice.finish.value),
    )


class CompletionStream:
    """Encodes the steps of one streamed completion."""

    def __init__(
        self, model: str, n: int, include_usage: bool, request_id: str, created: int
    ) -> None:
        self._request_id = request_id
        self._include_usage = include_usage
        self._head = (
            b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,"choices":['
            % (_ENCODE(f"cmpl-{request_id}"), created, _ENCODE(model))
        )
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._offsets = [0] * n
        self._finished = [False] * n

    def start(self) -> bytes:
        """Nothing: the route has no opening event."""
        return b""

    def step(self, step: Step) -> bytes:
        """An event for each delta."""
        return b"".join([self._delta(delta) for delta in step.deltas])

    def finish(self, step: Step) -> bytes:
        """The last deltas, the usage where it was asked for, and `[DONE]`."""
        pieces = [self.step(step)]
        for index, finished in enumerate(self._finished):
            if not finished:
                pieces.append(self._chunk(AnswerChoice("", index, None, "stop")))
        if self._include_usage:
            usage = _ENCODE(usage_of(step.usage or TokenUsage()))
            pieces.append(self._head + b'],"usage":' + usage + b"}\n\n")
        pieces.append(b"data: [DONE]\n\n")
        return b"".join(pieces)

    def fail(self, refusal: Refusal) -> bytes:
        """An error event. No `[DONE]` follows: a broken stream must not look whole."""
        return error_event(refusal, self._request_id)

    def _delta(self, delta: Delta) -> bytes:
        index, text = delta.index, delta.reasoning + delta.text
        if not (text or delta.logprobs or delta.finish):
            return b""
        logprobs = None
        if delta.logprobs:
            logprobs = legacy_logprobs(delta.logprobs, self._offsets[index])
        self._offsets[index] += len(text)
        reason = None
        if delta.finish is not None:
            reason = _finish_reason(delta.finish.value)
            self._finished[index] = True
        return self._chunk(AnswerChoice(text, index, logprobs, reason))

    def _chunk(self, choice: AnswerChoice) -> bytes:
        return self._head + _ENCODE(choice) + self._tail
