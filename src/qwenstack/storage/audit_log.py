"""The audit log: every administrative act, hash-chained, so that an edit cannot go unnoticed."""

from __future__ import annotations

import hashlib

import msgspec
from sqlalchemy import Connection, insert, select, text

from qwenstack.core.instants import now_us
from qwenstack.storage import tables
from qwenstack.storage.rows import read_row

_GENESIS = "0" * 64
# Any fixed number: on PostgreSQL two writers must not take the same place in the chain.
_POSTGRES_LOCK = 0x415544


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One act. `digest` is the SHA-256 over every other field, `previous` included."""

    sequence: int
    at_us: int
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    digest: str = ""


class Broken(msgspec.Struct, frozen=True):
    """The first line at which the chain does not hold, and how."""

    sequence: int
    reason: str


def record(
    connection: Connection, actor: str, action: str, subject: str, detail: object
) -> AuditLine:
    """Append an act to the log, in the caller's transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})"))
    last = connection.execute(
        select(tables.audit.c.sequence, tables.audit.c.digest)
        .order_by(tables.audit.c.sequence.desc())
        .limit(1)
    ).one_or_none()
    line = AuditLine(
        sequence=last.sequence + 1 if last else 1,
        at_us=now_us(),
        actor=actor,
        action=action,
        subject=subject,
        detail=msgspec.json.encode(detail, order="sorted").decode(),
        previous=last.digest if last else _GENESIS,
    )
    line = msgspec.structs.replace(line, digest=digest_of(line))
    connection.execute(insert(tables.audit).values(**msgspec.structs.asdict(line)))
    return line


def digest_of(line: AuditLine) -> str:
    """The digest that `line` must carry."""
    content = msgspec.structs.replace(line, digest="")
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def read_lines(connection: Connection, *, after: int, limit: int) -> list[AuditLine]:
    """At most `limit` lines that follow the line `after`, oldest first."""
    table = tables.audit
    query = select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(limit)
    return [read_row(row, AuditLine) for row in connection.execute(query)]


def verify(connection: Connection) -> tuple[int, Broken | None]:
    """How many lines hold from the first on, and the first that does not."""
    previous, expected = _GENESIS, 1
    for row in connection.execute(select(tables.audit).order_by(tables.audit.c.sequence)):
        line = read_row(row, AuditLine)
        if line.sequence != expected:
            return expected - 1, Broken(expected, "the line is missing")
        if line.previous != previous:
            return expected - 1, Broken(expected, "it does not follow the line before it")
        if line.digest != digest_of(line):
            return expected - 1, Broken(expected, "its content was changed")
        previous, expected = line.digest, expected + 1
    return expected - 1, None
