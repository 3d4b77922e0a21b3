"""The Xet protocol against its own client, unmodified and with default settings, and liars."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from huggingface_hub import HfApi

from qwenstack.hub.http.xet_tokens import make_token
from qwenstack.hub.store.merkle import chunk_hash, file_hash, range_hash, to_text, xorb_hash
from qwenstack.hub.store.shard import ShardFile, ShardSegment, write_shard
from qwenstack.hub.store.xorb import XorbReader, write_xorb
from tests.hub import RunningHub, running_hub

pytest.importorskip("hf_xet", reason="no Xet client: the wheel hf-xet is missing")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("xet-hub")) as hub:
        yield hub


def run_client(hub: RunningHub, folder: Path, script: str, token: str | None = None) -> str:
    """Run a script in a fresh process with an empty cache; what it printed last."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**hub.environment(folder, token), "WORK": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:] + hub.log()[-3000:]
    return done.stdout.strip()


def client_log(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "hf" / "xet" / "logs").glob("*.log"))


UPLOAD = """
import os, random
from pathlib import Path
from huggingface_hub import HfApi
api, path = HfApi(), Path(os.environ["WORK"]) / "weights.bin"
data = bytearray(random.Random(1).randbytes(50_000_000))
data[30_000_000:30_000_004] = {mark!r}
path.write_bytes(data)
api.create_repo({repo!r}, private=True, exist_ok=True)
api.upload_file(path_or_fileobj=path, path_in_repo="weights.bin", repo_id={repo!r})
"""
DOWNLOAD = """
import hashlib, os
from pathlib import Path
from huggingface_hub import hf_hub_download
path = Path(hf_hub_download({repo!r}, "weights.bin"))
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def stored_bytes(hub: RunningHub) -> int:
    return sum(path.stat().st_size for path in (hub.home / "packs").iterdir())


def test_50_mb_go_up_and_come_down_through_xet_and_a_second_client_sends_only_what_differs(
    hub: RunningHub, tmp_path: Path
) -> None:
    run_client(hub, tmp_path / "one", UPLOAD.format(mark=b"aaaa", repo="alice/one"))
    digest = run_client(hub, tmp_path / "reader", DOWNLOAD.format(repo="alice/one"))
    opened = hub.open()
    content = opened.store.find(digest)
    assert content is not None
    assert content.size == 50_000_000
    log = client_log(tmp_path / "one") + client_log(tmp_path / "reader")
    for call in ("upload_xorb", "upload_shard_v2", "get_reconstruction_v2"):
        assert f"cas::{call} api call succeeded" in log

    before = stored_bytes(hub)
    assert before < 50_100_000
    run_client(hub, tmp_path / "two", UPLOAD.format(mark=b"bbbb", repo="alice/two"))
    assert stored_bytes(hub) - before < 500_000
    other = run_client(hub, tmp_path / "reader", DOWNLOAD.format(repo="alice/two"))
    assert other != digest
    assert list(opened.store.check()) == []
    opened.close()


# --- by hand ----------------------------------------------------------------------------------


def repo_id(hub: RunningHub, name: str) -> str:
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url, token=hub.token).create_repo(name, private=True, exist_ok=True)
    opened = hub.open()
    with opened.database.connect() as connection:
        found: str = connection.exec_driver_sql(
            "SELECT id FROM hub_repos WHERE name = ?", (name,)
        ).scalar_one()
    opened.close()
    return found


Answer = tuple[int, bytes, dict[str, str]]


def call(
    hub: RunningHub, method: str, path: str, token: str | None, body: bytes = b"", **headers: str
) -> Answer:
    async def send() -> Answer:
        async with aiohttp.ClientSession() as session:
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            url = path if path.startswith("http") else hub.url + path
            async with session.request(method, url, data=body or None, headers=headers) as answer:
                return answer.status, await answer.read(), dict(answer.headers)

    return asyncio.run(send())


def get_token(hub: RunningHub, repo: str, right: str, rev: str = "main") -> str:
    path = f"/api/models/{repo}/xet-{right}-token/{rev}"
    status, body, headers = call(hub, "GET", path, hub.token)
    assert status == 200, body
    answer = json.loads(body)
    assert headers["X-Xet-Cas-Url"] == answer["casUrl"]
    assert re.fullmatch(re.escape(hub.url) + "/xet/[0-9a-f]{16}", answer["casUrl"])
    assert int(headers["X-Xet-Token-Expiration"]) == answer["exp"] > time.time() + 60
    token: str = answer["accessToken"]
    assert headers["X-Xet-Access-Token"] == token
    return token


def parts(data: bytes) -> tuple[str, bytes, bytes]:
    """A xorb's name, its body, and an honest shard of one file."""
    chunks = [data[start : start + 50_000] for start in range(0, len(data), 50_000)]
    leaves = [(chunk_hash(chunk), len(chunk)) for chunk in chunks]
    name = to_text(xorb_hash(leaves))
    proof = range_hash(digest for digest, _ in leaves)
    segment = ShardSegment(name, 0, len(chunks), len(data), proof)
    shard = write_shard([ShardFile(to_text(file_hash(leaves)), (segment,), None)])
    return name, write_xorb(chunks), shard


def test_a_liar_gets_400_and_the_reason_and_nothing_shows(hub: RunningHub) -> None:
    repo_id(hub, "alice/liar")
    token = get_token(hub, "alice/liar", "write")
    data = os.urandom(200_000)
    name, body, shard = parts(data)
    opened = hub.open()
    packs = len(list((hub.home / "packs").iterdir()))
    for path, sent, reason in (
        (f"/xet/v1/xorbs/default/{'0' * 64}", body, "hashes to"),
        (f"/xet/v1/xorbs/default/{name}", body[:-5], "not there"),
        ("/xet/v1/shards", shard, "is not here"),
        ("/xet/v1/shards", b"nonsense", "ends at byte"),
    ):
        status, answer, headers = call(hub, "POST", path, token, sent)
        assert status == 400
        assert reason in json.loads(answer)["error"]
        assert reason in headers["X-Error-Message"]
    for sent, reason in ((shard, "is not here"), (shard[:-100], "the shard")):
        status, answer, _ = call(hub, "POST", "/xet/v2/shards", token, sent)
        told = json.loads(answer)
        assert (status, told["type"], told["retryable"]) == (200, "error", False)
        assert reason in told["message"]
    assert len(list((hub.home / "packs").iterdir())) == packs
    path = f"/xet/v1/xorbs/default/{name}"
    assert call(hub, "POST", path, token, body)[1] == b'{"was_inserted":true}'
    assert call(hub, "POST", path, token, body)[1] == b'{"was_inserted":false}'
    assert call(hub, "POST", "/xet/v1/shards", token, shard)[1] == b'{"result":1}'
    assert call(hub, "POST", "/xet/v2/shards", token, shard)[1] == b'{"type":"result"}\n'
    for old in ("", "s"):
        assert call(hub, "POST", f"/xet/xorb{old}/default/{name}", token, body)[0] == 200
        assert call(hub, "POST", f"/xet/shard{old}", token, shard)[1] == b'{"result":1}'
    assert list(opened.store.check()) == []
    opened.close()


def test_a_hub_made_anew_at_an_old_address_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    port = 0
    for life in ("first", "second"):
        with running_hub(tmp_path / life, port=port) as hub:
            port = int(hub.url.rpartition(":")[2])
            api = HfApi(endpoint=hub.url, token=hub.token)
            api.create_repo("alice/again")
            api.upload_file(path_or_fileobj=data, path_in_repo="m.bin", repo_id="alice/again")
            # The client remembers, here and by this address, that it uploaded all of it before.
            assert list(hub.open().store.check()) == []


def test_bodies_beyond_the_limits_are_refused_before_they_are_read(hub: RunningHub) -> None:
    repo_id(hub, "alice/liar")
    token = get_token(hub, "alice/liar", "write")

    async def announce() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(hub.url.split(":")[-1]))
        head = f"POST /xet/v1/xorbs/default/{'0' * 64} HTTP/1.1\r\nHost: x\r\n"
        head += f"Authorization: Bearer {token}\r\nContent-Length: 99999999999\r\n\r\n"
        writer.write(head.encode())
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])

    assert asyncio.run(announce()) == 413


def test_tokens_are_bound_to_right_and_repo_and_cannot_be_made_up(hub: RunningHub) -> None:
    repo_id(hub, "alice/bound")
    write = get_token(hub, "alice/bound", "write")
    read = get_token(hub, "alice/bound", "read")
    xorb = f"/xet/v1/xorbs/default/{'0' * 64}"
    file = f"/xet/v1/reconstructions/{'0' * 64}"
    assert call(hub, "POST", xorb, read, b"x")[0] == 403
    assert call(hub, "GET", file, write)[0] == 403
    forged = make_token(b"x" * 32, "repo_x", "write").text
    for bad in (None, "", "xet_", "xet_e30.x", forged, write + "x", hub.token):
        assert call(hub, "POST", xorb, bad, b"x")[0] == 401
    # Who may not write gets no token to, and who may not see is told nothing.
    path = "/api/models/alice/bound/xet-{}-token/main"
    assert call(hub, "GET", path.format("write"), hub.reader)[0] == 403
    assert call(hub, "GET", path.format("read"), hub.other)[0] in (401, 404)
    assert call(hub, "GET", path.format("read"), None)[0] in (401, 404)
    assert call(hub, "GET", "/api/models/alice/bound/xet-read-token/none", hub.token)[0] == 404


def test_an_expired_token_is_refused(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = hub.open()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    old = make_token(opened.secret, "repo_x", "write").text
    monkeypatch.undo()
    opened.close()
    status, answer, _ = call(hub, "POST", f"/xet/v1/xorbs/default/{'0' * 64}", old, b"x")
    assert status == 401
    assert "expired" in json.loads(answer)["error"]


@pytest.fixture(scope="module")
def published(hub: RunningHub) -> tuple[str, bytes, str]:
    """A repo with a file that came through Xet: its name, bytes and Xet hash."""
    from huggingface_hub import CommitOperationAdd, HfApi

    repo_id(hub, "alice/read")
    token = get_token(hub, "alice/read", "write")
    data = os.urandom(3_000_000)
    name, body, shard = parts(data)
    call(hub, "POST", f"/xet/v1/xorbs/default/{name}", token, body)
    call(hub, "POST", "/xet/v1/shards", token, shard)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_commit(
        "alice/read", [CommitOperationAdd("w.bin", data)], commit_message="Add the weights"
    )
    leaves = [(chunk_hash(data[at : at + 50_000]), 50_000) for at in range(0, len(data), 50_000)]
    return "alice/read", data, to_text(file_hash(leaves))


def rebuild(hub: RunningHub, answer: dict[str, Any], size: int) -> bytes:
    """What a client makes of a reconstruction of version 1."""
    whole = b""
    for term in answer["terms"]:
        (info,) = [
            info
            for info in answer["fetch_info"][term["hash"]]
            if info["range"]["start"] <= term["range"]["start"]
            and term["range"]["end"] <= info["range"]["end"]
        ]
        wanted = f"bytes={info['url_range']['start']}-{info['url_range']['end']}"
        status, body, headers = call(hub, "GET", info["url"], None, Range=wanted)
        assert status == 206
        assert headers["Content-Range"].startswith(wanted.replace("=", " "))
        chunks = list(XorbReader().feed([body]))
        first = term["range"]["start"] - info["range"]["start"]
        run = b"".join(chunks[first : first + term["range"]["end"] - term["range"]["start"]])
        assert len(run) == term["unpacked_length"]
        whole += run
    offset: int = answer["offset_into_first_range"]
    return whole[offset : offset + size]


def test_a_reconstruction_gives_any_range(
    hub: RunningHub, published: tuple[str, bytes, str]
) -> None:
    repo, data, xet_hash = published
    token = get_token(hub, repo, "read")
    path = f"/xet/v1/reconstructions/{xet_hash}"
    whole = json.loads(call(hub, "GET", path, token)[1])
    assert rebuild(hub, whole, len(data)) == data
    for start, end in ((0, 1), (49_999, 50_001), (123_456, 2_345_678), (2_999_999, 3_000_000)):
        answer = call(hub, "GET", path, token, Range=f"bytes={start}-{end - 1}")
        assert rebuild(hub, json.loads(answer[1]), end - start) == data[start:end]
    assert call(hub, "GET", path, token, Range="bytes=3000000-3000001")[0] == 416
    assert call(hub, "GET", path, token, Range="bytes=5-4")[0] == 400
    for old in ("reconstructions", "reconstruction"):  # hf_xet 1.2 and 1.1
        answer = call(hub, "GET", f"/xet/{old}/{xet_hash}", token)
        assert rebuild(hub, json.loads(answer[1]), len(data)) == data
    second = json.loads(call(hub, "GET", path.replace("v1", "v2"), token)[1])
    assert second["terms"] == whole["terms"]
    assert second["xorbs"].keys() == whole["fetch_info"].keys()


def test_another_repos_file_cannot_be_reconstructed(
    hub: RunningHub, published: tuple[str, bytes, str]
) -> None:
    repo_id(hub, "alice/elsewhere")
    token = get_token(hub, "alice/elsewhere", "read")
    assert call(hub, "GET", f"/xet/v1/reconstructions/{published[2]}", token)[0] == 404


def test_a_signed_address_gives_nothing_but_its_part(
    hub: RunningHub, published: tuple[str, bytes, str]
) -> None:
    token = get_token(hub, published[0], "read")
    path = f"/xet/v1/reconstructions/{published[2]}"
    answer = json.loads(call(hub, "GET", path, token, Range="bytes=100000-149999")[1])
    ((info,),) = answer["fetch_info"].values()
    url, asked = info["url"], info["url_range"]
    assert call(hub, "GET", url, None)[0] == 206
    for changed in (
        url.replace("/2-3?", "/2-4?"),
        url.replace("expires=", "expires=9"),
        url.split("?")[0],
        url[:-1] + ("A" if url[-1] != "A" else "B"),
    ):
        assert call(hub, "GET", changed, None)[0] == 403
    for beyond in (f"bytes=0-{asked['end']}", f"bytes={asked['end'] + 1}-{asked['end'] + 9}"):
        assert call(hub, "GET", url, None, Range=beyond)[0] == 413
