"""What other processes must take up: a counter a topic, which each of them looks at."""

from __future__ import annotations

from sqlalchemy import Connection, select

from qwenstack.storage import tables
from qwenstack.storage.database import add_to

TENANCY = "tenancy"
FUNDS_TOPIC = "funds"


def version_of(connection: Connection, topic: str) -> int:
    """How often `topic` has changed."""
    version = connection.scalar(
        select(tables.changes.c.version).where(tables.changes.c.topic == topic)
    )
    return version or 0


def note_change(connection: Connection, topic: str) -> None:
    """Say, in the caller's transaction, that `topic` has changed."""
    add_to(connection, tables.changes, [{"topic": topic, "version": 1}], "version")
