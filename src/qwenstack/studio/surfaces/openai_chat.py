"""POST /v1/chat/completions: OpenAI's chat wire format, with Model Studio's additions.

What each published field does here stands in docs/openai-surface.md; `ChatRequest` is the same
list in code. A field that could change the result and that we do not carry out is refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from qwenstack.core.generation import (
    Choice,
    Completion,
    GenerationRequest,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.interface import SSE_COMMENT, Call, Reply, StreamEncoder
from qwenstack.studio.surfaces.json_body import decode, show
from qwenstack.studio.surfaces.openai_chat_stream import ChatStream
from qwenstack.studio.surfaces.openai_errors import refuse
from qwenstack.studio.surfaces.openai_fields import (
    CHOICES_MAX,
    Effort,
    FunctionFields,
    PenaltyFields,
    RefusedFields,
    SchemaFields,
    ServiceTier,
    Verbosity,
    allowed_tools,
    check_metadata,
    check_model,
    check_positive,
    check_stream_options,
    check_tools,
    check_verbosity,
    format_of,
    out_of_range,
    penalty_sampling,
    stop_strings,
    thinking_of,
    tool_of,
    unknown_tool,
    unsupported,
)
from qwenstack.studio.surfaces.openai_logprobs import ChatLogprobs, chosen_logprobs
from qwenstack.studio.surfaces.openai_messages import WireMessage, read_messages
from qwenstack.studio.surfaces.openai_usage import Usage, usage_of

TOP_LOGPROBS_MAX = 20


class ToolFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An element of `tools`."""

    type: str
    function: FunctionFields | None = None
    custom: object = None


class NamedFunction(msgspec.Struct, frozen=True):
    """The function that a tool choice names."""

    name: str


class ToolReference(msgspec.Struct, frozen=True):
    """A tool by its name, in `allowed_tools`."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True):
    """`allowed_tools`: a part of `tools`."""

    mode: Literal["auto", "required"]
    tools: list[ToolReference]


class ToolChoiceFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice` as an object."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ResponseFormatFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFields | None = None


class TemplateArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`chat_template_kwargs`, as vLLM and SGLang take it: the two that Qwen's templates have."""

    enable_thinking: bool | None = None
    thinking_budget: int | None = None


class ChatRequest(PenaltyFields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a chat request."""

    messages: list[WireMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormatFields | None = None
    tools: list[ToolFields] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceFields | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    modalities: list[str] | None = None
    verbosity: Verbosity | None = None
    # Accepted: they can't change the result.
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: ServiceTier | None = None
    # Refused unless null, false or empty.
    audio: object = None
    function_call: object = None
    functions: object = None
    moderation: object = None
    prediction: object = None
    store: bool | None = None
    web_search_options: object = None
    # Model Studio's and the open servers' additions.
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    chat_template_kwargs: TemplateArguments | None = None
    incremental_output: bool | None = None
    result_format: str | None = None
    enable_search: bool | None = None
    search_options: object = None
    enable_code_interpreter: bool | None = None
    translation_options: object = None
    vl_high_resolution_images: bool | None = None


_REFUSED = RefusedFields(
    {
        "audio": "Audio output is not offered.",
        "function_call": "Use 'tool_choice'.",
        "functions": "Use 'tools'.",
        "moderation": "What is moderated is set for the workspace.",
        "prediction": "Predicted outputs are not offered.",
        "store": "Answers are not stored; leave it out or send false.",
        "web_search_options": "Web search is not offered; give the model a tool for it.",
        "enable_search": "Web search is not offered; give the model a tool for it.",
        "search_options": "Web search is not offered; give the model a tool for it.",
        "enable_code_interpreter": "There is no code interpreter; give the model a tool for it.",
        "translation_options": "Ask for the translation in the prompt.",
        "vl_high_resolution_images": "Images are taken at the model's default resolution.",
    }
)

_DECODER = msgspec.json.Decoder(ChatRequest)
_ENCODER = msgspec.json.Encoder()
_AUTO = ToolChoice()
_TEXT = ResponseFormat()


class ChatShape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on."""

    include_usage: bool


class ChatSurface:
    """The chat completions route."""

    name = "openai.chat"
    stream_content_type = b"text/event-stream; charset=utf-8"
    sign_of_life = SSE_COMMENT

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a chat request."""
        return parse_chat(body)

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The `chat.completion` object."""
        return _ENCODER.encode(
            ChatAnswer(
                f"chatcmpl-{request_id}",
                "chat.completion",
                created,
                call.request.model,
                tuple([_answer_choice(choice) for choice in completion.choices]),
                usage_of(completion.usage),
            )
        )

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """An encoder of `chat.completion.chunk` events."""
        wire = call.wire
        include_usage = isinstance(wire, ChatShape) and wire.include_usage
        return ChatStream(call.request.model, call.request.n, include_usage, request_id, created)

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """The error answer."""
        return refuse(refusal, request_id)


def parse_chat(body: bytes) -> Call:
    """Read a chat request; raises Refusal for what is wrong in it."""
    wire = decode(_DECODER, body)
    _REFUSED.check(wire)
    stream = bool(wire.stream)
    include_usage = check_stream_options(wire.stream_options, stream)
    _check_shape(wire, stream)
    tools, choice = _read_tools(wire)
    thinking, budget = _read_thinking(wire)
    if wire.response_format is None:
        response_format = _TEXT
    else:
        schema = wire.response_format.json_schema
        response_format = format_of(
            wire.response_format.type, schema, "response_format.json_schema"
        )
    request = GenerationRequest(
        model=check_model(wire.model),
        messages=read_messages(wire.messages),
        max_tokens=_read_max_tokens(wire),
        n=check_positive("n", wire.n, CHOICES_MAX) or 1,
        sampling=penalty_sampling(wire),
        stop=stop_strings(wire.stop),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        response_format=response_format,
        logprobs=_read_logprobs(wire),
        thinking=thinking,
        thinking_budget=budget,
    )
    return Call(request=request, stream=stream, wire=ChatShape(include_usage))


def _check_shape(wire: ChatRequest, stream: bool) -> None:
    if wire.modalities is not None and wire.modalities != ["text"]:
        raise unsupported(
            "modalities",
            f"Unsupported value for 'modalities': {show(wire.modalities)}. Only ['text'] is "
            "offered.",
        )
    if wire.result_format not in (None, "message"):
        raise unsupported(
            "result_format",
            f"Unsupported value for 'result_format': {show(wire.result_format)}. This route "
            "answers with messages; leave it out or send 'message'.",
        )
    if stream and wire.incremental_output is False:
        raise unsupported(
            "incremental_output",
            "Unsupported value for 'incremental_output': false. This route streams increments.",
        )
    check_verbosity(wire.verbosity, "verbosity")
    check_metadata(wire.metadata)


def _read_max_tokens(wire: ChatRequest) -> int | None:
    old = check_positive("max_tokens", wire.max_tokens)
    new = check_positive("max_completion_tokens", wire.max_completion_tokens)
    if old is not None and new is not None and old != new:
        raise invalid(
            "'max_tokens' and 'max_completion_tokens' say different things; send the latter only.",
            "max_tokens",
        )
    return old if new is None else new


def _read_logprobs(wire: ChatRequest) -> int | None:
    top = wire.top_logprobs
    if top is not None:
        if not 0 <= top <= TOP_LOGPROBS_MAX:
            raise out_of_range("top_logprobs", top, f"between 0 and {TOP_LOGPROBS_MAX}")
        if not wire.logprobs and top:
            raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    return (top or 0) if wire.logprobs else None


def _read_thinking(wire: ChatRequest) -> tuple[bool | None, int | None]:
    template = wire.chat_template_kwargs
    if wire.enable_thinking is None and wire.reasoning_effort is None and template is None:
        return None, check_positive("thinking_budget", wire.thinking_budget)
    effort = wire.reasoning_effort
    thinking = thinking_of(
        ("enable_thinking", wire.enable_thinking),
        ("chat_template_kwargs", template.enable_thinking if template else None),
        ("reasoning_effort", None if effort is None else effort != "none"),
    )
    budget = wire.thinking_budget
    if template is not None and template.thinking_budget is not None:
        if budget not in (None, template.thinking_budget):
            raise invalid(
                "'thinking_budget' and 'chat_template_kwargs.thinking_budget' say different "
                "things; send one.",
                "chat_template_kwargs",
            )
        budget = template.thinking_budget
    return thinking, check_positive("thinking_budget", budget)


def _read_tools(wire: ChatRequest) -> tuple[tuple[Tool, ...], ToolChoice]:
    if not wire.tools:
        if wire.tool_choice not in (None, "none", "auto"):
            raise invalid("'tool_choice' needs 'tools' to choose from.", "tool_choice")
        return (), _AUTO
    tools = check_tools(
        tuple([_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(wire.tools)])
    )
    choice = wire.tool_choice
    if choice is None:
        return tools, _AUTO
    if isinstance(choice, str):
        return tools, ToolChoice(choice)
    if choice.type == "function":
        if choice.function is None:
            raise invalid(
                "Missing required parameter: 'tool_choice.function'.", "tool_choice.function"
            )
        if choice.function.name not in {tool.name for tool in tools}:
            raise unknown_tool(choice.function.name, "tool_choice.function.name")
        return tools, ToolChoice("named", choice.function.name)
    if choice.allowed_tools is None:
        raise invalid(
            "Missing required parameter: 'tool_choice.allowed_tools'.", "tool_choice.allowed_tools"
        )
    names = [tool.function.name for tool in choice.allowed_tools.tools]
    return (
        allowed_tools(tools, names, "tool_choice.allowed_tools.tools"),
        ToolChoice(choice.allowed_tools.mode),
    )


def _read_tool(tool: ToolFields, param: str) -> Tool:
    if tool.type != "function":
        raise unsupported(
            f"{param}.type",
            f"Unsupported value for '{param}.type': {show(tool.type)}. Only tools of type "
            "'function' are offered.",
        )
    if tool.function is None:
        raise invalid(f"Missing required parameter: '{param}.function'.", f"{param}.function")
    return tool_of(tool.function, f"{param}.function")


class AnswerFunction(msgspec.Struct, frozen=True):
    """The function of a tool call in an answer."""

    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True):
    """A tool call in an answer."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class AnswerMessage(msgspec.Struct, frozen=True):
    """The message of a choice."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[AnswerToolCall, ...] | UnsetType = UNSET


class AnswerChoice(msgspec.Struct, frozen=True):
    """An element of `choices`."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatAnswer(msgspec.Struct, frozen=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[AnswerChoice, ...]
    usage: Usage


def _answer_choice(choice: Choice) -> AnswerChoice:
    calls = tuple(
        [
            AnswerToolCall(call.id, "function", AnswerFunction(call.name, call.arguments))
            for call in choice.tool_calls
        ]
    )
    message = AnswerMessage(
        "assistant",
        choice.text if choice.text or not calls else None,
        reasoning_content=choice.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
    logprobs = ChatLogprobs(chosen_logprobs(choice.logprobs)) if choice.logprobs else None
    return AnswerChoice(choice.index, message, logprobs, choice.finish.value)
