"""Refs on the wire: list, make and delete branches and tags."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest
from qwenstack.hub.http.access import API_REPO, open_repo
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.bodies import flag, json_response, read_json
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import within_quota
from qwenstack.hub.registry.commits import Message, check_message, squash, start
from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.hub.registry.possession import publish
from qwenstack.hub.registry.refs import (
    Ref,
    check_ref_name,
    create_ref,
    delete_ref,
    find_ref,
    list_refs,
    move_ref,
    short_name,
)
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import HEADS, MAIN, PULLS, TAGS, Commit, find_commit
from qwenstack.storage.database import reading

_TAG_MESSAGE_CHARS_MAX = 10_000


class NewBranch(msgspec.Struct, rename="camel"):
    """What `create_branch` sends."""

    starting_point: str | None = None
    empty_branch: bool = False
    overwrite: bool = False


class NewTag(msgspec.Struct):
    """What `create_tag` sends."""

    tag: str
    message: str | None = None


class Squash(msgspec.Struct):
    """What `super_squash_history` sends."""

    message: str = "Super-squash branch"


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Refs(hub)
    return [
        web.get(API_REPO + "/refs", handlers.show),
        web.post(API_REPO + "/branch/{ref:.+}", handlers.create_branch),
        web.delete(API_REPO + "/branch/{ref:.+}", handlers.delete_branch),
        web.post(API_REPO + "/tag/{ref:.+}", handlers.create_tag),
        web.delete(API_REPO + "/tag/{ref:.+}", handlers.delete_tag),
        web.post(API_REPO + "/super-squash/{ref:.+}", handlers.squash),
    ]


class _Refs:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def show(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        refs = await asyncio.to_thread(self._refs, repo)
        answer: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
        if flag(request, "include_prs"):
            answer["pullRequests"] = []
        for ref in refs:
            group = next((key for prefix, key in _GROUPS if ref.name.startswith(prefix)), None)
            if group in answer:
                answer[group].append(_wire(ref))
        # Main comes first, as everywhere.
        answer["branches"].sort(key=lambda each: (each["name"] != MAIN, each["name"]))
        return json_response(answer)

    def _refs(self, repo: Repo) -> list[Ref]:
        with reading(self._hub.database) as connection:
            return list_refs(connection, repo.id)

    async def create_branch(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "write")
        wire = await read_json(request, NewBranch)
        name = check_ref_name(request.match_info["ref"])
        moved = await asyncio.to_thread(self._create_branch, repo, identity, name, wire)
        if moved is not None:
            await announce(self._hub, repo, HEADS + name, moved)
        return json_response({"ok": True})

    def _create_branch(
        self, repo: Repo, identity: Identity, name: str, wire: NewBranch
    ) -> str | None:
        """Where a branch that was there is now; None for a new one."""
        at_us = now_us()
        with self._hub.database.begin() as connection:
            if wire.empty_branch:
                message = Message("initial commit", "", identity.name)
                start(connection, repo.id, HEADS + name, (), message, at_us=at_us)
                return None
            commit = find_commit(connection, repo.id, wire.starting_point or MAIN)
            _publish(connection, repo, commit)
            there = find_ref(connection, repo.id, HEADS + name, locked=True)
            if there is not None and wire.overwrite:
                move_ref(connection, repo.id, HEADS + name, commit.oid, at_us=at_us)
                return commit.oid
            create_ref(connection, repo.id, HEADS + name, commit.oid, at_us=at_us)
            return None

    async def delete_branch(self, request: web.Request) -> web.Response:
        return await self._delete(request, HEADS)

    async def delete_tag(self, request: web.Request) -> web.Response:
        return await self._delete(request, TAGS)

    async def _delete(self, request: web.Request, prefix: str) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "write")
        name = prefix + request.match_info["ref"]

        def delete() -> None:
            with self._hub.database.begin() as connection:
                delete_ref(connection, repo.id, name)

        await asyncio.to_thread(delete)
        return json_response({"ok": True})

    async def create_tag(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "write")
        wire = await read_json(request, NewTag)
        if wire.message is not None and len(wire.message) > _TAG_MESSAGE_CHARS_MAX:
            raise BadRequest(f"A tag's message has at most {_TAG_MESSAGE_CHARS_MAX} characters.")

        def create() -> None:
            with self._hub.database.begin() as connection:
                commit = find_commit(connection, repo.id, request.match_info["ref"])
                _publish(connection, repo, commit)
                create_ref(
                    connection,
                    repo.id,
                    TAGS + check_ref_name(wire.tag),
                    commit.oid,
                    at_us=now_us(),
                    message=wire.message,
                )

        await asyncio.to_thread(create)
        return json_response({"ok": True})

    async def squash(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "write")
        wire = await read_json(request, Squash)
        check_message(wire.message, "")
        message = Message(wire.message, "", identity.name)

        def squashed() -> str:
            with self._hub.database.begin() as connection:
                ref = request.match_info["ref"]
                ref = ref if ref.startswith("refs/") else HEADS + ref
                return squash(connection, repo.id, ref, message, at_us=now_us()).oid

        oid = await asyncio.to_thread(squashed)
        return json_response({"commitOid": oid})


_GROUPS = (
    (HEADS, "branches"),
    (TAGS, "tags"),
    (PULLS, "pullRequests"),
    ("refs/convert/", "converts"),
)


def _publish(connection: Connection, repo: Repo, commit: Commit) -> None:
    """A branch or tag will have this commit: one of a pull request counts from now on."""
    files = read_manifest(connection, commit.manifest)
    with within_quota(connection, repo.namespace):
        publish(connection, repo.id, sorted({entry.sha256 for entry in files}))


def _wire(ref: Ref) -> dict[str, str]:
    return {"name": short_name(ref.name), "ref": ref.name, "targetCommit": ref.commit_oid}
