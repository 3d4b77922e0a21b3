"""A whole studio on a real socket, in the test's own event loop, over a real upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.core.money import Money
from qwenstack.studio.accounts import create_key, create_workspace, find_workspace, top_up
from qwenstack.studio.charge import Charge
from qwenstack.studio.deployments import Deployments
from qwenstack.studio.engine_factory import build_deployment
from qwenstack.studio.http.app import App
from qwenstack.studio.http.routes import Studio
from qwenstack.studio.http.server import base_url, listen, make_server
from qwenstack.studio.installation import DATABASE_NAME, Installation
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.observability.watchers import Watchers
from qwenstack.studio.observers import Observer, Silent
from qwenstack.studio.settings import (
    AdmissionSettings,
    DatabaseSettings,
    DeploymentSettings,
    RemoteSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
)
from qwenstack.studio.usage import read_charges
from tests.migrated import lay_database

MODEL = "m"
PROMPT_TOKENS = 10


class Upstream:
    """An OpenAI-compatible server that answers `tokens` tokens, one a chunk, `pause_s` apart.

    `gate`, when set, holds every answer back until it is opened; `before_end` is called before the
    last chunk, `break_after` chunks the connection is cut.
    """

    def __init__(self) -> None:
        self.tokens = 5
        self.pause_s = 0.0
        self.usage: dict[str, Any] | None = None
        self.gate: asyncio.Event | None = None
        self.break_after: int | None = None
        self.hang_after: int | None = None
        self.status = 200
        self.tokenizes = False
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.running_max = 0
        self.cancelled = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/tokenize", self._tokenize)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            raise web.HTTPNotFound
        return web.json_response({"count": PROMPT_TOKENS, "tokens": [0] * PROMPT_TOKENS})

    async def _embed(self, request: web.Request) -> web.Response:
        inputs = (await request.json())["input"]
        data = [{"index": index, "embedding": [0.6, 0.8]} for index in range(len(inputs))]
        return web.json_response({"data": data, "usage": {"prompt_tokens": len(inputs)}})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await self._answer(request, response)
        except (ConnectionError, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return response

    async def _answer(self, request: web.Request, response: web.StreamResponse) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await response.prepare(request)
        for number in range(1, self.tokens + 1):
            await response.write(self._chunk({"content": "x"}, number))
            if self.break_after == number and request.transport is not None:
                request.transport.abort()
                return
            if self.hang_after == number:
                await asyncio.sleep(3600)
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
        end = _event({"choices": [], "usage": self.usage or self._counts(self.tokens)})
        await response.write(self._chunk({}, self.tokens, "stop") + end + b"data: [DONE]\n\n")

    def _chunk(self, delta: dict[str, str], tokens: int, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _event({"choices": [choice], "usage": self._counts(tokens)})

    def _counts(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class RunningStudio:
    """What a test needs of a studio: its URL, its insides, and shortcuts to its ledger."""

    def __init__(
        self, installation: Installation, studio: Studio, url: str, upstream: Upstream
    ) -> None:
        self.installation = installation
        self.studio = studio
        self.url = url
        self.upstream = upstream
        self.session = aiohttp.ClientSession()

    async def act(self, what: Callable[[Connection], Any]) -> Any:
        """Do something to the database as another process would, and let the studio see it."""

        def run() -> Any:
            with self.installation.database.begin() as connection:
                return what(connection)

        await self.installation.journal.written()
        result = await asyncio.to_thread(run)
        await self.installation.tenants.follow()
        return result

    async def tenant(self, name: str = "acme", *, money: str | None = "100", **fields: Any) -> str:
        """A workspace with a key, whose secret this is."""

        def make(connection: Connection) -> str:
            workspace = create_workspace(connection, actor="test", name=name, **fields)
            if money is not None:
                amount = Money(int(float(money) * 1_000_000), workspace.currency)
                top_up(connection, actor="test", workspace=workspace, amount=amount, memo="")
            _, key = create_key(connection, actor="test", workspace_id=workspace.id, name="k")
            return key.secret

        secret: str = await self.act(make)
        return secret

    async def chat(self, key: str, **fields: Any) -> aiohttp.ClientResponse:
        """POST a chat completion; the answer's head."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.session.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
        )

    async def charges(self) -> list[Charge]:
        """Every charge that was not taken back."""
        charges: list[Charge] = await self.act(
            lambda connection: list(read_charges(connection, start_us=0, end_us=2**62))
        )
        return charges

    async def balance_micro(self, name: str = "acme") -> int:
        """A workspace's balance on the ledger."""
        balance: int = await self.act(
            lambda connection: read_standing(connection).balances.get(
                find_workspace(connection, name).id, 0
            )
        )
        return balance

    async def problems(self) -> list[str]:
        """What does not hold in the ledger."""
        problems: list[str] = await self.act(verify_ledger)
        return problems


@contextlib.asynccontextmanager
async def running_studio(
    home: Path,
    *,
    upstream: Upstream | None = None,
    database_url: str = "",
    valkey_url: str = "",
    engine: dict[str, Any] | None = None,
    observer: Observer | None = None,
    server: ServerSettings | None = None,
    telemetry: TelemetrySettings | None = None,
    **deployment: Any,
) -> AsyncIterator[RunningStudio]:
    """Serve model `m` on `upstream` until the block ends; `/metrics` too where Watchers observe."""
    upstream = upstream or Upstream()
    async with upstream.serving():
        remote = RemoteSettings(
            **{"urls": (upstream.url,), "upstream_model": "m", "dialect": "vllm", **(engine or {})}
        )
        fields = {"name": MODEL, "max_output_tokens": 100, **deployment}
        settings = Settings(
            database=DatabaseSettings(url=database_url),
            admission=AdmissionSettings(url=valkey_url),
            server=server or ServerSettings(),
            telemetry=telemetry or TelemetrySettings(),
            deployments=(DeploymentSettings(engine=remote, **fields),),
        )
        async with serve(settings, home, upstream, observer) as studio:
            yield studio


@contextlib.asynccontextmanager
async def serve(
    settings: Settings, home: Path, upstream: Upstream, observer: Observer | None = None
) -> AsyncIterator[RunningStudio]:
    """Serve `settings` on a free port."""
    deployments = Deployments(
        build_deployment(each, settings.admission, cache=home / "models", building=_Quiet())
        for each in settings.deployments
    )
    for deployment in deployments:
        await deployment.engine.start()
    if not settings.database.url:
        lay_database(home / DATABASE_NAME)
    installation = await Installation.open(settings, home, deployments, observer or Silent())
    metrics = observer.metrics if isinstance(observer, Watchers) else None
    if metrics is not None:
        metrics.watch(installation)
    studio = Studio(installation, metrics)
    studio.batches.background.start()
    listener = listen("127.0.0.1", 0)
    running = RunningStudio(installation, studio, base_url(listener), upstream)
    try:
        async with _listening(studio.app, listener), running.session:
            yield running
    finally:
        await studio.batches.background.stop()
        await installation.close()
        for deployment in deployments:
            await deployment.engine.close()


@contextlib.asynccontextmanager
async def _listening(app: App, listener: socket.socket) -> AsyncIterator[None]:
    """The product's HTTP server without its main loop, which asks ten times a second for its end.

    What is still open at the end is drained as the server does it.
    """
    server = make_server(app, 1.0)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    await server.on_tick(0)
    try:
        yield
    finally:
        await asyncio.sleep(0.005)  # until the server has seen who hung up
        if server.server_state.connections or server.server_state.tasks:
            await server.shutdown(sockets=[listener])
        for each in server.servers:
            each.close()


class _Quiet:
    def obtaining(self, progress: object) -> None:
        pass

    def loading(self, share: float) -> None:
        pass
