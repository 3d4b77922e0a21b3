"""`qwenstack admin raises`: more requests or tokens a minute than the plan, for a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from rich.table import Column, Table

from qwenstack.cli.context import (
    actor,
    home_option,
    json_option,
    ledger_connection,
    only_workspace_option,
    print_json,
    workspace_id_of,
)
from qwenstack.cli.instants import parse_duration_s, parse_instant_us, shown_instant
from qwenstack.cli.tables import show_table
from qwenstack.core.instants import now_us
from qwenstack.studio import accounts, raised_limits
from qwenstack.studio.admission.raises import Raise


@click.group()
def raises() -> None:
    """More than the plan allows, until an instant; then the plan holds again by itself.

    \b
    Examples:
      qwenstack admin raises create acme --rpm 1200 --tpm 500000 --for 2h --reason launch
      qwenstack admin raises ls
    """


@raises.command("create")
@click.argument("workspace")
@click.option("--rpm", type=int, help="Requests a minute.")
@click.option("--tpm", type=int, help="Tokens a minute.")
@click.option("--for", "lasts", help="How long: 30m, 2h, 7d; at most 30d.")
@click.option("--until", help="Instead of --for: an instant such as 2026-12-01T08:00Z.")
@click.option("--model", help="Only this model's limit; without: every model's and the whole.")
@click.option("--key", help="Only this key's own limit (id or prefix).")
@click.option("--reason", default="", help="Kept with it and in the audit log.")
@home_option
@json_option
def create_raise(
    workspace: str,
    rpm: int | None,
    tpm: int | None,
    lasts: str | None,
    until: str | None,
    model: str | None,
    key: str | None,
    reason: str,
    home: Path | None,
    as_json: bool,
) -> None:
    """Raise the limits of a workspace, or of one of its keys."""
    if (lasts is None) == (until is None):
        raise click.UsageError("Say how long, with either --for 2h or --until 2026-12-01T08:00Z.")
    until_us = (
        parse_instant_us(until) if until else now_us() + parse_duration_s(lasts or "") * 1_000_000
    )
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        made = raised_limits.raise_limit(
            connection,
            actor=actor(),
            workspace_id=found.id,
            until_us=until_us,
            key=accounts.find_key(connection, key) if key else None,
            model=model,
            requests_per_minute=rpm,
            tokens_per_minute=tpm,
            reason=reason,
        )
    if as_json:
        print_json(made)
    else:
        click.echo(f"Raise {made.id}: {found.name} may use {shown_raise(made)}.")


@raises.command("ls")
@only_workspace_option
@home_option
@json_option
def list_raises(workspace: str | None, home: Path | None, as_json: bool) -> None:
    """List the raises that hold now."""
    with ledger_connection(home) as connection:
        tenancy = accounts.read_tenancy(connection)
        only = workspace_id_of(connection, workspace)
    found = [
        each
        for group in tenancy.raises.values()
        for each in group
        if only is None or each.workspace_id == only
    ]
    if as_json:
        print_json(found)
        return
    table = Table(Column("id", no_wrap=True), "workspace", "raised to", "reason")
    for each in found:
        table.add_row(
            each.id, tenancy.workspaces[each.workspace_id].name, shown_raise(each), each.reason
        )
    show_table(table)


@raises.command("end")
@click.argument("raise_id", metavar="ID")
@home_option
def end_raise(raise_id: str, home: Path | None) -> None:
    """End a raise before its time."""
    with ledger_connection(home) as connection:
        raised_limits.end_raise(connection, actor=actor(), raise_id=raise_id)
    click.echo(f"{raise_id} is over; the plan's limits hold again.")


def shown_raise(made: Raise) -> str:
    """A raise in words: `1,200 RPM and 500,000 TPM of qwen3-8b until 2026-12-01 08:00:00`."""
    figures = [
        f"{figure:,} {unit}"
        for figure, unit in ((made.requests_per_minute, "RPM"), (made.tokens_per_minute, "TPM"))
        if figure is not None
    ]
    of = f" of {made.model}" if made.model else f" with {made.key_id}" if made.key_id else ""
    return f"{' and '.join(figures)}{of} until {shown_instant(made.until_us)}"


def shown_raises(raised: Iterable[Raise]) -> str:
    """A line each; a dash for none."""
    return "\n".join(map(shown_raise, raised)) or "-"
