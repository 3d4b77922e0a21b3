"""The ledger against a real database, with an independent model of what it must hold."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, delete, event, func, select

from qwenstack.core.instants import now_us
from qwenstack.core.money import Money
from qwenstack.core.tokens import TokenUsage
from qwenstack.storage import tables
from qwenstack.storage.database import open_database
from qwenstack.studio.accounts import create_workspace, put_plan, top_up
from qwenstack.studio.charge import Charge, PriceLine
from qwenstack.studio.ledger import recovery
from qwenstack.studio.ledger.entries import workspace_account
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.ledger.writes import Checkpoint, Reverse, Run, Settle, charge_of, write_all
from qwenstack.studio.tenancy import Plan, Workspace
from tests.migrated import new_database

NOW = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)


def a_charge(workspace: Workspace, request_id: str, micro: int) -> Charge:
    return Charge(
        request_id=request_id,
        workspace_id=workspace.id,
        key_id="key_1",
        surface="openai.chat",
        model="m",
        deployment="m",
        engine="e",
        engine_version="1",
        region="local",
        digest=None,
        outcome="complete",
        usage=TokenUsage(prompt=micro, completion=0),
        thinking=False,
        price="local@1#example",
        lines=(PriceLine("input", micro, 0, "1"),),
        amount_micro=micro,
        currency="USD",
        started_at=NOW,
        finished_at=NOW,
    )


def a_workspace(database: Engine, name: str = "w") -> Workspace:
    with database.begin() as connection:
        put_plan(connection, actor="t", plan=Plan(id="default"))
        return create_workspace(connection, actor="t", name=name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = new_database(tmp_path / "ledger.db")
    else:
        engine = open_database(request.getfixturevalue("postgres_url"))
    yield engine
    engine.dispose()


def test_a_charge_comes_back_from_its_row_unchanged(database: Engine) -> None:
    workspace = a_workspace(database)
    charge = a_charge(workspace, "req_1", 7)
    with database.begin() as connection:
        write_all(connection, [Settle(charge=charge)])
        row = connection.execute(select(tables.charges)).one()
        assert charge_of(row) == charge


def test_settling_twice_bills_once(database: Engine) -> None:
    workspace = a_workspace(database)
    settle = Settle(charge=a_charge(workspace, "req_1", 7))
    with database.begin() as connection:
        assert write_all(connection, [settle]) == [True]
    with database.begin() as connection:
        assert write_all(connection, [settle]) == [False]
        assert read_standing(connection).balances == {workspace.id: -7}


def test_a_reversal_undoes_a_charge_once_and_an_unknown_charge_never(database: Engine) -> None:
    workspace = a_workspace(database)
    with database.begin() as connection:
        write_all(connection, [Settle(charge=a_charge(workspace, "req_1", 7))])
        writes = [Reverse("req_1", "gone"), Reverse("req_1", "gone"), Reverse("req_2", "gone")]
        assert write_all(connection, writes) == [True, False, False]
        assert read_standing(connection).balances == {workspace.id: 0}
        assert verify_ledger(connection) == []


def test_verification_names_an_edited_posting_and_an_edited_balance(database: Engine) -> None:
    workspace = a_workspace(database)
    with database.begin() as connection:
        write_all(connection, [Settle(charge=a_charge(workspace, "req_1", 7))])
        account = workspace_account(workspace.id)
        connection.execute(delete(tables.postings).where(tables.postings.c.account == account))
        problems = verify_ledger(connection)
    assert any("req_1" in problem for problem in problems)
    assert any(account in problem for problem in problems)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AssertionError, ZeroDivisionError])
async def test_the_journal_survives_a_write_that_cannot_be_made(
    database: Engine, error: type[Exception]
) -> None:
    def fail(_: object) -> None:
        raise error("no")

    workspace = a_workspace(database)
    journal = Journal(database)
    good = [
        journal.submit(Settle(charge=a_charge(workspace, f"req_{number}", 1)))
        for number in range(3)
    ]
    bad = journal.submit(Run(fail))
    later = journal.submit(Settle(charge=a_charge(workspace, "req_9", 1)))
    assert await asyncio.gather(*good) == [True, True, True]
    with pytest.raises(error, match="no"):
        await bad
    assert await later is True
    await asyncio.to_thread(journal.close)
    with database.begin() as connection:
        assert read_standing(connection).balances == {workspace.id: -4}


async def test_a_write_that_is_refused_costs_no_other_a_transaction_of_its_own(
    database: Engine,
) -> None:
    commits: list[object] = []
    gate = threading.Event()
    event.listen(database, "commit", commits.append)

    def fail(_: object) -> None:
        raise ValueError("no")

    workspace = a_workspace(database)
    journal = Journal(database)
    journal.submit(Run(lambda _: gate.wait()))
    commits.clear()
    good = [
        journal.submit(Settle(charge=a_charge(workspace, f"req_{number}", 1)))
        for number in range(50)
    ]
    bad = journal.submit(Run(fail))
    gate.set()
    assert all(await asyncio.gather(*good))
    with pytest.raises(ValueError, match="no"):
        await bad
    assert len(commits) <= 3
    await asyncio.to_thread(journal.close)


def test_a_machine_whose_clock_is_ahead_takes_no_living_worker_for_dead(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(postgres_url)
    bill = msgspec.json.encode(Settle(charge=a_charge(a_workspace(database), "req_1", 1)))
    with database.begin() as connection:
        recovery.heartbeat(connection, "wrk_1")
        write_all(connection, [Checkpoint("wrk_1", (("req_1", bill),))])
    ahead_us = now_us() + 3_600_000_000
    monkeypatch.setattr(recovery, "now_us", lambda: ahead_us)
    with database.begin() as connection:
        assert recovery.recover(connection, alone=False) == (0, [])
        connection.execute(delete(tables.workers))
        assert recovery.recover(connection, alone=False) == (1, [])
    database.dispose()


def test_the_only_process_settles_what_was_left_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database(tmp_path / "ledger.db")
    right = a_charge(a_workspace(database), "req_1", 1)
    wrong = msgspec.structs.replace(right, request_id="req_2", amount_micro=2**63)
    bills = [(each.request_id, msgspec.json.encode(Settle(charge=each))) for each in (right, wrong)]
    bills.append(("req_3", b'{"charge": 3}'))
    with database.begin() as connection:
        recovery.heartbeat(connection, "wrk_1")
        write_all(connection, [Checkpoint("wrk_1", tuple(bills))])
    before_us = now_us() - 3_600_000_000
    monkeypatch.setattr(recovery, "now_us", lambda: before_us)
    with database.begin() as connection:
        assert recovery.recover(connection, alone=True) == (1, [Settle(charge=wrong)])
        assert recovery.recover(connection, alone=True) == (0, [])
    database.dispose()


async def test_many_settlements_share_transactions_and_all_arrive(database: Engine) -> None:
    workspace = a_workspace(database)
    journal = Journal(database)
    order: list[int] = []
    futures = [
        journal.submit(
            Settle(charge=a_charge(workspace, f"req_{number}", number)),
            lambda _fresh, number=number: order.append(number),  # type: ignore[misc]
        )
        for number in range(1500)
    ]
    assert all(await asyncio.gather(*futures))
    assert order == list(range(1500))
    await asyncio.to_thread(journal.close)
    with database.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.charges)) == 1500
        assert read_standing(connection).balances == {workspace.id: -sum(range(1500))}
        assert verify_ledger(connection) == []


# One for all examples, in memory where that is to be had: making the tables takes the longest.
_MACHINE_DATABASE = tempfile.TemporaryDirectory(
    dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of settlements (also repeated), reversals and top-ups, against plain sums."""

    @initialize()
    def start(self) -> None:
        self.database = open_database(f"sqlite:///{_MACHINE_DATABASE.name}/ledger.db")
        with self.database.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.execute(delete(table))
        self.workspace = a_workspace(self.database)
        self.settled: dict[str, int] = {}
        self.reversed: set[str] = set()
        self.topped_up = 0

    @rule(numbers=st.lists(st.integers(0, 15), max_size=6), micro=st.integers(0, 10**12))
    def settle(self, numbers: list[int], micro: int) -> None:
        writes = [
            Settle(charge=a_charge(self.workspace, f"req_{number}", micro)) for number in numbers
        ]
        with self.database.begin() as connection:
            write_all(connection, writes)
        for number in numbers:
            self.settled.setdefault(f"req_{number}", micro)

    @rule(number=st.integers(0, 15))
    def reverse(self, number: int) -> None:
        with self.database.begin() as connection:
            write_all(connection, [Reverse(f"req_{number}", "test")])
        if f"req_{number}" in self.settled:
            self.reversed.add(f"req_{number}")

    @rule(micro=st.integers(1, 10**12))
    def top_up(self, micro: int) -> None:
        with self.database.begin() as connection:
            top_up(
                connection,
                actor="t",
                workspace=self.workspace,
                amount=Money(micro, "USD"),
                memo="test",
            )
        self.topped_up += micro

    @invariant()
    def balances_agree_and_sum_to_zero(self) -> None:
        if not hasattr(self, "workspace"):
            return
        spent = sum(
            micro for request, micro in self.settled.items() if request not in self.reversed
        )
        with self.database.begin() as connection:
            balance = read_standing(connection).balances.get(self.workspace.id, 0)
            assert balance == self.topped_up - spent
            assert verify_ledger(connection) == []
            assert not connection.scalar(select(func.sum(tables.postings.c.amount_micro)))

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.dispose()


LedgerMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLedgerMachine = LedgerMachine.TestCase
