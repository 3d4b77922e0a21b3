"""The ledger's database fails under load: nothing is lost, nothing is billed wrongly."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from qwenstack.studio import installation
from qwenstack.studio.ledger import journal
from qwenstack.studio.ledger.writes import Run, Settle
from tests.studio import RunningStudio, Upstream, running_studio


async def set_disk_pages(studio: RunningStudio, more: int) -> None:
    """Let the database file grow by `more` pages and no further: SQLite then says disk full."""

    def act(connection: object) -> None:
        used = connection.execute(text("PRAGMA page_count")).scalar()  # type: ignore[attr-defined]
        connection.execute(text(f"PRAGMA max_page_count={used + more}"))  # type: ignore[attr-defined]

    await studio.installation.journal.submit(Run(act))


async def fill(studio: RunningStudio, key: str) -> int:
    """Ask until the disk is full; how many answers were whole."""
    for whole in range(400):
        answer = await studio.chat(key)
        if answer.status != 200:
            return whole
    raise AssertionError("the disk never filled")


async def test_a_full_disk_refuses_new_requests_and_bills_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE_S", 0.3)
    async with running_studio(tmp_path) as studio:
        key = await studio.tenant()
        await set_disk_pages(studio, 4)
        whole = await fill(studio, key)
        refused = await studio.chat(key)
        assert refused.status == 503
        assert (await studio.session.get(f"{studio.url}/readyz")).status == 503
        asked = len(studio.upstream.requests)
        with studio.installation.database.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        await recovered(studio)
        assert (await studio.chat(key)).status == 200
        assert len(studio.upstream.requests) == asked + 1
        # What had an answer is billed, though the disk was full when its bill was due there.
        assert len(await studio.charges()) == whole + 1
        assert await studio.problems() == []


async def test_a_stream_whose_bill_must_wait_is_billed_once_when_the_disk_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PATIENCE_S", 0.3)
    upstream = Upstream()
    upstream.tokens, upstream.pause_s = 20, 0.02
    async with running_studio(tmp_path, upstream=upstream) as studio:
        key = await studio.tenant()
        answer = await studio.chat(key, stream=True)
        await set_disk_pages(studio, 0)
        body = await answer.text()
        assert body.count('"content":"x"') == 20
        if "[DONE]" not in body:
            assert '"error"' in body
        with studio.installation.database.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        await recovered(studio)
        (charge,) = await studio.charges()
        assert charge.usage.completion == 20
        assert await studio.problems() == []


async def recovered(studio: RunningStudio) -> None:
    async with asyncio.timeout(10):
        while not studio.installation.journal.healthy or studio.installation.journal.depth:
            await asyncio.sleep(0.05)


async def test_a_database_that_goes_away_and_comes_back_loses_nothing(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """litellm 34805: spend lost when the database failed."""
    import psycopg

    monkeypatch.setattr(journal, "PATIENCE_S", 20)
    upstream = Upstream()
    upstream.tokens, upstream.pause_s = 30, 0.01
    name = postgres_url.split("/")[3].split("?")[0]
    admin = postgres_url.replace(f"/{name}?", "/postgres?")
    async with running_studio(tmp_path, upstream=upstream, database_url=postgres_url) as studio:
        key = await studio.tenant()
        asking = [asyncio.create_task(studio.chat(key, stream=True)) for _ in range(4)]
        answers = [await each for each in asking]
        with psycopg.connect(admin, autocommit=True) as connection:
            # Nobody gets in, and who is in is thrown out.
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            reading = [asyncio.create_task(each.text()) for each in answers]
            await asyncio.sleep(1.5)
            assert not studio.installation.journal.healthy
            assert (await studio.chat(key)).status == 503
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        bodies = await asyncio.gather(*reading)
        await recovered(studio)
        whole = sum("[DONE]" in body for body in bodies)
        charges = await studio.charges()
        assert len(charges) == 4
        assert sum(charge.outcome == "complete" for charge in charges) >= whole
        assert await studio.problems() == []


async def test_a_worker_whose_recovery_fails_goes_on_to_say_that_it_lives(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers can settle the same streams of a dead one at once; for one of them it fails."""
    monkeypatch.setattr(installation, "HEARTBEAT_S", 0.05)
    failures: list[int] = []

    def fail_twice(connection: Connection, *, alone: bool) -> tuple[int, list[Settle]]:
        if len(failures) < 2:
            failures.append(1)
            connection.execute(text("INSERT INTO workers VALUES ('twice', 1), ('twice', 1)"))
        return 0, []

    async with running_studio(tmp_path, database_url=postgres_url) as studio:
        monkeypatch.setattr(installation, "recover", fail_twice)

        def heard(connection: Connection) -> int:
            return int(connection.scalar(text("SELECT max(heartbeat_us) FROM workers")) or 0)

        async with asyncio.timeout(10):
            while len(failures) < 2:
                await asyncio.sleep(0.02)
            before = await studio.act(heard)
            while await studio.act(heard) == before:
                await asyncio.sleep(0.02)
