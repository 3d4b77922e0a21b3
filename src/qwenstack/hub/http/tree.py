"""Trees on the wire: what lies in a folder, what is known of given paths, and the history."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from urllib.parse import urlencode

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub.errors import BadRequest, EntryNotFound, TooLarge
from qwenstack.hub.http.access import API_REPO, base_url, open_repo
from qwenstack.hub.http.bodies import JSON_BYTES_MAX, decode_json, flag, json_response, read_body
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.repo_info import security_level
from qwenstack.hub.hub import Hub
from qwenstack.hub.recorded import Scan, read_scans
from qwenstack.hub.registry.changes import last_changes
from qwenstack.hub.registry.commits import history
from qwenstack.hub.registry.git_objects import pointer_size, tree_oids
from qwenstack.hub.registry.manifests import (
    Entry,
    Manifest,
    entries_below,
    find_entry,
)
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import Commit, find_commit, read_commit, read_files
from qwenstack.storage.database import reading

# Some clients (llama.cpp) follow no `Link`, so a page holds what nearly every repo has.
_PAGE_MAX = 10_000
_EXPANDED_PAGE_MAX = 100
_PATHS_MAX = 1000
_COMMITS_PAGE = 50
# A revision is one segment, quoted, or a ref written out.
REVISION = "{rev:refs/(?:heads|tags|pr|convert)/[^/]+|[^/]+}"


class _Paths(msgspec.Struct):
    paths: list[str]
    expand: bool = False


class _Folder(msgspec.Struct, frozen=True):
    path: str


_Item = Entry | _Folder


class _Expansion(msgspec.Struct, frozen=True):
    """What `expand` adds, by path."""

    changes: dict[str, Commit]
    scans: dict[str, Scan]


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Trees(hub)
    return [
        web.get(API_REPO + f"/tree/{REVISION}", handlers.tree),
        web.get(API_REPO + f"/tree/{REVISION}/{{path:.*}}", handlers.tree),
        web.post(API_REPO + f"/paths-info/{REVISION}", handlers.paths_info),
        web.get(API_REPO + "/commits/{rev:.+}", handlers.commits),
    ]


class _Trees:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def tree(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        expand = flag(request, "expand")
        limit = _limit(request, _EXPANDED_PAGE_MAX if expand else _PAGE_MAX)
        folder = request.match_info.get("path", "").strip("/")
        recursive = flag(request, "recursive")
        after = _cursor_path(request.query.get("cursor"))
        items, more, oid = await asyncio.to_thread(
            self._page,
            repo,
            request.match_info["rev"],
            folder,
            recursive=recursive,
            after=after,
            limit=limit,
            expand=expand,
        )
        headers = {"X-Repo-Commit": oid}
        if more is not None:
            query = {**request.query, "cursor": _cursor(more), "limit": str(limit)}
            url = f"{base_url(self._hub, request)}{request.rel_url.raw_path}?{urlencode(query)}"
            headers["Link"] = f'<{url}>; rel="next"'
        return json_response(items, headers=headers)

    def _page(
        self,
        repo: Repo,
        revision: str,
        folder: str,
        *,
        recursive: bool,
        after: str,
        limit: int,
        expand: bool,
    ) -> tuple[list[dict[str, object]], str | None, str]:
        with reading(self._hub.database) as connection:
            commit, files = read_files(connection, repo.id, revision)
            items = list_folder(files, folder, recursive=recursive)
            if not items and folder:
                raise EntryNotFound(
                    f"There is no folder {shown(folder)} at this revision.",
                    headers={"X-Repo-Commit": commit.oid},
                )
            rest = [each for each in items if each.path > after] if after else items
            page = rest[:limit]
            expansion = _expansion(connection, commit, page) if expand else None
        more = page[-1].path if len(rest) > limit else None
        return _wire_items(page, files, expansion), more, commit.oid

    async def paths_info(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        wire = await _read_paths(request)
        if len(wire.paths) > _PATHS_MAX:
            raise TooLarge(f"At most {_PATHS_MAX} paths are looked up at once.")
        items = await asyncio.to_thread(self._paths, repo, request.match_info["rev"], wire)
        return json_response(items)

    def _paths(self, repo: Repo, revision: str, wire: _Paths) -> list[dict[str, object]]:
        with reading(self._hub.database) as connection:
            commit, files = read_files(connection, repo.id, revision)
            items: list[_Item] = []
            for path in dict.fromkeys(each.strip("/") for each in wire.paths):
                entry = find_entry(files, path)
                if entry is not None:
                    items.append(entry)
                elif path and entries_below(files, path):
                    items.append(_Folder(path))
            expansion = _expansion(connection, commit, items) if wire.expand else None
        return _wire_items(items, files, expansion)

    async def commits(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        text = request.query.get("p", "0")
        page = int(text) if text.isdecimal() and len(text) < 7 else 0
        limit = _limit(request, _COMMITS_PAGE)
        formatted = "formatted" in request.query.getall("expand[]", [])
        commits, total = await asyncio.to_thread(
            self._commits, repo, request.match_info["rev"], page * limit, limit
        )
        headers = {"X-Total-Count": str(total)}
        if (page + 1) * limit < total:
            query = [(key, value) for key, value in request.query.items() if key != "p"]
            query.append(("p", str(page + 1)))
            url = f"{base_url(self._hub, request)}{request.rel_url.raw_path}?{urlencode(query)}"
            headers["Link"] = f'<{url}>; rel="next"'
        return json_response([_wire_commit(each, formatted) for each in commits], headers=headers)

    def _commits(
        self, repo: Repo, revision: str, start: int, limit: int
    ) -> tuple[list[Commit], int]:
        with reading(self._hub.database) as connection:
            tip = find_commit(connection, repo.id, revision)
            oids = list(history(connection, repo.id, tip.oid))
            page = (read_commit(connection, repo.id, oid) for oid in oids[start : start + limit])
            return [each for each in page if each is not None], len(oids)


def list_folder(files: Manifest, folder: str, *, recursive: bool) -> list[_Item]:
    """Files and folders in `folder`, at any depth if `recursive`, by path."""
    below = entries_below(files, folder)
    start = len(folder) + 1 if folder else 0
    items: list[_Item] = []
    folders: dict[str, None] = {}
    for entry in below:
        end = entry.path.find("/", start)
        if end < 0 or recursive:
            items.append(entry)
        while end >= 0:
            folders[entry.path[:end]] = None
            end = entry.path.find("/", end + 1) if recursive else -1
    items += [_Folder(path) for path in folders]
    return sorted(items, key=lambda each: each.path)


def _expansion(connection: Connection, commit: Commit, items: Sequence[_Item]) -> _Expansion:
    changes = last_changes(connection, commit, [each.path for each in items])
    scans = read_scans(connection, tuple(each for each in items if isinstance(each, Entry)))
    return _Expansion(changes, scans)


def _wire_items(
    items: Sequence[_Item], files: Manifest, expansion: _Expansion | None
) -> list[dict[str, object]]:
    trees: dict[str, str] = {}
    if any(isinstance(each, _Folder) for each in items):
        trees = tree_oids(files)
    wire = []
    for each in items:
        item = _wire_file(each) if isinstance(each, Entry) else _wire_folder(each.path, trees)
        if expansion is not None:
            commit = expansion.changes[each.path]
            item["lastCommit"] = {
                "id": commit.oid,
                "title": commit.title,
                "date": wire_instant(commit.at_us),
            }
            if isinstance(each, Entry):
                item["securityFileStatus"] = {
                    "status": security_level(expansion.scans.get(each.path)),
                    "avScan": None,
                    "pickleImportScan": None,
                }
        wire.append(item)
    return wire


def _wire_file(entry: Entry) -> dict[str, object]:
    item: dict[str, object] = {
        "type": "file",
        "oid": entry.git_oid,
        "size": entry.size,
        "path": entry.path,
    }
    if entry.lfs:
        item["lfs"] = {
            "oid": entry.sha256,
            "size": entry.size,
            "pointerSize": pointer_size(entry.size),
        }
        item["xetHash"] = entry.xet_hash
    return item


def _wire_folder(path: str, trees: dict[str, str]) -> dict[str, object]:
    return {"type": "directory", "oid": trees[path], "size": 0, "path": path}


def _wire_commit(commit: Commit, formatted: bool) -> dict[str, object]:
    wire: dict[str, object] = {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author}],
        "date": wire_instant(commit.at_us),
    }
    if formatted:
        wire["formatted"] = {"title": _escaped(commit.title), "message": _escaped(commit.message)}
    return wire


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


async def _read_paths(request: web.Request) -> _Paths:
    if request.content_type == "application/json":
        body = await read_body(request, bytes_max=JSON_BYTES_MAX)
        return decode_json(body, _Paths)
    if request.content_type != "application/x-www-form-urlencoded":
        raise BadRequest("'paths' come in a form or in JSON.")
    form = await request.post()
    paths = [each for each in form.getall("paths", []) if isinstance(each, str)]
    return _Paths(paths, str(form.get("expand", "")).lower() in ("true", "1"))


def _limit(request: web.Request, most: int) -> int:
    text = request.query.get("limit", "")
    return max(1, min(int(text), most)) if text.isdecimal() and len(text) < 10 else most


def _cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode()


def _cursor_path(cursor: str | None) -> str:
    try:
        return base64.urlsafe_b64decode(cursor or "").decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise BadRequest("'cursor' is not one that this hub gave.") from error
