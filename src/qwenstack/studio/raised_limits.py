"""Raising a workspace's or a key's limits for a time: acts, each with its line in the audit log."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, insert, select, update

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind, invalid
from qwenstack.storage import tables
from qwenstack.storage.audit_log import record
from qwenstack.storage.rows import read_row
from qwenstack.studio.admission.raises import RAISE_S_MAX, Raise
from qwenstack.studio.changes import TENANCY, note_change
from qwenstack.studio.tenancy import ApiKey

_NAME_LENGTH_MAX = 200
_REASON_LENGTH_MAX = 500
_RAISES_MAX = 100


def read_raises(connection: Connection) -> list[Raise]:
    """The raises that hold now, oldest first."""
    table = tables.limit_raises
    query = select(table).where(table.c.until_us > now_us()).order_by(table.c.id)
    return [read_row(row, Raise) for row in connection.execute(query)]


def raise_limit(
    connection: Connection,
    *,
    actor: str,
    workspace_id: str,
    until_us: int,
    key: ApiKey | None = None,
    model: str | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    reason: str = "",
) -> Raise:
    """Allow more than the plan until an instant, at most 30 days ahead. Raises Refusal."""
    now = now_us()
    if not now < until_us <= now + RAISE_S_MAX * 1_000_000:
        raise invalid(
            f"A raise must end within {RAISE_S_MAX // 86_400} days from now; for more, change the "
            "plan.",
            "until",
        )
    if key is not None and key.workspace_id != workspace_id:
        raise invalid("The key is of another workspace.", "key")
    if model is not None and (not model.isprintable() or not 0 < len(model) <= _NAME_LENGTH_MAX):
        raise invalid(f"model {model[:40]!r} is no model's name.", "model")
    if not reason.isprintable() or len(reason) > _REASON_LENGTH_MAX:
        raise invalid(
            f"reason must have at most {_REASON_LENGTH_MAX} printable characters.", "reason"
        )
    if sum(each.workspace_id == workspace_id for each in read_raises(connection)) >= _RAISES_MAX:
        raise invalid(
            f"The workspace has {_RAISES_MAX} raises; end one with `qwenstack admin raises end`.",
            "workspace",
        )
    try:
        made = Raise(
            id=new_id("lim"),
            workspace_id=workspace_id,
            key_id=None if key is None else key.id,
            model=model,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            reason=reason,
            created_us=now,
            until_us=until_us,
        )
    except ValueError as error:
        raise invalid(f"{error}.", "raise") from error
    _store_raise(connection, actor, made)
    return made


def end_raise(connection: Connection, *, actor: str, raise_id: str) -> Raise:
    """End a raise now; raises Refusal for one that does not hold."""
    for each in read_raises(connection):
        if each.id == raise_id:
            break
    else:
        raise Refusal(
            RefusalKind.NOT_FOUND,
            f"No raise {raise_id[:80]!r} holds now; `qwenstack admin raises ls` lists them.",
        )
    ended = msgspec.structs.replace(each, until_us=now_us())
    table = tables.limit_raises
    connection.execute(update(table).where(table.c.id == each.id).values(until_us=ended.until_us))
    note_change(connection, TENANCY)
    record(connection, actor, "raise.end", each.id, msgspec.to_builtins(ended))
    return ended


def copy_raises(connection: Connection, actor: str, old_key: str, new_key: str) -> None:
    """Give a key's raises to its successor."""
    for each in read_raises(connection):
        if each.key_id == old_key:
            successor = msgspec.structs.replace(each, id=new_id("lim"), key_id=new_key)
            _store_raise(connection, actor, successor)


def _store_raise(connection: Connection, actor: str, made: Raise) -> None:
    connection.execute(insert(tables.limit_raises).values(**msgspec.structs.asdict(made)))
    note_change(connection, TENANCY)
    record(connection, actor, "raise.create", made.id, msgspec.to_builtins(made))
