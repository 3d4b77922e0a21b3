"""Where every workspace stands, read from the database in one go."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from qwenstack.storage import tables
from qwenstack.studio.ledger.entries import workspace_account

_ACCOUNT_PREFIX = workspace_account("")


class FreeQuota(msgspec.Struct, frozen=True):
    """A grant of free tokens for one model, and how much of it is used."""

    granted_tokens: int
    used_tokens: int
    expires_us: int

    def left(self, at_us: int) -> int:
        """Tokens left at an instant; none once it is over."""
        return max(self.granted_tokens - self.used_tokens, 0) if at_us < self.expires_us else 0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Durable facts: balances by workspace, spend by (budget, period), free quota by model."""

    balances: dict[str, int]
    spent: dict[tuple[str, int], int]
    quotas: dict[tuple[str, str], FreeQuota]


def read_standing(connection: Connection) -> Standing:
    """Read the projections; a workspace's balance is in its own currency."""
    balance = tables.balances
    workspace = tables.workspaces
    rows = connection.execute(
        select(balance.c.account, balance.c.amount_micro)
        .join(workspace, balance.c.account == _ACCOUNT_PREFIX + workspace.c.id)
        .where(balance.c.currency == workspace.c.currency)
    )
    balances = {row.account.removeprefix(_ACCOUNT_PREFIX): row.amount_micro for row in rows}
    spent = {
        (row.budget_id, row.period_start_us): row.spent_micro
        for row in connection.execute(select(tables.budget_spend))
    }
    quotas = {
        (row.workspace_id, row.model): FreeQuota(
            row.granted_tokens, row.used_tokens, row.expires_us
        )
        for row in connection.execute(select(tables.free_quotas))
    }
    return Standing(balances=balances, spent=spent, quotas=quotas)
