"""`qwenstack hub quota`: what an account may keep on the hub, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from qwenstack.cli.context import actor, home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_connection
from qwenstack.cli.sizes import parse_size, shown_size
from qwenstack.cli.tables import show_table
from qwenstack.hub import quotas
from qwenstack.hub.accounts.directory import find_account

_WORDS = "500GB, 1.5TiB, none (no limit) or default"


@click.command()
@click.argument("account", required=False)
@click.option("--bytes", "bytes_", help=f"Of its repos, each content once: {_WORDS}.")
@click.option("--repos", help="How many repos: a number, none or default.")
@click.option("--waiting", help=f"Of uploads that no branch has: {_WORDS}.")
@click.option("--guest", help=f"Of uploads to repos of others (pull requests): {_WORDS}.")
@database_option
@home_option
@json_option
def quota(
    account: str | None,
    bytes_: str | None,
    repos: str | None,
    waiting: str | None,
    guest: str | None,
    database: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show or set what ACCOUNT (a user or an organisation) may keep; without ACCOUNT what all may.

    A running hub heeds it at once. What is over a limit stays; only more is refused.

    \b
    Examples:
      qwenstack hub quota
      qwenstack hub quota --bytes 200GB --guest 2GB
      qwenstack hub quota acme --bytes 5TB --repos 500
      qwenstack hub quota acme --bytes default --json
    """
    given = {
        "bytes_max": bytes_,
        "repos_max": repos,
        "waiting_bytes_max": waiting,
        "guest_bytes_max": guest,
    }
    changes = {name: _limit(text) for name, text in given.items() if text is not None}
    with hub_connection(home, database) as connection:
        key = quotas.EVERYBODY if account is None else find_account(connection, account).key
        if changes:
            quotas.set_limits(connection, key, changes, actor=actor())
        limits = quotas.limits_of(connection, key)
        usage = None if account is None else quotas.usage_of(connection, key)
    if as_json:
        print_json({"account": key, "limits": limits, "usage": usage})
        return
    table = Table("what", "used", "limit") if usage else Table("what", "limit")
    used = {} if usage is None else msgspec.structs.asdict(usage)
    for name, words in (
        ("bytes", "bytes of its repos"),
        ("repos", "repos"),
        ("waiting_bytes", "bytes that no branch has"),
        ("guest_bytes", "of those for repos of others"),
    ):
        most = getattr(limits, f"{name}_max")
        shown = str if name == "repos" else shown_size
        row = [words, "none" if most is None else shown(most)]
        table.add_row(*(row if usage is None else [row[0], shown(used[name]), row[1]]))
    show_table(table)


def _limit(text: str) -> int | None:
    """None for `default`."""
    if text.strip().lower() == "default":
        return None
    size = parse_size(text)
    return quotas.UNLIMITED if size is None else size
