"""Admin routes for plans, and for what the studio's books say."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Connection

from qwenstack.core.refusals import invalid
from qwenstack.storage import audit_log
from qwenstack.studio import accounts
from qwenstack.studio.deployments import Deployment
from qwenstack.studio.http.admin_route import AdminRoute, Request
from qwenstack.studio.http.query import read_limit
from qwenstack.studio.http.usage import usage_lines
from qwenstack.studio.invoice import Invoice
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.statement import invoice_for
from qwenstack.studio.tenancy import Plan
from qwenstack.studio.usage import UsageLine

_PAGE = 1000


class DeploymentState(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served, the engine that runs it, and where its weights come from."""

    name: str
    engine: str
    version: str
    region: str
    digest: str | None
    provenance: str | None
    licence: str | None


class LedgerState(msgspec.Struct, frozen=True):
    """Whether the ledger holds."""

    holds: bool
    problems: tuple[str, ...]


class AuditState(msgspec.Struct, frozen=True):
    """Whether the audit log holds, and the first line that does not."""

    holds: bool
    lines: int
    broken: audit_log.Broken | None


def _plans(connection: Connection, request: Request) -> object:
    return list(accounts.read_tenancy(connection).plans.values())


def _put_plan(connection: Connection, request: Request) -> object:
    plan: Plan = request.body
    if plan.id != request.path["plan"]:
        raise invalid(f"'id' is {plan.id[:60]!r} and the path names another plan.", "id")
    return accounts.put_plan(connection, actor=request.actor, plan=plan)


def _usage(connection: Connection, request: Request) -> object:
    name = request.query.get("workspace")
    workspace = accounts.find_workspace(connection, name) if name else None
    return usage_lines(connection, request.query, workspace.id if workspace else None)


def _invoice(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    now = datetime.now(UTC)
    month = request.query.get("month", f"{now:%Y-%m}")
    if not re.fullmatch(r"[1-9]\d{3}-(0[1-9]|1[0-2])", month) or month >= "9999-12":
        raise invalid(f"'month' is {month[:20]!r}; write it like 2026-11.", "month")
    start = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC)
    end = (start + timedelta(days=32)).replace(day=1)
    return invoice_for(connection, found, start, end, issuer="QwenStack", issued_at=now)


def _deployments(connection: Connection, request: Request) -> object:
    return [_deployment(each) for each in request.deployments]


def _deployment(deployment: Deployment) -> DeploymentState:
    identity = deployment.engine.identity
    return DeploymentState(
        name=deployment.name,
        engine=identity.name,
        version=identity.version,
        region=identity.region,
        digest=identity.digest,
        provenance=deployment.provenance or None,
        licence=deployment.licence,
    )


def _ledger(connection: Connection, request: Request) -> object:
    problems = tuple(verify_ledger(connection))
    return LedgerState(not problems, problems)


def _audit(connection: Connection, request: Request) -> object:
    lines, broken = audit_log.verify(connection)
    return AuditState(broken is None, lines, broken)


def _audit_lines(connection: Connection, request: Request) -> object:
    after = request.query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) < 16):
        raise invalid(f"'after' is {after[:20]!r}; it must be a line's number.", "after")
    limit = read_limit(request.query, 100, _PAGE)
    return audit_log.read_lines(connection, after=int(after), limit=limit)


RECORD_ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute("GET", "/plans", "List plans", _plans, list[Plan]),
    AdminRoute("PUT", "/plans/{plan}", "Store a plan's next version", _put_plan, Plan, Plan),
    AdminRoute(
        "GET", "/deployments", "What is served, by what", _deployments, list[DeploymentState]
    ),
    AdminRoute(
        "GET",
        "/usage",
        "Usage and cost",
        _usage,
        list[UsageLine],
        query=("by", "start", "end", "workspace"),
    ),
    AdminRoute(
        "GET",
        "/workspaces/{workspace}/invoice",
        "A month's invoice",
        _invoice,
        Invoice,
        query=("month",),
    ),
    AdminRoute("GET", "/ledger", "Verify the ledger", _ledger, LedgerState),
    AdminRoute("GET", "/audit", "Verify the audit log", _audit, AuditState),
    AdminRoute(
        "GET",
        "/audit/lines",
        "Read the audit log, oldest first",
        _audit_lines,
        list[audit_log.AuditLine],
        query=("after", "limit"),
    ),
)
