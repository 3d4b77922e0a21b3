"""A real HTTP server that wires every surface to canned steps, one list for each model name.

It stands in for admission, ledger and engine only: what crosses the wire is the surfaces' own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from qwenstack.core.generation import CompletionBuilder, EmbeddingResult, Step
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.http.server import listen
from qwenstack.studio.surfaces import (
    anthropic_errors,
    dashscope_errors,
    openai_errors,
    openai_models,
)
from qwenstack.studio.surfaces.anthropic import AnthropicMessages, AnthropicTokenCount
from qwenstack.studio.surfaces.dashscope import DashScopeEmbeddings, DashScopeGeneration
from qwenstack.studio.surfaces.interface import (
    Call,
    EmbeddingSurface,
    GenerationSurface,
    Reply,
)
from qwenstack.studio.surfaces.openai_chat import ChatSurface
from qwenstack.studio.surfaces.openai_completions import CompletionsSurface
from qwenstack.studio.surfaces.openai_embeddings import EmbeddingsSurface
from qwenstack.studio.surfaces.openai_responses import ResponsesSurface

Script = list[Step | Refusal]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

REQUEST_ID = "req_canned"
CREATED = 1_700_000_000
KEY = b"Bearer sk-canned"
COUNTED_TOKENS = 11
AIGC = "/api/v1/services/aigc"


class CannedServer:
    """Serves `scripts` under http://127.0.0.1:port (`host`) until `close`.

    `base_url` is for OpenAI's client, `dashscope_url` for DashScope's; Anthropic's takes the host.
    """

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.scripts = scripts
        self.calls: list[Call] = []
        self._routes: dict[str, GenerationSurface] = {
            "/v1/chat/completions": ChatSurface(),
            "/v1/completions": CompletionsSurface(),
            "/v1/responses": ResponsesSurface(),
            "/v1/messages": AnthropicMessages(),
            f"{AIGC}/text-generation/generation": DashScopeGeneration(multimodal=False),
            f"{AIGC}/multimodal-generation/generation": DashScopeGeneration(multimodal=True),
        }
        self._embeddings: dict[str, EmbeddingSurface] = {
            "/v1/embeddings": EmbeddingsSurface(),
            "/api/v1/services/embeddings/text-embedding/text-embedding": DashScopeEmbeddings(),
        }
        self._socket = listen("127.0.0.1", 0)
        self.host = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.base_url = f"{self.host}/v1"
        self.dashscope_url = f"{self.host}/api/v1"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app, interface="asgi3", log_level="error", lifespan="off", http="httptools"
            )
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        assert not self._thread.is_alive()

    async def _app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            await self._answer(scope, body, send)
        except Refusal as refusal:
            await _reply(send, _refuse(scope["path"], refusal))

    async def _answer(self, scope: MutableMapping[str, Any], body: bytes, send: Send) -> None:
        headers = dict(scope["headers"])
        if headers.get(b"authorization") != KEY:
            raise Refusal(RefusalKind.INVALID_KEY, "Incorrect API key provided.")
        path = scope["path"]
        cards = [openai_models.ModelCard(name, CREATED, "qwenstack") for name in self.scripts]
        if path == "/v1/models":
            await _reply(send, Reply(200, openai_models.encode_models(cards)))
        elif path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            await _reply(send, Reply(200, openai_models.encode_model(cards, name)))
        elif path == "/v1/messages/count_tokens":
            counting = AnthropicTokenCount()
            counting.parse(body)
            await _reply(send, Reply(200, counting.encode(COUNTED_TOKENS)))
        elif path in self._embeddings:
            embeddings = self._embeddings[path]
            embedding = embeddings.parse(body, headers)
            vectors = tuple((0.5, float(index)) for index in range(len(embedding.request.inputs)))
            result = EmbeddingResult(vectors, TokenUsage(prompt=3))
            answer = embeddings.encode(embedding, result, REQUEST_ID, CREATED)
            await _reply(send, Reply(200, answer))
        else:
            surface = self._routes[path]
            call = surface.parse(body, headers)
            self.calls.append(call)
            await self._generate(surface, call, send)

    async def _generate(self, surface: GenerationSurface, call: Call, send: Send) -> None:
        script = self.scripts.get(call.request.model)
        if script is None:
            raise Refusal(RefusalKind.MODEL_NOT_FOUND, "No such model.", param="model")
        if isinstance(script[0], Refusal):
            raise script[0]
        if not call.stream:
            builder = CompletionBuilder()
            for step in script:
                if isinstance(step, Refusal):
                    raise step
                builder.add(step)
            answer = surface.encode(call, builder.build(), REQUEST_ID, CREATED)
            await _reply(send, Reply(200, answer))
            return
        encoder = surface.encoder(call, REQUEST_ID, CREATED)
        await _start(send, 200, surface.stream_content_type)
        await _body(send, encoder.start(), more=True)
        for step in script:
            if isinstance(step, Refusal):
                await _body(send, encoder.fail(step), more=False)
                return
            data = encoder.finish(step) if step.final else encoder.step(step)
            await _body(send, data, more=not step.final)


def _refuse(path: str, refusal: Refusal) -> Reply:
    if path.startswith("/api/v1"):
        return dashscope_errors.refuse(refusal, REQUEST_ID)
    if path.startswith("/v1/messages"):
        return anthropic_errors.refuse(refusal, REQUEST_ID)
    return openai_errors.refuse(refusal, REQUEST_ID)


async def _start(
    send: Send, status: int, content_type: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    ids = [(b"x-request-id", REQUEST_ID.encode()), (b"request-id", REQUEST_ID.encode())]
    headers = [(b"content-type", content_type), *ids, *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _reply(send: Send, reply: Reply) -> None:
    await _start(send, reply.status, reply.content_type, reply.headers)
    await _body(send, reply.body, more=False)
