"""Bills outlive a database that is away and the kill of the process that holds them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select

from qwenstack.storage import tables
from qwenstack.storage.database import open_database
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.spool import Spool, left_behind
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.ledger.writes import Reverse, Settle, Write, write_all
from tests.component.test_ledger import a_charge, a_workspace
from tests.migrated import new_database


def test_what_was_kept_comes_back_in_order(tmp_path: Path) -> None:
    database = new_database(tmp_path / "a.db")
    workspace = a_workspace(database)
    writes: list[Write] = [
        Settle(charge=a_charge(workspace, "req_1", 5)),
        Settle(charge=a_charge(workspace, "req_2", 7), budgets=(("b", 1),)),
        Reverse("req_1", "the client left"),
    ]
    spool = Spool(tmp_path / "spool", "wrk_1")
    spool.keep(writes)
    with left_behind(tmp_path / "spool") as alive:
        assert alive == []
    spool.close()
    with left_behind(tmp_path / "spool") as found:
        assert found == writes
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_error_leaves_the_file_for_the_next_try(tmp_path: Path) -> None:
    database = new_database(tmp_path / "a.db")
    spool = Spool(tmp_path / "spool", "wrk_1")
    spool.keep([Settle(charge=a_charge(a_workspace(database), "req_1", 5))])
    spool.close()
    with pytest.raises(RuntimeError), left_behind(tmp_path / "spool"):
        raise RuntimeError
    with left_behind(tmp_path / "spool") as found:
        assert len(found) == 1


def test_a_damaged_line_costs_itself_only_and_stays_to_be_looked_at(tmp_path: Path) -> None:
    database = new_database(tmp_path / "a.db")
    spool = Spool(tmp_path / "spool", "wrk_1")
    spool.keep([Settle(charge=a_charge(a_workspace(database), "req_1", 5))])
    spool.close()
    path = tmp_path / "spool" / "wrk_1.bills"
    path.write_bytes(b'{"settle": {"charge": 1}}\n' + path.read_bytes())
    with left_behind(tmp_path / "spool") as found:
        assert len(found) == 1
    assert [each.suffix for each in (tmp_path / "spool").iterdir()] == [".damaged"]


VICTIM = """
import asyncio, sys
from pathlib import Path
from qwenstack.storage.database import connect
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.spool import Spool
from qwenstack.studio.ledger.writes import Settle
from tests.component.test_ledger import a_charge
import msgspec
from qwenstack.studio.tenancy import Workspace

async def main(url, folder, workspace):
    journal = Journal(connect(url), Spool(Path(folder), "wrk_victim"))
    owner = msgspec.json.decode(workspace, type=Workspace)
    for number in range(5):
        journal.submit(Settle(charge=a_charge(owner, f"req_{number}", 3)))
    while journal.healthy or not journal._spool.holds:
        await asyncio.sleep(0.05)
    print("kept", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_kill_while_the_database_is_away_loses_no_bill(tmp_path: Path) -> None:
    import msgspec

    url = f"sqlite:///{tmp_path / 'a.db'}"
    database = open_database(url)
    workspace = a_workspace(database)
    database.dispose()
    away = tmp_path / "away.db"
    (tmp_path / "a.db").rename(away)
    (tmp_path / "a.db").mkdir()  # SQLite cannot open it: the database is away
    arguments = [url, str(tmp_path / "spool"), msgspec.json.encode(workspace).decode()]
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, *arguments],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"kept\n"
        os.kill(victim.pid, signal.SIGKILL)
    (tmp_path / "a.db").rmdir()
    away.rename(tmp_path / "a.db")
    database = open_database(url)
    for _ in range(2):  # the second time there is nothing left to do
        with left_behind(tmp_path / "spool") as bills, database.begin() as connection:
            write_all(connection, bills)
    with database.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.charges)) == 5
        assert verify_ledger(connection) == []


async def test_the_file_is_empty_again_once_the_database_is_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    database = open_database(url)
    workspace = a_workspace(database)
    with database.connect() as connection:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={used}")
    journal = Journal(database, Spool(tmp_path / "spool", "wrk_1"))
    waiting = [
        journal.submit(Settle(charge=a_charge(workspace, f"req_{number}", 3)))
        for number in range(400)
    ]
    kept = tmp_path / "spool" / "wrk_1.bills"
    async with asyncio.timeout(10):
        while not kept.exists():
            await asyncio.sleep(0.02)
    with database.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    assert all(await asyncio.gather(*waiting))
    await asyncio.to_thread(journal.close)
    assert list((tmp_path / "spool").iterdir()) == []


def test_processes_that_start_at_once_find_each_bill_once(tmp_path: Path) -> None:
    database = new_database(tmp_path / "a.db")
    settle = Settle(charge=a_charge(a_workspace(database), "req_1", 5))
    folder = tmp_path / "spool"

    def start(number: int) -> int:
        spool = Spool(folder, f"wrk_new_{number}")
        together.wait()
        with left_behind(folder) as found:
            count = len(found)
        spool.close()
        return count

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for number in range(30):
                dead = Spool(folder, f"wrk_dead_{number}")
                dead.keep([settle])
                dead.close()
            together = threading.Barrier(4)
            assert sum(pool.map(start, range(4))) == 30
    assert list(folder.iterdir()) == []
