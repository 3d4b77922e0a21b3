"""`qwenstack lineage index` and `audit`: over all releases of this machine's hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from qwenstack.cli.context import home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_folder, objects_option
from qwenstack.cli.tables import show_table
from qwenstack.hub.lineage.index import HubIndex
from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.objects import open_objects
from qwenstack.storage.database import open_database


@contextmanager
def lineage_index(
    home: Path | None, database: str | None, objects: str | None
) -> Iterator[HubIndex]:
    """The lineage index of this home's hub."""
    folder = hub_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(database or f"sqlite:///{folder / 'hub.db'}")
    try:
        store = ContentStore(engine, folder, open_objects(objects, folder))
        yield HubIndex(engine, lambda entry: store.open(entry.sha256), folder / "lineage")
    finally:
        engine.dispose()


@click.command()
@database_option
@objects_option
@home_option
@json_option
def index(database: str | None, objects: str | None, home: Path | None, as_json: bool) -> None:
    """Fingerprint and trace every release that is new since the last time.

    \b
    Examples:
      qwenstack lineage index
      qwenstack lineage index --json
    """
    with (
        lineage_index(home, database, objects) as found,
        Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar,
    ):
        task = bar.add_task("reading weights", total=None)
        done = found.update(lambda at, total: bar.update(task, completed=at, total=total))
    if as_json:
        print_json(done)
        return
    click.echo(
        f"{done.releases} releases: {done.fingerprinted} fingerprinted, {done.traced} traced"
    )
    for name, why in done.unreadable.items():
        click.echo(f"  {name}: {why}")


@click.command()
@database_option
@objects_option
@home_option
@json_option
def audit(database: str | None, objects: str | None, home: Path | None, as_json: bool) -> None:
    """List the releases whose card or licence disagrees with what their weights say.

    Run `qwenstack lineage index` before: the audit reads what it found. Exits with 1 where
    anything was found.

    \b
    Examples:
      qwenstack lineage audit
      qwenstack lineage audit --json
    """
    with lineage_index(home, database, objects) as found:
        findings, missing = found.audit()
    if as_json:
        print_json({"findings": findings, "not_indexed": missing})
    else:
        table = Table("release", "finding", "parent", "clause", "detail")
        for each in findings:
            cells = (each.release, each.kind, each.parent or "", each.clause, each.detail)
            table.add_row(*(escape(cell) for cell in cells))
        if findings:
            show_table(table)
        else:
            click.echo("Cards and weights agree.")
        if missing:
            click.echo(f"{len(missing)} releases are not indexed: run `qwenstack lineage index`")
    if findings:
        raise click.exceptions.Exit(1)
