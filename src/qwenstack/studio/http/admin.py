"""The admin API: a table of typed routes, which is also what the OpenAPI document is made from.

Closed to every key without the scope `admin`. Each act is written in order with the ledger, with
its line in the audit log.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from qwenstack.core.instants import now_us, to_us
from qwenstack.core.money import Money, parse_money
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.studio import accounts, audit_log
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.query import read_query
from qwenstack.studio.installation import Installation
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.ledger.writes import Run
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.json_body import decode
from qwenstack.studio.tenancy import ApiKey, Billing, Budget, Period, Plan, Scope, Workspace
from qwenstack.studio.usage import Grouping, UsageLine, read_charges, sum_usage

PREFIX = "/admin/v1"
_BODY_BYTES_MAX = 256 * 1024
_OVERLAP_S_MAX = 90 * 86_400
_YEAR_S = 366 * 86_400


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body: unknown fields are refused."""


class NewWorkspace(_Wire, frozen=True):
    """Creates a workspace. `credit_limit` is a decimal amount, for postpaid only."""

    name: str
    plan: str = "default"
    region: str | None = None
    currency: str = "USD"
    billing: Billing = "prepaid"
    credit_limit: str | None = None
    free_quota_only: bool = False


class Suspension(_Wire, frozen=True):
    """Suspends a workspace or lets it go on."""

    suspended: bool


class NewMoney(_Wire, frozen=True):
    """Adds money: `amount` is decimal; a grant is promotional."""

    amount: str
    memo: str = ""
    grant: bool = False


class NewKeyRequest(_Wire, frozen=True):
    """Makes a key."""

    name: str
    scopes: tuple[Scope, ...] = ("inference", "batch", "usage")
    models: tuple[str, ...] | None = None
    expires_in_s: int | None = None


class Rotation(_Wire, frozen=True):
    """How long the old key works on."""

    overlap_s: int = 86_400


class NewBudget(_Wire, frozen=True):
    """Sets a budget for a workspace, or for one of its keys."""

    limit: str
    period: Period = "month"
    key: str | None = None
    alert_percent: int = 80
    stops: bool = True


class WorkspaceState(msgspec.Struct, frozen=True):
    """A workspace and what it has left."""

    workspace: Workspace
    balance_micro: int


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its digest. `api_key` is there once: in the answer that made it."""

    id: str
    workspace_id: str | None
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None
    created_us: int
    expires_us: int | None
    revoked_us: int | None
    last_used_us: int | None
    api_key: str | None = None


class EntryState(msgspec.Struct, frozen=True):
    """The entry that was written, and the balance after it."""

    entry: str
    balance_micro: int
    currency: str


class LedgerState(msgspec.Struct, frozen=True):
    """Whether the ledger holds."""

    holds: bool
    problems: tuple[str, ...]


class AuditState(msgspec.Struct, frozen=True):
    """Whether the audit log holds, and the first line that does not."""

    holds: bool
    lines: int
    broken: audit_log.Broken | None


class Request(msgspec.Struct, frozen=True):
    """What a handler gets: who acts, the path's parameters, the query, the decoded body."""

    actor: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any


Handler = Callable[[Connection, Request], object]


class AdminRoute(msgspec.Struct, frozen=True):
    """One route. `path` has `{names}`; `body` is the struct of its JSON, None for none."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    handler: Handler
    answer: Any
    body: Any = None
    query: tuple[str, ...] = ()


class AdminRoutes:
    """Serves the table."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._compiled = [(each, _pattern(each.path), _decoder(each)) for each in ROUTES]

    async def __call__(self, exchange: Exchange) -> None:
        """Authenticate, find the route, act, answer."""
        installation = self._installation
        key = installation.tenants.current.administrator(exchange.secret, now_us())
        route, parameters, decoder = self._find(exchange)
        body = None
        if decoder is not None:
            body = decode(decoder, await exchange.body(_BODY_BYTES_MAX))
        request = Request(f"key:{key.prefix}", parameters, read_query(exchange.query), body)
        if route.method == "GET":
            answer = await asyncio.to_thread(self._read, route.handler, request)
        else:
            answer = await installation.journal.submit(
                Run(lambda connection: route.handler(connection, request))
            )
            await installation.tenants.follow()
        await exchange.reply(Reply(200, msgspec.json.encode(answer)))

    def _read(self, handler: Handler, request: Request) -> object:
        database = self._installation.database
        with database.connect().execution_options(read_only=True) as connection:
            return handler(connection, request)

    def _find(
        self, exchange: Exchange
    ) -> tuple[AdminRoute, dict[str, str], msgspec.json.Decoder[Any] | None]:
        path = exchange.path.removeprefix(PREFIX)
        methods = []
        for route, pattern, decoder in self._compiled:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == exchange.method:
                return route, match.groupdict(), decoder
            methods.append(route.method)
        if methods:
            raise Refusal(RefusalKind.METHOD_NOT_ALLOWED, f"This route takes {', '.join(methods)}.")
        raise Refusal(RefusalKind.NOT_FOUND, "There is no such admin route; see /openapi.json.")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]{1,200})", path))


def _decoder(route: AdminRoute) -> msgspec.json.Decoder[Any] | None:
    return None if route.body is None else msgspec.json.Decoder(route.body)


def _workspaces(connection: Connection, request: Request) -> object:
    balances = read_standing(connection).balances
    tenancy = accounts.read_tenancy(connection)
    return [WorkspaceState(each, balances.get(each.id, 0)) for each in tenancy.workspaces.values()]


def _workspace(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    return WorkspaceState(found, read_standing(connection).balances.get(found.id, 0))


def _create_workspace(connection: Connection, request: Request) -> object:
    wire: NewWorkspace = request.body
    limit = wire.credit_limit
    return accounts.create_workspace(
        connection,
        actor=request.actor,
        name=wire.name,
        plan=wire.plan,
        region=wire.region,
        currency=wire.currency,
        billing=wire.billing,
        credit_limit_micro=None if limit is None else _amount(limit, wire.currency).micro,
        free_quota_only=wire.free_quota_only,
    )


def _suspend(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    accounts.set_suspended(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        suspended=request.body.suspended,
    )
    return accounts.find_workspace(connection, found.id)


def _add_money(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    wire: NewMoney = request.body
    entry = (accounts.grant if wire.grant else accounts.top_up)(
        connection,
        actor=request.actor,
        workspace=found,
        amount=_amount(wire.amount, found.currency),
        memo=wire.memo,
    )
    balance = read_standing(connection).balances.get(found.id, 0)
    return EntryState(entry, balance, found.currency)


def _keys(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    keys = accounts.read_tenancy(connection).keys.values()
    return [_shown(key) for key in keys if key.workspace_id == found.id]


def _create_key(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    wire: NewKeyRequest = request.body
    expires_us = None
    if wire.expires_in_s is not None:
        if not 1 <= wire.expires_in_s <= 10 * _YEAR_S:
            raise invalid("'expires_in_s' must lie between 1 and ten years.", "expires_in_s")
        expires_us = now_us() + wire.expires_in_s * 1_000_000
    key, drawn = accounts.create_key(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        name=wire.name,
        scopes=wire.scopes,
        models=wire.models,
        expires_us=expires_us,
    )
    return _shown(key, drawn.secret)


def _rotate_key(connection: Connection, request: Request) -> object:
    overlap_s = request.body.overlap_s
    if not 0 <= overlap_s <= _OVERLAP_S_MAX:
        raise invalid(f"'overlap_s' must lie between 0 and {_OVERLAP_S_MAX}.", "overlap_s")
    found = accounts.find_key(connection, request.path["key"])
    key, drawn = accounts.rotate_key(
        connection, actor=request.actor, key_id=found.id, overlap_s=overlap_s
    )
    return _shown(key, drawn.secret)


def _revoke_key(connection: Connection, request: Request) -> object:
    found = accounts.find_key(connection, request.path["key"])
    accounts.revoke_key(connection, actor=request.actor, key_id=found.id)
    return _shown(accounts.find_key(connection, found.id))


def _create_budget(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    wire: NewBudget = request.body
    return accounts.create_budget(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        key_id=accounts.find_key(connection, wire.key).id if wire.key else None,
        period=wire.period,
        limit_micro=_amount(wire.limit, found.currency).micro,
        alert_percent=wire.alert_percent,
        stops=wire.stops,
    )


def _plans(connection: Connection, request: Request) -> object:
    return list(accounts.read_tenancy(connection).plans.values())


def _put_plan(connection: Connection, request: Request) -> object:
    plan: Plan = request.body
    if plan.id != request.path["plan"]:
        raise invalid(f"'id' is {plan.id[:60]!r} and the path names another plan.", "id")
    return accounts.put_plan(connection, actor=request.actor, plan=plan)


def _usage(connection: Connection, request: Request) -> object:
    query = request.query
    try:
        grouping = msgspec.convert(query.get("by", "model"), Grouping)
        start = _utc(datetime.fromisoformat(query.get("start", "1970-01-01")))
        end = _utc(datetime.fromisoformat(query.get("end", "9999-12-31")))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise invalid(f"The query is not as expected: {str(error)[:120]}.") from error
    workspace = query.get("workspace")
    charges = read_charges(
        connection,
        start_us=to_us(start),
        end_us=to_us(end),
        workspace_id=accounts.find_workspace(connection, workspace).id if workspace else None,
    )
    return sum_usage(charges, grouping)


def _ledger(connection: Connection, request: Request) -> object:
    problems = tuple(verify_ledger(connection))
    return LedgerState(not problems, problems)


def _audit(connection: Connection, request: Request) -> object:
    lines, broken = audit_log.verify(connection)
    return AuditState(broken is None, lines, broken)


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _amount(text: str, currency: str) -> Money:
    try:
        amount = parse_money(text[:40], currency)
    except ValueError as error:
        raise invalid(str(error), "amount") from error
    if abs(amount.micro) >= 2**62:
        raise invalid("The amount is larger than the ledger holds.", "amount")
    return amount


def _shown(key: ApiKey, secret: str | None = None) -> KeyState:
    fields = {name: getattr(key, name) for name in KeyState.__struct_fields__ if name != "api_key"}
    return KeyState(**fields, api_key=secret)


_ONE = "/workspaces/{workspace}"
ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute("GET", "/workspaces", "List workspaces", _workspaces, list[WorkspaceState]),
    AdminRoute(
        "POST", "/workspaces", "Create a workspace", _create_workspace, Workspace, NewWorkspace
    ),
    AdminRoute("GET", _ONE, "Show a workspace", _workspace, WorkspaceState),
    AdminRoute("PUT", f"{_ONE}/suspended", "Suspend a workspace", _suspend, Workspace, Suspension),
    AdminRoute("POST", f"{_ONE}/money", "Add money", _add_money, EntryState, NewMoney),
    AdminRoute("GET", f"{_ONE}/keys", "List a workspace's keys", _keys, list[KeyState]),
    AdminRoute("POST", f"{_ONE}/keys", "Make a key", _create_key, KeyState, NewKeyRequest),
    AdminRoute("POST", f"{_ONE}/budgets", "Set a budget", _create_budget, Budget, NewBudget),
    AdminRoute("POST", "/keys/{key}/rotate", "Rotate a key", _rotate_key, KeyState, Rotation),
    AdminRoute("DELETE", "/keys/{key}", "Revoke a key", _revoke_key, KeyState),
    AdminRoute("GET", "/plans", "List plans", _plans, list[Plan]),
    AdminRoute("PUT", "/plans/{plan}", "Store a plan's next version", _put_plan, Plan, Plan),
    AdminRoute(
        "GET",
        "/usage",
        "Usage and cost",
        _usage,
        list[UsageLine],
        query=("by", "start", "end", "workspace"),
    ),
    AdminRoute("GET", "/ledger", "Verify the ledger", _ledger, LedgerState),
    AdminRoute("GET", "/audit", "Verify the audit log", _audit, AuditState),
)
