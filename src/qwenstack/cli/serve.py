"""`qwenstack serve`: serve what qwenstack.toml deploys."""

from __future__ import annotations

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
from qwenstack.studio.http.server import base_url, listen
from qwenstack.studio.installation import Installation, exclusive


@click.command()
@click.option("--host", help="Address to listen on. Default: server.host, 127.0.0.1.")
@click.option("--port", type=int, help="Port; 0 takes any. Default: server.port, 8317.")
@home_option
@json_option
def serve(host: str | None, port: int | None, home: Path | None, as_json: bool) -> None:
    """Serve the deployments of qwenstack.toml.

    \b
    Examples:
      qwenstack serve
      qwenstack serve --host 0.0.0.0 --port 8080
    """
    folder = resolve_home(home)
    settings = read_settings(folder)
    if not settings.deployments:
        raise click.ClickException(
            f"{folder / 'qwenstack.toml'} deploys nothing. `qwenstack up` deploys the default "
            "model; docs/configuration.md shows how to name others."
        )
    server = settings.server
    listener = listen(server.host if host is None else host, server.port if port is None else port)
    url = base_url(listener)

    def ready(installation: Installation) -> None:
        names = [each.name for each in installation.deployments]
        if as_json:
            line = {"base_url": url, "models": names, "home": str(folder)}
            click.echo(msgspec.json.encode(line).decode())
        else:
            click.echo(f"Serving {', '.join(names)} at {url}/v1 (Ctrl-C stops).")

    with exclusive(folder):
        run_event_loop(
            serve_until_stopped(
                settings, folder, listener, cache=model_cache(folder), on_ready=ready
            )
        )
