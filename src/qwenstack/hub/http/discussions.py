"""Discussions and pull requests on the wire, in the shapes that the client deserialises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.hub import discussions
from qwenstack.hub.accounts.authority import refuse
from qwenstack.hub.accounts.directory import Account, accounts_named
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.discussions import Comment, Discussion, Event
from qwenstack.hub.errors import BadRequest, Conflict, Forbidden
from qwenstack.hub.http.access import API_REPO, base_url, open_repo
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.markdown import render
from qwenstack.hub.http.people_wire import author
from qwenstack.hub.hub import Hub
from qwenstack.hub.pull_requests import Changes, diff_text, read_changes
from qwenstack.hub.quotas import within_quota
from qwenstack.hub.registry.commits import Message, Pushed, merge
from qwenstack.hub.registry.manifests import Entry
from qwenstack.hub.registry.refs import create_ref, pull_ref
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import HEADS, MAIN, find_commit
from qwenstack.storage.database import reading

_BODY_BYTES_MAX = 512 * 1024
_PAGES_MAX = 100_000
_T = TypeVar("_T")


class Opening(msgspec.Struct, rename="camel"):
    """A discussion or pull request to be."""

    title: str
    description: str = ""
    pull_request: bool = False


class Words(msgspec.Struct):
    """A comment to be, under the three names that the client sends it by."""

    comment: str | None = None
    content: str | None = None
    title: str | None = None
    status: str | None = None


class Talk(msgspec.Struct, frozen=True):
    """A discussion with what its answer needs."""

    discussion: Discussion
    events: list[Event]
    accounts: dict[str, Account]
    changes: Changes | None


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Discussions(hub)
    all_ = API_REPO + "/discussions"
    one = all_ + r"/{number:\d{1,9}}"
    comment = one + "/comment/{event:[0-9A-Fa-f]{1,48}}"
    return [
        web.get(all_, handlers.list),
        web.post(all_, handlers.open),
        web.get(one, handlers.details),
        web.post(one + "/comment", handlers.comment),
        web.post(one + "/title", handlers.rename),
        web.post(one + "/status", handlers.change_status),
        web.post(one + "/merge", handlers.merge),
        web.post(comment + "/edit", handlers.edit),
        web.post(comment + "/hide", handlers.hide),
    ]


class _Discussions:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def list(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "read")
        query = request.query
        kinds = {"all": None, "discussion": False, "pull_request": True}
        statuses = {"all": None, "open": False, "closed": True}
        kind, status = query.get("type", "all"), query.get("status", "all")
        page = query.get("p", "0")
        if kind not in kinds or status not in statuses:
            raise BadRequest(
                f"type is one of {', '.join(kinds)} and status one of {', '.join(statuses)}"
            )
        if not page.isascii() or not page.isdigit() or int(page[:9]) > _PAGES_MAX:
            raise BadRequest(f"p {page[:20]!r} must be the number of a page")

        def read(connection: Connection) -> tuple[discussions.Page, dict[str, Account]]:
            found = discussions.list_discussions(
                connection,
                repo.id,
                pull_requests=kinds[kind],
                closed=statuses[status],
                author=query.get("author"),
                page=int(page),
            )
            who = {each.author for each in found.discussions}
            return found, accounts_named(connection, who)

        found, accounts = await self._read(read)
        return json_response(
            {
                "count": found.count,
                "start": found.start,
                "discussions": [_head(each, repo, accounts) for each in found.discussions],
            }
        )

    async def open(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        wish = await read_json(request, Opening, bytes_max=_BODY_BYTES_MAX)

        def write(connection: Connection) -> Discussion:
            made = discussions.open_discussion(
                connection,
                repo_id=repo.id,
                author=_account(identity),
                title=wish.title,
                description=wish.description,
                target=HEADS + MAIN if wish.pull_request else None,
                draft=wish.pull_request,
            )
            if wish.pull_request:
                # It begins where main is; pushes to its ref come after.
                tip = find_commit(connection, repo.id, HEADS + MAIN)
                create_ref(
                    connection, repo.id, pull_ref(made.number), tip.oid, at_us=made.created_us
                )
            return made

        made = await self._write(write)
        prefix = "/datasets" if repo.kind == "dataset" else ""
        address = f"{base_url(self._hub, request)}{prefix}/{repo.name}/discussions/{made.number}"
        return json_response(
            {"num": made.number, "pullRequest": made.is_pull_request, "url": address}
        )

    async def details(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "read")
        number = int(request.match_info["number"])
        talk = await self._read(lambda connection: read_talk(connection, repo, number))
        shown = _head(talk.discussion, repo, talk.accounts)
        shown["events"] = [_event(each, talk.accounts) for each in talk.events]
        if talk.changes is not None:
            merged = discussions.merge_commit(talk.events)
            shown["changes"] = {
                "base": talk.discussion.target,
                **({} if merged is None else {"mergeCommitId": merged}),
            }
            shown["filesWithConflicts"] = list(talk.changes.conflicts)
            if "diff" in request.query:
                shown["diff"] = await asyncio.to_thread(diff_text, talk.changes, self._content)
        return json_response(shown)

    async def comment(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        words = await read_json(request, Words, bytes_max=_BODY_BYTES_MAX)

        def write(connection: Connection) -> Event:
            return discussions.add_comment(
                connection,
                self._find(connection, repo, request),
                author=_account(identity),
                text=words.comment or "",
            )

        return await self._answer("newMessage", write)

    async def edit(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        words = await read_json(request, Words, bytes_max=_BODY_BYTES_MAX)
        event_id = request.match_info["event"]

        def write(connection: Connection) -> Event:
            discussion = self._find(connection, repo, request)
            event, _ = discussions.find_comment(connection, discussion, event_id)
            if event.author != identity.account:
                raise Forbidden("Only its author edits a comment; hide it instead.")
            return discussions.edit_comment(
                connection,
                discussion,
                event_id,
                author=_account(identity),
                text=words.content or "",
            )

        return await self._answer("updatedComment", write)

    async def hide(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        event_id = request.match_info["event"]

        def write(connection: Connection) -> Event:
            discussion = self._find(connection, repo, request)
            event, _ = discussions.find_comment(connection, discussion, event_id)
            own_or_write(identity, repo, event.author)
            return discussions.hide_comment(connection, discussion, event_id, by=_account(identity))

        return await self._answer("updatedComment", write)

    async def rename(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        words = await read_json(request, Words, bytes_max=_BODY_BYTES_MAX)

        def write(connection: Connection) -> Event:
            discussion = self._find(connection, repo, request)
            own_or_write(identity, repo, discussion.author)
            return discussions.rename(
                connection, discussion, author=_account(identity), title=words.title or ""
            )

        return await self._answer("newTitle", write)

    async def change_status(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "discuss")
        words = await read_json(request, Words, bytes_max=_BODY_BYTES_MAX)

        def write(connection: Connection) -> Event:
            discussion = self._find(connection, repo, request)
            own_or_write(identity, repo, discussion.author)
            if words.comment:
                discussions.add_comment(
                    connection, discussion, author=_account(identity), text=words.comment
                )
            return discussions.change_status(
                connection, discussion, author=_account(identity), status=words.status or ""
            )

        return await self._answer("newStatus", write)

    async def merge(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "write")
        words = await read_json(request, Words, bytes_max=_BODY_BYTES_MAX)
        pushed: list[tuple[str, Pushed]] = []

        def write(connection: Connection) -> Event:
            discussion = self._find(connection, repo, request)
            if words.comment:
                discussions.add_comment(
                    connection, discussion, author=_account(identity), text=words.comment
                )
            target, made = merge_pull_request(connection, repo, discussion, identity.name)
            pushed.append((target, made))
            return discussions.record_merge(
                connection,
                discussion,
                author=_account(identity),
                commit_oid=made.commit.oid,
            )

        answer = await self._answer("newStatus", write)
        for target, made in pushed:
            if made.changed:
                await announce(self._hub, repo, target, made.commit.oid)
        return answer

    def _find(self, connection: Connection, repo: Repo, request: web.Request) -> Discussion:
        return discussions.find_discussion(connection, repo.id, int(request.match_info["number"]))

    def _content(self, entry: Entry) -> bytes:
        return b"".join(self._hub.store.read(entry.sha256))

    async def _answer(self, name: str, write: Callable[[Connection], Event]) -> web.Response:
        def act(connection: Connection) -> tuple[Event, dict[str, Account]]:
            event = write(connection)
            return event, accounts_named(connection, _people([event]))

        event, accounts = await self._write(act)
        return json_response({name: _event(event, accounts)})

    async def _read(self, read: Callable[[Connection], _T]) -> _T:
        def act() -> _T:
            with reading(self._hub.database) as connection:
                return read(connection)

        return await asyncio.to_thread(act)

    async def _write(self, write: Callable[[Connection], _T]) -> _T:
        def act() -> _T:
            with self._hub.database.begin() as connection:
                return write(connection)

        return await asyncio.to_thread(act)


def read_talk(connection: Connection, repo: Repo, number: int) -> Talk:
    """A discussion with its events, people and, for a pull request, changes. Raises NotFound."""
    discussion = discussions.find_discussion(connection, repo.id, number)
    events = discussions.read_events(connection, discussion)
    changes = None
    if discussion.is_pull_request and discussion.target is not None:
        source = pull_ref(number)
        merged = discussions.merge_commit(events)
        if merged is None:
            changes = read_changes(connection, repo.id, source, discussion.target)
        else:
            # Against the target as it was: a merge's first parent, or where nothing was to merge
            # the commit itself.
            parents = find_commit(connection, repo.id, merged).parents
            before = parents[0] if len(parents) > 1 else merged
            changes = read_changes(connection, repo.id, source, before)
    people = _people(events) | {discussion.author}
    return Talk(discussion, events, accounts_named(connection, people), changes)


def merge_pull_request(
    connection: Connection, repo: Repo, discussion: Discussion, author_name: str
) -> tuple[str, Pushed]:
    """Merge into the target; the target's ref and what was pushed. Raises Conflict, BadRequest."""
    if not discussion.is_pull_request or discussion.target is None:
        raise BadRequest(f"Discussion {discussion.number} is no pull request.")
    if discussion.status != "open":
        raise Conflict(
            f"Pull request {discussion.number} is {discussion.status}; only an open one is merged. "
            "Change its status to open first."
        )
    message = Message(
        title=f"{discussion.title} (#{discussion.number})",
        text=f"Merges {pull_ref(discussion.number)}.",
        author=author_name,
    )
    source = pull_ref(discussion.number)
    with within_quota(connection, repo.namespace):
        pushed = merge(connection, repo.id, source, discussion.target, message, at_us=now_us())
    return discussion.target, pushed


def _account(identity: Identity) -> str:
    # The action "discuss" let them in, which no anonymous caller may.
    return str(identity.account)


def own_or_write(identity: Identity, repo: Repo, owner: str) -> None:
    """Raises Forbidden for what neither is the caller's own nor on a repo that they may change."""
    if identity.account != owner:
        refuse(may(identity, repo, "write", accepted=True))


def _people(events: list[Event]) -> set[str]:
    named = {event.author for event in events}
    for event in events:
        if isinstance(event.happening, Comment):
            named |= {version.author for version in event.happening.versions}
            named |= {event.happening.hidden_by} - {None}  # type: ignore[arg-type]
    return named


def _head(discussion: Discussion, repo: Repo, accounts: dict[str, Account]) -> dict[str, object]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": discussion.is_pull_request,
        "createdAt": wire_instant(discussion.created_us),
        "author": author(discussion.author, accounts),
        "repo": {"name": repo.name, "type": repo.kind},
        "repoOwner": {"name": repo.namespace},
        "pinned": False,
    }


def _event(event: Event, accounts: dict[str, Account]) -> dict[str, object]:
    shown: dict[str, object] = {
        "id": event.id,
        "type": event.happening.__struct_config__.tag,
        "createdAt": wire_instant(event.at_us),
        "author": author(event.author, accounts),
    }
    match event.happening:
        case Comment() as comment:
            shown["data"] = _comment(comment, accounts)
        case discussions.StatusChange(status, commit_oid):
            shown["data"] = {"status": status}
            if commit_oid is not None:
                shown["data"] = {"status": status, "commitId": commit_oid}
        case discussions.TitleChange(old, new):
            shown["data"] = {"from": old, "to": new}
        case discussions.CommitAdded(oid, subject):
            shown["data"] = {"oid": oid, "subject": subject}
    return shown


def _comment(comment: Comment, accounts: dict[str, Account]) -> dict[str, object]:
    latest = comment.versions[-1]
    hidden = comment.hidden_by is not None
    # What the client calls history is every version but the last.
    return {
        "edited": len(comment.versions) > 1,
        "hidden": hidden,
        "hiddenBy": comment.hidden_by or "",
        "numEdits": len(comment.versions) - 1,
        "latest": {
            "raw": "This comment has been hidden" if hidden else latest.raw,
            "html": "This comment has been hidden" if hidden else render(latest.raw),
            "updatedAt": wire_instant(latest.at_us),
            "author": author(latest.author, accounts),
        },
        "history": [
            {
                "raw": each.raw,
                "updatedAt": wire_instant(each.at_us),
                "author": author(each.author, accounts),
            }
            for each in comment.versions[:-1]
        ],
    }
