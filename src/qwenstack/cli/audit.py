"""`qwenstack audit`: who did what, and that nobody rewrote it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from sqlalchemy import select

from qwenstack.cli.context import home_option, json_option, ledger_connection, print_json
from qwenstack.core.instants import from_us
from qwenstack.storage import tables
from qwenstack.storage.audit_log import verify as verify_chain


@click.group()
def audit() -> None:
    """The hash-chained log of administrative acts."""


@audit.command()
@home_option
@json_option
def verify(home: Path | None, as_json: bool) -> None:
    """Check the chain from its first line; exits with 1 at the first that does not hold."""
    with ledger_connection(home) as connection:
        lines, broken = verify_chain(connection)
    if as_json:
        print_json({"holds": broken is None, "lines": lines, "broken": broken})
    elif broken is None:
        click.echo(f"The audit log holds: {lines} lines.")
    else:
        click.echo(f"Line {broken.sequence} does not hold: {broken.reason}.")
    sys.exit(0 if broken is None else 1)


@audit.command("ls")
@click.option("--limit", default=20, show_default=True)
@home_option
@json_option
def list_lines(limit: int, home: Path | None, as_json: bool) -> None:
    """List the latest acts."""
    table = tables.audit
    with ledger_connection(home) as connection:
        rows = connection.execute(
            select(table).order_by(table.c.sequence.desc()).limit(limit)
        ).all()
    if as_json:
        print_json([dict(row._mapping) for row in rows])
        return
    for row in rows:
        click.echo(
            f"{from_us(row.at_us):%Y-%m-%d %H:%M:%S}  {row.actor}  {row.action}  {row.subject}"
        )
