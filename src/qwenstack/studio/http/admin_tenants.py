"""Admin routes for workspaces, their money, keys and budgets."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.core.money import Money, parse_money
from qwenstack.core.refusals import invalid
from qwenstack.studio import accounts
from qwenstack.studio.http.admin_route import AdminRoute, Request, Wire
from qwenstack.studio.http.query import read_limit
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.tenancy import (
    ApiKey,
    Billing,
    Budget,
    Period,
    Scope,
    Workspace,
    period_start_us,
)

_OVERLAP_S_MAX = 90 * 86_400
_YEAR_S = 366 * 86_400
_PAGE = 1000


class NewWorkspace(Wire, frozen=True):
    """Creates a workspace. `credit_limit` is a decimal amount, for postpaid only."""

    name: str
    plan: str = "default"
    region: str | None = None
    currency: str = "USD"
    billing: Billing = "prepaid"
    credit_limit: str | None = None
    free_quota_only: bool = False


class Suspension(Wire, frozen=True):
    """Suspends a workspace or lets it go on."""

    suspended: bool


class NewMoney(Wire, frozen=True):
    """Adds money: `amount` is decimal; a grant is promotional."""

    amount: str
    memo: str = ""
    grant: bool = False


class NewKeyRequest(Wire, frozen=True):
    """Makes a key."""

    name: str
    scopes: tuple[Scope, ...] = ("inference", "batch", "usage")
    models: tuple[str, ...] | None = None
    expires_in_s: int | None = None


class NewOperatorKey(Wire, frozen=True):
    """Makes a key that may do what this API does."""

    name: str
    expires_in_s: int | None = None


class NewQuota(Wire, frozen=True):
    """Grants tokens of one model that cost nothing until they expire."""

    model: str
    tokens: int
    expires_in_s: int


class Rotation(Wire, frozen=True):
    """How long the old key works on."""

    overlap_s: int = 86_400


class NewBudget(Wire, frozen=True):
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


class QuotaState(msgspec.Struct, frozen=True):
    """A grant of free tokens as it now stands."""

    model: str
    granted_tokens: int
    used_tokens: int
    expires_us: int


class Spend(msgspec.Struct, frozen=True):
    """A budget, and what is spent of it in its current period."""

    budget: Budget
    spent_micro: int


class EntryState(msgspec.Struct, frozen=True):
    """The entry that was written, and the balance after it."""

    entry: str
    balance_micro: int
    currency: str


def _workspaces(connection: Connection, request: Request) -> object:
    limit = read_limit(request.query, _PAGE, _PAGE)
    after = request.query.get("after", "")
    balances = read_standing(connection).balances
    tenancy = accounts.read_tenancy(connection)
    # Ids sort by the time they were made.
    page = sorted(each for each in tenancy.workspaces if each > after)[:limit]
    return [WorkspaceState(tenancy.workspaces[each], balances.get(each, 0)) for each in page]


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
    key, drawn = accounts.create_key(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        name=wire.name,
        scopes=wire.scopes,
        models=wire.models,
        expires_us=_expiry_us(wire.expires_in_s),
    )
    return _shown(key, drawn.secret)


def _operator_keys(connection: Connection, request: Request) -> object:
    keys = accounts.read_tenancy(connection).keys.values()
    return [_shown(key) for key in keys if key.workspace_id is None]


def _create_operator_key(connection: Connection, request: Request) -> object:
    wire: NewOperatorKey = request.body
    key, drawn = accounts.create_key(
        connection,
        actor=request.actor,
        workspace_id=None,
        name=wire.name,
        scopes=("admin",),
        expires_us=_expiry_us(wire.expires_in_s),
    )
    return _shown(key, drawn.secret)


def _grant_quota(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    wire: NewQuota = request.body
    expires_us = _expiry_us(wire.expires_in_s)
    assert expires_us is not None
    accounts.grant_free_quota(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        model=wire.model,
        tokens=wire.tokens,
        expires_us=expires_us,
    )
    quota = read_standing(connection).quotas[found.id, wire.model]
    return QuotaState(wire.model, quota.granted_tokens, quota.used_tokens, quota.expires_us)


def _budgets(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    spent, now = read_standing(connection).spent, datetime.now(UTC)
    return [
        Spend(each, spent.get((each.id, period_start_us(each.period, now)), 0))
        for each in accounts.read_tenancy(connection).budgets.get(found.id, ())
    ]


def _expiry_us(expires_in_s: int | None) -> int | None:
    if expires_in_s is None:
        return None
    if not 1 <= expires_in_s <= 10 * _YEAR_S:
        raise invalid("'expires_in_s' must lie between 1 and ten years.", "expires_in_s")
    return now_us() + expires_in_s * 1_000_000


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
TENANT_ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute(
        "GET",
        "/workspaces",
        "List workspaces, oldest first",
        _workspaces,
        list[WorkspaceState],
        query=("after", "limit"),
    ),
    AdminRoute(
        "POST", "/workspaces", "Create a workspace", _create_workspace, Workspace, NewWorkspace
    ),
    AdminRoute("GET", _ONE, "Show a workspace", _workspace, WorkspaceState),
    AdminRoute("PUT", f"{_ONE}/suspended", "Suspend a workspace", _suspend, Workspace, Suspension),
    AdminRoute("POST", f"{_ONE}/money", "Add money", _add_money, EntryState, NewMoney),
    AdminRoute(
        "POST", f"{_ONE}/free-quota", "Grant free tokens", _grant_quota, QuotaState, NewQuota
    ),
    AdminRoute("GET", f"{_ONE}/keys", "List a workspace's keys", _keys, list[KeyState]),
    AdminRoute("POST", f"{_ONE}/keys", "Make a key", _create_key, KeyState, NewKeyRequest),
    AdminRoute("GET", f"{_ONE}/budgets", "List budgets and their spend", _budgets, list[Spend]),
    AdminRoute("POST", f"{_ONE}/budgets", "Set a budget", _create_budget, Budget, NewBudget),
    AdminRoute("GET", "/keys", "List operators' keys", _operator_keys, list[KeyState]),
    AdminRoute(
        "POST", "/keys", "Make an operator's key", _create_operator_key, KeyState, NewOperatorKey
    ),
    AdminRoute("POST", "/keys/{key}/rotate", "Rotate a key", _rotate_key, KeyState, Rotation),
    AdminRoute("DELETE", "/keys/{key}", "Revoke a key", _revoke_key, KeyState),
)
