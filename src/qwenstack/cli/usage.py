"""`qwenstack usage`: what was consumed, and what it cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.table import Table

from qwenstack.cli.context import (
    home_option,
    json_option,
    ledger_connection,
    only_workspace_option,
    print_json,
    workspace_id_of,
)
from qwenstack.cli.instants import parse_period
from qwenstack.cli.tables import show_table
from qwenstack.core.instants import to_us
from qwenstack.core.money import Money
from qwenstack.studio.accounts import find_key
from qwenstack.studio.usage import Grouping, UsageLine, read_charges, sum_usage


@click.command()
@only_workspace_option
@click.option("--key", help="Only this key (id or prefix).")
@click.option("--period", default="month", show_default=True, help="today, 7d, 2026-11, …")
@click.option(
    "--by",
    type=click.Choice(["model", "key", "region", "day", "surface", "outcome"]),
    default="model",
    show_default=True,
)
@home_option
@json_option
def usage(
    workspace: str | None, key: str | None, period: str, by: str, home: Path | None, as_json: bool
) -> None:
    """Show requests, tokens and cost.

    \b
    Examples:
      qwenstack usage
      qwenstack usage --period 7d --by day
      qwenstack usage --workspace acme --by key --json
    """
    start, end = parse_period(period, datetime.now(UTC).date())
    with ledger_connection(home) as connection:
        charges = read_charges(
            connection,
            start_us=to_us(start),
            end_us=to_us(end),
            workspace_id=workspace_id_of(connection, workspace),
            key_id=find_key(connection, key).id if key else None,
        )
        lines = sum_usage(charges, msgspec.convert(by, Grouping))
    if as_json:
        print_json({"start": start, "end": end, "by": by, "lines": lines})
        return
    show_table(_table(lines, by, f"{start:%Y-%m-%d} to {end:%Y-%m-%d} (UTC)"))


def _table(lines: list[UsageLine], by: str, title: str) -> Table:
    table = Table(by, title=title)
    counted = {
        "requests": [line.requests for line in lines],
        "interrupted": [line.interrupted for line in lines],
        "prompt": [line.usage.prompt for line in lines],
        "cached": [line.usage.cached + line.usage.cached_explicit for line in lines],
        "completion": [line.usage.completion for line in lines],
        "reasoning": [line.usage.reasoning for line in lines],
    }
    # What most never have takes room only from those who have it.
    shown = {
        name: counts
        for name, counts in counted.items()
        if name not in ("interrupted", "reasoning") or any(counts)
    }
    for name in (*shown, "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, line in enumerate(lines):
        counts = (f"{counts[place]:,}" for counts in shown.values())
        table.add_row(line.group, *counts, str(Money(line.amount_micro, line.currency)))
    if not lines:
        table.caption = "Nothing was consumed in this period."
    return table
