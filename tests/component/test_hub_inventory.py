"""Methods of the client about what there is: its own calls against a hub that serves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)

from tests.hub import RunningHub, running_hub
from tests.hub_http import call

CARD = b"---\nlicense: apache-2.0\nlanguage: de\npipeline_tag: text-generation\n---\n# M\n"


def shard(name: str, size: int) -> bytes:
    header = {name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(size)


FILES = {
    "README.md": CARD,
    "a.safetensors": shard("first", 8),
    "b.safetensors": shard("second", 16),
    "model.safetensors.index.json": json.dumps(
        {
            "metadata": {"total_size": 24},
            "weight_map": {"first": "a.safetensors", "second": "b.safetensors"},
        }
    ).encode(),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    folder: Path = tmp_path_factory.mktemp("inventory")
    with running_hub(folder) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for name, private in (("acme/model", False), ("acme/hidden", True), ("acme/gated", False)):
            api.create_repo(name, private=private)
            operations = [CommitOperationAdd(path, data) for path, data in FILES.items()]
            api.create_commit(name, operations, commit_message="all")
        api.update_repo_settings("acme/gated", gated="manual")
        yield hub


@pytest.fixture
def alice(hub: RunningHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def bob(hub: RunningHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.other)


def test_the_headers_of_all_shards_come_at_once(alice: HfApi, bob: HfApi) -> None:
    found = bob.get_sharded_safetensors_metadata("acme/model")
    assert found.weight_map == {"first": "a.safetensors", "second": "b.safetensors"}
    assert found.metadata == {"total_size": 24}
    assert found.files_metadata["b.safetensors"].tensors["second"].shape == [16]
    assert found == alice.get_safetensors_metadata("acme/model")
    with pytest.raises(EntryNotFoundError):
        bob.get_sharded_safetensors_metadata("acme/model", filename="other.index.json")
    with pytest.raises(HfHubHTTPError, match="is no shard index"):
        bob.get_sharded_safetensors_metadata("acme/model", filename="README.md")
    for name, words in (("README.md", "headers have more than"), ("empty.txt", "truncated")):
        odd = json.dumps({"weight_map": {"w": name}}).encode()
        files = {"odd.index.json": odd, "empty.txt": b"\1" + b"\0" * 7}
        alice.create_commit(
            "acme/model",
            [CommitOperationAdd(path, data) for path, data in files.items()],
            commit_message="odd",
        )
        with pytest.raises(HfHubHTTPError, match=words):
            bob.get_sharded_safetensors_metadata("acme/model", filename="odd.index.json")
    with pytest.raises(RepositoryNotFoundError):
        bob.get_sharded_safetensors_metadata("acme/hidden")
    with pytest.raises(GatedRepoError):
        bob.get_sharded_safetensors_metadata("acme/gated")


def test_an_account_lists_its_repos_with_what_they_take(alice: HfApi, bob: HfApi) -> None:
    found = {each.id: each for each in alice.list_user_repos(namespace="acme")}
    assert set(found) >= {"acme/model", "acme/hidden", "acme/gated"}
    assert found["acme/hidden"].visibility == "private"
    size = sum(map(len, FILES.values()))
    assert size < found["acme/model"].storage < size + 5000  # .gitattributes is there, too
    assert list(bob.list_user_repos()) == []
    with pytest.raises(HfHubHTTPError, match="no member of acme"):
        list(bob.list_user_repos(namespace="acme"))


def test_tags_are_those_of_repos_that_the_caller_may_see(
    hub: RunningHub, alice: HfApi, bob: HfApi
) -> None:
    alice.create_repo("acme/other", private=True)
    card = b"---\nlicense: mit\nlanguage: fr\n---\n"
    alice.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="acme/other")
    ask: Callable[[str], dict[str, list[dict[str, str]]]] = lambda token: call(  # noqa: E731
        hub, "GET", "/api/models-tags-by-type", token=token
    )[2]
    mine, theirs = ask(hub.token), ask(hub.other)
    assert {each["id"] for each in mine["license"]} == {"license:apache-2.0", "license:mit"}
    assert {each["id"] for each in theirs["license"]} == {"license:apache-2.0"}
    assert theirs["pipeline_tag"] == [
        {"id": "text-generation", "label": "text-generation", "type": "pipeline_tag"}
    ]
    assert bob.get_dataset_tags() == {}


def test_a_duplicate_has_the_files_and_the_terms_of_the_other(alice: HfApi, bob: HfApi) -> None:
    url = bob.duplicate_repo("acme/model")
    assert url.repo_id == "bob/model"
    assert set(bob.list_repo_files("bob/model")) >= set(FILES)
    assert [each.title for each in bob.list_repo_commits("bob/model")] == [
        "Duplicate of acme/model"
    ]
    info = bob.model_info("bob/model")
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    with pytest.raises(HfHubHTTPError, match="409"):
        bob.duplicate_repo("acme/model")
    assert bob.duplicate_repo("acme/model", exist_ok=True).repo_id == "bob/model"
    with pytest.raises(RepositoryNotFoundError):
        bob.duplicate_repo("acme/hidden")
    with pytest.raises(GatedRepoError):
        bob.duplicate_repo("acme/gated")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.duplicate_repo("acme/model", "acme/again")
    alice.duplicate_repo("acme/gated", "alice/terms")
    assert alice.model_info("alice/terms").gated == "manual"
    alice.duplicate_repo("acme/hidden", "alice/kept")
    assert alice.model_info("alice/kept").private


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda api: list(api.list_collections()), "collections"),
        (lambda api: api.create_collection(title="mine", namespace="bob"), "collections"),
        (lambda api: api.list_webhooks(), "webhooks"),
        (lambda api: api.get_webhook("1"), "webhooks"),
        (lambda api: list(api.list_papers(query="x")), "papers"),
        (lambda api: list(api.list_daily_papers()), "papers"),
        (lambda api: list(api.list_jobs(namespace="bob")), "jobs"),
        (lambda api: list(api.list_buckets(namespace="bob")), "buckets"),
        (lambda api: api.get_dataset_leaderboard("acme/set"), "leaderboards"),
    ],
)
def test_what_this_hub_has_not_is_said_so(bob: HfApi, ask: Any, what: str) -> None:
    with pytest.raises(HfHubHTTPError, match=f"it has no {what}") as raised:
        ask(bob)
    assert raised.value.response.status_code == 501


def test_there_are_no_spaces(bob: HfApi) -> None:
    assert list(bob.list_spaces()) == []
    assert not bob.repo_exists("acme/space", repo_type="space")


def test_what_other_hubs_have_is_said_not_to_be_here_and_hides_no_account(
    hub: RunningHub,
) -> None:
    for method, path in (("GET", "/api/collections/x"), ("POST", "/uploads")):
        status, _, answer = call(hub, method, path)
        assert status == 501
        assert "it has no" in answer["error"]
    # As of a name that nobody has: a page, or its absence, of an account that was called so.
    pages = [call(hub, "GET", f"/{name}/model")[0] for name in ("uploads", "nobody")]
    assert pages == [404, 404]


def test_git_is_told_what_to_use_instead(hub: RunningHub) -> None:
    for repo in ("acme/model", "acme/model.git", "datasets/nobody/absent"):
        status, headers, answer = call(hub, "GET", f"/{repo}/info/refs?service=git-upload-pack")
        assert status == 501
        assert headers["content-type"].startswith("text/plain")  # Git shows nothing else
        assert "hf download" in answer.decode()
