"""Webhooks and what waits to be sent to them: rows, so that a restart forgets nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.storage import tables
from qwenstack.storage.audit_log import record
from qwenstack.storage.rows import read_row
from qwenstack.studio.alerts.sending import Outcome, Sender
from qwenstack.studio.alerts.signing import digest_of

WEBHOOKS_MAX = 100
WAITING_MAX = 1000
# About a day: ten attempts within the first hour and a half, then one an hour.
ATTEMPTS_MAX = 30
_BACKOFF_FIRST_S = 5.0
_BACKOFF_MAX_S = 3600.0
# A process that claimed a delivery and died: another takes it after this long.
CLAIM_S = 60
_KEPT_S = 30 * 86_400


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where alerts go: of one workspace, or (`workspace_id` None) of all."""

    id: str
    workspace_id: str | None
    url: str
    secret_digest: str
    created_us: int


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one webhook. `due_us` is when it is tried (again); None once it has ended."""

    id: str
    webhook_id: str
    message_id: str
    body: bytes
    attempts: int
    due_us: int | None
    ended_us: int | None
    delivered: bool
    outcome: str
    created_us: int


class Claimed(msgspec.Struct, frozen=True):
    """A delivery that this process is to attempt, and where to."""

    delivery: Delivery
    webhook: Webhook


def set_webhook(
    connection: Connection, *, actor: str, sender: Sender, url: str, workspace_id: str | None
) -> tuple[Webhook, str]:
    """Have alerts sent to `url`; the webhook, and its secret, which is shown once. Raises Refusal.

    Raises OSError or KeyUnusable where the key file cannot be made or read.
    """
    table = tables.webhooks
    if (connection.scalar(select(func.count()).select_from(table)) or 0) >= WEBHOOKS_MAX:
        raise invalid(f"There are {WEBHOOKS_MAX} webhooks; remove one first.", "url")
    url, webhook_id = sender.check(url), new_id("whk")
    secret = sender.new_secret(webhook_id)
    made = Webhook(
        id=webhook_id,
        workspace_id=workspace_id,
        url=url,
        secret_digest=digest_of(secret),
        created_us=now_us(),
    )
    connection.execute(insert(table).values(**msgspec.structs.asdict(made)))
    detail = {"url": url, "workspace": workspace_id}
    record(connection, actor, "webhook.set", made.id, detail)
    return made, secret


def read_webhooks(connection: Connection) -> list[Webhook]:
    """Every webhook, oldest first."""
    table = tables.webhooks
    return [
        read_row(row, Webhook) for row in connection.execute(select(table).order_by(table.c.id))
    ]


def find_webhook(connection: Connection, webhook_id: str) -> Webhook:
    """The webhook with this id; raises Refusal for none."""
    for each in read_webhooks(connection):
        if each.id == webhook_id:
            return each
    raise Refusal(
        RefusalKind.NOT_FOUND,
        f"There is no webhook {webhook_id[:80]!r}; `qwenstack admin alerts ls` lists them.",
    )


def remove_webhook(connection: Connection, *, actor: str, webhook_id: str) -> Webhook:
    """Send nothing there any more, not even what waits. Raises Refusal for an unknown one."""
    found = find_webhook(connection, webhook_id)
    for table, column in ((tables.deliveries, "webhook_id"), (tables.webhooks, "id")):
        connection.execute(delete(table).where(table.c[column] == found.id))
    record(connection, actor, "webhook.remove", found.id, {"url": found.url})
    return found


def read_deliveries(connection: Connection, webhook_id: str, limit: int) -> list[Delivery]:
    """The latest deliveries to a webhook, newest first."""
    table = tables.deliveries
    query = (
        select(table)
        .where(table.c.webhook_id == webhook_id)
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    return [read_row(row, Delivery) for row in connection.execute(query)]


def queue(connection: Connection, webhook: Webhook, message_id: str, body: bytes) -> Delivery:
    """Have a message sent; raises Refusal where too many wait for the same webhook."""
    table = tables.deliveries
    waiting = connection.scalar(
        select(func.count())
        .select_from(table)
        .where(table.c.webhook_id == webhook.id, table.c.due_us.is_not(None))
    )
    if (waiting or 0) >= WAITING_MAX:
        raise Refusal(
            RefusalKind.CONFLICT,
            f"{WAITING_MAX} messages wait for the webhook {webhook.id}: repair its receiver first.",
        )
    now = now_us()
    made = Delivery(
        id=new_id("dlv"),
        webhook_id=webhook.id,
        message_id=message_id,
        body=body,
        attempts=0,
        due_us=now,
        ended_us=None,
        delivered=False,
        outcome="",
        created_us=now,
    )
    connection.execute(insert(table).values(**msgspec.structs.asdict(made)))
    return made


def any_due(connection: Connection) -> bool:
    """Whether anything is to be sent now."""
    table = tables.deliveries
    query = select(table.c.id).where(table.c.due_us <= now_us()).limit(1)
    return connection.scalar(query) is not None


def claim(connection: Connection, most: int) -> list[Claimed]:
    """Take at most `most` due deliveries, so that no other process tries them meanwhile.

    They fall due again after `CLAIM_S`: should this process die, another attempts them.
    """
    now, table = now_us(), tables.deliveries
    rows = connection.execute(
        select(table)
        .where(table.c.due_us <= now)
        .order_by(table.c.due_us)
        .limit(most)
        .with_for_update(skip_locked=True)
    ).all()
    webhooks = {each.id: each for each in read_webhooks(connection)} if rows else {}
    claimed = []
    for row in rows:
        found = read_row(row, Delivery)
        if found.webhook_id not in webhooks:  # it was removed this moment, and so is this row
            continue
        again = msgspec.structs.replace(
            found, attempts=found.attempts + 1, due_us=now + CLAIM_S * 1_000_000
        )
        connection.execute(
            update(table)
            .where(table.c.id == found.id)
            .values(attempts=again.attempts, due_us=again.due_us)
        )
        claimed.append(Claimed(again, webhooks[found.webhook_id]))
    return claimed


def settle(connection: Connection, tried: Sequence[tuple[Delivery, Outcome]]) -> None:
    """Note how attempts ended: those that failed are tried again, later each time."""
    now, table = now_us(), tables.deliveries
    for delivery, outcome in tried:
        ended = outcome.delivered or outcome.final or delivery.attempts >= ATTEMPTS_MAX
        connection.execute(
            update(table)
            .where(table.c.id == delivery.id, table.c.ended_us.is_(None))
            .values(
                delivered=outcome.delivered,
                outcome=outcome.words,
                ended_us=now if ended else None,
                due_us=None if ended else now + round(backoff_s(delivery.attempts) * 1e6),
            )
        )
    connection.execute(delete(table).where(table.c.ended_us < now - _KEPT_S * 1_000_000))


def backoff_s(attempts: int) -> float:
    """How long to wait after that many attempts: doubling to an hour, a fifth more or less."""
    steady_s = min(_BACKOFF_FIRST_S * 2.0 ** min(attempts - 1, 20), _BACKOFF_MAX_S)
    return steady_s * random.uniform(0.8, 1.2)  # noqa: S311  # nothing hangs on guessing it
