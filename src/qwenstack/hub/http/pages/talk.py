"""Discussions and pull requests as pages, with a form to begin and to answer."""

from __future__ import annotations

import asyncio

from aiohttp import web
from markupsafe import Markup
from sqlalchemy import Connection

from qwenstack.hub import discussions
from qwenstack.hub.accounts.directory import Account, accounts_named
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import Action, may
from qwenstack.hub.discussions import PAGE, Comment, Discussion, Event, Page
from qwenstack.hub.errors import HubError
from qwenstack.hub.http.access import repo_kind, repo_name
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.discussions import Talk, merge_pull_request, own_or_write, read_talk
from qwenstack.hub.http.markdown import render
from qwenstack.hub.http.pages.shell import (
    DATASET_PAGE,
    MODEL_PAGE,
    Shell,
    diff_lines,
    go_to,
    repo_path,
)
from qwenstack.hub.pull_requests import diff_text
from qwenstack.hub.registry.commits import Pushed
from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.repos import Repo
from qwenstack.storage.database import reading


def routes(shell: Shell) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Talks(shell)
    found = []
    for page in (DATASET_PAGE, MODEL_PAGE):
        one = page + r"/discussions/{number:\d{1,9}}"
        found += [
            web.get(page + "/discussions", shell.page(handlers.list)),
            web.post(page + "/discussions", shell.page(handlers.open)),
            web.get(one, shell.page(handlers.show)),
            web.post(one, shell.page(handlers.comment)),
            web.post(one + "/{act:open|closed|merge}", shell.page(handlers.change)),
        ]
    return found


class _Talks:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def list(self, request: web.Request) -> web.Response:
        viewer = await self._shell.viewer(request)
        status = request.query.get("status", "open")
        closed = {"open": False, "closed": True}.get(status)
        page = request.query.get("p", "0")
        place = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 0

        def read() -> tuple[Repo, Page, dict[str, Account]]:
            with reading(self._shell.hub.database) as connection:
                repo = self._find(connection, viewer, request, "read")
                found = discussions.list_discussions(connection, repo.id, closed=closed, page=place)
                return (
                    repo,
                    found,
                    accounts_named(connection, {each.author for each in found.discussions}),
                )

        repo, found, accounts = await asyncio.to_thread(read)
        more = found.start + len(found.discussions) < found.count
        return self._shell.show(
            request,
            viewer,
            "talks.html",
            title=f"Discussions of {repo.name}",
            repo=repo,
            path=repo_path(repo),
            found=found,
            accounts=accounts,
            wanted=status if status in ("open", "closed", "all") else "all",
            earlier=place - 1 if place else None,
            later=place + 1 if more else None,
            page_size=PAGE,
            may_talk=may(viewer, repo, "discuss", accepted=True).allowed,
        )

    async def show(self, request: web.Request) -> web.Response:
        viewer = await self._shell.viewer(request)
        number = int(request.match_info["number"])

        def content(entry: Entry) -> bytes:
            return b"".join(self._shell.hub.store.read(entry.sha256))

        def read() -> tuple[Repo, Talk, list[tuple[str, str]]]:
            with reading(self._shell.hub.database) as connection:
                repo = self._find(connection, viewer, request, "read")
                talk = read_talk(connection, repo, number)
            diff = "" if talk.changes is None else diff_text(talk.changes, content)
            return repo, talk, diff_lines(diff)

        repo, talk, diff = await asyncio.to_thread(read)
        return self._shell.show(
            request,
            viewer,
            "talk.html",
            title=f"{talk.discussion.title} · {repo.name}",
            repo=repo,
            path=repo_path(repo),
            talk=talk,
            events=[(event, _words(event)) for event in talk.events],
            diff=diff,
            may_merge=may(viewer, repo, "write", accepted=True).allowed,
            may_change=_may_change(viewer, repo, talk.discussion),
            may_talk=may(viewer, repo, "discuss", accepted=True).allowed,
        )

    async def open(self, request: web.Request) -> web.Response:
        actor = await self._shell.actor(request)
        fields = await request.post()

        def write() -> tuple[Repo, Discussion]:
            with self._shell.hub.database.begin() as connection:
                repo = self._find(connection, actor, request, "discuss")
                made = discussions.open_discussion(
                    connection,
                    repo_id=repo.id,
                    author=str(actor.account),
                    title=str(fields.get("title", "")),
                    description=str(fields.get("comment", "")),
                )
                return repo, made

        repo, made = await asyncio.to_thread(write)
        return go_to(f"{repo_path(repo)}/discussions/{made.number}")

    async def comment(self, request: web.Request) -> web.Response:
        actor = await self._shell.actor(request)
        fields = await request.post()
        number = int(request.match_info["number"])

        def write() -> Repo:
            with self._shell.hub.database.begin() as connection:
                repo = self._find(connection, actor, request, "discuss")
                discussions.add_comment(
                    connection,
                    discussions.find_discussion(connection, repo.id, number),
                    author=str(actor.account),
                    text=str(fields.get("comment", "")),
                )
                return repo

        repo = await asyncio.to_thread(write)
        return go_to(f"{repo_path(repo)}/discussions/{number}")

    async def change(self, request: web.Request) -> web.Response:
        """Open, close or merge."""
        actor = await self._shell.actor(request)
        hub = self._shell.hub
        number, act = int(request.match_info["number"]), request.match_info["act"]

        def write() -> tuple[Repo, tuple[str, Pushed] | None]:
            with hub.database.begin() as connection:
                action: Action = "write" if act == "merge" else "discuss"
                repo = self._find(connection, actor, request, action)
                discussion = discussions.find_discussion(connection, repo.id, number)
                who = str(actor.account)
                if act != "merge":
                    own_or_write(actor, repo, discussion.author)
                    discussions.change_status(connection, discussion, author=who, status=act)
                    return repo, None
                target, made = merge_pull_request(connection, repo, discussion, actor.name)
                discussions.record_merge(
                    connection, discussion, author=who, commit_oid=made.commit.oid
                )
                return repo, (target, made)

        repo, merged = await asyncio.to_thread(write)
        if merged is not None and merged[1].changed:
            await announce(hub, repo, merged[0], merged[1].commit.oid)
        return go_to(f"{repo_path(repo)}/discussions/{number}")

    def _find(
        self, connection: Connection, viewer: Identity, request: web.Request, action: Action
    ) -> Repo:
        return self._shell.hub.authority.find(
            connection, viewer, repo_kind(request), repo_name(request), action
        )


def _may_change(viewer: Identity, repo: Repo, discussion: Discussion) -> bool:
    try:
        own_or_write(viewer, repo, discussion.author)
    except HubError:
        return False
    return may(viewer, repo, "discuss", accepted=True).allowed


def _words(event: Event) -> Markup | None:
    """A comment as sanitised HTML; None for a hidden one and for other events."""
    if not isinstance(event.happening, Comment) or event.happening.hidden_by is not None:
        return None
    return Markup(render(event.happening.versions[-1].raw))  # noqa: S704 - sanitised
