"""Request fields that several OpenAI routes share, and the checks that they have in common.

Ranges are OpenAI's published ones unless a comment says otherwise. Every check raises a Refusal
that names the field, the value and the range.
"""

from __future__ import annotations

import operator
import re
from typing import Any, Literal

import msgspec

from qwenstack.core.generation import ResponseFormat, Sampling, Tool
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.studio.surfaces.json_body import check_free_form, show

CHOICES_MAX = 8
# OpenAI takes 4 stop strings, Model Studio 16.
STOPS_MAX = 16
STOP_CHARACTERS_MAX = 1000
LOGIT_BIAS_MAX = 1024
TOOLS_MAX = 128
MODEL_CHARACTERS_MAX = 256
INTEGER_MAX = 2**63 - 1
METADATA_MAX = 16

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_SAMPLING = Sampling()
_TEXT_FORMAT = ResponseFormat()
_JSON_FORMAT = ResponseFormat("json_object")

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stream_options`. Obfuscation is padding against traffic analysis: accepted, not added."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SharedFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What /chat/completions, /completions and /responses have in common."""

    model: str
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    # Qwen clients send these in `extra_body`, as Model Studio and vLLM take them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class PenaltyFields(SharedFields, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What /chat/completions and /completions have in common."""

    n: int | None = None
    max_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    stream_options: StreamOptions | None = None


class FunctionFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SchemaFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `json_schema` of a response format."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


def unsupported(param: str, message: str) -> Refusal:
    """A refusal for a published field that this service does not carry out."""
    return Refusal(RefusalKind.UNSUPPORTED, message, param=param)


def out_of_range(param: str, value: object, range_text: str) -> Refusal:
    """A refusal for a number outside its range."""
    return invalid(f"Invalid value for '{param}': {show(value)}. It must be {range_text}.", param)


def check_model(model: str) -> str:
    """The model's name, where it can be one."""
    if not 0 < len(model) <= MODEL_CHARACTERS_MAX or not model.isprintable():
        raise invalid(
            f"Invalid value for 'model': {show(model)}. Give a model's name, at most "
            f"{MODEL_CHARACTERS_MAX} printable characters; GET /v1/models lists the names.",
            "model",
        )
    return model


def shared_sampling(wire: SharedFields) -> Sampling:
    """Sampling from the fields that /responses has too."""
    if (
        wire.temperature is None
        and wire.top_p is None
        and wire.top_k is None
        and wire.min_p is None
        and wire.repetition_penalty is None
    ):
        return _NO_SAMPLING
    _check_shared(wire)
    return Sampling(
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=None if wire.top_k is None else max(wire.top_k, 0),
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty,
    )


def penalty_sampling(wire: PenaltyFields) -> Sampling:
    """Sampling from the fields of /chat/completions and /completions."""
    if (
        wire.presence_penalty is None
        and wire.frequency_penalty is None
        and wire.seed is None
        and wire.logit_bias is None
    ):
        return shared_sampling(wire)
    _check_shared(wire)
    for param in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(wire, param)
        if penalty is not None and not -2 <= penalty <= 2:
            raise out_of_range(param, penalty, "between -2 and 2")
    if wire.seed is not None and not -INTEGER_MAX <= wire.seed <= INTEGER_MAX:
        raise out_of_range("seed", wire.seed, "a 64-bit integer")
    return Sampling(
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=None if wire.top_k is None else max(wire.top_k, 0),
        min_p=wire.min_p,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        repetition_penalty=wire.repetition_penalty,
        seed=wire.seed,
        logit_bias=_logit_bias(wire.logit_bias),
    )


def _check_shared(wire: SharedFields) -> None:
    if wire.temperature is not None and not 0 <= wire.temperature <= 2:
        raise out_of_range("temperature", wire.temperature, "between 0 and 2")
    if wire.top_p is not None and not 0 < wire.top_p <= 1:
        raise out_of_range("top_p", wire.top_p, "greater than 0 and at most 1")
    # vLLM writes "off" as -1, llama.cpp and Model Studio as 0: both are taken.
    if wire.top_k is not None and not -1 <= wire.top_k <= 1_000_000:
        raise out_of_range("top_k", wire.top_k, "between 0 (off) and 1000000")
    if wire.min_p is not None and not 0 <= wire.min_p <= 1:
        raise out_of_range("min_p", wire.min_p, "between 0 and 1")
    if wire.repetition_penalty is not None and not 0 < wire.repetition_penalty <= 10:
        raise out_of_range(
            "repetition_penalty", wire.repetition_penalty, "greater than 0 and at most 10"
        )


def _logit_bias(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    if not bias:
        return ()
    if len(bias) > LOGIT_BIAS_MAX:
        raise out_of_range("logit_bias", len(bias), f"a map of at most {LOGIT_BIAS_MAX} tokens")
    pairs = []
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise invalid(
                f"Invalid key in 'logit_bias': {show(token)}. Keys are token ids.", "logit_bias"
            )
        if not -100 <= value <= 100:
            raise out_of_range(f"logit_bias.{token}", value, "between -100 and 100")
        pairs.append((int(token), value))
    return tuple(pairs)


def check_positive(param: str, value: int | None, maximum: int = INTEGER_MAX) -> int | None:
    """An optional integer that must be at least 1."""
    if value is not None and not 1 <= value <= maximum:
        limit = "at least 1" if maximum == INTEGER_MAX else f"between 1 and {maximum}"
        raise out_of_range(param, value, limit)
    return value


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings of a request."""
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOPS_MAX:
        raise out_of_range("stop", len(stops), f"a list of at most {STOPS_MAX} strings")
    for text in stops:
        if not 0 < len(text) <= STOP_CHARACTERS_MAX:
            raise out_of_range("stop", text, f"of 1 to {STOP_CHARACTERS_MAX} characters each")
    return stops


def check_metadata(metadata: dict[str, str] | None) -> None:
    """`metadata` is as large as OpenAI lets it be."""
    if metadata is not None and (
        len(metadata) > METADATA_MAX
        or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items())
    ):
        raise invalid(
            f"'metadata' may have {METADATA_MAX} pairs of at most 64 and 512 characters.",
            "metadata",
        )


def check_stream_options(options: StreamOptions | None, stream: bool) -> bool:
    """Whether usage is asked for in the stream."""
    if options is None:
        return False
    if not stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is true.",
            "stream_options",
        )
    return bool(options.include_usage)


def check_name(name: str, param: str) -> str:
    """The name of a function, schema or the like, as OpenAI limits it."""
    if not _NAME.fullmatch(name):
        raise invalid(
            f"Invalid value for '{param}': {show(name)}. "
            "Use 1 to 64 of the characters a-z, A-Z, 0-9, _ and -.",
            param,
        )
    return name


def tool_of(function: FunctionFields, param: str) -> Tool:
    """A function tool; `param` is where its fields stand in the request."""
    check_name(function.name, f"{param}.name")
    parameters = function.parameters or {}
    if parameters:
        check_free_form(parameters, f"{param}.parameters")
        kind = parameters.get("type", "object")
        if kind != "object":
            raise invalid(
                f"Invalid value for '{param}.parameters': the schema's type is {show(kind)}. "
                "A function's parameters are a JSON Schema of type 'object'.",
                f"{param}.parameters",
            )
    return Tool(function.name, function.description, parameters, bool(function.strict))


def check_tools(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """The tools of a request: not too many, each name once."""
    if len(tools) > TOOLS_MAX:
        raise out_of_range("tools", len(tools), f"a list of at most {TOOLS_MAX} tools")
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise invalid("Invalid value for 'tools': two functions have the same name.", "tools")
    return tools


def allowed_tools(tools: tuple[Tool, ...], names: list[str], param: str) -> tuple[Tool, ...]:
    """The tools that a tool choice `allowed_tools` leaves to the model."""
    if not names:
        raise invalid(f"Invalid value for '{param}': the list of allowed tools is empty.", param)
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise unknown_tool(name, param)
    return tuple(tool for tool in tools if tool.name in names)


def unknown_tool(name: str, param: str) -> Refusal:
    """A refusal for a tool choice that names no tool of the request."""
    return invalid(f"Invalid value for '{param}': {show(name)} is not in 'tools'.", param)


def format_of(kind: str, schema: SchemaFields | None, param: str) -> ResponseFormat:
    """The response format; `schema` is looked at for `json_schema` only."""
    if kind == "text":
        return _TEXT_FORMAT
    if kind == "json_object":
        return _JSON_FORMAT
    if schema is None or schema.schema is None:
        raise invalid(f"Missing required parameter: '{param}.schema'.", f"{param}.schema")
    check_name(schema.name, f"{param}.name")
    check_free_form(schema.schema, f"{param}.schema")
    return ResponseFormat("json_schema", schema.name, schema.schema, bool(schema.strict))


def check_verbosity(verbosity: Verbosity | None, param: str) -> None:
    """`medium` is what every Qwen model does; the others would be silently without effect."""
    if verbosity not in (None, "medium"):
        raise unsupported(
            param,
            f"Unsupported value for '{param}': {show(verbosity)}. Qwen models have no verbosity "
            "control; say in the prompt how long the answer should be.",
        )


def thinking_of(*sources: tuple[str, bool | None]) -> bool | None:
    """The one answer of several (field, whether to think) pairs; None where none says.

    Raises Refusal when two contradict each other.
    """
    decided: tuple[str, bool] | None = None
    for param, value in sources:
        if value is None:
            continue
        if decided is not None and decided[1] != value:
            raise invalid(
                f"'{decided[0]}' and '{param}' contradict each other on thinking; send one.", param
            )
        decided = (param, value)
    return None if decided is None else decided[1]


class RefusedFields:
    """Fields that are published but not carried out here, each with the way round it."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self._reasons = reasons
        self._values = operator.attrgetter(*reasons)
        self._unset = (None,) * len(reasons)

    def check(self, wire: object) -> None:
        """Refuse a request that sets one of them to anything but null, [] or false."""
        values = self._values(wire)
        if values == self._unset:
            return
        for (param, reason), value in zip(self._reasons.items(), values, strict=True):
            if value is not None and value is not False and value != []:
                raise unsupported(param, f"Unsupported parameter: '{param}'. {reason}")
