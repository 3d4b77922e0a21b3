"""Kills the server with SIGKILL at random instants under streaming clients, and audits the ledger.

    python -m tests.kill_harness --kills 100 [--postgresql | --database postgresql://…]
    python -m tests.kill_harness --kills 100 --postgresql --workers 3

The server is the real command, the databases are real, the upstream a real socket that streams one
token a chunk and says its running count with each, as vLLM does. With several workers a kill hits
one of them, now and then all and their supervisor. Beside the clients that may do anything, a few
run against a limit: of money always, of rates where Valkey counts them (in one process a rate's
history goes with the process).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from sqlalchemy import Connection, func, select, update

from qwenstack.core.instants import now_us
from qwenstack.core.money import Money
from qwenstack.storage import tables
from qwenstack.studio.accounts import create_key, create_workspace, put_plan, top_up
from qwenstack.studio.admission.limits import Limit
from qwenstack.studio.installation import prepare
from qwenstack.studio.ledger.recovery import HEARTBEAT_S, LEASE_S
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.settings import DatabaseSettings, Settings
from qwenstack.studio.tenancy import Plan
from tests.component.postgresql_server import postgresql_server
from tests.component.valkey_server import ValkeyServer

PROMPT_TOKENS = 7
CLIENTS = 16
_START_TIMEOUT_S = 60.0
_ALL_AT_ONCE = 0.25
# From its admission to the upstream a request may take this long: what arrives within a minute less
# this was admitted within a minute.
_ON_THE_WAY_S = 2.0
_RICH_MICRO = 10**12


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace that sends its name as prompt, from `clients` clients, within `limit`."""

    name: str
    clients: int
    money_micro: int = _RICH_MICRO
    limit: Limit = Limit()


FREE = Tenant(name="harness", clients=CLIENTS)
HURRIED = Tenant(
    name="hurried", clients=2, limit=Limit(requests_per_minute=12, tokens_per_minute=1000)
)
NARROW = Tenant(name="narrow", clients=3, limit=Limit(concurrency=2))


class Report(msgspec.Struct, frozen=True):
    """The outcome of a run. `problems` must be empty."""

    kills: int
    requests_seen: int
    whole: int
    charges: int
    interrupted: int
    refused: int
    problems: list[str]


class Upstream:
    """Streams 5 to 60 tokens, one a chunk, a few milliseconds apart."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._running: Counter[str] = Counter()
        self.running_max: Counter[str] = Counter()
        self.arrivals: dict[str, list[float]] = {}
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
        who = (await request.json())["messages"][0]["content"]
        self.arrivals.setdefault(who, []).append(time.monotonic())
        self._running[who] += 1
        self.running_max[who] = max(self.running_max[who], self._running[who])
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        count, pause_s = random.randint(5, 60), random.choice((0, 0.002, 0.01))
        try:
            await response.prepare(request)
            for number in range(1, count + 1):
                await response.write(_chunk({"content": "x"}, number))
                if pause_s:
                    await asyncio.sleep(pause_s)
        except ConnectionError:
            return response  # the server that asked was killed: that is what all this is about
        finally:
            # Before the end is sent: who reads that may at once send the next.
            self._running[who] -= 1
        with contextlib.suppress(ConnectionError):
            await response.write(_chunk({}, count, "stop") + _usage(count) + b"data: [DONE]\n\n")
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

    def __init__(self, home: Path, port: int, workers: int = 1) -> None:
        self._home = home
        self._port = port
        self._workers = workers
        self.url = f"http://127.0.0.1:{port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        log = (self._home / "server.log").open("ab")
        command = [sys.executable, "-m", "qwenstack.cli.main", "serve", "--port", str(self._port)]
        self.process = subprocess.Popen(
            [*command, "--workers", str(self._workers)],
            env={**os.environ, "QWENSTACK_HOME": str(self._home)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        await self.ready()

    async def ready(self) -> None:
        """Wait until requests will be served."""
        assert self.process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=_START_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
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

    def workers(self) -> list[int]:
        """The process ids of the workers that live, where there are several."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(each) for each in children.read_text().split()]

    def kill(self) -> None:
        """End it all at once, workers and supervisor."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def kill_some(self, chance: random.Random) -> None:
        """Kill a random worker, or everything; what is served afterwards is up again."""
        if self._workers > 1 and chance.random() >= _ALL_AT_ONCE:
            while not (living := self.workers()):
                await asyncio.sleep(0.05)
            os.kill(chance.choice(living), signal.SIGKILL)
            return
        self.kill()
        await self.start()

    async def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 30)


class Seen(msgspec.Struct):
    """What a client saw of one request."""

    tokens: int = 0
    whole: bool = False
    usage: tuple[int, int] | None = None


class Clients:
    """Every tenant's clients, each one request after the other, and what they saw."""

    def __init__(self, url: str, keys: Sequence[tuple[Tenant, str]]) -> None:
        self.seen: dict[str, Seen] = {}
        self.refused = 0
        self._stop = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._run(url, tenant.name, key))
            for tenant, key in keys
            for _ in range(tenant.clients)
        ]

    async def served(self, answers: int) -> None:
        """Wait until so many more have come whole; raises TimeoutError where nothing is served."""
        enough = self.whole() + answers
        async with asyncio.timeout(_START_TIMEOUT_S):
            while self.whole() < enough:  # they are counted line by line
                await asyncio.sleep(0.02)

    def whole(self) -> int:
        """How many have come whole."""
        return sum(mine.whole for mine in self.seen.values())

    async def finish(self) -> None:
        """Let each end its request."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """End them in the middle of what they do."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, url: str, name: str, key: str) -> None:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": name}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession() as session:
            while not self._stop.is_set():
                try:
                    async with session.post(url, json=body, headers=headers) as answer:
                        if answer.status != 200:
                            await answer.read()
                            self.refused += 1
                            await asyncio.sleep(0.05)
                            continue
                        mine = self.seen.setdefault(answer.headers["x-request-id"], Seen())
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


async def run(
    home: Path,
    kills: int,
    database_url: str = "",
    seed: int | None = None,
    *,
    workers: int = 1,
    admission_url: str = "",
) -> Report:
    """Kill the server `kills` times and audit what is left."""
    chance = random.Random(seed)
    upstream = Upstream()
    await upstream.start()
    settings = Settings(database=DatabaseSettings(url=database_url))
    # What its money covers runs out on the way: some two requests a kill.
    tenants = [FREE, Tenant(name="poor", clients=2, money_micro=4 * kills)]
    if admission_url:
        tenants += [HURRIED, NARROW]
    keys = [(each, make_tenant(settings, home, each)) for each in tenants]
    write_settings(home, upstream.url, database_url, admission_url)
    server = Server(home, free_port(), workers)
    await server.start()
    clients = Clients(f"{server.url}/chat/completions", keys)
    try:
        for number in range(kills):
            if workers > 1:
                # Some workers may be on their way back: no kill before there are streams to hit.
                await clients.served(CLIENTS)
            await asyncio.sleep(chance.uniform(0.05, 0.9))
            await server.kill_some(chance)
            if sys.stderr.isatty():
                print(f"\rkill {number + 1} of {kills}", end="", file=sys.stderr)
        await server.ready()
        await asyncio.sleep(0.3)
        await clients.finish()
        if database_url:
            # The streams of the last killed worker are settled once its lease is over.
            await _wait_for_recovery(settings, home)
        await server.terminate()
    finally:
        clients.cancel()
        if server.process is not None and server.process.poll() is None:
            server.kill()
        await upstream.stop()
    return audit(settings, home, kills, clients, upstream)


async def _wait_for_recovery(settings: Settings, home: Path) -> None:
    database = prepare(settings, home)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            with database.begin() as connection:
                if not _left_behind(connection):
                    return
                _end_leases(connection)
            await asyncio.sleep(0.2)
    finally:
        database.dispose()


def _end_leases(connection: Connection) -> None:
    """Let the lease of each worker that has missed a heartbeat be over: here it is dead, not slow.

    Nothing runs any more, so one that lives all the same loses nothing by it.
    """
    heard_us = tables.workers.c.heartbeat_us
    silent_us = now_us() - int((HEARTBEAT_S + 1) * 1e6)
    over = update(tables.workers).where(heard_us < silent_us)
    connection.execute(over.values(heartbeat_us=heard_us - LEASE_S * 1_000_000))


def audit(
    settings: Settings, home: Path, kills: int, clients: Clients, upstream: Upstream
) -> Report:
    """Compare what the clients saw with what the ledger holds."""
    database = prepare(settings, home)
    seen = clients.seen
    with database.begin() as connection:
        problems = verify_ledger(connection)
        charges = {row.request_id: row for row in connection.execute(select(tables.charges))}
        problems += _left_behind(connection) + _overrun(connection, upstream)
    database.dispose()
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
        whole=clients.whole(),
        charges=len(charges),
        interrupted=sum(charge.outcome == "interrupted" for charge in charges.values()),
        refused=clients.refused,
        problems=problems,
    )


def _left_behind(connection: Connection) -> list[str]:
    """What nobody runs any more and still stands open."""
    found = []
    for table in (tables.open_streams, tables.holds):
        if left := connection.scalar(select(func.count()).select_from(table)):
            found.append(f"{left} rows are left in {table.name}")
    return found


def _overrun(connection: Connection, upstream: Upstream) -> list[str]:
    """Every limit that was exceeded: of money, of requests and tokens a minute, at once."""
    problems = [
        f"{workspace} owes {-micro} millionths and may owe nothing"
        for workspace, micro in read_standing(connection).balances.items()
        if micro < 0
    ]
    requests = [(at_s, 1) for at_s in upstream.arrivals.get(HURRIED.name, ())]
    charges, workspaces = tables.charges.c, tables.workspaces.c
    tokens = [
        (row.started_us / 1e6, row.prompt_tokens + row.completion_tokens)
        for row in connection.execute(
            select(charges.started_us, charges.prompt_tokens, charges.completion_tokens)
            .join(tables.workspaces, workspaces.id == charges.workspace_id)
            .where(workspaces.name == HURRIED.name)
        )
    ]
    for what, most, limit in (
        ("requests a minute", _most_in_a_minute(requests), HURRIED.limit.requests_per_minute),
        ("tokens a minute", _most_in_a_minute(tokens), HURRIED.limit.tokens_per_minute),
        ("requests at once", upstream.running_max[NARROW.name], NARROW.limit.concurrency),
    ):
        if limit is not None and most > limit:
            problems.append(f"{most} {what} ran and {limit} are allowed")
    return problems


def _most_in_a_minute(events: list[tuple[float, int]]) -> int:
    """The largest sum of what happened within a minute, less what the way may take."""
    most, within, first = 0, 0, 0
    events.sort()
    for at_s, amount in events:
        within += amount
        while events[first][0] <= at_s - (60.0 - _ON_THE_WAY_S):
            within -= events[first][1]
            first += 1
        most = max(most, within)
    return most


def make_tenant(settings: Settings, home: Path, tenant: Tenant = FREE) -> str:
    """A workspace with money; its key."""
    database = prepare(settings, home)
    with database.begin() as connection:
        put_plan(connection, actor="harness", plan=Plan(id=tenant.name, whole=tenant.limit))
        workspace = create_workspace(
            connection, actor="harness", name=tenant.name, plan=tenant.name
        )
        top_up(
            connection,
            actor="harness",
            workspace=workspace,
            amount=Money(tenant.money_micro, "USD"),
            memo="for the harness",
        )
        _, key = create_key(connection, actor="harness", workspace_id=workspace.id, name="h")
    database.dispose()
    return key.secret


def write_settings(
    home: Path, upstream_url: str, database_url: str, admission_url: str = ""
) -> None:
    """Configure the home folder to serve `m` from the upstream."""
    (home / "qwenstack.toml").write_text(
        f"""
[database]
url = "{database_url}"
[admission]
url = "{admission_url}"
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
    parser.add_argument("--database", default="", help="without: SQLite")
    parser.add_argument("--postgresql", action="store_true", help="on a PostgreSQL of its own")
    parser.add_argument("--workers", type=int, default=1, help="above 1 with a Valkey of its own")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    database, workers = arguments.database, arguments.workers
    if workers > 1 and not (database or arguments.postgresql):
        parser.error("several workers need --postgresql or --database postgresql://…")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.postgresql:
            database = stack.enter_context(postgresql_server())
        admission = ""
        if workers > 1:
            valkey = ValkeyServer(folder)
            valkey.start()
            stack.callback(valkey.kill)
            admission = valkey.url
        report = asyncio.run(
            run(
                folder,
                arguments.kills,
                database,
                arguments.seed,
                workers=workers,
                admission_url=admission,
            )
        )
    print(msgspec.json.format(msgspec.json.encode(report)).decode())
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
