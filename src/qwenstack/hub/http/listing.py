"""`GET /api/models` and `/api/datasets`: search, filters, order, fields and pages."""

from __future__ import annotations

import asyncio
from typing import get_args

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.hub import downloads, listing
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest, RevisionNotFound, Unauthorized
from qwenstack.hub.http.access import identify
from qwenstack.hub.http.bodies import flag, json_response
from qwenstack.hub.http.paging import cursor_of, limit_of, next_link
from qwenstack.hub.http.repo_info import listed_info
from qwenstack.hub.hub import Hub
from qwenstack.hub.listing import Listed, Place, Question, Sort
from qwenstack.hub.registry.repos import Kind, Repo
from qwenstack.hub.registry.revisions import HEADS, MAIN, read_files
from qwenstack.storage.database import reading

_PAGE_OF_FILES = 100

# What a list shows of a repo without being asked for more, and with `full`.
_SHOWN = frozenset(
    {"_id", "id", "modelId", "private", "gated", "likes", "downloads", "tags", "pipeline_tag"}
    | {"library_name", "createdAt", "lastModified", "trendingScore", "author", "disabled"}
)
_FULL = _SHOWN | {"sha", "siblings", "description", "downloadsAllTime"}
_ALWAYS = frozenset({"_id", "id"})
_OF_FILES = frozenset({"sha", "siblings", "usedStorage"})


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""

    def handler(kind: Kind) -> web.RouteDef:
        async def answer(request: web.Request) -> web.Response:
            return await _list(hub, request, kind)

        return web.get(f"/api/{kind}s", answer)

    return [handler("model"), handler("dataset")]


async def _list(hub: Hub, request: web.Request, kind: Kind) -> web.Response:
    identity: Identity = await identify(hub, request)
    if identity.account is None and not identity.guest_sees_public:
        raise Unauthorized("This hub lists nothing without a token; make one and set HF_TOKEN.")
    question, fields = read_question(request, kind), _fields(request)
    with_files = bool(fields & _OF_FILES)
    most = _PAGE_OF_FILES if with_files else listing.PAGE_MAX
    limit = limit_of(request, default=most, most=most)
    after = cursor_of(request, Place)

    def read() -> tuple[Listed, list[dict[str, object]]]:
        with reading(hub.database) as connection:
            page = listing.list_repos(connection, identity, question, limit=limit, after=after)
            return page, _infos(connection, page.repos, fields, with_files=with_files)

    page, infos = await asyncio.to_thread(read)
    headers = None if page.next is None else next_link(hub, request, page.next)
    return json_response(infos, headers=headers)


def read_question(request: web.Request, kind: Kind) -> Question:
    """What the query asks for; raises BadRequest for a value that no list has."""
    query = request.query
    low = high = None
    if query.get("num_parameters"):
        low, high = listing.parse_parameters(query["num_parameters"])
    sort = query.get("sort", "lastModified")
    sort = {"last_modified": "lastModified", "created_at": "createdAt"}.get(sort, sort)
    if sort not in get_args(Sort):
        raise BadRequest(f"sort {sort[:40]!r} must be one of {', '.join(get_args(Sort))}")
    direction = query.get("direction", "-1")
    if direction not in ("-1", "1"):
        raise BadRequest(f"direction {direction[:20]!r} must be -1 (falling) or 1 (rising)")
    gated = query.get("gated")
    return Question(
        kind=kind,
        search=_values(request, "search"),
        author=query.get("author") or None,
        filters=(*_values(request, "filter"), *_values(request, "tags")),
        pipeline_tag=query.get("pipeline_tag") or None,
        library=_values(request, "library"),
        language=_values(request, "language"),
        apps=_values(request, "apps"),
        gated=None if gated is None else flag(request, "gated"),
        parameters_min=low,
        parameters_max=high,
        served="inference_provider" in query or "inference" in query,
        sort=msgspec.convert(sort, Sort),
        ascending=direction == "1",
    )


def _values(request: web.Request, name: str) -> tuple[str, ...]:
    """A parameter that may be repeated, or listed with commas; `search` keeps its commas."""
    given = request.query.getall(name, [])
    parts = given if name == "search" else [part for each in given for part in each.split(",")]
    values = tuple(each.strip() for each in parts if each.strip())
    if len(values) > listing.FILTERS_MAX:
        raise BadRequest(f"{name} takes at most {listing.FILTERS_MAX} values")
    for each in values:
        if len(each) > listing.TERM_CHARACTERS_MAX:
            raise BadRequest(f"{name} takes at most {listing.TERM_CHARACTERS_MAX} characters")
    return values


def _fields(request: web.Request) -> frozenset[str]:
    given = [*request.query.getall("expand", []), *request.query.getall("expand[]", [])]
    expand = [part for each in given for part in each.split(",") if part]
    if expand:
        return _ALWAYS | set(expand[:64])
    fields = _FULL if flag(request, "full") else _SHOWN
    if flag(request, "cardData") or flag(request, "full"):
        fields |= {"cardData"}
    if flag(request, "config"):
        fields |= {"config"}
    return fields


def _infos(
    connection: Connection, page: tuple[Repo, ...], fields: frozenset[str], *, with_files: bool
) -> list[dict[str, object]]:
    ids = [repo.id for repo in page]
    scores = listing.trending(connection, ids) if "trendingScore" in fields else {}
    totals = downloads.all_time(connection, ids) if "downloadsAllTime" in fields else {}
    infos = []
    for repo in page:
        summary = msgspec.json.decode(repo.summary, type=dict[str, object])
        # The lineage can name what this caller may not know of; pages show what is left of it.
        summary.pop("lineage", None)
        # What the hub itself knows wins over what a summary says.
        info = summary | listed_info(repo) | {"tags": summary.get("tags", [])}
        info["trendingScore"] = scores.get(repo.id, 0)
        info["downloadsAllTime"] = totals.get(repo.id, repo.downloads)
        if with_files:
            info |= _files(connection, repo)
        infos.append({name: value for name, value in info.items() if name in fields})
    return infos


def _files(connection: Connection, repo: Repo) -> dict[str, object]:
    try:
        commit, files = read_files(connection, repo.id, HEADS + MAIN)
    except RevisionNotFound:
        return {}
    return {
        "sha": commit.oid,
        "siblings": [{"rfilename": entry.path} for entry in files],
        "usedStorage": sum({entry.sha256: entry.size for entry in files}.values()),
    }
