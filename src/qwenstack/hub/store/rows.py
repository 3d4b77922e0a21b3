"""Inserting what may be there already, and asking for many keys a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

_T = TypeVar("_T")
_KEYS = 500


def insert_new(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert those of `rows` whose primary key is not there yet; the others stay as they are."""
    if rows:
        connection.execute(_insert(connection, table), list(rows))


def insert_one(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert `row`; whether it was new."""
    # Asked for in the statement: drivers disagree on how many rows an insert says it touched.
    statement = _insert(connection, table).returning(*table.primary_key.columns)
    return connection.execute(statement, row).first() is not None


def batches(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """`values` in runs that fit a query's parameters."""
    for start in range(0, len(values), _KEYS):
        yield values[start : start + _KEYS]


def _insert(connection: Connection, table: Table) -> Any:
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return make(table).on_conflict_do_nothing()
