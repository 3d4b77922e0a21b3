"""Reading Anthropic's Messages requests.

Sources: Anthropic, "Messages" and "Count Message tokens" API reference (read 2026-11) and what its
client sends. docs/anthropic-surface.md lists what becomes of every field.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from qwenstack.core.generation import (
    GenerationRequest,
    ResponseFormat,
    Sampling,
    Tool,
    ToolChoice,
)
from qwenstack.core.refusals import Refusal, invalid
from qwenstack.studio.surfaces.anthropic_messages import (
    CacheControl,
    Markers,
    Turn,
    WireText,
    mark_last,
    read_system,
    read_turns,
    refused_block,
)
from qwenstack.studio.surfaces.json_body import check_free_form, decode, show
from qwenstack.studio.surfaces.openai_fields import (
    STOP_CHARACTERS_MAX,
    STOPS_MAX,
    RefusedFields,
    check_model,
    check_positive,
    check_tools,
    out_of_range,
    unknown_tool,
    unsupported,
)

T = TypeVar("T")

# The vendor's bound; it lets the tools of MCP servers through, whose names are long.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_BUDGET_MIN = 1024
_TOP_K_MAX = 1_000_000
_THINKING_MAX = 2**31 - 1


class ToolFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that the caller runs."""

    name: str
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None


class AutoChoice(msgspec.Struct, frozen=True, tag="auto", forbid_unknown_fields=True):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, frozen=True, tag="any", forbid_unknown_fields=True):
    """Some tool must be called."""

    disable_parallel_tool_use: bool | None = None


class NamedChoice(msgspec.Struct, frozen=True, tag="tool", forbid_unknown_fields=True):
    """This tool must be called."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(msgspec.Struct, frozen=True, tag="none", forbid_unknown_fields=True):
    """No tool may be called."""


Display = Literal["summarized", "omitted"]


class ThinkingEnabled(msgspec.Struct, frozen=True, tag="enabled", forbid_unknown_fields=True):
    """Think, for at most so many tokens."""

    budget_tokens: int
    display: Display | None = None


class ThinkingAdaptive(msgspec.Struct, frozen=True, tag="adaptive", forbid_unknown_fields=True):
    """Think as long as the model does."""

    display: Display | None = None


class ThinkingDisabled(msgspec.Struct, frozen=True, tag="disabled", forbid_unknown_fields=True):
    """Don't think."""


class JsonFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON that the answer must be."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`metadata`."""

    user_id: str | None = None


class PromptFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What both routes take: all that the prompt is made of."""

    model: str
    messages: list[Turn]
    system: str | list[WireText] | None = None
    tools: list[ToolFields] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None
    context_management: object = None
    mcp_servers: list[object] | None = None


class MessagesRequest(
    PromptFields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """The body of a generation."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: object = None
    diagnostics: object = None
    inference_geo: str | None = None


_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(PromptFields)

_PROMPT_REFUSED = RefusedFields(
    {
        "mcp_servers": "Connect the MCP servers in your client and send their tools in 'tools'.",
        "context_management": "Nothing is removed from a conversation here; send what should stay.",
    }
)
_REFUSED = RefusedFields(
    {
        "container": "No code is run here.",
        "diagnostics": "There are no cache diagnostics; 'usage' says what was cached.",
        "inference_geo": "The region is the model's; GET /v1/models lists the models.",
    }
)


class _AnyTool(msgspec.Struct, frozen=True):
    type: str | None = None


class _AnyBlock(msgspec.Struct, frozen=True):
    type: str | None = None


class _AnyTurn(msgspec.Struct, frozen=True):
    content: str | list[_AnyBlock] | None = None


class _AnyRequest(msgspec.Struct, frozen=True):
    tools: list[_AnyTool] | None = None
    messages: list[_AnyTurn] = []


_LENIENT = msgspec.json.Decoder(_AnyRequest)


def read_messages_request(body: bytes) -> tuple[MessagesRequest, GenerationRequest]:
    """The request as sent and as we run it; raises Refusal for what is wrong in it."""
    wire = _decode(_MESSAGES, body)
    _REFUSED.check(wire)
    max_tokens = check_positive("max_tokens", wire.max_tokens)
    thinking = wire.thinking
    if isinstance(thinking, ThinkingEnabled) and thinking.budget_tokens >= wire.max_tokens:
        raise invalid(
            f"Invalid value for 'thinking.budget_tokens': {thinking.budget_tokens}. 'max_tokens' "
            f"is {wire.max_tokens} and counts thinking too; it must be greater.",
            "thinking.budget_tokens",
        )
    prompt = _read_prompt(wire)
    request = msgspec.structs.replace(
        prompt, max_tokens=max_tokens, sampling=_sampling(wire), stop=_stops(wire.stop_sequences)
    )
    return wire, request


def read_count_request(body: bytes) -> GenerationRequest:
    """The prompt that is to be counted; raises Refusal for what is wrong in it."""
    return _read_prompt(_decode(_COUNT, body))


def _read_prompt(wire: PromptFields) -> GenerationRequest:
    _PROMPT_REFUSED.check(wire)
    if wire.speed == "fast":
        raise unsupported(
            "speed", "Unsupported value for 'speed': \"fast\". There is one speed; leave it out."
        )
    markers = Markers()
    system = read_system(wire.system, markers)
    tools, choice, parallel = _read_tools(wire, markers)
    messages = (*system, *read_turns(wire.messages, markers))
    if wire.cache_control is not None:
        markers.count(wire.cache_control)
        messages = mark_last(messages)
    thinking, budget = _read_thinking(wire.thinking)
    if thinking and choice.mode in ("required", "named"):
        raise invalid("Thinking may not be enabled when tool_choice forces tool use.", "thinking")
    return GenerationRequest(
        model=check_model(wire.model),
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_read_format(wire),
        thinking=thinking,
        thinking_budget=budget,
    )


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decode(decoder, body)
    except Refusal as refusal:
        raise _better_reason(body) or _in_vendors_words(refusal) from refusal.__cause__


def _in_vendors_words(refusal: Refusal) -> Refusal:
    """The same, with an unknown field refused as the vendor does: clients look for the words."""
    param = refusal.param
    if param is not None and refusal.message == f"Unrecognized request argument supplied: {param}":
        return invalid(f"{param}: Extra inputs are not permitted", param)
    return refusal


def _better_reason(body: bytes) -> Refusal | None:
    """Say that a published kind of tool or block is not offered, rather than that a field is odd.

    Looked at only after the request has turned out to be wrong.
    """
    try:
        request = decode(_LENIENT, body)
    except Refusal:
        return None
    for index, tool in enumerate(request.tools or ()):
        if tool.type not in (None, "custom"):
            param = f"tools[{index}].type"
            return unsupported(
                param,
                f"Unsupported value for '{param}': {show(tool.type)}. No tools are run here; only "
                "tools of type 'custom', which the caller runs, are offered.",
            )
    for index, turn in enumerate(request.messages):
        if isinstance(turn.content, list):
            for number, block in enumerate(turn.content):
                reason = refused_block(block.type or "", f"messages[{index}].content[{number}]")
                if reason is not None:
                    return reason
    return None


def _read_thinking(
    thinking: ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | None,
) -> tuple[bool | None, int | None]:
    if thinking is None:
        return None, None
    if isinstance(thinking, ThinkingDisabled):
        return False, None
    if isinstance(thinking, ThinkingAdaptive):
        return True, None
    budget = thinking.budget_tokens
    if not _BUDGET_MIN <= budget <= _THINKING_MAX:
        raise out_of_range("thinking.budget_tokens", budget, f"at least {_BUDGET_MIN}")
    return True, budget


def _read_format(wire: PromptFields) -> ResponseFormat:
    inner = wire.output_config.format if wire.output_config else None
    if inner is not None and wire.output_format is not None:
        raise invalid(
            "'output_format' and 'output_config.format' are the same; send the latter only.",
            "output_format",
        )
    form = inner or wire.output_format
    if form is None:
        return ResponseFormat()
    param = "output_config.format.schema" if inner else "output_format.schema"
    check_free_form(form.schema, param)
    return ResponseFormat("json_schema", "output", form.schema, strict=True)


def _sampling(wire: MessagesRequest) -> Sampling:
    if wire.temperature is not None and not 0 <= wire.temperature <= 1:
        raise out_of_range("temperature", wire.temperature, "between 0 and 1")
    if wire.top_p is not None and not 0 < wire.top_p <= 1:
        raise out_of_range("top_p", wire.top_p, "greater than 0 and at most 1")
    if wire.top_k is not None and not 0 <= wire.top_k <= _TOP_K_MAX:
        raise out_of_range("top_k", wire.top_k, f"between 0 (off) and {_TOP_K_MAX}")
    return Sampling(temperature=wire.temperature, top_p=wire.top_p, top_k=wire.top_k)


def _stops(stops: list[str] | None) -> tuple[str, ...]:
    if not stops:
        return ()
    if len(stops) > STOPS_MAX:
        raise out_of_range("stop_sequences", len(stops), f"a list of at most {STOPS_MAX} strings")
    for index, text in enumerate(stops):
        if not text.strip() or len(text) > STOP_CHARACTERS_MAX:
            raise out_of_range(
                f"stop_sequences[{index}]",
                text,
                f"of 1 to {STOP_CHARACTERS_MAX} characters, not only white space",
            )
    return tuple(stops)


def _read_tools(wire: PromptFields, markers: Markers) -> tuple[tuple[Tool, ...], ToolChoice, bool]:
    tools = check_tools(
        tuple(
            [
                _read_tool(tool, f"tools[{index}]", markers)
                for index, tool in enumerate(wire.tools or ())
            ]
        )
    )
    choice = wire.tool_choice
    if choice is None:
        return tools, ToolChoice(), True
    if isinstance(choice, NoChoice):
        return tools, ToolChoice("none" if tools else "auto"), True
    parallel = not choice.disable_parallel_tool_use
    if isinstance(choice, AutoChoice):
        return tools, ToolChoice(), parallel
    if not tools:
        raise invalid("'tool_choice' needs 'tools' to choose from.", "tool_choice")
    if isinstance(choice, AnyChoice):
        return tools, ToolChoice("required"), parallel
    if choice.name not in {tool.name for tool in tools}:
        raise unknown_tool(choice.name, "tool_choice.name")
    return tools, ToolChoice("named", choice.name), parallel


def _read_tool(tool: ToolFields, param: str, markers: Markers) -> Tool:
    if not _NAME.fullmatch(tool.name):
        raise invalid(
            f"Invalid value for '{param}.name': {show(tool.name)}. "
            "Use 1 to 128 of the characters a-z, A-Z, 0-9, _ and -.",
            f"{param}.name",
        )
    if tool.defer_loading:
        raise unsupported(
            f"{param}.defer_loading",
            f"Unsupported parameter: '{param}.defer_loading'. There is no tool search; send the "
            "tools that the model should see.",
        )
    if tool.allowed_callers not in (None, ["direct"]):
        raise unsupported(
            f"{param}.allowed_callers",
            f"Unsupported value for '{param}.allowed_callers': {show(tool.allowed_callers)}. Only "
            'the model itself calls tools: leave it out, or send ["direct"].',
        )
    if tool.input_examples:
        raise unsupported(
            f"{param}.input_examples",
            f"Unsupported parameter: '{param}.input_examples'. Put the examples into "
            "'description'.",
        )
    check_free_form(tool.input_schema, f"{param}.input_schema")
    kind = tool.input_schema.get("type", "object")
    if kind != "object":
        raise invalid(
            f"Invalid value for '{param}.input_schema': the schema's type is {show(kind)}. "
            "A tool's input is a JSON Schema of type 'object'.",
            f"{param}.input_schema",
        )
    markers.count(tool.cache_control)
    return Tool(tool.name, tool.description, tool.input_schema, bool(tool.strict))
