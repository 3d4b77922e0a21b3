"""A workspace's invoice for a period, from the ledger alone.

A charge belongs to the period in which it finished and stays on that invoice for good; if it is
taken back later, the reversal stands as an adjustment on the invoice of the period of that act. So
an old invoice recomputes to the same amounts at any time.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select

from qwenstack.core.instants import from_us, to_us
from qwenstack.storage import tables
from qwenstack.studio.invoice import (
    Entry,
    EntryKind,
    Invoice,
    InvoiceHead,
    Statement,
    build_invoice,
)
from qwenstack.studio.ledger.entries import workspace_account
from qwenstack.studio.tenancy import Workspace
from qwenstack.studio.usage import read_charges

_KINDS: dict[str, EntryKind] = {
    "top_up": "top_up",
    "grant": "credit",
    "refund": "adjustment",
    "reversal": "adjustment",
}


def invoice_for(
    connection: Connection,
    workspace: Workspace,
    start: datetime,
    end: datetime,
    *,
    issuer: str,
    issued_at: datetime,
) -> Invoice:
    """The invoice of [start, end), with the balance before and after."""
    start_us, end_us = to_us(start), to_us(end)
    key = tables.api_keys
    names = connection.execute(
        select(key.c.id, key.c.name).where(key.c.workspace_id == workspace.id)
    )
    return build_invoice(
        read_charges(
            connection,
            start_us=start_us,
            end_us=end_us,
            workspace_id=workspace.id,
            with_reversed=True,
        ),
        InvoiceHead(
            invoice_id=f"{workspace.id[-8:]}-{start:%Y%m%d}-{end:%Y%m%d}",
            issuer=issuer,
            workspace_id=workspace.id,
            workspace_name=workspace.name,
            currency=workspace.currency,
            period_start=start,
            period_end=end,
            issued_at=issued_at,
        ),
        entries=_entries(connection, workspace, start_us, end_us),
        statement=Statement(
            opening_micro=_balance_before(connection, workspace, start_us),
            closing_micro=_balance_before(connection, workspace, end_us),
        ),
        key_names={row.id: row.name for row in names},
    )


def _entries(
    connection: Connection, workspace: Workspace, start_us: int, end_us: int
) -> list[Entry]:
    entry, posting = tables.transactions, tables.postings
    rows = connection.execute(
        select(entry.c.at_us, entry.c.kind, entry.c.memo, entry.c.id, posting.c.amount_micro)
        .join(posting, posting.c.transaction_id == entry.c.id)
        .where(
            entry.c.workspace_id == workspace.id,
            entry.c.kind != "charge",
            entry.c.at_us >= start_us,
            entry.c.at_us < end_us,
            posting.c.account == workspace_account(workspace.id),
            posting.c.currency == workspace.currency,
        )
    )
    return [
        Entry(
            at=from_us(row.at_us),
            kind=_KINDS[row.kind],
            description=row.memo or row.id,
            amount_micro=row.amount_micro,
        )
        for row in rows
    ]


def _balance_before(connection: Connection, workspace: Workspace, at_us: int) -> int:
    entry, posting = tables.transactions, tables.postings
    total = connection.scalar(
        select(func.sum(posting.c.amount_micro))
        .join(entry, posting.c.transaction_id == entry.c.id)
        .where(
            posting.c.account == workspace_account(workspace.id),
            posting.c.currency == workspace.currency,
            entry.c.at_us < at_us,
        )
    )
    return int(total or 0)
