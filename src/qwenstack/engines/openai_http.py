"""An OpenAI-compatible server as an engine: vLLM, SGLang, llama-server, Model Studio, or another.

One replica; `replicas` puts several behind the same interface.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step
from qwenstack.engines.interface import (
    Capabilities,
    EngineError,
    EngineIdentity,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
)
from qwenstack.engines.openai_body import (
    Wording,
    encode_chat_prompt,
    encode_embeddings,
    encode_generation,
    encode_text_prompt,
)
from qwenstack.engines.openai_errors import decode_error
from qwenstack.engines.openai_wire import StreamDecoder, decode_embeddings
from qwenstack.engines.sse import DEFAULT_MAX_EVENT_BYTES, EventSplitter

_ERROR_BODY_BYTES_MAX = 64 * 1024
_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_READ_BUFFER_BYTES = 256 * 1024
_HEALTH_TIMEOUT_S = 3.0


class RemoteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is and how to treat it.

    `base_url` goes up to and with `/v1`. Time-outs: `connect`, until the first byte of an answer
    (prefill may take long), and between two reads of a stream. `reuse_connections` off makes one
    for each request: right where connecting costs nothing and an idle one costs the server.
    """

    base_url: str
    api_key: str = ""
    wording: Wording = Wording()
    connections_max: int = 256
    reuse_connections: bool = True
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    event_bytes_max: int = DEFAULT_MAX_EVENT_BYTES


class OpenAiHttp:
    """The engine at one base URL. Its connections are kept alive and shared by all requests."""

    def __init__(
        self, options: RemoteOptions, identity: EngineIdentity, capabilities: Capabilities
    ) -> None:
        self._options = options
        self._identity = identity
        counts = options.wording.dialect in ("vllm", "llama_server")
        self._capabilities = msgspec.structs.replace(
            capabilities, running_usage=options.wording.running_usage, counts_prompts=counts
        )
        base = options.base_url.rstrip("/")
        root = base.removesuffix("/v1")
        self._chat = URL(f"{base}/chat/completions")
        self._completions = URL(f"{base}/completions")
        self._embeddings = URL(f"{base}/embeddings")
        self._models = URL(f"{base}/models")
        self._tokenize = URL(f"{root}/tokenize")
        self._template = URL(f"{root}/apply-template")
        # Whole, so that the client has nothing to add to each request.
        self._headers = CIMultiDict(
            {
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "qwenstack",
            }
        )
        if options.api_key:
            self._headers["Authorization"] = f"Bearer {options.api_key}"
        self._session: aiohttp.ClientSession | None = None

    @property
    def identity(self) -> EngineIdentity:
        """What runs, and where."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return self._capabilities

    async def start(self) -> None:
        """Open the pool; raises EngineUnavailable when the server is not there."""
        if self._session is None:
            self._session = self._open_session()
        if not await self.healthy():
            raise EngineUnavailable(f"no OpenAI-compatible server answers at {self._models}")

    async def close(self) -> None:
        """Close the pool; running generations end with EngineUnavailable."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def healthy(self) -> bool:
        """Whether the server lists its models."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                async with self._opened().get(
                    self._models, headers=self._headers, allow_redirects=False
                ) as response:
                    return response.status < 500 and response.status not in (401, 403)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run `request` as a stream: one step a network read. Closing it closes the connection."""
        options = self._options
        url = self._chat if request.prompt is None else self._completions
        decoder = StreamDecoder(request.n)
        splitter = EventSplitter(options.event_bytes_max)
        response = await self._ask(url, encode_generation(request, options.wording))
        try:
            content = response.content
            while read := await content.readany():
                step = decoder.step(splitter.feed(read))
                if step is None:
                    continue
                yield step
                if step.final:
                    await _read_end(content)
                    return
            for step in (decoder.step(splitter.flush()), decoder.end()):
                if step is not None:
                    yield step
        except (aiohttp.ClientError, OSError) as error:
            raise self._trouble(error) from error
        finally:
            # Releases a connection that was read to its end, closes one that was not: an unread
            # rest means that the server still generates, and closing cancels it.
            response.close()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed every input in one call."""
        body = encode_embeddings(request, self._options.wording)
        return decode_embeddings(await self._post_whole(self._embeddings, body), request)

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """The server's own count; only with the dialects that have a route for it."""
        if isinstance(request, EmbeddingRequest):
            counts = [await self._count(item, special=True) for item in request.inputs]
            return sum(counts)
        if request.prompt is not None:
            return await self._count(request.prompt, special=True)
        wording = self._options.wording
        body = encode_chat_prompt(request, wording)
        if wording.dialect == "llama_server":
            prompt = _field(await self._post_whole(self._template, body), "prompt")
            return await self._count(str(prompt), special=True)
        return _number(await self._post_whole(self._tokenize, body), "count")

    async def count_text(self, text: str) -> int:
        """The server's own count of generated text."""
        return await self._count(text, special=False)

    async def _count(self, text: str | tuple[int, ...], *, special: bool) -> int:
        if not isinstance(text, str):
            return len(text)
        wording = self._options.wording
        body = encode_text_prompt(text, "", wording, special=special)
        answer = await self._post_whole(self._tokenize, body)
        if wording.dialect != "llama_server":
            return _number(answer, "count")
        tokens = _field(answer, "tokens")
        if not isinstance(tokens, list):
            raise EngineProtocolError("the engine counted tokens without giving any")
        return len(tokens)

    async def post(self, route: str, body: bytes) -> bytes:
        """Call another route of the server (from its root, such as `/slots`); the whole answer."""
        root = str(self._tokenize).removesuffix("/tokenize")
        return await self._post_whole(URL(root + route), body)

    async def _post_whole(self, url: URL, body: bytes) -> bytes:
        response = await self._ask(url, body)
        try:
            return await _read_at_most(response.content, _ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, OSError) as error:
            raise self._trouble(error) from error
        finally:
            response.close()

    async def _ask(self, url: URL, body: bytes) -> aiohttp.ClientResponse:
        """A 200 answer whose body is still to be read; raises EngineError for anything else."""
        try:
            response = await self._opened()._request(
                "POST", url, data=body, headers=self._headers, allow_redirects=False
            )
            if response.status != 200:
                try:
                    refused = await _read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
                finally:
                    response.close()
                raise decode_error(response.status, refused, hide=(self._options.api_key,))
        except (aiohttp.ClientError, OSError) as error:
            raise self._trouble(error) from error
        if response.connection is not None and response.connection.protocol is not None:
            # The head took as long as prefill does; from here on silence means something else.
            response.connection.protocol.read_timeout = self._options.idle_timeout_s
        return response

    def _trouble(self, error: Exception) -> EngineError:
        """What a failure of the connection stands for; hosts are for the log, not for callers."""
        if isinstance(error, aiohttp.ServerTimeoutError):
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                return EngineUnavailable("the engine takes no connection in time")
            return EngineTimeout("the engine fell silent")
        if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)):
            return EngineUnavailable(f"the engine broke off: {error}")
        return EngineProtocolError(f"the engine sent no HTTP: {error}")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session

    def _open_session(self) -> aiohttp.ClientSession:
        options = self._options
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=options.connections_max,
                keepalive_timeout=30.0 if options.reuse_connections else None,
                force_close=not options.reuse_connections,
                ttl_dns_cache=60,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=options.connect_timeout_s,
                sock_read=options.first_byte_timeout_s,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER_BYTES,
            raise_for_status=False,
        )


async def _read_end(content: aiohttp.StreamReader) -> None:
    """Take in the end of the body, which follows the last event, so that the connection lives on.

    A server that keeps the body open after its end is not waited for.
    """
    if content.at_eof():
        return
    try:
        async with asyncio.timeout(0.05):
            while not content.at_eof():
                await content.readany()
    except TimeoutError:
        return


async def _read_at_most(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    body = bytearray()
    while read := await content.readany():
        body += read
        if len(body) > bytes_max:
            raise EngineProtocolError(f"the engine sent more than {bytes_max} bytes")
    return bytes(body)


def _field(body: bytes, name: str) -> object:
    try:
        decoded = json.loads(body)
        return decoded[name]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineProtocolError(f"the engine's answer has no {name!r}") from error


def _number(body: bytes, name: str) -> int:
    value = _field(body, name)
    if not isinstance(value, int) or value < 0:
        raise EngineProtocolError(f"the engine gave {value!r} for {name!r}")
    return value
