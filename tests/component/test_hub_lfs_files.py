"""Large files of a repo, listed and removed for good, by the client's own methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, DiscussionCommit, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RevisionNotFoundError

from qwenstack.hub.registry.possession import held
from qwenstack.hub.registry.repos import find_repo
from qwenstack.storage import audit_log
from tests.hub import RunningHub, running_hub
from tests.hub_http import batch, call, commit, file, lfs_file, sha256

REPO = "acme/hostile"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    folder: Path = tmp_path_factory.mktemp("lfs_files")
    with running_hub(folder, part_bytes=1 << 20) as hub:
        yield hub


@pytest.fixture
def api(hub: RunningHub) -> Iterator[HfApi]:
    """Alice, with an empty repo."""
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(REPO)
    yield api
    api.delete_repo(REPO, missing_ok=True)


def push(hub: RunningHub, path: str, content: bytes) -> str:
    url = batch(hub, sha256(content), len(content))["actions"]["upload"]["href"]
    assert call(hub, "PUT", url, body=content, token="")[0] == 200
    status, _, answer = commit(hub, lfs_file(path, content))
    assert status == 200, answer
    return str(answer["commitOid"])


def test_what_was_removed_is_in_no_commit_and_the_rest_is_as_it_was(
    hub: RunningHub, api: HfApi
) -> None:
    bad, good = os.urandom(5000), os.urandom(6000)
    first = push(hub, "bad.bin", bad)
    second = push(hub, "good.bin", good)
    api.create_tag(REPO, tag="v1", revision=first)
    assert commit(hub, {"key": "deletedFile", "value": {"path": "bad.bin"}})[0] == 200
    listed = {each.filename: each for each in api.list_lfs_files(REPO)}
    assert listed["bad.bin"].file_oid == sha256(bad)
    assert listed["bad.bin"].size == len(bad)
    assert {name: each.ref for name, each in listed.items()} == {
        "bad.bin": "refs/heads/main",
        "good.bin": "refs/heads/main",
    }

    api.permanently_delete_lfs_files(REPO, [listed["bad.bin"]])

    assert [each.filename for each in api.list_lfs_files(REPO)] == ["good.bin"]
    assert api.list_repo_files(REPO) == [".gitattributes", "good.bin"]
    assert api.list_repo_files(REPO, revision="v1") == [".gitattributes"]
    titles = [each.title for each in api.list_repo_commits(REPO)]
    assert titles == ["s", "s", "s", "initial commit"]
    for gone in (first, second):
        with pytest.raises(RevisionNotFoundError):
            api.list_repo_files(REPO, revision=gone)
    assert call(hub, "GET", f"/{REPO}/resolve/main/good.bin")[2] == good
    # The repo holds it no more: it comes back by an upload alone.
    assert commit(hub, lfs_file("again.bin", bad))[0] == 400
    assert "actions" in batch(hub, sha256(bad), len(bad))


def test_what_a_commit_still_has_as_a_small_file_stays_the_repos(
    hub: RunningHub, api: HfApi
) -> None:
    content = os.urandom(3000)
    push(hub, "large.bin", content)
    assert commit(hub, file("small.txt", content))[0] == 200
    opened = hub.open()

    def held_here() -> set[str]:
        with opened.database.connect() as connection:
            repo = find_repo(connection, "model", REPO)
            assert repo is not None
            return set(held(connection, repo.id, [sha256(content)]))

    api.permanently_delete_lfs_files(REPO, api.list_lfs_files(REPO))
    assert [each.rfilename for each in api.model_info(REPO).siblings or ()] == [
        ".gitattributes",
        "small.txt",
    ]
    assert held_here() == {sha256(content)}
    opened.close()


def test_a_pull_request_goes_on_after_its_commits_got_other_ids(
    hub: RunningHub, api: HfApi
) -> None:
    content = os.urandom(3000)
    push(hub, "bad.bin", content)
    bob = HfApi(endpoint=hub.url, token=hub.other)
    addition = CommitOperationAdd("note.txt", b"words")
    bob.create_commit(REPO, [addition], commit_message="a note", create_pr=True)
    api.permanently_delete_lfs_files(REPO, api.list_lfs_files(REPO))
    details = api.get_discussion_details(REPO, 1)
    oids = [each.oid for each in details.events if isinstance(each, DiscussionCommit)]
    assert api.list_repo_files(REPO, revision=oids[-1]) == [".gitattributes", "note.txt"]
    pulls = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or []
    assert [each.target_commit for each in pulls] == oids[-1:]
    api.merge_pull_request(REPO, 1)
    assert "note.txt" in api.list_repo_files(REPO)


def test_who_may_only_read_or_write_removes_nothing(hub: RunningHub, api: HfApi) -> None:
    push(hub, "bad.bin", os.urandom(2000))
    bob = HfApi(endpoint=hub.url, token=hub.other)
    with pytest.raises(HfHubHTTPError, match="403"):
        list(bob.list_lfs_files(REPO))
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.permanently_delete_lfs_files(REPO, api.list_lfs_files(REPO))
    with pytest.raises(BadRequestError, match="rewrite_history"):
        api.permanently_delete_lfs_files(REPO, api.list_lfs_files(REPO), rewrite_history=False)
    assert [each.filename for each in api.list_lfs_files(REPO)] == ["bad.bin"]


def test_pages_of_the_list_leave_none_out(hub: RunningHub, api: HfApi) -> None:
    contents = [os.urandom(1000 + n) for n in range(5)]
    for number, content in enumerate(contents):
        push(hub, f"{number}.bin", content)
    found: list[str] = []
    path = f"/api/models/{REPO}/lfs-files?limit=2"
    while path:
        status, headers, page = call(hub, "GET", path)
        assert status == 200
        found += [each["filename"] for each in page]
        path = headers.get("link", "").partition(">")[0].lstrip("<").removeprefix(hub.url)
    assert sorted(found) == [f"{n}.bin" for n in range(5)]
    assert len(set(found)) == 5


def test_the_removal_is_in_the_audit_log(hub: RunningHub, api: HfApi) -> None:
    content = os.urandom(1500)
    push(hub, "bad.bin", content)
    assert commit(hub, file("small.txt"))[0] == 200
    api.permanently_delete_lfs_files(REPO, api.list_lfs_files(REPO))
    opened = hub.open()
    with opened.database.connect() as connection:
        count, broken = audit_log.verify(connection)
        line = audit_log.read_lines(connection, after=count - 1, limit=1)[0]
        assert find_repo(connection, "model", REPO) is not None
    opened.close()
    assert broken is None
    assert (line.action, line.actor) == ("hub.repo.remove_files", "alice")
    assert sha256(content) in line.detail
