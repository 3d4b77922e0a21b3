"""`qwenstack hub mirror` and `hub origins`: copies of another hub's repos, and of what."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from qwenstack.cli.context import home_option, json_option, print_json
from qwenstack.cli.hub_context import (
    database_option,
    hub_connection,
    hub_folder,
    objects_option,
)
from qwenstack.cli.tables import show_table
from qwenstack.hub.assembly import serving_hub
from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.mirror import Mirrored, mirror, remove_abandoned
from qwenstack.hub.origins import NamedOrigin, list_origins
from qwenstack.hub.registry.refs import short_name
from qwenstack.hub.registry.repos import Kind, find_repo
from qwenstack.hub.upstream import Upstream
from qwenstack.hub.upstream_settings import DEFAULT_UPSTREAM, TOKEN_VARIABLE

_KINDS = click.Choice(["model", "dataset"])


@click.command("mirror")
@click.argument("repo")
@click.option(
    "--from",
    "endpoint",
    envvar="QWENSTACK_HUB_UPSTREAM",
    default=DEFAULT_UPSTREAM,
    show_default=True,
    help="The hub to copy from (QWENSTACK_HUB_UPSTREAM).",
)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit id.")
@click.option("--kind", type=_KINDS, default="model", show_default=True)
@database_option
@objects_option
@home_option
@json_option
def mirror_command(
    repo: str,
    endpoint: str,
    revision: str,
    kind: Kind,
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Copy a revision of REPO from another hub; only what changed comes again.

    Each file is checked against the digest that the other hub states, and scanned as at a push.
    Nothing shows before all of it is here; an interrupted copy goes on where it stopped. A branch
    with commits that were made on this hub is left alone.

    For gated and private repos put a token of the other hub into QWENSTACK_HUB_UPSTREAM_TOKEN;
    the copy is gated or private here, too.

    \b
    Examples:
      qwenstack hub mirror Qwen/Qwen3-0.6B
      qwenstack hub mirror acme/set --kind dataset --from https://hub.example.com --json
    """
    upstream = Upstream(endpoint, token=os.environ.get(TOKEN_VARIABLE) or None)
    columns = (TextColumn("copying"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        serving_hub(hub_folder(home), database_url=database, objects_url=objects) as hub,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as bar,
    ):
        remove_abandoned(hub)
        task = bar.add_task("copying", total=None)
        done = mirror(
            hub,
            upstream,
            kind,
            repo,
            revision,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(done)
    else:
        click.echo(_told(done))


def _told(done: Mirrored) -> str:
    at = f"{short_name(done.ref)} at {done.commit[:12]}" if done.ref else done.commit
    if not done.changed:
        return f"{done.repo}: {at} is here already, as at {done.endpoint}"
    text = f"text SHA-256 {done.licence_sha256}" if done.licence_sha256 else "no licence file"
    lines = [
        f"{done.repo}: {at}, {done.files:,} files",
        f"  fetched {done.fetched_files:,} files, {done.fetched_bytes:,} bytes, {done.endpoint}",
        f"  licence at the copy: {done.licence or 'none declared'}, {text}",
    ]
    if done.gated or done.private:
        lines.append(f"  {'private' if done.private else 'gated'} here, as there")
    return "\n".join(lines)


@click.command()
@click.argument("repo", required=False)
@click.option("--kind", type=_KINDS, default="model", show_default=True)
@database_option
@home_option
@json_option
def origins(
    repo: str | None, kind: Kind, database: str | None, home: Path | None, as_json: bool
) -> None:
    """List where copied releases came from: hub, commit, licence and instant of each copy.

    \b
    Examples:
      qwenstack hub origins
      qwenstack hub origins Qwen/Qwen3-0.6B --json
    """
    with hub_connection(home, database) as connection:
        repo_id = None
        if repo is not None:
            found = find_repo(connection, kind, repo)
            if found is None:
                raise RepoNotFound(f"There is no {kind} {repo} on this hub.")
            repo_id = found.id
        listed = list_origins(connection, repo_id)
    if as_json:
        print_json([_wire(each) for each in listed])
        return
    table = Table("repo", "commit", "copied (UTC)", "licence then", "licence text", "from")
    for each in listed:
        origin = each.origin
        table.add_row(
            each.repo,
            origin.commit_oid[:12],
            wire_instant(origin.copied_us),
            origin.licence or "none declared",
            (origin.licence_sha256 or "no file")[:12],
            f"{origin.endpoint}/{origin.upstream_name}",
        )
    if listed:
        show_table(table)
    else:
        click.echo("Nothing was copied: qwenstack hub mirror NAMESPACE/NAME")


def _wire(named: NamedOrigin) -> dict[str, str | None]:
    origin = named.origin
    return {
        "kind": named.kind,
        "repo": named.repo,
        "commit": origin.commit_oid,
        "endpoint": origin.endpoint,
        "upstream_name": origin.upstream_name,
        "upstream_commit": origin.upstream_commit,
        "licence": origin.licence,
        "licence_sha256": origin.licence_sha256,
        "copied_at": wire_instant(origin.copied_us),
    }
