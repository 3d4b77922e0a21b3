"""The first start of a hub: an operator, and the token that lets them in, shown once."""

from __future__ import annotations

from sqlalchemy import Connection

from qwenstack.hub.accounts.directory import count_operators, create_account
from qwenstack.hub.accounts.tokens import NewToken, create_token

OPERATOR = "operator"


def ensure_operator(connection: Connection, name: str = OPERATOR) -> NewToken | None:
    """Make an operator and their write token where the hub has no operator yet; else None."""
    if count_operators(connection):
        return None
    account = create_account(connection, name=name, full_name="Operator", operator=True)
    return create_token(connection, account=account.key, name="first start", role="write")
