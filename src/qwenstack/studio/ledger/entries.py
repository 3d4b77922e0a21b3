"""Double entry: what each act of money posts, and to which accounts. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.instants import to_us
from qwenstack.studio.charge import Charge

EntryKind = Literal["charge", "top_up", "grant", "refund", "reversal"]

REVENUE = "revenue"
FUNDS = "funds"
GRANTS = "grants"


def workspace_account(workspace_id: str) -> str:
    """The account that holds what a workspace has left (or, below zero, owes)."""
    return f"workspace:{workspace_id}"


class Posting(msgspec.Struct, frozen=True):
    """A signed amount on an account."""

    account: str
    currency: str
    amount_micro: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction: its postings sum to zero in each currency."""

    id: str
    kind: EntryKind
    workspace_id: str
    at_us: int
    postings: tuple[Posting, ...]
    memo: str | None = None


class Unbalanced(ValueError):
    """An entry whose postings do not sum to zero; it is never written."""


def check_balanced(entry: Entry) -> Entry:
    """Give the entry back; raises Unbalanced where it does not sum to zero per currency."""
    sums: dict[str, int] = {}
    for posting in entry.postings:
        sums[posting.currency] = sums.get(posting.currency, 0) + posting.amount_micro
    wrong = {currency: total for currency, total in sums.items() if total}
    if wrong:
        raise Unbalanced(f"entry {entry.id} is off by {wrong} micro-units")
    return entry


def charge_entry(charge: Charge) -> Entry:
    """What a settled request posts: from the workspace to revenue."""
    return transfer(
        entry_id=charge.request_id,
        kind="charge",
        workspace_id=charge.workspace_id,
        source=workspace_account(charge.workspace_id),
        target=REVENUE,
        amount_micro=charge.amount_micro,
        currency=charge.currency,
        at_us=to_us(charge.finished_at),
    )


def transfer(
    *,
    entry_id: str,
    kind: EntryKind,
    workspace_id: str,
    source: str,
    target: str,
    amount_micro: int,
    currency: str,
    at_us: int,
    memo: str | None = None,
) -> Entry:
    """Move `amount_micro` from `source` to `target`; an amount of zero posts nothing."""
    if amount_micro < 0:
        raise ValueError(f"a transfer of {amount_micro} micro-units: swap the accounts instead")
    postings = (
        (
            Posting(source, currency, -amount_micro),
            Posting(target, currency, amount_micro),
        )
        if amount_micro
        else ()
    )
    return Entry(
        id=entry_id, kind=kind, workspace_id=workspace_id, at_us=at_us, postings=postings, memo=memo
    )


def reversal_id(entry_id: str) -> str:
    """The id of the entry that undoes `entry_id`: fixed, so that undoing twice is impossible."""
    return f"{entry_id}~r"


def reversal(entry: Entry, at_us: int, memo: str) -> Entry:
    """The entry that undoes `entry` posting by posting."""
    return Entry(
        id=reversal_id(entry.id),
        kind="reversal",
        workspace_id=entry.workspace_id,
        at_us=at_us,
        postings=tuple(
            Posting(posting.account, posting.currency, -posting.amount_micro)
            for posting in entry.postings
        ),
        memo=memo,
    )
