"""A release's page: what it is, what was found out, where it comes from, and how to run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import web
from markupsafe import Markup
from sqlalchemy import Connection

from qwenstack.hub import discussions, downloads, gates, likes, recorded
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.discussions import Page
from qwenstack.hub.errors import RevisionNotFound
from qwenstack.hub.family import Member, member_of, shown_to
from qwenstack.hub.gates import AccessRequest
from qwenstack.hub.http.access import base_url, repo_kind, repo_name
from qwenstack.hub.http.gated import asker
from qwenstack.hub.http.likes import liker
from qwenstack.hub.http.lineage import shown_lineage
from qwenstack.hub.http.markdown import render
from qwenstack.hub.http.pages.charts import bars
from qwenstack.hub.http.pages.run_it import Recipe, recipes
from qwenstack.hub.http.pages.shell import DATASET_PAGE, MODEL_PAGE, Shell, go_to, repo_path
from qwenstack.hub.hub import Hub
from qwenstack.hub.licence_history import LicenceChange
from qwenstack.hub.recorded import FactSheet, Kin, Origin, Scan
from qwenstack.hub.registry.manifests import Manifest, find_entry, release_digest
from qwenstack.hub.registry.refs import list_refs, short_name
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import HEADS, MAIN, TAGS, Commit, read_files
from qwenstack.hub.summaries import Lineage, ReadEntry, read_card, reader
from qwenstack.storage.database import reading

_FILES_SHOWN_MAX = 500
_REFS_SHOWN_MAX = 50
_DAYS = 30


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows of a release."""

    repo: Repo
    revision: str
    commit: Commit
    files: Manifest
    digest: str
    card: Markup | None
    member: Member
    facts: FactSheet | None
    scans: dict[str, Scan]
    fingerprinted_us: int | None
    kin: Kin
    lineage: Lineage | None
    licences: list[LicenceChange]
    days: list[tuple[str, int]]
    all_time: int
    talk: Page
    revisions: list[str]
    origin: Origin | None
    recipes: list[Recipe]
    liked: bool
    request: AccessRequest | None
    readable: bool
    ruled: bool
    signed: bool


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Releases(shell)
    found = []
    for page in (DATASET_PAGE, MODEL_PAGE):
        found += [
            web.get(page, shell.page(handlers.show)),
            web.get(page + "/tree/{rev:.+}", shell.page(handlers.show)),
            web.post(page + "/ask-access", shell.page(handlers.ask)),
            web.post(page + "/like", shell.page(handlers.like)),
        ]
    return found


Who = Callable[[Identity], str]


class _Releases:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def show(self, request: web.Request) -> web.Response:
        hub = self._shell.hub
        viewer = await self._shell.viewer(request)
        revision = request.match_info.get("rev", MAIN)
        endpoint = base_url(hub, request)

        def read() -> Release | Repo:
            with reading(hub.database) as connection:
                repo = hub.authority.find(
                    connection, viewer, repo_kind(request), repo_name(request), "see"
                )
                try:
                    return read_release(hub, connection, viewer, repo, revision, endpoint)
                except RevisionNotFound:
                    if revision != MAIN:
                        raise
                    return repo

        release = await asyncio.to_thread(read)
        if isinstance(release, Repo):
            return self._shell.show(request, viewer, "empty.html", title=release.name, repo=release)
        return self._shell.show(
            request,
            viewer,
            "release.html",
            title=release.repo.name,
            release=release,
            repo=release.repo,
            path=repo_path(release.repo),
            chart=bars(release.days, name=f"Downloads of {release.repo.name} by day"),
            shown=release.files[:_FILES_SHOWN_MAX],
        )

    async def ask(self, request: web.Request) -> web.Response:
        """Ask for access to a gated repo."""
        repo, account = await self._act(request, asker)

        def write() -> None:
            with self._shell.hub.database.begin() as connection:
                gates.ask(connection, repo, account)

        await asyncio.to_thread(write)
        return go_to(repo_path(repo))

    async def like(self, request: web.Request) -> web.Response:
        """Like the repo, or take the like back."""
        repo, account = await self._act(request, liker)

        def write() -> None:
            with self._shell.hub.database.begin() as connection:
                if likes.likes_it(connection, repo.id, account):
                    likes.unlike(connection, repo.id, account)
                else:
                    likes.like(connection, repo.id, account)

        await asyncio.to_thread(write)
        return go_to(repo_path(repo))

    async def _act(self, request: web.Request, who: Who) -> tuple[Repo, str]:
        actor = await self._shell.actor(request)
        hub = self._shell.hub

        def find() -> Repo:
            with reading(hub.database) as connection:
                return hub.authority.find(
                    connection, actor, repo_kind(request), repo_name(request), "see"
                )

        return await asyncio.to_thread(find), who(actor)


def read_release(
    hub: Hub, connection: Connection, viewer: Identity, repo: Repo, revision: str, endpoint: str
) -> Release:
    """Gather what the page shows; raises RevisionNotFound."""
    commit, files = read_files(connection, repo.id, revision)
    content = reader(hub)
    account = viewer.account
    closed = repo.private or bool(repo.gated) or not hub.authority.anonymous_read
    return Release(
        repo=repo,
        revision=revision,
        commit=commit,
        files=files,
        digest=release_digest(files),
        card=_card(repo, commit, files, content),
        member=shown_to(connection, viewer, [member_of(repo)])[0],
        facts=recorded.read_fact_sheet(connection, commit.manifest),
        scans=recorded.read_scans(connection, files),
        fingerprinted_us=recorded.fingerprinted_at(connection, commit.manifest),
        kin=recorded.read_kin(connection, viewer, repo),
        lineage=shown_lineage(connection, viewer, repo),
        licences=recorded.read_licence_history(connection, commit),
        days=downloads.days(connection, repo.id, _DAYS),
        all_time=downloads.all_time(connection, [repo.id])[repo.id],
        talk=discussions.list_discussions(connection, repo.id),
        revisions=[
            short_name(ref.name)
            for ref in list_refs(connection, repo.id)
            if ref.name.startswith((HEADS, TAGS))
        ][:_REFS_SHOWN_MAX],
        origin=recorded.read_origin(connection, repo.id, commit.oid),
        recipes=recipes(repo, files, endpoint, closed=closed),
        liked=account is not None and likes.likes_it(connection, repo.id, account),
        request=gates.find_request(connection, repo, account) if account else None,
        readable=hub.authority.decide(viewer, repo, "read").allowed,
        ruled=hub.authority.decide(viewer, repo, "admin").allowed,
        signed=find_entry(files, "model.sig") is not None,
    )


def _card(repo: Repo, commit: Commit, files: Manifest, read: ReadEntry) -> Markup | None:
    """The card as sanitised HTML; None where there is none, or none of a readable size."""
    body = read_card(files, read).body
    if not body.strip():
        return None
    files_at = f"{repo_path(repo)}/resolve/{commit.oid}"
    return Markup(render(body, files_at=files_at))  # noqa: S704 - sanitised
