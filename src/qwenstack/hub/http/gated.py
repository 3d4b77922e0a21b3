"""Gated repos on the wire: ask for access, and for the repo's people decide."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from qwenstack.hub import gates
from qwenstack.hub.accounts.directory import Account
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest, Forbidden, NotFound, Unauthorized
from qwenstack.hub.gates import AccessRequest, Outcome
from qwenstack.hub.http.access import API_REPO, open_repo
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.paging import cursor_of, limit_of, next_link
from qwenstack.hub.http.people_wire import avatar
from qwenstack.hub.hub import Hub
from qwenstack.storage.database import reading

_PAGE, _PAGE_MAX = 100, 1000


class Verdict(msgspec.Struct, rename="camel"):
    """What the client sends to accept, reject or cancel."""

    status: Outcome
    user: str | None = None
    request_id: str | None = None
    rejection_reason: str | None = None


class Grant(msgspec.Struct, rename="camel"):
    """Who is to have access."""

    user: str | None = None
    user_id: str | None = None


class Question(msgspec.Struct):
    """What the asker fills in."""

    fields: dict[str, str] = {}


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Gates(hub)
    requests = API_REPO + "/user-access-request"
    return [
        web.post(API_REPO + "/ask-access", handlers.ask),
        web.get(requests + "/{outcome:pending|accepted|rejected}", handlers.requests),
        web.post(requests + "/handle", handlers.handle),
        web.post(requests + "/grant", handlers.grant),
    ]


class _Gates:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def ask(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "see")
        account = asker(identity)
        question = await read_json(request, Question, bytes_max=64 * 1024)

        def write() -> AccessRequest:
            with self._hub.database.begin() as connection:
                return gates.ask(connection, repo, account, question.fields)

        made = await asyncio.to_thread(write)
        return json_response({"status": made.status, "rejectionReason": made.reason})

    async def requests(self, request: web.Request) -> web.Response:
        repo, _ = await open_repo(self._hub, request, "admin")
        outcome = msgspec.convert(request.match_info["outcome"], Outcome)
        limit = limit_of(request, default=_PAGE, most=_PAGE_MAX)
        after = cursor_of(request, str) or ""

        def read() -> list[tuple[AccessRequest, Account]]:
            with reading(self._hub.database) as connection:
                return gates.list_requests(connection, repo, outcome, after=after, limit=limit)

        found = await asyncio.to_thread(read)
        last = found[-1][0].account if len(found) == limit else None
        headers = None if last is None else next_link(self._hub, request, last)
        return json_response([_wire(*each) for each in found], headers=headers)

    async def handle(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "admin")
        verdict = await read_json(request, Verdict, bytes_max=64 * 1024)
        user = _user_of(verdict)

        def write() -> AccessRequest:
            with self._hub.database.begin() as connection:
                return gates.decide(
                    connection,
                    repo,
                    user,
                    verdict.status,
                    by=str(identity.account),
                    reason=verdict.rejection_reason,
                )

        decided = await asyncio.to_thread(write)
        return json_response({"status": decided.status})

    async def grant(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, "admin")
        wish = await read_json(request, Grant, bytes_max=64 * 1024)
        user = wish.user or wish.user_id
        if not user:
            raise BadRequest("user is missing; name the account that is to have access")

        def write() -> AccessRequest:
            with self._hub.database.begin() as connection:
                return gates.grant(connection, repo, user, by=str(identity.account))

        granted = await asyncio.to_thread(write)
        return json_response({"status": granted.status})


def asker(identity: Identity) -> str:
    """The account that asks; a token that may only read some scopes asks for nobody."""
    if identity.account is None:
        raise Unauthorized("Asking for access needs a token; make one and set HF_TOKEN.")
    if identity.token is not None and identity.token.role == "fineGrained":
        raise Forbidden("A fine-grained token cannot ask for access; use a read or write one.")
    return identity.account


def _user_of(verdict: Verdict) -> str:
    if (verdict.user is None) == (verdict.request_id is None):
        raise BadRequest("name the request by one of 'user' and 'requestId'")
    if verdict.user is not None:
        return verdict.user
    try:
        return bytes.fromhex(verdict.request_id or "").decode()
    except ValueError as error:
        raise NotFound("There is no request with this requestId.") from error


def _wire(request: AccessRequest, account: Account) -> dict[str, object]:
    shown: dict[str, object] = {
        "requestId": request.account.encode().hex(),
        "status": request.status,
        "timestamp": wire_instant(request.requested_us),
        "user": {
            "user": account.name,
            "fullname": account.full_name,
            # An address is given by asking; nobody agreed to anything who was only let in.
            "email": account.email if request.asked else None,
            "avatarUrl": avatar(account.key),
            "type": "user",
        },
    }
    if request.fields:
        shown["fields"] = request.fields
    if request.reason is not None:
        shown["rejectionReason"] = request.reason
    if request.decided_by is not None:
        shown["grantedBy"] = {"user": request.decided_by}
    return shown
