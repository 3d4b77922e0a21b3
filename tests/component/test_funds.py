"""Holds: whatever is asked for at once, a prepaid balance and a budget are never overrun."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from qwenstack.core.identifiers import new_id
from qwenstack.core.money import Money
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage.database import open_database
from qwenstack.studio.accounts import create_budget, create_workspace, put_plan, top_up
from qwenstack.studio.ledger.funds import Funds, MemoryFunds, SharedFunds
from qwenstack.studio.ledger.holds import BudgetPosition, HoldRequest, Position, decide
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.ledger.writes import Settle
from qwenstack.studio.tenancy import Budget, Plan, Workspace
from tests.component.test_ledger import a_charge
from tests.migrated import new_database

BUDGET = Budget(
    id="b", workspace_id="w", key_id=None, period="total", limit_micro=1000, alert_percent=80
)
MICRO = st.integers(0, 2000)


def asked(workspace_id: str, ceiling: int, *budgets: Budget, **fields: object) -> HoldRequest:
    values: dict[str, object] = {
        "request_id": new_id("req"),
        "workspace_id": workspace_id,
        "key_id": "key_1",
        "model": "m",
        "billing": "prepaid",
        "currency": "USD",
        "credit_limit_micro": None,
        "free_quota_only": False,
        "ceiling_micro": ceiling,
        "tokens_max": 10,
        "uses_free_quota": False,
        "budgets": tuple((budget, 0) for budget in budgets),
        **fields,
    }
    return HoldRequest(**values)  # type: ignore[arg-type]


@given(balance=st.integers(-500, 2000), held=MICRO, ceiling=MICRO, spent=MICRO, budget_held=MICRO)
def test_a_hold_is_granted_only_where_everything_covers_it(
    balance: int, held: int, ceiling: int, spent: int, budget_held: int
) -> None:
    position = Position(
        balance_micro=balance,
        held_micro=held,
        free_tokens_left=0,
        budgets=(BudgetPosition(spent, budget_held),),
    )
    try:
        hold = decide(asked("w", ceiling, BUDGET), position)
    except Refusal as refusal:
        final = {RefusalKind.OUT_OF_CREDIT, RefusalKind.BUDGET_EXCEEDED}
        if refusal.kind is RefusalKind.RATE_CONCURRENCY:
            # Only told to try again where it would pass were nothing held.
            assert ceiling <= balance
            assert refusal.retry_after_s
            assert ceiling <= BUDGET.limit_micro - spent or ceiling > balance - held
        else:
            assert refusal.kind in final
            assert ceiling > balance or ceiling > BUDGET.limit_micro - spent or balance <= 0
    else:
        assert hold.amount_micro == ceiling
        assert ceiling == 0 or ceiling <= balance - held
        assert ceiling <= BUDGET.limit_micro - spent - budget_held


@given(free=st.integers(-5, 30), tokens=st.integers(0, 30))
def test_free_quota_covers_a_request_whole_or_the_money_is_held(free: int, tokens: int) -> None:
    position = Position(balance_micro=0, held_micro=0, free_tokens_left=free)
    request = asked("w", 100, tokens_max=tokens, uses_free_quota=True, free_quota_only=True)
    try:
        hold = decide(request, position)
    except Refusal as refusal:
        assert refusal.kind is RefusalKind.FREE_QUOTA_ONLY
        assert free < tokens
    else:
        assert (hold.amount_micro, hold.free_tokens) == (0, tokens)


@pytest.fixture(params=["memory", "shared"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    if request.param == "memory":
        engine = new_database(tmp_path / "funds.db")
    else:
        engine = open_database(request.getfixturevalue("postgres_url"))
    yield request.param, engine
    engine.dispose()


def prepare(engine: Engine, money: int, budget_micro: int) -> tuple[Workspace, Budget]:
    with engine.begin() as connection:
        put_plan(connection, actor="t", plan=Plan(id="default"))
        workspace = create_workspace(connection, actor="t", name="w")
        amount = Money(money, "USD")
        top_up(connection, actor="t", workspace=workspace, amount=amount, memo="")
        budget = create_budget(
            connection,
            actor="t",
            workspace_id=workspace.id,
            key_id=None,
            period="total",
            limit_micro=budget_micro,
        )
    return workspace, budget


async def one_request(
    funds: Funds, journal: Journal, workspace: Workspace, budget: Budget, chance: random.Random
) -> int:
    """Hold, then settle at most that, or give it back; what was charged."""
    request = asked(workspace.id, chance.randint(0, 300), budget)
    try:
        hold = await funds.place(request)
    except Refusal:
        return 0
    await asyncio.sleep(chance.random() * 0.01)
    if chance.random() < 0.3:
        funds.release(hold)
        return 0
    micro = chance.randint(0, hold.amount_micro)
    charge = a_charge(workspace, request.request_id, micro)
    await journal.submit(
        Settle(charge=charge, budgets=((budget.id, 0),)),
        lambda _: funds.settled(hold, charge),
    )
    return micro


async def test_requests_at_once_never_overrun_money_or_budget(
    database: tuple[str, Engine],
) -> None:
    """On PostgreSQL from three workers, each with a journal of its own."""
    kind, engine = database
    workspace, budget = prepare(engine, money=5000, budget_micro=4000)
    journals = [Journal(engine) for _ in range(1 if kind == "memory" else 3)]
    funds: list[Funds] = [
        MemoryFunds(journal) if kind == "memory" else SharedFunds(journal, f"worker-{number}")
        for number, journal in enumerate(journals)
    ]
    for each in funds:
        await each.refresh()
    chance = random.Random(7)
    charged = await asyncio.gather(
        *(
            one_request(
                funds[n % len(funds)], journals[n % len(journals)], workspace, budget, chance
            )
            for n in range(150)
        )
    )
    for journal in journals:
        await asyncio.to_thread(journal.close)
    with engine.begin() as connection:
        standing = read_standing(connection)
        assert standing.balances[workspace.id] == 5000 - sum(charged)
        assert standing.spent[budget.id, 0] == sum(charged) <= 4000
        assert 5000 - sum(charged) >= 0
        assert verify_ledger(connection) == []
    assert sum(charged) > 300, "too little was let through to mean anything"
