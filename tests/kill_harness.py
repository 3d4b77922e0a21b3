"""Kills the server with SIGKILL at random instants under streaming clients, and audits the ledger.

    python -m tests.kill_harness --kills 100 [--database postgresql://…]

The server is the real command, the database the real one, the upstream a real socket that streams
one token a chunk and says its running count with each, as vLLM does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from sqlalchemy import func, select

from qwenstack.core.money import Money
from qwenstack.storage import tables
from qwenstack.studio.accounts import create_key, create_workspace, top_up
from qwenstack.studio.installation import prepare
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.settings import DatabaseSettings, Settings

PROMPT_TOKENS = 7
CLIENTS = 16
_START_TIMEOUT_S = 60.0


class Seen(msgspec.Struct):
    """What a client saw of one request."""

    tokens: int = 0
    whole: bool = False
    usage: tuple[int, int] | None = None


class Report(msgspec.Struct, frozen=True):
    """The outcome of a run. `problems` must be empty."""

    kills: int
    requests_seen: int
    whole: int
    charges: int
    interrupted: int
    problems: list[str]


class Upstream:
    """Streams 5 to 60 tokens, one a chunk, a few milliseconds apart."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        # A killed server breaks its connections off here too; that is no error to report.
        logging.getLogger("aiohttp.server").disabled = True
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{port}/v1"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        count, pause_s = random.randint(5, 60), random.choice((0, 0.002, 0.01))
        try:
            for number in range(1, count + 1):
                await response.write(_chunk({"content": "x"}, number))
                if pause_s:
                    await asyncio.sleep(pause_s)
            await response.write(_chunk({}, count, "stop") + _usage(count) + b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # the server that asked was killed: that is what all this is about
        return response


def _chunk(delta: dict[str, str], tokens: int, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({"choices": [choice], "usage": _counts(tokens)})


def _usage(tokens: int) -> bytes:
    return _event({"choices": [], "usage": _counts(tokens)})


def _counts(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class Server:
    """The real `qwenstack serve`, started again after each kill on the same port."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._port = port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        log = (self._home / "server.log").open("ab")
        command = [sys.executable, "-m", "qwenstack.cli.main", "serve", "--port", str(self._port)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "QWENSTACK_HOME": str(self._home)},
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + _START_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError((self._home / "server.log").read_text()[-2000:])
                try:
                    async with session.get(f"http://127.0.0.1:{self._port}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)
        raise RuntimeError("the server did not become ready")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 30)


async def _client(url: str, key: str, seen: dict[str, Seen], stop: asyncio.Event) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "go"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            try:
                async with session.post(url, json=body, headers=headers) as answer:
                    if answer.status != 200:
                        await answer.read()
                        continue
                    mine = seen.setdefault(answer.headers["x-request-id"], Seen())
                    async for line in answer.content:
                        _take(line, mine)
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.02)


def _take(line: bytes, mine: Seen) -> None:
    if not line.startswith(b"data: ") or not line.endswith(b"\n"):
        return
    if line == b"data: [DONE]\n":
        mine.whole = True
        return
    event = json.loads(line[6:])
    if "error" in event:
        return
    for choice in event["choices"]:
        mine.tokens += len(choice["delta"].get("content") or "")
    if event.get("usage"):
        usage = event["usage"]
        mine.usage = (usage["prompt_tokens"], usage["completion_tokens"])


async def run(home: Path, kills: int, database_url: str = "", seed: int | None = None) -> Report:
    """Kill the server `kills` times and audit what is left."""
    chance = random.Random(seed)
    upstream = Upstream()
    await upstream.start()
    settings = Settings(database=DatabaseSettings(url=database_url))
    key = make_tenant(settings, home)
    write_settings(home, upstream.url, database_url)
    server = Server(home, free_port())
    seen: dict[str, Seen] = {}
    stop = asyncio.Event()
    url = f"{server.url}/chat/completions"
    clients = [asyncio.create_task(_client(url, key, seen, stop)) for _ in range(CLIENTS)]
    try:
        for number in range(kills):
            await server.start()
            await asyncio.sleep(chance.uniform(0.05, 0.9))
            server.kill()
            if sys.stderr.isatty():
                print(f"\rkill {number + 1} of {kills}", end="", file=sys.stderr)
        await server.start()
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*clients)
        if database_url:
            # The streams of the last killed worker are settled once its lease is over.
            await _wait_for_recovery(settings, home)
        await server.terminate()
    finally:
        stop.set()
        for client in clients:
            client.cancel()
        if server.process is not None and server.process.poll() is None:
            server.kill()
        await upstream.stop()
    return audit(settings, home, kills, seen)


async def _wait_for_recovery(settings: Settings, home: Path) -> None:
    database = prepare(settings, home)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            with database.begin() as connection:
                left = connection.scalar(select(func.count()).select_from(tables.open_streams))
            if not left:
                return
            await asyncio.sleep(0.5)
    finally:
        database.dispose()


def audit(settings: Settings, home: Path, kills: int, seen: dict[str, Seen]) -> Report:
    """Compare what the clients saw with what the ledger holds."""
    database = prepare(settings, home)
    with database.begin() as connection:
        problems = verify_ledger(connection)
        charges = {row.request_id: row for row in connection.execute(select(tables.charges))}
        left = connection.scalar(select(func.count()).select_from(tables.open_streams))
    database.dispose()
    if left:
        problems.append(f"{left} streams are still open")
    for request_id, mine in seen.items():
        charge = charges.get(request_id)
        if mine.whole and charge is None:
            problems.append(f"{request_id} was seen whole and is not billed")
        elif mine.whole and charge is not None and charge.outcome != "complete":
            problems.append(f"{request_id} was seen whole and is billed as {charge.outcome}")
        elif mine.whole and charge is not None:
            billed = (charge.prompt_tokens, charge.completion_tokens)
            if billed != mine.usage or mine.tokens != charge.completion_tokens:
                problems.append(f"{request_id} saw {mine.usage} and is billed {billed}")
    for request_id, charge in charges.items():
        mine = seen.get(request_id, Seen())
        if charge.completion_tokens > mine.tokens:
            problems.append(
                f"{request_id} is billed {charge.completion_tokens} tokens ({charge.outcome}) and "
                f"its client got {mine.tokens}"
            )
    return Report(
        kills=kills,
        requests_seen=len(seen),
        whole=sum(mine.whole for mine in seen.values()),
        charges=len(charges),
        interrupted=sum(charge.outcome == "interrupted" for charge in charges.values()),
        problems=problems,
    )


def make_tenant(settings: Settings, home: Path) -> str:
    """A workspace with money; its key."""
    database = prepare(settings, home)
    with database.begin() as connection:
        workspace = create_workspace(connection, actor="harness", name="harness")
        top_up(
            connection,
            actor="harness",
            workspace=workspace,
            amount=Money(10**12, "USD"),
            memo="for the harness",
        )
        _, key = create_key(connection, actor="harness", workspace_id=workspace.id, name="h")
    database.dispose()
    return key.secret


def write_settings(home: Path, upstream_url: str, database_url: str) -> None:
    """Configure the home folder to serve `m` from the upstream."""
    (home / "qwenstack.toml").write_text(
        f"""
[database]
url = "{database_url}"
[[deployments]]
name = "m"
max_output_tokens = 100
engine = {{kind = "openai_http", urls = ["{upstream_url}"], upstream_model = "m", dialect = "vllm"}}
"""
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", default="")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(run(Path(folder), arguments.kills, arguments.database, arguments.seed))
    print(msgspec.json.format(msgspec.json.encode(report)).decode())
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
