"""What is done beside the requests goes on, whatever breaks off one turn of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio import accounts, background, tenants
from qwenstack.studio.background import Background
from qwenstack.studio.ledger.funds import MemoryFunds
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.tenancy import Plan
from qwenstack.studio.tenants import Tenants
from tests.migrated import new_database

AWAY = Refusal(RefusalKind.STORAGE_UNAVAILABLE, "The ledger did not confirm this in time.")
BROKEN: tuple[Exception, ...] = (
    AWAY,
    OperationalError("SELECT secret", {}, OSError("no route to host")),
    UnicodeError("label empty or too long"),
)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_S", 0.0)
    monkeypatch.setattr(tenants, "POLL_S", 0.01)


async def until(question: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not question():
            await asyncio.sleep(0.01)


async def test_whatever_breaks_a_turn_off_is_told_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns <= len(BROKEN):
            raise BROKEN[turns - 1]

    watch = Background("the watch", 0.0, work)
    watch.start()
    await until(lambda: turns > len(BROKEN) + 2)
    await watch.stop()
    after = turns
    await asyncio.sleep(0.02)
    assert turns == after
    levels = [each.levelno for each in caplog.records]
    assert levels == [logging.WARNING, logging.WARNING, logging.CRITICAL]
    assert "secret" not in caplog.text and "no route to host" in caplog.text


class RefusedOnce(MemoryFunds):
    """Funds whose ledger was away just when they had to be read again."""

    refused = False

    async def refresh(self) -> None:
        if not self.refused:
            self.refused = True
            raise AWAY
        await super().refresh()


async def test_a_revoked_key_ends_though_the_ledger_was_away_when_money_came(
    tmp_path: Path,
) -> None:
    database = new_database(tmp_path / "a.db")
    journal = Journal(database)
    funds = RefusedOnce(journal)
    followed = Tenants(database, journal, funds)
    with database.begin() as connection:
        accounts.put_plan(connection, actor="test", plan=Plan(id="default"))
        workspace = accounts.create_workspace(connection, actor="test", name="acme")
        key, drawn = accounts.create_key(
            connection, actor="test", workspace_id=workspace.id, name="k"
        )
    funds.refused = True
    await followed.start()
    try:
        funds.refused = False
        with database.begin() as connection:
            accounts.grant_free_quota(
                connection,
                actor="test",
                workspace_id=workspace.id,
                model="m",
                tokens=1,
                expires_us=now_us() + 10**9,
            )
        await until(lambda: funds.refused)
        followed.caller(drawn.secret, "inference", now_us())
        with database.begin() as connection:
            accounts.revoke_key(connection, actor="test", key_id=key.id)
        with pytest.raises(Refusal):
            async with asyncio.timeout(10):
                while True:
                    followed.caller(drawn.secret, "inference", now_us())
                    await asyncio.sleep(0.01)
    finally:
        await followed.stop()
        await asyncio.to_thread(journal.close)
        database.dispose()
