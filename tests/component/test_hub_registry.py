"""The registry over real databases and a real store, and files on the wire as browsers ask."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import create_account
from qwenstack.hub.errors import Conflict, PreconditionFailed
from qwenstack.hub.http.tidying import remove_abandoned, remove_unknown
from qwenstack.hub.hub import Hub, HubSettings, open_hub
from qwenstack.hub.registry.changes import last_changes
from qwenstack.hub.registry.commits import Message, history, merge, push, start
from qwenstack.hub.registry.live import drop_unused_manifests, live_contents
from qwenstack.hub.registry.manifests import Entry, read_manifest
from qwenstack.hub.registry.operations import Add, Delete, Operation
from qwenstack.hub.registry.refs import create_ref
from qwenstack.hub.registry.repos import (
    Repo,
    create_repo,
    delete_repo,
    find_repo,
    move_repo,
    repo_key,
)
from qwenstack.hub.registry.revisions import HEADS, MAIN, find_commit, read_files
from qwenstack.hub.registry.uploads import begin_upload
from tests.hub import RunningHub, running_hub
from tests.hub_http import batch as lfs_batch
from tests.hub_http import call, commit, file, lfs_file, sha256
from tests.migrated import lay_database

BRANCH = HEADS + MAIN
BY_ALICE = Message("a commit", "", "alice")


BOTH = pytest.mark.parametrize("hub", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    wanted = getattr(request, "param", "sqlite")
    if wanted == "postgresql":
        url = request.getfixturevalue("postgres_url")
    else:
        url = lay_database(tmp_path / "hub" / "hub.db")
    opened = open_hub(tmp_path / "hub", database_url=url)
    with opened.database.begin() as connection:
        create_account(connection, name="alice")
    yield opened
    opened.close()


def entry(path: str, content: bytes = b"x") -> Entry:
    digest = hashlib.sha256(content).hexdigest()
    return Entry(path, len(content), digest, hashlib.sha1(content).hexdigest(), False, "")


def make_repo(hub: Hub, name: str = "alice/m") -> Repo:
    with hub.database.begin() as connection:
        repo = create_repo(
            connection, "model", name, private=False, created_by="alice", at_us=now_us()
        )
        start(connection, repo.id, BRANCH, (entry("first"),), BY_ALICE, at_us=now_us())
    return repo


def put(hub: Hub, repo: Repo, *operations: Operation, ref: str = BRANCH, **more: str) -> str:
    with hub.database.begin() as connection:
        pushed = push(connection, repo.id, ref, operations, BY_ALICE, at_us=now_us(), **more)
    return pushed.commit.oid


def paths(hub: Hub, repo: Repo, revision: str = MAIN) -> list[str]:
    with hub.database.connect().execution_options(read_only=True) as connection:
        return [each.path for each in read_files(connection, repo.id, revision)[1]]


@BOTH
def test_pushes_to_one_branch_at_once_all_arrive_one_after_the_other(hub: Hub) -> None:
    repo = make_repo(hub)
    gate = threading.Barrier(8)

    def one(number: int) -> None:
        gate.wait()
        for step in range(3):
            put(hub, repo, Add(entry(f"f-{number}-{step}")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert len(paths(hub, repo)) == 1 + 8 * 3
    with hub.database.connect().execution_options(read_only=True) as connection:
        tip = find_commit(connection, repo.id, MAIN)
        assert len(list(history(connection, repo.id, tip.oid))) == 1 + 8 * 3


@BOTH
def test_of_pushes_on_one_parent_exactly_one_wins(hub: Hub) -> None:
    repo = make_repo(hub)
    with hub.database.connect().execution_options(read_only=True) as connection:
        parent = find_commit(connection, repo.id, MAIN).oid

    def one(number: int) -> bool:
        try:
            put(hub, repo, Add(entry(f"f-{number}")), parent=parent)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(one, range(6))) == 1
    assert len(paths(hub, repo)) == 2


@BOTH
def test_of_repos_made_at_once_under_one_name_exactly_one_is_there(hub: Hub) -> None:
    def one(spelling: str) -> str:
        try:
            make_repo(hub, spelling)
        except Conflict:
            return "conflict"
        return "made"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(one, ["alice/same", "alice/Same", "alice/SAME", "alice/same"]))
    assert sorted(outcomes) == ["conflict", "conflict", "conflict", "made"]


@BOTH
def test_a_merge_takes_both_sides_and_names_the_file_that_both_changed(hub: Hub) -> None:
    repo = make_repo(hub)
    with hub.database.begin() as connection:
        base = find_commit(connection, repo.id, MAIN)
        create_ref(connection, repo.id, "refs/pr/1", base.oid, at_us=now_us())
        create_ref(connection, repo.id, "refs/pr/2", base.oid, at_us=now_us())
    put(hub, repo, Add(entry("theirs")), Delete("first"), ref="refs/pr/1")
    put(hub, repo, Add(entry("first", b"other")), ref="refs/pr/2")
    put(hub, repo, Add(entry("ours")))
    with hub.database.begin() as connection:
        merge(connection, repo.id, "refs/pr/1", BRANCH, BY_ALICE, at_us=now_us())
    assert paths(hub, repo) == ["ours", "theirs"]
    with hub.database.begin() as connection, pytest.raises(Conflict, match="'first'"):
        merge(connection, repo.id, "refs/pr/2", BRANCH, BY_ALICE, at_us=now_us())
    assert paths(hub, repo) == ["ours", "theirs"]


def test_a_push_that_changes_nothing_makes_no_commit(hub: Hub) -> None:
    repo = make_repo(hub)
    tip = put(hub, repo, Add(entry("a")))
    assert put(hub, repo, Add(entry("a"))) == tip


def test_each_path_knows_the_commit_that_last_changed_it(hub: Hub) -> None:
    repo = make_repo(hub)
    oids = [put(hub, repo, Add(entry(path))) for path in ("d/a", "d/b", "c")]
    with hub.database.connect().execution_options(read_only=True) as connection:
        tip = find_commit(connection, repo.id, MAIN)
        changes = last_changes(connection, tip, ["d/a", "d/b", "d", "c", "first"])
    found = [changes[path].oid for path in ("d/a", "d/b", "d", "c")]
    assert found == [oids[0], oids[1], oids[1], oids[2]]
    assert changes["first"].parents == ()


def test_an_old_name_leads_to_the_repo_until_somebody_takes_it(hub: Hub) -> None:
    repo = make_repo(hub, "alice/old")
    with hub.database.begin() as connection:
        move_repo(connection, repo, "alice/new")
    with hub.database.begin() as connection:
        moved = find_repo(connection, "model", "alice/old")
        assert moved is not None
        assert (moved.id, moved.name) == (repo.id, "alice/new")
        with pytest.raises(Conflict):
            create_repo(
                connection, "model", "Alice/NEW", private=False, created_by="alice", at_us=1
            )
    other = make_repo(hub, "alice/old")
    with hub.database.begin() as connection:
        taken = find_repo(connection, "model", "alice/old")
        assert taken is not None
        assert taken.id == other.id
        assert repo_key("model", "Alice/Old") == repo_key("model", "alice/old")


@BOTH
def test_of_moves_at_once_one_wins_and_no_old_name_is_lost(hub: Hub) -> None:
    with hub.database.begin() as connection:
        repo = create_repo(
            connection, "model", "alice/a", private=False, created_by="alice", at_us=now_us()
        )
    with hub.database.begin() as connection:
        move_repo(connection, repo, "alice/b")
    with pytest.raises(Conflict, match="meanwhile"), hub.database.begin() as connection:
        move_repo(connection, repo, "alice/c")
    with hub.database.connect() as connection:
        for name in ("alice/a", "alice/b"):
            found = find_repo(connection, "model", name)
            assert found is not None and found.id == repo.id


@BOTH
def test_what_a_deleted_repo_alone_had_is_no_longer_live(hub: Hub) -> None:
    kept, gone = make_repo(hub, "alice/kept"), make_repo(hub, "alice/gone")
    put(hub, kept, Add(entry("shared", b"shared")))
    put(hub, gone, Add(entry("shared", b"shared")))
    put(hub, gone, Add(entry("own", b"own")))
    with hub.database.begin() as connection:
        delete_repo(connection, gone)
        assert drop_unused_manifests(connection) >= 1
        live = set(live_contents(connection))
        assert entry("", b"shared").sha256 in live
        assert entry("", b"own").sha256 not in live
        files = find_commit(connection, kept.id, MAIN).manifest
        assert [each.path for each in read_manifest(connection, files)] == ["first", "shared"]


def test_what_a_killed_upload_left_is_removed_and_what_goes_on_is_not(tmp_path: Path) -> None:
    hub = open_hub(tmp_path, settings=HubSettings(upload_url_s=3600))
    repo = make_repo_with_account(hub)
    stale_us, fresh_us = now_us() - 4 * 3600 * 1_000_000, now_us()
    folders = []
    for sha, at_us in (("a" * 64, stale_us), ("b" * 64, fresh_us)):
        with hub.database.begin() as connection:
            upload = begin_upload(
                connection,
                repo_id=repo.id,
                sha256=sha,
                size=10,
                part_bytes=5,
                account="alice",
                guest=False,
                at_us=at_us,
                uploads_max=9,
            )
        (hub.uploads / upload.id).mkdir()
        (hub.uploads / upload.id / "00001").write_bytes(b"12345")
        folders.append(hub.uploads / upload.id)
    (hub.uploads / "new-spooled").write_bytes(b"left behind")
    (hub.uploads / "up_unknown").mkdir()
    remove_unknown(hub)
    assert sorted(hub.uploads.iterdir()) == sorted(folders)
    assert remove_abandoned(hub) == 1
    assert list(hub.uploads.iterdir()) == [folders[1]]
    hub.close()


def make_repo_with_account(hub: Hub) -> Repo:
    with hub.database.begin() as connection:
        create_account(connection, name="alice")
    return make_repo(hub)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("served")) as running:
        body = {"name": "hostile", "organization": "acme"}
        assert call(running, "POST", "/api/repos/create", json_body=body)[0] == 200
        yield running


def test_ranges_and_conditions_are_answered_as_the_rfc_says(served: RunningHub) -> None:
    content = os.urandom(3_000_000)
    href = lfs_batch(served, sha256(content), len(content))["actions"]["upload"]["href"]
    assert call(served, "PUT", href, token="", body=content)[0] == 200
    assert commit(served, lfs_file("w.dat", content))[0] == 200
    url = "/acme/hostile/resolve/main/w.dat"
    size, etag = len(content), f'"{sha256(content)}"'
    status, headers, _ = call(served, "HEAD", url)
    assert (status, headers["content-length"], headers["etag"]) == (200, str(size), etag)
    assert headers["accept-ranges"] == "bytes"
    assert headers["x-linked-etag"] == etag
    assert len(headers["x-repo-commit"]) == 40
    for text, first, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=2999990-", 2_999_990, size),
        ("bytes=-5", size - 5, size),
        ("bytes=5-99999999999", 5, size),
    ):
        status, headers, body = call(served, "GET", url, headers={"Range": text})
        assert status == 206
        assert headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
        assert body == content[first:end]
    for text in ("bytes=0-1,5-6", "lines=0-1", "bytes=x", "bytes=5-1"):
        assert call(served, "GET", url, headers={"Range": text})[0] == 200
    for text in (f"bytes={size}-", "bytes=99999999999-"):
        status, headers, _ = call(served, "GET", url, headers={"Range": text})
        assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    old = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert call(served, "GET", url, headers=old)[0] == 200
    assert call(served, "GET", url, headers=old | {"If-Range": etag})[0] == 206
    for tags, status in ((etag, 304), ("*", 304), (f'W/{etag}, "x"', 304), ('"x"', 200)):
        assert call(served, "GET", url, headers={"If-None-Match": tags})[0] == status
    assert call(served, "GET", url, headers={"If-Match": '"x"'})[0] == 412


def test_an_uploaded_page_is_shown_as_text_and_runs_nowhere(served: RunningHub) -> None:
    name = 'x";evil="\u00fc.html'
    assert commit(served, file(name, b"<script>alert(1)</script>"))[0] == 200
    url = "/acme/hostile/resolve/main/" + "".join(f"%{byte:02x}" for byte in name.encode())
    status, headers, body = call(served, "GET", url)
    assert (status, body) == (200, b"<script>alert(1)</script>")
    assert headers["content-type"].startswith("text/plain")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]
    assert headers["content-disposition"].count('filename="') == 1
    assert 'evil="' not in headers["content-disposition"]


def test_a_missing_file_names_the_commit_and_the_code_that_clients_look_for(
    served: RunningHub,
) -> None:
    for method in ("GET", "HEAD"):
        status, headers, _ = call(served, method, "/acme/hostile/resolve/main/none")
        assert (status, headers["x-error-code"]) == (404, "EntryNotFound")
        assert len(headers["x-repo-commit"]) == 40
    status, headers, _ = call(served, "GET", "/acme/hostile/resolve/none/none")
    assert (status, headers["x-error-code"]) == (404, "RevisionNotFound")
    status, headers, _ = call(served, "GET", "/acme/none/resolve/main/none")
    assert (status, headers["x-error-code"]) == (404, "RepoNotFound")


def test_a_large_tree_comes_in_pages_without_gap_or_repetition(served: RunningHub) -> None:
    body = {"name": "many", "organization": "acme"}
    assert call(served, "POST", "/api/repos/create", json_body=body)[0] == 200
    names = [f"d{number % 7}/f{number:04}" for number in range(250)]
    header = {"key": "header", "value": {"summary": "many"}}
    lines = [header, *(file(name, name.encode()) for name in names)]
    ndjson = b"\n".join(json.dumps(each).encode() for each in lines)
    assert call(served, "POST", "/api/models/acme/many/commit/main", body=ndjson)[0] == 200
    url, seen = "/api/models/acme/many/tree/main?recursive=true&limit=40", []
    while url:
        status, headers, items = call(served, "GET", url)
        assert status == 200
        assert len(items) <= 40
        seen += [each["path"] for each in items if each["type"] == "file"]
        link = headers.get("link", "")
        url = link.partition(">")[0].removeprefix("<").removeprefix(served.url)
    assert seen == sorted([*names, ".gitattributes"])


def test_a_repo_may_be_called_like_a_route_and_one_without_a_namespace_is_not_found(
    served: RunningHub,
) -> None:
    for name in ("tree", "resolve", "refs", "revision"):
        body = {"name": name, "organization": "acme"}
        assert call(served, "POST", "/api/repos/create", json_body=body)[0] == 200
        for path in ("", "/refs", "/tree/main", "/revision/main", "/commits/main"):
            assert call(served, "GET", f"/api/models/acme/{name}{path}")[0] == 200, (name, path)
        assert call(served, "GET", f"/acme/{name}/resolve/main/.gitattributes")[0] == 200
    for path in (
        "/api/models/gpt2",
        "/api/models/gpt2/tree/main",
        "/gpt2/resolve/main/config.json",
    ):
        status, headers, _ = call(served, "GET", path)
        assert (status, headers["x-error-code"]) == (404, "RepoNotFound")
        assert headers["x-request-id"].startswith("req_")


def test_a_nul_that_postgresql_cannot_hold_is_the_callers_mistake(
    tmp_path: Path, postgres_url: str
) -> None:
    with running_hub(tmp_path, database_url=postgres_url) as hub:
        assert call(hub, "POST", "/api/repos/create", json_body={"name": "m"})[0] == 200
        for path in ("/api/models/alice/%00x", "/api/models?search=%00", "/alice/m/resolve/%00/x"):
            assert call(hub, "GET", path)[0] == 400
        tag = {"tag": "t", "message": "a\0b"}
        assert call(hub, "POST", "/api/models/alice/m/tag/main", json_body=tag)[0] == 400
        assert "Traceback" not in hub.log()
