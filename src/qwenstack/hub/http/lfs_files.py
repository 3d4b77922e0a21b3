"""The large files of a repo on the wire: a list over its whole history, and removing some."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest, Conflict, TooLarge
from qwenstack.hub.http.access import API_REPO, open_repo
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.paging import cursor_of, limit_of, next_link
from qwenstack.hub.hub import Hub
from qwenstack.hub.origins import newest_origin
from qwenstack.hub.registry.refs import Ref
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import HEADS
from qwenstack.hub.registry.rewriting import LargeFile, large_files, remove_contents
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import reading

_PAGE_MAX = 1000
_AUDITED_MAX = 100


class Deletions(msgspec.Struct, rename="camel"):
    """Which contents go, by SHA-256."""

    sha: list[str] = []
    rewrite_history: bool = True


class LfsBatch(msgspec.Struct):
    """What `permanently_delete_lfs_files` sends."""

    deletions: Deletions


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _LfsFiles(hub)
    return [
        web.get(API_REPO + "/lfs-files", handlers.show),
        web.post(API_REPO + "/lfs-files/batch", handlers.batch),
    ]


class _LfsFiles:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def show(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "write")
        limit = limit_of(request, default=_PAGE_MAX, most=_PAGE_MAX)
        after = cursor_of(request, tuple[int, str])

        def read() -> list[LargeFile]:
            with reading(self._hub.database) as connection:
                found = large_files(connection, repo.id)
            if after is not None:
                found = [each for each in found if (-each.pushed_us, each.sha256) > after]
            return found[: limit + 1]

        found = await asyncio.to_thread(read)
        headers = None
        if len(found) > limit:
            last = found[limit - 1]
            headers = next_link(self._hub, request, (-last.pushed_us, last.sha256))
        return json_response([_wire(each) for each in found[:limit]], headers=headers)

    async def batch(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "admin")
        wire = (await read_json(request, LfsBatch)).deletions
        if len(wire.sha) > _PAGE_MAX:
            raise TooLarge(f"At most {_PAGE_MAX} files are removed at once.")
        if not wire.rewrite_history:
            raise BadRequest(
                "This hub keeps no commit whose files are gone: leave rewrite_history on."
            )
        moved = await asyncio.to_thread(self._remove, repo, identity, wire.sha)
        for ref in moved:
            if ref.name.startswith(HEADS):
                await announce(self._hub, repo, ref.name, ref.commit_oid)
        return json_response({"success": True})

    def _remove(self, repo: Repo, identity: Identity, sha256s: list[str]) -> list[Ref]:
        with self._hub.database.begin() as connection:
            if newest_origin(connection, repo.id) is not None:
                raise Conflict(
                    f"{repo.name} is a copy of another hub's repo; its commits keep the ids that "
                    "they have there. Delete the repo instead."
                )
            account = identity.account or ""
            moved = remove_contents(connection, repo.id, sha256s, account=account, at_us=now_us())
            detail = {
                "kind": repo.kind,
                "files": len(sha256s),
                "sha256": sha256s[:_AUDITED_MAX],
                "refs": {ref.name: ref.commit_oid for ref in moved[:_AUDITED_MAX]},
            }
            record(connection, identity.name, "hub.repo.remove_files", repo.name, detail)
        return moved


def _wire(file: LargeFile) -> dict[str, object]:
    return {
        "fileOid": file.sha256,
        "oid": file.sha256,
        "filename": file.path,
        "size": file.size,
        "ref": file.ref,
        "pushedAt": wire_instant(file.pushed_us),
    }
