"""What the OpenVINO child is asked over its loopback, and what it answers: vLLM's wire shapes."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import Delta, ResponseFormat, Tool, ToolChoice


class Function(msgspec.Struct):
    """A call in an assistant's turn."""

    name: str
    arguments: str = "{}"


class Call(msgspec.Struct):
    """`tool_calls[]`."""

    function: Function


class Part(msgspec.Struct):
    """A content part; only text comes here."""

    text: str = ""


class ChatMessage(msgspec.Struct):
    """`messages[]`."""

    role: str
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] = []
    name: str | None = None


class OfferedFunction(msgspec.Struct):
    """`tools[].function`."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = {}


class Offered(msgspec.Struct):
    """`tools[]`."""

    function: OfferedFunction


class NamedFunction(msgspec.Struct):
    """`tool_choice.function`."""

    name: str


class NamedChoice(msgspec.Struct):
    """`tool_choice` as an object."""

    function: NamedFunction


class JsonSchema(msgspec.Struct, frozen=True):
    """`response_format.json_schema`."""

    schema: dict[str, Any] = {}


class Format(msgspec.Struct, frozen=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Body(msgspec.Struct):
    """A request to `/v1/chat/completions`, `/v1/completions` or `/tokenize`."""

    messages: list[ChatMessage] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = []
    tools: list[Offered] = []
    tool_choice: Literal["auto", "none", "required"] | NamedChoice = "auto"
    response_format: Format = Format()
    logprobs: bool | int | None = None
    chat_template_kwargs: dict[str, Any] = {}
    add_special_tokens: bool = True

    def offered(self) -> tuple[Tool, ...]:
        """The tools in our own terms."""
        return tuple(
            Tool(each.function.name, each.function.description, each.function.parameters)
            for each in self.tools
        )

    def choice(self) -> ToolChoice:
        """The tool choice in our own terms."""
        if isinstance(self.tool_choice, NamedChoice):
            return ToolChoice("named", self.tool_choice.function.name)
        return ToolChoice(self.tool_choice)

    def form(self) -> ResponseFormat:
        """The response format in our own terms."""
        schema = self.response_format.json_schema
        return ResponseFormat(
            self.response_format.type, schema=None if schema is None else schema.schema
        )


def turns(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation as a chat template takes it: arguments of calls are objects there."""
    return [_turn(message) for message in messages]


def _turn(message: ChatMessage) -> dict[str, Any]:
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    turn: dict[str, Any] = {"role": message.role, "content": text}
    if message.reasoning_content:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.name:
        turn["name"] = message.name
    return turn


def _arguments(call: Call) -> object:
    try:
        return msgspec.json.decode(call.function.arguments)
    except msgspec.DecodeError:
        return call.function.arguments


def tool_descriptions(tools: list[Offered]) -> list[dict[str, Any]]:
    """The tools as a chat template takes them."""
    described: list[dict[str, Any]] = []
    for each in tools:
        function: dict[str, Any] = {"name": each.function.name}
        if each.function.description is not None:
            function["description"] = each.function.description
        function["parameters"] = each.function.parameters
        described.append({"type": "function", "function": function})
    return described


class Spent(msgspec.Struct):
    """The counts of one choice so far."""

    prompt: int
    completion: int = 0
    reasoning: int = 0

    def wire(self) -> dict[str, Any]:
        """As `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def wire_choice(delta: Delta, logprobs: list[tuple[bytes, float]], *, chat: bool) -> dict[str, Any]:
    """One choice of a stream event."""
    choice: dict[str, Any] = {"index": delta.index, "finish_reason": None}
    if chat:
        choice["delta"] = _delta(delta)
    else:
        choice["text"] = delta.text
    if logprobs:
        choice["logprobs"] = _logprobs(logprobs, chat=chat)
    if delta.finish is not None:
        choice["finish_reason"] = delta.finish.value
        choice["stop_reason"] = delta.stopped_by
    return choice


def _delta(delta: Delta) -> dict[str, Any]:
    wire: dict[str, Any] = {"content": delta.text}
    if delta.reasoning:
        wire["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        wire["tool_calls"] = [
            {
                "index": call.position,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in delta.tool_calls
        ]
    return wire


def _logprobs(tokens: list[tuple[bytes, float]], *, chat: bool) -> dict[str, Any]:
    texts = [(raw.decode("utf-8", "replace"), raw, logprob) for raw, logprob in tokens]
    if not chat:
        return {
            "tokens": [text for text, _, _ in texts],
            "token_logprobs": [logprob for _, _, logprob in texts],
        }
    return {
        "content": [
            {"token": text, "logprob": logprob, "bytes": list(raw), "top_logprobs": []}
            for text, raw, logprob in texts
        ]
    }
