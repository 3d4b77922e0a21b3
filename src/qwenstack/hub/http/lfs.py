"""Git LFS on the wire: the batch API, uploads in one request or in parts, and verification.

The upload URLs are the hub's own and signed: bound to the content's hash and size, the repo, the
account and an instant, so that they need no token (clients send none along).
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import HIDDEN
from qwenstack.hub.errors import BadRequest, NotFound, RepoNotFound, TooLarge, TooMany
from qwenstack.hub.http.access import API_REPO, DATASET_FILES, MODEL_FILES, base_url, open_repo
from qwenstack.hub.http.bodies import (
    json_response,
    pieces,
    read_json,
    take_in,
    to_the_end,
)
from qwenstack.hub.http.parts_ahead import PartsAhead
from qwenstack.hub.http.signed import read_signed, sign
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_upload, check_waiting, hold_off
from qwenstack.hub.registry.possession import grant, held
from qwenstack.hub.registry.repos import Repo, find_repo
from qwenstack.hub.registry.uploads import (
    Upload,
    begin_upload,
    end_upload,
    find_upload,
    part_is_there,
    part_path,
    parts_there,
    remove_parts,
    under_way,
)
from qwenstack.hub.registry.waiting import begin_transfer, end_transfer, keep_waiting
from qwenstack.hub.store.contents import Arrival, ContentMismatch, Expected
from qwenstack.hub.store.objects import write_all
from qwenstack.storage.database import reading

_OBJECTS_MAX = 1000
_PARTS_MAX = 10_000
# Of one account: each lies on the disk, up to a part's size, before it counts.
_BODIES_AT_ONCE = 64
_MEDIA_TYPE = "application/vnd.git-lfs+json"
_PURPOSE = "lfs"


class Object(msgspec.Struct):
    """A content by its hash and size."""

    oid: str
    size: int


class Batch(msgspec.Struct):
    """A request of the batch API (Git LFS, docs/api/batch.md)."""

    operation: Literal["upload", "download"]
    objects: list[Object]
    transfers: list[str] = []
    hash_algo: str = "sha256"


class Part(msgspec.Struct, rename="camel"):
    """A part as the client completes it."""

    part_number: int
    etag: str


class Completion(msgspec.Struct):
    """What ends an upload in parts."""

    oid: str
    parts: list[Part]


class Duplication(msgspec.Struct):
    """Large files of one repo that another one is to hold as well."""

    class Target(msgspec.Struct):
        """The repo that gets them."""

        name: str
        type: Literal["model", "dataset"] = "model"

    class File(msgspec.Struct):
        """One of the files; its path is for messages."""

        sha256: str
        filename: str = ""

    target: Target
    files: list[File]


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """What an upload URL allows. `upload` is empty for an upload in one request."""

    repo_id: str
    sha256: str
    size: int
    upload: str = ""
    part: int = 0
    # Who uploads, and whether only to a pull request: for the quotas.
    account: str = ""
    guest: bool = True


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Lfs(hub)
    found = []
    for prefix in (DATASET_FILES, MODEL_FILES):
        found += [
            web.post(prefix + "/info/lfs/objects/batch", handlers.batch),
            web.post(prefix + "/info/lfs/verify", handlers.verify),
        ]
    return [
        *found,
        web.post(API_REPO + "/lfs-files/duplicate", handlers.duplicate),
        web.put("/lfs/objects/{grant}", handlers.put),
        web.put("/lfs/parts/{grant}", handlers.put_part),
        web.get("/lfs/uploads/{grant}", handlers.parts),
        web.post("/lfs/uploads/{grant}", handlers.complete),
    ]


class _Lfs:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # Completions under way by upload: a client that asks again waits for the same one.
        self._completing: dict[str, asyncio.Task[None]] = {}
        self._ahead = PartsAhead(hub.store, hub.uploads)
        self._going_on: set[asyncio.Task[None]] = set()
        # Bodies that come now, by account.
        self._coming: Counter[str] = Counter()

    async def batch(self, request: web.Request) -> web.Response:
        wire = await read_json(request, Batch)
        if wire.operation == "download":
            raise BadRequest("Large files are downloaded from /resolve; see docs/hub-wire.md.")
        repo, identity = await open_repo(self._hub, request, "discuss")
        if wire.hash_algo != "sha256":
            raise BadRequest("'hash_algo' is 'sha256'.")
        if len(wire.objects) > _OBJECTS_MAX:
            raise TooLarge(f"At most {_OBJECTS_MAX} objects are asked for at once.")
        answer = await asyncio.to_thread(
            self._batch, repo, identity, wire, base_url(self._hub, request)
        )
        return web.Response(body=msgspec.json.encode(answer), content_type=_MEDIA_TYPE)

    def _batch(self, repo: Repo, identity: Identity, wire: Batch, base: str) -> dict[str, object]:
        hub = self._hub
        multipart = "multipart" in wire.transfers
        good = [each.oid for each in wire.objects if _is_sha256(each.oid)]
        hub.store.hold(good)
        account = identity.account or ""
        guest = not hub.authority.decide(identity, repo, "write").allowed
        with hub.database.begin() as connection:
            hold_off(connection, account)
            there = held(connection, repo.id, good)
            missing: dict[str, int] = {}
            for each in wire.objects:
                if each.oid not in there and self._problem(each) is None:
                    missing.setdefault(each.oid, each.size)
            # An upload in parts that is under way counts already.
            begun = under_way(connection, repo.id, account)
            new = {oid: size for oid, size in missing.items() if (oid, size) not in begun}
            check_upload(
                connection,
                account=account,
                namespace=repo.namespace,
                guest=guest,
                size=sum(new.values()),
                sha256s=new,
            )
            uploads = {
                oid: begin_upload(
                    connection,
                    repo_id=repo.id,
                    sha256=oid,
                    size=size,
                    part_bytes=self._part_bytes(size),
                    account=account,
                    guest=guest,
                    at_us=now_us(),
                    uploads_max=hub.settings.uploads_max,
                )
                for oid, size in missing.items()
                if multipart and size > hub.settings.part_bytes
            }
        objects = []
        for each in wire.objects:
            item: dict[str, object] = {"oid": each.oid, "size": each.size}
            problem = self._problem(each)
            if problem is None and each.oid in there and there[each.oid].size != each.size:
                problem = f"the content has {there[each.oid].size} bytes"
            elif problem is None and missing.get(each.oid, each.size) != each.size:
                problem = "it is asked for twice, with different sizes"
            if problem is not None:
                item["error"] = {"code": 422, "message": f"{each.oid[:64]}: {problem}"}
            elif each.oid not in there:
                item["authenticated"] = True
                whole = Grant(repo.id, each.oid, each.size, account=account, guest=guest)
                item["actions"] = self._actions(repo, whole, uploads.get(each.oid), base)
            objects.append(item)
        return {"transfer": "multipart" if uploads else "basic", "objects": objects}

    def _problem(self, each: Object) -> str | None:
        if not _is_sha256(each.oid):
            return "the oid is no SHA-256 in hexadecimal"
        if not 0 <= each.size <= self._hub.settings.file_bytes_max:
            return f"files of up to {self._hub.settings.file_bytes_max} bytes are taken"
        return None

    def _part_bytes(self, size: int) -> int:
        """Parts as large as it takes to be at most so many."""
        return max(self._hub.settings.part_bytes, -(-size // _PARTS_MAX))

    def _actions(
        self, repo: Repo, whole: Grant, upload: Upload | None, base: str
    ) -> dict[str, object]:
        hub = self._hub
        prefix = "/datasets" if repo.kind == "dataset" else ""
        verify = {"href": f"{base}{prefix}/{repo.name}.git/info/lfs/verify"}
        seconds = hub.settings.upload_url_s
        expires_us = now_us() + seconds * 1_000_000

        def url(path: str, grant_: Grant) -> str:
            return f"{base}/lfs/{path}/{sign(hub.secret, _PURPOSE, grant_, expires_us=expires_us)}"

        if upload is None:
            href = url("objects", whole)
            return {"upload": {"href": href, "expires_in": seconds}, "verify": verify}
        whole = msgspec.structs.replace(whole, upload=upload.id)
        there = parts_there(hub.uploads, upload)
        header = {"chunk_size": str(upload.part_bytes)}
        # Not the client library's: for one that sends only what is missing.
        header["present"] = ",".join(map(str, there))
        for number in range(1, upload.parts + 1):
            header[str(number)] = url("parts", msgspec.structs.replace(whole, part=number))
        href = url("uploads", whole)
        action = {"href": href, "header": header, "expires_in": seconds}
        return {"upload": action, "verify": verify}

    async def put(self, request: web.Request) -> web.Response:
        """A whole file in one request."""
        grant_ = self._grant(request)
        async with self._counted(grant_):
            _check_length(request, grant_.size)
            arrival = await asyncio.to_thread(
                self._hub.store.receive, Expected(grant_.sha256, grant_.size)
            )
            try:
                total = await take_in(
                    request,
                    lambda pieces: arrival.feed(b"".join(pieces)),
                    bytes_max=grant_.size,
                    idle_s=self._hub.settings.idle_s,
                )
                _check_whole(total, grant_.size)
                await to_the_end(self._keep, grant_, arrival)
            finally:
                await to_the_end(arrival.close)
        return web.Response()

    @asynccontextmanager
    async def _counted(self, grant_: Grant) -> AsyncIterator[None]:
        """Count a body as its sender's while it comes. Raises QuotaExceeded, TooMany."""
        with self._admitted(grant_.account):
            key = await asyncio.to_thread(self._begin, grant_)
            try:
                yield
            finally:
                await asyncio.shield(asyncio.to_thread(self._end, key))

    @contextmanager
    def _admitted(self, account: str) -> Iterator[None]:
        """Let no account send too many bodies at once. Raises TooMany."""
        if self._coming[account] >= _BODIES_AT_ONCE:
            raise TooMany(f"{account} sends {_BODIES_AT_ONCE} bodies at once; wait for some.")
        self._coming[account] += 1
        try:
            yield
        finally:
            self._coming[account] -= 1
            if not self._coming[account]:
                del self._coming[account]

    def _begin(self, grant_: Grant) -> str:
        with self._hub.database.begin() as connection:
            hold_off(connection, grant_.account)
            check_waiting(connection, grant_.account, grant_.size, guest=grant_.guest)
            return begin_transfer(connection, grant_.account, grant_.size, guest=grant_.guest)

    def _end(self, key: str) -> None:
        with self._hub.database.begin() as connection:
            end_transfer(connection, key)

    def _keep(self, grant_: Grant, arrival: Arrival) -> None:
        hub = self._hub
        try:
            arrival.keep()
        except ContentMismatch as error:
            raise BadRequest(f"These are not the bytes that were announced: {error}") from error
        with hub.database.begin() as connection:
            grant(connection, grant_.repo_id, [grant_.sha256])
            _count(connection, grant_)

    async def put_part(self, request: web.Request) -> web.Response:
        """A part; one that is there already is not written again."""
        grant_ = self._grant(request)
        hub = self._hub
        upload = await asyncio.to_thread(self._find, grant_)
        size = upload.part_size(grant_.part)
        target = part_path(hub.uploads, upload, grant_.part)
        etag = {"ETag": f'"{upload.id}-{grant_.part}"'}
        if not part_is_there(hub.uploads, upload, grant_.part):
            target.parent.mkdir(exist_ok=True)
            with self._admitted(grant_.account):
                path = await self._spool(request, target.parent, size)
                await asyncio.to_thread(_settle, path, target)
            task = asyncio.create_task(asyncio.to_thread(self._ahead.go_on, upload))
            self._going_on.add(task)
            task.add_done_callback(self._going_on.discard)
        else:
            async for _ in pieces(request, bytes_max=size, idle_s=hub.settings.idle_s):
                pass
        return web.Response(headers=etag)

    async def parts(self, request: web.Request) -> web.Response:
        """Which parts came whole."""
        upload = await asyncio.to_thread(self._find, self._grant(request))
        there = await asyncio.to_thread(parts_there, self._hub.uploads, upload)
        return json_response({"parts": there, "chunk_size": upload.part_bytes})

    async def complete(self, request: web.Request) -> web.Response:
        """All parts came: put the whole into the store."""
        grant_ = self._grant(request)
        wire = await read_json(request, Completion)
        if wire.oid != grant_.sha256:
            raise BadRequest("'oid' is not the content that this URL is for.")
        task = self._completing.get(grant_.upload)
        if task is None:
            task = asyncio.ensure_future(asyncio.to_thread(self._complete, grant_, wire))
            self._completing[grant_.upload] = task
            task.add_done_callback(lambda _: self._completing.pop(grant_.upload, None))
        # A caller that hangs up does not stop it: the next try finds it done.
        await asyncio.shield(task)
        return json_response({"success": True})

    def _complete(self, grant_: Grant, wire: Completion) -> None:
        hub = self._hub
        with reading(hub.database) as connection:
            if held(connection, grant_.repo_id, [grant_.sha256]):
                return
        upload = self._find(grant_)
        there = set(parts_there(hub.uploads, upload))
        named = {each.part_number: each.etag for each in wire.parts}
        for number in range(1, upload.parts + 1):
            etag = named.get(number, "").removeprefix("W/").strip('"')
            if number not in there or etag != f"{upload.id}-{number}":
                raise BadRequest(f"Part {number} of {upload.parts} is missing; send it again.")
        try:
            self._ahead.finish(upload)
        except ContentMismatch as error:
            # Which part is wrong cannot be told: all come again.
            remove_parts(hub.uploads, upload.id)
            raise BadRequest(f"These are not the bytes that were announced: {error}") from error
        with hub.database.begin() as connection:
            grant(connection, upload.repo_id, [upload.sha256])
            _count(connection, grant_)
            end_upload(connection, upload.id)
        remove_parts(hub.uploads, upload.id)

    async def verify(self, request: web.Request) -> web.Response:
        """Whether the repo holds a content."""
        repo, _ = await open_repo(self._hub, request, "discuss")
        wire = await read_json(request, Object)

        def there() -> bool:
            with reading(self._hub.database) as connection:
                row = held(connection, repo.id, [wire.oid]).get(wire.oid)
            return row is not None and row.size == wire.size

        if not await asyncio.to_thread(there):
            raise NotFound("The content did not arrive whole; upload it again.")
        return json_response({"success": True})

    async def duplicate(self, request: web.Request) -> web.Response:
        """Let another repo hold large files of this one, for a copy between repos."""
        repo, identity = await open_repo(self._hub, request, "read")
        wire = await read_json(request, Duplication)
        if len(wire.files) > _OBJECTS_MAX:
            raise TooLarge(f"At most {_OBJECTS_MAX} files are copied at once.")
        failed = await asyncio.to_thread(self._duplicate, repo, identity, wire)
        return json_response({"succeeded": len(wire.files) - len(failed), "failed": failed})

    def _duplicate(self, repo: Repo, identity: Identity, wire: Duplication) -> list[dict[str, str]]:
        hub = self._hub
        wanted = [each.sha256 for each in wire.files]
        hub.store.hold(wanted)
        with reading(hub.database) as connection:
            target = find_repo(connection, wire.target.type, wire.target.name)
            there = held(connection, repo.id, wanted)
        if target is None:
            raise RepoNotFound(HIDDEN)
        hub.authority.check(identity, target, "write")
        with hub.database.begin() as connection:
            grant(connection, target.id, there)
        return [
            {"sha256": each.sha256, "error": "the source repo does not hold this content"}
            for each in wire.files
            if each.sha256 not in there
        ]

    def _grant(self, request: web.Request) -> Grant:
        return read_signed(self._hub.secret, _PURPOSE, request.match_info["grant"], Grant)

    def _find(self, grant_: Grant) -> Upload:
        with reading(self._hub.database) as connection:
            upload = find_upload(connection, grant_.upload)
        if upload is None:
            raise NotFound("This upload is over; ask the batch API again.")
        return upload

    async def _spool(self, request: web.Request, folder: Path, size: int) -> Path:
        """The body as a file of exactly `size` bytes; the caller removes it."""
        _check_length(request, size)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix="new-")
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                write = functools.partial(write_all, file.fileno())
                idle_s = self._hub.settings.idle_s
                total = await take_in(request, write, bytes_max=size, idle_s=idle_s)
            _check_whole(total, size)
        except BaseException:
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - no await while cancelled
            raise
        return path


def _check_length(request: web.Request, size: int) -> None:
    announced = request.content_length
    if announced is not None and announced != size:
        raise BadRequest(f"The body has {announced} bytes and should have {size}.")


def _check_whole(total: int, size: int) -> None:
    if total != size:
        raise BadRequest(f"The body ended after {total} of {size} bytes.")


def _settle(path: Path, target: Path) -> None:
    """Let a part take its place, durably: a later start counts on it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)


def _count(connection: Connection, grant_: Grant) -> None:
    sizes = {grant_.sha256: grant_.size}
    keep_waiting(connection, grant_.account, sizes, guest=grant_.guest)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(each in "0123456789abcdef" for each in text)
