"""POST /v1/responses: OpenAI's Responses API over one generation, keeping nothing.

What each published field does here stands in docs/openai-surface.md. Answers are not stored:
`store` is taken and answered with false, and what would need a stored answer is refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET

from qwenstack.core.generation import (
    Completion,
    GenerationRequest,
    ResponseFormat,
    Tool,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.interface import SSE_COMMENT, Call, Reply, StreamEncoder
from qwenstack.studio.surfaces.json_body import decode, show
from qwenstack.studio.surfaces.openai_errors import refuse
from qwenstack.studio.surfaces.openai_fields import (
    Effort,
    FunctionFields,
    RefusedFields,
    SchemaFields,
    ServiceTier,
    SharedFields,
    Verbosity,
    allowed_tools,
    check_metadata,
    check_model,
    check_positive,
    check_tools,
    check_verbosity,
    format_of,
    out_of_range,
    shared_sampling,
    thinking_of,
    tool_of,
    unknown_tool,
    unsupported,
)
from qwenstack.studio.surfaces.openai_response_answer import (
    Echo,
    FormatEcho,
    FunctionEcho,
    ItemIds,
    Outcome,
    ReasoningEcho,
    TextEcho,
    build_output,
    encode_echo,
    encode_response,
    incomplete_details,
    response_usage,
)
from qwenstack.studio.surfaces.openai_response_input import InputItem, read_input
from qwenstack.studio.surfaces.openai_responses_stream import ResponsesStream

TOP_LOGPROBS_MAX = 20
_INCLUDE_LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ToolFields(msgspec.Struct, frozen=True):
    """An element of `tools`. Built-in tools have other fields, so unknown ones are let in here."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: object = None
    output_schema: object = None


class ToolReference(msgspec.Struct, frozen=True):
    """A tool by its name, in `allowed_tools`."""

    type: Literal["function"]
    name: str


class ToolChoiceFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tool_choice` as an object."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolReference] | None = None


class FormatFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text`."""

    format: FormatFields | None = None
    verbosity: Verbosity | None = None


class ReasoningFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reasoning`. A summary may be asked for; what comes is the reasoning itself."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class ResponseStreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stream_options`. Obfuscation is padding against traffic analysis: accepted, not added."""

    include_obfuscation: bool | None = None


class ResponseRequest(
    SharedFields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """The body of a Responses request."""

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[ToolFields] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceFields | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: list[Includable] | None = None
    top_logprobs: int | None = None
    stream_options: ResponseStreamOptions | None = None
    truncation: str | None = None
    # Accepted: they can't change the result.
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: ServiceTier | None = None
    store: bool | None = None
    # Refused unless null, false or empty.
    access_programs: object = None
    background: object = None
    background_options: object = None
    context_management: object = None
    conversation: object = None
    image: object = None
    moderation: object = None
    previous_response_id: object = None
    prompt: object = None
    # Model Studio's additions.
    enable_thinking: bool | None = None
    thinking_budget: int | None = None


_STATELESS = "Answers are not stored; send the whole conversation in 'input'."
_REFUSED = RefusedFields(
    {
        "access_programs": "There are none here.",
        "background": "Answers are not stored; use /v1/batches for work in the background.",
        "background_options": "Answers are not stored; use /v1/batches for work in the background.",
        "context_management": "Shorten the conversation before you send it.",
        "conversation": _STATELESS,
        "image": "Images are taken as they are.",
        "moderation": "What is moderated is set for the workspace.",
        "previous_response_id": _STATELESS,
        "prompt": "Prompt templates are not stored; send the text in 'instructions' and 'input'.",
    }
)

_DECODER = msgspec.json.Decoder(ResponseRequest)


class ResponseShape(msgspec.Struct, frozen=True):
    """What the answer's shape depends on: the encoded `Echo`."""

    echo: bytes


class ResponsesSurface:
    """The Responses route."""

    name = "openai.responses"
    stream_content_type = b"text/event-stream; charset=utf-8"
    sign_of_life = SSE_COMMENT

    def parse(self, body: bytes, headers: dict[bytes, bytes]) -> Call:
        """Read a Responses request."""
        return parse_response(body)

    def encode(self, call: Call, completion: Completion, request_id: str, created: int) -> bytes:
        """The `response` object."""
        ids = ItemIds(request_id)
        details = incomplete_details(completion.choices[0].finish)
        outcome = Outcome(
            id=ids.response,
            created_at=created,
            status="completed" if details is None else "incomplete",
            output=build_output(completion, ids),
            incomplete_details=details,
            usage=response_usage(completion.usage),
        )
        return encode_response(outcome, _echo_of(call))

    def encoder(self, call: Call, request_id: str, created: int) -> StreamEncoder:
        """An encoder of Responses events."""
        return ResponsesStream(_echo_of(call), request_id, created)

    def refuse(self, refusal: Refusal, request_id: str) -> Reply:
        """The error answer."""
        return refuse(refusal, request_id)


def _echo_of(call: Call) -> bytes:
    if isinstance(call.wire, ResponseShape):
        return call.wire.echo
    return encode_echo(Echo(model=call.request.model))


def parse_response(body: bytes) -> Call:
    """Read a Responses request; raises Refusal for what is wrong in it."""
    wire = decode(_DECODER, body)
    _REFUSED.check(wire)
    _check_shape(wire)
    tools, choice = _read_tools(wire)
    reasoning = wire.reasoning or ReasoningFields()
    effort = reasoning.effort
    request = GenerationRequest(
        model=check_model(wire.model),
        messages=read_input(wire.input, wire.instructions),
        max_tokens=check_positive("max_output_tokens", wire.max_output_tokens),
        sampling=shared_sampling(wire),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        response_format=_read_format(wire.text),
        logprobs=_read_logprobs(wire),
        thinking=thinking_of(
            ("enable_thinking", wire.enable_thinking),
            ("reasoning.effort", None if effort is None else effort != "none"),
        ),
        thinking_budget=check_positive("thinking_budget", wire.thinking_budget),
    )
    echo = encode_echo(_echo(wire, reasoning))
    return Call(request=request, stream=bool(wire.stream), wire=ResponseShape(echo))


def _check_shape(wire: ResponseRequest) -> None:
    if wire.truncation not in (None, "disabled"):
        raise unsupported(
            "truncation",
            f"Unsupported value for 'truncation': {show(wire.truncation)}. Nothing is left out of "
            "an input silently; shorten it before you send it.",
        )
    if wire.stream_options is not None and not wire.stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is true.",
            "stream_options",
        )
    if wire.text is not None:
        check_verbosity(wire.text.verbosity, "text.verbosity")
    if wire.reasoning is not None and wire.reasoning.mode not in (None, "standard"):
        raise unsupported(
            "reasoning.mode",
            f"Unsupported value for 'reasoning.mode': {show(wire.reasoning.mode)}. Only "
            "'standard' is offered.",
        )
    check_positive("max_tool_calls", wire.max_tool_calls)
    check_metadata(wire.metadata)


def _read_logprobs(wire: ResponseRequest) -> int | None:
    top = wire.top_logprobs
    if top is not None and not 0 <= top <= TOP_LOGPROBS_MAX:
        raise out_of_range("top_logprobs", top, f"between 0 and {TOP_LOGPROBS_MAX}")
    if top or (wire.include is not None and _INCLUDE_LOGPROBS in wire.include):
        return top or 0
    return None


def _read_format(text: TextFields | None) -> ResponseFormat:
    if text is None or text.format is None:
        return ResponseFormat()
    given = text.format
    schema = None
    if given.type == "json_schema":
        if given.name is None:
            raise invalid("Missing required parameter: 'text.format.name'.", "text.format.name")
        schema = SchemaFields(given.name, given.description, given.schema, given.strict)
    return format_of(given.type, schema, "text.format")


def _read_tools(wire: ResponseRequest) -> tuple[tuple[Tool, ...], ToolChoice]:
    if not wire.tools:
        if wire.tool_choice not in (None, "none", "auto"):
            raise invalid("'tool_choice' needs 'tools' to choose from.", "tool_choice")
        return (), ToolChoice()
    tools = check_tools(
        tuple([_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(wire.tools)])
    )
    choice = wire.tool_choice
    if choice is None:
        return tools, ToolChoice()
    if isinstance(choice, str):
        return tools, ToolChoice(choice)
    if choice.type == "function":
        if choice.name is None:
            raise invalid("Missing required parameter: 'tool_choice.name'.", "tool_choice.name")
        if choice.name not in {tool.name for tool in tools}:
            raise unknown_tool(choice.name, "tool_choice.name")
        return tools, ToolChoice("named", choice.name)
    names = [tool.name for tool in choice.tools or ()]
    return allowed_tools(tools, names, "tool_choice.tools"), ToolChoice(choice.mode or "auto")


def _read_tool(tool: ToolFields, param: str) -> Tool:
    if tool.type != "function":
        raise unsupported(
            f"{param}.type",
            f"Unsupported value for '{param}.type': {show(tool.type)}. Only tools of type "
            "'function' are offered.",
        )
    if tool.name is None:
        raise invalid(f"Missing required parameter: '{param}.name'.", f"{param}.name")
    if tool.defer_loading or tool.allowed_callers:
        field = "defer_loading" if tool.defer_loading else "allowed_callers"
        raise unsupported(f"{param}.{field}", f"Unsupported parameter: '{param}.{field}'.")
    function = FunctionFields(tool.name, tool.description, tool.parameters, tool.strict)
    return tool_of(function, param)


def _echo(wire: ResponseRequest, reasoning: ReasoningFields) -> Echo:
    given = wire.text.format if wire.text is not None else None
    if given is None or given.type != "json_schema":
        text = TextEcho(FormatEcho(given.type if given else "text"))
    else:
        text = TextEcho(
            FormatEcho(
                given.type,
                given.name or UNSET,
                given.description or UNSET,
                given.schema or {},
                bool(given.strict),
            )
        )
    return Echo(
        model=wire.model,
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        metadata=wire.metadata or {},
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        prompt_cache_key=wire.prompt_cache_key or UNSET,
        reasoning=ReasoningEcho(reasoning.effort, reasoning.summary),
        safety_identifier=wire.safety_identifier or UNSET,
        temperature=wire.temperature,
        text=text,
        tool_choice=_echo_choice(wire.tool_choice),
        tools=tuple(
            [
                FunctionEcho(tool.name or "", tool.description, tool.parameters, bool(tool.strict))
                for tool in wire.tools or ()
            ]
        ),
        top_logprobs=UNSET if wire.top_logprobs is None else wire.top_logprobs,
        top_p=wire.top_p,
        user=wire.user or UNSET,
    )


def _echo_choice(choice: str | ToolChoiceFields | None) -> object:
    if not isinstance(choice, ToolChoiceFields):
        return choice or "auto"
    if choice.type == "function":
        return {"type": "function", "name": choice.name}
    return {"type": choice.type, "mode": choice.mode or "auto", "tools": choice.tools or []}
