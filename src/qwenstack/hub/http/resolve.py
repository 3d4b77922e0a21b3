"""Files on the wire: `/resolve` with ranges and conditions, sent by the kernel from the packs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from aiohttp import web

from qwenstack.hub.errors import EntryNotFound, HubError
from qwenstack.hub.http.access import API_REPO, DATASET_FILES, MODEL_FILES, base_url, open_repo
from qwenstack.hub.http.byte_ranges import not_modified, precondition_failed, read_range
from qwenstack.hub.http.tree import REVISION
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.git_objects import lfs_pointer
from qwenstack.hub.registry.manifests import Entry, find_entry
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import Commit, read_files
from qwenstack.hub.store.contents import Segment
from qwenstack.storage.database import reading

# One system call sends so much; a reader slower than that in the time is let go.
_BLOCK_BYTES = 16 * 1024 * 1024
_BLOCK_S = 300.0
_SHOWN_AS = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
    "json": "application/json",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
}
_TEXT = frozenset(
    [
        "txt",
        "md",
        "py",
        "yaml",
        "yml",
        "csv",
        "tsv",
        "jsonl",
        "jinja",
        "toml",
        "xml",
        "html",
        "htm",
        "js",
        "css",
        "sh",
        "cfg",
    ]
)


class _RangeNotSatisfiable(HubError):
    status = 416


class File:
    """A file at a revision, with the headers that every answer about it has."""

    def __init__(self, repo: Repo, commit: Commit, entry: Entry) -> None:
        self.repo = repo
        self.entry = entry
        self.etag = f'"{entry.sha256 if entry.lfs else entry.git_oid}"'
        self.headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": self.etag,
            "Accept-Ranges": "bytes",
            "Content-Disposition": disposition(entry.path),
            "Content-Type": content_type(entry.path),
            # What is uploaded is never run in the hub's own name.
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Cache-Control": "private, no-cache",
            "Vary": "Authorization",
        }
        if entry.lfs:
            self.headers["X-Linked-Etag"] = self.etag
            self.headers["X-Linked-Size"] = str(entry.size)


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Resolve(hub)
    tail = f"{REVISION}/{{path:.+}}"
    found = []
    for prefix in (DATASET_FILES, MODEL_FILES, API_REPO):
        found.append(web.get(f"{prefix}/resolve/{tail}", handlers.resolve))
        found.append(web.get(f"{prefix}/raw/{tail}", handlers.raw))
    cache = "/api/resolve-cache/{kind:models|datasets}/{namespace:[^/]+}/{name:[^/]+}"
    found.append(web.get(f"{cache}/{tail}", handlers.resolve))
    return found


class _Resolve:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        repo, identity = await open_repo(self._hub, request, "read")
        file = await asyncio.to_thread(self._find, repo, request)
        if self._offers_xet(request, file.entry):
            self._add_xet(request, file)
        if precondition_failed(request.headers, file.etag):
            return web.Response(status=412, headers=file.headers)
        if not_modified(request.headers, file.etag):
            return web.Response(status=304, headers=file.headers)
        if request.method == "HEAD":
            return _head(file)
        span = read_range(request.headers, file.etag, file.entry.size)
        if span is None:
            raise _RangeNotSatisfiable(
                f"The file has {file.entry.size} bytes; the range lies outside.",
                headers={"Content-Range": f"bytes */{file.entry.size}"},
            )
        if span.start == 0:
            client = f"{request.remote} {request.headers.get('User-Agent', '')[:300]}"
            for count in self._hub.download_counters:
                count(repo, file.entry.path, identity.account, client)
        segments: list[Segment] = []
        if span.length:
            segments = await asyncio.to_thread(
                self._hub.store.segments, file.entry.sha256, span.start, span.end
            )
        response = web.StreamResponse(status=206 if span.partial else 200, headers=file.headers)
        if span.partial:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{span.size}"
        response.content_length = span.length
        await response.prepare(request)
        await _send(request, segments)
        await response.write_eof()
        return response

    async def raw(self, request: web.Request) -> web.StreamResponse:
        """The file as Git has it: of a large one its pointer."""
        repo, _ = await open_repo(self._hub, request, "read")
        file = await asyncio.to_thread(self._find, repo, request)
        if not file.entry.lfs:
            return await self.resolve(request)
        body = lfs_pointer(file.entry.sha256, file.entry.size)
        headers = file.headers | {"ETag": f'"{file.entry.git_oid}"', "Content-Type": "text/plain"}
        return web.Response(body=body, headers=headers)

    def _find(self, repo: Repo, request: web.Request) -> File:
        revision, path = request.match_info["rev"], request.match_info["path"]
        with reading(self._hub.database) as connection:
            commit, files = read_files(connection, repo.id, revision)
        entry = find_entry(files, path)
        if entry is None:
            # With the commit, so that clients may remember that it isn't there.
            raise EntryNotFound(
                f"There is no file {shown(path)} at revision {shown(revision)}.",
                headers={"X-Repo-Commit": commit.oid},
            )
        return File(repo, commit, entry)

    def _offers_xet(self, request: web.Request, entry: Entry) -> bool:
        """Whether to say that the file can be had by chunks, to a client that knows how."""
        return entry.lfs and entry.size > 0 and bool(entry.xet_hash) and self._hub.xet_reads

    def _add_xet(self, request: web.Request, file: File) -> None:
        kind = "datasets" if file.repo.kind == "dataset" else "models"
        base = base_url(self._hub, request)
        commit = file.headers["X-Repo-Commit"]
        route = f"{base}/api/{kind}/{file.repo.name}/xet-read-token/{commit}"
        file.headers["X-Xet-Hash"] = file.entry.xet_hash
        file.headers["X-Xet-Refresh-Route"] = route
        file.headers["Link"] = f'<{route}>; rel="xet-auth"'


def _head(file: File) -> web.StreamResponse:
    response = web.Response(headers=file.headers)
    response.headers["Content-Length"] = str(file.entry.size)
    return response


async def _send(request: web.Request, segments: Sequence[Segment]) -> None:
    """Let the kernel copy the segments to the socket."""
    loop = asyncio.get_running_loop()
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the caller is gone")
    with contextlib.ExitStack() as files:
        opened: dict[Path, BinaryIO] = {}
        for path, offset, length in segments:
            if path not in opened:
                if len(opened) >= 16:
                    files.close()
                    opened.clear()
                opened[path] = files.enter_context(path.open("rb"))
            end = offset + length
            while offset < end:
                count = min(_BLOCK_BYTES, end - offset)
                async with asyncio.timeout(_BLOCK_S):
                    sent = await loop.sendfile(transport, opened[path], offset, count)
                if sent != count:
                    # The headers are out: all that is left is to let the caller see it end early.
                    transport.abort()
                    raise OSError(f"{path} ends before byte {end}")
                offset += count


def disposition(path: str) -> str:
    """A Content-Disposition that no path can break out of."""
    name = path.rpartition("/")[2]
    plain = "".join(each if " " <= each <= "~" and each not in '"\\;' else "_" for each in name)
    return (
        f"inline; filename*=UTF-8''{quote(name, safe='', errors='replace')}; filename=\"{plain}\";"
    )


def content_type(path: str) -> str:
    """What browsers may take the file for: never a page or a script."""
    ending = path.rpartition("/")[2].rpartition(".")[2].lower()
    if ending in _TEXT:
        return "text/plain; charset=utf-8"
    return _SHOWN_AS.get(ending, "application/octet-stream")
