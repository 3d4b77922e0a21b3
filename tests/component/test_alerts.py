"""A budget's alert reaches a real receiver: signed, at least once, and nowhere that it must not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from sqlalchemy import Connection, select, update

from qwenstack.cli.main import qwenstack
from qwenstack.core.instants import now_us
from qwenstack.storage import audit_log, tables
from qwenstack.studio import accounts
from qwenstack.studio.alerts import webhooks
from qwenstack.studio.settings import (
    AlertSettings,
    DatabaseSettings,
    DeploymentSettings,
    RemoteSettings,
    Settings,
)
from tests.component.test_admin_api import admin_key, call
from tests.studio import MODEL, RunningStudio, Upstream, serve

LOOPBACK = ("127.0.0.0/8", "::1/128")


class Receiver:
    """Keeps what it is sent, and answers each with the next of `statuses`, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Receiver]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/budget"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"location": "/elsewhere"})

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@contextlib.asynccontextmanager
async def alerting(
    home: Path, *, allow: tuple[str, ...] = LOOPBACK, database_url: str = ""
) -> AsyncIterator[RunningStudio]:
    upstream = Upstream()
    async with upstream.serving():
        remote = RemoteSettings(urls=(upstream.url,), upstream_model="m", dialect="vllm")
        settings = Settings(
            database=DatabaseSettings(url=database_url),
            alerts=AlertSettings(allow_networks=allow),
            deployments=(DeploymentSettings(name=MODEL, engine=remote, max_output_tokens=100),),
        )
        async with serve(settings, home, upstream) as studio:
            # The tests look themselves.
            await studio.installation.alerts.background.stop()
            yield studio


async def overspent(studio: RunningStudio) -> None:
    """A workspace whose budget of nothing is spent to its alert line from the first."""
    await studio.tenant()
    await studio.act(
        lambda connection: accounts.create_budget(
            connection,
            actor="test",
            workspace_id=accounts.find_workspace(connection, "acme").id,
            key_id=None,
            period="total",
            limit_micro=0,
            stops=False,
        )
    )


async def hooked(studio: RunningStudio, url: str, workspace: str | None = None) -> tuple[str, str]:
    """A webhook's id and secret."""

    def act(connection: Connection) -> tuple[str, str]:
        made, secret = webhooks.set_webhook(
            connection,
            actor="test",
            sender=studio.installation.alerts.sender,
            url=url,
            workspace_id=workspace and accounts.find_workspace(connection, workspace).id,
        )
        return made.id, secret

    made: tuple[str, str] = await studio.act(act)
    return made


async def deliveries(studio: RunningStudio, webhook_id: str) -> list[webhooks.Delivery]:
    found: list[webhooks.Delivery] = await studio.act(
        lambda connection: webhooks.read_deliveries(connection, webhook_id, 100)
    )
    return found


async def make_due(studio: RunningStudio) -> None:
    """Let the time pass that a failed delivery waits for."""
    table = tables.deliveries
    await studio.act(
        lambda it: it.execute(update(table).where(table.c.due_us.is_not(None)).values(due_us=1))
    )


async def test_an_alert_arrives_once_signed_and_is_a_log_line_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with Receiver().serving() as receiver:
        async with alerting(tmp_path) as studio:
            await overspent(studio)
            _, secret = await hooked(studio, receiver.url, "acme")
            await studio.tenant("other")
            await hooked(studio, receiver.url + "/other", "other")
            for _ in range(3):
                await studio.installation.alerts.look()
        async with alerting(tmp_path) as studio:  # a restart repeats nothing
            await studio.installation.alerts.look()
    [(headers, body)] = receiver.got
    message = json.loads(body)
    assert message["type"] == "budget.alert"
    assert message["workspace"]["name"] == "acme"
    assert message["budget"]["limit_micro"] == 0
    assert message["budget"]["period"] == "total"
    assert headers["webhook-id"] == message["id"]
    assert abs(int(headers["webhook-timestamp"]) - now_us() / 1e6) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    lines = [each for each in caplog.records if getattr(each, "event", "") == "budget_alert"]
    assert len(lines) == 1


async def test_what_fails_is_sent_again_under_the_same_id_also_after_a_restart(
    tmp_path: Path,
) -> None:
    async with Receiver().serving() as receiver:
        receiver.statuses = [500, 302]
        async with alerting(tmp_path) as studio:
            await overspent(studio)
            webhook, _ = await hooked(studio, receiver.url)
            await studio.installation.alerts.look()
            [tried] = await deliveries(studio, webhook)
            assert (tried.attempts, tried.outcome, tried.delivered) == (1, "HTTP 500", False)
            assert tried.due_us is not None
            assert tried.due_us > now_us()
            await studio.installation.alerts.look()  # not due yet
            assert len(receiver.got) == 1
        async with alerting(tmp_path) as studio:
            await make_due(studio)
            await studio.installation.alerts.look()
            [tried] = await deliveries(studio, webhook)
            assert tried.outcome == "HTTP 302 (no redirect is followed)"
            await make_due(studio)
            await studio.installation.alerts.look()
            [done] = await deliveries(studio, webhook)
            assert (done.attempts, done.delivered, done.due_us) == (3, True, None)
    assert len({each["id"] for each in receiver.messages}) == 1
    assert len(receiver.got) == 3


async def test_a_delivery_whose_process_died_is_taken_up_by_another(tmp_path: Path) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path) as studio:
        await overspent(studio)
        await hooked(studio, "http://127.0.0.1:1/")  # nothing listens there
        webhook, _ = await hooked(studio, receiver.url)
        await studio.installation.alerts.look()
        await studio.act(
            lambda it: it.execute(
                update(tables.deliveries).values(due_us=1, ended_us=None, delivered=False)
            )
        )
        claimed = await studio.act(lambda connection: webhooks.claim(connection, 8))
        assert len(claimed) == 2
        # While it is claimed nobody else takes it; afterwards somebody does.
        assert await studio.act(lambda connection: webhooks.claim(connection, 8)) == []
        [mine] = await deliveries(studio, webhook)
        assert mine.due_us is not None
        assert 0 < mine.due_us - now_us() <= webhooks.CLAIM_S * 1_000_000
        await make_due(studio)
        await studio.installation.alerts.look()
        assert [each["id"] for each in receiver.messages] == [mine.message_id] * 2


@pytest.mark.parametrize(("status", "attempts"), [(410, 1), (503, webhooks.ATTEMPTS_MAX)])
async def test_attempts_end(tmp_path: Path, status: int, attempts: int) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path) as studio:
        receiver.statuses = [status] * (attempts + 3)
        await overspent(studio)
        webhook, _ = await hooked(studio, receiver.url)
        for _ in range(attempts + 3):
            await studio.installation.alerts.look()
            await make_due(studio)
        [ended] = await deliveries(studio, webhook)
        assert (ended.attempts, ended.delivered, ended.due_us) == (attempts, False, None)
        assert len(receiver.got) == attempts


@pytest.mark.parametrize("host", ["localhost", "2130706433", "127.1"])
async def test_a_name_that_leads_inside_is_refused_when_it_is_resolved(
    tmp_path: Path, host: str
) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path, allow=()) as studio:
        await overspent(studio)
        port = receiver.url.split(":")[2].split("/")[0]
        webhook, _ = await hooked(studio, f"https://{host}:{port}/budget")
        await studio.installation.alerts.look()
        [tried] = await deliveries(studio, webhook)
        reason = "is not a public address" if host == "localhost" else "is not a canonical IPv4"
        assert reason in tried.outcome
        assert receiver.got == []


async def test_a_name_that_nobody_can_ask_for_keeps_no_other_webhook_from_its_message(
    tmp_path: Path,
) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path) as studio:
        await overspent(studio)
        lost, _ = await hooked(studio, receiver.url)
        table, url = tables.webhooks, "https://hooks..example.com/"
        await studio.act(
            lambda connection: connection.execute(
                update(table).where(table.c.id == lost).values(url=url)
            )
        )
        await hooked(studio, receiver.url)
        await studio.installation.alerts.look()
        [tried] = await deliveries(studio, lost)
        assert tried.outcome.startswith("no answer: ")
        assert len(receiver.got) == 1


async def test_of_several_processes_one_raises_an_alert_and_one_delivers_it(
    tmp_path: Path, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with (
        Receiver().serving() as receiver,
        alerting(tmp_path, database_url=postgres_url) as one,
        alerting(tmp_path, database_url=postgres_url) as two,
    ):
        await overspent(one)
        await hooked(one, receiver.url)
        await two.installation.tenants.follow()
        for _ in range(3):
            await asyncio.gather(one.installation.alerts.look(), two.installation.alerts.look())
        assert len(receiver.got) == 1
    lines = [each for each in caplog.records if getattr(each, "event", "") == "budget_alert"]
    assert len(lines) == 1


async def test_another_homes_key_signs_nothing(tmp_path: Path) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path) as studio:
        await overspent(studio)
        webhook, _ = await hooked(studio, receiver.url)
        (tmp_path / "alerts.key").write_text("ab" * 32)
        await studio.installation.alerts.look()
        [tried] = await deliveries(studio, webhook)
        assert "is not the key that this webhook was made with" in tried.outcome
        assert receiver.got == []


async def test_the_database_holds_nothing_that_signs(tmp_path: Path) -> None:
    async with alerting(tmp_path) as studio:
        _, secret = await hooked(studio, "https://hooks.example.com/budget")
        rows = await studio.act(lambda it: it.execute(select(tables.webhooks)).all())
        lines = await studio.act(lambda it: audit_log.read_lines(it, after=0, limit=100))
        key = (tmp_path / "alerts.key").read_text()
        for kept in (repr(rows), repr(lines)):
            assert secret.removeprefix("whsec_") not in kept
            assert key not in kept


async def test_the_admin_api_sets_lists_tests_and_removes_a_webhook(tmp_path: Path) -> None:
    async with Receiver().serving() as receiver, alerting(tmp_path) as studio:
        await studio.tenant()
        root = await admin_key(studio)
        body = {"url": receiver.url, "workspace": "acme"}
        status, made = await call(studio, root, "POST", "/alerts", body)
        assert status == 200
        assert made["secret"].startswith("whsec_")
        assert await call(studio, root, "GET", "/alerts") == (200, [{**made, "secret": None}])
        one = f"/alerts/{made['id']}"
        _, queued = await call(studio, root, "POST", f"{one}/test")
        await studio.installation.alerts.look()
        [message] = receiver.messages
        assert (message["type"], message["id"]) == ("test", queued["message_id"])
        _, [delivery] = await call(studio, root, "GET", f"{one}/deliveries")
        assert (delivery["delivered"], delivery["outcome"]) == (True, "HTTP 204")
        await call(studio, root, "POST", f"{one}/test")
        assert (await call(studio, root, "DELETE", one))[0] == 200
        await studio.installation.alerts.look()
        assert len(receiver.got) == 1
        assert (await call(studio, root, "POST", f"{one}/test"))[0] == 404
        status, refused = await call(studio, root, "POST", "/alerts", {"url": "http://10.0.0.1/"})
        assert (status, refused["error"]["param"]) == (400, "url")
        lines = await studio.act(lambda it: audit_log.read_lines(it, after=0, limit=100))
        actions = [each.action for each in lines if each.action.startswith("webhook.")]
        assert actions == ["webhook.set", "webhook.test", "webhook.test", "webhook.remove"]


async def test_the_command_sets_lists_tests_and_removes_a_webhook(tmp_path: Path) -> None:
    (tmp_path / "qwenstack.toml").write_text('[alerts]\nallow_networks = ["127.0.0.0/8"]\n')

    async def run(*words: str) -> Result:
        arguments = ["admin", "alerts", *words, "--home", str(tmp_path)]
        return await asyncio.to_thread(CliRunner().invoke, qwenstack, arguments)

    async with Receiver().serving() as receiver:
        made = json.loads((await run("set", receiver.url, "--json")).stdout)
        [listed] = json.loads((await run("ls", "--json")).stdout)
        assert listed == {**made, "secret": None, "last_delivery": None}
        assert "took it: HTTP 204" in (await run("test", made["id"])).stdout
        receiver.statuses = [500]
        failed = await run("test", made["id"])
        assert (failed.exit_code, "HTTP 500" in failed.output) == (1, True)
        assert {each["type"] for each in receiver.messages} == {"test"}
        assert json.loads((await run("deliveries", made["id"], "--json")).stdout) == []
        assert "Nothing more is sent" in (await run("rm", made["id"])).stdout
        assert json.loads((await run("ls", "--json")).stdout) == []
