"""`qwenstack watch`: snapshots of hubs, what changed between them, and the record's signals."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwenstack.catalog.load import load
from qwenstack.catalog.watch.changes import Event, changes
from qwenstack.catalog.watch.hub_api import take_snapshot
from qwenstack.catalog.watch.plots import draw
from qwenstack.catalog.watch.signals import Signals, signals
from qwenstack.catalog.watch.snapshot import (
    Snapshot,
    SnapshotError,
    SnapshotFolder,
    read_snapshot,
)
from qwenstack.cli.context import home_option, json_option, print_json, resolve_home
from qwenstack.cli.tables import show_table

_DEFAULT_ENDPOINT = "https://huggingface.co"


@click.group()
def watch() -> None:
    """Follow what hubs publish: new releases, changed licences, withdrawn or changed files.

    \b
    Examples:
      qwenstack watch hub --author Qwen
      qwenstack watch history --author Qwen
      qwenstack watch signals --plot signals.svg
    """


_endpoint_option = click.option(
    "--endpoint",
    envvar="HF_ENDPOINT",
    default=_DEFAULT_ENDPOINT,
    show_default=True,
    help="Any hub with the Hugging Face API (HF_ENDPOINT).",
)
_author_option = click.option("--author", default="Qwen", show_default=True, help="Whose models.")
_SNAPSHOT = click.Path(exists=True, dir_okay=False, path_type=Path)


@watch.command()
@_endpoint_option
@_author_option
@home_option
@json_option
def hub(endpoint: str, author: str, home: Path | None, as_json: bool) -> None:
    """Take a snapshot of a hub, and say what changed since the last one.

    A token is read from HF_TOKEN.

    \b
    Examples:
      qwenstack watch hub
      qwenstack watch hub --endpoint http://127.0.0.1:8318 --author acme --json
    """
    folder = _folder(home, endpoint, author)
    before = folder.latest()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"reading {author} on {endpoint}", total=None)
        now = take_snapshot(
            endpoint,
            author,
            folder,
            token=os.environ.get("HF_TOKEN") or None,
            progress=lambda done: progress.update(task, completed=done),
        )
    path = folder.save(now)
    events = [] if before is None else changes(before, now, folder.text)
    if as_json:
        print_json({"snapshot": str(path), "repos": len(now.repos), "events": events})
        return
    _print_events(events)
    click.echo(f"{len(now.repos)} repos, {len(events)} changes; kept in {path}.")
    if before is None:
        click.echo("This is the first snapshot: changes show from the next one on.")
    if now.partial:
        click.echo(f"Could not be read this time: {', '.join(now.partial[:10])}")


@watch.command()
@click.argument("old", type=_SNAPSHOT, required=False)
@click.argument("new", type=_SNAPSHOT, required=False)
@_endpoint_option
@_author_option
@home_option
@json_option
def history(
    old: Path | None,
    new: Path | None,
    endpoint: str,
    author: str,
    home: Path | None,
    as_json: bool,
) -> None:
    """Every change on record; or between two snapshot files. Needs no network.

    \b
    Examples:
      qwenstack watch history
      qwenstack watch history 2026-10-01t00-00-00z.json 2026-11-24t12-00-00z.json
    """
    folder = _folder(home, endpoint, author)
    if old is not None and new is not None:
        snapshots = [read_snapshot(old), read_snapshot(new)]
    else:
        snapshots = [read_snapshot(path) for path in folder.paths()]
    if not snapshots:
        raise SnapshotError(
            f"there is no snapshot of {author} on {endpoint} yet; run `qwenstack watch hub`"
        )
    events = _events(snapshots, folder)
    if as_json:
        print_json({"snapshots": [each.taken_at for each in snapshots], "events": events})
        return
    _print_events(events)
    click.echo(f"{len(snapshots)} snapshots, {len(events)} changes.")


@watch.command("signals")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw them: .svg, .png or .pdf.",
)
@json_option
def show_signals(plot: Path | None, as_json: bool) -> None:
    """Cadence by modality and size, open against hosted-only, lag: from the catalogue.

    \b
    Examples:
      qwenstack watch signals
      qwenstack watch signals --plot signals.svg
    """
    found = signals(load())
    if plot is not None:
        draw(found, plot)
        click.echo(f"Wrote {plot}.", err=True)
    if as_json:
        print_json(found)
    elif plot is None:
        _print_signals(found)


def _folder(home: Path | None, endpoint: str, author: str) -> SnapshotFolder:
    return SnapshotFolder(resolve_home(home) / "watch", endpoint, author)


def _events(snapshots: list[Snapshot], folder: SnapshotFolder) -> list[Event]:
    return [
        event
        for before, after in itertools.pairwise(snapshots)
        for event in changes(before, after, folder.text)
    ]


def _print_events(events: list[Event]) -> None:
    for event in events:
        what = f" {event.path}" if event.path else ""
        moved = f": {event.before or 'nothing'} → {event.after}" if event.after else ""
        click.echo(f"{event.at[:10]}  {event.kind:20} {event.repo}{what}{moved}")
        if event.diff:
            click.echo("\n".join(f"    {line}" for line in event.diff.splitlines()))


def _print_signals(found: Signals) -> None:
    table = Table("quarter", "releases", "by size", "by modality", title="Open releases")
    for quarter in found.quarters:
        table.add_row(
            quarter.quarter, str(quarter.releases), _counts(quarter.by_size),
            _counts(quarter.by_modality),
        )  # fmt: skip
    show_table(table)
    table = Table("family", "open", "hosted only", "share open", title="Openness")
    for each in found.openness:
        table.add_row(
            each.generation, str(each.open_releases), str(each.hosted_only), f"{each.share:.0%}"
        )
    show_table(table)
    table = Table("hosted", "open weights", "days", "status", title="Hosted minus open, in days")
    for lag in found.lags:
        table.add_row(
            lag.hosted, lag.release, "unknown" if lag.days is None else str(lag.days), lag.status
        )
    show_table(table)
    if found.undated:
        click.echo(f"{found.undated} releases have no date on record and are left out.")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
