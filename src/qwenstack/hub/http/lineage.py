"""A model's lineage on the wire: what the weights say, and the line that cards and weights draw.

    GET /api/models/{namespace}/{name}/lineage

It reads what `qwenstack lineage index` found; nothing is computed here. What a caller may not know
of is left out: where the parent is such a repo, the lineage is null, as if nobody had computed it.
"""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.family import Parent, member_of, shown_to
from qwenstack.hub.http.access import MODEL_FILES, open_repo
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.hub import Hub
from qwenstack.hub.recorded import read_kin
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.summaries import Lineage, noted_lineage
from qwenstack.storage.database import reading


class RepoLineage(msgspec.Struct, frozen=True, kw_only=True):
    """`lineage` is what the weights say of the newest release, null where it was not computed.

    `ancestors` are the line upwards, nearest first, each by its weights or else by the card;
    `derivatives` are the models that name this one.
    """

    id: str
    lineage: Lineage | None
    ancestors: tuple[Parent, ...]
    derivatives: tuple[str, ...]


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    async def show(request: web.Request) -> web.Response:
        repo, identity = await open_repo(hub, request, "see")

        def read() -> RepoLineage:
            with reading(hub.database) as connection:
                return repo_lineage(connection, identity, repo)

        return json_response(await asyncio.to_thread(read))

    return [web.get(f"/api/models{MODEL_FILES}/lineage", show)]


def repo_lineage(connection: Connection, viewer: Identity, repo: Repo) -> RepoLineage:
    """The lineage of a repo as this viewer may know it."""
    kin = read_kin(connection, viewer, repo)
    return RepoLineage(
        id=repo.name,
        lineage=shown_lineage(connection, viewer, repo),
        ancestors=kin.ancestors,
        derivatives=tuple(child.name for child in kin.children),
    )


def shown_lineage(connection: Connection, viewer: Identity, repo: Repo) -> Lineage | None:
    """What the weights say; None where nobody computed it, or the parent is hidden from them."""
    noted = noted_lineage(repo.summary)
    if noted is None or noted.parent is None:
        return noted
    member = shown_to(connection, viewer, [member_of(repo)])[0]
    named = {parent.name for parent in member.parents if parent.source == "weights"}
    return noted if noted.parent in named else None
