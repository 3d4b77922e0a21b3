"""What is asked of an engine and what comes back, in no vendor's shape.

Every API surface translates its wire format to a `GenerationRequest` and a sequence of `Step`s back
to its wire format; every engine does the reverse. Nothing here performs I/O.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

import msgspec

from qwenstack.core.tokens import TokenUsage
from qwenstack.core.trace_context import TraceContext

Role = Literal["system", "user", "assistant", "tool"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text in a message. `cache_marker` is an explicit-cache breakpoint after this part."""

    text: str
    cache_marker: bool = False


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image: `url` is https: or data:."""

    url: str


class AudioPart(msgspec.Struct, frozen=True, tag="audio"):
    """Base64 audio in `format` (wav, mp3)."""

    data: str
    format: str


ContentPart = TextPart | ImagePart | AudioPart


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model asks for. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: tuple[ContentPart, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; `parameters` is a JSON Schema object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True):
    """`auto`, `none`, `required`, or `named` with the function's `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`text`, any `json_object`, or JSON that satisfies `schema` (`json_schema`)."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool = False


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. None leaves the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A generation, by chat `messages` or by a raw `prompt` (exactly one of the two).

    `max_tokens` None means: as much as the deployment allows. `logprobs` None means none, 0 the
    chosen token only, k the k most likely besides. `thinking` None leaves the template's default.
    `trace` is for an engine to pass on, where the request is traced.
    """

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    n: int = 1
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    logprobs: int | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    trace: TraceContext | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token with its natural-log probability and, on the chosen one, its `top` alternatives."""

    token: str
    logprob: float
    bytes: tuple[int, ...] = ()
    top: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of tool call number `position`: `id` and `name` come once, `arguments` in pieces."""

    position: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class FinishReason(enum.Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Delta(msgspec.Struct, frozen=True):
    """What one choice gained. `finish` is set on a choice's last delta, once.

    `stopped_by` comes with it where the engine says which of the request's stop texts it met.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stopped_by: str | None = None


class Step(msgspec.Struct, frozen=True):
    """All that one read from the engine brought.

    A first one that is empty says that the engine has begun to answer, and nothing yet.
    `usage` is the engine's count so far, where it keeps one. The last step of a generation has
    `final` set and always carries the exact usage; an engine that cannot give it raises instead.
    """

    deltas: tuple[Delta, ...] = ()
    usage: TokenUsage | None = None
    final: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One finished alternative of a generation."""

    index: int
    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: FinishReason
    stopped_by: str | None = None


class Completion(msgspec.Struct, frozen=True):
    """A whole generation: the folded steps."""

    choices: tuple[Choice, ...]
    usage: TokenUsage


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts (or token sequences) to embed. `dimensions` None is the model's own width."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    trace: TraceContext | None = None


class EmbeddingResult(msgspec.Struct, frozen=True):
    """Unit-length vectors in the order of the inputs; `usage.prompt` is the engine's count."""

    vectors: tuple[tuple[float, ...], ...]
    usage: TokenUsage


class CompletionBuilder:
    """Folds `Step`s into a `Completion`.

    >>> builder = CompletionBuilder()
    >>> builder.add(Step((Delta(text="Par"),)))
    >>> last = Delta(text="is", finish=FinishReason.STOP)
    >>> builder.add(Step((last,), TokenUsage(5, 2), final=True))
    >>> builder.build().choices[0].text
    'Paris'
    """

    def __init__(self) -> None:
        self._choices: dict[int, _OpenChoice] = {}
        self._usage: TokenUsage | None = None

    def add(self, step: Step) -> None:
        """Take in one step; steps come in order."""
        for delta in step.deltas:
            choice = self._choices.get(delta.index)
            if choice is None:
                choice = self._choices[delta.index] = _OpenChoice()
            choice.add(delta)
        if step.usage is not None:
            self._usage = step.usage

    def build(self) -> Completion:
        """The completion so far; raises ValueError when no usage has come."""
        if self._usage is None:
            raise ValueError("the engine reported no usage")
        choices = tuple(self._choices[index].close(index) for index in sorted(self._choices))
        return Completion(choices, self._usage)


class _OpenChoice:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None
        self.stopped_by: str | None = None

    def add(self, delta: Delta) -> None:
        if delta.text:
            self.text.append(delta.text)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self.calls.setdefault(piece.position, ["", "", ""])
            call[0] = call[0] or piece.id or ""
            call[1] = call[1] or piece.name or ""
            call[2] += piece.arguments
        self.logprobs.extend(delta.logprobs)
        self.finish = delta.finish or self.finish
        self.stopped_by = delta.stopped_by or self.stopped_by

    def close(self, index: int) -> Choice:
        return Choice(
            index=index,
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            tool_calls=tuple(ToolCall(*self.calls[key]) for key in sorted(self.calls)),
            logprobs=tuple(self.logprobs),
            finish=self.finish or FinishReason.STOP,
            stopped_by=self.stopped_by,
        )
