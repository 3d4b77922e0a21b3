"""When a budget's alert line is crossed: once for each budget and period, whoever sees it first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Connection

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import from_us, now_us
from qwenstack.core.refusals import Refusal
from qwenstack.storage import tables
from qwenstack.storage.database import insert_new
from qwenstack.studio.alerts.webhooks import Delivery, Webhook, queue, read_webhooks
from qwenstack.studio.tenancy import Budget, Period, Tenancy, Workspace, period_start_us


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """A budget and how far it is spent, as a message tells it."""

    id: str
    key_id: str | None
    period: Period
    period_start: datetime
    currency: str
    limit_micro: int
    spent_micro: int
    alert_percent: int
    stops: bool


class WorkspaceName(msgspec.Struct, frozen=True):
    """Whose budget it is."""

    id: str
    name: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of what is sent. `type` is `budget.alert`, or `test`, which is about no budget."""

    id: str
    type: str
    created_at: datetime
    workspace: WorkspaceName | None = None
    budget: BudgetState | None = None


class Crossing(msgspec.Struct, frozen=True):
    """A budget whose alert line is crossed in the period that began at `start_us`."""

    workspace: Workspace
    budget: Budget
    start_us: int
    spent_micro: int

    @property
    def key(self) -> tuple[str, int]:
        """What an alert is raised once for."""
        return self.budget.id, self.start_us


def crossings(
    tenancy: Tenancy, spent: Mapping[tuple[str, int], int], at: datetime
) -> Iterator[Crossing]:
    """Every budget whose alert line is crossed at `at`; `spent` is by budget and period."""
    for budgets in tenancy.budgets.values():
        for budget in budgets:
            start_us = period_start_us(budget.period, at)
            micro = spent.get((budget.id, start_us), 0)
            if micro * 100 >= budget.limit_micro * budget.alert_percent:
                workspace = tenancy.workspaces[budget.workspace_id]
                yield Crossing(workspace, budget, start_us, micro)


def raise_alert(connection: Connection, crossing: Crossing) -> tuple[bool, list[str]]:
    """Have an alert sent unless it was raised before: whether it is new, and what kept it back."""
    message_id, now = new_id("alr"), now_us()
    row = {
        "budget_id": crossing.budget.id,
        "period_start_us": crossing.start_us,
        "id": message_id,
        "raised_us": now,
    }
    if not insert_new(connection, tables.alerts, row):
        return False, []
    body = msgspec.json.encode(_message(message_id, crossing, now))
    problems = []
    for webhook in read_webhooks(connection):
        if webhook.workspace_id in (None, crossing.workspace.id):
            try:
                queue(connection, webhook, message_id, body)
            except Refusal as refusal:
                problems.append(str(refusal))
    return True, problems


def trial() -> Message:
    """A message that says nothing but that messages arrive."""
    return Message(id=new_id("alr"), type="test", created_at=datetime.now(UTC))


def queue_test(connection: Connection, webhook: Webhook) -> Delivery:
    """Have a test sent; raises Refusal where too many messages wait."""
    message = trial()
    return queue(connection, webhook, message.id, msgspec.json.encode(message))


def _message(message_id: str, crossing: Crossing, now: int) -> Message:
    workspace, budget = crossing.workspace, crossing.budget
    return Message(
        id=message_id,
        type="budget.alert",
        created_at=from_us(now),
        workspace=WorkspaceName(workspace.id, workspace.name),
        budget=BudgetState(
            id=budget.id,
            key_id=budget.key_id,
            period=budget.period,
            period_start=from_us(crossing.start_us),
            currency=workspace.currency,
            limit_micro=budget.limit_micro,
            spent_micro=crossing.spent_micro,
            alert_percent=budget.alert_percent,
            stops=budget.stops,
        ),
    )
