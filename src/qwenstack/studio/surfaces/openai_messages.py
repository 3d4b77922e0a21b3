"""The `messages` of a chat request, read into our own.

Fields of a message that are not named here are ignored, not refused: clients send answers back as
they got them, with whatever other servers put there. `partial` and `prefix` would change the
result (they ask to continue an answer), so they are refused by name.
"""

from __future__ import annotations

import binascii
from typing import Literal

import msgspec

from qwenstack.core.generation import (
    AudioPart,
    ContentPart,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCall,
)
from qwenstack.core.refusals import invalid
from qwenstack.studio.surfaces.json_body import show
from qwenstack.studio.surfaces.openai_fields import out_of_range, unsupported

MESSAGES_MAX = 10_000
# Model Studio: at most four explicit cache markers in a request.
CACHE_MARKERS_MAX = 4
URL_CHARACTERS_MAX = 8192
TOOL_CALL_ID_CHARACTERS_MAX = 256


class CacheControl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Model Studio's explicit-cache breakpoint."""

    type: Literal["ephemeral"]


class CacheBreakpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's name for the same. `ttl` is a wish; how long a prefix lives is the service's."""

    mode: Literal["explicit"]
    ttl: str | None = None


class WireText(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    """A `text` part."""

    text: str
    cache_control: CacheControl | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`image_url`. Qwen models take an image's own resolution: `detail` has no effect there."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class WireImage(msgspec.Struct, frozen=True, tag="image_url", forbid_unknown_fields=True):
    """An `image_url` part."""

    image_url: ImageUrl | str


class InputAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`input_audio`: base64, bare or as a data URL as Model Studio writes it."""

    data: str
    format: Literal["wav", "mp3"]


class WireAudio(msgspec.Struct, frozen=True, tag="input_audio", forbid_unknown_fields=True):
    """An `input_audio` part."""

    input_audio: InputAudio


class WireRefusal(msgspec.Struct, frozen=True, tag="refusal", forbid_unknown_fields=True):
    """A `refusal` part of an earlier answer: text that the model said."""

    refusal: str


WirePart = WireText | WireImage | WireAudio | WireRefusal


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of an earlier tool call."""

    name: str
    arguments: str = ""


class WireToolCall(msgspec.Struct, frozen=True):
    """An earlier tool call, sent back."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class WireMessage(msgspec.Struct, frozen=True):
    """One element of `messages`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[WirePart] | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    function_call: object = None
    partial: bool | None = None
    prefix: bool | None = None


def read_messages(wire: list[WireMessage]) -> tuple[Message, ...]:
    """Our messages; raises Refusal naming what is wrong in which one."""
    if not 0 < len(wire) <= MESSAGES_MAX:
        raise out_of_range("messages", len(wire), f"a list of 1 to {MESSAGES_MAX} messages")
    announced: set[str] = set()
    messages = tuple(
        [_read_message(message, index, announced) for index, message in enumerate(wire)]
    )
    markers = 0
    for message in messages:
        for part in message.content:
            if isinstance(part, TextPart) and part.cache_marker:
                markers += 1
    if markers > CACHE_MARKERS_MAX:
        raise out_of_range("cache_control", markers, f"on at most {CACHE_MARKERS_MAX} parts")
    return messages


def _read_message(wire: WireMessage, index: int, announced: set[str]) -> Message:
    role = wire.role
    if role == "user" or role == "system":
        if type(wire.content) is str and wire.name is None:
            return Message(role=role, content=(TextPart(wire.content),))
    elif role == "assistant":
        return _read_assistant(wire, index, announced)
    elif role == "tool":
        return _read_tool_result(wire, index, announced)
    where = f"messages[{index}]"
    ours: Role = "system" if role == "developer" else role
    if wire.content is None:
        raise invalid(f"Missing required parameter: '{where}.content'.", f"{where}.content")
    content = _read_content(wire.content, where, text_only=ours != "user")
    return Message(role=ours, content=content, name=wire.name)


def _read_assistant(wire: WireMessage, index: int, announced: set[str]) -> Message:
    where = f"messages[{index}]"
    if wire.partial or wire.prefix:
        param = f"{where}.{'partial' if wire.partial else 'prefix'}"
        raise unsupported(param, f"Unsupported parameter: '{param}'. An answer can't be continued.")
    if wire.function_call is not None:
        param = f"{where}.function_call"
        raise unsupported(param, f"Unsupported parameter: '{param}'. Use 'tool_calls'.")
    calls = []
    for number, call in enumerate(wire.tool_calls or ()):
        param = f"{where}.tool_calls[{number}]"
        check_call_id(call.id, f"{param}.id")
        if not call.function.name:
            raise invalid(f"Missing required parameter: '{param}.function.name'.", param)
        announced.add(call.id)
        calls.append(ToolCall(call.id, call.function.name, call.function.arguments))
    if wire.content:
        content = _read_content(wire.content, where, text_only=True)
    elif wire.refusal:
        content = (TextPart(wire.refusal),)
    else:
        content = ()
        if wire.content is None and not calls and not wire.reasoning_content:
            raise invalid(
                f"Missing required parameter: '{where}.content' (or 'tool_calls').",
                f"{where}.content",
            )
    return Message(
        role="assistant",
        content=content,
        reasoning=wire.reasoning_content or None,
        tool_calls=tuple(calls),
        name=wire.name,
    )


def _read_tool_result(wire: WireMessage, index: int, announced: set[str]) -> Message:
    where = f"messages[{index}]"
    if wire.tool_call_id is None:
        param = f"{where}.tool_call_id"
        raise invalid(f"Missing required parameter: '{param}'.", param)
    if wire.tool_call_id not in announced:
        raise invalid(
            f"Invalid value for '{where}.tool_call_id': {show(wire.tool_call_id)}. A message with "
            "role 'tool' must answer one of the 'tool_calls' of an earlier assistant message.",
            f"{where}.tool_call_id",
        )
    if wire.content is None:
        raise invalid(f"Missing required parameter: '{where}.content'.", f"{where}.content")
    content = _read_content(wire.content, where, text_only=True) if wire.content else ()
    return Message(role="tool", content=content, tool_call_id=wire.tool_call_id, name=wire.name)


def check_call_id(call_id: str, param: str) -> None:
    """The id of a tool call: not empty, of bounded length."""
    if not 0 < len(call_id) <= TOOL_CALL_ID_CHARACTERS_MAX:
        raise out_of_range(param, call_id, f"of 1 to {TOOL_CALL_ID_CHARACTERS_MAX} characters")


def _read_content(
    content: str | list[WirePart], where: str, *, text_only: bool
) -> tuple[ContentPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if not content:
        raise invalid(
            f"Invalid value for '{where}.content': []. It must have at least one part.",
            f"{where}.content",
        )
    parts = tuple(
        [_read_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    )
    if text_only:
        for number, part in enumerate(parts):
            if not isinstance(part, TextPart):
                param = f"{where}.content[{number}].type"
                raise invalid(
                    f"Invalid value for '{param}'. Only user messages hold images or audio.", param
                )
    return parts


def _read_part(part: WirePart, where: str) -> ContentPart:
    if isinstance(part, WireText):
        marked = part.cache_control is not None or part.prompt_cache_breakpoint is not None
        return TextPart(part.text, marked)
    if isinstance(part, WireImage):
        image = part.image_url
        return read_image(image if isinstance(image, str) else image.url, f"{where}.image_url.url")
    if isinstance(part, WireAudio):
        return _read_audio(part.input_audio, f"{where}.input_audio.data")
    return TextPart(part.refusal)


def read_image(url: str, param: str) -> ImagePart:
    """An image by URL: https: or a base64 data: URL of an image."""
    if url.startswith("data:image/") and ";base64," in url[:64]:
        return ImagePart(url)
    if url.startswith("https://") and len(url) <= URL_CHARACTERS_MAX:
        return ImagePart(url)
    raise invalid(
        f"Invalid value for '{param}': {show(url)}. Give an https: URL of at most "
        f"{URL_CHARACTERS_MAX} characters, or data:image/…;base64,….",
        param,
    )


def _read_audio(audio: InputAudio, param: str) -> AudioPart:
    data = audio.data
    if data.startswith("data:"):
        head, separator, data = data.partition(",")
        if not separator or (not head.endswith(";base64") and head != "data:"):
            raise invalid(f"Invalid value for '{param}': a data URL must be ;base64.", param)
    try:
        sound = binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(
            f"Invalid value for '{param}': {show(data)}. Give the audio as base64.", param
        ) from error
    if not sound:
        raise invalid(f"Invalid value for '{param}': the audio is empty.", param)
    return AudioPart(data, audio.format)
