"""The engines' own HTTP client against servers that misbehave, over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from qwenstack.engines import http_connection
from qwenstack.engines.http_connection import ConnectionLost, HttpConnection, NotHttp
from qwenstack.engines.http_pool import CannotConnect, HttpPool, NoConnectionInTime

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def pool_on(
    serve: Serve, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[HttpPool]:
    """A pool on a server that calls `serve` for each connection once a request has come."""
    tasks = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    pool = HttpPool(
        URL(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"),
        **{
            "connections_max": 2,
            "keepalive_s": 4.0,
            "connect_s": 5.0,
            "wait_s": 5.0,
            "buffer_bytes": 65536,
            **options,
        },
    )
    try:
        async with asyncio.timeout(20):
            yield pool
    finally:
        pool.close()
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()


def answering(*parts: bytes, close: bool = False) -> Serve:
    """Answers each request with `parts`, each in a write of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.005)
            if close:
                return

    return serve


async def ask(pool: HttpPool, *, fresh: bool = False) -> tuple[HttpConnection, bytes]:
    connection = await pool.take(fresh=fresh)
    connection.send(REQUEST)
    try:
        await connection.head()
        body = b""
        while read := await connection.read():
            body += read
    finally:
        pool.give_back(connection)
    return connection, body


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "body", "kept"),
    [
        ((OK,), b"ok", True),
        ((OK[:5], OK[5:-1], OK[-1:]), b"ok", True),
        (
            (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + OK),
            b"ok",
            True,
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n",
                b"1;a=b\r\nk\r\n0\r\nT: r\r\n\r\n",
            ),
            b"ok",
            True,
        ),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",), b"ok", False),
        ((b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",), b"ok", False),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), b"", True),
    ],
)
async def test_an_answer_is_read_however_it_comes(
    parts: tuple[bytes, ...], body: bytes, kept: bool
) -> None:
    async with pool_on(answering(*parts)) as pool:
        first, found = await ask(pool)
        assert found == body
        second, found = await ask(pool)
        assert found == body
        assert (second is first) == kept


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/x; a=b\r\n\r\n"
    async with pool_on(answering(head, b"o", b"k", close=True)) as pool:
        connection, body = await ask(pool)
        assert (connection.status, connection.content_type, body) == (200, "text/x; a=b", b"ok")


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-",),
        (),
    ],
)
async def test_an_answer_that_breaks_off_is_no_answer(parts: tuple[bytes, ...]) -> None:
    async with pool_on(answering(*parts, close=True)) as pool:
        with pytest.raises(ConnectionLost) as caught:
            await ask(pool)
        assert caught.value.answered == bool(parts)


# --- Servers without bounds -----------------------------------------------------------------------


async def endless(writer: asyncio.StreamWriter, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await writer.drain()


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nA: ", b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100),
        (b"HTTP/1.1 200 ", b"a" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ", b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"a" * 1000),
    ],
)
async def test_what_surrounds_a_body_has_bounds(begin: bytes, piece: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        await endless(writer, piece)

    async with pool_on(serve) as pool:
        with pytest.raises(NotHttp):
            await ask(pool)


async def test_small_chunks_whose_sizes_come_by_themselves_may_be_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "_FRAMING_BYTES_MAX", 64)
    parts = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for _ in range(30):
        parts += [b"1\r\n", b"x\r\n"]
    async with pool_on(answering(*parts, b"0\r\n\r\n")) as pool:
        assert (await ask(pool))[1] == b"x" * 30


async def test_a_body_that_nobody_reads_is_not_taken_in() -> None:
    written = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(bytes(100_000))
            await writer.drain()
            written += 100_000

    async with pool_on(serve) as pool:
        connection = await pool.take()
        connection.send(REQUEST)
        await connection.head()
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.2)
        assert written < 50_000_000
        size = 0
        while read := await connection.read():
            size += len(read)
        assert size == 100_000_000


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
async def test_what_is_no_answer_is_told_and_its_connection_closed(raw: bytes) -> None:
    async with pool_on(answering(raw)) as pool:
        connection = await pool.take()
        connection.send(REQUEST)
        with pytest.raises(NotHttp):
            await connection.head()
            await connection.read()
        assert not connection.alive


@pytest.mark.parametrize("more", [OK, b"x", OK[:10]])
async def test_more_than_was_asked_for_never_answers_the_next_request(more: bytes) -> None:
    async with pool_on(answering(OK + more)) as pool:
        first, body = await ask(pool)
        assert body == b"ok"
        second, body = await ask(pool)
        assert body == b"ok" and second is not first
    async with pool_on(answering(OK, more)) as pool:  # in a read of its own, while idle
        first, _ = await ask(pool)
        await asyncio.sleep(0.1)
        assert not first.alive
        assert (await ask(pool))[1] == b"ok"


async def test_more_than_was_asked_for_is_seen_behind_a_large_answer_that_nobody_reads() -> None:
    large = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3000\r\n\r\n" + bytes(3000)
    async with pool_on(answering(large, OK), buffer_bytes=1000) as pool:
        first = await pool.take()
        first.send(REQUEST)
        await first.head()
        assert first.complete
        pool.give_back(first)
        await asyncio.sleep(0.1)
        assert not first.alive


# --- The pool -------------------------------------------------------------------------------------


async def test_there_are_never_more_connections_than_allowed_and_all_are_served() -> None:
    running = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        while await reader.readuntil(b"\r\n\r\n"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            writer.write(OK)

    async with pool_on(serve) as pool:
        bodies = await asyncio.gather(*(ask(pool) for _ in range(30)))
        assert [body for _, body in bodies] == [b"ok"] * 30
        assert len({id(connection) for connection, _ in bodies}) == 2
    assert most == 2


async def test_places_come_back_from_whatever_happens() -> None:
    async with pool_on(answering(), wait_s=0.1) as pool:
        for _ in range(10):
            task = asyncio.create_task(ask(pool))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        held = [await pool.take(), await pool.take()]
        with pytest.raises(NoConnectionInTime):
            await pool.take()
        waiting = [asyncio.create_task(pool.take()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        for connection in held:
            pool.give_back(connection)
        taken = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(each, HttpConnection) for each in taken) == 2


async def test_a_fresh_connection_is_had_though_all_places_are_idle() -> None:
    async with pool_on(answering(OK)) as pool:
        first = await asyncio.gather(ask(pool), ask(pool))
        connection, body = await ask(pool, fresh=True)
        assert body == b"ok" and not connection.reused
        assert connection not in [each for each, _ in first]


async def test_fresh_connections_take_the_places_of_those_that_were_given_back() -> None:
    running = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(0.005)
                writer.write(OK)
        finally:
            running -= 1

    async with pool_on(serve) as pool:
        asked = [ask(pool, fresh=number % 2 == 0) for number in range(40)]
        assert [body for _, body in await asyncio.gather(*asked)] == [b"ok"] * 40
    # One that ends is seen by the server a moment after its successor.
    assert most <= 4


async def test_a_pool_that_is_closed_connects_for_nobody_who_waited() -> None:
    connected = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await reader.read()

    async with pool_on(serve, connections_max=1) as pool:
        held = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(ask(pool)) for _ in range(3)]
        await asyncio.sleep(0)
        pool.close()
        ends = await asyncio.gather(held, *waiting, return_exceptions=True)
    assert [type(each) for each in ends] == [ConnectionLost] + [CannotConnect] * 3
    assert connected == 1


def test_a_connection_that_was_lost_on_its_way_is_told_as_lost_on_either_loop() -> None:
    async def lost() -> None:
        async with pool_on(answering(OK)) as pool:
            connection = await pool.take()
            connection.abort()
            await asyncio.sleep(0.05)
            connection.send(REQUEST)
            with pytest.raises(ConnectionLost):
                await connection.head()

    asyncio.run(lost())
    uvloop.run(lost())


async def test_an_idle_connection_is_closed_in_time_and_none_is_kept_where_none_may_be() -> None:
    async with pool_on(answering(OK), keepalive_s=0.1) as pool:
        first, _ = await ask(pool)
        assert (await ask(pool))[0] is first
        await asyncio.sleep(0.4)
        assert not first.alive
    async with pool_on(answering(OK), keepalive_s=None) as pool:
        connection, _ = await ask(pool)
        assert not connection.alive


async def test_nobody_there_is_told_from_nobody_in_time() -> None:
    async with pool_on(answering(OK)) as pool:
        pass
    with pytest.raises(CannotConnect):
        await pool.take()


async def test_a_name_that_no_host_can_have_is_nobody() -> None:
    options: dict[str, Any] = {
        "connections_max": 1,
        "keepalive_s": 4.0,
        "connect_s": 5.0,
        "wait_s": 0.1,
    }
    pool = HttpPool(URL("http://a..b:80/v1", encoded=True), buffer_bytes=1000, **options)
    for _ in range(2):
        with pytest.raises(CannotConnect):
            await pool.take()


# --- TLS ------------------------------------------------------------------------------------------


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_tls_works_and_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path)
    async with pool_on(answering(OK), tls) as pool:
        with pytest.raises(CannotConnect):
            await pool.take()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    async with pool_on(answering(OK), tls) as pool:
        first, body = await ask(pool)
        assert body == b"ok"
        second, _ = await ask(pool)
        assert second is first
