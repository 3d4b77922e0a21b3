"""What the hub's commands share: which hub, and a connection to its database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from qwenstack.cli.context import resolve_home
from qwenstack.storage.database import open_database

HUB_FOLDER = "hub"
DEFAULT_PORT = 8318
_F = TypeVar("_F", bound=Callable[..., Any])


def database_option(command: _F) -> _F:
    """`--database`: where the hub's tables are."""
    return click.option(
        "--database",
        envvar="QWENSTACK_HUB_DATABASE",
        help="The hub's database, postgresql://… (QWENSTACK_HUB_DATABASE). Default: SQLite in the "
        "home folder.",
    )(command)


def objects_option(command: _F) -> _F:
    """`--objects`: where the hub's bytes are."""
    return click.option(
        "--objects",
        envvar="QWENSTACK_HUB_OBJECTS",
        help="The hub's bytes, s3://BUCKET/PREFIX?endpoint=URL (QWENSTACK_HUB_OBJECTS). Default: "
        "a folder in the home folder.",
    )(command)


def endpoint_option(command: _F) -> _F:
    """`--endpoint`: a hub on the wire."""
    return click.option(
        "--endpoint",
        envvar="HF_ENDPOINT",
        default=f"http://127.0.0.1:{DEFAULT_PORT}",
        show_default=True,
        help="The hub's address (HF_ENDPOINT).",
    )(command)


def hub_folder(home: Path | None) -> Path:
    """Where the hub of this home keeps its state."""
    return resolve_home(home) / HUB_FOLDER


@contextmanager
def hub_connection(home: Path | None, database: str | None) -> Iterator[Connection]:
    """A transaction on the hub's database; commits at the end."""
    folder = hub_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(database or f"sqlite:///{folder / 'hub.db'}")
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
