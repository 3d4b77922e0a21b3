"""Admin routes for webhooks: where alerts go, and what became of each."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage.audit_log import record
from qwenstack.studio import accounts
from qwenstack.studio.alerts import budgets, webhooks
from qwenstack.studio.alerts.signing import KeyUnusable
from qwenstack.studio.http.admin_route import AdminRoute, Request, Wire
from qwenstack.studio.http.query import read_limit

_PAGE = 1000


class NewWebhook(Wire, frozen=True):
    """Has the alerts of one workspace, or of all, sent to a URL."""

    url: str
    workspace: str | None = None


class WebhookState(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook. `secret` is there once: in the answer that made it."""

    id: str
    workspace_id: str | None
    url: str
    created_us: int
    secret: str | None = None


class DeliveryState(msgspec.Struct, frozen=True, kw_only=True):
    """A message on its way, or what became of it. `due_us` is when it is tried (again)."""

    id: str
    message_id: str
    attempts: int
    due_us: int | None
    ended_us: int | None
    delivered: bool
    outcome: str
    created_us: int


def _webhooks(connection: Connection, request: Request) -> object:
    return [shown_webhook(each) for each in webhooks.read_webhooks(connection)]


def _set(connection: Connection, request: Request) -> object:
    wire: NewWebhook = request.body
    try:
        made, secret = webhooks.set_webhook(
            connection,
            actor=request.actor,
            sender=request.sender,
            url=wire.url,
            workspace_id=(
                accounts.find_workspace(connection, wire.workspace).id if wire.workspace else None
            ),
        )
    except (KeyUnusable, OSError) as error:
        raise Refusal(
            RefusalKind.STORAGE_UNAVAILABLE, f"The key that signs alerts cannot be had: {error}."
        ) from error
    return shown_webhook(made, secret)


def _remove(connection: Connection, request: Request) -> object:
    return shown_webhook(
        webhooks.remove_webhook(connection, actor=request.actor, webhook_id=request.path["webhook"])
    )


def _test(connection: Connection, request: Request) -> object:
    found = webhooks.find_webhook(connection, request.path["webhook"])
    queued = budgets.queue_test(connection, found)
    record(connection, request.actor, "webhook.test", found.id, {"message": queued.message_id})
    return shown_delivery(queued)


def _deliveries(connection: Connection, request: Request) -> object:
    found = webhooks.find_webhook(connection, request.path["webhook"])
    limit = read_limit(request.query, 20, _PAGE)
    return [shown_delivery(each) for each in webhooks.read_deliveries(connection, found.id, limit)]


def shown_webhook(webhook: webhooks.Webhook, secret: str | None = None) -> WebhookState:
    """A webhook as it is shown."""
    return WebhookState(
        id=webhook.id,
        workspace_id=webhook.workspace_id,
        url=webhook.url,
        created_us=webhook.created_us,
        secret=secret,
    )


def shown_delivery(delivery: webhooks.Delivery) -> DeliveryState:
    """A delivery as it is shown."""
    names = DeliveryState.__struct_fields__
    return DeliveryState(**{name: getattr(delivery, name) for name in names})


ALERT_ROUTES: tuple[AdminRoute, ...] = (
    AdminRoute("GET", "/alerts", "List where alerts are sent", _webhooks, list[WebhookState]),
    AdminRoute("POST", "/alerts", "Have alerts sent to a URL", _set, WebhookState, NewWebhook),
    AdminRoute("DELETE", "/alerts/{webhook}", "Send no alerts there", _remove, WebhookState),
    AdminRoute("POST", "/alerts/{webhook}/test", "Send a test", _test, DeliveryState),
    AdminRoute(
        "GET",
        "/alerts/{webhook}/deliveries",
        "The latest deliveries, newest first",
        _deliveries,
        list[DeliveryState],
        query=("limit",),
    ),
)
