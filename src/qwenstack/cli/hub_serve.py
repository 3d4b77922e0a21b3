"""`qwenstack hub serve`: the hub on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from qwenstack.cli.context import home_option, json_option
from qwenstack.cli.hub_context import DEFAULT_PORT, database_option, hub_folder, objects_option
from qwenstack.cli.hub_upstream import upstream_options, upstream_settings
from qwenstack.hub.accounts.first_start import OPERATOR, ensure_operator
from qwenstack.hub.accounts.tokens import NewToken
from qwenstack.hub.assembly import serving_hub
from qwenstack.hub.http.server import listen, run
from qwenstack.hub.hub import HubSettings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Port; 0 takes any.")
@click.option(
    "--anonymous-read/--no-anonymous-read",
    envvar="QWENSTACK_HUB_ANONYMOUS_READ",
    default=False,
    show_default=True,
    help="Show public repos to callers without a token (QWENSTACK_HUB_ANONYMOUS_READ).",
)
@click.option(
    "--public-url",
    envvar="QWENSTACK_HUB_PUBLIC_URL",
    help="Where clients reach the hub, behind a proxy (QWENSTACK_HUB_PUBLIC_URL).",
)
@upstream_options
@click.option("--operator", default=OPERATOR, show_default=True, help="The first operator's name.")
@click.option("--until-input-ends", is_flag=True, hidden=True, help="Stop with the parent.")
@database_option
@objects_option
@home_option
@json_option
def serve(
    host: str,
    port: int,
    anonymous_read: bool,
    public_url: str | None,
    upstream: str | None,
    upstream_namespaces: str | None,
    upstream_max_age: str,
    upstream_max_bytes: str,
    operator: str,
    until_input_ends: bool,
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Serve models and datasets to Hugging Face clients.

    The first start makes an operator and prints the operator's token, once. Without a token the
    hub shows nothing, unless --anonymous-read opens its public repos. With --json one line is
    printed once requests are taken: {"endpoint", "operator", "token", "home"}; "token" is null
    from the second start on.

    \b
    Examples:
      qwenstack hub serve
      qwenstack hub serve --anonymous-read --port 8080
      qwenstack hub serve --host 0.0.0.0 --public-url https://hub.example.com
      qwenstack hub serve --upstream https://huggingface.co --upstream-namespaces Qwen
    """
    folder = hub_folder(home)
    listener = listen(host, port)
    address, bound = listener.getsockname()[:2]
    reachable = "127.0.0.1" if address in ("0.0.0.0", "::") else address
    endpoint = public_url or f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{bound}"
    pulls = upstream_settings(upstream, upstream_namespaces, upstream_max_age, upstream_max_bytes)
    settings = HubSettings(public_url=public_url, upstream=pulls)
    with serving_hub(
        folder,
        anonymous_read=anonymous_read,
        database_url=database,
        objects_url=objects,
        settings=settings,
    ) as hub:
        with hub.database.begin() as connection:
            made = ensure_operator(connection, operator)

        def ready() -> None:
            if as_json:
                _print_line(endpoint, made, folder)
            else:
                _print_panel(endpoint, made, anonymous_read=anonymous_read)
            if until_input_ends:
                threading.Thread(target=_stop_at_end_of_input, daemon=True).start()

        asyncio.run(run(hub, listener, on_ready=ready))


def _stop_at_end_of_input() -> None:
    """Whoever started this process holds its input's other end, and lets it go when they die."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _print_line(endpoint: str, made: NewToken | None, folder: Path) -> None:
    line = {
        "endpoint": endpoint,
        "operator": made.token.account if made else None,
        "token": made.secret if made else None,
        "home": str(folder.parent),
    }
    click.echo(msgspec.json.encode(line).decode())


def _print_panel(endpoint: str, made: NewToken | None, *, anonymous_read: bool) -> None:
    lines = [f"Hub at {endpoint} (Ctrl-C stops).", "", f"  export HF_ENDPOINT={endpoint}"]
    if made is not None:
        lines += [
            f"  export HF_TOKEN={made.secret}",
            "",
            f"This token of {made.token.account} is shown once. Others:",
            "  qwenstack hub tokens create NAME",
        ]
    elif not anonymous_read:
        lines += ["", "Callers need a token: qwenstack hub tokens create NAME"]
    Console(soft_wrap=True).print(Panel(Text("\n".join(lines)), expand=False))
