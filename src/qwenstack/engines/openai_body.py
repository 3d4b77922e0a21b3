"""What is asked of OpenAI-compatible servers, encoded: our requests as their JSON. No I/O.

`openai_wire` is the other direction.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwenstack.core.generation import (
    AudioPart,
    ContentPart,
    EmbeddingRequest,
    GenerationRequest,
    ImagePart,
    Message,
    TextPart,
    ToolChoice,
)
from qwenstack.engines.interface import EngineRejected

Dialect = Literal["vllm", "sglang", "llama_server", "model_studio", "openai"]
"""Whose extensions a server understands; `openai` is any other compatible server."""

_TEMPLATE_DIALECTS = frozenset({"vllm", "sglang", "llama_server"})


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """How a server wants to be asked.

    `model` is the server's own name for the model; None sends the request's. `running_usage` asks
    for the count so far with every chunk. `extra` are fields added to every generation, as they
    are.
    """

    dialect: Dialect = "openai"
    model: str | None = None
    running_usage: bool = False
    extra: dict[str, Any] = {}


class _StreamOptions(msgspec.Struct, omit_defaults=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _CacheControl(msgspec.Struct):
    type: str = "ephemeral"


class _Url(msgspec.Struct):
    url: str


class _Audio(msgspec.Struct):
    data: str
    format: str


class _Part(msgspec.Struct, omit_defaults=True):
    type: str
    text: str | None = None
    image_url: _Url | None = None
    input_audio: _Audio | None = None
    cache_control: _CacheControl | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _ToolCall(msgspec.Struct):
    id: str
    function: _Function
    type: str = "function"


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | list[_Part] | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _ToolFunction(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool = False


class _Tool(msgspec.Struct):
    function: _ToolFunction
    type: str = "function"


class _Named(msgspec.Struct):
    name: str


class _NamedChoice(msgspec.Struct):
    function: _Named
    type: str = "function"


class _Schema(msgspec.Struct, omit_defaults=True):
    name: str
    schema: dict[str, Any] | None = None
    strict: bool = False


class _ResponseFormat(msgspec.Struct, omit_defaults=True):
    type: str
    json_schema: _Schema | None = None


class _Generation(msgspec.Struct, omit_defaults=True):
    """The body of `/chat/completions` and of `/completions`; what is not set is not sent."""

    model: str
    messages: list[_Message] | None = None
    prompt: str | tuple[int, ...] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: tuple[str, ...] = ()
    tools: list[_Tool] | None = None
    tool_choice: str | _NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, bool | int] | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    thinking_token_budget: int | None = None
    thinking_budget_tokens: int | None = None
    timings_per_token: bool | None = None
    verbose: bool | None = None


class _Embeddings(msgspec.Struct, omit_defaults=True):
    model: str
    input: tuple[str | tuple[int, ...], ...]
    encoding_format: str | None = None
    dimensions: int | None = None


class _Tokenize(msgspec.Struct, omit_defaults=True):
    """vLLM's `/tokenize`, by `messages` or `prompt`; also llama-server's `/apply-template`."""

    model: str | None = None
    messages: list[_Message] | None = None
    prompt: str | tuple[int, ...] | None = None
    tools: list[_Tool] | None = None
    chat_template_kwargs: dict[str, bool | int] | None = None
    add_special_tokens: bool | None = None


class _TokenizeContent(msgspec.Struct):
    """llama-server's `/tokenize`."""

    content: str
    add_special: bool
    parse_special: bool = True


_encode = msgspec.json.Encoder().encode


def encode_generation(
    request: GenerationRequest, wording: Wording, *, stream: bool = True
) -> bytes:
    """The JSON body for `/chat/completions` (by messages) or `/completions` (by raw prompt)."""
    sampling = request.sampling
    llama_server = wording.dialect == "llama_server"
    body = _Generation(
        model=wording.model or request.model,
        max_tokens=request.max_tokens,
        n=request.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        stop=request.stop,
    )
    if llama_server:
        body.repeat_penalty = sampling.repetition_penalty
        # Only then does it say which of the stop texts it met.
        body.verbose = True if request.stop else None
    else:
        body.repetition_penalty = sampling.repetition_penalty
    if wording.dialect == "model_studio" and (sampling.logit_bias or sampling.min_p):
        # It documents neither, and passes over what it does not know.
        field = "logit_bias" if sampling.logit_bias else "min_p"
        raise EngineRejected(f"{field} is not had by Model Studio; leave it out")
    if sampling.logit_bias:
        body.logit_bias = {str(token): bias for token, bias in sampling.logit_bias}
    if stream:
        body.stream = True
        body.stream_options = _StreamOptions(include_usage=True)
        if wording.running_usage:
            if llama_server:
                body.timings_per_token = True
            else:
                body.stream_options.continuous_usage_stats = True
    if request.prompt is not None:
        body.prompt = request.prompt
        body.logprobs = request.logprobs
    else:
        _add_chat(body, request, wording.dialect)
    encoded = _encode(body)
    return encoded[:-1] + b"," + _encode(wording.extra)[1:] if wording.extra else encoded


def encode_embeddings(request: EmbeddingRequest, wording: Wording) -> bytes:
    """The JSON body for `/embeddings`. Base64 is asked for where the server is known to have it."""
    base64 = wording.dialect in ("vllm", "llama_server", "openai")
    return _encode(
        _Embeddings(
            model=wording.model or request.model,
            input=request.inputs,
            encoding_format="base64" if base64 else "float",
            dimensions=request.dimensions,
        )
    )


def encode_chat_prompt(request: GenerationRequest, wording: Wording) -> bytes:
    """What renders the chat template without generating.

    vLLM's `/tokenize` counts the result, llama-server's `/apply-template` returns it as text.
    """
    chat = _Generation(model="")
    _add_chat(chat, request, wording.dialect)
    return _encode(
        _Tokenize(
            model=wording.model or request.model,
            messages=chat.messages,
            tools=chat.tools,
            chat_template_kwargs=chat.chat_template_kwargs,
        )
    )


def encode_text_prompt(
    text: str | tuple[int, ...], model: str, wording: Wording, *, special: bool
) -> bytes:
    """The JSON body for `/tokenize` on plain text; `special` adds what starts a prompt (BOS)."""
    if wording.dialect == "llama_server":
        assert isinstance(text, str)  # a token sequence is its own count
        return _encode(_TokenizeContent(content=text, add_special=special))
    return _encode(_Tokenize(model=wording.model or model, prompt=text, add_special_tokens=special))


def _add_chat(body: _Generation, request: GenerationRequest, dialect: Dialect) -> None:
    body.messages = [_message(message, dialect) for message in request.messages]
    if request.tools:
        body.tools = [
            _Tool(_ToolFunction(tool.name, tool.parameters or None, tool.description, tool.strict))
            for tool in request.tools
        ]
        body.tool_choice = _tool_choice(request.tool_choice)
        if not request.parallel_tool_calls:
            body.parallel_tool_calls = False
        elif dialect == "model_studio":
            body.parallel_tool_calls = True  # where nothing is said, it makes one call at most
    form = request.response_format
    if form.type == "json_schema":
        schema = _Schema(form.name or "answer", form.schema or {}, form.strict)
        body.response_format = _ResponseFormat("json_schema", schema)
    elif form.type == "json_object":
        body.response_format = _ResponseFormat("json_object")
    if request.logprobs is not None:
        body.logprobs = True
        if request.logprobs:
            body.top_logprobs = request.logprobs
    if request.thinking is not None or request.thinking_budget is not None:
        _add_thinking(body, request, dialect)


def _add_thinking(body: _Generation, request: GenerationRequest, dialect: Dialect) -> None:
    """Whether and how long to think, in the server's own words.

    vLLM has `thinking_token_budget`, llama-server `thinking_budget_tokens`; SGLang hands
    `thinking_budget` to the chat template; Model Studio has both fields at the top level. A server
    of no known dialect gets Model Studio's, since the Qwen documentation spells them so.
    """
    budget = request.thinking_budget
    if dialect not in _TEMPLATE_DIALECTS:
        body.enable_thinking = request.thinking
        body.thinking_budget = budget
        return
    template: dict[str, bool | int] = {}
    if request.thinking is not None:
        template["enable_thinking"] = request.thinking
    if dialect == "vllm":
        body.thinking_token_budget = budget
    elif dialect == "llama_server":
        body.thinking_budget_tokens = budget
    elif budget is not None:
        template["thinking_budget"] = budget
    body.chat_template_kwargs = template or None


def _message(message: Message, dialect: Dialect) -> _Message:
    content = message.content
    wire = _Message(message.role)
    if len(content) == 1 and type(content[0]) is TextPart and not content[0].cache_marker:
        wire.content = content[0].text
    elif content:
        wire.content = [_part(part, dialect) for part in content]
    elif message.tool_calls:
        wire.content = None
    else:
        wire.content = ""
    if message.reasoning is not None:
        wire.reasoning_content = message.reasoning
    if message.tool_calls:
        wire.tool_calls = [
            _ToolCall(call.id, _Function(call.name, call.arguments)) for call in message.tool_calls
        ]
    wire.tool_call_id = message.tool_call_id
    wire.name = message.name
    return wire


def _part(part: ContentPart, dialect: Dialect) -> _Part:
    if isinstance(part, TextPart):
        # Only Model Studio has an explicit cache; elsewhere the marker is a hint without use.
        marked = part.cache_marker and dialect == "model_studio"
        return _Part("text", text=part.text, cache_control=_CacheControl() if marked else None)
    if isinstance(part, ImagePart):
        return _Part("image_url", image_url=_Url(part.url))
    if isinstance(part, AudioPart):
        # Model Studio takes a URL here, so the bytes go as a data: URL.
        data = f"data:;base64,{part.data}" if dialect == "model_studio" else part.data
        return _Part("input_audio", input_audio=_Audio(data, part.format))
    raise EngineRejected(f"the engine has no use for a content part of type {type(part).__name__}")


def _tool_choice(choice: ToolChoice) -> str | _NamedChoice | None:
    if choice.mode == "auto":
        return None
    if choice.mode == "named":
        return _NamedChoice(_Named(choice.name or ""))
    return choice.mode
