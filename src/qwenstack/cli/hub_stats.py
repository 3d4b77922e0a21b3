"""`qwenstack hub stats` and `hub tree`: what is used, and what came of what."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from qwenstack.cli.context import home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_connection
from qwenstack.cli.sizes import shown_size
from qwenstack.cli.tables import show_table
from qwenstack.hub import downloads
from qwenstack.hub.accounts.directory import list_accounts
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.family import Branch, Family, forest, read_family, tree_with
from qwenstack.hub.quotas import UPSTREAM, usage_of
from qwenstack.hub.registry.repos import Kind, find_repo

_BARS = "▁▂▃▄▅▆▇█"
# The command reads this machine's own hub: it sees all of it.
_LOCAL = Identity(account="", name="local", operator=True)


@click.command()
@click.argument("repo", required=False)
@click.option("--kind", type=click.Choice(["model", "dataset"]), default="model")
@click.option("--days", type=click.IntRange(1, 366), default=30, show_default=True)
@database_option
@home_option
@json_option
def stats(
    repo: str | None, kind: Kind, days: int, database: str | None, home: Path | None, as_json: bool
) -> None:
    """Show how often REPO was downloaded, by UTC day; without REPO what each account keeps.

    docs/hub.md says what counts.

    \b
    Examples:
      qwenstack hub stats
      qwenstack hub stats acme/model
      qwenstack hub stats acme/set --kind dataset --days 90 --json
    """
    if repo is None:
        _show_kept(home, database, as_json)
        return
    with hub_connection(home, database) as connection:
        found = find_repo(connection, kind, repo)
        if found is None:
            raise RepoNotFound(f"There is no {kind} {repo} on this hub.")
        by_day = downloads.days(connection, found.id, days)
        total = downloads.all_time(connection, [found.id])[found.id]
    counted = sum(count for _, count in by_day)
    if as_json:
        print_json(
            {
                "repo": found.name,
                "kind": kind,
                "all_time": total,
                "last_days": days,
                "downloads": counted,
                "likes": found.likes,
                "days": [{"day": day, "count": count} for day, count in by_day],
            }
        )
        return
    console = Console()
    console.print(
        f"{found.name}: {counted:,} in {days} days, {total:,} in all, {found.likes} likes"
    )
    console.print(f"{by_day[0][0]} {_sparkline([count for _, count in by_day])} {by_day[-1][0]}")
    table = Table("day (UTC)", "downloads")
    table.columns[1].justify = "right"
    for day, count in by_day:
        if count:
            table.add_row(day, f"{count:,}")
    if table.row_count:
        show_table(table)


def _show_kept(home: Path | None, database: str | None, as_json: bool) -> None:
    """What the hub keeps, by account, the largest first."""
    with hub_connection(home, database) as connection:
        names = {each.key: each.name for each in list_accounts(connection)}
        used = {key: usage_of(connection, key) for key in (*names, UPSTREAM)}
    names[UPSTREAM] = "(copies that were not published)"
    ordered = sorted(used, key=lambda key: -used[key].bytes - used[key].waiting_bytes)
    if as_json:
        print_json([{"account": names[key], "usage": used[key]} for key in ordered])
        return
    table = Table("account", "repos", "bytes", "waiting", "of those for others")
    for key in ordered:
        each = used[key]
        if each.repos or each.bytes or each.waiting_bytes:
            sizes = (each.bytes, each.waiting_bytes, each.guest_bytes)
            table.add_row(names[key], str(each.repos), *map(shown_size, sizes))
    show_table(table)


@click.command()
@click.argument("ref", required=False)
@database_option
@home_option
@json_option
def tree(ref: str | None, database: str | None, home: Path | None, as_json: bool) -> None:
    """Show the family tree of the hub's models, or of the one that REF stands in.

    \b
    Examples:
      qwenstack hub tree
      qwenstack hub tree acme/model --json
    """
    with hub_connection(home, database) as connection:
        members = read_family(connection, _LOCAL)
    trees = forest(members)
    if ref is not None:
        one = tree_with(trees, ref)
        if one is None:
            raise RepoNotFound(f"There is no model {ref} on this hub.")
        trees = [one]
    if as_json:
        print_json(Family(len(members), tuple(trees)))
        return
    console = Console()
    for each in trees:
        console.print(_drawn(each, ref))
    if not trees:
        console.print("The hub has no models yet: qwenstack hub push FOLDER NAMESPACE/NAME")


def _drawn(root: Branch, ref: str | None) -> Tree:
    top = Tree(_label(root, ref))
    places = [(root, top)]
    for branch, place in places:
        for child in branch.children:
            places.append((child, place.add(_label(child, ref))))
    return top


def _label(branch: Branch, ref: str | None) -> Text:
    member = branch.member
    marked = ref is not None and member.name.lower() == ref.lower()
    label = Text(member.name, style="bold reverse" if marked else "bold")
    facts = [] if member.here else ["not on this hub"]
    if member.parents:
        first = member.parents[0]
        said = first.source if first.confidence is None else f"weights, {first.confidence:.0%}"
        facts.append(f"{first.relation} ({said})")
        facts += [f"also from {each.name}" for each in member.parents[1:4]]
    if member.parameters:
        facts.append(short_count(member.parameters))
    if member.here:
        facts.append(f"{member.downloads:,} downloads")
    return label.append("  " + ", ".join(facts), style="not bold dim")


def short_count(number: int) -> str:
    """A count of parameters as people write it: 494M, 8.2B."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            value = number / unit
            return f"{value:.1f}{name}" if value < 10 else f"{value:.0f}{name}"
    return str(number)


def _sparkline(counts: list[int]) -> str:
    most = max(counts) or 1
    return "".join(_BARS[min(count * len(_BARS) // (most + 1), len(_BARS) - 1)] for count in counts)
