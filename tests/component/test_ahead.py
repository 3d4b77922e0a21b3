"""Bills that run ahead of the database are durable, written once, and never counted twice."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, func, select

from qwenstack.core.identifiers import new_id
from qwenstack.storage import tables
from qwenstack.storage.database import reading
from qwenstack.studio.ledger import spool
from qwenstack.studio.ledger.ahead import AheadFile, Segment, decode_bill, encode_bill, read_records
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.spool import REFUSED_NAME, Spool, catch_up, left_behind, put_aside
from qwenstack.studio.ledger.standing import Standing, read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.ledger.writes import Refused, Reverse, Run, Settle, write_all, write_each
from tests.component.test_ledger import a_charge, a_workspace
from tests.migrated import new_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = new_database(tmp_path / "a.db")
    yield engine
    engine.dispose()


@contextmanager
def held_up(database: Engine) -> Iterator[None]:
    """Nobody else writes to the database meanwhile."""
    with database.begin():
        yield


def count(database: Engine) -> int:
    with reading(database) as connection:
        return connection.scalar(select(func.count()).select_from(tables.charges)) or 0


def put(file: AheadFile, numbers: range) -> Segment | None:
    records = [b"%d" % number for number in numbers]
    segment = file.reserve(records)
    if segment is not None:
        file.write(records)
    return segment


def test_what_was_written_is_read_in_order(tmp_path: Path) -> None:
    file = AheadFile(tmp_path / "a.ahead", 100)
    assert put(file, range(4)) is not None
    assert put(file, range(4, 8)) is not None
    assert put(file, range(8, 12)) is None  # neither half is free
    assert read_records(tmp_path / "a.ahead") == [b"%d" % number for number in range(8)]
    assert put(file, range(100)) is None  # larger than half of the file
    file.close(remove=True)
    assert not (tmp_path / "a.ahead").exists()


def test_a_half_is_used_again_only_when_the_database_has_all_of_it(tmp_path: Path) -> None:
    chance, path = random.Random(1), tmp_path / "a.ahead"
    file = AheadFile(path, 300)
    waiting: list[tuple[int, Segment]] = []
    number = refused = 0
    for _ in range(600):
        size = chance.randint(1, 5)
        segment = put(file, range(number, number + size))
        if segment is None:
            refused += 1
        else:
            waiting += [(each, segment) for each in range(number, number + size)]
            number += size
        for _ in range(min(len(waiting), chance.choice((0, 0, 1, 9)))):
            waiting.pop(0)[1].released += 1
        found = [int(record) for record in read_records(path)]
        assert found == sorted(set(found))
        assert {each for each, _ in waiting} <= set(found)
    assert refused and number > 400
    file.close(remove=True)


def test_a_record_that_a_crash_cut_off_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "a.ahead"
    file = AheadFile(path, 200)
    put(file, range(10, 15))
    whole = path.read_bytes()
    size = whole.index(b"\0" * 40)
    for cut in range(size):
        for tail in (b"\0", b"\xff"):
            path.write_bytes(whole[:cut] + tail * (len(whole) - cut))
            found = read_records(path)
            assert found == [b"%d" % each for each in range(10, 10 + len(found))]
            assert len(found) >= cut // 18 and (len(found) < 5 or cut > 80)
    file.close(remove=True)


def test_a_record_of_another_shape_stays_to_be_looked_at(tmp_path: Path, database: Engine) -> None:
    settle = Settle(charge=a_charge(a_workspace(database), "req_1", 5))
    spool = Spool(tmp_path / "spool", "wrk_1")
    file = spool.ahead()
    assert file is not None
    records = [b'{"charge": 1}', encode_bill(settle)]
    file.reserve(records)
    file.write(records)
    file.close(remove=False)
    spool.close()
    with left_behind(tmp_path / "spool") as found:
        assert found == [settle]
    assert [each.name for each in (tmp_path / "spool").iterdir()] == ["wrk_1.ahead.damaged"]


def test_a_bill_and_its_reversal_come_back_in_that_order(tmp_path: Path, database: Engine) -> None:
    settle = Settle(charge=a_charge(a_workspace(database), "req_1", 5))
    spool = Spool(tmp_path / "spool", "wrk_1")
    file = spool.ahead()
    assert file is not None
    file.reserve([encode_bill(settle)])
    file.write([encode_bill(settle)])
    spool.keep([Reverse("req_1", "the client left")])
    file.close(remove=False)
    spool.close()
    with left_behind(tmp_path / "spool") as found:
        assert found == [settle, Reverse("req_1", "the client left")]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_bill_that_the_database_refuses_is_kept_and_ends_no_start(
    tmp_path: Path, database: Engine
) -> None:
    workspace, folder = a_workspace(database), tmp_path / "spool"
    wrong = msgspec.structs.replace(a_charge(workspace, "req_wrong", 5), amount_micro=2**63)
    bills = [Settle(charge=wrong), Settle(charge=a_charge(workspace, "req_right", 5))]
    journal = a_journal(database, folder)
    for bill in bills:
        await journal.submit(bill)
    copied = shutil.copytree(folder, tmp_path / "killed", ignore=shutil.ignore_patterns("*.lock"))
    assert await asyncio.to_thread(journal.close) == []
    assert [each.name for each in folder.iterdir()] == [REFUSED_NAME]
    for _ in range(2):
        with left_behind(copied) as found, database.begin() as connection:
            results = write_each(connection, found)
            pairs = zip(found, results, strict=True)
            put_aside(copied, [bill for bill, result in pairs if isinstance(result, Refused)])
        assert True not in results  # the journal had written the other
        assert [each.name for each in copied.iterdir()] == [REFUSED_NAME]
    for kept in (folder, copied):
        [line] = (kept / REFUSED_NAME).read_bytes().splitlines()
        assert msgspec.json.decode(line)["settle"]["charge"]["request_id"] == "req_wrong"
    assert count(database) == 1
    with reading(database) as connection:
        assert verify_ledger(connection) == []


def a_journal(database: Engine, folder: Path, segment_bytes: int = 2**20) -> Journal:
    spool = Spool(folder, "wrk_1")
    return Journal(database, spool, AheadFile(folder / "wrk_1.ahead", segment_bytes))


@pytest.mark.parametrize("alone", [True, False])
async def test_a_bill_is_acknowledged_while_the_database_is_busy_and_shown_after(
    tmp_path: Path, database: Engine, alone: bool
) -> None:
    workspace = a_workspace(database)
    journal = a_journal(database, tmp_path / "spool")
    with held_up(database):
        for number in range(20):
            settle = Settle(charge=a_charge(workspace, f"req_{number}", 3))
            assert await asyncio.wait_for(journal.submit(settle, alone=alone), 5) is True
        (record, *_) = read_records(tmp_path / "spool" / "wrk_1.ahead")
        assert decode_bill(record).charge.request_id == "req_0"
        assert journal.depth == 0
    assert journal.healthy
    await journal.written()
    assert count(database) == 20
    await asyncio.to_thread(journal.close)
    assert list((tmp_path / "spool").iterdir()) == []
    with database.begin() as connection:
        assert verify_ledger(connection) == []


async def test_a_standing_holds_just_the_bills_acknowledged_before_it(
    tmp_path: Path, database: Engine
) -> None:
    """Money would otherwise be counted twice or not at all, and limits with it."""
    chance, workspace = random.Random(2), a_workspace(database)
    journal = a_journal(database, tmp_path / "spool", 4000)
    acknowledged = 0

    def count_bill(_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1

    def compare(standing: object) -> None:
        assert isinstance(standing, Standing)
        differences.append(standing.balances.get(workspace.id, 0) + acknowledged)

    differences: list[int] = []
    futures = []
    for number in range(1500):
        settle = Settle(charge=a_charge(workspace, f"req_{number}", 1))
        alone = chance.random() < 0.5
        futures.append(journal.submit(settle, count_bill, alone=alone))
        if chance.random() < 0.05:
            futures.append(journal.submit(Run(read_standing), compare))
        if chance.random() < 0.1:
            await asyncio.sleep(chance.choice((0, 0.001, 0.003)))
    await asyncio.gather(*futures)
    assert len(differences) > 30 and not any(differences)
    assert acknowledged == 1500
    await asyncio.to_thread(journal.close)
    with database.begin() as connection:
        assert read_standing(connection).balances == {workspace.id: -1500}
        assert verify_ledger(connection) == []


async def test_no_bill_is_acknowledged_before_a_standing_that_was_read_without_it(
    tmp_path: Path, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = a_workspace(database)
    journal = a_journal(database, tmp_path / "spool")
    tell = journal._tell

    def tell_late(pairs: Any) -> None:
        time.sleep(0.05)  # the database has it, and the event loop does not know yet
        tell(pairs)

    monkeypatch.setattr(journal, "_tell", tell_late)
    acknowledged, differences = [0], []

    def compare(standing: object) -> None:
        assert isinstance(standing, Standing)
        differences.append(standing.balances.get(workspace.id, 0) + len(acknowledged) - 1)

    for round_number in range(5):
        reading = journal.submit(Run(read_standing), compare)
        number = 0
        while not reading.done():
            settle = Settle(charge=a_charge(workspace, f"req_{round_number}_{number}", 1))
            journal.submit(settle, acknowledged.append, alone=True)  # type: ignore[arg-type]
            number += 1
            await asyncio.sleep(0.005)
    assert differences == [0] * 5
    await asyncio.to_thread(journal.close)


async def test_bills_that_find_no_room_in_the_file_wait_for_the_database(
    tmp_path: Path, database: Engine
) -> None:
    workspace = a_workspace(database)
    journal = a_journal(database, tmp_path / "spool", 2000)
    with held_up(database):
        futures = []
        for number in range(50):
            settle = Settle(charge=a_charge(workspace, f"req_{number}", 3))
            futures.append(journal.submit(settle))
            await asyncio.wait(futures[-1:], timeout=0.01 if number else 5)
        assert 0 < sum(future.done() for future in futures) < 50
    assert all(await asyncio.gather(*futures))
    assert (await journal.submit(Run(read_standing))).balances == {workspace.id: -150}  # type: ignore[attr-defined]
    await asyncio.to_thread(journal.close)
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("alone", [True, False])
async def test_a_broken_disk_under_the_file_costs_time_and_no_bill(
    tmp_path: Path, database: Engine, alone: bool
) -> None:
    workspace = a_workspace(database)
    folder = tmp_path / "spool"
    spool = Spool(folder, "wrk_1")
    file = AheadFile(folder / "wrk_1.ahead")
    journal = Journal(database, spool, file)
    for number in range(20):
        if number == 10:
            read_only = os.open(folder / "wrk_1.ahead", os.O_RDONLY)
            os.dup2(read_only, file._file)  # each further write fails
            os.close(read_only)
        settle = Settle(charge=a_charge(workspace, f"req_{number}", 3))
        assert await asyncio.wait_for(journal.submit(settle, alone=alone), 5) is True
    await asyncio.to_thread(journal.close)
    assert count(database) == 20
    assert list(folder.iterdir()) == []


def test_a_disk_without_room_for_the_file_is_served_without_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "wrk_1")
    (tmp_path / "spool" / "wrk_1.ahead").mkdir()
    assert spool.ahead() is None


VICTIM = """
import asyncio, sys
from pathlib import Path
import msgspec
from qwenstack.storage.database import connect
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.spool import Spool
from qwenstack.studio.ledger.writes import Settle
from qwenstack.studio.tenancy import Workspace
from tests.component.test_ledger import a_charge

async def main(url, folder, workspace):
    spool = Spool(Path(folder), "wrk_victim")
    journal = Journal(connect(url), spool, spool.ahead())
    owner = msgspec.json.decode(workspace, type=Workspace)
    number = 0
    while True:
        for _ in range(number % 3 + 1):
            last = journal.submit(
                Settle(charge=a_charge(owner, f"req_{number}", 3)), alone=number % 2 == 0
            )
            number += 1
        await last
        print(number, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_at_any_instant_loses_no_acknowledged_bill_and_doubles_none(
    tmp_path: Path, database: Engine
) -> None:
    workspace = a_workspace(database)
    encoded = msgspec.json.encode(workspace).decode()
    arguments = [str(database.url), str(tmp_path / "spool"), encoded]
    chance = random.Random(3)
    for _ in range(4):
        before = count(database)
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, *arguments],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as victim:
            assert victim.stdout is not None
            victim.stdout.readline()
            await asyncio.sleep(chance.uniform(0, 0.4))
            os.kill(victim.pid, signal.SIGKILL)
            lines = victim.stdout.read().split(b"\n")
        acknowledged = int(lines[-2]) if len(lines) > 1 else 1
        with left_behind(tmp_path / "spool") as bills, database.begin() as connection:
            write_all(connection, bills)
            assert verify_ledger(connection) == []
        assert acknowledged <= max(count(database), before)
    whole = count(database)
    with reading(database) as connection:
        assert read_standing(connection).balances == {workspace.id: -3 * whole}
    assert list((tmp_path / "spool").iterdir()) == []


async def test_who_reads_beside_the_server_sees_every_acknowledged_bill(
    tmp_path: Path, database: Engine
) -> None:
    workspace = a_workspace(database)
    journal = a_journal(database, tmp_path / "spool")
    for number in range(30):
        for _ in range(number % 3 + 1):
            settle = Settle(charge=a_charge(workspace, new_id("req"), 1))
            last = journal.submit(settle, alone=number % 2 == 0)
        await last
        assert await asyncio.to_thread(catch_up, tmp_path / "spool", database) == 0
        assert count(database) == sum(each % 3 + 1 for each in range(number + 1))
    await asyncio.to_thread(journal.close)


def test_who_reads_after_a_kill_is_told_how_many_bills_are_missing(
    tmp_path: Path, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "CATCH_UP_S", 0.1)
    workspace = a_workspace(database)
    file = AheadFile(tmp_path / "wrk_1.ahead")
    bills = [Settle(charge=a_charge(workspace, f"req_{number}", 1)) for number in range(5)]
    records = [encode_bill(bill) for bill in bills]
    file.reserve(records)
    file.write(records)
    with database.begin() as connection:
        write_all(connection, bills[:2])
    assert catch_up(tmp_path, database) == 3
    file.close(remove=True)
    assert catch_up(tmp_path, database) == 0
