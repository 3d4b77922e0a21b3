"""Copies of another hub's repos: real hubs on the loopback, and what goes wrong between them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from qwenstack.cli.hub import hub as commands
from qwenstack.hub.accounts.directory import create_account
from qwenstack.hub.errors import RevisionNotFound
from qwenstack.hub.hub import Hub, open_hub
from qwenstack.hub.registry.commits import Message, push
from qwenstack.hub.registry.manifests import Entry, Manifest
from qwenstack.hub.registry.operations import Add
from qwenstack.hub.registry.repos import Repo, create_repo, find_repo, move_repo
from qwenstack.hub.registry.revisions import read_files
from tests.hub import RunningHub, running_hub
from tests.hub_upstream_proxy import UpstreamProxy
from tests.migrated import lay_database

CARD = b"---\nlicense: %s\n---\n# A model\n"
MARK = b"these bytes are to be swapped"


def weights(size: int = 300_000, seed: int = 1) -> bytes:
    """A safetensors file of numbers."""
    header = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(size)


FILES = {
    "README.md": CARD % b"apache-2.0",
    "LICENSE": b"You may use this.\n",
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": weights(),
    "deep/er/notes.txt": b"notes: " + MARK,
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_hub(tmp_path_factory.mktemp("upstream"), lfs_bytes_min=100_000) as running,
    ):
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield running


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A name of the test's own, of the upstream's namespace acme."""
    return f"acme/{request.function.__name__.removeprefix('test_').replace('_', '-')[:60]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def publish(upstream: RunningHub, repo: str, files: dict[str, bytes], **more: Any) -> str:
    """Push the files to the upstream's main branch; the commit's id."""
    api = HfApi(upstream.url, token=upstream.token)
    api.create_repo(repo, exist_ok=True, **more)
    added = [CommitOperationAdd(path, data) for path, data in files.items()]
    return str(api.create_commit(repo, added, commit_message="files").oid)


def command(home: Path, *words: str, token: str = "") -> tuple[int, Any]:
    """A command of the hub at `home`: its exit status, and its JSON or what it says."""
    lay_database(home / "hub" / "hub.db")
    environment = {"QWENSTACK_HOME": str(home), "QWENSTACK_HUB_UPSTREAM_TOKEN": token}
    result = CliRunner().invoke(commands, [*words, "--json"], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, str(result.exception)
    return result.exit_code, json.loads(result.stdout) if result.exit_code == 0 else result.output


def copy(home: Path, url: str, repo: str, *words: str, token: str = "") -> Any:
    """`hub mirror`, which must succeed."""
    status, answer = command(home, "mirror", repo, "--from", url, *words, token=token)
    assert status == 0, answer
    return answer


def refused(home: Path, url: str, repo: str, *words: str) -> str:
    """`hub mirror`, which must fail; what it says."""
    status, answer = command(home, "mirror", repo, "--from", url, *words)
    assert status == 1, answer
    return str(answer)


def opened(home: Path) -> Hub:
    return open_hub(home / "hub")


def here(hub: Hub, name: str) -> Repo | None:
    with hub.database.connect() as connection:
        return find_repo(connection, "model", name)


def files_of(hub: Hub, name: str, revision: str = "main") -> Manifest:
    found = here(hub, name)
    assert found is not None
    with hub.database.connect() as connection:
        return read_files(connection, found.id, revision)[1]


def contents_of(home: Path, name: str, revision: str = "main") -> dict[str, bytes]:
    hub = opened(home)
    files = files_of(hub, name, revision)
    return {each.path: b"".join(hub.store.read(each.sha256)) for each in files}


def push_past_the_scanner(hub: Hub, name: str, path: str, data: bytes) -> str:
    """A commit to the main branch, made without the hub's server; its id."""
    content = hub.store.put([data])
    entry = Entry(path, content.size, content.sha256, content.git_oid, False, content.xet_hash)
    found = here(hub, name)
    assert found is not None
    with hub.database.begin() as connection:
        message = Message("by hand", "", "alice")
        return push(
            connection, found.id, "refs/heads/main", [Add(entry)], message, at_us=1
        ).commit.oid


def test_a_copy_has_the_upstreams_bytes_and_commit_id(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    done = copy(home, upstream.url, repo)
    assert (done["commit"], done["created"], done["changed"]) == (oid, True, True)
    held = contents_of(home, repo)
    assert {path: held[path] for path in FILES} == FILES
    assert contents_of(home, repo, oid) == held
    assert files_of(opened(home), repo) == files_of(upstream.open(), repo)
    assert command(home, "fsck")[1]["clean"]
    again = copy(home, upstream.url, repo)
    assert not again["changed"]
    assert (again["fetched_files"], again["copied_us"]) == (0, done["copied_us"])


def test_a_changed_licence_is_on_record_beside_the_one_before(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    first = copy(home, upstream.url, repo)
    api = HfApi(upstream.url, token=upstream.token)
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd("README.md", CARD % b"mit"),
        CommitOperationAdd("LICENSE", b"You may not use this.\n"),
        CommitOperationDelete("deep/er/notes.txt"),
    ]
    api.create_commit(repo, changes, commit_message="change")
    second = copy(home, upstream.url, repo)
    # The weights did not come again.
    assert (second["fetched_files"], second["removed_files"]) == (2, 1)
    assert "deep/er/notes.txt" not in contents_of(home, repo)
    listed = command(home, "origins", repo)[1]
    assert [each["licence"] for each in listed] == ["mit", "apache-2.0"]
    assert [each["upstream_commit"] for each in listed] == [second["commit"], first["commit"]]
    assert len({each["licence_sha256"] for each in listed}) == 2
    assert {each["endpoint"] for each in listed} == {upstream.url}


def test_tags_branches_and_pinned_commits_are_copied_as_such(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    old = publish(upstream, repo, FILES)
    api = HfApi(upstream.url, token=upstream.token)
    api.create_tag(repo, tag="v1")
    api.create_branch(repo, branch="next")
    publish(upstream, repo, {"config.json": b"{}"})
    pinned = copy(home, upstream.url, repo, "--revision", old)
    assert (pinned["ref"], pinned["commit"]) == (None, old)
    assert copy(home, upstream.url, repo, "--revision", "v1")["ref"] == "refs/tags/v1"
    assert copy(home, upstream.url, repo, "--revision", "next")["ref"] == "refs/heads/next"
    assert copy(home, upstream.url, repo)["fetched_files"] == 1
    assert contents_of(home, repo, "v1")["config.json"] == FILES["config.json"]
    assert contents_of(home, repo)["config.json"] == b"{}"
    assert "no such revision" in refused(home, upstream.url, repo, "--revision", "v9")


def test_a_branch_with_commits_made_here_is_left_alone(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    copy(home, upstream.url, repo)
    mine = push_past_the_scanner(opened(home), repo, "config.json", b'{"mine": true}')
    publish(upstream, repo, {"config.json": b'{"theirs": true}'})
    assert f"made on this hub ({mine[:12]}" in refused(home, upstream.url, repo)
    assert contents_of(home, repo)["config.json"] == b'{"mine": true}'


def test_a_repo_that_was_made_here_is_left_alone(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    with opened(home).database.begin() as connection:
        create_repo(connection, "model", repo, private=False, created_by="acme", at_us=1)
    assert "is no mirror" in refused(home, upstream.url, repo)
    with pytest.raises(RevisionNotFound):
        files_of(opened(home), repo)


def test_a_copy_that_was_moved_here_follows_the_repo_that_it_came_from(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    assert copy(home, upstream.url, repo.upper().replace("ACME", "acme"))["repo"] == repo
    hub = opened(home)
    found = here(hub, repo)
    assert found is not None
    with hub.database.begin() as connection:
        move_repo(connection, found, "acme/moved")
    # Somebody else's repo has the new name at the upstream.
    publish(upstream, "acme/moved", {"config.json": b'{"other": 1}'})
    new = publish(upstream, repo, {"config.json": b'{"new": 1}'})
    assert copy(home, upstream.url, "acme/moved")["commit"] == new
    assert contents_of(home, "acme/moved")["config.json"] == b'{"new": 1}'


def test_altered_bytes_are_refused_by_name_and_nothing_shows(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    large = FILES["model.safetensors"][200_000:200_032]
    with UpstreamProxy(upstream.url) as proxy:
        for path, found in (("deep/er/notes.txt", MARK), ("model.safetensors", large)):
            proxy.swap = (found, bytes(len(found)))
            assert f"other bytes of {path!r}" in refused(home, proxy.url, repo)
            assert here(opened(home), repo) is None
        proxy.swap = None
        assert copy(home, proxy.url, repo)["changed"]
    held = contents_of(home, repo)
    assert {path: held[path] for path in FILES} == FILES


def test_a_killed_copy_shows_nothing_and_the_next_goes_on(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    big = weights(24_000_000)
    # "model" comes before "weights" in the list: it is whole when the kill comes.
    publish(upstream, repo, FILES | {"weights.safetensors": big})
    with UpstreamProxy(upstream.url) as proxy:
        proxy.hold(after=14_000_000)
        words = ["hub", "mirror", repo, "--from", proxy.url, "--home", str(home)]
        child = subprocess.Popen([sys.executable, "-m", "qwenstack.cli.main", *words])
        assert proxy.holding.wait(60)
        _wait_for_bytes(home / "hub" / "mirrors", 10 * 1024 * 1024)
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        assert here(opened(home), repo) is None
        proxy.release()
        proxy.heads.clear()
        done = copy(home, proxy.url, repo)
        assert done["fetched_files"] < done["files"]
        assert not proxy.asked("/model.safetensors ")
        (resumed,) = proxy.asked("/weights.safetensors ")
        assert "range: bytes=10485760-" in resumed.lower()
    assert contents_of(home, repo)["weights.safetensors"] == big
    assert command(home, "fsck")[1]["clean"]
    assert not [each for each in (home / "hub" / "mirrors").iterdir() if each.is_dir()]


def _wait_for_bytes(folder: Path, size: int) -> None:
    """Until a file below the folder has as many bytes, within a bounded number of looks."""
    for _ in range(300):
        if any(each.stat().st_size >= size for each in folder.rglob("*")):
            return
        time.sleep(0.05)
    raise AssertionError("the beginning of the file did not come")


def test_a_gated_repo_needs_the_operators_token_and_stays_gated(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    HfApi(upstream.url, token=upstream.token).update_repo_settings(repo, gated="manual")
    said = refused(home, upstream.url, repo)
    assert "is gated" in said
    assert "QWENSTACK_HUB_UPSTREAM_TOKEN" in said
    assert here(opened(home), repo) is None
    assert copy(home, upstream.url, repo, token=upstream.token)["gated"] == "manual"
    found = here(opened(home), repo)
    assert found is not None
    assert found.gated == "manual"


def test_a_private_repo_stays_private(upstream: RunningHub, home: Path, repo: str) -> None:
    publish(upstream, repo, FILES, private=True)
    assert "has no model" in refused(home, upstream.url, repo)
    assert copy(home, upstream.url, repo, token=upstream.token)["private"]


def test_files_that_the_scanner_refuses_are_not_published(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, {"notes.txt": b"notes"})
    program = b"\x7fELF\x02\x01" + bytes(200)
    push_past_the_scanner(upstream.open(), repo, "program.so", program)
    assert "program.so" in refused(home, upstream.url, repo)
    assert here(opened(home), repo) is None


def test_an_upstream_that_is_no_hub_or_away_is_named(home: Path, repo: str) -> None:
    assert "cannot be reached" in refused(home, "http://127.0.0.1:9", repo)
    assert "is no hub's address" in refused(home, "ftp://example.com", repo)
    assert "is no repo name" in refused(home, "http://127.0.0.1:9", "one-part")


def test_a_copy_into_postgresql(
    upstream: RunningHub, home: Path, repo: str, postgres_url: str
) -> None:
    oid = publish(upstream, repo, FILES)
    words = ("--database", postgres_url)
    assert copy(home, upstream.url, repo, *words)["commit"] == oid
    new = publish(upstream, repo, {"config.json": b"{}"})
    assert copy(home, upstream.url, repo, *words)["commit"] == new
    assert len(command(home, "origins", repo, *words)[1]) == 2
    assert command(home, "fsck", *words)[1]["clean"]


def test_a_namespace_that_is_copied_is_nobodys_to_take(
    upstream: RunningHub, home: Path, repo: str
) -> None:
    publish(upstream, repo, FILES)
    copy(home, upstream.url, repo)
    with (
        opened(home).database.begin() as connection,
        pytest.raises(Exception, match="acme is taken"),
    ):
        create_account(connection, name="acme")


def test_files_too_large_for_plain_http_come_by_xet(
    upstream: RunningHub, home: Path, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(upstream, repo, FILES)
    monkeypatch.setattr("qwenstack.hub.upstream._HTTP_BYTES_MAX", 100_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with UpstreamProxy(upstream.url) as proxy:
        assert copy(home, proxy.url, repo)["changed"]
        assert proxy.asked("/xet-read-token/")
        assert not proxy.asked(f"GET /{repo}/resolve/main/model.safetensors")
    held = contents_of(home, repo)
    assert {path: held[path] for path in FILES} == FILES
