"""Holds on money: within one process in memory, between several workers in the database.

Both decide by the same pure rule (`holds.decide`). The one process that owns its database needs no
durable holds: were it killed, every request in flight would be over too.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, func, insert, select

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.storage import tables
from qwenstack.studio.charge import Charge
from qwenstack.studio.ledger.entries import workspace_account
from qwenstack.studio.ledger.holds import BudgetPosition, Hold, HoldRequest, Position, decide
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.standing import FreeQuota, Standing, read_standing
from qwenstack.studio.ledger.writes import Forget, Run

_Key = TypeVar("_Key")


class Funds(Protocol):
    """Reserves money and free tokens for requests. `stored`: each hold is a row to be deleted."""

    stored: bool

    async def place(self, request: HoldRequest) -> Hold:
        """Reserve, or raise Refusal."""
        ...

    def release(self, hold: Hold) -> None:
        """Give a hold back; nothing was charged."""
        ...

    def settled(self, hold: Hold, charge: Charge) -> None:
        """Turn a hold into what was charged, once that is durable."""
        ...

    async def refresh(self) -> None:
        """Take up what others wrote to the ledger (top-ups, grants)."""
        ...


class MemoryFunds:
    """Holds of the one process that writes to this ledger."""

    stored = False

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._balances: dict[str, int] = {}
        self._spent: dict[tuple[str, int], int] = {}
        self._quotas: dict[tuple[str, str], FreeQuota] = {}
        self._held: dict[str, int] = defaultdict(int)
        self._held_budgets: dict[tuple[str, int], int] = defaultdict(int)
        self._held_tokens: dict[tuple[str, str], int] = defaultdict(int)

    async def refresh(self) -> None:
        """Read the standing behind every settlement handed in so far."""
        await self._journal.submit(Run(read_standing), self._take_up)

    def _take_up(self, standing: object) -> None:
        assert isinstance(standing, Standing)
        # The journal acknowledges in order: these figures hold just what `settled` was told of.
        self._balances = dict(standing.balances)
        self._spent = dict(standing.spent)
        self._quotas = dict(standing.quotas)

    async def place(self, request: HoldRequest) -> Hold:
        """Reserve, or raise Refusal."""
        hold = decide(request, self._position(request))
        self._hold(hold, 1)
        return hold

    def release(self, hold: Hold) -> None:
        """Give a hold back; nothing was charged."""
        self._hold(hold, -1)

    def settled(self, hold: Hold, charge: Charge) -> None:
        """Turn a hold into what was charged."""
        self._hold(hold, -1)
        workspace_id = charge.workspace_id
        self._balances[workspace_id] = self._balances.get(workspace_id, 0) - charge.amount_micro
        for budget, start_us in hold.request.budgets:
            key = (budget.id, start_us)
            self._spent[key] = self._spent.get(key, 0) + charge.amount_micro
        quota = self._quotas.get((workspace_id, charge.model))
        free = sum(line.free for line in charge.lines)
        if quota is not None and free:
            self._quotas[workspace_id, charge.model] = msgspec.structs.replace(
                quota, used_tokens=quota.used_tokens + free
            )

    def _position(self, request: HoldRequest) -> Position:
        quota_key = (request.workspace_id, request.model)
        quota = self._quotas.get(quota_key)
        return Position(
            balance_micro=self._balances.get(request.workspace_id, 0),
            held_micro=self._held[request.workspace_id],
            free_tokens_left=(
                quota.left(request.at_us) - self._held_tokens[quota_key] if quota else 0
            ),
            budgets=tuple(
                BudgetPosition(
                    self._spent.get((budget.id, start_us), 0),
                    self._held_budgets.get((budget.id, start_us), 0),
                )
                for budget, start_us in request.budgets
            ),
        )

    def _hold(self, hold: Hold, sign: int) -> None:
        request = hold.request
        _change(self._held, request.workspace_id, sign * hold.amount_micro)
        for budget, start_us in request.budgets:
            _change(self._held_budgets, (budget.id, start_us), sign * hold.amount_micro)
        if hold.free_tokens:
            _change(
                self._held_tokens, (request.workspace_id, request.model), sign * hold.free_tokens
            )


class SharedFunds:
    """Holds as rows, decided under a lock on the workspace: for several workers on PostgreSQL.

    A settlement deletes its hold in its own transaction. Holds of a worker that died go with its
    lease (`recovery`).
    """

    stored = True

    def __init__(self, journal: Journal, worker_id: str) -> None:
        self._journal = journal
        self._worker_id = worker_id

    async def refresh(self) -> None:
        """Nothing to do: every decision reads the database."""

    async def place(self, request: HoldRequest) -> Hold:
        """Reserve, or raise Refusal."""
        hold = await self._journal.submit(Run(lambda connection: self._place(connection, request)))
        if isinstance(hold, Exception):
            raise hold
        assert isinstance(hold, Hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Give a hold back; nothing was charged."""
        self._journal.submit(Forget((hold.request.request_id,)))

    def settled(self, hold: Hold, charge: Charge) -> None:
        """Nothing to do: the settlement's transaction did."""

    def _place(self, connection: Connection, request: HoldRequest) -> Hold | Exception:
        # A refusal is a result and not an exception here: it must not undo its batch.
        workspace = tables.workspaces
        connection.execute(
            select(workspace.c.id).where(workspace.c.id == request.workspace_id).with_for_update()
        )
        try:
            hold = decide(request, _shared_position(connection, request))
        except Refusal as refusal:
            return refusal
        connection.execute(
            insert(tables.holds).values(
                request_id=request.request_id,
                worker_id=self._worker_id,
                workspace_id=request.workspace_id,
                key_id=request.key_id,
                model=request.model,
                amount_micro=hold.amount_micro,
                free_tokens=hold.free_tokens,
                placed_us=now_us(),
            )
        )
        return hold


def _shared_position(connection: Connection, request: HoldRequest) -> Position:
    balance, hold, quota = tables.balances, tables.holds, tables.free_quotas
    amount = connection.scalar(
        select(balance.c.amount_micro).where(
            balance.c.account == workspace_account(request.workspace_id),
            balance.c.currency == request.currency,
        )
    )
    held = connection.execute(
        select(
            hold.c.key_id,
            hold.c.model,
            func.sum(hold.c.amount_micro),
            func.sum(hold.c.free_tokens),
        )
        .where(hold.c.workspace_id == request.workspace_id)
        .group_by(hold.c.key_id, hold.c.model)
    ).all()
    free = connection.execute(
        select(quota).where(
            quota.c.workspace_id == request.workspace_id, quota.c.model == request.model
        )
    ).one_or_none()
    free_left = (
        FreeQuota(free.granted_tokens, free.used_tokens, free.expires_us).left(request.at_us)
        if free
        else 0
    )
    budgets = []
    for budget, start_us in request.budgets:
        spend = tables.budget_spend
        spent = connection.scalar(
            select(spend.c.spent_micro).where(
                spend.c.budget_id == budget.id, spend.c.period_start_us == start_us
            )
        )
        mine = sum(int(row[2]) for row in held if budget.key_id in (None, row[0]))
        budgets.append(BudgetPosition(spent or 0, mine))
    return Position(
        balance_micro=amount or 0,
        held_micro=sum(int(row[2]) for row in held),
        free_tokens_left=free_left - sum(int(row[3]) for row in held if row[1] == request.model),
        budgets=tuple(budgets),
    )


def _change(table: dict[_Key, int], key: _Key, by: int) -> None:
    left = table.get(key, 0) + by
    if left:
        table[key] = left
    else:
        table.pop(key, None)
