"""`qwenstack ledger`: prove that it holds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qwenstack.cli.context import home_option, json_option, ledger_connection, print_json
from qwenstack.studio.ledger.verify import verify_ledger


@click.group()
def ledger() -> None:
    """The double-entry ledger."""


@ledger.command()
@home_option
@json_option
def verify(home: Path | None, as_json: bool) -> None:
    """Check that every entry balances and every balance follows; exits with 1 if not."""
    with ledger_connection(home) as connection:
        problems = verify_ledger(connection)
    if as_json:
        print_json({"holds": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) or "The ledger holds: every entry sums to zero.")
    sys.exit(1 if problems else 0)
