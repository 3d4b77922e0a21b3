"""Proving the ledger: every entry balances, every projection follows from the entries."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from qwenstack.storage import tables

PROBLEMS_MAX = 100


def verify_ledger(connection: Connection) -> list[str]:
    """What does not hold, in sentences; empty when everything does. At most `PROBLEMS_MAX`."""
    problems = [
        *_unbalanced(connection),
        *_charges_without_entry(connection),
        *_wrong_balances(connection),
    ]
    return problems[:PROBLEMS_MAX]


def _unbalanced(connection: Connection) -> list[str]:
    posting = tables.postings
    total = func.sum(posting.c.amount_micro)
    rows = connection.execute(
        select(posting.c.transaction_id, posting.c.currency, total.label("total"))
        .group_by(posting.c.transaction_id, posting.c.currency)
        .having(total != 0)
        .limit(PROBLEMS_MAX)
    )
    return [
        f"entry {row.transaction_id} is off by {row.total} micro-{row.currency}" for row in rows
    ]


def _charges_without_entry(connection: Connection) -> list[str]:
    charge, posting = tables.charges, tables.postings
    posted = (
        select(func.coalesce(func.sum(posting.c.amount_micro), 0))
        .where(
            posting.c.transaction_id == charge.c.request_id,
            posting.c.account == "workspace:" + charge.c.workspace_id,
        )
        .scalar_subquery()
    )
    rows = connection.execute(
        select(charge.c.request_id, charge.c.amount_micro, posted.label("posted"))
        .where(posted != -charge.c.amount_micro)
        .limit(PROBLEMS_MAX)
    )
    return [
        f"charge {row.request_id} is {row.amount_micro} micro-units and {-row.posted} were posted"
        for row in rows
    ]


def _wrong_balances(connection: Connection) -> list[str]:
    posting, balance = tables.postings, tables.balances
    summed = {
        (row.account, row.currency): int(row.total)
        for row in connection.execute(
            select(
                posting.c.account,
                posting.c.currency,
                func.sum(posting.c.amount_micro).label("total"),
            ).group_by(posting.c.account, posting.c.currency)
        )
    }
    kept = {
        (row.account, row.currency): row.amount_micro for row in connection.execute(select(balance))
    }
    return [
        f"the balance of {account} is kept as {kept.get((account, currency), 0)} micro-{currency} "
        f"and its postings sum to {summed.get((account, currency), 0)}"
        for account, currency in sorted(summed.keys() | kept.keys())
        if summed.get((account, currency), 0) != kept.get((account, currency), 0)
    ]
