"""Copies of another hub's repos: two real hubs on the loopback, and what goes wrong between them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from qwenstack.cli.hub import hub as commands
from qwenstack.hub.hub import Hub, open_hub
from qwenstack.hub.registry.manifests import Manifest
from qwenstack.hub.registry.repos import find_repo
from qwenstack.hub.registry.revisions import read_files
from tests.hub import RunningHub, running_hub

REPO = "acme/model"
CARD = b"---\nlicense: %s\n---\n# A model\n"


def weights(seed: int, size: int = 300_000) -> bytes:
    """A safetensors file of numbers that no chunk of another seed's shares."""
    import random

    header = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(size)


def publish(upstream: RunningHub, files: dict[str, bytes], repo: str = REPO, **more: Any) -> str:
    """Push the files to the upstream's main branch; the commit's id."""
    api = HfApi(upstream.url, token=upstream.token)
    api.create_repo(repo, exist_ok=True, **more)
    added = [CommitOperationAdd(path, data) for path, data in files.items()]
    return str(api.create_commit(repo, added, commit_message="files").oid)


FILES = {
    "README.md": CARD % b"apache-2.0",
    "LICENSE": b"You may use this.\n",
    "config.json": b'{"model_type": "qwen3"}',
    "model.safetensors": weights(1),
    "deep/er/notes.txt": b"notes",
}


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningHub]:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with running_hub(tmp_path / "upstream", lfs_bytes_min=100_000) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def command(home: Path, *words: str, token: str | None = None) -> tuple[int, Any]:
    """A command of the hub at `home`: its exit status, and its JSON or its words."""
    environment = {"QWENSTACK_HOME": str(home), "QWENSTACK_HUB_UPSTREAM_TOKEN": token or ""}
    result = CliRunner().invoke(commands, [*words, "--json"], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, str(result.exception)
    return result.exit_code, json.loads(result.stdout) if result.exit_code == 0 else result.output


def copy(home: Path, upstream: RunningHub | str, *words: str, token: str | None = None) -> Any:
    """`hub mirror acme/model`, which must succeed."""
    url = upstream if isinstance(upstream, str) else upstream.url
    status, answer = command(home, "mirror", REPO, "--from", url, *words, token=token)
    assert status == 0, answer
    return answer


def refused(home: Path, upstream: RunningHub | str, *words: str) -> str:
    """`hub mirror acme/model`, which must fail; what it says."""
    url = upstream if isinstance(upstream, str) else upstream.url
    status, answer = command(home, "mirror", REPO, "--from", url, *words)
    assert status == 1, answer
    return str(answer)


def opened(home: Path) -> Hub:
    return open_hub(home / "hub")


def files_of(hub: Hub, revision: str = "main", name: str = REPO) -> Manifest | None:
    with hub.database.connect() as connection:
        repo = find_repo(connection, "model", name)
        return None if repo is None else read_files(connection, repo.id, revision)[1]


def contents_of(home: Path, revision: str = "main") -> dict[str, bytes]:
    hub = opened(home)
    files = files_of(hub, revision)
    assert files is not None
    return {each.path: b"".join(hub.store.read(each.sha256)) for each in files}


def test_a_copy_has_the_upstreams_bytes_and_commit_id(upstream: RunningHub, home: Path) -> None:
    oid = publish(upstream, FILES)
    done = copy(home, upstream)
    assert (done["commit"], done["created"], done["changed"]) == (oid, True, True)
    held = contents_of(home)
    assert {path: held[path] for path in FILES} == FILES
    assert contents_of(home, oid) == held
    theirs = files_of(upstream.open())
    assert files_of(opened(home)) == theirs
    assert command(home, "fsck")[1]["clean"]


def test_a_second_copy_of_the_same_does_nothing(upstream: RunningHub, home: Path) -> None:
    publish(upstream, FILES)
    first = copy(home, upstream)
    again = copy(home, upstream)
    assert not again["changed"]
    assert again["fetched_files"] == 0
    assert again["copied_us"] == first["copied_us"]


def test_a_changed_licence_is_on_record_with_the_one_before(
    upstream: RunningHub, home: Path
) -> None:
    publish(upstream, FILES)
    first = copy(home, upstream)
    changed = {"README.md": CARD % b"other", "LICENSE": b"You may not use this.\n"}
    publish(upstream, changed)
    second = copy(home, upstream)
    assert second["fetched_files"] == 2  # the weights did not come again
    listed = command(home, "origins", REPO)[1]
    assert [each["licence"] for each in listed] == ["other", "apache-2.0"]
    assert [each["upstream_commit"] for each in listed] == [second["commit"], first["commit"]]
    assert len({each["licence_sha256"] for each in listed}) == 2
    assert {each["endpoint"] for each in listed} == {upstream.url}


def test_a_file_that_the_upstream_removed_goes(upstream: RunningHub, home: Path) -> None:
    publish(upstream, FILES)
    copy(home, upstream)
    gone = CommitOperationDelete("deep/er/notes.txt")
    api = HfApi(upstream.url, token=upstream.token)
    api.create_commit(REPO, [gone], commit_message="less")
    done = copy(home, upstream)
    assert (done["removed_files"], done["fetched_files"]) == (1, 0)
    assert "deep/er/notes.txt" not in contents_of(home)
