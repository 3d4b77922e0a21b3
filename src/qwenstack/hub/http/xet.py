"""The Xet protocol: tokens for a repo, and the storage service that its clients upload to.

A client asks the hub for a token (`xet-read-token`, `xet-write-token`), then speaks to the service
under `/xet`: it uploads xorbs, then a shard that says how they make files; to read, it asks for a
file's reconstruction and fetches parts of xorbs from signed addresses. A token to read is bound to
one commit's files, one to write to one repo. Source: huggingface.co/docs/xet/api; observed with
hf_xet 1.8.0.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import msgspec
from aiohttp import web
from sqlalchemy import select

from qwenstack.hub.downloads import OVER_XET
from qwenstack.hub.errors import BadRequest, HubError, NotFound, TooLarge
from qwenstack.hub.http.access import API_REPO, base_url, bearer, open_repo, upload_action
from qwenstack.hub.http.bodies import json_response, pieces, take_in, to_the_end
from qwenstack.hub.http.slots import Slots
from qwenstack.hub.http.xet_tokens import (
    XetClaims,
    XetToken,
    check_part,
    dedupe_key,
    hub_mark,
    make_token,
    read_token,
    sign_part,
)
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_upload, check_waiting, upload_bytes_max
from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.hub.registry.possession import grant
from qwenstack.hub.registry.revisions import find_commit
from qwenstack.hub.registry.waiting import keep_waiting
from qwenstack.hub.store.contents import ContentMissing
from qwenstack.hub.store.merkle import from_text
from qwenstack.hub.store.packs import PackIndex
from qwenstack.hub.store.reading import Layout, pack_chunks, read_layout
from qwenstack.hub.store.receiving import ArrivingXorb, receive_shard
from qwenstack.hub.store.reconstruction import Reconstruction, reconstruct, second_version
from qwenstack.hub.store.shard import SHARD_BYTES_MAX, ShardError, dedupe_shard
from qwenstack.hub.store.writing import Run
from qwenstack.hub.store.xorb import XORB_BYTES_MAX, XorbError, chunk_header, wire_offset
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents

_PREFIX = "/xet"
# Under which clients are told to speak to this hub; without it, as older tokens said, as well.
_SERVICE = f"{_PREFIX}{{hub:(?:/[0-9a-f]{{16}})?}}"
_HASH = "{hash:[0-9a-f]{64}}"
# A xorb holds some blocks of it in memory, a shard is there whole while its files are hashed. So
# many of all accounts, and of one.
_XORBS_AT_ONCE, _SHARDS_AT_ONCE = (16, 4), (6, 3)
_BODY_IDLE_S, _BODY_WHOLE_S = 60.0, 900.0
# What the database takes of a chunk, however short it is; and of a shard, in its own length.
_CHUNK_ROW_BYTES = 128
_ROWS_FACTOR = 4
_TELEMETRY_BYTES_MAX = 1024 * 1024
# Clients keep the answer to a deduplication query that long.
_DEDUPE_S = 7 * 24 * 3600
_SEND_BYTES = 1024 * 1024
_HEARTBEAT_S = 10.0
_BYTE_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class _TokenBody(msgspec.Struct, frozen=True, rename="camel"):
    cas_url: str
    access_token: str
    exp: int


class _XorbAnswer(msgspec.Struct, frozen=True):
    was_inserted: bool


class _ShardAnswer(msgspec.Struct, frozen=True):
    result: Literal[0, 1]


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    xorbs, shards = Slots(*_XORBS_AT_ONCE), Slots(*_SHARDS_AT_ONCE)
    partial = functools.partial
    post_xorb, post_shard = partial(_post_xorb, hub, xorbs), partial(_post_shard, hub, shards)
    get_chunk, get_file = partial(_get_chunk, hub), partial(_get_reconstruction, hub)
    part = f"{_PREFIX}/xorbs/{_HASH}/{{first:\\d{{1,6}}}}-{{end:\\d{{1,6}}}}"
    answers = [
        web.get(f"{API_REPO}/xet-read-token/{{rev:.+}}", partial(_read_token, hub)),
        web.get(f"{API_REPO}/xet-write-token/{{rev:.+}}", partial(_write_token, hub)),
        web.post(f"{_SERVICE}/v2/shards", partial(_post_shard_told, hub, shards)),
        web.get(f"{_SERVICE}/v2/reconstructions/{_HASH}", partial(_get_reconstruction2, hub)),
        web.post(f"{_SERVICE}/v1/telemetry", _post_telemetry),
        web.get(part, partial(_get_part, hub)),
    ]
    # Version 1, and the same before it had a number: hf_xet 1.2 and 1.1 ask so.
    for version, plural in (("/v1", "s"), ("", "s"), ("", "")):
        start = f"{_SERVICE}{version}"
        answers += [
            web.post(f"{start}/xorb{plural}/default/{_HASH}", post_xorb),
            web.post(f"{start}/shard{plural}", post_shard),
            web.post(f"{start}/shard{plural}/default-merkledb/{_HASH}", post_shard),
            web.get(f"{start}/chunk{plural}/default-merkledb/{_HASH}", get_chunk),
            web.get(f"{start}/chunk{plural}/default/{_HASH}", get_chunk),
            web.get(f"{start}/reconstruction{plural}/{_HASH}", get_file),
        ]
    return answers


# --- tokens -----------------------------------------------------------------------------------


async def _read_token(hub: Hub, request: web.Request) -> web.Response:
    repo, identity = await open_repo(hub, request, "read")
    client = f"{request.remote} {request.headers.get('User-Agent', '')[:300]}"
    for count in hub.download_counters:
        count(repo, OVER_XET, identity.account, client)

    def manifest() -> str:
        with reading(hub.database) as connection:
            return find_commit(connection, repo.id, request.match_info["rev"]).manifest

    token = make_token(hub.secret, repo.id, "read", await asyncio.to_thread(manifest))
    return _token_answer(hub, request, token)


async def _write_token(hub: Hub, request: web.Request) -> web.Response:
    # A pull request may come from whoever may read: the commit's own route decides.
    repo, identity = await open_repo(hub, request, upload_action(request))
    account, namespace = identity.account or "", repo.namespace

    def is_guest() -> bool:
        guest = not hub.authority.decide(identity, repo, "write").allowed
        with reading(hub.database) as connection:
            check_upload(connection, account=account, namespace=namespace, guest=guest, size=1)
        return guest

    guest = await asyncio.to_thread(is_guest)
    token = make_token(
        hub.secret, repo.id, "write", account=account, namespace=namespace, guest=guest
    )
    return _token_answer(hub, request, token)


def _token_answer(hub: Hub, request: web.Request, token: XetToken) -> web.Response:
    url = f"{base_url(hub, request)}{_PREFIX}/{hub_mark(hub.secret)}"
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": token.text,
        "X-Xet-Token-Expiration": str(token.claims.expires_s),
        "Cache-Control": "no-store",
    }
    body = _TokenBody(url, token.text, token.claims.expires_s)
    return json_response(body, headers=headers)


# --- uploads ----------------------------------------------------------------------------------


async def _post_xorb(hub: Hub, uploads: Slots, request: web.Request) -> web.Response:
    claims = read_token(hub.secret, bearer(request), "write")
    name = request.match_info["hash"]
    async with uploads.of(claims.account):
        arrival = await asyncio.to_thread(ArrivingXorb, hub.store, name)
        try:
            async with asyncio.timeout(_BODY_WHOLE_S):
                total = await take_in(
                    request, arrival.feed, bytes_max=XORB_BYTES_MAX, idle_s=_BODY_IDLE_S
                )
            is_new = await to_the_end(_keep_xorb, hub, claims, name, arrival, total)
        except XorbError as error:
            raise BadRequest(f"{error}.") from error
        finally:
            await to_the_end(arrival.close)
    return json_response(_XorbAnswer(is_new))


def _keep_xorb(
    hub: Hub, claims: XetClaims, name: str, arrival: ArrivingXorb, wire_bytes: int
) -> bool:
    with reading(hub.database) as connection:
        check_upload(
            connection,
            account=claims.account,
            namespace=claims.namespace,
            guest=claims.guest,
            size=wire_bytes,
        )
    size = arrival.keep()
    if size:
        pack = hub.store.packs.read([name]).get(name)
        rows_bytes = 0 if pack is None else _CHUNK_ROW_BYTES * len(pack)
        sizes = {name: max(size, rows_bytes)}
        with hub.database.begin() as connection:
            keep_waiting(connection, claims.account, sizes, guest=claims.guest)
    return size > 0


async def _post_shard(hub: Hub, uploads: Slots, request: web.Request) -> web.Response:
    """Version 1: one answer at the end."""
    claims = read_token(hub.secret, bearer(request), "write")
    async with uploads.of(claims.account):
        body = await _whole_body(request, SHARD_BYTES_MAX)
        await asyncio.to_thread(_keep_shard, hub, claims, body)
    return json_response(_ShardAnswer(1))


async def _post_shard_told(hub: Hub, uploads: Slots, request: web.Request) -> web.StreamResponse:
    """Version 2: lines of JSON while the bytes are hashed, so that no time-out strikes.

    What is wrong with a shard is told in the last line, however soon it is found: a client shows
    its user that line, and of another status than 200 the number alone (hf_xet 1.8.0).
    """
    claims = read_token(hub.secret, bearer(request), "write")
    async with uploads.of(claims.account):
        body = await _whole_body(request, SHARD_BYTES_MAX)
        work = asyncio.create_task(asyncio.to_thread(_keep_shard, hub, claims, body))
        await asyncio.wait([work], timeout=_HEARTBEAT_S)
        if work.done() and not isinstance(work.exception(), HubError):
            work.result()
            return web.Response(body=_line("result"), content_type="application/x-ndjson")
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        while not work.done():
            await answer.write(_line("validating", verified=0, total=1))
            await asyncio.wait([work], timeout=_HEARTBEAT_S)
        error = work.exception()
        if error is None:
            await answer.write(_line("result"))
        else:
            ours = isinstance(error, HubError)
            told = str(error) if ours else "The hub failed."
            await answer.write(_line("error", message=told, retryable=not ours))
        await answer.write_eof()
    if error is not None and not isinstance(error, HubError):
        raise error
    return answer


def _keep_shard(hub: Hub, claims: XetClaims, body: bytes) -> None:
    with reading(hub.database) as connection:
        most = upload_bytes_max(connection, claims.account, guest=claims.guest)
        rows_bytes = _ROWS_FACTOR * len(body)
        check_waiting(connection, claims.account, rows_bytes, guest=claims.guest)
    try:
        stored = receive_shard(hub.store, body, bytes_max=min(hub.settings.file_bytes_max, most))
    except ShardError as error:
        raise BadRequest(f"{error}.") from error
    with hub.database.begin() as connection:
        grant(connection, claims.repo_id, [content.sha256 for content in stored])
        # Of few chunks endless files can be made: what the database keeps of each counts, too.
        share = rows_bytes // max(len(stored), 1)
        sizes = {content.sha256: share for content in stored}
        keep_waiting(connection, claims.account, sizes, guest=claims.guest)


def _line(kind: str, **fields: object) -> bytes:
    return msgspec.json.encode({"type": kind, **fields}) + b"\n"


async def _whole_body(request: web.Request, bytes_max: int) -> bytes:
    body = bytearray()
    async with asyncio.timeout(_BODY_WHOLE_S):
        async for piece in pieces(request, bytes_max=bytes_max, idle_s=_BODY_IDLE_S):
            body += piece
    return bytes(body)


async def _get_chunk(hub: Hub, request: web.Request) -> web.Response:
    """Deduplication beyond what the client knows: the pack that holds this chunk, veiled."""
    read_token(hub.secret, bearer(request), "write")
    digest = from_text(request.match_info["hash"])
    pack = await asyncio.to_thread(_pack_of, hub, digest)
    if pack is None:
        raise NotFound("No pack holds this chunk.")
    now_s = int(time.time())
    body = dedupe_shard(
        [pack], key=dedupe_key(hub.secret), created_s=now_s, expires_s=now_s + _DEDUPE_S
    )
    return web.Response(body=body, content_type="application/octet-stream")


def _pack_of(hub: Hub, digest: bytes) -> PackIndex | None:
    found = hub.store.packs.locate([digest]).get(digest)
    if found is None or not hub.store.packs.use([found[0].hash]):
        return None
    return found[0]


async def _post_telemetry(request: web.Request) -> web.Response:
    """Clients report how transfers went; nothing of it is kept."""
    async for _ in pieces(request, bytes_max=_TELEMETRY_BYTES_MAX, idle_s=_BODY_IDLE_S):
        pass
    return web.Response()


# --- downloads --------------------------------------------------------------------------------


async def _get_reconstruction(hub: Hub, request: web.Request) -> web.Response:
    return json_response(await _reconstruction(hub, request))


async def _get_reconstruction2(hub: Hub, request: web.Request) -> web.Response:
    return json_response(second_version(await _reconstruction(hub, request)))


async def _reconstruction(hub: Hub, request: web.Request) -> Reconstruction:
    claims = read_token(hub.secret, bearer(request), "read")
    xet_hash = request.match_info["hash"]
    layout = await asyncio.to_thread(_readable_layout, hub, claims.manifest, xet_hash)
    size = layout.content.size
    start, end = _asked_range(request, size) or (0, size)
    if start >= size and (size or start):
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    base = f"{base_url(hub, request)}{_PREFIX}/xorbs"

    def sign_url(xorb: str, first: int, end: int) -> str:
        return f"{base}/{xorb}/{first}-{end}?{sign_part(hub.secret, xorb, first, end)}"

    return await asyncio.to_thread(reconstruct, hub.store.packs, layout, start, end, sign_url)


def _readable_layout(hub: Hub, manifest: str, xet_hash: str) -> Layout:
    """The content with this Xet hash, if the token's commit has it. Raises NotFound."""
    missing = NotFound(f"The commit that the token is for has no file {xet_hash}.")
    with reading(hub.database) as connection:
        try:
            files = read_manifest(connection, manifest)
        except LookupError as error:
            raise missing from error
        if all(entry.xet_hash != xet_hash for entry in files):
            raise missing
        query = select(contents.c.sha256).where(contents.c.xet_hash == xet_hash)
        sha256: str | None = connection.scalar(query)
    try:
        return read_layout(hub.database, sha256 or "")
    except ContentMissing as error:
        raise missing from error


def _asked_range(request: web.Request, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last of the Range header; None without one."""
    header = request.headers.get("Range")
    if header is None:
        return None
    match = _BYTE_RANGE.fullmatch(header.strip())
    if match is None:
        raise BadRequest(f"The Range {header[:80]!a} is not understood: bytes=FIRST-LAST is.")
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if match[2] and int(match[2]) < start:
        raise BadRequest(f"The Range {header[:80]!a} ends before it starts.")
    return start, end


async def _get_part(hub: Hub, request: web.Request) -> web.StreamResponse:
    """Chunks of a xorb behind their headers; the byte range counts from the xorb's start."""
    name = request.match_info["hash"]
    first, end = int(request.match_info["first"]), int(request.match_info["end"])
    query = request.query
    check_part(hub.secret, name, first, end, query.get("expires", ""), query.get("signature", ""))
    pack = (await asyncio.to_thread(hub.store.packs.read, [name])).get(name)
    if pack is None or not first < end <= len(pack):
        raise NotFound("The xorb is no longer there.")
    low, high = wire_offset(pack, first), wire_offset(pack, end)
    asked = _asked_range(request, high) or (low, high)
    if asked[0] < low or asked[0] >= asked[1]:
        raise TooLarge(f"The address allows bytes {low} to {high - 1} of the xorb.")
    answer = web.StreamResponse(status=206, headers={"Content-Type": "application/octet-stream"})
    answer.content_length = asked[1] - asked[0]
    total = wire_offset(pack, len(pack))
    answer.headers["Content-Range"] = f"bytes {asked[0]}-{asked[1] - 1}/{total}"
    await answer.prepare(request)
    async for block in _in_thread(_wire_blocks(hub, pack, first, end, asked)):
        await answer.write(block)
    await answer.write_eof()
    return answer


def _wire_blocks(
    hub: Hub, pack: PackIndex, first: int, end: int, asked: tuple[int, int]
) -> Iterator[bytes]:
    """The asked bytes of the wire form, each chunk checked, in blocks of about a megabyte."""
    start, stop = asked
    while first < end and wire_offset(pack, first + 1) <= start:
        first += 1
    while end > first and wire_offset(pack, end - 1) >= stop:
        end -= 1
    place = wire_offset(pack, first)
    block = bytearray()
    for position, data in pack_chunks(hub.store.packs, Run(pack, first, end)):
        wire = chunk_header(len(data)) + bytes(data)
        block += wire[max(start - place, 0) : stop - place]
        place = wire_offset(pack, position + 1)
        if len(block) >= _SEND_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


async def _in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Run a blocking iterator's steps in threads."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block
