"""Repos on the wire: make, delete, move, change settings, and what is known of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

import msgspec
from aiohttp import web

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import HIDDEN
from qwenstack.hub.errors import BadRequest, Conflict, RepoNotFound
from qwenstack.hub.http.access import API_REPO, base_url, identify, open_repo
from qwenstack.hub.http.bodies import flag, json_response, read_json
from qwenstack.hub.http.repo_info import repo_info
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_repos, within_quota
from qwenstack.hub.registry.attributes import DEFAULT_ATTRIBUTES
from qwenstack.hub.registry.commits import Message, start
from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.repos import (
    Gating,
    Kind,
    Repo,
    change_settings,
    check_repo_name,
    create_repo,
    delete_repo,
    find_repo,
    move_repo,
    repo_key,
)
from qwenstack.hub.registry.revisions import HEADS, MAIN, read_files
from qwenstack.hub.registry.waiting import give_up
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import reading

RepoType = Literal["model", "dataset", "space", "kernel"]


class NewRepo(msgspec.Struct):
    """What `create_repo` sends; what it sends of spaces is not read."""

    name: str
    organization: str | None = None
    type: RepoType | None = None
    visibility: Literal["public", "private", "protected"] | None = None
    private: bool | None = None


class DoomedRepo(msgspec.Struct):
    """What `delete_repo` sends."""

    name: str
    organization: str | None = None
    type: RepoType | None = None


class Move(msgspec.Struct, rename="camel"):
    """What `move_repo` sends."""

    from_repo: str
    to_repo: str
    type: RepoType | None = None


class Settings(msgspec.Struct):
    """What `update_repo_settings` sends. `gated` False opens the repo."""

    gated: Literal["auto", "manual"] | bool | None = None
    visibility: Literal["public", "private", "protected"] | None = None
    private: bool | None = None


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Repos(hub)
    return [
        web.post("/api/repos/create", handlers.create),
        web.delete("/api/repos/delete", handlers.delete),
        web.post("/api/repos/move", handlers.move),
        web.put(API_REPO + "/settings", handlers.settings),
        web.get(API_REPO + "/auth-check", handlers.may_read),
        web.get(API_REPO + "/auth-check/write", handlers.may_write),
        web.get(API_REPO, handlers.info),
        web.get(API_REPO + "/revision/{rev:.+}", handlers.info),
    ]


class _Repos:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def create(self, request: web.Request) -> web.Response:
        identity = await identify(self._hub, request)
        wire = await read_json(request, NewRepo)
        kind = _kind(wire.type)
        private = wire.private if wire.visibility is None else wire.visibility == "private"
        repo = await asyncio.to_thread(
            self._create, identity, kind, wire.name, wire.organization, bool(private), request
        )
        return json_response(
            {"url": self._url(request, kind, repo.name), "name": repo.name, "id": repo.id}
        )

    def _create(
        self,
        identity: Identity,
        kind: Kind,
        name: str,
        organisation: str | None,
        private: bool,
        request: web.Request,
    ) -> Repo:
        hub = self._hub
        namespace = hub.authority.check_namespace(identity, organisation, kind)
        full = check_repo_name(f"{namespace}/{name}")
        first = hub.store.put([DEFAULT_ATTRIBUTES])
        entry = Entry(
            ".gitattributes", first.size, first.sha256, first.git_oid, False, first.xet_hash
        )
        at_us = now_us()
        try:
            with hub.database.begin() as connection:
                check_repos(connection, namespace)
                repo = create_repo(
                    connection, kind, full, private=private, created_by=identity.name, at_us=at_us
                )
                start(
                    connection,
                    repo.id,
                    HEADS + MAIN,
                    (entry,),
                    Message("initial commit", "", identity.name),
                    at_us=at_us,
                )
        except Conflict as error:
            # The client reads the address of the repo that is there from this answer.
            error.fields["url"] = self._url(request, kind, full)
            raise
        return repo

    async def delete(self, request: web.Request) -> web.Response:
        wire = await read_json(request, DoomedRepo)
        identity = await identify(self._hub, request)
        namespace = wire.organization or identity.name
        await asyncio.to_thread(
            self._delete, identity, _kind(wire.type), f"{namespace}/{wire.name}"
        )
        return json_response({"ok": True})

    def _delete(self, identity: Identity, kind: Kind, name: str) -> None:
        with self._hub.database.begin() as connection:
            repo = _find(find_repo(connection, kind, name), kind, name)
        self._hub.authority.check(identity, repo, "admin")
        if repo_key(kind, name) != repo_key(kind, repo.name):
            # Whoever deletes an old name may not know that another repo would go.
            raise RepoNotFound(f"{name} has moved: delete it as {repo.name}.")
        with self._hub.database.begin() as connection:
            give_up(connection, repo.id, identity.account or "")
            delete_repo(connection, repo)
            record(connection, identity.name, "hub.repo.delete", repo.name, {"kind": repo.kind})

    async def move(self, request: web.Request) -> web.Response:
        wire = await read_json(request, Move)
        identity = await identify(self._hub, request)
        kind = _kind(wire.type)
        await asyncio.to_thread(self._move, identity, kind, wire.from_repo, wire.to_repo)
        return json_response({"url": self._url(request, kind, wire.to_repo)})

    def _move(self, identity: Identity, kind: Kind, old: str, new: str) -> None:
        hub = self._hub
        check_repo_name(new)
        with reading(hub.database) as connection:
            repo = _find(find_repo(connection, kind, old), kind, old)
        hub.authority.check(identity, repo, "admin")
        namespace, _, short = new.partition("/")
        if namespace.lower() != repo.namespace.lower():
            namespace = hub.authority.check_namespace(identity, namespace, kind)
        with hub.database.begin() as connection, ExitStack() as quota:
            if namespace.lower() != repo.namespace.lower():
                check_repos(connection, namespace)
                quota.enter_context(within_quota(connection, namespace))
            move_repo(connection, repo, f"{namespace}/{short}")
            detail = {"kind": repo.kind, "to": f"{namespace}/{short}"}
            record(connection, identity.name, "hub.repo.move", repo.name, detail)

    async def settings(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "admin")
        wire = await read_json(request, Settings)
        if wire.gated is True:
            raise BadRequest("'gated' is 'auto', 'manual' or false.")
        if wire.visibility == "protected":
            raise BadRequest("'visibility' is 'public' or 'private'; only spaces are 'protected'.")
        private = wire.private if wire.visibility is None else wire.visibility == "private"
        gated: Gating | None = "" if wire.gated is False else wire.gated
        await asyncio.to_thread(self._settings, identity, repo, private, gated)
        return json_response({"private": private, "gated": wire.gated})

    def _settings(
        self, identity: Identity, repo: Repo, private: bool | None, gated: Gating | None
    ) -> None:
        with self._hub.database.begin() as connection:
            change_settings(connection, repo, private=private, gated=gated)
            detail = {"kind": repo.kind, "private": private, "gated": gated}
            record(connection, identity.name, "hub.repo.settings", repo.name, detail)

    async def info(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "see")
        revision = request.match_info.get("rev", MAIN)
        expand = _expand(request)
        answer = await asyncio.to_thread(
            self._info,
            repo,
            revision,
            blobs=flag(request, "blobs"),
            security=flag(request, "securityStatus"),
            expand=expand,
        )
        return json_response(answer)

    def _info(
        self, repo: Repo, revision: str, *, blobs: bool, security: bool, expand: Sequence[str]
    ) -> dict[str, object]:
        with reading(self._hub.database) as connection:
            commit, files = read_files(connection, repo.id, revision)
        return repo_info(
            self._hub, repo, commit, files, blobs=blobs, security=security, expand=expand
        )

    async def may_read(self, request: web.Request) -> web.Response:
        await open_repo(self._hub, request, "read")
        return json_response({"ok": True})

    async def may_write(self, request: web.Request) -> web.Response:
        await open_repo(self._hub, request, "write")
        return json_response({"ok": True})

    def _url(self, request: web.Request, kind: Kind, name: str) -> str:
        prefix = "/datasets" if kind == "dataset" else ""
        return f"{base_url(self._hub, request)}{prefix}/{name}"


def _kind(wire: RepoType | None) -> Kind:
    if wire in (None, "model"):
        return "model"
    if wire == "dataset":
        return "dataset"
    raise BadRequest(f"This hub keeps models and datasets, no {wire}s.")


def _find(repo: Repo | None, kind: Kind, name: str) -> Repo:
    if repo is None:
        raise RepoNotFound(HIDDEN)
    return repo


def _expand(request: web.Request) -> list[str]:
    values = [*request.query.getall("expand", []), *request.query.getall("expand[]", [])]
    return [part for value in values for part in value.split(",") if part][:64]
