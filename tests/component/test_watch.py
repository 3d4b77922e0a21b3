"""Watching a real hub: what it published, changed and withdrew between two looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from qwenstack.catalog.watch.changes import changes
from qwenstack.catalog.watch.hub_api import HubUnreadable, take_snapshot
from qwenstack.catalog.watch.snapshot import SnapshotError, SnapshotFolder, read_snapshot
from qwenstack.cli.main import qwenstack
from tests.hub import ORGANISATION, running_hub

CARD = "---\nlicense: {licence}\nbase_model: Qwen/Qwen3-8B\n---\n# A model\n"


def publish(api: HfApi, name: str, licence: str, text: str, weights: bytes) -> None:
    repo = f"{ORGANISATION}/{name}"
    api.create_repo(repo, exist_ok=True)
    for path, data in (
        ("README.md", CARD.format(licence=licence).encode()),
        ("LICENSE", text.encode()),
        ("config.json", b'{"model_type": "qwen3"}'),
        ("tokenizer.model", weights),
    ):
        api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=repo)


def test_two_looks_at_a_hub_tell_what_changed(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        publish(api, "kept", "apache-2.0", "Old words\nSame line\n", b"one")
        publish(api, "gone", "mit", "MIT\n", b"two")
        folder = SnapshotFolder(tmp_path / "watch", hub.url, ORGANISATION)
        first = take_snapshot(hub.url, ORGANISATION, folder, token=hub.token)
        path = folder.save(first)
        publish(api, "kept", "other", "New words\nSame line\n", b"one")
        api.delete_repo(f"{ORGANISATION}/gone")
        publish(api, "new", "apache-2.0", "Apache\n", b"three")
        second = take_snapshot(hub.url, ORGANISATION, folder, token=hub.token)

    assert [repo.id for repo in first.repos] == ["acme/gone", "acme/kept"]
    assert first.repos[1].licence == "apache-2.0"
    assert first.repos[1].base_models == ("Qwen/Qwen3-8B",)
    assert read_snapshot(path) == first
    events = changes(first, second, folder.text)
    found = {(event.kind, event.repo): event for event in events}
    assert set(found) == {
        ("withdrawn", "acme/gone"),
        ("licence-changed", "acme/kept"),
        ("licence-text-changed", "acme/kept"),
        ("new-repo", "acme/new"),
    }
    assert (found["licence-changed", "acme/kept"].before) == "apache-2.0"
    diff = found["licence-text-changed", "acme/kept"].diff.splitlines()
    assert "-Old words" in diff
    assert "+New words" in diff
    assert changes(second, second, folder.text) == []


def test_what_could_not_be_read_is_no_change(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        publish(api, "m", "mit", "MIT\n", b"w")
        folder = SnapshotFolder(tmp_path / "watch", hub.url, ORGANISATION)
        first = take_snapshot(hub.url, ORGANISATION, folder, token=hub.token)
    import msgspec

    blind = msgspec.structs.replace(first, repos=(), partial=("acme/m",))
    assert changes(first, blind, folder.text) == []


def test_history_needs_no_network_and_says_when_there_is_none(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        publish(api, "m", "mit", "MIT\n", b"w")
        endpoint, environment = hub.url, {"HF_TOKEN": hub.token}
        arguments = ["--endpoint", endpoint, "--author", ORGANISATION, "--home", str(tmp_path)]
        run = CliRunner(env=environment)
        taken = run.invoke(qwenstack, ["watch", "hub", *arguments, "--json"])
        assert taken.exit_code == 0, taken.output
        assert json.loads(taken.stdout)["repos"] == 1
    told = CliRunner().invoke(qwenstack, ["watch", "history", *arguments, "--json"])
    assert len(json.loads(told.stdout)["snapshots"]) == 1
    with pytest.raises(HubUnreadable, match="cannot be read"):
        take_snapshot(endpoint, "acme", SnapshotFolder(tmp_path / "w", endpoint, "acme"))
    nobody = [*arguments[:2], "--author", "nobody", *arguments[4:]]
    assert isinstance(
        CliRunner().invoke(qwenstack, ["watch", "history", *nobody]).exception, SnapshotError
    )


def test_signals_are_read_from_the_record_and_drawn_the_same_twice(tmp_path: Path) -> None:
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        told = CliRunner().invoke(qwenstack, ["watch", "signals", "--plot", str(picture), "--json"])
        assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert sum(each["releases"] for each in found["quarters"]) > 50
    assert any(each["days"] is not None and each["days"] < 0 for each in found["lags"])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
