"""Reading DashScope's native generation request: `model`, `input`, `parameters`.

Source: Model Studio, "DashScope API reference" for text and multimodal generation. Which parameter
is honoured, accepted or refused is listed in docs/dashscope-surface.md.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import GenerationRequest, Message, TextPart, Tool, ToolChoice
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.json_body import decode, show
from qwenstack.studio.surfaces.openai_chat import ResponseFormatFields, ToolFields
from qwenstack.studio.surfaces.openai_fields import (
    CHOICES_MAX,
    PenaltyFields,
    RefusedFields,
    check_model,
    check_positive,
    check_tools,
    format_of,
    out_of_range,
    penalty_sampling,
    stop_strings,
    tool_of,
    unknown_tool,
    unsupported,
)
from qwenstack.studio.surfaces.openai_messages import (
    CacheControl,
    ImageUrl,
    InputAudio,
    WireAudio,
    WireImage,
    WireMessage,
    WirePart,
    WireText,
    WireToolCall,
    read_messages,
)

_TOP_LOGPROBS_MAX = 5


class ContentItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An element of a message's content: one of text, image and audio."""

    text: str | None = None
    image: str | None = None
    audio: str | None = None
    video: object = None
    type: Literal["text", "image", "audio"] | None = None
    cache_control: CacheControl | None = None


class InputMessage(msgspec.Struct, frozen=True):
    """An element of `input.messages`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[ContentItem] | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    partial: bool | None = None


class Input(msgspec.Struct, frozen=True):
    """`input`: messages, or a bare prompt."""

    messages: list[InputMessage] | None = None
    prompt: str | None = None
    history: object = None


class NamedTool(msgspec.Struct, frozen=True):
    """The function in `tool_choice`."""

    name: str


class ToolChoiceFields(msgspec.Struct, frozen=True):
    """`tool_choice` as an object."""

    type: Literal["function"]
    function: NamedTool


class Parameters(PenaltyFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`parameters`."""

    model: str = ""
    result_format: Literal["message", "text"] | None = None
    incremental_output: bool | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    max_length: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormatFields | None = None
    tools: list[ToolFields] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceFields | None = None
    parallel_tool_calls: bool | None = None
    enable_code_interpreter: bool | None = None
    enable_search: bool | None = None
    search_options: dict[str, Any] | None = None
    vl_high_resolution_images: bool | None = None
    translation_options: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: object = None


class DashScopeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body."""

    model: str
    input: Input
    parameters: Parameters = Parameters()
    task_group: str | None = None
    task: str | None = None
    function: str | None = None
    resources: list[object] | None = None
    user: str | None = None


_DECODER = msgspec.json.Decoder(DashScopeRequest)
# How a content item is called by OpenAI, and here.
_CONTENT_KEYS = {".image_url.url": ".image", ".input_audio.data": ".audio", ".type": ""}
_REFUSED = RefusedFields(
    {
        "enable_search": "Nothing is searched here; give the facts in the prompt.",
        "enable_code_interpreter": "No code is run here.",
        "search_options": "Nothing is searched here; give the facts in the prompt.",
        "translation_options": "Say in the prompt what to translate into what.",
        "vl_high_resolution_images": "Images keep the resolution that they come in.",
        "audio": "Answers are text.",
    }
)


def read_generation(body: bytes) -> tuple[DashScopeRequest, GenerationRequest]:
    """The request as sent and as we run it; raises Refusal for what is wrong in it."""
    wire = decode(_DECODER, body)
    try:
        return wire, _read(wire)
    except Refusal as refusal:
        raise _in_our_names(refusal) from refusal


def _in_our_names(refusal: Refusal) -> Refusal:
    """The same with the field named by its place in this body: the checks are OpenAI's."""
    param = refusal.param
    if param is None:
        return refusal
    root = param.partition(".")[0].partition("[")[0]
    if root == "messages":
        ours = "input." + param
        for theirs, key in _CONTENT_KEYS.items():
            ours = ours.removesuffix(theirs) + key if ours.endswith(theirs) else ours
    elif root != "model" and root in Parameters.__struct_fields__:
        ours = "parameters." + param
    else:
        return refusal
    message = refusal.message.replace(f"'{param}'", f"'{ours}'")
    return Refusal(refusal.kind, message, param=ours, retry_after_s=refusal.retry_after_s)


def _read(wire: DashScopeRequest) -> GenerationRequest:
    parameters = wire.parameters
    _REFUSED.check(parameters)
    if parameters.model not in ("", wire.model):
        raise invalid(
            f"'parameters.model' is {show(parameters.model)}, and 'model' is {show(wire.model)}; "
            "send 'model' only.",
            "parameters.model",
        )
    if parameters.modalities not in (None, ["text"]):
        raise invalid(
            f"'parameters.modalities' is {show(parameters.modalities)}; only ['text'] is offered.",
            "parameters.modalities",
        )
    tools, choice = _tools(parameters)
    form = parameters.response_format
    return GenerationRequest(
        model=check_model(wire.model),
        messages=_messages(wire.input),
        max_tokens=_max_tokens(parameters),
        n=check_positive("parameters.n", parameters.n, CHOICES_MAX) or 1,
        sampling=penalty_sampling(parameters),
        stop=stop_strings(parameters.stop),
        tools=tools,
        tool_choice=choice,
        # Other than with OpenAI: where nothing is said, one call at most.
        parallel_tool_calls=bool(parameters.parallel_tool_calls),
        response_format=format_of(
            form.type if form else "text",
            form.json_schema if form else None,
            "parameters.response_format.json_schema",
        ),
        logprobs=_logprobs(parameters),
        thinking=parameters.enable_thinking,
        thinking_budget=check_positive("parameters.thinking_budget", parameters.thinking_budget),
    )


def _max_tokens(parameters: Parameters) -> int | None:
    """The one limit that the request has under any of its names."""
    limits: dict[int, str] = {}
    for name in ("max_tokens", "max_completion_tokens", "max_length"):
        limit = check_positive(f"parameters.{name}", getattr(parameters, name))
        if limit is not None:
            limits.setdefault(limit, name)
    if len(limits) > 1:
        raise invalid(
            f"{', '.join(limits.values())} say different things; send 'max_tokens' only.",
            "parameters.max_tokens",
        )
    return next(iter(limits), None)


def _messages(given: Input) -> tuple[Message, ...]:
    if given.history:
        raise invalid(
            "'input.history' is not taken any more; send 'input.messages'.", "input.history"
        )
    if given.messages is not None:
        if given.prompt:
            raise invalid(
                "'input' has both 'messages' and 'prompt'; put the prompt into a user's message.",
                "input.prompt",
            )
        return read_messages([_as_openai(each) for each in given.messages])
    if given.prompt:
        return (Message(role="user", content=(TextPart(given.prompt),)),)
    raise invalid("'input' needs 'messages' (or 'prompt').", "input.messages")


def _as_openai(message: InputMessage) -> WireMessage:
    """DashScope's roles and tool calls are OpenAI's; content items carry their type as key."""
    content: str | list[WirePart] | None
    if isinstance(message.content, list):
        content = [_part(item) for item in message.content]
    else:
        content = message.content
    return WireMessage(
        role=message.role,
        content=content,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
        partial=message.partial,
    )


def _part(item: ContentItem) -> WirePart:
    if item.video is not None:
        raise unsupported(
            "input.messages", "Video in 'content' is not offered; send single frames as images."
        )
    given = [part for part in (item.text, item.image, item.audio) if part is not None]
    if len(given) != 1:
        raise invalid(
            "An element of 'content' must have exactly one of the keys text, image and audio.",
            "input.messages",
        )
    if item.text is not None:
        return WireText(item.text, item.cache_control)
    if item.image is not None:
        return WireImage(ImageUrl(item.image))
    head = given[0][:40]
    return WireAudio(InputAudio(given[0], "mp3" if "mp3" in head or "mpeg" in head else "wav"))


def _logprobs(parameters: Parameters) -> int | None:
    top = parameters.top_logprobs
    if top is not None and not 0 <= top <= _TOP_LOGPROBS_MAX:
        raise out_of_range("parameters.top_logprobs", top, f"between 0 and {_TOP_LOGPROBS_MAX}")
    if top and not parameters.logprobs:
        raise invalid("'parameters.top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    return (top or 0) if parameters.logprobs else None


def _tools(parameters: Parameters) -> tuple[tuple[Tool, ...], ToolChoice]:
    tools = []
    for index, tool in enumerate(parameters.tools or ()):
        where = f"parameters.tools[{index}]"
        if tool.type != "function" or tool.function is None:
            raise invalid(f"'{where}' must have the type function and a function.", where)
        tools.append(tool_of(tool.function, f"{where}.function"))
    checked = check_tools(tuple(tools))
    choice = parameters.tool_choice
    if choice is None or not checked:
        if choice not in (None, "auto", "none"):
            raise invalid("'parameters.tool_choice' needs 'tools'.", "parameters.tool_choice")
        return checked, ToolChoice()
    if isinstance(choice, str):
        return checked, ToolChoice(choice)
    name = choice.function.name
    if name not in {tool.name for tool in checked}:
        raise unknown_tool(name, "parameters.tool_choice")
    return checked, ToolChoice("named", name)
