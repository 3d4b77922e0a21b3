"""`qwenstack invoice`: a workspace's bill, for people and for machines."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from qwenstack.cli.context import home_option, json_option, ledger_connection
from qwenstack.cli.instants import parse_period
from qwenstack.cli.tables import console
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.accounts import find_workspace, read_tenancy
from qwenstack.studio.focus import FocusParties, focus_csv
from qwenstack.studio.invoice_pdf import invoice_pdf
from qwenstack.studio.invoice_render import invoice_json, invoice_table
from qwenstack.studio.statement import invoice_for
from qwenstack.studio.tenancy import Workspace


@click.command()
@click.option("--workspace", help="Name or id; may be left out where there is only one.")
@click.option("--period", default="month", show_default=True, help="2026-11, today, 7d, …")
@click.option("--issuer", default="QwenStack", show_default=True, help="Who bills.")
@click.option("--pdf", type=click.Path(dir_okay=False, path_type=Path), help="Write a PDF.")
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write CSV in the FinOps FOCUS columns.",
)
@home_option
@json_option
def invoice(
    workspace: str | None,
    period: str,
    issuer: str,
    pdf: Path | None,
    csv: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Print an invoice, or write it as PDF or CSV.

    \b
    Examples:
      qwenstack invoice
      qwenstack invoice --workspace acme --period 2026-11 --pdf acme.pdf
      qwenstack invoice --csv focus.csv --json
    """
    start, end = parse_period(period, datetime.now(UTC).date())
    with ledger_connection(home) as connection:
        found = (
            find_workspace(connection, workspace)
            if workspace
            else _only_workspace(list(read_tenancy(connection).workspaces.values()))
        )
        bill = invoice_for(
            connection, found, start, end, issuer=issuer, issued_at=datetime.now(UTC)
        )
    if pdf is not None:
        pdf.write_bytes(invoice_pdf(bill))
        click.echo(f"Wrote {pdf}.", err=True)
    if csv is not None:
        csv.write_text(focus_csv(bill, FocusParties(provider=issuer, publisher=issuer)))
        click.echo(f"Wrote {csv}.", err=True)
    if as_json:
        click.echo(invoice_json(bill))
    elif pdf is None and csv is None:
        console().print(invoice_table(bill))


def _only_workspace(workspaces: list[Workspace]) -> Workspace:
    if len(workspaces) == 1:
        return workspaces[0]
    names = ", ".join(sorted(each.name for each in workspaces)) or "none yet"
    raise Refusal(
        RefusalKind.INVALID_REQUEST,
        f"Say which workspace with --workspace NAME; there is: {names}.",
    )
