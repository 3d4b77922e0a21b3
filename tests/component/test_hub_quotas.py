"""Quotas on a hub that serves: nobody keeps more than they may, committed or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from sqlalchemy import delete, select

from qwenstack.cli.hub import hub as commands
from qwenstack.core.instants import now_us
from qwenstack.hub import quotas
from qwenstack.hub.accounts import departures
from qwenstack.hub.registry.live import live_contents
from qwenstack.hub.registry.possession import grant
from qwenstack.hub.registry.repos import delete_repo, read_repo
from qwenstack.hub.registry.waiting import forget_removed, keep_waiting, waiting_of
from qwenstack.hub.store.merkle import chunk_hash, to_text, xorb_hash
from qwenstack.hub.store.xorb import write_xorb
from qwenstack.storage import audit_log
from qwenstack.storage.hub_tables import quotas as quotas_set
from qwenstack.storage.hub_tables import repos, segments, uploads, waiting
from tests.hub import RunningHub, running_hub
from tests.hub_http import API, REPO, batch, call, commit, file, lfs_file, sha256

MB = 1024 * 1024


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    folder = tmp_path_factory.mktemp("quotas")
    with running_hub(folder, part_bytes=MB, lfs_bytes_min=MB) as hub:
        yield hub


@pytest.fixture
def hub(serving: RunningHub) -> Iterator[RunningHub]:
    """A hub with one new repo, without limits, where nothing waits."""
    body = {"name": "hostile", "organization": "acme"}
    assert call(serving, "POST", "/api/repos/create", json_body=body)[0] == 200
    yield serving
    opened = serving.open()
    with opened.database.begin() as connection:
        for row in connection.execute(select(repos)).all():
            delete_repo(connection, read_repo(connection, row.id))
        for table in (quotas_set, waiting, uploads):
            connection.execute(delete(table))
    opened.close()


def limit(hub: RunningHub, name: str, **limits: int | None) -> None:
    opened = hub.open()
    with opened.database.begin() as connection:
        quotas.set_limits(connection, name, limits)
    opened.close()


def usage(hub: RunningHub, name: str) -> quotas.Usage:
    opened = hub.open()
    with opened.database.connect() as connection:
        found = quotas.usage_of(connection, name)
    opened.close()
    return found


def upload(hub: RunningHub, content: bytes, *, token: str | None = None) -> tuple[int, Any]:
    """An LFS upload of the content, without a commit: the status of what ended it."""
    wish = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": sha256(content), "size": len(content)}],
        "hash_algo": "sha256",
    }
    path = f"/{REPO}.git/info/lfs/objects/batch"
    status, _, answer = call(hub, "POST", path, json_body=wish, token=token)
    if status != 200:
        return status, answer
    action = answer["objects"][0]["actions"]["upload"]
    status, _, answer = call(hub, "PUT", action["href"], body=content, token="")
    return status, answer


def test_an_organisation_keeps_no_more_bytes_than_it_may(hub: RunningHub) -> None:
    limit(hub, "acme", bytes_max=200_000)
    assert commit(hub, file("a", os.urandom(100_000)))[0] == 200
    status, headers, answer = commit(hub, file("b", os.urandom(120_000)))
    assert (status, headers["x-error-code"]) == (403, "QuotaExceeded")
    assert "Storage limit reached: acme may keep 200000 bytes" in answer["error"]
    before = usage(hub, "acme").bytes
    assert 100_000 < before < 110_000
    # What adds nothing passes, and the same bytes under another name count once.
    limit(hub, "acme", bytes_max=1)
    assert commit(hub, {"key": "copyFile", "value": {"path": "c", "srcPath": "a"}})[0] == 200
    assert commit(hub, {"key": "deletedFile", "value": {"path": "c"}})[0] == 200
    asked = {"files": [{"path": "c", "size": 1, "sample": "eA=="}]}
    assert call(hub, "POST", f"{API}/preupload/main", json_body=asked)[0] == 200
    assert usage(hub, "acme").bytes == before


def test_the_client_raises_its_own_error_with_the_hubs_words_before_it_uploads(
    hub: RunningHub, tmp_path: Path
) -> None:
    limit(hub, "acme", bytes_max=3 * MB)
    for disabled in ("0", "1"):  # by Xet, and by LFS
        code = (
            "import os, sys; from huggingface_hub import HfApi; from huggingface_hub.errors import "
            "HfHubHTTPError\n"
            "try: HfApi().upload_file(path_or_fileobj=os.urandom(4 << 20), path_in_repo='w.bin', "
            f"repo_id='{REPO}')\n"
            "except HfHubHTTPError as error: print(error.response.status_code, error)\n"
            "except Exception as error: print(type(error), error)\n"
        )
        environment = hub.environment(tmp_path) | {"HF_HUB_DISABLE_XET": disabled}
        said = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60
        )
        assert b"Storage limit reached" in said.stdout, said
    assert usage(hub, "acme").bytes < MB


def test_uploads_that_are_never_committed_are_bounded_and_end_with_a_commit(
    hub: RunningHub,
) -> None:
    limit(hub, quotas.EVERYBODY, waiting_bytes_max=3 * MB)
    contents = [os.urandom(MB) for _ in range(4)]
    assert [upload(hub, each)[0] for each in contents] == [200, 200, 200, 403]
    assert usage(hub, "alice").waiting_bytes == 3 * MB
    assert commit(hub, lfs_file("a.bin", contents[0]))[0] == 200
    assert usage(hub, "alice").waiting_bytes == 2 * MB
    assert upload(hub, contents[3])[0] == 200


def test_whoever_may_only_discuss_has_a_smaller_bound_until_the_merge(hub: RunningHub) -> None:
    limit(hub, quotas.EVERYBODY, guest_bytes_max=MB + 1500)
    first, second = os.urandom(MB), os.urandom(MB)
    assert upload(hub, first, token=hub.other)[0] == 200
    status, answer = upload(hub, second, token=hub.other)
    assert status == 403
    assert "uploads to repos of others" in answer["error"]
    assert upload(hub, second)[0] == 200  # alice's own
    before = usage(hub, "acme").bytes
    api = HfApi(endpoint=hub.url, token=hub.other)
    # A pull request publishes nothing: its bytes go on counting as bob's.
    header = {"key": "header", "value": {"summary": "mine"}}
    body = "\n".join(json.dumps(each) for each in (header, lfs_file("b.bin", first)))
    path = f"/api/models/{REPO}/commit/main?create_pr=1"
    assert call(hub, "POST", path, body=body.encode(), token=hub.other)[0] == 200
    lists = usage(hub, "bob").guest_bytes - MB
    assert 0 < lists < 1500  # what a commit lists is kept, too
    assert usage(hub, "acme").bytes == before
    with pytest.raises(HfHubHTTPError, match="uploads to repos of others"):
        addition = CommitOperationAdd("c.txt", os.urandom(2000))
        api.create_commit(REPO, [addition], commit_message="more", create_pr=True)
    HfApi(endpoint=hub.url, token=hub.token).merge_pull_request(REPO, 1)
    assert usage(hub, "bob").guest_bytes == lists
    assert usage(hub, "acme").bytes == before + MB


def test_a_merge_that_would_be_too_much_changes_nothing(hub: RunningHub) -> None:
    api = HfApi(endpoint=hub.url, token=hub.other)
    api.create_commit(
        REPO, [CommitOperationAdd("b", os.urandom(50_000))], commit_message="mine", create_pr=True
    )
    limit(hub, "acme", bytes_max=40_000)
    owner = HfApi(endpoint=hub.url, token=hub.token)
    with pytest.raises(HfHubHTTPError, match="Storage limit reached"):
        owner.merge_pull_request(REPO, 1)
    assert owner.get_discussion_details(REPO, 1).status == "open"
    with pytest.raises(HfHubHTTPError, match="Storage limit reached"):
        owner.create_branch(REPO, branch="mine", revision="refs/pr/1")
    assert "b" not in owner.list_repo_files(REPO)


def test_many_uploads_at_once_stay_within_the_bound(hub: RunningHub) -> None:
    limit(hub, quotas.EVERYBODY, waiting_bytes_max=2 * MB)
    found: list[int] = []
    contents = [os.urandom(MB) for _ in range(6)]
    urls = [(each, batch(hub, sha256(each), MB)["actions"]["upload"]["href"]) for each in contents]

    def put(content: bytes, url: str) -> None:
        found.append(call(hub, "PUT", url, body=content, token="")[0])

    threads = [threading.Thread(target=put, args=each) for each in urls]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found) == [200, 200, 403, 403, 403, 403]


def test_an_upload_in_parts_counts_whole_and_goes_on_after_a_break(hub: RunningHub) -> None:
    limit(hub, quotas.EVERYBODY, waiting_bytes_max=5 * MB)
    multipart = ("basic", "multipart")
    assert "actions" in batch(hub, sha256(b"one"), 4 * MB, transfers=multipart)
    assert usage(hub, "alice").waiting_bytes == 4 * MB
    assert "actions" in batch(hub, sha256(b"one"), 4 * MB, transfers=multipart)
    wish = {
        "operation": "upload",
        "transfers": list(multipart),
        "objects": [{"oid": sha256(b"two"), "size": 4 * MB}],
    }
    path = f"/{REPO}.git/info/lfs/objects/batch"
    assert call(hub, "POST", path, json_body=wish)[0] == 403
    # What is under way counts with the size that it was begun with, not with another.
    objects = [{"oid": sha256(b"one"), "size": 400 * MB}]
    assert call(hub, "POST", path, json_body=wish | {"objects": objects})[0] == 403
    twice = [{"oid": sha256(b"two"), "size": size} for size in (400 * MB, 0)]
    answer = call(hub, "POST", path, json_body=wish | {"objects": twice})
    assert answer[0] == 403 or all("error" in each for each in answer[2]["objects"]), answer
    assert usage(hub, "alice").waiting_bytes == 4 * MB


def test_deleting_a_repo_and_pushing_again_fills_no_disk(hub: RunningHub) -> None:
    limit(hub, quotas.EVERYBODY, waiting_bytes_max=250_000)
    for number in range(3):
        body = {"name": "again", "organization": "acme"}
        assert call(hub, "POST", "/api/repos/create", json_body=body)[0] == 200
        api = HfApi(endpoint=hub.url, token=hub.token)
        addition = CommitOperationAdd("a", os.urandom(100_000))
        if number == 2:
            with pytest.raises(HfHubHTTPError, match="uploads that no branch has"):
                api.create_commit("acme/again", [addition], commit_message="x")
            break
        api.create_commit("acme/again", [addition], commit_message="x")
        api.delete_repo("acme/again")
    # The garbage collection ends it.
    opened = hub.open()
    with opened.database.begin() as connection:
        live = frozenset(live_contents(connection))
    opened.store.sweep(live, older_than_us=now_us() + 1)
    with opened.database.begin() as connection:
        assert forget_removed(connection) > 0
        assert connection.scalars(select(waiting.c.key)).all() == []
    opened.close()


def test_a_namespace_has_no_more_repos_than_it_may(hub: RunningHub) -> None:
    limit(hub, "acme", repos_max=2)
    answers = [
        call(hub, "POST", "/api/repos/create", json_body={"name": each, "organization": "acme"})
        for each in ("two", "three")
    ]
    assert [each[0] for each in answers] == [200, 403]
    assert "acme has 2 repos, its limit" in answers[1][2]["error"]
    # Nor by a move from elsewhere.
    assert call(hub, "POST", "/api/repos/create", json_body={"name": "own"})[0] == 200
    move = {"fromRepo": "alice/own", "toRepo": "acme/own"}
    assert call(hub, "POST", "/api/repos/move", json_body=move)[0] == 403


def test_xorbs_count_until_their_files_are_published(hub: RunningHub, tmp_path: Path) -> None:
    code = (
        "import os; from huggingface_hub import HfApi, CommitOperationAdd; api = HfApi()\n"
        "add = CommitOperationAdd('w.bin', os.urandom(3 << 20))\n"
        f"api.preupload_lfs_files('{REPO}', [add])\n"
        "print('uploaded'); input()\n"
        f"api.create_commit('{REPO}', [add], commit_message='x')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"uploaded\n"
        assert 3 * MB < usage(hub, "alice").waiting_bytes < 3 * MB + 100_000
        client.communicate(b"\n", timeout=60)
        assert client.returncode == 0
    assert usage(hub, "alice").waiting_bytes == 0
    assert usage(hub, "acme").bytes > 3 * MB


def test_publishing_a_file_again_and_again_takes_nothing_more_off_the_rest_of_its_pack(
    hub: RunningHub,
) -> None:
    body = {"name": "second", "organization": "acme"}
    assert call(hub, "POST", "/api/repos/create", json_body=body)[0] == 200
    opened = hub.open()
    one, _ = opened.store.put_all([os.urandom(100_000), os.urandom(50_000)])
    with opened.database.begin() as connection:
        of_one = select(segments.c.pack).where(segments.c.sha256 == one.sha256)
        pack = str(connection.scalar(of_one))
        keep_waiting(connection, "alice", {pack: 150_000}, guest=False)
        for repo_id in connection.scalars(select(repos.c.id)).all():
            grant(connection, repo_id, [one.sha256], published=True)
            assert waiting_of(connection, "alice").bytes == 50_000
    opened.close()


def test_chunks_of_a_byte_count_as_the_rows_that_they_take(hub: RunningHub) -> None:
    chunks = [number.to_bytes(2, "big") for number in range(2000)]
    name = to_text(xorb_hash([(chunk_hash(each), len(each)) for each in chunks]))
    path = f"/api/models/{REPO}/xet-write-token/refs%2Fpr%2F1"
    token = call(hub, "GET", path, token=hub.other)[2]["accessToken"]
    path = f"/xet/v1/xorbs/default/{name}"
    status, _, answer = call(hub, "POST", path, body=write_xorb(chunks), token=token)
    assert (status, answer) == (200, {"was_inserted": True})
    assert usage(hub, "bob").guest_bytes == 2000 * 128


def test_only_operators_set_limits_and_the_log_says_who_did(hub: RunningHub) -> None:
    path = "/api/admin/quotas/acme"
    assert call(hub, "PUT", path, json_body={"bytesMax": 5})[0] == 403
    assert call(hub, "GET", path)[0] == 403
    limit(hub, "acme", bytes_max=5, repos_max=quotas.UNLIMITED)
    opened = hub.open()
    with opened.database.connect() as connection:
        assert quotas.limits_of(connection, "acme").bytes_max == 5
        assert quotas.limits_of(connection, "acme").repos_max is None
        lines = audit_log.read_lines(connection, after=0, limit=1000)
    opened.close()
    assert (lines[-1].action, lines[-1].subject) == ("hub.quota.set", "acme")


def test_counts_and_departures_are_the_same_on_postgresql(
    tmp_path: Path, postgres_url: str
) -> None:
    with running_hub(tmp_path / "hub", database_url=postgres_url, lfs_bytes_min=MB) as hub:
        body = {"name": "hostile", "organization": "acme"}
        assert call(hub, "POST", "/api/repos/create", json_body=body)[0] == 200
        limit(hub, "acme", bytes_max=3 * MB, repos_max=1)
        limit(hub, quotas.EVERYBODY, waiting_bytes_max=2 * MB, guest_bytes_max=MB)
        contents = [os.urandom(MB) for _ in range(3)]
        assert [upload(hub, each)[0] for each in contents] == [200, 200, 403]
        assert upload(hub, contents[2], token=hub.other)[0] == 200
        assert commit(hub, *(lfs_file(f"{n}", contents[n]) for n in range(2)))[0] == 200
        assert (usage(hub, "acme").bytes // MB, usage(hub, "alice").waiting_bytes) == (2, 0)
        assert usage(hub, "bob").guest_bytes == MB
        api = HfApi(endpoint=hub.url, token=hub.token)
        listed = list(api.list_lfs_files(REPO))
        api.permanently_delete_lfs_files(REPO, listed[:1])
        assert usage(hub, "alice").waiting_bytes == MB
        assert len(list(api.list_lfs_files(REPO))) == 1
        opened = hub.open()
        with opened.database.begin() as connection:
            departures.rename_account(connection, "acme", "Apex")
            departures.delete_account(connection, "bob")
            assert forget_removed(connection) == 0
            assert quotas.limits_of(connection, "apex").repos_max == 1
        opened.close()
        assert api.repo_info(REPO).id == "Apex/hostile"
        assert usage(hub, "apex").bytes // MB == 1


def told(home: Path, *words: str) -> Any:
    """What a command of the hub prints as JSON; its message where it fails."""
    result = CliRunner().invoke(commands, [*words, "--home", str(home), "--json"])
    if result.exit_code:
        return result.output or str(result.exception)
    return json.loads(result.stdout)


def test_the_commands_set_limits_and_show_what_is_used(tmp_path: Path) -> None:
    assert told(tmp_path, "users", "add", "alice")["name"] == "alice"
    told(tmp_path, "users", "add", "acme", "--organisation", "--admin", "alice")
    told(tmp_path, "quota", "--guest", "2GB")
    told(tmp_path, "quota", "acme", "--bytes", "1.5TiB", "--repos", "none")
    found = told(tmp_path, "quota", "acme")
    assert found["limits"] == {
        "bytes_max": 3 * 1024**4 // 2,
        "repos_max": None,
        "waiting_bytes_max": 1024**4,
        "guest_bytes_max": 2 * 10**9,
    }
    assert found["usage"] == {"repos": 0, "bytes": 0, "waiting_bytes": 0, "guest_bytes": 0}
    told(tmp_path, "quota", "acme", "--bytes", "default")
    assert told(tmp_path, "quota", "acme")["limits"]["bytes_max"] is None
    assert "is no size; write 500GB" in told(tmp_path, "quota", "acme", "--bytes", "much")
    assert "There is no account" in told(tmp_path, "quota", "nobody")
    assert [each["usage"]["repos"] for each in told(tmp_path, "users", "list")] == [0, 0]
    assert {each["account"] for each in told(tmp_path, "stats")} >= {"acme", "alice"}
    assert told(tmp_path, "users", "rename", "acme", "apex")["account"]["name"] == "apex"
    assert told(tmp_path, "users", "remove", "apex")["repos"] == []
    assert "given up lately" in told(tmp_path, "users", "add", "acme")
    assert told(tmp_path, "users", "add", "acme", "--reuse")["name"] == "acme"
    actions = [each["action"] for each in told(tmp_path, "audit", "--limit", "50")["latest"]]
    assert actions.count("hub.quota.set") == 3
    # For people, too.
    shown = CliRunner().invoke(commands, ["quota", "acme", "--home", str(tmp_path)]).output
    assert "bytes that no branch has" in shown
    assert "1.1 TB" in shown
