"""A stream before its first word: its first event, its signs of life, and what they cost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import dashscope
import openai
import pytest
from aiohttp import web

from qwenstack.studio.charge import Charge
from qwenstack.studio.http.connection import CONNECTION
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.server import listen
from qwenstack.studio.http.streamed_answer import StreamedAnswer
from qwenstack.studio.settings import ServerSettings
from qwenstack.studio.surfaces.interface import SSE_COMMENT
from qwenstack.studio.surfaces.openai_chat import ChatSurface
from tests.studio import MODEL, PROMPT_TOKENS, RunningStudio, Upstream, running_studio

INTERVAL_S = 0.02
USER: Any = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
    "/api/v1/services/aigc/text-generation/generation": {"input": {"messages": USER}},
}


class Opening(Upstream):
    """Says that an answer begins, and its first word only once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.gate = self.opened
        self.dies = False

    async def _answer(self, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write(self._chunk({"role": "assistant", "content": ""}, 0))
        if self.dies and request.transport is not None:
            await self.opened.wait()
            request.transport.abort()
            return
        await super()._answer(request, response)


@asynccontextmanager
async def studio_with(
    home: Path, upstream: Upstream, keep_alive_s: float = INTERVAL_S, **engine: Any
) -> AsyncIterator[tuple[RunningStudio, str]]:
    server = ServerSettings(keep_alive_s=keep_alive_s)
    async with running_studio(home, upstream=upstream, server=server, engine=engine) as studio:
        yield studio, await studio.tenant()


def post(studio: RunningStudio, key: str, path: str) -> Any:
    body = {"model": MODEL, "stream": True, **ROUTES[path]}
    headers = {"Authorization": f"Bearer {key}"}
    if path.startswith("/api/"):
        del body["stream"]
        headers["X-DashScope-SSE"] = "enable"
    return studio.session.post(studio.url + path, json=body, headers=headers)


async def read_until(content: aiohttp.StreamReader, seen: Callable[[bytes], bool]) -> bytes:
    """What comes until `seen` is true of it."""
    data = b""
    async with asyncio.timeout(10):
        while not seen(data):
            piece = await content.readany()
            assert piece, data
            data += piece
    return data


async def only_charge(studio: RunningStudio) -> Charge:
    """The one bill, once the ledger shows it."""
    async with asyncio.timeout(10):
        while not (charges := await studio.charges()):
            await asyncio.sleep(0.01)
    [charge] = charges
    return charge


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("/v1/chat/completions", b'"role":"assistant"'),
        ("/v1/responses", b"response.created"),
        ("/v1/messages", b"message_start"),
    ],
)
async def test_the_first_event_comes_before_the_first_word(
    tmp_path: Path, path: str, first: bytes
) -> None:
    upstream = Opening()
    async with studio_with(tmp_path, upstream, 0) as (studio, key):
        async with post(studio, key, path) as response:
            data = await read_until(response.content, lambda data: first in data)
            assert b'"x"' not in data
            upstream.opened.set()
            rest = await response.content.read()
            assert rest.count(b'"x"') >= upstream.tokens
            assert first not in rest
        charge = await only_charge(studio)
        assert (charge.usage.prompt, charge.usage.completion) == (PROMPT_TOKENS, upstream.tokens)


async def test_a_client_that_leaves_before_the_first_word_pays_nothing(tmp_path: Path) -> None:
    upstream = Opening()
    async with studio_with(tmp_path, upstream) as (studio, key):
        before = await studio.balance_micro()
        async with post(studio, key, "/v1/chat/completions") as response:
            await read_until(response.content, lambda data: b"role" in data and b": keep" in data)
            response.close()
        while not upstream.cancelled:
            await asyncio.sleep(0.01)
        await studio.installation.serving.drain(10)
        assert await studio.charges() == []
        assert await studio.balance_micro() == before


@pytest.mark.parametrize("path", ROUTES)
async def test_a_stream_that_stands_still_shows_life_and_is_billed_as_ever(
    tmp_path: Path, path: str
) -> None:
    sign = b'event: ping\ndata: {"type":"ping"}\n\n' if "messages" in path else b": keep-alive\n\n"
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with studio_with(tmp_path, upstream) as (studio, key):
        async with post(studio, key, path) as response:
            data = await read_until(response.content, lambda data: data.count(sign) >= 3)
            assert data.replace(sign, b"") == b""
            upstream.gate.set()
            data = await response.content.read()
            assert data.count(b"x") >= upstream.tokens
            assert sign not in data[data.rindex(b"x") :]
        charge = await only_charge(studio)
        assert charge.outcome == "complete"
        assert (charge.usage.prompt, charge.usage.completion) == (PROMPT_TOKENS, upstream.tokens)


async def test_no_sign_of_life_is_sent_where_it_is_switched_off(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    async with studio_with(tmp_path, upstream, 0) as (studio, key):
        request = asyncio.ensure_future(post(studio, key, "/v1/chat/completions"))
        while not upstream.running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(10 * INTERVAL_S)
        assert not request.done()
        upstream.gate.set()
        async with await request as response:
            assert b": keep-alive" not in await response.content.read()


async def test_after_a_sign_of_life_another_replica_may_still_answer(tmp_path: Path) -> None:
    dying, well = Opening(), Upstream()
    dying.dies = True
    async with well.serving(), dying.serving():
        urls = (dying.url, well.url)
        async with studio_with(tmp_path, Upstream(), urls=urls) as (studio, key):
            async with post(studio, key, "/v1/chat/completions") as response:
                await read_until(response.content, lambda data: b": keep-alive" in data)
                dying.opened.set()
                data = await response.content.read()
            assert data.count(b'"x"') == well.tokens
            assert data.endswith(b"data: [DONE]\n\n")
            assert dying.requests
            await only_charge(studio)


async def test_a_head_that_waits_for_a_slow_client_is_not_broken_off_by_the_last_word() -> None:
    taken, sent = asyncio.Event(), []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            await taken.wait()
        sent.append(message.get("body", b"head"))

    connection = {"watch": lambda _: None, "abort": lambda: None}
    scope = {"method": "POST", "path": "/", "query_string": b"", "headers": []}
    exchange = Exchange({**scope, "extensions": {CONNECTION: connection}}, receive, send)
    answer = StreamedAnswer(exchange, ChatSurface(), (), INTERVAL_S)
    while not exchange.started:
        await asyncio.sleep(INTERVAL_S)
    ending = asyncio.create_task(answer.write(b"last", more=False))
    await asyncio.sleep(INTERVAL_S)
    taken.set()
    await ending
    assert sent == [b"head", SSE_COMMENT, b"last"]


async def openai_says(studio: RunningStudio, key: str) -> str:
    client = openai.AsyncOpenAI(base_url=f"{studio.url}/v1", api_key=key, max_retries=0)
    async with client:
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def openai_responds(studio: RunningStudio, key: str) -> str:
    client = openai.AsyncOpenAI(base_url=f"{studio.url}/v1", api_key=key, max_retries=0)
    async with client, client.responses.stream(model=MODEL, input="hi") as stream:
        return (await stream.get_final_response()).output_text


async def anthropic_says(studio: RunningStudio, key: str) -> str:
    client = anthropic.AsyncAnthropic(base_url=studio.url, api_key=key, max_retries=0)
    messages = client.messages.stream(model=MODEL, messages=USER, max_tokens=9)
    async with client, messages as stream:
        return await stream.get_final_text()


async def dashscope_says(studio: RunningStudio, key: str) -> str:
    def ask() -> str:
        events: Any = dashscope.Generation.call(
            MODEL,
            messages=USER,
            api_key=key,
            stream=True,
            incremental_output=True,
            result_format="message",
            base_address=f"{studio.url}/api/v1",
        )
        return "".join([event.output.choices[0].message.content for event in events])

    return await asyncio.to_thread(ask)


CLIENTS = [openai_says, openai_responds, anthropic_says, dashscope_says]


@pytest.mark.parametrize("says", CLIENTS)
async def test_the_official_clients_pass_over_signs_of_life(
    tmp_path: Path, says: Callable[[RunningStudio, str], Coroutine[Any, Any, str]]
) -> None:
    upstream = Opening()
    upstream.pause_s = 2 * INTERVAL_S
    async with studio_with(tmp_path, upstream) as (studio, key):
        answer = asyncio.create_task(says(studio, key))
        while not upstream.running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(5 * INTERVAL_S)
        upstream.opened.set()
        async with asyncio.timeout(20):
            assert await answer == "x" * upstream.tokens


@pytest.mark.parametrize("says", CLIENTS[:3])
async def test_what_fails_after_a_sign_of_life_is_an_error_to_the_clients_and_free(
    tmp_path: Path, says: Callable[[RunningStudio, str], Coroutine[Any, Any, str]]
) -> None:
    upstream = Opening()
    upstream.dies = True
    async with studio_with(tmp_path, upstream) as (studio, key):
        answer = asyncio.create_task(says(studio, key))
        while not upstream.running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(5 * INTERVAL_S)
        upstream.opened.set()
        async with asyncio.timeout(20):
            with pytest.raises((openai.APIError, anthropic.APIError)):
                await answer
        await studio.installation.serving.drain(10)
        assert await studio.charges() == []


async def test_what_is_written_to_a_client_leaves_at_once() -> None:
    """Else each event would wait until the client's machine has acknowledged the one before."""
    listener = listen("127.0.0.1", 0)
    taken: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: taken.put_nowait(writer), sock=listener)
    _, client = await asyncio.open_connection(*listener.getsockname())
    ours = await taken.get()
    assert ours.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for each in (client, ours, server):
        each.close()
