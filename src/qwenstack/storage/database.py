"""Opening the database, by URL: SQLite in a file (the default) or PostgreSQL."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    Table,
    bindparam,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

MIGRATIONS = Path(__file__).parent / "migrations"
_CONNECT_TIMEOUT_S = 10
_LOCK_TIMEOUT_S = 30


class DatabaseUnavailable(Exception):
    """The database cannot be reached or written to; the message says which and why."""


def open_database(url: str) -> Engine:
    """Open `sqlite:///path` or `postgresql://…` and bring its tables up to date.

    Every SQLite connection is in WAL mode with `synchronous=FULL`: a committed transaction survives
    a power cut. Raises DatabaseUnavailable when it cannot be opened, ValueError for another kind.
    """
    engine = connect(url)
    try:
        _migrate(engine)
    except DBAPIError as error:
        raise DatabaseUnavailable(f"cannot open {shown(url)}: {error.orig}") from error
    return engine


@contextmanager
def reading(database: Engine) -> Iterator[Connection]:
    """A connection that only reads: on SQLite it waits for no writer."""
    with database.connect().execution_options(read_only=True) as connection:
        yield connection


def connect(url: str) -> Engine:
    """The engine for `url` without touching the tables; raises ValueError for another kind."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(
            f"database.url {url!r} is no URL; try sqlite:////path/to/file.db"
        ) from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database:
            raise ValueError("database.url names no file; write sqlite:////path/to/file.db")
        engine = create_engine(parsed, connect_args={"timeout": _LOCK_TIMEOUT_S})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=4,
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S},
        )
    raise ValueError(
        f"database.url has the scheme {parsed.drivername!r}; use sqlite:/// or postgresql://"
    )


def shown(url: str) -> str:
    """The URL with its password hidden, for messages."""
    return make_url(url).render_as_string(hide_password=True)


def insert_many(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert `rows`, which all have the same keys. Raises IntegrityError for one that exists."""
    if rows:
        _run_many(connection, _insert_sql(connection.dialect, table, tuple(rows[0])), rows)


def add_to(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]], column: str
) -> None:
    """Insert `rows`; where the primary key exists already, add `column` to the stored value."""
    if rows:
        _run_many(connection, _add_sql(connection.dialect, table, tuple(rows[0]), column), rows)


class _Sql(NamedTuple):
    """A statement in its driver's own words; `order` is given where those are positional."""

    text: str
    order: tuple[str, ...] | None


def _run_many(connection: Connection, sql: _Sql, rows: Sequence[dict[str, Any]]) -> None:
    # Past the compiler: the ledger runs these few statements thousands of times a second, and
    # rebuilding each would cost more than the database does.
    if sql.order is None:
        connection.exec_driver_sql(sql.text, list(rows))
    else:
        order = sql.order
        connection.exec_driver_sql(sql.text, [tuple(row[name] for name in order) for row in rows])


@functools.cache
def _insert_sql(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> _Sql:
    return _compile(dialect, _insert(dialect, table).values(_binds(columns)))


@functools.cache
def _add_sql(dialect: Dialect, table: Table, columns: tuple[str, ...], column: str) -> _Sql:
    statement = _insert(dialect, table).values(_binds(columns))
    keys = [key.name for key in table.primary_key.columns]
    added = table.c[column] + statement.excluded[column]
    return _compile(
        dialect, statement.on_conflict_do_update(index_elements=keys, set_={column: added})
    )


def _insert(dialect: Dialect, table: Table) -> Any:
    return (sqlite.insert if dialect.name == "sqlite" else postgresql.insert)(table)


def _binds(columns: tuple[str, ...]) -> dict[str, Any]:
    return {name: bindparam(name) for name in columns}


def _compile(dialect: Dialect, statement: Any) -> _Sql:
    compiled = statement.compile(dialect=dialect)
    order = compiled.positiontup
    return _Sql(str(compiled), None if order is None else tuple(order))


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert `row` unless its primary key exists already; whether it is new."""
    statement = _insert(connection.dialect, table).values(row).on_conflict_do_nothing()
    # Not every driver counts the rows of such a statement.
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


def replace_in(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert `rows`, replacing those whose primary key exists already."""
    if not rows:
        return
    keys = [key.name for key in table.primary_key.columns]
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = make(table)
    updates = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=updates), rows)


def is_gone(error: DBAPIError) -> bool:
    """Whether the database went away or is full, so that a later try of the same can succeed."""
    return isinstance(error, OperationalError) or error.connection_invalidated


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction handling is switched off so that BEGIN is ours to send.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "wal_autocheckpoint=4000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once; a deferred one can fail half-way when it upgrades.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    if _is_current(engine):
        return
    # Imported here: alembic costs every start half a second, and nearly none has to migrate.
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")


def _is_current(engine: Engine) -> bool:
    """Whether the tables are those of the newest migration, whose file names start with its id."""
    newest = max(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return False
        present: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return present == newest
