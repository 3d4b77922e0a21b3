"""The `input` items of a Responses request, read into messages.

OpenAI writes one assistant turn as several items (reasoning, message, function calls); a chat
template wants one message. Items of a turn that follow each other are joined again.
Fields of items that are not named here are ignored: clients send output items back as they came.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.generation import ContentPart, Message, Role, TextPart, ToolCall
from qwenstack.core.refusals import invalid
from qwenstack.studio.surfaces.json_body import show
from qwenstack.studio.surfaces.openai_fields import out_of_range, unsupported
from qwenstack.studio.surfaces.openai_messages import (
    CACHE_MARKERS_MAX,
    CacheBreakpoint,
    check_call_id,
    read_image,
)

ITEMS_MAX = 10_000


class InputText(msgspec.Struct, frozen=True, tag="input_text", forbid_unknown_fields=True):
    """Text that is asked."""

    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputImage(msgspec.Struct, frozen=True, tag="input_image", forbid_unknown_fields=True):
    """An image. Qwen models take its own resolution: `detail` has no effect there."""

    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: str | None = None


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """Text of an earlier answer."""

    text: str


class OutputRefusal(msgspec.Struct, frozen=True, tag="refusal"):
    """A refusal of an earlier answer."""

    refusal: str


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """Thoughts of an earlier answer."""

    text: str


class SummaryText(msgspec.Struct, frozen=True, tag="summary_text"):
    """A summary of such thoughts."""

    text: str


ItemPart = InputText | InputImage | OutputText | OutputRefusal | ReasoningText | SummaryText


class InputItem(msgspec.Struct, frozen=True):
    """One element of `input`. Without `type` it is a message."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None
    summary: list[SummaryText] | None = None
    encrypted_content: str | None = None


class _Turn:
    """An assistant turn in the making."""

    def __init__(self) -> None:
        self.reasoning: str | None = None
        self.content: tuple[ContentPart, ...] = ()
        self.calls: list[ToolCall] = []

    def message(self) -> Message:
        return Message(
            role="assistant",
            content=self.content,
            reasoning=self.reasoning,
            tool_calls=tuple(self.calls),
        )


class _Conversation:
    """Messages from items, in their order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.announced: set[str] = set()
        self._turn: _Turn | None = None

    def add(self, message: Message) -> None:
        self.close_turn()
        self.messages.append(message)

    def open_turn(self) -> _Turn:
        if self._turn is None:
            self._turn = _Turn()
        return self._turn

    def close_turn(self) -> None:
        if self._turn is not None:
            self.messages.append(self._turn.message())
            self._turn = None

    def think(self, text: str) -> None:
        turn = self.open_turn()
        if turn.content or turn.calls:
            self.close_turn()
            turn = self.open_turn()
        turn.reasoning = text if turn.reasoning is None else f"{turn.reasoning}\n{text}"

    def say(self, content: tuple[ContentPart, ...]) -> None:
        turn = self.open_turn()
        if turn.content or turn.calls:
            self.close_turn()
            turn = self.open_turn()
        turn.content = content

    def call(self, call: ToolCall) -> None:
        self.announced.add(call.id)
        self.open_turn().calls.append(call)


def read_input(given: str | list[InputItem], instructions: str | None) -> tuple[Message, ...]:
    """Our messages; `instructions` come first, as a system message."""
    conversation = _Conversation()
    if instructions:
        conversation.add(Message(role="system", content=(TextPart(instructions),)))
    if isinstance(given, str):
        if not given:
            raise invalid("Invalid value for 'input': it must not be empty.", "input")
        conversation.add(Message(role="user", content=(TextPart(given),)))
    else:
        if not 0 < len(given) <= ITEMS_MAX:
            raise out_of_range("input", len(given), f"a text or a list of 1 to {ITEMS_MAX} items")
        for index, item in enumerate(given):
            _read_item(item, f"input[{index}]", conversation)
        conversation.close_turn()
    markers = sum(
        isinstance(part, TextPart) and part.cache_marker
        for message in conversation.messages
        for part in message.content
    )
    if markers > CACHE_MARKERS_MAX:
        raise out_of_range(
            "prompt_cache_breakpoint", markers, f"on at most {CACHE_MARKERS_MAX} parts"
        )
    return tuple(conversation.messages)


def _read_item(item: InputItem, where: str, conversation: _Conversation) -> None:
    if item.type == "message":
        _read_message(item, where, conversation)
    elif item.type == "function_call":
        call_id = _need(item.call_id, f"{where}.call_id")
        check_call_id(call_id, f"{where}.call_id")
        name = _need(item.name, f"{where}.name")
        conversation.call(ToolCall(call_id, name, item.arguments or ""))
    elif item.type == "function_call_output":
        _read_call_output(item, where, conversation)
    elif item.type == "reasoning":
        _read_reasoning(item, where, conversation)
    elif item.type == "item_reference":
        raise unsupported(
            f"{where}.type",
            f"Unsupported value for '{where}.type': \"item_reference\". Answers are not stored; "
            "send the items themselves.",
        )
    else:
        raise unsupported(
            f"{where}.type",
            f"Unsupported value for '{where}.type': {show(item.type)}. Offered are message, "
            "reasoning, function_call and function_call_output.",
        )


def _read_message(item: InputItem, where: str, conversation: _Conversation) -> None:
    if item.role is None:
        raise invalid(f"Missing required parameter: '{where}.role'.", f"{where}.role")
    if item.content is None:
        raise invalid(f"Missing required parameter: '{where}.content'.", f"{where}.content")
    if item.role == "assistant":
        conversation.say(_read_parts(item.content, where) if item.content else ())
        return
    role: Role = "system" if item.role == "developer" else item.role
    content = _read_parts(item.content, where, images=role == "user")
    conversation.add(Message(role=role, content=content))


def _read_call_output(item: InputItem, where: str, conversation: _Conversation) -> None:
    call_id = _need(item.call_id, f"{where}.call_id")
    if call_id not in conversation.announced:
        raise invalid(
            f"Invalid value for '{where}.call_id': {show(call_id)}. No function_call item before "
            "it has this call_id; answers are not stored, so send the call itself too.",
            f"{where}.call_id",
        )
    if item.output is None:
        raise invalid(f"Missing required parameter: '{where}.output'.", f"{where}.output")
    content = _read_parts(item.output, where, field="output") if item.output else ()
    conversation.add(Message(role="tool", content=content, tool_call_id=call_id))


def _read_reasoning(item: InputItem, where: str, conversation: _Conversation) -> None:
    if isinstance(item.content, str):
        text = item.content
    else:
        text = "".join(
            [part.text for part in item.content or () if isinstance(part, ReasoningText)]
        )
    text = text or "\n".join([part.text for part in item.summary or ()])
    if not text and item.encrypted_content:
        raise unsupported(
            f"{where}.encrypted_content",
            f"Unsupported parameter: '{where}.encrypted_content'. Only its maker can read it; "
            "drop the item, or send its thoughts as 'content'.",
        )
    if text:
        conversation.think(text)


def _need(value: str | None, param: str) -> str:
    if not value:
        raise invalid(f"Missing required parameter: '{param}'.", param)
    return value


def _read_parts(
    content: str | list[ItemPart], where: str, *, images: bool = False, field: str = "content"
) -> tuple[ContentPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if not content:
        param = f"{where}.{field}"
        raise invalid(f"Invalid value for '{param}': []. It must have at least one part.", param)
    parts: list[ContentPart] = []
    for number, part in enumerate(content):
        param = f"{where}.{field}[{number}]"
        if isinstance(part, InputText):
            parts.append(TextPart(part.text, part.prompt_cache_breakpoint is not None))
        elif isinstance(part, OutputRefusal):
            parts.append(TextPart(part.refusal))
        elif isinstance(part, OutputText):
            parts.append(TextPart(part.text))
        elif isinstance(part, InputImage):
            if not images:
                raise invalid(
                    f"Invalid value for '{param}.type'. Only user messages hold images.", param
                )
            if part.image_url is None:
                raise unsupported(
                    f"{param}.file_id",
                    f"Unsupported parameter: '{param}.file_id'. Give the image as 'image_url'.",
                )
            parts.append(read_image(part.image_url, f"{param}.image_url"))
        else:
            raise invalid(
                f"Invalid value for '{param}.type': only a reasoning item holds thoughts.", param
            )
    return tuple(parts)
