"""Inference on one OpenAI-compatible server over HTTP: vLLM, SGLang, llama-server, Model Studio.

The hot path is `OpenAIEngine.generate`: one pooled connection, one encoded body, and one `Step` for
each network read, however many events it brought.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import msgspec
from yarl import URL

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step
from qwenstack.core.trace_context import TraceContext
from qwenstack.engines.http_connection import ConnectionLost, HttpConnection, NotHttp
from qwenstack.engines.http_pool import CannotConnect, HttpPool, NoConnectionInTime
from qwenstack.engines.interface import (
    Capabilities,
    EngineError,
    EngineIdentity,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.openai_body import (
    encode_chat_prompt,
    encode_embeddings,
    encode_generation,
    encode_text_prompt,
)
from qwenstack.engines.openai_errors import decode_error
from qwenstack.engines.openai_settings import OpenAIServer
from qwenstack.engines.openai_wire import StreamDecoder, decode_completion, decode_embeddings
from qwenstack.engines.sse import EventSplitter

_ERROR_BODY_BYTES_MAX = 64 * 1024
_DRAIN_S = 1.0
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


class _Exchange:
    """One request in flight.

    `waiting_since` is when the current read began, inf between reads. `whole` is set once the
    answer's last event is here, though not yet the end of its body.
    """

    __slots__ = ("connection", "limit_s", "started", "waiting_since", "whole")

    def __init__(self, connection: HttpConnection, started: float, limit_s: float) -> None:
        self.connection = connection
        self.started = started
        self.limit_s = limit_s
        self.waiting_since = started
        self.whole = False


class _Closed(Exception):
    """The engine was closed under a read."""


class _Silent(Exception):
    """A read has waited for too long."""


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
        self._hidden = () if server.api_key is None else (server.api_key,)
        self._head = _request_head(self._chat_url, server.headers())
        self._pool: HttpPool | None = None
        self._exchanges: set[_Exchange] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        shortest = min(server.first_byte_s, server.idle_s, server.total_s)
        self._sweep_s = min(1.0, shortest / 4)

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
        exchange = await self._open(url, body, trace=request.trace)
        connection = exchange.connection
        one_call = not request.parallel_tool_calls
        try:
            if connection.status != 200:
                raise await self._refusal(exchange)
            if not connection.content_type.startswith("text/event-stream"):
                body = await self._body(exchange, self._server.max_body_bytes)
                yield decode_completion(body, request.n, one_call=one_call)
                return
            decoder = StreamDecoder(request.n, hide=self._hidden, one_call=one_call)
            splitter = EventSplitter(self._server.max_event_bytes)
            while not decoder.done:
                read = await self._read(exchange, decoder.began)
                step = decoder.step(splitter.feed(read) if read else splitter.flush())
                exchange.whole = decoder.done
                if step is not None:
                    yield step
                if not read and not decoder.done:
                    yield self._end(decoder)
        finally:
            self._finish(exchange)

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
        answer = await self._call(self._server.url("/embeddings"), body, trace=request.trace)
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
            return _token_count(await self._call(self._server.root_url("/tokenize"), body))
        prompt = await self.render_prompt(request)
        return await self._tokenize(prompt, request.model, special=True)

    async def render_prompt(self, request: GenerationRequest) -> str:
        """The chat as the model's template writes it (llama-server only)."""
        body = encode_chat_prompt(request, self._wording)
        answer = await self._call(self._server.root_url("/apply-template"), body)
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
        return _token_count(await self._call(self._server.root_url("/tokenize"), body))

    def _require_counting(self) -> None:
        if not self._capabilities.counts_prompts:
            raise EngineRejected(f"a server of dialect {self._server.dialect} counts no prompts")

    # --- Life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool and ask the server for its model, context and version.

        Waits up to `start_wait_s` for a server that is still loading. Raises EngineUnavailable.
        """
        if self._pool is None:
            self._pool = self._make_pool()
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
            await self._probe(url)
            return True
        except EngineError:
            return False

    async def close(self) -> None:
        """Close every connection; running generations end with EngineUnavailable."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for exchange in self._exchanges:
            exchange.connection.fail(_Closed())
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        pool.close()

    def _make_pool(self) -> HttpPool:
        server = self._server
        return HttpPool(
            self._chat_url,
            connections_max=server.max_connections,
            keepalive_s=server.keepalive_s,
            connect_s=server.connect_s,
            wait_s=server.pool_wait_s,
            buffer_bytes=server.read_buffer_bytes,
        )

    async def _introduce(self) -> None:
        """Learn what the server tells about itself; what it does not tell stays as configured."""
        models = _decode_or_empty(_Models, await self._probe(self._server.url("/models")))
        wanted = self._server.upstream_model
        names = [model.id for model in models.data]
        if wanted is not None and names and self._server.dialect == "vllm" and wanted not in names:
            raise EngineUnavailable(
                f"{self._server.name} serves {', '.join(names[:10])}, not {wanted!r}; "
                "set upstream_model to one of them"
            )
        served = [model for model in models.data if wanted is None or model.id == wanted]
        context = served[0].max_model_len if served else None
        version = self._server.version
        if self._server.dialect == "llama_server":
            props = _decode_or_empty(_Props, await self._probe(self._server.root_url("/props")))
            context = context or props.default_generation_settings.n_ctx
            version = version or props.build_info
        elif version is None and self._server.dialect in _VERSION_ROUTES:
            route = _VERSION_ROUTES[self._server.dialect]
            answer = await self._probe(self._server.root_url(route))
            version = _decode_or_empty(_Version, answer).version
        self._identity = msgspec.structs.replace(self._identity, version=version or "unknown")
        if self._capabilities.context_tokens is None:
            self._capabilities = msgspec.structs.replace(self._capabilities, context_tokens=context)

    # --- Exchanges ------------------------------------------------------------------------------

    async def _open(
        self,
        url: URL,
        body: bytes | None,
        method: str = "POST",
        trace: TraceContext | None = None,
    ) -> _Exchange:
        """Send a request and wait for the answer's head."""
        request = self._request(url, body, method, trace)
        fresh = False
        while True:
            exchange = await self._begin(fresh=fresh)
            connection = exchange.connection
            try:
                connection.send(request)
                await connection.head()
            except ConnectionLost as error:
                self._finish(exchange)
                # The server may close a pooled connection at the moment it is taken for reuse. One
                # more attempt tells that apart from a server that is really gone.
                if error.answered or not connection.reused:
                    raise EngineUnavailable(f"{self._server.name} closed the connection") from error
                fresh = True
            except NotHttp:
                self._finish(exchange)
                # Its words may quote what the server sent.
                raise EngineProtocolError(f"{self._server.name} sent what is not HTTP") from None
            except _Silent as error:
                self._finish(exchange)
                raise EngineTimeout(
                    f"{self._server.name} sent no answer within {self._server.first_byte_s:g} s"
                ) from error
            except _Closed as error:
                self._finish(exchange)
                raise EngineUnavailable(f"{self._server.name} was closed") from error
            except BaseException:
                self._finish(exchange)
                raise
            else:
                exchange.waiting_since = math.inf
                return exchange

    async def _begin(self, *, fresh: bool) -> _Exchange:
        """A connection for a request that is watched from now on."""
        server, pool = self._server, self._pool
        if pool is None:
            raise EngineUnavailable(f"{server.name} is not started")
        try:
            connection = await pool.take(fresh=fresh)
        except NoConnectionInTime as error:
            raise EngineUnavailable(f"{server.name} gave no connection in time") from error
        except CannotConnect as error:
            raise EngineUnavailable(f"{server.name} cannot be reached") from error
        loop = asyncio.get_running_loop()
        exchange = _Exchange(connection, loop.time(), server.first_byte_s)
        self._exchanges.add(exchange)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        return exchange

    def _request(
        self, url: URL, body: bytes | None, method: str, trace: TraceContext | None
    ) -> bytes:
        traced = "" if trace is None else _lines(trace.headers())
        return b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
            method.encode(),
            url.raw_path_qs.encode(),
            self._head,
            traced.encode(),
            len(body or b""),
            body or b"",
        )

    async def _read(self, exchange: _Exchange, began: bool = False) -> bytes:
        """All bytes that have come, at least one; empty at the clean end of the body."""
        exchange.waiting_since = asyncio.get_running_loop().time()
        try:
            read = await exchange.connection.read()
        except _Silent as error:
            raise EngineTimeout(
                f"{self._server.name} fell silent for {exchange.limit_s:g} s"
            ) from error
        except _Closed as error:
            raise EngineUnavailable(f"{self._server.name} was closed") from error
        except (ConnectionLost, NotHttp) as error:
            if self._pool is None:  # what ends with the engine need not have waited for it
                raise EngineUnavailable(f"{self._server.name} was closed") from error
            message = f"{self._server.name} broke its answer off"
            if began:
                raise EngineProtocolError(message) from error
            raise EngineUnavailable(message) from error
        exchange.waiting_since = math.inf
        exchange.limit_s = self._server.idle_s
        return read

    async def _body(self, exchange: _Exchange, limit_bytes: int) -> bytes:
        """A whole body of at most `limit_bytes`."""
        reads: list[bytes] = []
        size = 0
        while read := await self._read(exchange):
            size += len(read)
            if size > limit_bytes:
                raise EngineProtocolError(
                    f"{self._server.name} sent an answer of more than {limit_bytes} bytes"
                )
            reads.append(read)
        return b"".join(reads)

    async def _refusal(self, exchange: _Exchange) -> EngineError:
        """What an answer that is not 200 stands for."""
        try:
            body = await self._body(exchange, _ERROR_BODY_BYTES_MAX)
        except EngineError:
            body = b""  # the status alone says enough
        return decode_error(exchange.connection.status, body, hide=self._hidden)

    async def _call(self, url: URL, body: bytes, *, trace: TraceContext | None = None) -> bytes:
        """Exchange whole bodies."""
        exchange = await self._open(url, body, trace=trace)
        try:
            if exchange.connection.status != 200:
                raise await self._refusal(exchange)
            return await self._body(exchange, self._server.max_body_bytes)
        finally:
            self._finish(exchange)

    async def _probe(self, url: URL) -> bytes | None:
        """GET a route within `probe_s`; None where the server has no such route."""
        try:
            async with asyncio.timeout(self._server.probe_s):
                exchange = await self._open(url, None, "GET")
                try:
                    status = exchange.connection.status
                    if status in (404, 405, 501):
                        return None
                    if status != 200:
                        raise await self._refusal(exchange)
                    return await self._body(exchange, self._server.max_body_bytes)
                finally:
                    self._finish(exchange)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{self._server.name} did not answer within {self._server.probe_s:g} s"
            ) from error
        except EngineRejected as error:
            raise EngineUnavailable(f"{self._server.name} refuses to be probed") from error

    def _finish(self, exchange: _Exchange) -> None:
        """Give the connection back where its answer was read to the end, else close it.

        Closing is what cancels a generation in the server. Where only the end of the chunked body
        is still to come, it is read off the hot path, so that the connection is kept and the
        caller does not wait for it.
        """
        self._exchanges.discard(exchange)
        connection, pool = exchange.connection, self._pool
        if pool is None:
            connection.abort()
        elif connection.complete or not exchange.whole:
            pool.give_back(connection)
        else:
            late = asyncio.get_running_loop().call_later(_DRAIN_S, connection.abort)

            def ended() -> None:
                late.cancel()
                pool.give_back(connection)

            connection.when_ended(ended)

    def _sweep(self) -> None:
        """End the reads that have waited too long, all in one timer."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for exchange in self._exchanges:
            silent = now - exchange.waiting_since > exchange.limit_s
            if silent or (
                now - exchange.started > self._server.total_s and exchange.waiting_since < now
            ):
                exchange.connection.fail(_Silent())
        self._sweeper = loop.call_later(self._sweep_s, self._sweep) if self._exchanges else None


def _request_head(url: URL, headers: dict[str, str]) -> bytes:
    """The lines of a request's head that are the same for every request to a server."""
    return _lines({"Host": url.host_port_subcomponent or "", **headers}).encode("latin-1")


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
