"""Admin routes for limits that are raised for a time."""

from __future__ import annotations

from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.core.refusals import invalid
from qwenstack.studio import accounts, raised_limits
from qwenstack.studio.admission.raises import RAISE_S_MAX, Raise
from qwenstack.studio.http.admin_route import AdminRoute, Request, Wire


class NewRaise(Wire, frozen=True):
    """Allows more than the plan: to a workspace, in one `model`, or to one `key` (id or prefix)."""

    expires_in_s: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    model: str | None = None
    key: str | None = None
    reason: str = ""


def _raises(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    return [each for each in raised_limits.read_raises(connection) if each.workspace_id == found.id]


def _raise(connection: Connection, request: Request) -> object:
    found = accounts.find_workspace(connection, request.path["workspace"])
    wire: NewRaise = request.body
    if not 1 <= wire.expires_in_s <= RAISE_S_MAX:
        raise invalid(f"'expires_in_s' must lie between 1 and {RAISE_S_MAX}.", "expires_in_s")
    return raised_limits.raise_limit(
        connection,
        actor=request.actor,
        workspace_id=found.id,
        until_us=now_us() + wire.expires_in_s * 1_000_000,
        key=accounts.find_key(connection, wire.key) if wire.key else None,
        model=wire.model,
        requests_per_minute=wire.requests_per_minute,
        tokens_per_minute=wire.tokens_per_minute,
        reason=wire.reason,
    )


def _end(connection: Connection, request: Request) -> object:
    return raised_limits.end_raise(connection, actor=request.actor, raise_id=request.path["raise"])


LIMIT_ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute("GET", "/workspaces/{workspace}/raises", "List raised limits", _raises, list[Raise]),
    AdminRoute(
        "POST", "/workspaces/{workspace}/raises", "Raise limits for a time", _raise, Raise, NewRaise
    ),
    AdminRoute("DELETE", "/raises/{raise}", "End a raise now", _end, Raise),
)
