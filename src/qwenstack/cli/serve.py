"""`qwenstack serve`: serve what qwenstack.toml deploys."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from qwenstack.cli.context import (
    home_option,
    json_option,
    model_cache,
    read_settings,
    resolve_home,
)
from qwenstack.cli.running import run_event_loop, serve_until_stopped
from qwenstack.cli.workers import Workers
from qwenstack.studio.http.server import base_url, listen
from qwenstack.studio.installation import Installation, exclusive, prepare
from qwenstack.studio.observability.worker_counts import Place, folder_of
from qwenstack.studio.settings import Settings, check


@click.command()
@click.option("--host", help="Address to listen on. Default: server.host, 127.0.0.1.")
@click.option("--port", type=int, help="Port; 0 takes any. Default: server.port, 8317.")
@click.option("--workers", type=int, help="Processes. Default: server.workers, 1.")
@click.option("--listener", type=int, hidden=True, help="An inherited listening socket.")
@click.option("--place", type=int, default=0, hidden=True, help="Which worker of several it is.")
@click.option("--supervisor", type=int, default=0, hidden=True, help="The process that runs them.")
@home_option
@json_option
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    listener: int | None,
    place: int,
    supervisor: int,
    home: Path | None,
    as_json: bool,
) -> None:
    """Serve the deployments of qwenstack.toml.

    Several workers need PostgreSQL, Valkey and remote engines (docs/configuration.md).

    \b
    Examples:
      qwenstack serve
      qwenstack serve --host 0.0.0.0 --port 8080
      qwenstack serve --workers 4
    """
    folder = resolve_home(home)
    settings = read_settings(folder)
    if not settings.deployments:
        raise click.ClickException(
            f"{folder / 'qwenstack.toml'} deploys nothing. `qwenstack up` deploys the default "
            "model; docs/configuration.md shows how to name others."
        )
    server = settings.server
    if listener is not None:
        inherited = socket.socket(fileno=listener)
        counts = folder_of(folder, inherited.getsockname()[1])
        _serve(settings, folder, inherited, lambda _: None, Place(counts, place), supervisor)
        return
    opened = listen(server.host if host is None else host, server.port if port is None else port)
    url = base_url(opened)
    if workers is not None or server.workers > 1:
        changed = msgspec.structs.replace(server, workers=workers or server.workers)
        settings = check(msgspec.structs.replace(settings, server=changed))
    if settings.server.workers > 1:
        prepare(settings, folder).dispose()
        _say([each.name for each in settings.deployments], url, folder, as_json)
        Workers(settings.server.workers, opened, folder).run(settings.server.drain_s)
        return

    def ready(installation: Installation) -> None:
        _say([each.name for each in installation.deployments], url, folder, as_json)

    _serve(settings, folder, opened, ready)


def _serve(
    settings: Settings,
    home: Path,
    listener: socket.socket,
    ready: Callable[[Installation], None],
    place: Place | None = None,
    supervisor: int = 0,
) -> None:
    # On SQLite one process alone may serve; PostgreSQL takes any number.
    shared = settings.database.url.startswith("postgres")
    with contextlib.nullcontext() if shared else exclusive(home):
        run_event_loop(
            serve_until_stopped(
                settings,
                home,
                listener,
                cache=model_cache(home),
                on_ready=ready,
                place=place,
                supervisor=supervisor,
            )
        )


def _say(names: list[str], url: str, home: Path, as_json: bool) -> None:
    if as_json:
        line = {"base_url": url, "models": names, "home": str(home)}
        click.echo(msgspec.json.encode(line).decode())
    else:
        click.echo(f"Serving {', '.join(names)} at {url}/v1 (Ctrl-C stops).")
