"""What the journal writes: each act as a typed value, and how a batch of them becomes SQL.

Everything here runs on the journal's thread inside one database transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.exc import DBAPIError

from qwenstack.core.instants import from_us, now_us, to_us
from qwenstack.core.tokens import TokenUsage
from qwenstack.storage import tables
from qwenstack.storage.database import add_to, insert_many, is_gone, replace_in
from qwenstack.studio.charge import Charge, PriceLine
from qwenstack.studio.ledger.entries import (
    Entry,
    Posting,
    charge_entry,
    check_balanced,
    reversal,
    reversal_id,
)


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """Bill a request, exactly once: a second settlement of the same request changes nothing.

    `budgets` are (budget id, period start) pairs that the amount counts against. `line` is the
    batch line whose result becomes durable with its bill: (batch id, line, HTTP status, body).
    `leaves` says that the request has a saved stream or a stored hold, which go with its bill.
    """

    charge: Charge
    leaves: bool = True
    budgets: tuple[tuple[str, int], ...] = ()
    line: tuple[str, int, int, bytes] | None = None


class Post(msgspec.Struct, frozen=True):
    """Write an entry that is no charge (top-up, grant, refund)."""

    entry: Entry


class Reverse(msgspec.Struct, frozen=True):
    """Undo a charge whose answer never left, if it was written; twice is once."""

    request_id: str
    reason: str


class Checkpoint(msgspec.Struct, frozen=True):
    """What open streams delivered so far: (request id, encoded `Settle`) pairs."""

    worker_id: str
    streams: tuple[tuple[str, bytes], ...]


class Forget(msgspec.Struct, frozen=True):
    """Streams that ended without a bill."""

    request_ids: tuple[str, ...]


class Run(msgspec.Struct, frozen=True):
    """Any other durable act, in order with the rest: `act` gets the connection."""

    act: Callable[[Connection], object]


Write = Settle | Post | Reverse | Checkpoint | Forget | Run


def write_all(
    connection: Connection, writes: Sequence[Write], *, careful: bool = True
) -> list[object]:
    """Carry out `writes` in order; the result of each (True for a settlement that was new).

    Not `careful`, settlements are taken to be new without a look: one that is not raises
    IntegrityError, and the whole is to be tried again carefully.
    """
    results: list[object] = []
    for is_settle, group in groupby(writes, key=lambda write: isinstance(write, Settle)):
        if is_settle:
            settlements = [write for write in group if isinstance(write, Settle)]
            fresh = _settle(connection, settlements, careful=careful)
            results.extend(settle.charge.request_id in fresh for settle in settlements)
        else:
            results.extend(_write(connection, write) for write in group)
    return results


class Refused(msgspec.Struct, frozen=True):
    """In place of a write's result: it could not be carried out, and left nothing behind."""

    error: Exception


def write_each(connection: Connection, writes: Sequence[Write]) -> list[object]:
    """Carry out `writes` in order, each for itself: the result of each, or `Refused`.

    Raises DBAPIError where the database is gone.
    """
    results = _results_of(connection, writes)
    if not isinstance(results, Refused):
        return results
    each = (_results_of(connection, [write]) for write in writes)
    return [one if isinstance(one, Refused) else one[0] for one in each]


def _results_of(connection: Connection, writes: Sequence[Write]) -> list[object] | Refused:
    try:
        with connection.begin_nested():
            return write_all(connection, writes)
    except Exception as error:
        if isinstance(error, DBAPIError) and is_gone(error):
            raise
        return Refused(error)


def _write(connection: Connection, write: Write) -> object:
    match write:
        case Settle():
            return write.charge.request_id in _settle(connection, [write], careful=True)
        case Post(entry):
            _insert_entries(connection, [entry])
        case Reverse(request_id, reason):
            return _reverse(connection, request_id, reason)
        case Checkpoint(worker_id, streams):
            _checkpoint(connection, worker_id, streams)
        case Forget(request_ids):
            _forget(connection, request_ids)
        case Run(act):
            return act(connection)
    return None


def _settle(
    connection: Connection, settlements: Sequence[Settle], *, careful: bool
) -> dict[str, Settle]:
    """Write charges with their entries and projections; those that were new."""
    fresh = {settle.charge.request_id: settle for settle in reversed(settlements)}
    leaving = [request_id for request_id, settle in fresh.items() if settle.leaves]
    if careful and fresh:
        known = tables.transactions.c.id
        for request_id in connection.scalars(select(known).where(known.in_(list(fresh)))):
            del fresh[request_id]
    if fresh:
        new = list(fresh.values())
        _insert_entries(connection, [charge_entry(settle.charge) for settle in new])
        insert_many(connection, tables.charges, [charge_row(settle.charge) for settle in new])
        _project(connection, new)
    if leaving:
        _forget(connection, leaving)
    return fresh


def _insert_entries(connection: Connection, entries: Sequence[Entry]) -> None:
    postings = []
    totals: dict[tuple[str, str], int] = defaultdict(int)
    for entry in entries:
        for posting in check_balanced(entry).postings:
            postings.append(
                {
                    "transaction_id": entry.id,
                    "account": posting.account,
                    "currency": posting.currency,
                    "amount_micro": posting.amount_micro,
                }
            )
            totals[posting.account, posting.currency] += posting.amount_micro
    insert_many(
        connection,
        tables.transactions,
        [
            {
                "id": entry.id,
                "kind": entry.kind,
                "workspace_id": entry.workspace_id,
                "at_us": entry.at_us,
                "memo": entry.memo,
            }
            for entry in entries
        ],
    )
    insert_many(connection, tables.postings, postings)
    # Sorted, so that two writers on PostgreSQL take the row locks in the same order.
    add_to(
        connection,
        tables.balances,
        [
            {"account": account, "currency": currency, "amount_micro": total}
            for (account, currency), total in sorted(totals.items())
        ],
        "amount_micro",
    )


def _project(connection: Connection, settlements: Sequence[Settle]) -> None:
    spend: dict[tuple[str, int], int] = defaultdict(int)
    free: dict[tuple[str, str], int] = defaultdict(int)
    lines = []
    for settle in settlements:
        charge = settle.charge
        for budget_id, start_us in settle.budgets:
            spend[budget_id, start_us] += charge.amount_micro
        used = sum(line.free for line in charge.lines)
        if used:
            free[charge.workspace_id, charge.model] += used
        if settle.line is not None:
            lines.append(settle.line)
    add_to(
        connection,
        tables.budget_spend,
        [
            {"budget_id": budget, "period_start_us": start, "spent_micro": spent}
            for (budget, start), spent in sorted(spend.items())
            if spent
        ],
        "spent_micro",
    )
    for (workspace_id, model), used in sorted(free.items()):
        quota = tables.free_quotas
        connection.execute(
            update(quota)
            .where(quota.c.workspace_id == workspace_id, quota.c.model == model)
            .values(used_tokens=quota.c.used_tokens + used)
        )
    for batch_id, line, status, body in lines:
        row = tables.batch_lines
        connection.execute(
            update(row)
            .where(row.c.batch_id == batch_id, row.c.line == line)
            .values(status=status, body=body)
        )


def _reverse(connection: Connection, request_id: str, reason: str) -> bool:
    already = connection.scalar(
        select(func.count())
        .select_from(tables.transactions)
        .where(tables.transactions.c.id == reversal_id(request_id))
    )
    entry = find_entry(connection, request_id)
    if entry is None or already:
        return False
    _insert_entries(connection, [reversal(entry, now_us(), reason)])
    return True


def find_entry(connection: Connection, entry_id: str) -> Entry | None:
    """The entry with its postings, or None."""
    row = connection.execute(
        select(tables.transactions).where(tables.transactions.c.id == entry_id)
    ).one_or_none()
    if row is None:
        return None
    postings = connection.execute(
        select(tables.postings).where(tables.postings.c.transaction_id == entry_id)
    )
    return Entry(
        id=row.id,
        kind=row.kind,
        workspace_id=row.workspace_id,
        at_us=row.at_us,
        postings=tuple(Posting(p.account, p.currency, p.amount_micro) for p in postings),
        memo=row.memo,
    )


def _checkpoint(
    connection: Connection, worker_id: str, streams: Sequence[tuple[str, bytes]]
) -> None:
    at_us = now_us()
    replace_in(
        connection,
        tables.open_streams,
        [
            {
                "request_id": request_id,
                "worker_id": worker_id,
                "charge": settle,
                "updated_us": at_us,
            }
            for request_id, settle in streams
        ],
    )


def _forget(connection: Connection, request_ids: Sequence[str]) -> None:
    for table in (tables.open_streams, tables.holds):
        connection.execute(delete(table).where(table.c.request_id.in_(request_ids)))


def charge_row(charge: Charge) -> dict[str, object]:
    """The row of `charges` that holds `charge`."""
    return {
        "request_id": charge.request_id,
        "workspace_id": charge.workspace_id,
        "key_id": charge.key_id,
        "surface": charge.surface,
        "model": charge.model,
        "deployment": charge.deployment,
        "engine": charge.engine,
        "engine_version": charge.engine_version,
        "region": charge.region,
        "digest": charge.digest,
        "outcome": charge.outcome,
        "prompt_tokens": charge.usage.prompt,
        "completion_tokens": charge.usage.completion,
        "cached_tokens": charge.usage.cached,
        "cached_explicit_tokens": charge.usage.cached_explicit,
        "cache_creation_tokens": charge.usage.cache_creation,
        "reasoning_tokens": charge.usage.reasoning,
        "thinking": charge.thinking,
        "price": charge.price,
        "lines": msgspec.json.encode(charge.lines).decode(),
        "amount_micro": charge.amount_micro,
        "currency": charge.currency,
        "started_us": to_us(charge.started_at),
        "finished_us": to_us(charge.finished_at),
        "first_token_ms": charge.first_token_ms,
        "batch_id": charge.batch_id,
    }


def charge_of(row: Row[Any]) -> Charge:
    """The charge that a row of `charges` holds."""
    from_row = row._mapping
    return Charge(
        request_id=from_row["request_id"],
        workspace_id=from_row["workspace_id"],
        key_id=from_row["key_id"],
        surface=from_row["surface"],
        model=from_row["model"],
        deployment=from_row["deployment"],
        engine=from_row["engine"],
        engine_version=from_row["engine_version"],
        region=from_row["region"],
        digest=from_row["digest"],
        outcome=from_row["outcome"],
        usage=TokenUsage(
            prompt=from_row["prompt_tokens"],
            completion=from_row["completion_tokens"],
            cached=from_row["cached_tokens"],
            cached_explicit=from_row["cached_explicit_tokens"],
            cache_creation=from_row["cache_creation_tokens"],
            reasoning=from_row["reasoning_tokens"],
        ),
        thinking=from_row["thinking"],
        price=from_row["price"],
        lines=msgspec.json.decode(from_row["lines"], type=tuple[PriceLine, ...]),
        amount_micro=from_row["amount_micro"],
        currency=from_row["currency"],
        started_at=from_us(from_row["started_us"]),
        finished_at=from_us(from_row["finished_us"]),
        first_token_ms=from_row["first_token_ms"],
        batch_id=from_row["batch_id"],
    )
