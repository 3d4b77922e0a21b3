"""The front page: search and filters over models or datasets."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import get_args

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub import listing
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.family import Member, member_of, shown_to
from qwenstack.hub.http.pages.shell import Shell
from qwenstack.hub.http.paging import cursor_of, cursor_text
from qwenstack.hub.listing import Place, Question, Sort
from qwenstack.hub.registry.repos import Kind, Repo
from qwenstack.storage.database import reading

_PAGE = 30
_SAMPLE = 1000
_CHOICES_MAX = 40
_SORTS = {
    "lastModified": "recently updated",
    "downloads": "most downloaded",
    "likes": "most liked",
    "createdAt": "newest",
    "trendingScore": "trending",
}
_SIZES = {
    "": "any size",
    "max:1B": "under 1B",
    "min:1B,max:4B": "1B to 4B",
    "min:4B,max:15B": "4B to 15B",
    "min:15B,max:80B": "15B to 80B",
    "min:80B": "over 80B",
}


class Tile(msgspec.Struct, frozen=True):
    """A repo in a list, with what its summary says."""

    repo: Repo
    member: Member


class Choices(msgspec.Struct, frozen=True):
    """What the filters can be set to: what occurs on this hub, the most frequent first."""

    tasks: list[str]
    licences: list[str]
    libraries: list[str]


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""

    def page(kind: Kind) -> web.RouteDef:
        async def show(request: web.Request) -> web.Response:
            return await _front(shell, request, kind)

        return web.get(f"/{kind}s", shell.page(show))

    async def front(request: web.Request) -> web.Response:
        return await _front(shell, request, "model")

    return [web.get("/", shell.page(front)), page("model"), page("dataset")]


async def _front(shell: Shell, request: web.Request, kind: Kind) -> web.Response:
    viewer = await shell.viewer(request)
    query = request.query
    asked = {
        name: query.get(name, "")[: listing.TERM_CHARACTERS_MAX]
        for name in ("search", "task", "licence", "library", "size", "sort")
    }
    asked["sort"] = asked["sort"] if asked["sort"] in get_args(Sort) else "lastModified"
    after = cursor_of(request, Place)
    closed = viewer.account is None and not viewer.guest_sees_public

    def read() -> tuple[list[Tile], Place | None, Choices]:
        if closed:
            return [], None, Choices([], [], [])
        with reading(shell.hub.database) as connection:
            found = listing.list_repos(
                connection, viewer, _question(kind, asked), limit=_PAGE, after=after
            )
            return (
                tiles_of(connection, viewer, found.repos),
                found.next,
                _choices(connection, viewer, kind),
            )

    tiles, place, choices = await asyncio.to_thread(read)
    return shell.show(
        request,
        viewer,
        "front.html",
        title="Models" if kind == "model" else "Datasets",
        kind=kind,
        asked=asked,
        tiles=tiles,
        next=None if place is None else cursor_text(place),
        continued=after is not None,
        choices=choices,
        sorts=_SORTS,
        sizes=_SIZES,
        closed=closed,
        filtered=any(asked[name] for name in ("search", "task", "licence", "library", "size")),
    )


def tiles_of(connection: Connection, viewer: Identity, found: tuple[Repo, ...]) -> list[Tile]:
    """The repos of a list as this viewer may know them."""
    members = shown_to(connection, viewer, [member_of(repo) for repo in found])
    return [Tile(repo, member) for repo, member in zip(found, members, strict=True)]


def _question(kind: Kind, asked: dict[str, str]) -> Question:
    low, high = listing.parse_parameters(asked["size"]) if asked["size"] else (None, None)
    return Question(
        kind=kind,
        search=tuple(asked["search"].split()[: listing.FILTERS_MAX]),
        filters=(f"license:{asked['licence']}",) if asked["licence"] else (),
        pipeline_tag=asked["task"] or None,
        library=(asked["library"],) if asked["library"] else (),
        parameters_min=low,
        parameters_max=high,
        sort=msgspec.convert(asked["sort"], Sort),
    )


def _choices(connection: Connection, viewer: Identity, kind: Kind) -> Choices:
    tasks: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    libraries: Counter[str] = Counter()
    sample = listing.list_repos(connection, viewer, Question(kind=kind), limit=_SAMPLE)
    for repo in sample.repos:
        summary = listing.read_summary(repo.summary)
        tasks.update([summary.pipeline_tag] if summary.pipeline_tag else [])
        libraries.update([summary.library_name] if summary.library_name else [])
        licences.update(
            tag.removeprefix("license:") for tag in summary.tags if tag.startswith("license:")
        )
    return Choices(*(_common(each) for each in (tasks, licences, libraries)))


def _common(counted: Counter[str]) -> list[str]:
    return [name for name, _ in counted.most_common(_CHOICES_MAX)]
