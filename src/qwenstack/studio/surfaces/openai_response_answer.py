"""The `response` object of the Responses API and the items of its output."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from qwenstack.core.generation import Completion, FinishReason, TokenLogprob
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.surfaces.openai_errors import error_fields
from qwenstack.studio.surfaces.openai_logprobs import LOGPROB_FLOOR, chosen_logprobs

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]

_FAILURE_CODES = {
    RefusalKind.RATE_REQUESTS: "rate_limit_exceeded",
    RefusalKind.RATE_TOKENS: "rate_limit_exceeded",
    RefusalKind.RATE_CONCURRENCY: "rate_limit_exceeded",
    RefusalKind.INVALID_REQUEST: "invalid_prompt",
    RefusalKind.CONTEXT_LENGTH: "invalid_prompt",
    RefusalKind.CONTENT_FILTERED: "invalid_prompt",
    RefusalKind.RESIDENCY: "data_residency_mismatch",
}


class TopTokenLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class OutputLogprob(msgspec.Struct, frozen=True):
    """A chosen token. Unlike in chat, `bytes` is never null: unknown is empty."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopTokenLogprob, ...]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """The text part of a message."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[OutputLogprob, ...] = ()


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """The text part of a reasoning item."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    content: tuple[OutputText, ...]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(msgspec.Struct, frozen=True, tag="reasoning"):
    """What the model thinks, whole: there is no summary."""

    id: str
    status: ItemStatus
    content: tuple[ReasoningText, ...]
    summary: tuple[()] = ()


class CallItem(msgspec.Struct, frozen=True, tag="function_call"):
    """A function that the model calls."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | CallItem


class InputDetails(msgspec.Struct, frozen=True):
    """Parts of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """Parts of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """`usage`."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, frozen=True):
    """`error` of a failed response."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class FunctionEcho(msgspec.Struct, frozen=True):
    """A tool of the request, repeated."""

    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool
    type: Literal["function"] = "function"


class FormatEcho(msgspec.Struct, frozen=True):
    """`text.format`, repeated."""

    type: str = "text"
    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class TextEcho(msgspec.Struct, frozen=True):
    """`text`, repeated."""

    format: FormatEcho = FormatEcho()
    verbosity: Literal["medium"] = "medium"


class ReasoningEcho(msgspec.Struct, frozen=True):
    """`reasoning`, repeated."""

    effort: str | None = None
    summary: str | None = None


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer repeats of its request, and what follows from keeping nothing."""

    model: str
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    prompt_cache_key: str | UnsetType = UNSET
    reasoning: ReasoningEcho = ReasoningEcho()
    safety_identifier: str | UnsetType = UNSET
    temperature: float | None = None
    text: TextEcho = TextEcho()
    tool_choice: object = "auto"
    tools: tuple[FunctionEcho, ...] = ()
    top_logprobs: int | UnsetType = UNSET
    top_p: float | None = None
    user: str | UnsetType = UNSET
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer adds to the echo."""

    id: str
    created_at: int
    status: Status
    output: tuple[OutputItem, ...] = ()
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | UnsetType = UNSET
    object: Literal["response"] = "response"


_ENCODE = msgspec.json.Encoder().encode


def encode_response(outcome: Outcome, echo: bytes) -> bytes:
    """The `response` object; `echo` is an encoded `Echo`."""
    return _ENCODE(outcome)[:-1] + b"," + echo[1:]


def encode_echo(echo: Echo) -> bytes:
    """The part of a `response` object that all events of a stream share."""
    return _ENCODE(echo)


def response_usage(usage: TokenUsage) -> ResponseUsage:
    """`usage` in the shape of the Responses API."""
    return ResponseUsage(
        usage.prompt,
        InputDetails(usage.cached + usage.cached_explicit, usage.cache_creation),
        usage.completion,
        OutputDetails(usage.reasoning),
        usage.total,
    )


def response_failure(refusal: Refusal) -> ResponseFailure:
    """`error` of a response that failed; its codes are a closed list of OpenAI's."""
    code = _FAILURE_CODES.get(refusal.kind, "server_error")
    return ResponseFailure(code, error_fields(refusal).message)


def incomplete_details(finish: FinishReason) -> IncompleteDetails | None:
    """Why an answer that ended so is incomplete, or None where it is whole."""
    if finish is FinishReason.LENGTH:
        return IncompleteDetails("max_output_tokens")
    if finish is FinishReason.CONTENT_FILTER:
        return IncompleteDetails("content_filter")
    return None


def output_logprobs(logprobs: tuple[TokenLogprob, ...]) -> tuple[OutputLogprob, ...]:
    """Log-probabilities of a message's text."""
    return tuple(
        [
            OutputLogprob(
                token.token,
                token.logprob,
                token.bytes or (),
                tuple(
                    [
                        TopTokenLogprob(top.token, top.logprob, top.bytes or ())
                        for top in token.top_logprobs
                        if top.logprob > LOGPROB_FLOOR
                    ]
                ),
            )
            for token in chosen_logprobs(logprobs)
        ]
    )


class ItemIds:
    """Names of the output items: `rs_`, `msg_` and `fc_`, the response's own part, the position."""

    def __init__(self, request_id: str) -> None:
        self._own = request_id.removeprefix("req_")

    @property
    def response(self) -> str:
        """The response's id."""
        return f"resp_{self._own}"

    def item(self, kind: Literal["rs", "msg", "fc"], position: int) -> str:
        """The id of the item at `position` of the output."""
        return f"{kind}_{self._own}_{position}"


def build_output(completion: Completion, ids: ItemIds) -> tuple[OutputItem, ...]:
    """The output items of a whole generation."""
    choice = completion.choices[0]
    whole = incomplete_details(choice.finish) is None
    status: ItemStatus = "completed" if whole else "incomplete"
    items: list[OutputItem] = []
    if choice.reasoning:
        cut = not whole and not choice.text and not choice.tool_calls
        items.append(
            ReasoningItem(
                ids.item("rs", 0),
                "incomplete" if cut else "completed",
                (ReasoningText(choice.reasoning),),
            )
        )
    if choice.text or not (choice.tool_calls or choice.reasoning):
        text = OutputText(choice.text, logprobs=output_logprobs(choice.logprobs))
        items.append(MessageItem(ids.item("msg", len(items)), status, (text,)))
    for call in choice.tool_calls:
        items.append(
            CallItem(ids.item("fc", len(items)), status, call.id, call.name, call.arguments)
        )
    return tuple(items)
