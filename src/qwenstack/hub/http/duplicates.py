"""A repo of one's own with the files that another one has on its main branch."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec
from aiohttp import web

from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest, Conflict
from qwenstack.hub.http.access import API_REPO, base_url, open_repo
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_repos, within_quota
from qwenstack.hub.registry.commits import Message, start
from qwenstack.hub.registry.repos import Repo, change_settings, check_repo_name, create_repo
from qwenstack.hub.registry.revisions import HEADS, MAIN, read_files
from qwenstack.storage.database import reading


class Wish(msgspec.Struct):
    """What `duplicate_repo` sends; what it sends of spaces is not read."""

    repository: str
    visibility: Literal["public", "private", "protected"] | None = None


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def duplicate(request: web.Request) -> web.Response:
        repo, identity = await open_repo(hub, request, "read")
        wish = await read_json(request, Wish)
        if wish.visibility == "protected":
            raise BadRequest("'visibility' is 'public' or 'private'; only spaces are 'protected'.")
        private = repo.private if wish.visibility is None else wish.visibility == "private"
        prefix = "/datasets" if repo.kind == "dataset" else ""
        url = f"{base_url(hub, request)}{prefix}/"
        try:
            made, oid = await asyncio.to_thread(
                _duplicate, hub, repo, identity, wish.repository, private
            )
        except Conflict as error:
            error.fields["url"] = url + wish.repository
            raise
        await announce(hub, made, HEADS + MAIN, oid)
        return json_response({"url": url + made.name, "filesCopyPending": False})

    return [web.post(API_REPO + "/duplicate", duplicate)]


def _duplicate(
    hub: Hub, repo: Repo, identity: Identity, name: str, private: bool
) -> tuple[Repo, str]:
    """The new repo and its one commit. It is gated as the other one is: its terms hold on."""
    check_repo_name(name)
    namespace, _, short = name.partition("/")
    namespace = hub.authority.check_namespace(identity, namespace, repo.kind)
    with reading(hub.database) as connection:
        commit, files = read_files(connection, repo.id, MAIN)
    if hub.store.hold(each.sha256 for each in files) != {each.sha256 for each in files}:
        raise Conflict(f"Files of {repo.name} are gone; try again.")
    at_us = now_us()
    message = Message(f"Duplicate of {repo.name}", f"At {commit.oid}.", identity.name)
    with hub.database.begin() as connection:
        check_repos(connection, namespace)
        made = create_repo(
            connection,
            repo.kind,
            f"{namespace}/{short}",
            private=private,
            created_by=identity.name,
            at_us=at_us,
        )
        if repo.gated:
            change_settings(connection, made, private=None, gated=repo.gated)
        with within_quota(connection, namespace):
            first = start(connection, made.id, HEADS + MAIN, files, message, at_us=at_us)
    return made, first.oid
