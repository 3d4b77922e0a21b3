"""Hostile clients on raw sockets: each gets a clear answer, the process serves on, nobody pays."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from qwenstack.core.instants import now_us
from qwenstack.studio.accounts import create_key, find_workspace, revoke_key
from qwenstack.studio.http import connection
from tests.studio import RunningStudio, running_studio

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


@pytest_asyncio.fixture
async def studio(tmp_path: Path) -> AsyncIterator[RunningStudio]:
    async with running_studio(tmp_path) as running:
        yield running


async def exchange(
    studio: RunningStudio, *pieces: bytes, pause_s: float = 0.0
) -> tuple[int, bytes]:
    """Send raw bytes; the status and the whole answer (0 where the server just hung up)."""
    host, port = studio.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            ),
            0,
        )
        return status, await reader.readexactly(length)
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0, b""
    finally:
        writer.close()


async def serves_on(studio: RunningStudio) -> None:
    answer = await studio.session.get(f"{studio.url}/healthz")
    assert answer.status == 200


def authorized(key: str, body: bytes, *headers: bytes) -> bytes:
    extra = b"".join(header + b"\r\n" for header in headers)
    return (
        POST
        + b"authorization: Bearer "
        + key.encode()
        + b"\r\n"
        + extra
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )


async def test_an_announced_body_of_100_mb_is_refused_unread(studio: RunningStudio) -> None:
    key = await studio.tenant()
    head = POST + f"authorization: Bearer {key}\r\ncontent-length: 104857600\r\n\r\n".encode()
    status, body = await exchange(studio, head, b"x" * 1000)
    assert status == 413
    assert json.loads(body)["error"]["code"]
    await serves_on(studio)


async def test_an_unannounced_body_of_100_mb_is_refused_on_the_way(studio: RunningStudio) -> None:
    key = await studio.tenant()
    head = POST + f"authorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    status, _ = await exchange(studio, head, *[piece] * 100)
    assert status in (413, 0)
    await serves_on(studio)


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"x-%d: y\r\n" % number for number in range(5000)),
        b"x-bomb: " + b"y" * 1_000_000 + b"\r\n",
        b"x-many: " + b"\r\nx-many: ".join([b"z" * 1000] * 200) + b"\r\n",
    ],
    ids=["count", "one", "sum"],
)
async def test_a_header_bomb_is_answered_431(studio: RunningStudio, headers: bytes) -> None:
    status, _ = await exchange(studio, POST + headers + b"\r\n")
    assert status in (431, 0)
    await serves_on(studio)


async def test_a_slow_loris_is_cut_off_while_others_are_served(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 1.0)
    key = await studio.tenant()
    began = time.monotonic()
    slow = asyncio.create_task(exchange(studio, *[b"G"] * 60, pause_s=0.1))
    assert (await studio.chat(key)).status == 200
    status, _ = await slow
    assert status in (408, 0)
    assert time.monotonic() - began < 8
    await serves_on(studio)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "m", "messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"model": "m", "messages": [], "max_tokens": 1e999}',
        b'{"model": "m", "messages": [], "max_tokens": ' + b"9" * 10_000 + b"}",
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_a_body_that_is_no_request_is_400(studio: RunningStudio, body: bytes) -> None:
    key = await studio.tenant()
    status, answer = await exchange(studio, authorized(key, body))
    assert status == 400
    error = json.loads(answer)["error"]
    assert error["message"]
    assert len(answer) < 3000
    assert studio.upstream.requests == []
    await serves_on(studio)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"model": "nope"}, "nope"),
        ({"messages": []}, "messages"),
        ({"unknown_field": 1}, "unknown_field"),
        ({"n": 1000}, "n"),
    ],
)
async def test_a_wrong_field_is_named(
    studio: RunningStudio, fields: dict[str, object], says: str
) -> None:
    key = await studio.tenant()
    answer = await studio.chat(key, **fields)
    assert answer.status in (400, 404)
    assert says in (await answer.json())["error"]["message"]
    assert await studio.charges() == []


async def test_wrong_revoked_and_expired_keys_are_401(studio: RunningStudio) -> None:
    key = await studio.tenant()
    for wrong in ("sk-qs-wrong", "x" * 5000, "Ünïcode"):
        answer = await studio.session.post(
            f"{studio.url}/v1/chat/completions",
            json={},
            headers={"Authorization": f"Bearer {wrong}"},
        )
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == "invalid_api_key"
    assert (await studio.session.post(f"{studio.url}/v1/chat/completions", json={})).status == 401

    def expired(connection: object) -> str:
        workspace = find_workspace(connection, "acme")  # type: ignore[arg-type]
        _, made = create_key(
            connection,  # type: ignore[arg-type]
            actor="t",
            workspace_id=workspace.id,
            name="short",
            expires_us=now_us() + 300_000,
        )
        return made.secret

    short = await studio.act(expired)
    await asyncio.sleep(0.4)
    assert (await studio.chat(short)).status == 401
    assert (await studio.chat(key)).status == 200
    (record,) = [
        each for each in studio.installation.tenants.current.keys.values() if each.name == "k"
    ]
    await studio.act(lambda connection: revoke_key(connection, actor="t", key_id=record.id))
    assert (await studio.chat(key)).status == 401


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bytes_that_are_no_http_do_no_harm(studio: RunningStudio, raw: bytes) -> None:
    try:
        async with asyncio.timeout(3):
            status, _ = await exchange(studio, raw)
        assert status in (0, 400, 401, 404, 405)
    except TimeoutError:
        pass  # it waits for the rest, within the head's time limit
    await serves_on(studio)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/v1/files/../../../etc/passwd", 401),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
async def test_unknown_paths_and_methods_are_told_apart(
    studio: RunningStudio, method: str, path: str, status: int
) -> None:
    raw = f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    assert (await exchange(studio, raw))[0] == status


async def test_a_client_that_never_reads_is_let_go_and_billed_for_what_it_got(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenstack.studio.http import exchange as exchange_module

    monkeypatch.setattr(exchange_module, "SEND_TIMEOUT_S", 0.5)
    studio.upstream.tokens = 100
    key = await studio.tenant()
    host, port = studio.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    ).encode()
    writer.write(authorized(key, body))
    await writer.drain()
    await asyncio.sleep(1.0)
    writer.close()
    assert (await studio.chat(key)).status == 200
    assert await studio.problems() == []
    del reader


async def test_a_header_without_end_is_cut_off_by_its_size(studio: RunningStudio) -> None:
    head = POST + b"x-endless: "
    status, _ = await exchange(studio, head, *[b"y" * 65536] * 64)
    assert status in (431, 0)
    await serves_on(studio)


async def test_a_refused_body_is_read_to_a_bound_only(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "DRAIN_BYTES_MAX", 1_000_000)
    key = await studio.tenant()
    host, port = studio.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        POST + f"authorization: Bearer {key}\r\ncontent-length: 104857600\r\n\r\n".encode()
    )
    sent = 0
    with pytest.raises(ConnectionError):
        for _ in range(1600):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
    writer.close()
    assert sent < 50_000_000
    del reader
    await serves_on(studio)


async def test_bytes_that_break_the_protocol_do_not_land_in_a_running_stream(
    studio: RunningStudio,
) -> None:
    studio.upstream.tokens, studio.upstream.pause_s = 50, 0.02
    key = await studio.tenant()
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    ).encode()
    host, port = studio.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(authorized(key, body))
    await reader.readuntil(b"data: ")
    writer.write(b"\x00GARBAGE\r\n\r\n")
    rest = b""
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                rest += piece
    except ConnectionError:
        pass
    writer.close()
    assert b"HTTP/1.1 400" not in rest
    await serves_on(studio)
    assert await studio.problems() == []


async def test_an_upload_that_drips_is_ended(
    studio: RunningStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenstack.studio.http import exchange as exchange_module

    monkeypatch.setattr(exchange_module, "BODY_TIMEOUT_S", 0.5)
    key = await studio.tenant()
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
        + key.encode()
        + b"\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 100000\r\n\r\n"
    )
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    status, answer = await exchange(studio, head + part, *[b"x"] * 20, pause_s=0.1)
    assert status == 400
    assert b"too slowly" in answer


async def test_head_and_allow_are_as_http_has_them(studio: RunningStudio) -> None:
    head = await studio.session.head(f"{studio.url}/healthz")
    assert (head.status, await head.read()) == (200, b"")
    wrong = await studio.session.get(f"{studio.url}/v1/chat/completions")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    prefixed = await studio.session.put(f"{studio.url}/v1/batches/batch_1")
    assert (prefixed.status, prefixed.headers["Allow"]) == (405, "GET, HEAD, POST")
