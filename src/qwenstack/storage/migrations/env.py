"""Alembic's entry point: migrations run on the connection that the caller holds."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from qwenstack.storage import hub_tables

# Any fixed number: two workers that start at once must not both create tables.
_POSTGRES_LOCK = 0x51574E


def run() -> None:
    """Run what is outstanding inside the caller's transaction."""
    connection = context.config.attributes["connection"]
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})"))
    context.configure(
        connection=connection, target_metadata=hub_tables.repos.metadata, render_as_batch=True
    )
    with context.begin_transaction():
        context.run_migrations()


run()
