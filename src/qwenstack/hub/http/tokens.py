"""Accounts and tokens for the operator: the wire twin of `hub users` and `hub tokens`."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

import msgspec
from aiohttp import web

from qwenstack.core.instants import to_us
from qwenstack.hub import quotas
from qwenstack.hub.accounts import departures, directory, tokens
from qwenstack.hub.accounts.directory import AccountKind
from qwenstack.hub.accounts.identity import Identity, Scope, TokenRole
from qwenstack.hub.errors import BadRequest, Forbidden, Unauthorized
from qwenstack.hub.http.access import identify
from qwenstack.hub.http.bodies import flag, json_response, read_json
from qwenstack.hub.http.people_wire import shown_token
from qwenstack.hub.hub import Hub
from qwenstack.storage import audit_log
from qwenstack.storage.database import reading

_LOG = logging.getLogger(__name__)
_AUDIT_PAGE = 1000


class NewAccount(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A user or an organisation to be; `admin` is an organisation's first admin."""

    name: str
    kind: AccountKind = "user"
    full_name: str = ""
    email: str | None = None
    operator: bool = False
    admin: str | None = None


class TokenWish(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A token to be made."""

    account: str
    name: str
    role: TokenRole = "read"
    scopes: tuple[Scope, ...] = ()
    expires_at: datetime | None = None


class NewName(msgspec.Struct, forbid_unknown_fields=True):
    """What an account is to be called."""

    name: str


class QuotaWish(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Limits to be set; what is left out stays."""

    bytes_max: int | msgspec.UnsetType | None = msgspec.UNSET
    repos_max: int | msgspec.UnsetType | None = msgspec.UNSET
    waiting_bytes_max: int | msgspec.UnsetType | None = msgspec.UNSET
    guest_bytes_max: int | msgspec.UnsetType | None = msgspec.UNSET


class Kept(msgspec.Struct, frozen=True):
    """What an account may keep, and what it keeps."""

    account: str
    limits: quotas.Limits
    usage: quotas.Usage


class AuditPage(msgspec.Struct, frozen=True):
    """Some lines of the audit log, and how many of all hold from the first on."""

    holds: bool
    lines: int
    broken: audit_log.Broken | None
    page: list[audit_log.AuditLine]


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Administration(hub)
    return [
        web.get("/api/admin/accounts", handlers.accounts),
        web.post("/api/admin/accounts", handlers.create_account),
        web.post("/api/admin/accounts/{account:[^/]+}/rename", handlers.rename_account),
        web.delete("/api/admin/accounts/{account:[^/]+}", handlers.delete_account),
        web.get("/api/admin/quotas/{account:[^/]+}", handlers.quota),
        web.put("/api/admin/quotas/{account:[^/]+}", handlers.set_quota),
        web.get("/api/admin/tokens", handlers.tokens),
        web.post("/api/admin/tokens", handlers.create_token),
        web.get("/api/admin/audit", handlers.audit),
        web.delete("/api/admin/tokens/{token:[^/]+}", handlers.revoke_token),
    ]


class _Administration:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def accounts(self, request: web.Request) -> web.Response:
        await self._operator(request)
        after = request.query.get("after", "").lower()

        def read() -> list[directory.Account]:
            with reading(self._hub.database) as connection:
                return directory.list_accounts(connection, after=after)

        return json_response(await asyncio.to_thread(read))

    async def create_account(self, request: web.Request) -> web.Response:
        actor = await self._operator(request)
        wish = await read_json(request, NewAccount)

        def write() -> directory.Account:
            with self._hub.database.begin() as connection:
                account = directory.create_account(
                    connection,
                    name=wish.name,
                    kind=wish.kind,
                    full_name=wish.full_name,
                    email=wish.email,
                    operator=wish.operator,
                    actor=actor.name,
                )
                if wish.kind == "organisation":
                    directory.set_role(
                        connection,
                        account.key,
                        wish.admin or actor.name,
                        "admin",
                        actor=actor.name,
                    )
                return account

        account = await asyncio.to_thread(write)
        _LOG.info("%s made the %s %s", actor.name, account.kind, account.name)
        return json_response(account, status=201)

    async def rename_account(self, request: web.Request) -> web.Response:
        actor = await self._operator(request)
        wish = await read_json(request, NewName)

        def write() -> departures.Departed:
            with self._hub.database.begin() as connection:
                return departures.rename_account(
                    connection, request.match_info["account"], wish.name, actor=actor.name
                )[1]

        return json_response(await asyncio.to_thread(write))

    async def delete_account(self, request: web.Request) -> web.Response:
        """`giveTo` names who gets its repos; `deleteRepos` removes them."""
        actor = await self._operator(request)

        def write() -> departures.Departed:
            with self._hub.database.begin() as connection:
                return departures.delete_account(
                    connection,
                    request.match_info["account"],
                    give_to=request.query.get("giveTo"),
                    delete_repos=flag(request, "deleteRepos"),
                    actor=actor.name,
                )

        return json_response(await asyncio.to_thread(write))

    async def quota(self, request: web.Request) -> web.Response:
        """What an account (`*` for all) may keep, and what it keeps."""
        await self._operator(request)
        return json_response(await asyncio.to_thread(self._quota, request.match_info["account"]))

    def _quota(self, name: str) -> Kept:
        with reading(self._hub.database) as connection:
            key = name if name == quotas.EVERYBODY else directory.find_account(connection, name).key
            return Kept(key, quotas.limits_of(connection, key), quotas.usage_of(connection, key))

    async def set_quota(self, request: web.Request) -> web.Response:
        """Set the named limits: null for the default, -1 for none."""
        actor = await self._operator(request)
        wish = await read_json(request, QuotaWish)
        changes = {
            name: value
            for name, value in msgspec.structs.asdict(wish).items()
            if value is not msgspec.UNSET
        }
        name = request.match_info["account"]

        def write() -> Kept:
            with self._hub.database.begin() as connection:
                quotas.set_limits(connection, name, changes, actor=actor.name)
            return self._quota(name)

        return json_response(await asyncio.to_thread(write))

    async def tokens(self, request: web.Request) -> web.Response:
        await self._operator(request)
        account = request.query.get("account")

        def read() -> list[tokens.Token]:
            with reading(self._hub.database) as connection:
                return tokens.list_tokens(connection, account and account.lower())

        return json_response([shown_token(each) for each in await asyncio.to_thread(read)])

    async def create_token(self, request: web.Request) -> web.Response:
        actor = await self._operator(request)
        wish = await read_json(request, TokenWish)
        ends = wish.expires_at
        if ends is not None and ends.tzinfo is None:
            raise BadRequest("expiresAt needs its offset, such as 2027-01-31T00:00:00Z")

        def write() -> tokens.NewToken:
            with self._hub.database.begin() as connection:
                return tokens.create_token(
                    connection,
                    account=wish.account,
                    name=wish.name,
                    role=wish.role,
                    scopes=wish.scopes,
                    expires_us=None if ends is None else to_us(ends),
                    actor=actor.name,
                )

        made = await asyncio.to_thread(write)
        token = made.token
        _LOG.info("%s made the token %s of %s", actor.name, token.prefix, token.account)
        shown = msgspec.to_builtins(shown_token(token)) | {"secret": made.secret}
        return json_response(shown, status=201, headers={"Cache-Control": "no-store"})

    async def revoke_token(self, request: web.Request) -> web.Response:
        actor = await self._operator(request)
        reference = request.match_info["token"]

        def write() -> tokens.Token:
            with self._hub.database.begin() as connection:
                return tokens.revoke_token(connection, reference, actor=actor.name)

        token = await asyncio.to_thread(write)
        _LOG.info("%s revoked the token %s of %s", actor.name, token.prefix, token.account)
        return json_response(shown_token(token))

    async def audit(self, request: web.Request) -> web.Response:
        """The log of administrative acts after a line, and whether its chain holds."""
        await self._operator(request)
        after = request.query.get("after", "0")
        if not after.isascii() or not after.isdigit() or len(after) > 18:
            raise BadRequest(f"after {after[:40]!r} must be the number of a line")

        def read() -> AuditPage:
            with reading(self._hub.database) as connection:
                lines, broken = audit_log.verify(connection)
                found = audit_log.read_lines(connection, after=int(after), limit=_AUDIT_PAGE)
            return AuditPage(broken is None, lines, broken, found)

        return json_response(await asyncio.to_thread(read))

    async def _operator(self, request: web.Request) -> Identity:
        identity: Identity = await identify(self._hub, request)
        if identity.account is None:
            raise Unauthorized("Administering the hub needs an operator's write token.")
        if not identity.rules:
            raise Forbidden(
                f"{identity.name} does not administer this hub, or not with this token; an "
                "operator's write token does."
            )
        return identity
