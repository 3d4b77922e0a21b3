"""The `system` and `messages` of an Anthropic request, read into our own.

A user turn may hold tool results and other content in any order: each run of either becomes a
message of its own, and the order stays. Qwen's templates put an assistant's text before its tool
calls, so that text after a `tool_use` block in the same turn comes before it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import ContentPart, Message, TextPart, ToolCall
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.json_body import check_free_form, shorten, show
from qwenstack.studio.surfaces.openai_fields import out_of_range, unsupported
from qwenstack.studio.surfaces.openai_messages import (
    CACHE_MARKERS_MAX,
    MESSAGES_MAX,
    check_call_id,
    read_image,
)


class CacheControl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cache breakpoint. `ttl` is a wish: how long a prefix lives is the service's."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class WireText(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """A `text` block. `citations` come back with earlier answers and say nothing to the model."""

    text: str
    cache_control: CacheControl | None = None
    citations: list[object] | None = None


class Base64Source(msgspec.Struct, frozen=True, tag="base64", forbid_unknown_fields=True):
    """An image in the request."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(msgspec.Struct, frozen=True, tag="url", forbid_unknown_fields=True):
    """An image by its address."""

    url: str


class WireImage(msgspec.Struct, frozen=True, tag="image", forbid_unknown_fields=True):
    """An `image` block."""

    source: Base64Source | UrlSource
    cache_control: CacheControl | None = None


class WireToolUse(msgspec.Struct, frozen=True, tag="tool_use", forbid_unknown_fields=True):
    """A call that the model made. `caller` and `toolset_name` come back with earlier answers."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: object = None
    toolset_name: str | None = None


class WireToolResult(msgspec.Struct, frozen=True, tag="tool_result", forbid_unknown_fields=True):
    """What a call brought."""

    tool_use_id: str
    content: str | list[WireText | WireImage] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: str | None = None


class WireThinking(msgspec.Struct, frozen=True, tag="thinking", forbid_unknown_fields=True):
    """Thoughts of an earlier answer. The signature is the maker's and is not looked at."""

    thinking: str
    signature: str | None = None


class WireRedacted(
    msgspec.Struct, frozen=True, tag="redacted_thinking", forbid_unknown_fields=True
):
    """Thoughts that only another maker can read: they are left out."""

    data: str


Block = WireText | WireImage | WireToolUse | WireToolResult | WireThinking | WireRedacted


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One element of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


REFUSED_BLOCKS = {
    "document": "Send the document's text in a 'text' block.",
    "search_result": "Send the result in a 'text' block.",
    "container_upload": "No code is run here.",
    "server_tool_use": "No tools are run here; leave the block out.",
    "mcp_tool_use": "No tools are run here; leave the block out.",
    "mcp_tool_result": "No tools are run here; leave the block out.",
    "tool_reference": "There is no tool search; send the tools in 'tools'.",
}


def refused_block(kind: str, param: str) -> Refusal | None:
    """The refusal of a published kind of block that is not carried out here, or None."""
    way_out = REFUSED_BLOCKS.get(kind)
    if way_out is None and kind.endswith("_tool_result"):
        way_out = "No tools are run here; leave the block out."
    if way_out is None:
        return None
    return unsupported(
        f"{param}.type", f"Unsupported value for '{param}.type': {show(kind)}. {way_out}"
    )


class Markers:
    """Counts the cache breakpoints of a request."""

    def __init__(self) -> None:
        self._seen = 0

    def count(self, control: CacheControl | None) -> bool:
        """Whether there is a breakpoint here; raises Refusal at one too many."""
        if control is None:
            return False
        self._seen += 1
        if self._seen > CACHE_MARKERS_MAX:
            raise invalid(
                f"A request takes at most {CACHE_MARKERS_MAX} blocks with 'cache_control'; "
                "leave some out.",
                "cache_control",
            )
        return True


def read_system(system: str | list[WireText] | None, markers: Markers) -> tuple[Message, ...]:
    """The system message, where there is one."""
    if not system:
        return ()
    if isinstance(system, str):
        return (Message(role="system", content=(TextPart(system),)),)
    parts = tuple([_text(block, f"system[{index}]", markers) for index, block in enumerate(system)])
    return (Message(role="system", content=parts),)


def read_turns(turns: list[Turn], markers: Markers) -> tuple[Message, ...]:
    """Our messages; raises Refusal naming what is wrong in which one."""
    if not 0 < len(turns) <= MESSAGES_MAX:
        raise out_of_range("messages", len(turns), f"a list of 1 to {MESSAGES_MAX} messages")
    if turns[-1].role == "assistant":
        raise unsupported(
            "messages",
            "The last of 'messages' is an assistant's, and an answer can't be continued: end with "
            "a user's message.",
        )
    reader = _Reader(markers)
    for index, turn in enumerate(turns):
        reader.take(turn, f"messages[{index}]")
    return tuple(reader.messages)


def mark_last(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same with a breakpoint after the last text, as a top-level `cache_control` asks for."""
    last = messages[-1]
    for index in reversed(range(len(last.content))):
        part = last.content[index]
        if isinstance(part, TextPart):
            marked = (*last.content[:index], TextPart(part.text, True), *last.content[index + 1 :])
            return (*messages[:-1], msgspec.structs.replace(last, content=marked))
    return messages


class _Reader:
    """Reads turns in order: a tool result must answer a call that came before."""

    def __init__(self, markers: Markers) -> None:
        self.messages: list[Message] = []
        self._markers = markers
        self._called: set[str] = set()

    def take(self, turn: Turn, where: str) -> None:
        content = turn.content
        if not content:
            raise invalid(
                f"Invalid value for '{where}.content': {show(content)}. It must not be empty.",
                f"{where}.content",
            )
        if isinstance(content, str):
            self.messages.append(Message(role=turn.role, content=(TextPart(content),)))
        elif turn.role == "assistant":
            self.messages.append(self._assistant(content, where))
        else:
            self._user(turn.role, content, where)

    def _user(self, role: Literal["user", "system"], blocks: list[Block], where: str) -> None:
        run: list[ContentPart] = []
        for index, block in enumerate(blocks):
            at = f"{where}.content[{index}]"
            if isinstance(block, WireToolResult) and role == "user":
                if run:
                    self.messages.append(Message(role=role, content=tuple(run)))
                    run = []
                self.messages.append(self._tool_result(block, at))
            elif isinstance(block, WireText):
                run.append(_text(block, at, self._markers))
            elif isinstance(block, WireImage) and role == "user":
                self._markers.count(block.cache_control)
                run.append(_image(block, at))
            else:
                raise _misplaced(block, role, at)
        if run:
            self.messages.append(Message(role=role, content=tuple(run)))

    def _assistant(self, blocks: list[Block], where: str) -> Message:
        parts: list[ContentPart] = []
        calls: list[ToolCall] = []
        thoughts: list[str] = []
        for index, block in enumerate(blocks):
            at = f"{where}.content[{index}]"
            if isinstance(block, WireText):
                parts.append(_text(block, at, self._markers))
            elif isinstance(block, WireToolUse):
                calls.append(self._tool_use(block, at))
            elif isinstance(block, WireThinking):
                thoughts.append(block.thinking)
            elif not isinstance(block, WireRedacted):
                raise _misplaced(block, "assistant", at)
        return Message(
            role="assistant",
            content=tuple(parts),
            reasoning="".join(thoughts) or None,
            tool_calls=tuple(calls),
        )

    def _tool_use(self, block: WireToolUse, where: str) -> ToolCall:
        check_call_id(block.id, f"{where}.id")
        if not block.name:
            raise invalid(f"Missing required parameter: '{where}.name'.", f"{where}.name")
        check_free_form(block.input, f"{where}.input")
        self._markers.count(block.cache_control)
        self._called.add(block.id)
        return ToolCall(block.id, block.name, msgspec.json.encode(block.input).decode())

    def _tool_result(self, block: WireToolResult, where: str) -> Message:
        if block.tool_use_id not in self._called:
            raise invalid(
                f"Invalid value for '{where}.tool_use_id': {show(block.tool_use_id)}. A "
                "'tool_result' must answer a 'tool_use' of an earlier assistant message.",
                f"{where}.tool_use_id",
            )
        parts = self._result_parts(block, where)
        # Templates have no mark for a failure: where nothing says so, this does.
        if block.is_error and not parts:
            parts = (TextPart("The tool failed."),)
        if self._markers.count(block.cache_control) and parts:
            parts = (*parts[:-1], TextPart(parts[-1].text, True))
        return Message(role="tool", content=parts, tool_call_id=block.tool_use_id)

    def _result_parts(self, block: WireToolResult, where: str) -> tuple[TextPart, ...]:
        if not block.content:
            return ()
        if isinstance(block.content, str):
            return (TextPart(block.content),)
        parts = []
        for index, inner in enumerate(block.content):
            at = f"{where}.content[{index}]"
            if isinstance(inner, WireImage):
                raise unsupported(
                    f"{at}.type",
                    f"Unsupported value for '{at}.type': \"image\". Send the image in a block of "
                    "the user's message, after the 'tool_result'.",
                )
            parts.append(_text(inner, at, self._markers))
        return tuple(parts)


def _text(block: WireText, where: str, markers: Markers) -> TextPart:
    if not block.text:
        raise invalid(
            f"Invalid value for '{where}.text': it is empty. Leave the block out.", f"{where}.text"
        )
    return TextPart(block.text, markers.count(block.cache_control))


def _image(block: WireImage, where: str) -> ContentPart:
    source = block.source
    if isinstance(source, UrlSource):
        return read_image(source.url, f"{where}.source.url")
    if not source.data:
        raise invalid(
            f"Invalid value for '{where}.source.data': the image is empty.", f"{where}.source.data"
        )
    return read_image(f"data:{source.media_type};base64,{source.data}", f"{where}.source.data")


def _misplaced(block: Block, role: str, where: str) -> Refusal:
    kind = shorten(str(block.__struct_config__.tag))
    return invalid(
        f"Invalid value for '{where}.type': a message of role '{role}' can't hold a block of type "
        f"'{kind}'.",
        f"{where}.type",
    )
