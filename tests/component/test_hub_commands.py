"""The hub's commands as a user types them, around one real server in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenstack.cli.main import main

QWENSTACK = [sys.executable, "-m", "qwenstack.cli.main"]


class Home:
    """A home folder with a hub that serves, and the commands around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "QWENSTACK_HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self.process, self.ready = self.serve()
        self.environment |= {
            "HF_ENDPOINT": self.ready["endpoint"],
            "HF_TOKEN": self.ready["token"],
        }

    def serve(self) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        process = subprocess.Popen(
            [*QWENSTACK, "hub", "serve", "--port", "0", "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    def run(self, *words: str, fails: bool = False, complaint: bool | None = None) -> str:
        """A command in this process; what it prints, or where it must fail its complaint."""
        complaint = fails if complaint is None else complaint
        said, complained, code = io.StringIO(), io.StringIO(), 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(complained),
        ):
            patch.setattr(os, "environ", dict(self.environment))
            try:
                main(["hub", *words])
            except SystemExit as exit_:
                code = int(exit_.code or 0)
        assert (code != 0) == fails, complained.getvalue()
        return complained.getvalue() if complaint else said.getvalue()

    def process_of(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own, as the client library reads its settings once."""
        return subprocess.run(
            [*QWENSTACK, "hub", *words], env=self.environment, capture_output=True, text=True
        )

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    started = Home(tmp_path_factory.mktemp("home"))
    yield started
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(timeout=60) == 0
    assert started.process.stdout is not None
    started.process.stdout.close()


def test_a_fresh_hub_is_one_command_away_from_a_push_and_a_pull(home: Home) -> None:
    source, target = home.folder / "model", home.folder / "copy"
    source.mkdir()
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Hello\n")
    (source / "config.json").write_text('{"model_type": "qwen3"}')
    pushed = home.process_of("push", str(source), "operator/model", "-m", "First", "--json")
    assert len(json.loads(pushed.stdout)["commit"]) == 40, pushed.stderr
    pulled = home.process_of("pull", "operator/model", str(target), "--json")
    assert json.loads(pulled.stdout)["folder"] == str(target)
    assert (target / "config.json").read_text() == (source / "config.json").read_text()
    assert "operator/model" in home.run("tree")
    assert home.json("tree", "operator/model")["models"] == 1
    shown = home.json("stats", "operator/model", "--days", "7")
    assert len(shown["days"]) == 7 and shown["downloads"] == shown["all_time"]
    assert "in 30 days" in home.run("stats", "operator/model")
    # The folder of an earlier pull is no answer for a repo that is not there.
    missing = home.process_of("pull", "operator/missing", str(target))
    assert missing.returncode != 0 and "Traceback" not in missing.stderr
    assert "HF_TOKEN" in missing.stderr and "404" in missing.stderr


def test_a_second_start_prints_no_secret(home: Home) -> None:
    process, ready = home.serve()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    assert home.ready["token"].startswith("hf_") and ready["token"] is None


def test_users_and_tokens_come_and_go(home: Home) -> None:
    assert home.json("users", "add", "alice", "--email", "alice@example.com")["kind"] == "user"
    home.run("users", "add", "acme", "--organisation", "--admin", "alice")
    home.run("users", "add", "bob")
    home.run("users", "role", "acme", "bob", "contributor")
    assert home.json("users", "members", "acme") == [
        {"user": "alice", "role": "admin"},
        {"user": "bob", "role": "contributor"},
    ]
    home.run("users", "role", "acme", "bob", "none")
    assert [each["user"] for each in home.json("users", "members", "acme")] == ["alice"]
    made = home.json("tokens", "create", "alice", "--scope", "acme=write", "--days", "7")
    assert made["role"] == "fineGrained" and made["secret"].startswith("hf_")
    (listed,) = home.json("tokens", "list", "alice")
    assert "secret" not in listed and made["secret"] not in json.dumps(listed)
    assert home.json("tokens", "revoke", made["id"])["revoked_at"] is not None
    assert "revoked" in home.run("tokens", "list", "alice")
    assert {each["name"] for each in home.json("users", "list")} >= {"operator", "alice", "acme"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("users", "add", "a/b"), "letters"),
        (("users", "add", "OPERATOR"), "taken"),
        (("users", "add", "club", "--organisation"), "--admin"),
        (("users", "role", "nobody", "operator", "read"), "no organisation"),
        (("tokens", "create", "nobody"), "no user"),
        (("tokens", "create", "operator", "--scope", "acme"), "NAMESPACE=RIGHT"),
        (("tokens", "revoke", "tok_none"), "tokens list"),
        (("stats", "operator/missing"), "no model"),
        (("tree", "operator/missing"), "no model"),
    ],
)
def test_a_mistake_gets_one_line_with_the_way_out(
    home: Home, words: tuple[str, ...], says: str
) -> None:
    said = home.run(*words, fails=True)
    assert says in said


def test_a_closed_hub_shows_a_guest_a_door_and_nothing_behind_it(home: Home) -> None:
    for path, code in {
        "/": 200,
        "/models": 200,
        "/login": 200,
        "/tree": 401,
        "/tree.svg": 401,
        "/operator": 404,
        "/operator/model": 404,
        "/api/models": 401,
        "/api/models/operator/model": 404,
        "/api/users/operator/overview": 404,
        "/api/users/operator/likes": 404,
        "/api/whoami-v2": 401,
        "/api/admin/accounts": 401,
    }.items():
        try:
            with urllib.request.urlopen(home.ready["endpoint"] + path) as answer:
                found, said = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            found, said = error.code, error.read()
        assert found == code, path
        assert b"operator/model" not in said, path


def test_an_operator_administers_over_the_wire_and_nobody_else_does(home: Home) -> None:
    def call(method: str, path: str, token: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            home.ready["endpoint"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    root = home.ready["token"]
    assert call("POST", "/api/admin/accounts", root, {"name": "dora"})[0] == 201
    wish = {"account": "dora", "name": "ci", "role": "write"}
    code, made = call("POST", "/api/admin/tokens", root, wish)
    assert code == 201 and made["secret"].startswith("hf_")
    dora = made["secret"]
    reading = call(
        "POST", "/api/admin/tokens", root, wish | {"account": "operator", "role": "read"}
    )
    for token in (dora, reading[1]["secret"]):
        assert call("GET", "/api/admin/tokens", token)[0] == 403
        assert call("POST", "/api/admin/accounts", token, {"name": "eve"})[0] == 403
    for wrong in (
        {"name": "x", "nickname": "y"},
        {"name": "api"},
        {"name": "club", "kind": "organisation", "admin": "nobody"},
        {"name": "x", "operator": "yes"},
    ):
        assert call("POST", "/api/admin/accounts", root, wrong)[0] in (400, 404), wrong
    # The organisation of a wrong admin was not made by half.
    assert call("GET", "/api/organizations/club/overview", root)[0] == 404
    assert (
        call("POST", "/api/admin/accounts", root, {"name": "club", "kind": "organisation"})[0]
        == 201
    )
    member = "/api/organizations/club/members/dora"
    assert call("PUT", member, dora, {"role": "admin"})[0] == 403
    assert call("PUT", member, root, {"role": "admin"}) == (200, {"user": "dora", "role": "admin"})
    assert call("DELETE", "/api/organizations/club/members/operator", dora)[0] == 200
    assert call("DELETE", f"/api/admin/tokens/{made['id']}", root)[0] == 200
    assert call("GET", "/api/whoami-v2", dora)[0] == 401
    code, log = call("GET", "/api/admin/audit", root)
    assert code == 200 and log["holds"] and log["page"][-1]["action"] == "hub.token.revoke"
    assert call("GET", "/api/admin/audit", reading[1]["secret"])[0] == 403


def test_an_edit_of_the_audit_log_is_noticed(home: Home) -> None:
    home.run("users", "add", "mallory", "--operator")
    shown = home.json("audit")
    assert shown["holds"] and shown["latest"][-1]["action"] == "hub.account.create"
    assert shown["latest"][-1]["actor"].startswith("cli:")
    with contextlib.closing(sqlite3.connect(home.folder / "hub" / "hub.db")) as database:
        database.execute("UPDATE audit SET actor = 'alice' WHERE sequence = 2")
        database.commit()
    assert "breaks at 2" in home.run("audit", fails=True, complaint=False)
