"""The hub that `qwenstack up` runs beside the studio, and the default model published in it.

It is a process of its own: its loop can hand files to the kernel (sendfile, which uvloop cannot),
and what it does for its clients takes nothing from the studio's.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click
import msgspec

from qwenstack.cli.hub_context import hub_connection
from qwenstack.core.instants import now_us
from qwenstack.engines.models import LocalModel
from qwenstack.hub.accounts.directory import find_account
from qwenstack.hub.accounts.first_start import OPERATOR
from qwenstack.hub.accounts.tokens import create_token, revoke_token
from qwenstack.hub.errors import HubError
from qwenstack.hub.registry.repos import find_repo
from qwenstack.hub.registry.revisions import read_files

_log = logging.getLogger(__name__)

_STOP_S: Final = 25.0
_RESTART_S: Final = 2.0
_PUSH_TOKEN_US: Final = 3600 * 1_000_000


class _Started(msgspec.Struct, frozen=True):
    """The line that `hub serve --json` prints."""

    endpoint: str
    token: str | None = None


class HubBeside:
    """A running `qwenstack hub serve`, started again when it dies.

    `endpoint` is its address; `token` the operator's, on the hub's first start alone.
    """

    def __init__(self, home: Path, host: str, port: int) -> None:
        self._home = home
        self._host = host
        self._stopping = threading.Event()
        self._push: subprocess.Popen[bytes] | None = None
        self._process, started = self._spawn(port)
        self.endpoint = started.endpoint
        self.token = started.token
        threading.Thread(target=self._watch, name="hub", daemon=True).start()

    def publish(self, model: LocalModel, release: str) -> str:
        """Publish a model's file in the background, unless it is there; returns the repo's name.

        `release` is its publisher's repo, of which this hub gets a repo of the same name.
        """
        repo = f"{OPERATOR}/{release.partition('/')[2]}"
        if not self._has(repo, model):
            threading.Thread(
                target=self._publish, args=(repo, model, release), name="publish", daemon=True
            ).start()
        return repo

    def close(self) -> None:
        """End the hub and what is being published; an upload that was broken off never shows."""
        self._stopping.set()
        for process in (self._push, self._process):
            if process is not None and process.poll() is None:
                process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self, port: int) -> tuple[subprocess.Popen[bytes], _Started]:
        serve = ("hub", "serve", "--json", "--host", self._host, "--port", str(port))
        ends = ("--until-input-ends", "--home", str(self._home))
        process = subprocess.Popen(
            [sys.executable, "-m", "qwenstack.cli.main", *serve, *ends],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Its own group, so that Ctrl-C reaches it through `close` alone.
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise click.ClickException(
                "the hub did not start (its message is above); choose another port with "
                "--hub-port, or leave it out with --no-hub"
            )
        return process, msgspec.json.decode(line, type=_Started)

    def _watch(self) -> None:
        port = int(self.endpoint.rpartition(":")[2])
        while True:
            status = self._process.wait()
            if self._stopping.is_set():
                return
            _log.error("the hub ended with status %s; it is started again", status)
            while not self._stopping.wait(_RESTART_S):
                with suppress(click.ClickException):
                    self._process, _ = self._spawn(port)
                    break

    def _has(self, repo: str, model: LocalModel) -> bool:
        with hub_connection(self._home, None) as connection:
            try:
                found = find_repo(connection, "model", repo)
                files = read_files(connection, found.id, "main")[1] if found else ()
            except HubError:
                return False
        return any(f"sha256:{each.sha256}" == model.digest for each in files)

    def _publish(self, repo: str, model: LocalModel, release: str) -> None:
        try:
            with hub_connection(self._home, None) as connection:
                find_account(connection, OPERATOR, "user")
                made = create_token(
                    connection,
                    account=OPERATOR,
                    name="publishes the default model",
                    role="write",
                    expires_us=now_us() + _PUSH_TOKEN_US,
                )
        except HubError as error:
            _log.warning("the default model is not published in the hub: %s", error)
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / model.path.name).symlink_to(model.path.resolve())
                card = _card(model, release)
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
                self._run_push(folder, repo, made.secret)
        finally:
            with hub_connection(self._home, None) as connection:
                revoke_token(connection, made.token.id)

    def _run_push(self, folder: str, repo: str, secret: str) -> None:
        environment = {
            **os.environ,
            "HF_TOKEN": secret,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": f"{os.environ.get('NO_PROXY', '')},127.0.0.1,localhost",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        push = ("hub", "push", folder, repo, "--endpoint", self.endpoint)
        self._push = subprocess.Popen(
            [sys.executable, "-m", "qwenstack.cli.main", *push, "-m", "Publish the default model"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        _, words = self._push.communicate()
        if self._push.returncode == 0:
            _log.info("published %s in the hub", repo)
        elif not self._stopping.is_set():
            reason = words.decode(errors="replace").strip()[-300:]
            _log.warning("the default model is not published in the hub: %s", reason)


def _card(model: LocalModel, release: str) -> str:
    licence = f"license: {model.licence.lower()}\n" if model.licence else ""
    return f"""---
{licence}base_model: {release.removesuffix("-GGUF")}
base_model_relation: quantized
pipeline_tag: text-generation
---
# {release.partition("/")[2]}

Published by `qwenstack up`, which serves it. The file {model.path.name} comes from
{model.provenance}. Nobody here has compared it with the release itself: `qwenstack lineage` does,
once both are in this hub.
"""


@contextmanager
def hub_beside(home: Path, host: str, port: int) -> Iterator[HubBeside]:
    """A hub for as long as the block runs. Raises click.ClickException where none starts."""
    hub = HubBeside(home, host, port)
    try:
        yield hub
    finally:
        hub.close()
