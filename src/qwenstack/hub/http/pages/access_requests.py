"""A gated repo's requests, for the people who decide."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub import gates
from qwenstack.hub.accounts.directory import Account
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.gates import OUTCOMES, AccessRequest, Outcome
from qwenstack.hub.http.access import repo_kind, repo_name
from qwenstack.hub.http.pages.shell import DATASET_PAGE, MODEL_PAGE, Shell, go_to, repo_path
from qwenstack.hub.registry.repos import Repo
from qwenstack.storage.database import reading

_PAGE = 100
Listed = list[tuple[AccessRequest, Account]]


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""

    def find(connection: Connection, who: Identity, request: web.Request) -> Repo:
        return shell.hub.authority.find(
            connection, who, repo_kind(request), repo_name(request), "admin"
        )

    async def show(request: web.Request) -> web.Response:
        viewer = await shell.viewer(request)
        after = request.query.get("after", "")[:96]
        asked = request.query.get("status", "pending")
        outcome = msgspec.convert(asked if asked in OUTCOMES else "pending", Outcome)

        def read() -> tuple[Repo, Listed]:
            with reading(shell.hub.database) as connection:
                repo = find(connection, viewer, request)
                return repo, gates.list_requests(
                    connection, repo, outcome, after=after, limit=_PAGE
                )

        repo, found = await asyncio.to_thread(read)
        return shell.show(
            request,
            viewer,
            "access.html",
            title=f"Requests for {repo.name}",
            repo=repo,
            path=repo_path(repo),
            outcome=outcome,
            found=found,
            more=found[-1][0].account if len(found) == _PAGE else None,
        )

    async def decide(request: web.Request) -> web.Response:
        actor = await shell.actor(request)
        fields = await request.post()
        outcome = msgspec.convert(request.match_info["outcome"], Outcome)
        reason = str(fields.get("reason", "")).strip() or None

        def write() -> Repo:
            with shell.hub.database.begin() as connection:
                repo = find(connection, actor, request)
                gates.decide(
                    connection,
                    repo,
                    str(fields.get("user", "")),
                    outcome,
                    by=str(actor.account),
                    reason=reason if outcome == "rejected" else None,
                )
                return repo

        return go_to(repo_path(await asyncio.to_thread(write)) + "/access")

    found = []
    for page in (DATASET_PAGE, MODEL_PAGE):
        found += [
            web.get(page + "/access", shell.page(show)),
            web.post(page + "/access/{outcome:accepted|rejected|pending}", shell.page(decide)),
        ]
    return found
