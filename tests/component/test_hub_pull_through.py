"""A hub that copies from another one when it is first asked; unmodified clients ask it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.component.test_hub_mirror import FILES, copy, here, publish, repo, upstream, weights
from tests.hub import RunningHub, running_hub
from tests.hub_http import call, sha256
from tests.hub_upstream_proxy import UpstreamProxy

__all__ = ["repo", "upstream"]

DOWNLOAD = """
import json, sys
from pathlib import Path
from huggingface_hub import snapshot_download
folder = Path(snapshot_download(sys.argv[1], revision=sys.argv[2]))
files = {str(each.relative_to(folder)): each.stat().st_size
         for each in folder.rglob("*") if each.is_file()}
print(json.dumps({"commit": folder.name, "files": files}))
"""


@pytest.fixture(scope="module")
def proxy(upstream: RunningHub) -> Iterator[UpstreamProxy]:
    with UpstreamProxy(upstream.url) as running:
        yield running


@pytest.fixture(scope="module")
def nearer(
    upstream: RunningHub, proxy: UpstreamProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningHub]:
    """A hub before the upstream, behind the proxy; it looks at branches at every request."""
    settings = {
        "endpoint": proxy.url,
        "namespaces": ["acme"],
        "max_age_s": 0.0,
        "absent_s": 0.0,
        "look_s": 5.0,
    }
    with running_hub(tmp_path_factory.mktemp("nearer"), upstream=settings) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(
    upstream: RunningHub, proxy: UpstreamProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningHub]:
    """Another one, with the operator's token, that lets nobody wait long."""
    settings = {
        "endpoint": proxy.url,
        "namespaces": ["acme"],
        "max_age_s": 0.0,
        "absent_s": 0.0,
        "stale_wait_s": 0.1,
        "wait_s": 0.5,
        "token": upstream.token,
    }
    with running_hub(tmp_path_factory.mktemp("hasty") / "hub", upstream=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def everything_passes(proxy: UpstreamProxy) -> None:
    proxy.down, proxy.swap = False, None
    proxy.release()
    proxy.heads.clear()


def download(nearer: RunningHub, folder: Path, name: str, revision: str = "main") -> Any:
    """What an unmodified client gets, in a process of its own with HF_ENDPOINT alone."""
    words = [sys.executable, "-c", DOWNLOAD, name, revision]
    done = subprocess.run(
        words, env=nearer.environment(folder), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_client_gets_a_repo_that_was_only_upstream(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, tmp_path: Path, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    got = download(nearer, tmp_path, repo)
    assert got["commit"] == oid
    assert {path: got["files"][path] for path in FILES} == {
        path: len(data) for path, data in FILES.items()
    }
    proxy.heads.clear()
    assert download(nearer, tmp_path / "again", repo, oid)["files"] == got["files"]
    assert not proxy.heads  # a commit never changes: nothing is asked


def test_the_headers_are_those_of_the_upstream(
    upstream: RunningHub, nearer: RunningHub, repo: str
) -> None:
    publish(upstream, repo, FILES)
    names = ("x-repo-commit", "etag", "x-linked-etag", "x-linked-size", "content-length")
    for path in ("config.json", "model.safetensors"):
        answers = []
        for hub in (upstream, nearer):
            status, headers, _ = call(hub, "HEAD", f"/{repo}/resolve/main/{path}")
            answers.append((status, [headers.get(name) for name in names]))
            assert "location" not in headers
        assert answers[0] == answers[1]
        assert answers[0][0] == 200
    # What leads a client onward leads here.
    assert headers["x-xet-refresh-route"].startswith(f"{nearer.url}/api/models/{repo}/")


def test_the_page_says_where_a_copy_came_from_and_under_what_licence(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    HfApi(nearer.url, token=nearer.token).model_info(repo)
    status, _, page = call(nearer, "GET", f"/{repo}")
    assert status == 200
    line = next(each for each in page.decode().splitlines() if "<dt>Mirrored</dt>" in each)
    for words in (proxy.url, oid[:12], "then under apache-2.0", sha256(FILES["LICENSE"])[:12]):
        assert words in line


def test_llama_cpps_order_of_requests_finds_what_was_only_upstream(
    upstream: RunningHub, nearer: RunningHub, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    _, _, refs = call(nearer, "GET", f"/api/models/{repo}/refs")
    assert [each["targetCommit"] for each in refs["branches"]] == [oid]
    _, _, tree = call(nearer, "GET", f"/api/models/{repo}/tree/{oid}?recursive=true")
    assert set(FILES) <= {each["path"] for each in tree}
    ranged = {"Range": "bytes=100-"}
    path = f"/{repo}/resolve/{oid}/model.safetensors"
    status, headers, data = call(nearer, "GET", path, headers=ranged)
    assert (status, headers["accept-ranges"]) == (206, "bytes")
    assert data == FILES["model.safetensors"][100:]


def test_a_dataset_comes_as_models_do(
    upstream: RunningHub, nearer: RunningHub, tmp_path: Path, repo: str
) -> None:
    api = HfApi(upstream.url, token=upstream.token)
    api.create_repo(repo, repo_type="dataset")
    row = CommitOperationAdd("train.jsonl", b'{"text": "a"}\n')
    oid = api.create_commit(repo, [row], commit_message="rows", repo_type="dataset").oid
    path = hf_hub_download(
        repo,
        "train.jsonl",
        repo_type="dataset",
        endpoint=nearer.url,
        token=nearer.reader,
        cache_dir=tmp_path,
    )
    assert Path(path).read_bytes() == b'{"text": "a"}\n'
    assert oid in path
    assert here(nearer.open(), repo) is None  # no model of this name was made


def test_many_first_requests_are_one_copy(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    api = HfApi(nearer.url, token=nearer.reader)
    with ThreadPoolExecutor(12) as pool:
        seen = list(pool.map(lambda _: api.model_info(repo).sha, range(12)))
    assert seen == [oid] * 12
    assert len(proxy.asked(f"GET /{repo}/resolve/{oid}/model.safetensors ")) == 1


def test_what_changes_upstream_is_seen_and_pins_stay(
    upstream: RunningHub, nearer: RunningHub, repo: str
) -> None:
    api = HfApi(nearer.url, token=nearer.token)
    old = publish(upstream, repo, FILES)
    assert api.model_info(repo).sha == old
    new = publish(upstream, repo, {"config.json": b"{}"})
    assert api.model_info(repo).sha == new
    assert api.model_info(repo, revision=old).sha == old


def test_a_copy_is_served_while_the_upstream_is_away(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, tmp_path: Path, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    download(nearer, tmp_path, repo)
    proxy.go_down()
    assert download(nearer, tmp_path / "other", repo)["commit"] == oid
    with pytest.raises(HfHubHTTPError) as raised:
        HfApi(nearer.url, token=nearer.token).model_info("acme/never-copied")
    assert raised.value.response.status_code == 502
    assert "cannot be reached" in str(raised.value.server_message)


def test_what_is_nowhere_is_not_found(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    api = HfApi(nearer.url, token=nearer.token)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("acme/nowhere")
    publish(upstream, repo, FILES)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="no-such-branch")
    publish(upstream, "alice/other-namespace", FILES)
    proxy.heads.clear()
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/other-namespace")
    assert not proxy.heads


def test_nothing_is_asked_for_a_caller_without_a_right(
    nearer: RunningHub, proxy: UpstreamProxy
) -> None:
    wrong = "hf_" + "x" * 34
    status, _, _ = call(nearer, "GET", "/api/models/acme/whatever", token=wrong)
    assert status == 401
    assert not proxy.heads


def test_altered_bytes_are_never_served(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    publish(upstream, repo, FILES)
    part = FILES["model.safetensors"][200_000:200_032]
    proxy.swap = (part, bytes(len(part)))
    with pytest.raises(HfHubHTTPError, match=r"other bytes of 'model.safetensors'") as raised:
        HfApi(nearer.url, token=nearer.token).model_info(repo)
    assert raised.value.response.status_code == 502
    assert here(nearer.open(), repo) is None


def test_a_gated_repo_is_refused_without_the_operators_token(
    upstream: RunningHub, nearer: RunningHub, repo: str
) -> None:
    publish(upstream, repo, FILES)
    HfApi(upstream.url, token=upstream.token).update_repo_settings(repo, gated="auto")
    with pytest.raises(GatedRepoError):
        HfApi(nearer.url, token=nearer.token).model_info(repo)
    assert here(nearer.open(), repo) is None


def test_a_newer_copy_under_way_does_not_hold_up_the_one_that_is_here(
    upstream: RunningHub, hasty: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    old = publish(upstream, repo, FILES)
    api = HfApi(hasty.url, token=hasty.token)
    assert _until(lambda: api.model_info(repo).sha, old) == old
    new = publish(upstream, repo, {"big.safetensors": weights(12_000_000)})
    proxy.hold(after=1_000_000)
    assert api.model_info(repo).sha == old
    assert proxy.holding.wait(20)
    assert api.model_info(repo).sha == old
    with pytest.raises(HfHubHTTPError, match="is being copied") as raised:
        api.model_info(repo, revision=new)
    assert raised.value.response.status_code == 503
    assert raised.value.response.headers["retry-after"].isdecimal()
    proxy.release()
    assert _until(lambda: api.model_info(repo).sha, new) == new


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_hub_that_ends_amid_a_copy_shows_nothing_and_goes_on_later(
    upstream: RunningHub, hasty: RunningHub, proxy: UpstreamProxy, repo: str, end: str
) -> None:
    repo += end
    oid = publish(upstream, repo, FILES | {"big.safetensors": weights(12_000_000)})
    proxy.hold(after=1_000_000)
    with pytest.raises(HfHubHTTPError, match="is being copied"):
        HfApi(hasty.url, token=hasty.token).model_info(repo)
    assert proxy.holding.wait(20)
    getattr(hasty, end)()
    assert here(hasty.open(), repo) is None
    proxy.release()
    hasty.start()
    api = HfApi(hasty.url, token=hasty.token)
    assert _until(lambda: api.model_info(repo).sha, oid) == oid


def test_a_client_that_waits_for_a_copy_sees_that_somebody_is_there(
    upstream: RunningHub, nearer: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    proxy.hold(after=100_000)
    port = int(nearer.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = f"GET /api/models/{repo} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer {nearer.reader}\r\n\r\n".encode())
        first = connection.recv(1024)
        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        proxy.release()
        rest = b"".join(iter(lambda: connection.recv(65536), b""))
    final = rest.replace(first, b"")
    assert final.startswith(b"HTTP/1.1 200 OK\r\n")
    assert oid.encode() in final


def test_a_private_repo_of_the_upstream_is_copied_by_command_alone(
    upstream: RunningHub, hasty: RunningHub, proxy: UpstreamProxy, repo: str
) -> None:
    publish(upstream, repo, FILES, private=True)
    api = HfApi(hasty.url, token=hasty.token)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(repo)
    assert here(hasty.open(), repo) is None
    assert copy(hasty.home.parent, proxy.url, repo, token=upstream.token)["private"]
    # alice is of acme here, too; bob is not.
    assert api.model_info(repo).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(hasty.url, token=hasty.other).model_info(repo)


def test_a_gated_repo_is_copied_with_the_operators_token_and_is_gated(
    upstream: RunningHub, hasty: RunningHub, repo: str
) -> None:
    oid = publish(upstream, repo, FILES)
    HfApi(upstream.url, token=upstream.token).update_repo_settings(repo, gated="auto")
    stranger = HfApi(hasty.url, token=hasty.other)
    assert _until(lambda: stranger.model_info(repo).sha, oid) == oid
    with pytest.raises(GatedRepoError):
        stranger.auth_check(repo)
    HfApi(hasty.url, token=hasty.token).auth_check(repo)


def test_two_hubs_before_each_other_do_not_ask_in_circles(
    tmp_path: Path, upstream: RunningHub
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"endpoint": f"http://127.0.0.1:{port}", "namespaces": ["acme"], "wait_s": 20.0}
    hub = RunningHub(tmp_path / "self", upstream=own)
    hub._port = port
    hub.start()
    try:
        with pytest.raises(RepositoryNotFoundError):
            HfApi(hub.url, token=hub.token).model_info("acme/nowhere")
    finally:
        hub.stop()


def _until(ask: Any, wanted: str) -> str:
    """What is answered in the end: `wanted`, or what came after a bounded number of tries."""
    answer = ""
    for _ in range(300):
        with contextlib.suppress(HfHubHTTPError):
            answer = str(ask())
        if answer == wanted:
            break
        time.sleep(0.1)
    return answer


def test_guests_fill_no_disk_with_copies(upstream: RunningHub, tmp_path: Path, repo: str) -> None:
    names = [f"{repo[:50]}-{number}" for number in range(3)]
    for number, name in enumerate(names):
        publish(upstream, name, {"model.safetensors": weights(seed=number)})
    settings = {
        "endpoint": upstream.url,
        "namespaces": ["acme"],
        "absent_s": 0.0,
        "all_bytes_max": 700_000,
    }
    with running_hub(tmp_path / "hub", upstream=settings) as small:
        paths = [f"/{name}/resolve/main/model.safetensors" for name in names]
        answers = [call(small, "GET", path, token="") for path in paths]
        assert [each[0] for each in answers] == [200, 200, 403]
        assert "its operator allows 700000" in answers[2][2]["error"]
        assert call(small, "GET", paths[0], token="")[0] == 200  # what is here is served on
        # The operator's own copy is not bound by it.
        assert copy(tmp_path, upstream.url, names[2])["changed"]
        assert call(small, "GET", paths[2], token="")[0] == 200
