"""A hub as tests use it: the real server in a child process, on a free port of the loopback.

    with running_hub(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)

`python -m tests.hub HOME [PORT]` is the child; it prints one line of JSON when it takes requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from qwenstack.hub.accounts.directory import create_account, set_role
from qwenstack.hub.accounts.identity import TokenRole
from qwenstack.hub.accounts.tokens import create_token
from qwenstack.hub.hub import Hub, HubSettings, open_hub
from tests.migrated import lay_database

USER, OTHER, ORGANISATION = "alice", "bob", "acme"


class RunningHub:
    """A hub that serves. `token` is alice's, who owns the organisation acme; `other` is bob's."""

    def __init__(self, home: Path, *, database_url: str | None = None, **settings: object) -> None:
        self.home = home
        self.token = self.other = self.reader = self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._database_url = database_url
        self._settings = settings

    def start(self) -> None:
        """Start the child and wait until it serves; on the same port when started again."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self._database_url is None:
            lay_database(self.home / "hub.db")
        options = {"port": self._port, "database_url": self._database_url, **self._settings}
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.hub", str(self.home), json.dumps(options)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parent.parent,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.home / "server.log").read_text()[-4000:])
        ready = json.loads(line)
        self.url, self._port = ready["url"], ready["port"]
        self.token, self.other, self.reader = ready["tokens"]

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer or a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def log(self) -> str:
        """What the server wrote to its log."""
        return (self.home / "server.log").read_text()

    def open(self) -> Hub:
        """The same hub in this process, to look at its database and store."""
        return open_hub(self.home, database_url=self._database_url)

    def environment(self, folder: Path, token: str | None = None) -> dict[str, str]:
        """For a client in a process of its own: HF_ENDPOINT alone leads it here."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextlib.contextmanager
def running_hub(home: Path, **settings: object) -> Iterator[RunningHub]:
    """A hub for the time of the block."""
    hub = RunningHub(home, **settings)  # type: ignore[arg-type]
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def _serve(home: Path, options: dict[str, object]) -> None:
    from qwenstack.hub.assembly import serving_hub
    from qwenstack.hub.http.server import listen, run

    port = options.pop("port", 0)
    database_url = options.pop("database_url", None)
    assert isinstance(port, int)
    assert database_url is None or isinstance(database_url, str)
    settings = msgspec.convert({"drain_s": 2.0, **options}, HubSettings)
    serving = serving_hub(home, anonymous_read=True, database_url=database_url, settings=settings)
    with serving as hub:
        tokens = _people(hub, home / "tokens.json")
        listener = listen("127.0.0.1", port)
        port = listener.getsockname()[1]
        ready = {"url": f"http://127.0.0.1:{port}", "port": port, "tokens": tokens}
        asyncio.run(run(hub, listener, on_ready=lambda: print(json.dumps(ready), flush=True)))


def _people(hub: Hub, path: Path) -> list[str]:
    """Two users, an organisation, and a token each; kept for the next start."""
    if path.exists():
        kept: list[str] = json.loads(path.read_text())
        return kept
    with hub.database.begin() as connection:
        for name in (USER, OTHER):
            create_account(connection, name=name)
        create_account(connection, name=ORGANISATION, kind="organisation")
        set_role(connection, ORGANISATION, USER, "admin")
        wanted: tuple[tuple[str, TokenRole], ...]
        wanted = ((USER, "write"), (OTHER, "write"), (USER, "read"))
        tokens = [
            create_token(connection, account=name, name="tests", role=role).secret
            for name, role in wanted
        ]
    path.write_text(json.dumps(tokens))
    return tokens


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), json.loads(sys.argv[2]))
