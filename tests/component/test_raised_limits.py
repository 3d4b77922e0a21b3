"""A raised limit on a real socket: at once, in the headers, over at its instant, on record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Connection

from qwenstack.cli.main import qwenstack
from qwenstack.core.instants import from_us, now_us
from qwenstack.core.refusals import Refusal
from qwenstack.storage import audit_log
from qwenstack.studio import accounts, raised_limits
from qwenstack.studio.admission.limits import Limit
from qwenstack.studio.tenancy import Plan
from tests.component.test_admin_api import admin_key, call
from tests.studio import RunningStudio, running_studio

TIGHT = Plan(id="tight", whole=Limit(requests_per_minute=2, tokens_per_minute=100_000))


async def tight_tenant(studio: RunningStudio) -> str:
    await studio.act(lambda connection: accounts.put_plan(connection, actor="test", plan=TIGHT))
    return await studio.tenant(plan="tight")


async def limits(studio: RunningStudio, key: str) -> tuple[int, str, str]:
    """Of one request: status, and what the headers say of requests a minute."""
    answer = await studio.chat(key)
    await answer.read()
    return (
        answer.status,
        answer.headers["x-ratelimit-limit-requests"],
        answer.headers["x-ratelimit-remaining-requests"],
    )


@pytest.mark.parametrize("shared", [False, True], ids=["in process", "valkey"])
async def test_a_raise_holds_at_once_shows_in_the_headers_and_ends_by_itself(
    tmp_path: Path, valkey_url: str, shared: bool
) -> None:
    async with running_studio(tmp_path, valkey_url=valkey_url if shared else "") as studio:
        key = await tight_tenant(studio)
        assert await limits(studio, key) == (200, "2", "1")
        assert await limits(studio, key) == (200, "2", "0")
        assert (await studio.chat(key)).status == 429
        root = await admin_key(studio)
        body = {"requests_per_minute": 5, "expires_in_s": 2, "reason": "launch"}
        status, made = await call(studio, root, "POST", "/workspaces/acme/raises", body)
        assert status == 200
        assert await limits(studio, key) == (200, "5", "2")
        assert await limits(studio, key) == (200, "5", "1")
        while now_us() < made["until_us"]:
            await asyncio.sleep(0.05)
        refused = await studio.chat(key)
        assert refused.status == 429
        assert "limit of 2 requests per minute" in (await refused.json())["error"]["message"]
        assert await call(studio, root, "GET", "/workspaces/acme/raises") == (200, [])


async def test_a_raise_is_audited_listed_and_ended_by_hand(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        key = await tight_tenant(studio)
        root = await admin_key(studio)
        body = {"requests_per_minute": 5, "expires_in_s": 3600, "reason": "launch"}
        _, made = await call(studio, root, "POST", "/workspaces/acme/raises", body)
        assert await call(studio, root, "GET", "/workspaces/acme/raises") == (200, [made])
        status, ended = await call(studio, root, "DELETE", f"/raises/{made['id']}")
        assert (status, ended["id"]) == (200, made["id"])
        assert (await limits(studio, key))[1] == "2"
        assert (await call(studio, root, "DELETE", f"/raises/{made['id']}"))[0] == 404
        lines = await studio.act(lambda it: audit_log.read_lines(it, after=0, limit=100))
    written = [json.loads(line.detail) for line in lines if line.action == "raise.create"]
    assert written == [made]
    assert [line.subject for line in lines if line.action == "raise.end"] == [made["id"]]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests_per_minute": 5, "expires_in_s": 0}, "expires_in_s"),
        ({"requests_per_minute": 5, "expires_in_s": 31 * 86_400}, "expires_in_s"),
        ({"expires_in_s": 60}, "raise"),
        ({"requests_per_minute": -1, "expires_in_s": 60}, "raise"),
        ({"requests_per_minute": 5, "expires_in_s": 60, "model": "\x00"}, "model"),
        ({"requests_per_minute": 5, "expires_in_s": 60, "reason": "x" * 501}, "reason"),
    ],
)
async def test_a_raise_that_cannot_be_is_refused_with_its_field(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    async with running_studio(tmp_path) as studio:
        await studio.tenant()
        root = await admin_key(studio)
        status, answer = await call(studio, root, "POST", "/workspaces/acme/raises", body)
        assert status == 400
        assert answer["error"]["param"] == field


async def test_a_rotated_keys_raise_goes_to_its_successor(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        await studio.tenant()

        def act(connection: Connection) -> tuple[str, str]:
            tenancy = accounts.read_tenancy(connection)
            [key] = tenancy.keys.values()
            raised_limits.raise_limit(
                connection,
                actor="test",
                workspace_id=key.workspace_id or "",
                until_us=now_us() + 10**9,
                key=key,
                requests_per_minute=9,
            )
            successor, _ = accounts.rotate_key(
                connection, actor="test", key_id=key.id, overlap_s=60
            )
            return key.id, successor.id

        both = await studio.act(act)
        found = await studio.act(raised_limits.read_raises)
        assert tuple(each.key_id for each in found) == both


async def test_a_workspace_has_a_bounded_number_of_raises(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        await studio.tenant()

        def act(connection: Connection) -> None:
            workspace = accounts.find_workspace(connection, "acme")
            for _ in range(101):
                raised_limits.raise_limit(
                    connection,
                    actor="test",
                    workspace_id=workspace.id,
                    until_us=now_us() + 10**9,
                    tokens_per_minute=9,
                )

        with pytest.raises(Refusal, match="has 100 raises"):
            await studio.act(act)


def test_the_command_raises_lists_and_shows_with_workspaces_and_plans(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(
            qwenstack, ["admin", *words, "--home", str(tmp_path)]
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    run("workspaces", "create", "acme")
    until = f"{from_us(now_us() + 3_600_000_000):%Y-%m-%dT%H:%M:%SZ}"
    made = json.loads(run("raises", "create", "acme", "--rpm", "9", "--until", until, "--json"))
    assert f"{from_us(made['until_us']):%Y-%m-%dT%H:%M:%SZ}" == until
    [listed] = json.loads(run("raises", "ls", "--json"))
    assert listed == made
    [row] = json.loads(run("workspaces", "ls", "--json"))
    assert row["raises"] == [made]
    assert "acme" in run("plans", "ls").split("raised for")[1]
    run("raises", "end", made["id"])
    assert json.loads(run("raises", "ls", "--json")) == []
    both = ["admin", "raises", "create", "acme", "--rpm", "1", "--home", str(tmp_path)]
    assert CliRunner().invoke(qwenstack, both).exit_code == 2
