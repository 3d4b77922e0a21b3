"""Inference on one OpenAI-compatible server over HTTP: vLLM, SGLang, llama-server, Model Studio.

The hot path is `OpenAIEngine.generate`: one pooled connection, one encoded body, and one `Step` for
each network read, however many events it brought.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import msgspec

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step
from qwenstack.engines.interface import (
    Capabilities,
    EngineError,
    EngineIdentity,
    EngineProtocolError,
    EngineRejected,
    EngineUnavailable,
)
from qwenstack.engines.openai_body import (
    encode_chat_prompt,
    encode_embeddings,
    encode_generation,
    encode_text_prompt,
)
from qwenstack.engines.openai_settings import OpenAIServer
from qwenstack.engines.openai_wire import StreamDecoder, decode_completion, decode_embeddings
from qwenstack.engines.server_calls import ServerCalls
from qwenstack.engines.sse import EventSplitter

_COUNTS_AT_ONCE = 16
_VERSION_ROUTES = {"vllm": "/version", "sglang": "/get_server_info"}


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    """`/models`; vLLM and SGLang tell `max_model_len`."""

    data: list[_Model] = []


class _Version(msgspec.Struct):
    """vLLM's `/version`, SGLang's `/get_server_info`."""

    version: str | None = None


class _SlotSettings(msgspec.Struct, frozen=True):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    """llama-server's `/props`; `n_ctx` is the context of one slot."""

    build_info: str | None = None
    default_generation_settings: _SlotSettings = _SlotSettings()


class _Tokens(msgspec.Struct):
    """vLLM's and SGLang's `/tokenize` tell `count`, llama-server's only the tokens."""

    tokens: list[msgspec.Raw] = []
    count: int | None = None


class _Template(msgspec.Struct):
    """llama-server's `/apply-template`."""

    prompt: str


_T = TypeVar("_T", bound=msgspec.Struct)


def _decode(shape: type[_T], body: bytes) -> _T:
    """A whole answer of the given shape; raises EngineProtocolError for anything else."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineProtocolError(f"the engine sent what was not expected: {error}") from error


def _decode_or_empty(shape: type[_T], body: bytes | None) -> _T:
    """The same for what a server may leave out: an empty `shape` where it says nothing of use."""
    try:
        return shape() if body is None else _decode(shape, body)
    except EngineProtocolError:
        return shape()


def _token_count(body: bytes) -> int:
    tokens = _decode(_Tokens, body)
    return len(tokens.tokens) if tokens.count is None else tokens.count


class OpenAIEngine:
    """An `Engine` on one server. Use from one event loop; `start` before the first request."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server
        self._wording = server.wording()
        self._capabilities = server.known_capabilities()
        self._identity = EngineIdentity(
            name=server.name, version=server.version or "unknown", region=server.region
        )
        self._chat_url = server.url("/chat/completions")
        self._text_url = server.url("/completions")
        self._calls = ServerCalls(server)

    @property
    def identity(self) -> EngineIdentity:
        """Name, version and region; the digest is unknown, since the server cannot prove it."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What is configured, what the dialect implies and what the server said at the start."""
        return self._capabilities

    # --- Generation -----------------------------------------------------------------------------

    async def generate(
        self, request: GenerationRequest, extra: dict[str, Any] | None = None
    ) -> AsyncGenerator[Step, None]:
        """Run `request`, always streamed upstream; one step for each network read.

        `extra` are fields for this request alone, in place of the configured ones.
        """
        url = self._chat_url if request.prompt is None else self._text_url
        wording = self._wording
        if extra is not None:
            wording = msgspec.structs.replace(wording, extra=extra)
        body = encode_generation(request, wording)
        calls = self._calls
        exchange = await calls.open(url, body, trace=request.trace)
        connection = exchange.connection
        one_call = not request.parallel_tool_calls
        try:
            if connection.status != 200:
                raise await calls.refusal(exchange)
            if not connection.content_type.startswith("text/event-stream"):
                body = await calls.body(exchange, self._server.max_body_bytes)
                yield decode_completion(body, request.n, one_call=one_call)
                return
            decoder = StreamDecoder(request.n, hide=calls.hidden, one_call=one_call)
            splitter = EventSplitter(self._server.max_event_bytes)
            while not decoder.done:
                read = await calls.read(exchange, decoder.began)
                step = decoder.step(splitter.feed(read) if read else splitter.flush())
                exchange.whole = decoder.done
                if step is not None:
                    yield step
                if not read and not decoder.done:
                    yield self._end(decoder)
        finally:
            calls.finish(exchange)

    def _end(self, decoder: StreamDecoder) -> Step:
        """The final step of a body that ended without `[DONE]`, if nothing else is missing."""
        if not decoder.began:
            raise EngineUnavailable(f"{self._server.name} ended its answer before it began")
        step = decoder.end()
        assert step is not None  # `done` was not set
        return step

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed the inputs in one request."""
        body = encode_embeddings(request, self._wording)
        answer = await self._calls.call(self._server.url("/embeddings"), body, trace=request.trace)
        return decode_embeddings(answer, request)

    # --- Counting -------------------------------------------------------------------------------

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """The server's own count, with its chat template where the request is a chat."""
        self._require_counting()
        if isinstance(request, EmbeddingRequest):
            limit = asyncio.Semaphore(_COUNTS_AT_ONCE)
            counts = (self._count_input(text, request.model, limit) for text in request.inputs)
            return sum(await asyncio.gather(*counts))
        if request.prompt is not None:
            if isinstance(request.prompt, tuple):
                return len(request.prompt)
            return await self._tokenize(request.prompt, request.model, special=True)
        if self._server.dialect == "vllm":
            body = encode_chat_prompt(request, self._wording)
            return _token_count(await self._calls.call(self._server.root_url("/tokenize"), body))
        prompt = await self.render_prompt(request)
        return await self._tokenize(prompt, request.model, special=True)

    async def render_prompt(self, request: GenerationRequest) -> str:
        """The chat as the model's template writes it (llama-server only)."""
        body = encode_chat_prompt(request, self._wording)
        answer = await self._calls.call(self._server.root_url("/apply-template"), body)
        return _decode(_Template, answer).prompt

    async def count_text(self, text: str) -> int:
        """The server's own count of generated text, without what would start a prompt."""
        self._require_counting()
        return await self._tokenize(text, self._server.upstream_model or "", special=False)

    async def _count_input(
        self, text: str | tuple[int, ...], model: str, limit: asyncio.Semaphore
    ) -> int:
        if isinstance(text, tuple):
            return len(text)
        async with limit:
            return await self._tokenize(text, model, special=True)

    async def _tokenize(self, text: str, model: str, *, special: bool) -> int:
        body = encode_text_prompt(text, model, self._wording, special=special)
        return _token_count(await self._calls.call(self._server.root_url("/tokenize"), body))

    def _require_counting(self) -> None:
        if not self._capabilities.counts_prompts:
            raise EngineRejected(f"a server of dialect {self._server.dialect} counts no prompts")

    # --- Life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool and ask the server for its model, context and version.

        Waits up to `start_wait_s` for a server that is still loading. Raises EngineUnavailable.
        """
        self._calls.start()
        deadline = asyncio.get_running_loop().time() + self._server.start_wait_s
        while True:
            try:
                await self._introduce()
                return
            except EngineError as error:
                if asyncio.get_running_loop().time() >= deadline:
                    await self.close()
                    if isinstance(error, EngineUnavailable):
                        raise
                    raise EngineUnavailable(str(error)) from error
            await asyncio.sleep(0.25)

    async def healthy(self) -> bool:
        """Whether the server answers its health route within `probe_s`. Never raises."""
        try:
            hosted = self._server.dialect in ("model_studio", "openai")
            url = self._server.url("/models") if hosted else self._server.root_url("/health")
            await self._calls.probe(url)
            return True
        except EngineError:
            return False

    async def close(self) -> None:
        """Close every connection; running generations end with EngineUnavailable."""
        self._calls.close()

    async def _introduce(self) -> None:
        """Learn what the server tells about itself; what it does not tell stays as configured."""
        calls, server = self._calls, self._server
        models = _decode_or_empty(_Models, await calls.probe(server.url("/models")))
        wanted = server.upstream_model
        names = [model.id for model in models.data]
        if wanted is not None and names and server.dialect == "vllm" and wanted not in names:
            raise EngineUnavailable(
                f"{server.name} serves {', '.join(names[:10])}, not {wanted!r}; "
                "set upstream_model to one of them"
            )
        served = [model for model in models.data if wanted is None or model.id == wanted]
        context = served[0].max_model_len if served else None
        version = server.version
        if server.dialect == "llama_server":
            props = _decode_or_empty(_Props, await calls.probe(server.root_url("/props")))
            context = context or props.default_generation_settings.n_ctx
            version = version or props.build_info
        elif version is None and server.dialect in _VERSION_ROUTES:
            route = _VERSION_ROUTES[server.dialect]
            answer = await calls.probe(server.root_url(route))
            version = _decode_or_empty(_Version, answer).version
        self._identity = msgspec.structs.replace(self._identity, version=version or "unknown")
        if self._capabilities.context_tokens is None:
            self._capabilities = msgspec.structs.replace(self._capabilities, context_tokens=context)
