"""Who may ask for what: workspaces, API keys, plans and budgets, as one immutable snapshot."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from qwenstack.core.instants import to_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.admission.limits import Limit
from qwenstack.studio.admission.raises import Raise

Billing = Literal["prepaid", "postpaid"]
Scope = Literal["inference", "batch", "usage", "admin"]
Period = Literal["day", "month", "total"]

KEY_PREFIX = "sk-qs-"
_SHOWN_CHARACTERS = 12
# Longer than any key we make; a longer header is refused before it is hashed.
_KEY_LENGTH_MAX = 200


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant. `region` None: any region; else a request never leaves it.

    A prepaid workspace spends what it holds; a postpaid one owes up to `credit_limit_micro`
    (None: without a limit).
    """

    id: str
    name: str
    plan: str
    region: str | None
    currency: str
    billing: Billing
    credit_limit_micro: int | None = None
    free_quota_only: bool = False
    suspended: bool = False


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A credential, by the digest of its secret. `models` None: every model of the plan.

    `workspace_id` None marks an operator's key: it administers and cannot run models.
    """

    id: str
    workspace_id: str | None
    name: str
    prefix: str
    digest: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    created_us: int = 0
    expires_us: int | None = None
    revoked_us: int | None = None
    last_used_us: int | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A spending line of a workspace or of one key: alerts at a share, may stop at the limit."""

    id: str
    workspace_id: str
    key_id: str | None
    period: Period
    limit_micro: int
    alert_percent: int = 80
    stops: bool = True


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate-limit tier and a price list: the ids of price books, the first that has a row wins.

    `per_model` holds for each model that `models` doesn't name; `whole` for all of a workspace's
    requests together; `per_key` for each key.
    """

    id: str
    version: int = 1
    price_books: tuple[str, ...] = ("local",)
    per_model: Limit = Limit()
    whole: Limit = Limit()
    per_key: Limit = Limit()
    models: dict[str, Limit] = {}
    allowed_models: tuple[str, ...] | None = None


class Caller(msgspec.Struct, frozen=True):
    """An authenticated request's origin."""

    workspace: Workspace
    key: ApiKey
    plan: Plan
    budgets: tuple[Budget, ...]
    raises: tuple[Raise, ...] = ()


class NewKey(msgspec.Struct, frozen=True):
    """A key's secret, which exists only here until it was shown, and what is kept of it."""

    secret: str
    prefix: str
    digest: str


def make_key() -> NewKey:
    """Draw a key: 256 random bits, so that a plain SHA-256 at rest cannot be reversed."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    return NewKey(secret, secret[:_SHOWN_CHARACTERS], key_digest(secret))


def key_digest(secret: str) -> str:
    """What is stored and looked up in place of a secret (SHA-256, hex)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def period_start_us(period: Period, at: datetime) -> int:
    """The start of the budget period around `at`, in UTC microseconds; 0 for `total`."""
    at = at.astimezone(UTC)
    if period == "total":
        return 0
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        start = start.replace(day=1)
    return to_us(start)


class Tenancy:
    """Everything about tenants at one version, ready for lookups. Never changed, only replaced."""

    def __init__(
        self,
        *,
        version: int,
        workspaces: Iterable[Workspace] = (),
        keys: Iterable[ApiKey] = (),
        plans: Iterable[Plan] = (),
        budgets: Iterable[Budget] = (),
        raises: Iterable[Raise] = (),
    ) -> None:
        self.version = version
        self.workspaces = {workspace.id: workspace for workspace in workspaces}
        self.keys = {key.digest: key for key in keys}
        self.keys_by_id = {key.id: key for key in self.keys.values()}
        self.plans = {plan.id: plan for plan in plans}
        self.budgets: dict[str, list[Budget]] = {}
        for budget in budgets:
            self.budgets.setdefault(budget.workspace_id, []).append(budget)
        self.raises: dict[str, list[Raise]] = {}
        for each in raises:
            self.raises.setdefault(each.workspace_id, []).append(each)
        self._callers: dict[str, Caller] = {}

    def authenticate(self, secret: str | None, now_us: int) -> ApiKey:
        """The key whose secret this is; raises Refusal where it is missing, unknown or over."""
        if not secret:
            raise _no_key("No API key was sent; put it in the header Authorization: Bearer <key>.")
        if len(secret) > _KEY_LENGTH_MAX:
            raise _no_key("The API key sent is too long to be one.")
        key = self.keys.get(key_digest(secret))
        if key is None:
            raise _no_key("Incorrect API key provided. Check it, or ask for a new one.")
        return _check_alive(key, now_us)

    def caller_of_key(self, key_id: str, now_us: int) -> Caller:
        """The caller that a batch runs as: the key that made it; raises Refusal once it is over."""
        key = self.keys_by_id.get(key_id)
        if key is None:
            raise _no_key("The key that made this batch does not exist any more.")
        return self._caller(_check_alive(key, now_us), "batch")

    def caller(self, secret: str | None, scope: Scope, now_us: int) -> Caller:
        """Authenticate for `scope` within a workspace; raises Refusal."""
        return self._caller(self.authenticate(secret, now_us), scope)

    def _caller(self, key: ApiKey, scope: Scope) -> Caller:
        if scope not in key.scopes or key.workspace_id is None:
            raise Refusal(
                RefusalKind.ACCESS_DENIED,
                f"The API key {key.prefix}… lacks the scope {scope!r}; it has "
                f"{', '.join(key.scopes) or 'none'}.",
            )
        caller = self._callers.get(key.digest)
        if caller is None:
            caller = self._callers[key.digest] = self._caller_of(key, key.workspace_id)
        if caller.workspace.suspended:
            raise Refusal(
                RefusalKind.ACCESS_DENIED, "This workspace is suspended; ask its operator."
            )
        return caller

    def administrator(self, secret: str | None, now_us: int) -> ApiKey:
        """Authenticate an operator; raises Refusal for every other key."""
        key = self.authenticate(secret, now_us)
        if "admin" not in key.scopes:
            raise Refusal(RefusalKind.ACCESS_DENIED, "This route needs an admin key.")
        return key

    def _caller_of(self, key: ApiKey, workspace_id: str) -> Caller:
        workspace = self.workspaces[workspace_id]
        plan = self.plans.get(workspace.plan)
        if plan is None:
            raise Refusal(
                RefusalKind.ACCESS_DENIED,
                f"The workspace's plan {workspace.plan!r} does not exist; ask its operator.",
            )
        budgets = tuple(
            budget
            for budget in self.budgets.get(workspace_id, ())
            if budget.key_id is None or budget.key_id == key.id
        )
        raises = tuple(
            each for each in self.raises.get(workspace_id, ()) if each.key_id in (None, key.id)
        )
        return Caller(workspace, key, plan, budgets, raises)


def _check_alive(key: ApiKey, now_us: int) -> ApiKey:
    if key.revoked_us is not None and key.revoked_us <= now_us:
        raise _no_key(f"The API key {key.prefix}… was revoked. Use its successor.")
    if key.expires_us is not None and key.expires_us <= now_us:
        raise _no_key(f"The API key {key.prefix}… has expired. Ask for a new one.")
    return key


def check_model_allowed(caller: Caller, model: str) -> None:
    """Raise Refusal where the key or the plan keeps `model` from the caller."""
    for allowed, whose in ((caller.key.models, "key"), (caller.plan.allowed_models, "plan")):
        if allowed is not None and model not in allowed:
            raise Refusal(
                RefusalKind.MODEL_ACCESS_DENIED,
                f"This {whose} may not use the model {model!r}; it may use "
                f"{', '.join(allowed[:10]) or 'none'}.",
                param="model",
            )


def _no_key(message: str) -> Refusal:
    return Refusal(RefusalKind.INVALID_KEY, message)
