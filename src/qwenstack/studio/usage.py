"""Reading what was consumed: charges of a period, and their sums by model, key, region or day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Literal

import msgspec
from sqlalchemy import Connection, select

from qwenstack.core.tokens import TokenUsage
from qwenstack.storage import tables
from qwenstack.studio.charge import Charge
from qwenstack.studio.ledger.entries import reversal_id
from qwenstack.studio.ledger.writes import charge_of

Grouping = Literal["model", "key", "region", "day", "surface", "outcome"]
_FETCH_ROWS = 2000


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over one group's charges."""

    group: str
    currency: str
    requests: int
    interrupted: int
    usage: TokenUsage
    amount_micro: int


def read_charges(
    connection: Connection,
    *,
    start_us: int,
    end_us: int,
    workspace_id: str | None = None,
    key_id: str | None = None,
    with_reversed: bool = False,
) -> Iterator[Charge]:
    """The charges that ended in [start, end), oldest first.

    Those that were taken back are left out unless `with_reversed`.
    """
    charge, entry = tables.charges, tables.transactions
    query = (
        select(charge)
        .where(charge.c.finished_us >= start_us, charge.c.finished_us < end_us)
        .order_by(charge.c.finished_us, charge.c.request_id)
    )
    if not with_reversed:
        undone = entry.c.id == charge.c.request_id + reversal_id("")
        query = query.where(~select(entry.c.id).where(undone).exists())
    if workspace_id is not None:
        query = query.where(charge.c.workspace_id == workspace_id)
    if key_id is not None:
        query = query.where(charge.c.key_id == key_id)
    rows = connection.execution_options(yield_per=_FETCH_ROWS).execute(query)
    for row in rows:
        yield charge_of(row)


def sum_usage(charges: Iterable[Charge], grouping: Grouping) -> list[UsageLine]:
    """Sum charges by `grouping` and currency, in the group's order; holds the sums only."""
    lines: dict[tuple[str, str], UsageLine] = {}
    for charge in charges:
        key = (_group_of(charge, grouping), charge.currency)
        line = lines.get(key) or UsageLine(
            group=key[0],
            currency=key[1],
            requests=0,
            interrupted=0,
            usage=TokenUsage(),
            amount_micro=0,
        )
        lines[key] = _with(line, charge)
    return [line for _, line in sorted(lines.items())]


def _with(line: UsageLine, charge: Charge) -> UsageLine:
    return UsageLine(
        group=line.group,
        currency=line.currency,
        requests=line.requests + 1,
        interrupted=line.interrupted + (charge.outcome == "interrupted"),
        usage=line.usage + charge.usage,
        amount_micro=line.amount_micro + charge.amount_micro,
    )


def _group_of(charge: Charge, grouping: Grouping) -> str:
    match grouping:
        case "model":
            return charge.model
        case "key":
            return charge.key_id
        case "region":
            return charge.region
        case "surface":
            return charge.surface
        case "outcome":
            return charge.outcome
        case "day":
            day: date = charge.finished_at.date()
            return day.isoformat()
