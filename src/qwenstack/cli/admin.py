"""`qwenstack admin`: workspaces, keys, plans, budgets, money. Works while the server runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click
import msgspec
from rich.table import Table
from sqlalchemy import select

from qwenstack.cli.admin_alerts import alerts
from qwenstack.cli.admin_raises import raises, shown_raises
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
from qwenstack.cli.instants import parse_duration_s, shown_instant
from qwenstack.cli.tables import show_table
from qwenstack.core.instants import now_us
from qwenstack.core.money import Money, parse_money
from qwenstack.storage import tables
from qwenstack.studio import accounts
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.tenancy import ApiKey, Plan, Scope


@click.group()
def admin() -> None:
    """Administer workspaces, keys, plans, budgets and money.

    \b
    Examples:
      qwenstack admin workspaces create acme --plan default
      qwenstack admin keys create --workspace acme --name backend
      qwenstack admin top-up acme 25.00
    """


admin.add_command(alerts)
admin.add_command(raises)


@admin.group()
def workspaces() -> None:
    """Tenants: each has its own keys, plan, limits and balance."""


@workspaces.command("create")
@click.argument("name")
@click.option("--plan", default="default", show_default=True)
@click.option("--region", help="Pin to a region: requests never leave it.")
@click.option("--currency", default="USD", show_default=True)
@click.option(
    "--billing", type=click.Choice(["prepaid", "postpaid"]), default="prepaid", show_default=True
)
@click.option("--credit-limit", help="What a postpaid workspace may owe; without: no limit.")
@click.option("--free-quota-only", is_flag=True, help="Refuse what free quota does not cover.")
@home_option
@json_option
def create_workspace(
    name: str,
    plan: str,
    region: str | None,
    currency: str,
    billing: str,
    credit_limit: str | None,
    free_quota_only: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Create a workspace."""
    limit = _money(credit_limit, currency).micro if credit_limit else None
    with ledger_connection(home) as connection:
        workspace = accounts.create_workspace(
            connection,
            actor=actor(),
            name=name,
            plan=plan,
            region=region,
            currency=currency,
            billing="postpaid" if billing == "postpaid" else "prepaid",
            credit_limit_micro=limit,
            free_quota_only=free_quota_only,
        )
    if as_json:
        print_json(workspace)
    else:
        click.echo(f"Created workspace {workspace.name} ({workspace.id}).")
        click.echo(f"Next: qwenstack admin keys create --workspace {workspace.name} --name first")


@workspaces.command("ls")
@home_option
@json_option
def list_workspaces(home: Path | None, as_json: bool) -> None:
    """List workspaces with their balances and raised limits."""
    with ledger_connection(home) as connection:
        tenancy = accounts.read_tenancy(connection)
        balances = read_standing(connection).balances
    rows = [
        {
            **msgspec.to_builtins(each),
            "balance_micro": balances.get(each.id, 0),
            "raises": tenancy.raises.get(each.id, []),
        }
        for each in tenancy.workspaces.values()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "id", "plan", "raised to", "region", "billing", "balance", "state")
    for row in rows:
        table.add_row(
            row["name"],
            row["id"],
            row["plan"],
            shown_raises(row["raises"]),
            row["region"] or "any",
            row["billing"],
            str(Money(row["balance_micro"], row["currency"])),
            "suspended" if row["suspended"] else "active",
        )
    show_table(table)


@workspaces.command("suspend")
@click.argument("workspace")
@click.option("--resume", is_flag=True, help="Let it go on instead.")
@home_option
def suspend_workspace(workspace: str, resume: bool, home: Path | None) -> None:
    """Refuse every request of a workspace from now on."""
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        accounts.set_suspended(
            connection, actor=actor(), workspace_id=found.id, suspended=not resume
        )
    click.echo(f"{found.name} is {'active again' if resume else 'suspended'}.")


@admin.group()
def keys() -> None:
    """API keys: shown once when made, kept as a digest."""


@keys.command("create")
@click.option("--workspace", help="Name or id; without: an admin key.")
@click.option("--name", required=True)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["inference", "batch", "usage", "admin"]),
    help="May be repeated. Default: inference, batch and usage (admin without a workspace).",
)
@click.option("--model", "models", multiple=True, help="Only this model; may be repeated.")
@click.option("--expires-in", help="For example 30d; without: never.")
@home_option
@json_option
def create_key(
    workspace: str | None,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    expires_in: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Make a key and show its secret, once."""
    default = ("inference", "batch", "usage") if workspace else ("admin",)
    expires_us = now_us() + parse_duration_s(expires_in) * 1_000_000 if expires_in else None
    with ledger_connection(home) as connection:
        key, drawn = accounts.create_key(
            connection,
            actor=actor(),
            workspace_id=workspace_id_of(connection, workspace),
            name=name,
            scopes=msgspec.convert(scopes or default, tuple[Scope, ...]),
            models=models or None,
            expires_us=expires_us,
        )
    _show_key(key, drawn.secret, as_json)


@keys.command("rotate")
@click.argument("key")
@click.option("--overlap", default="24h", show_default=True, help="How long the old key works on.")
@home_option
@json_option
def rotate_key(key: str, overlap: str, home: Path | None, as_json: bool) -> None:
    """Make a key's successor; KEY is an id or a shown prefix."""
    with ledger_connection(home) as connection:
        found = accounts.find_key(connection, key)
        made, drawn = accounts.rotate_key(
            connection, actor=actor(), key_id=found.id, overlap_s=parse_duration_s(overlap)
        )
    _show_key(made, drawn.secret, as_json)


@keys.command("revoke")
@click.argument("key")
@home_option
def revoke_key(key: str, home: Path | None) -> None:
    """End a key now; KEY is an id or a shown prefix."""
    with ledger_connection(home) as connection:
        found = accounts.find_key(connection, key)
        accounts.revoke_key(connection, actor=actor(), key_id=found.id)
    click.echo(f"{found.prefix}… ({found.name}) is revoked.")


@keys.command("ls")
@only_workspace_option
@home_option
@json_option
def list_keys(workspace: str | None, home: Path | None, as_json: bool) -> None:
    """List keys, never their secrets."""
    with ledger_connection(home) as connection:
        tenancy = accounts.read_tenancy(connection)
        only = workspace_id_of(connection, workspace)
    found = [key for key in tenancy.keys.values() if only is None or key.workspace_id == only]
    if as_json:
        print_json([_without_digest(key) for key in found])
        return
    table = Table("prefix", "id", "name", "workspace", "scopes", "last used", "state")
    for key in found:
        owner = tenancy.workspaces.get(key.workspace_id or "")
        table.add_row(
            f"{key.prefix}…",
            key.id,
            key.name,
            owner.name if owner else "(operator)",
            ", ".join(key.scopes),
            shown_instant(key.last_used_us),
            _state(key),
        )
    show_table(table)


@admin.command("top-up")
@click.argument("workspace")
@click.argument("amount")
@click.option("--memo", default="", help="Kept with the entry.")
@click.option("--grant", is_flag=True, help="Promotional money instead of paid money.")
@home_option
@json_option
def top_up(
    workspace: str, amount: str, memo: str, grant: bool, home: Path | None, as_json: bool
) -> None:
    """Add money to a workspace: `qwenstack admin top-up acme 25.00`."""
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        add = accounts.grant if grant else accounts.top_up
        entry = add(
            connection,
            actor=actor(),
            workspace=found,
            amount=_money(amount, found.currency),
            memo=memo,
        )
        balance = read_standing(connection).balances.get(found.id, 0)
    if as_json:
        print_json({"entry": entry, "balance_micro": balance, "currency": found.currency})
    else:
        click.echo(f"{found.name} now has {Money(balance, found.currency)} (entry {entry}).")


@admin.command("free-quota")
@click.argument("workspace")
@click.argument("model")
@click.argument("tokens", type=int)
@click.option("--expires-in", default="90d", show_default=True)
@home_option
def free_quota(workspace: str, model: str, tokens: int, expires_in: str, home: Path | None) -> None:
    """Grant free tokens of one model."""
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        accounts.grant_free_quota(
            connection,
            actor=actor(),
            workspace_id=found.id,
            model=model,
            tokens=tokens,
            expires_us=now_us() + parse_duration_s(expires_in) * 1_000_000,
        )
    click.echo(f"{found.name} has {tokens} more free tokens of {model}.")


@admin.command("budget")
@click.argument("workspace")
@click.argument("limit")
@click.option(
    "--period", type=click.Choice(["day", "month", "total"]), default="month", show_default=True
)
@click.option("--key", help="Only for this key (id or prefix).")
@click.option("--alert-percent", type=int, default=80, show_default=True)
@click.option("--alert-only", is_flag=True, help="Alert, but do not stop at the limit.")
@home_option
@json_option
def budget(
    workspace: str,
    limit: str,
    period: str,
    key: str | None,
    alert_percent: int,
    alert_only: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Set a budget: `qwenstack admin budget acme 100 --period month`."""
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        made = accounts.create_budget(
            connection,
            actor=actor(),
            workspace_id=found.id,
            key_id=accounts.find_key(connection, key).id if key else None,
            period="day" if period == "day" else "month" if period == "month" else "total",
            limit_micro=_money(limit, found.currency).micro,
            alert_percent=alert_percent,
            stops=not alert_only,
        )
    if as_json:
        print_json(made)
    else:
        click.echo(f"Budget {made.id}: {Money(made.limit_micro, found.currency)} per {period}.")


@admin.group()
def plans() -> None:
    """Rate-limit tiers and price lists, versioned."""


@plans.command("ls")
@home_option
@json_option
def list_plans(home: Path | None, as_json: bool) -> None:
    """List the current version of each plan, and which workspaces may use more at present."""
    with ledger_connection(home) as connection:
        tenancy = accounts.read_tenancy(connection)
    found = list(tenancy.plans.values())
    if as_json:
        print_json(found)
        return
    table = Table("plan", "version", "price books", "RPM", "TPM", "concurrency", "raised for")
    for plan in found:
        limit = plan.per_model
        table.add_row(
            plan.id,
            str(plan.version),
            ", ".join(plan.price_books),
            *(
                "no limit" if figure is None else f"{figure:,}"
                for figure in (
                    limit.requests_per_minute,
                    limit.tokens_per_minute,
                    limit.concurrency,
                )
            ),
            ", ".join(
                each.name
                for each in tenancy.workspaces.values()
                if each.plan == plan.id and each.id in tenancy.raises
            )
            or "-",
        )
    show_table(table)


@plans.command("put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@home_option
@json_option
def put_plan(file: Path, home: Path | None, as_json: bool) -> None:
    """Store the plan in a TOML file as the next version of its id."""
    try:
        plan = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Plan)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    with ledger_connection(home) as connection:
        stored = accounts.put_plan(connection, actor=actor(), plan=plan)
    if as_json:
        print_json(stored)
    else:
        click.echo(f"Plan {stored.id} is at version {stored.version}.")


@admin.command("deployments")
@home_option
@json_option
def deployments(home: Path | None, as_json: bool) -> None:
    """List what qwenstack.toml deploys."""
    found = read_settings(resolve_home(home)).deployments
    if as_json:
        print_json(found)
        return
    table = Table("model", "aliases", "engine", "max output", "licence")
    for each in found:
        kind = type(each.engine).__struct_config__.tag
        table.add_row(
            each.name,
            ", ".join(each.aliases),
            str(kind),
            str(each.max_output_tokens),
            each.licence or "unknown",
        )
    show_table(table)


@admin.command("entries")
@click.argument("workspace")
@click.option("--limit", default=20, show_default=True)
@home_option
@json_option
def entries(workspace: str, limit: int, home: Path | None, as_json: bool) -> None:
    """List a workspace's latest ledger entries."""
    table_ = tables.transactions
    with ledger_connection(home) as connection:
        found = accounts.find_workspace(connection, workspace)
        rows = connection.execute(
            select(table_)
            .where(table_.c.workspace_id == found.id)
            .order_by(table_.c.at_us.desc())
            .limit(limit)
        ).all()
    if as_json:
        print_json([dict(row._mapping) for row in rows])
        return
    table = Table("at (UTC)", "kind", "entry", "memo")
    for row in rows:
        table.add_row(shown_instant(row.at_us), row.kind, row.id, row.memo or "")
    show_table(table)


def _money(text: str, currency: str) -> Money:
    try:
        return parse_money(text, currency)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _show_key(key: ApiKey, secret: str, as_json: bool) -> None:
    if as_json:
        print_json({**_without_digest(key), "api_key": secret})
        return
    click.echo(f"{secret}")
    click.echo("This is shown once; only its digest is kept.", err=True)


def _without_digest(key: ApiKey) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(key)
    del fields["digest"]
    return fields


def _state(key: ApiKey) -> str:
    now = now_us()
    if key.revoked_us is not None:
        return "revoked" if key.revoked_us <= now else f"ends {shown_instant(key.revoked_us)}"
    if key.expires_us is not None:
        return "expired" if key.expires_us <= now else f"until {shown_instant(key.expires_us)}"
    return "active"
