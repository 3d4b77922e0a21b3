"""`qwenstack hub scan, quarantine, sign, verify, facts`, on folders and on a hub's own releases."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwenstack.cli.main import qwenstack
from qwenstack.hub.hub import Hub, open_hub
from qwenstack.hub.licence_history import licence_history, read_revisions
from qwenstack.hub.registry.commits import Message, push, start
from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.operations import Add
from qwenstack.hub.registry.repos import Repo, create_repo
from qwenstack.hub.registry.revisions import find_commit
from qwenstack.hub.safety.records import SafetyInspector
from tests.migrated import lay_database
from tests.unit.test_facts import CARD, release

MAIN = "refs/heads/main"


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(qwenstack, ["hub", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 1, f"{type(done.exception).__name__}: {done.exception}"
    return done.exit_code, done.stdout


def run_json(*words: str | Path) -> Any:
    return json.loads(run(*words, "--json")[1])


def put(hub: Hub, path: str, content: bytes) -> Entry:
    stored = hub.store.put([content])
    return Entry(path, stored.size, stored.sha256, stored.git_oid, False, stored.xet_hash)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWENSTACK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def repo(home: Path) -> Repo:
    """A repo with two commits: the second one takes the licence's text away."""
    lay_database(home / "hub" / "hub.db")
    hub = open_hub(home / "hub")
    files = release() | {"LICENSE": b"one\ntwo\n"}
    entries = tuple(put(hub, path, content) for path, content in sorted(files.items()))
    changed = put(hub, "LICENSE", b"one\nthree\n")
    with hub.database.begin() as connection:
        made = create_repo(connection, "model", "me/model", private=False, created_by="me", at_us=1)
        start(connection, made.id, MAIN, entries, Message("one", "", "me"), at_us=1)
        push(connection, made.id, MAIN, [Add(changed)], Message("two", "", "me"), at_us=2)
    hub.close()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, content in release().items():
        (folder / path).write_bytes(content)
    (folder / "LICENSE").write_bytes(b"one\nthree\n")
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "k.pem", tmp_path / "k.pub"
    curve = "ec_paramgen_curve:P-256"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", private],
        check=True,
        capture_output=True,
    )
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def test_a_scan_of_a_folder_and_of_a_release_exits_by_what_the_hub_would_do(
    repo: Repo, folder: Path
) -> None:
    assert run("scan", repo.name) == (0, "5 files scanned: all may be published.\n")
    assert run("scan", folder)[0] == 0
    (folder / "notes.txt").write_bytes(pickle.dumps([1]))
    code, shown = run("scan", folder)
    assert code == 1
    assert "refuse: notes.txt: it is a pickle" in shown
    assert "1 to refuse" in shown
    (found,) = [each for each in run_json("scan", folder) if each["path"] == "notes.txt"]
    assert (found["verdict"], found["findings"][0]["rule"]) == ("refused", "pickle")
    assert "RepoNotFound" in run("scan", "no/where")[1]


def test_a_release_signed_from_its_manifest_verifies_as_a_folder(
    home: Path, repo: Repo, folder: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    assert run("sign", repo.name, "--key", private)[0] == 0
    verify = ("verify", folder, "--public-key", public, "--signature", "model.sig")
    assert run(*verify)[0] == 0
    release_check = ("verify", repo.name, "--public-key", public, "--signature", "model.sig")
    assert run(*release_check)[0] == 0
    assert run("verify", folder, "--release", repo.name)[0] == 0
    (folder / "config.json").write_text("{}")
    code, shown = run(*verify)
    assert (code, "config.json is not what was signed" in shown) == (1, True)
    assert run_json("verify", folder, "--release", repo.name) == {
        "holds": False,
        "files": 5,
        "difference": {"path": "config.json", "kind": "differs"},
    }
    assert "holds no model.sig" in run("verify", repo.name, "--public-key", public)[1]
    hub = open_hub(home / "hub")
    entry = put(hub, "model.sig", Path("model.sig").read_bytes())
    with hub.database.begin() as connection:
        push(connection, repo.id, MAIN, [Add(entry)], Message("sign", "", "me"), at_us=3)
    hub.close()
    assert run("verify", repo.name, "--public-key", public)[0] == 0
    old = ("verify", repo.name, "--revision", "HEAD", *release_check[2:])
    assert run(*old)[0] == 0


def test_facts_and_the_history_of_the_licence(home: Path, repo: Repo, folder: Path) -> None:
    code, shown = run("facts", folder)
    assert code == 0
    assert "architecture: Qwen3ForCausalLM   (config.json: architectures)" in shown
    found = run_json("facts", repo.name, "--licence-history")
    assert found["facts"]["licence"]["file"] == "LICENSE"
    first, second = found["licence_history"]
    assert (first["before"], second["words"]) == (None, "the text changed")
    assert second["diff"].splitlines()[-2:] == ["-two", "+three"]


def test_the_history_of_a_licence_is_read_from_the_commits(home: Path, repo: Repo) -> None:
    hub = open_hub(home / "hub")
    with hub.database.connect() as connection:
        tip = find_commit(connection, repo.id, "main")
        revisions = read_revisions(connection, tip, hub.open_file)
    assert [revision.at_us for revision in revisions] == [1, 2]
    assert [change.commit for change in licence_history(revisions)] == [
        revision.commit for revision in revisions
    ]
    hub.close()


def test_an_operator_lists_and_releases_what_is_in_quarantine(home: Path) -> None:
    hub = open_hub(home / "hub")
    entry = put(hub, "m.h5", b"\x89HDF\r\n\x1a\n" + bytes(10))
    assert SafetyInspector(hub.database).inspect([entry], hub.open_file)
    assert [held["sha256"] for held in run_json("quarantine")] == [entry.sha256]
    assert "HDF5" in run("quarantine")[1]
    assert run("quarantine", "--release", entry.sha256)[0] == 0
    assert run_json("quarantine") == []
    assert "NotFound" in run("quarantine", "--release", entry.sha256)[1]
    assert SafetyInspector(hub.database).inspect([entry], hub.open_file) == []
    hub.close()


def test_what_does_not_go_together_is_said(folder: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert run("verify", folder)[0] == 2
    assert run("verify", folder, "--public-key", public, "--release", "a/b")[0] == 2
    assert "FileNotFoundError" in run("verify", folder, "--public-key", public)[1]
    assert "SigningError" in run("sign", folder / "config.json", "--key", private)[1]
    assert CARD in (folder / "README.md").read_bytes()
