"""`qwenstack hub users` and `hub tokens`: who may use the hub, and with which secrets."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
from rich.table import Table

from qwenstack.cli.context import actor, home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_connection
from qwenstack.cli.sizes import shown_size
from qwenstack.cli.tables import show_table
from qwenstack.core.instants import from_us, to_us
from qwenstack.hub.accounts import departures, directory
from qwenstack.hub.accounts import tokens as token_store
from qwenstack.hub.accounts.directory import Account, AccountKind
from qwenstack.hub.accounts.identity import ROLES, TOKEN_ROLES, TokenRole
from qwenstack.hub.accounts.tokens import Token
from qwenstack.hub.quotas import usage_of
from qwenstack.storage import audit_log


@click.group()
def users() -> None:
    """People and organisations.

    \b
    Examples:
      qwenstack hub users list
      qwenstack hub users add alice --full-name "Alice Ng"
      qwenstack hub users add acme --organisation --admin alice
      qwenstack hub users role acme bob write
    """


@users.command("list")
@database_option
@home_option
@json_option
def list_users(database: str | None, home: Path | None, as_json: bool) -> None:
    """List accounts, with what counts as theirs: see `hub quota`.

    \b
    Examples:
      qwenstack hub users list --json
    """
    with hub_connection(home, database) as connection:
        found = directory.list_accounts(connection)
        used = {each.key: usage_of(connection, each.key) for each in found}
    if as_json:
        print_json([_shown(each) | {"usage": used[each.key]} for each in found])
        return
    table = Table(
        "name",
        "kind",
        "full name",
        "e-mail",
        "operator",
        "since (UTC)",
        "repos",
        "bytes",
        "waiting",
    )
    for each in found:
        table.add_row(
            each.name,
            each.kind,
            each.full_name,
            each.email or "",
            "yes" if each.operator else "",
            f"{from_us(each.created_us):%Y-%m-%d}",
            str(used[each.key].repos),
            shown_size(used[each.key].bytes),
            shown_size(used[each.key].waiting_bytes),
        )
    show_table(table)


@users.command("add")
@click.argument("name")
@click.option("--full-name", default="", help="As people write it.")
@click.option("--email", help="Shown to the owners of gated repos that this account asks for.")
@click.option("--organisation", is_flag=True, help="Make an organisation.")
@click.option("--admin", help="The organisation's first admin, an account.")
@click.option("--operator", is_flag=True, help="This account administers the hub.")
@click.option("--reuse", is_flag=True, help="Take a name that was given up lately.")
@database_option
@home_option
@json_option
def add_user(
    name: str,
    full_name: str,
    email: str | None,
    organisation: bool,
    admin: str | None,
    operator: bool,
    reuse: bool,
    database: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Add a user, or an organisation.

    \b
    Examples:
      qwenstack hub users add alice --email alice@example.com
      qwenstack hub users add acme --organisation --admin alice
    """
    if organisation != (admin is not None):
        raise click.UsageError("--organisation needs --admin NAME, and --admin an --organisation.")
    kind: AccountKind = "organisation" if organisation else "user"
    with hub_connection(home, database) as connection:
        account = directory.create_account(
            connection,
            name=name,
            kind=kind,
            full_name=full_name,
            email=email,
            operator=operator,
            reuse=reuse,
            actor=actor(),
        )
        if admin is not None:
            directory.set_role(connection, account.key, admin, "admin", actor=actor())
    if as_json:
        print_json(_shown(account))
    elif kind == "user":
        click.echo(f"{name} is here. Next: qwenstack hub tokens create {name} --role write")
    else:
        click.echo(f"{name} is here, and {admin} is its admin.")


@users.command("rename")
@click.argument("old")
@click.argument("new")
@database_option
@home_option
@json_option
def rename(old: str, new: str, database: str | None, home: Path | None, as_json: bool) -> None:
    """Give a user or an organisation another name; repos answer to their old names, too.

    The old name is nobody's for 180 days.

    \b
    Examples:
      qwenstack hub users rename alice alice-ng
    """
    with hub_connection(home, database) as connection:
        account, left = departures.rename_account(connection, old, new, actor=actor())
    if as_json:
        print_json({"account": _shown(account), "left": left})
    else:
        click.echo(f"{left.name} is {account.name} now, with {len(left.repos)} repos.")


@users.command("remove")
@click.argument("name")
@click.option("--give-to", metavar="ACCOUNT", help="Who gets its repos.")
@click.option("--delete-repos", is_flag=True, help="Its repos go, too.")
@database_option
@home_option
@json_option
def remove(
    name: str,
    give_to: str | None,
    delete_repos: bool,
    database: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Remove a user or an organisation; its tokens end at once.

    What it said stays, as said by "ghost". Its name is nobody's for 180 days.

    \b
    Examples:
      qwenstack hub users remove bob --give-to acme
      qwenstack hub users remove old-team --delete-repos
    """
    if give_to is not None and delete_repos:
        raise click.UsageError("give either --give-to or --delete-repos")
    with hub_connection(home, database) as connection:
        left = departures.delete_account(
            connection, name, give_to=give_to, delete_repos=delete_repos, actor=actor()
        )
    if as_json:
        print_json(left)
    else:
        what = "deleted" if give_to is None else f"given to {give_to}"
        click.echo(f"{left.name} is gone; {len(left.repos)} repos were {what}.")


@users.command("role")
@click.argument("organisation")
@click.argument("user")
@click.argument("role", type=click.Choice([*ROLES, "none"]))
@database_option
@home_option
@json_option
def set_role(
    organisation: str,
    user: str,
    role: str,
    database: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Give a user a role in an organisation; none takes them out.

    read: sees private repos. contributor: makes repos and rules those. write: rules all repos.
    admin: the members, too.

    \b
    Examples:
      qwenstack hub users role acme bob contributor
      qwenstack hub users role acme bob none
    """
    with hub_connection(home, database) as connection:
        if role == "none":
            directory.remove_member(connection, organisation, user, actor=actor())
        else:
            directory.set_role(connection, organisation, user, role, actor=actor())
    if as_json:
        print_json({"organisation": organisation, "user": user, "role": role})
    else:
        click.echo(f"{user} in {organisation}: {role}.")


@users.command("members")
@click.argument("organisation")
@database_option
@home_option
@json_option
def list_members(organisation: str, database: str | None, home: Path | None, as_json: bool) -> None:
    """List an organisation's members with their roles.

    \b
    Examples:
      qwenstack hub users members acme
    """
    with hub_connection(home, database) as connection:
        found = directory.members(connection, organisation)
    if as_json:
        print_json([{"user": each.account.name, "role": each.role} for each in found])
        return
    table = Table("user", "role")
    for each in found:
        table.add_row(each.account.name, each.role)
    show_table(table)


@click.group()
def tokens() -> None:
    """Access tokens. A secret is shown when it is made and never again.

    \b
    Examples:
      qwenstack hub tokens create alice --role write
      qwenstack hub tokens create alice --scope acme=read --scope acme/model=write --days 90
      qwenstack hub tokens list alice
    """


@tokens.command("create")
@click.argument("account")
@click.option("--name", default="command line", show_default=True, help="What it is for.")
@click.option(
    "--role",
    type=click.Choice(TOKEN_ROLES),
    help="Default: read, or fineGrained where scopes are given.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="WHERE=RIGHT",
    help="acme=read, acme/model=write, datasets/acme/set=admin; rights: read, discuss, write, "
    "admin. May be repeated.",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Ends after so many days.")
@database_option
@home_option
@json_option
def create_token(
    account: str,
    name: str,
    role: str | None,
    scopes: tuple[str, ...],
    days: int | None,
    database: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Make a token and print it, once.

    \b
    Examples:
      qwenstack hub tokens create alice --role write
      qwenstack hub tokens create ci --scope acme/model=write --days 30 --json
    """
    expires = None if days is None else to_us(datetime.now(UTC) + timedelta(days=days))
    with hub_connection(home, database) as connection:
        made = token_store.create_token(
            connection,
            account=account,
            name=name,
            role=msgspec.convert(role or ("fineGrained" if scopes else "read"), TokenRole),
            scopes=tuple(token_store.parse_scope(each) for each in scopes),
            expires_us=expires,
            actor=actor(),
        )
    if as_json:
        print_json(_shown_token(made.token) | {"secret": made.secret})
    else:
        click.echo(made.secret)


@tokens.command("list")
@click.argument("account", required=False)
@database_option
@home_option
@json_option
def list_tokens(
    account: str | None, database: str | None, home: Path | None, as_json: bool
) -> None:
    """List tokens, of one account or all, the newest first.

    \b
    Examples:
      qwenstack hub tokens list
      qwenstack hub tokens list alice --json
    """
    with hub_connection(home, database) as connection:
        if account is not None:
            account = directory.find_account(connection, account, "user").key
        found = token_store.list_tokens(connection, account)
    if as_json:
        print_json([_shown_token(each) for each in found])
        return
    now = to_us(datetime.now(UTC))
    table = Table("id", "account", "name", "role", "scopes", "last used (UTC)", "state")
    table.columns[0].no_wrap = table.columns[-1].no_wrap = True
    for each in found:
        table.add_row(
            each.id,
            each.account,
            each.name,
            each.role,
            ", ".join(f"{scope.name}={scope.right}" for scope in each.scopes),
            f"{from_us(each.last_used_us):%Y-%m-%d %H:%M}" if each.last_used_us else "never",
            _state(each, now),
        )
    show_table(table)


@tokens.command("revoke")
@click.argument("token")
@database_option
@home_option
@json_option
def revoke_token(token: str, database: str | None, home: Path | None, as_json: bool) -> None:
    """End a token now, by its id or its beginning.

    \b
    Examples:
      qwenstack hub tokens revoke tok_01kb3q2w9d6j4x8c5v7n1m0pzr
    """
    with hub_connection(home, database) as connection:
        revoked = token_store.revoke_token(connection, token, actor=actor())
    if as_json:
        print_json(_shown_token(revoked))
    else:
        click.echo(f"{revoked.prefix}… of {revoked.account} is revoked.")


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@database_option
@home_option
@json_option
def audit(limit: int, database: str | None, home: Path | None, as_json: bool) -> None:
    """Show the latest administrative acts, and whether the log's hash chain holds.

    Ends with 1 where a line was changed or is missing.

    \b
    Examples:
      qwenstack hub audit
      qwenstack hub audit --limit 100 --json
    """
    with hub_connection(home, database) as connection:
        lines, broken = audit_log.verify(connection)
        found = audit_log.read_lines(connection, after=max(lines - limit, 0), limit=limit)
    if as_json:
        print_json({"holds": broken is None, "lines": lines, "broken": broken, "latest": found})
    else:
        for line in found:
            at = f"{from_us(line.at_us):%Y-%m-%d %H:%M:%S}"
            click.echo(f"{at}  {line.actor}  {line.action}  {line.subject}  {line.detail}")
        whole = "holds" if broken is None else f"breaks at {broken.sequence}: {broken.reason}"
        click.echo(f"The log of {lines} lines {whole}.")
    if broken is not None:
        sys.exit(1)


def _shown(account: Account) -> dict[str, object]:
    return {
        "name": account.name,
        "kind": account.kind,
        "full_name": account.full_name,
        "email": account.email,
        "operator": account.operator,
        "created_at": from_us(account.created_us),
    }


def _shown_token(token: Token) -> dict[str, object]:
    shown = {
        name: getattr(token, name) for name in ("id", "account", "name", "prefix", "role", "scopes")
    }
    for name in ("created_us", "expires_us", "revoked_us", "last_used_us"):
        at_us = getattr(token, name)
        shown[name.removesuffix("_us") + "_at"] = None if at_us is None else from_us(at_us)
    return shown


def _state(token: Token, now: int) -> str:
    if token.holds(now):
        return f"until {from_us(token.expires_us):%Y-%m-%d}" if token.expires_us else "valid"
    return "revoked" if token.revoked_us is not None else "expired"
