"""Administering tenants: each act is one database transaction with its line in the audit log.

Functions take an open connection, so that the command line and the admin API share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.money import Money
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.storage import tables
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import add_to
from qwenstack.storage.rows import read_row
from qwenstack.studio.changes import FUNDS_TOPIC, TENANCY, note_change, version_of
from qwenstack.studio.ledger.entries import FUNDS, GRANTS, transfer, workspace_account
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.writes import Post, write_all
from qwenstack.studio.raised_limits import copy_raises, read_raises
from qwenstack.studio.tenancy import (
    ApiKey,
    Billing,
    Budget,
    NewKey,
    Period,
    Plan,
    Scope,
    Tenancy,
    Workspace,
    make_key,
)

NAME_LENGTH_MAX = 200
_TEXT_LENGTH_MAX = 64
# A balance is a signed 64-bit number of micro-units: half of it is left for what is added at once.
_BALANCE_MICRO_MAX = 2**62


def read_tenancy(connection: Connection) -> Tenancy:
    """Everything about tenants, as of now."""
    plans: dict[str, Plan] = {}
    for row in connection.execute(
        select(tables.plans).order_by(tables.plans.c.id, tables.plans.c.version)
    ):
        plans[row.id] = msgspec.json.decode(row.document, type=Plan)
    return Tenancy(
        version=version_of(connection, TENANCY),
        workspaces=[
            read_row(row, Workspace) for row in connection.execute(select(tables.workspaces))
        ],
        keys=[_key(row) for row in connection.execute(select(tables.api_keys))],
        plans=plans.values(),
        budgets=[read_row(row, Budget) for row in connection.execute(select(tables.budgets))],
        raises=read_raises(connection),
    )


def create_workspace(
    connection: Connection,
    *,
    actor: str,
    name: str,
    plan: str = "default",
    region: str | None = None,
    currency: str = "USD",
    billing: Billing = "prepaid",
    credit_limit_micro: int | None = None,
    free_quota_only: bool = False,
) -> Workspace:
    """Create a workspace; raises Refusal for a name in use, an unknown plan or a bad field."""
    _check_name(name)
    _check_text(plan, "plan")
    _check_text(region or "", "region")
    if connection.scalar(
        select(func.count()).select_from(tables.workspaces).where(tables.workspaces.c.name == name)
    ):
        raise _name_taken(name)
    if not connection.scalar(
        select(func.count()).select_from(tables.plans).where(tables.plans.c.id == plan)
    ):
        raise invalid(f"There is no plan {plan!r}; `qwenstack admin plans` lists them.", "plan")
    if len(currency) != 3 or not currency.isascii() or not currency.isupper():
        raise invalid(f"currency {currency!r} is no ISO 4217 code such as USD.", "currency")
    workspace = Workspace(
        id=new_id("ws"),
        name=name,
        plan=plan,
        region=region,
        currency=currency,
        billing=billing,
        credit_limit_micro=credit_limit_micro,
        free_quota_only=free_quota_only,
    )
    row = {**msgspec.structs.asdict(workspace), "created_us": now_us()}
    try:
        connection.execute(insert(tables.workspaces).values(**row))
    except IntegrityError:  # another process was faster
        raise _name_taken(name) from None
    note_change(connection, TENANCY)
    record(connection, actor, "workspace.create", workspace.id, msgspec.to_builtins(workspace))
    return workspace


def _name_taken(name: str) -> Refusal:
    return Refusal(RefusalKind.CONFLICT, f"A workspace named {name!r} exists.", param="name")


def set_suspended(
    connection: Connection, *, actor: str, workspace_id: str, suspended: bool
) -> None:
    """Suspend a workspace or let it go on; raises Refusal for an unknown one."""
    find_workspace(connection, workspace_id)
    connection.execute(
        update(tables.workspaces)
        .where(tables.workspaces.c.id == workspace_id)
        .values(suspended=suspended)
    )
    note_change(connection, TENANCY)
    action = "workspace.suspend" if suspended else "workspace.resume"
    record(connection, actor, action, workspace_id, {})


def find_workspace(connection: Connection, reference: str) -> Workspace:
    """The workspace with this id or name; raises Refusal for none."""
    table = tables.workspaces
    rows: Sequence[Row[Any]] = ()
    if reference.isprintable():  # PostgreSQL takes no NUL
        rows = connection.execute(
            select(table).where((table.c.id == reference) | (table.c.name == reference))
        ).all()
    if not rows:
        raise Refusal(
            RefusalKind.NOT_FOUND,
            f"There is no workspace {reference[:80]!r}; `qwenstack admin workspaces` lists them.",
        )
    # One workspace may be named like another's id: the id decides.
    return read_row(max(rows, key=lambda row: row.id == reference), Workspace)


def create_key(
    connection: Connection,
    *,
    actor: str,
    workspace_id: str | None,
    name: str,
    scopes: tuple[Scope, ...] = ("inference", "batch", "usage"),
    models: tuple[str, ...] | None = None,
    expires_us: int | None = None,
) -> tuple[ApiKey, NewKey]:
    """Make a key and give its secret, which is stored nowhere; raises Refusal."""
    _check_name(name)
    if not scopes:
        raise invalid("A key needs at least one scope.", "scopes")
    if ("admin" in scopes) != (workspace_id is None):
        raise invalid("An admin key belongs to no workspace, and every other key to one.", "scopes")
    if expires_us is not None and expires_us <= now_us():
        raise invalid("The expiry lies in the past.", "expires_at")
    drawn = make_key()
    key = ApiKey(
        id=new_id("key"),
        workspace_id=workspace_id,
        name=name,
        prefix=drawn.prefix,
        digest=drawn.digest,
        scopes=scopes,
        models=models,
        created_us=now_us(),
        expires_us=expires_us,
    )
    row = msgspec.structs.asdict(key)
    row["scopes"] = msgspec.json.encode(scopes).decode()
    row["models"] = None if models is None else msgspec.json.encode(models).decode()
    connection.execute(insert(tables.api_keys).values(**row))
    note_change(connection, TENANCY)
    detail = {"name": name, "prefix": key.prefix, "workspace": workspace_id, "scopes": scopes}
    record(connection, actor, "key.create", key.id, detail)
    return key, drawn


def revoke_key(
    connection: Connection, *, actor: str, key_id: str, at_us: int | None = None
) -> None:
    """End a key now, or at an instant to come (rotation with overlap); raises Refusal."""
    key = find_key(connection, key_id)
    at_us = at_us or now_us()
    connection.execute(
        update(tables.api_keys).where(tables.api_keys.c.id == key.id).values(revoked_us=at_us)
    )
    note_change(connection, TENANCY)
    record(connection, actor, "key.revoke", key.id, {"prefix": key.prefix, "at_us": at_us})


def rotate_key(
    connection: Connection, *, actor: str, key_id: str, overlap_s: int
) -> tuple[ApiKey, NewKey]:
    """Make a successor with the same rights; the old key ends after `overlap_s` seconds.

    The successor lives as long from now as the old key was made for, has its raised limits, and its
    budgets with what was spent of them: rotating resets nothing. Raises Refusal for a key that is
    over already.
    """
    old, now = find_key(connection, key_id), now_us()
    ends = [each for each in (old.revoked_us, old.expires_us) if each is not None]
    if ends and min(ends) <= now:
        raise Refusal(
            RefusalKind.CONFLICT, f"The key {old.prefix}… is over; create a new one instead."
        )
    made = create_key(
        connection,
        actor=actor,
        workspace_id=old.workspace_id,
        name=old.name,
        scopes=old.scopes,
        models=old.models,
        expires_us=None if old.expires_us is None else now + old.expires_us - old.created_us,
    )
    _copy_budgets(connection, actor, old.id, made[0].id)
    copy_raises(connection, actor, old.id, made[0].id)
    # An end that was set before stays where it comes first.
    end_us = min([now + overlap_s * 1_000_000, *ends])
    revoke_key(connection, actor=actor, key_id=old.id, at_us=end_us)
    return made


def _copy_budgets(connection: Connection, actor: str, old_key: str, new_key: str) -> None:
    table, spend = tables.budgets, tables.budget_spend
    for row in connection.execute(select(table).where(table.c.key_id == old_key)).all():
        budget = msgspec.structs.replace(read_row(row, Budget), id=new_id("bud"), key_id=new_key)
        connection.execute(
            insert(table).values(**msgspec.structs.asdict(budget), created_us=row.created_us)
        )
        for period in connection.execute(select(spend).where(spend.c.budget_id == row.id)).all():
            connection.execute(
                insert(spend).values(
                    budget_id=budget.id,
                    period_start_us=period.period_start_us,
                    spent_micro=period.spent_micro,
                )
            )
        record(connection, actor, "budget.create", budget.id, msgspec.to_builtins(budget))
    note_change(connection, FUNDS_TOPIC)


def find_key(connection: Connection, reference: str) -> ApiKey:
    """The key with this id or shown prefix; raises Refusal for none or several."""
    table = tables.api_keys
    rows: Sequence[Row[Any]] = ()
    if reference.isprintable():
        rows = connection.execute(
            select(table).where((table.c.id == reference) | (table.c.prefix == reference))
        ).all()
    if len(rows) != 1:
        raise Refusal(
            RefusalKind.NOT_FOUND,
            f"{len(rows) or 'No'} keys match {reference[:80]!r}; `qwenstack admin keys` lists them "
            "with their ids.",
        )
    return _key(rows[0])


def touch_keys(connection: Connection, used: dict[str, int]) -> None:
    """Note when keys were last used: key id to microseconds."""
    table = tables.api_keys
    for key_id, at_us in used.items():
        connection.execute(update(table).where(table.c.id == key_id).values(last_used_us=at_us))


def put_plan(connection: Connection, *, actor: str, plan: Plan) -> Plan:
    """Store a plan as the next version of its id; earlier versions stay readable."""
    table = tables.plans
    latest = connection.scalar(select(func.max(table.c.version)).where(table.c.id == plan.id))
    plan = msgspec.structs.replace(plan, version=(latest or 0) + 1)
    document = msgspec.json.encode(plan).decode()
    connection.execute(
        insert(table).values(
            id=plan.id, version=plan.version, document=document, created_us=now_us()
        )
    )
    note_change(connection, TENANCY)
    record(connection, actor, "plan.put", plan.id, msgspec.to_builtins(plan))
    return plan


def create_budget(
    connection: Connection,
    *,
    actor: str,
    workspace_id: str,
    key_id: str | None,
    period: Period,
    limit_micro: int,
    alert_percent: int = 80,
    stops: bool = True,
) -> Budget:
    """Set a budget; spending before it was set does not count. Raises Refusal."""
    if limit_micro < 0:
        raise invalid("A budget's limit must not be negative.", "limit")
    if key_id is not None and find_key(connection, key_id).workspace_id != workspace_id:
        raise invalid("The key is of another workspace.", "key")
    if not 1 <= alert_percent <= 100:
        raise invalid(f"alert_percent is {alert_percent}; it must lie in 1..100.", "alert_percent")
    budget = Budget(
        id=new_id("bud"),
        workspace_id=workspace_id,
        key_id=key_id,
        period=period,
        limit_micro=limit_micro,
        alert_percent=alert_percent,
        stops=stops,
    )
    connection.execute(
        insert(tables.budgets).values(**msgspec.structs.asdict(budget), created_us=now_us())
    )
    note_change(connection, TENANCY)
    record(connection, actor, "budget.create", budget.id, msgspec.to_builtins(budget))
    return budget


def top_up(
    connection: Connection, *, actor: str, workspace: Workspace, amount: Money, memo: str
) -> str:
    """Add paid money to a workspace; the entry's id. Raises Refusal for a wrong amount."""
    return _fund(connection, actor, workspace, amount, memo, "top_up")


def grant(
    connection: Connection, *, actor: str, workspace: Workspace, amount: Money, memo: str
) -> str:
    """Add promotional money to a workspace; the entry's id. Raises Refusal for a wrong amount."""
    return _fund(connection, actor, workspace, amount, memo, "grant")


def grant_free_quota(
    connection: Connection,
    *,
    actor: str,
    workspace_id: str,
    model: str,
    tokens: int,
    expires_us: int,
) -> None:
    """Add free tokens of one model until an instant; what was used before stays used."""
    if tokens <= 0:
        raise invalid(f"tokens is {tokens}; it must be positive.", "tokens")
    table = tables.free_quotas
    row = {
        "workspace_id": workspace_id,
        "model": model,
        "granted_tokens": tokens,
        "used_tokens": 0,
        "expires_us": expires_us,
    }
    add_to(connection, table, [row], "granted_tokens")
    connection.execute(
        update(table)
        .where(table.c.workspace_id == workspace_id, table.c.model == model)
        .values(expires_us=expires_us)
    )
    note_change(connection, FUNDS_TOPIC)
    record(connection, actor, "free_quota.grant", workspace_id, row)


def _fund(
    connection: Connection,
    actor: str,
    workspace: Workspace,
    amount: Money,
    memo: str,
    kind: str,
) -> str:
    if amount.currency != workspace.currency:
        raise invalid(
            f"The workspace's currency is {workspace.currency}, not {amount.currency}.", "currency"
        )
    if amount.micro <= 0:
        raise invalid(f"The amount {amount} must be positive.", "amount")
    if read_standing(connection).balances.get(workspace.id, 0) + amount.micro > _BALANCE_MICRO_MAX:
        raise invalid("With this amount the balance is larger than the ledger holds.", "amount")
    if not memo.replace("\n", " ").isprintable():
        raise invalid("The memo holds what cannot be printed.", "memo")
    entry = transfer(
        entry_id=new_id("txn"),
        kind="top_up" if kind == "top_up" else "grant",
        workspace_id=workspace.id,
        source=FUNDS if kind == "top_up" else GRANTS,
        target=workspace_account(workspace.id),
        amount_micro=amount.micro,
        currency=amount.currency,
        at_us=now_us(),
        memo=memo[:500],
    )
    write_all(connection, [Post(entry)])
    note_change(connection, FUNDS_TOPIC)
    detail = {"amount_micro": amount.micro, "currency": amount.currency, "entry": entry.id}
    record(connection, actor, f"workspace.{kind}", workspace.id, detail)
    return entry.id


def _check_text(text: str, field: str) -> None:
    if not text.isprintable() or len(text) > _TEXT_LENGTH_MAX:
        raise invalid(
            f"{field} {text[:40]!r} must have at most {_TEXT_LENGTH_MAX} printable characters.",
            field,
        )


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise invalid(
            f"name {name[:40]!r} must have 1 to {NAME_LENGTH_MAX} printable characters.", "name"
        )


def _key(row: Row[Any]) -> ApiKey:
    return read_row(
        row,
        ApiKey,
        scopes=msgspec.json.decode(row.scopes),
        models=None if row.models is None else msgspec.json.decode(row.models),
    )
