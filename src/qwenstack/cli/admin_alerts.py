"""`qwenstack admin alerts`: where budget alerts are sent, and whether they arrive."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec
from rich.table import Column, Table

from qwenstack.cli.context import (
    actor,
    home_option,
    json_option,
    ledger_connection,
    only_workspace_option,
    print_json,
    read_settings,
    resolve_home,
    workspace_id_of,
)
from qwenstack.cli.instants import shown_instant
from qwenstack.cli.tables import show_table
from qwenstack.storage.audit_log import record
from qwenstack.studio import accounts
from qwenstack.studio.alerts import budgets, webhooks
from qwenstack.studio.alerts.sending import Sender
from qwenstack.studio.http.admin_alerts import shown_delivery, shown_webhook
from qwenstack.studio.installation import alert_sender


@click.group()
def alerts() -> None:
    """Webhooks: told, signed, when a budget's alert line is crossed.

    \b
    Examples:
      qwenstack admin alerts set https://hooks.example.com/budget --workspace acme
      qwenstack admin alerts ls
    """


@alerts.command("set")
@click.argument("url")
@only_workspace_option
@home_option
@json_option
def set_webhook(url: str, workspace: str | None, home: Path | None, as_json: bool) -> None:
    """Have alerts sent to URL; prints the secret that signs them, once."""
    with ledger_connection(home) as connection:
        made, secret = webhooks.set_webhook(
            connection,
            actor=actor(),
            sender=_sender(home),
            url=url,
            workspace_id=workspace_id_of(connection, workspace),
        )
    if as_json:
        print_json(shown_webhook(made, secret))
        return
    click.echo(secret)
    click.echo(f"This signs what {made.id} is sent, and is shown once.", err=True)
    click.echo(f"Next: qwenstack admin alerts test {made.id}", err=True)


@alerts.command("ls")
@home_option
@json_option
def list_webhooks(home: Path | None, as_json: bool) -> None:
    """List webhooks with what was last sent to each."""
    with ledger_connection(home) as connection:
        tenancy = accounts.read_tenancy(connection)
        rows = [
            (each, webhooks.read_deliveries(connection, each.id, 1))
            for each in webhooks.read_webhooks(connection)
        ]
    if as_json:
        print_json(
            [
                {
                    **msgspec.to_builtins(shown_webhook(webhook)),
                    "last_delivery": shown_delivery(last[0]) if last else None,
                }
                for webhook, last in rows
            ]
        )
        return
    table = Table(Column("id", no_wrap=True), "workspace", "url", "last message")
    for webhook, last in rows:
        owner = tenancy.workspaces.get(webhook.workspace_id or "")
        table.add_row(
            webhook.id,
            owner.name if owner else "(all)",
            webhook.url,
            _outcome(last[0]) if last else "none",
        )
    show_table(table)


@alerts.command("rm")
@click.argument("webhook")
@home_option
def remove_webhook(webhook: str, home: Path | None) -> None:
    """Send no more to a webhook, not even what waits; WEBHOOK is an id."""
    with ledger_connection(home) as connection:
        found = webhooks.remove_webhook(connection, actor=actor(), webhook_id=webhook)
    click.echo(f"Nothing more is sent to {found.url}.")


@alerts.command("test")
@click.argument("webhook")
@home_option
@json_option
def test_webhook(webhook: str, home: Path | None, as_json: bool) -> None:
    """Send a test from here, now; exits with 1 where it is not taken."""
    message = budgets.trial()
    with ledger_connection(home) as connection:
        found = webhooks.find_webhook(connection, webhook)
        record(connection, actor(), "webhook.test", found.id, {"message": message.id})
    outcome = asyncio.run(
        _sender(home).send(
            webhook_id=found.id,
            url=found.url,
            secret_digest=found.secret_digest,
            message_id=message.id,
            body=msgspec.json.encode(message),
        )
    )
    if as_json:
        print_json(outcome)
    elif outcome.delivered:
        click.echo(f"{found.url} took it: {outcome.words}.")
    if not outcome.delivered:
        raise click.ClickException(f"{found.url} did not take it: {outcome.words}")


@alerts.command("deliveries")
@click.argument("webhook")
@click.option("--limit", default=20, show_default=True)
@home_option
@json_option
def list_deliveries(webhook: str, limit: int, home: Path | None, as_json: bool) -> None:
    """List the latest messages to a webhook, and what became of them."""
    with ledger_connection(home) as connection:
        found = webhooks.find_webhook(connection, webhook)
        rows = webhooks.read_deliveries(connection, found.id, limit)
    if as_json:
        print_json([shown_delivery(each) for each in rows])
        return
    table = Table("message", "made (UTC)", "attempts", "outcome")
    for each in rows:
        table.add_row(
            each.message_id, shown_instant(each.created_us), str(each.attempts), _outcome(each)
        )
    show_table(table)


def _sender(home: Path | None) -> Sender:
    folder = resolve_home(home)
    return alert_sender(read_settings(folder), folder)


def _outcome(delivery: webhooks.Delivery) -> str:
    if delivery.delivered:
        return f"delivered {shown_instant(delivery.ended_us)}"
    if delivery.due_us is None:
        return f"given up: {delivery.outcome}"
    tried = f"{delivery.outcome}; " if delivery.outcome else ""
    return f"{tried}due {shown_instant(delivery.due_us)}"
