"""Anthropic's Messages API: `/v1/messages` and `/v1/messages/count_tokens`.

Model Studio serves the same under `/apps/anthropic`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import Choice, Completion, GenerationRequest, ToolCall
from qwenstack.core.refusals import Refusal
from qwenstack.studio.surfaces import anthropic_errors
from qwenstack.studio.surfaces.anthropic_request import (
    MessagesRequest,
    ThinkingAdaptive,
    ThinkingEnabled,
    read_count_request,
    read_messages_request,
)
from qwenstack.studio.surfaces.anthropic_stream import MessageStream, stop_reason, stopped_by
from qwenstack.studio.surfaces.anthropic_usage import Usage, usage_of
from qwenstack.studio.surfaces.interface import Call, Reply, StreamEncoder


class Shape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    show_thoughts: bool


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    """Text of an answer."""

    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """Thoughts of an answer. They carry no signature: nobody checks them when they come back."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    """A call that the model asks for."""

    id: str
    name: str
    input: dict[str, Any]


class MessageAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: tuple[ThinkingBlock | TextBlock | ToolUseBlock, ...]
    stop_reason: str
    stop_sequence: str | None
    usage: Usage


class TokenCount(msgspec.Struct, frozen=True):
    """The answer of the counting route."""

    input_tokens: int


class AnthropicMessages:
    """The generation route."""

    name = "anthropic.messages"
    stream_content_type = b"text/event-stream; charset=utf-8"
    sign_of_life = b'event: ping\ndata: {"type":"ping"}\n\n'

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a request; raises Refusal. No version or beta header changes what is read."""
        wire, request = read_messages_request(body)
        return Call(request=request, stream=bool(wire.stream), wire=Shape(_shows_thoughts(wire)))

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The whole answer."""
        choice = completion.choices[0]
        return msgspec.json.encode(
            MessageAnswer(
                f"msg_{request_id}",
                "message",
                "assistant",
                call.request.model,
                tuple(_blocks(choice, _shape(call))),
                *stop_reason(
                    choice.finish,
                    stopped_by(choice.stopped_by, call.request.stop),
                    called=bool(choice.tool_calls),
                ),
                usage_of(completion.usage),
            )
        )

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """The encoder of one stream."""
        request = call.request
        return MessageStream(request.model, request.stop, _shape(call).show_thoughts, request_id)

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in Anthropic's shape."""
        return anthropic_errors.refuse(refusal, request_id)


class AnthropicTokenCount:
    """The route that counts a prompt's tokens without running it."""

    name = "anthropic.count_tokens"

    def parse(self, body: bytes) -> GenerationRequest:
        """The prompt to count; raises Refusal."""
        return read_count_request(body)

    def encode(self, tokens: int) -> bytes:
        """The whole answer."""
        return msgspec.json.encode(TokenCount(tokens))

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """A refusal in Anthropic's shape."""
        return anthropic_errors.refuse(refusal, request_id)


def _shows_thoughts(wire: MessagesRequest) -> bool:
    thinking = wire.thinking
    return not (
        isinstance(thinking, ThinkingEnabled | ThinkingAdaptive) and thinking.display == "omitted"
    )


def _shape(call: Call) -> Shape:
    assert isinstance(call.wire, Shape)
    return call.wire


def _blocks(choice: Choice, shape: Shape) -> list[ThinkingBlock | TextBlock | ToolUseBlock]:
    blocks: list[ThinkingBlock | TextBlock | ToolUseBlock] = []
    if choice.reasoning:
        blocks.append(ThinkingBlock(choice.reasoning if shape.show_thoughts else ""))
    if choice.text:
        blocks.append(TextBlock(choice.text))
    blocks.extend([ToolUseBlock(call.id, call.name, _input(call)) for call in choice.tool_calls])
    return blocks


def _input(call: ToolCall) -> dict[str, Any]:
    """The call's arguments as an object.

    What is none (an answer cut off by `max_tokens`, a model that errs) comes whole under the key
    that the vendor's documentation of unvalidated tool input gives it.
    """
    if not call.arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": call.arguments}
