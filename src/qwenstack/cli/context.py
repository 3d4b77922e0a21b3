"""What most commands share: the home folder, the settings, an open database, and printing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from qwenstack.studio.settings import CONFIGURATION_NAME, Settings, home_folder, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

# What only some commands need is imported where it is needed: the rest start faster.

_F = TypeVar("_F", bound=Callable[..., Any])


def home_option(command: _F) -> _F:
    """`--home`: where all state lives."""
    return click.option(
        "--home",
        envvar="QWENSTACK_HOME",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of all state (QWENSTACK_HOME). Default: ~/.qwenstack.",
    )(command)


def json_option(command: _F) -> _F:
    """`--json`: machine-readable output."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def only_workspace_option(command: _F) -> _F:
    """`--workspace`: keep to one of them, whose id `workspace_id_of` gives."""
    return click.option("--workspace", help="Name or id; without: all.")(command)


def workspace_id_of(connection: Connection, workspace: str | None) -> str | None:
    """The id of the workspace that an option names, None where it was left out; raises Refusal."""
    from qwenstack.studio.accounts import find_workspace

    return find_workspace(connection, workspace).id if workspace else None


def resolve_home(home: Path | None) -> Path:
    """The home folder that a command works on."""
    return home_folder(str(home) if home else None)


def read_settings(home: Path) -> Settings:
    """The settings of `home`; raises SettingsError."""
    return load_settings(home / CONFIGURATION_NAME)


def model_cache(home: Path) -> Path:
    """Where model weights are kept: `QWENSTACK_MODEL_CACHE`, else below the home folder."""
    return Path(os.environ.get("QWENSTACK_MODEL_CACHE") or home / "models").expanduser()


@contextmanager
def ledger_connection(home: Path | None) -> Iterator[Connection]:
    """A transaction on the home's database; commits at the end.

    It sees every bill whose answer has left, also of a server that runs beside.
    """
    from qwenstack.studio.installation import SPOOL_FOLDER, prepare
    from qwenstack.studio.ledger.spool import catch_up

    folder = resolve_home(home)
    database = prepare(read_settings(folder), folder)
    try:
        if missing := catch_up(folder / SPOOL_FOLDER, database):
            click.echo(
                f"{missing} bills of a server that was killed, or whose database is away, are in "
                f"{folder / SPOOL_FOLDER} and not in the database yet. The next `qwenstack serve` "
                "writes them.",
                err=True,
            )
        with database.begin() as connection:
            yield connection
    finally:
        database.dispose()


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


@functools.cache
def actor() -> str:
    """Who acts, for the audit log: the operating system's user name."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli:unknown"
