"""`qwenstack catalog serve`: `which` over HTTP."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8300, show_default=True, help="Port; 0 for a free one.")
def serve(host: str, port: int) -> None:
    """Answer `which` over HTTP: GET /catalog/v1/which?ref=… (JSON, no files of this machine).

    \b
    Examples:
      qwenstack catalog serve
      qwenstack catalog serve --host 0.0.0.0 --port 9000
    """
    from aiohttp import web

    from qwenstack.catalog.which.http import PATH, app
    from qwenstack.catalog.which.index import index

    index()  # a catalogue that can't be used is said now, and not to the first client
    click.echo(f"http://{host}:{port}{PATH}?ref=Qwen/Qwen3-8B", err=True)
    web.run_app(app(), host=host, port=port, print=None)
