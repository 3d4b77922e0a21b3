"""Files and batches as rows: what exists, and each step that a batch takes. Durable first."""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy import Connection, and_, func, insert, or_, select, update

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage import tables
from qwenstack.storage.rows import read_row

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
RUNNING: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
PAGE_MAX = 100


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a workspace uploaded, or that a batch wrote for it."""

    id: str
    workspace_id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    created_us: int
    deleted_us: int | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and the instants of its steps; None where one has not come."""

    id: str
    workspace_id: str
    key_id: str
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    status: Status
    errors: str | None
    metadata: str | None
    window_s: int
    created_us: int
    expires_us: int
    in_progress_us: int | None
    finalizing_us: int | None
    ended_us: int | None
    cancelling_us: int | None
    worker_id: str | None


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch: all, answered well, answered with an error."""

    total: int
    completed: int
    failed: int


class Line(msgspec.Struct, frozen=True):
    """A line that has no answer yet. Its request id is fixed, so that it is billed once."""

    number: int
    custom_id: str
    request_id: str


class Answered(msgspec.Struct, frozen=True):
    """A line's answer: HTTP status and JSON body."""

    custom_id: str
    request_id: str
    status: int
    body: bytes


def add_file(
    connection: Connection,
    *,
    workspace_id: str,
    file_id: str,
    purpose: str,
    filename: str,
    size: int,
    sha256: str,
) -> StoredFile:
    """Record a file whose bytes are stored."""
    file = StoredFile(
        id=file_id,
        workspace_id=workspace_id,
        purpose=purpose,
        filename=filename,
        bytes=size,
        sha256=sha256,
        created_us=now_us(),
    )
    connection.execute(insert(tables.files).values(**msgspec.structs.asdict(file)))
    return file


def find_file(connection: Connection, workspace_id: str, file_id: str) -> StoredFile:
    """A workspace's file; raises Refusal where it has none by that id."""
    table = tables.files
    row = connection.execute(
        select(table).where(
            table.c.id == file_id,
            table.c.workspace_id == workspace_id,
            table.c.deleted_us.is_(None),
        )
    ).one_or_none()
    if row is None:
        raise Refusal(RefusalKind.NOT_FOUND, f"No such File object: {file_id[:64]}", param="id")
    return read_row(row, StoredFile)


def list_files(
    connection: Connection, workspace_id: str, purpose: str | None, after: str | None, limit: int
) -> list[StoredFile]:
    """A workspace's files, newest first."""
    table = tables.files
    query = select(table).where(table.c.workspace_id == workspace_id, table.c.deleted_us.is_(None))
    if purpose is not None:
        query = query.where(table.c.purpose == purpose)
    if after is not None:
        query = query.where(table.c.id < after)
    rows = connection.execute(query.order_by(table.c.id.desc()).limit(limit))
    return [read_row(row, StoredFile) for row in rows]


def delete_file(connection: Connection, workspace_id: str, file_id: str) -> None:
    """Mark a file deleted; raises Refusal for none, or while a batch reads it."""
    find_file(connection, workspace_id, file_id)
    batch = tables.batches
    in_use = connection.scalar(
        select(func.count())
        .select_from(batch)
        .where(batch.c.input_file_id == file_id, batch.c.status.in_(RUNNING))
    )
    if in_use:
        raise Refusal(
            RefusalKind.CONFLICT, f"File {file_id} is read by a running batch; cancel that first."
        )
    connection.execute(
        update(tables.files).where(tables.files.c.id == file_id).values(deleted_us=now_us())
    )


def add_batch(
    connection: Connection,
    *,
    workspace_id: str,
    key_id: str,
    endpoint: str,
    input_file_id: str,
    metadata: dict[str, str] | None,
    window_s: int,
) -> Batch:
    """Take a batch on; its lines are read later."""
    now = now_us()
    batch = Batch(
        id=new_id("batch"),
        workspace_id=workspace_id,
        key_id=key_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        output_file_id=None,
        error_file_id=None,
        status="validating",
        errors=None,
        metadata=None if metadata is None else msgspec.json.encode(metadata).decode(),
        window_s=window_s,
        created_us=now,
        expires_us=now + window_s * 1_000_000,
        in_progress_us=None,
        finalizing_us=None,
        ended_us=None,
        cancelling_us=None,
        worker_id=None,
    )
    connection.execute(insert(tables.batches).values(**msgspec.structs.asdict(batch)))
    return batch


def find_batch(connection: Connection, workspace_id: str, batch_id: str) -> Batch:
    """A workspace's batch; raises Refusal where it has none by that id."""
    table = tables.batches
    row = connection.execute(
        select(table).where(table.c.id == batch_id, table.c.workspace_id == workspace_id)
    ).one_or_none()
    if row is None:
        raise Refusal(RefusalKind.NOT_FOUND, f"No batch found with id {batch_id[:64]!r}.")
    return read_row(row, Batch)


def list_batches(
    connection: Connection, workspace_id: str, after: str | None, limit: int
) -> list[Batch]:
    """A workspace's batches, newest first."""
    table = tables.batches
    query = select(table).where(table.c.workspace_id == workspace_id)
    if after is not None:
        query = query.where(table.c.id < after)
    rows = connection.execute(query.order_by(table.c.id.desc()).limit(limit))
    return [read_row(row, Batch) for row in rows]


def counts_of(connection: Connection, batch_id: str) -> Counts:
    """How far a batch is."""
    table = tables.batch_lines
    rows = connection.execute(
        select(table.c.status, func.count())
        .where(table.c.batch_id == batch_id)
        .group_by(table.c.status)
    ).all()
    total = sum(number for _, number in rows)
    completed = sum(number for status, number in rows if status == 200)
    failed = sum(number for status, number in rows if status is not None and status != 200)
    return Counts(total, completed, failed)


def claim(connection: Connection, worker_id: str, living: list[str]) -> Batch | None:
    """Take the oldest running batch that no living worker has; None where there is none."""
    table = tables.batches
    row = connection.execute(
        select(table)
        .where(
            table.c.status.in_(RUNNING),
            or_(table.c.worker_id.is_(None), table.c.worker_id.not_in(living)),
        )
        .order_by(table.c.created_us)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if row is None:
        return None
    connection.execute(update(table).where(table.c.id == row.id).values(worker_id=worker_id))
    return read_row(row, Batch)


def begin(connection: Connection, batch_id: str, custom_ids: list[str]) -> None:
    """Fix a valid batch's lines, each with its request id, and let them run."""
    if custom_ids:
        connection.execute(
            insert(tables.batch_lines),
            [
                {
                    "batch_id": batch_id,
                    "line": number,
                    "custom_id": custom_id,
                    "request_id": new_id("req"),
                    "status": None,
                    "body": None,
                }
                for number, custom_id in enumerate(custom_ids)
            ],
        )
    _set(connection, batch_id, ("validating",), status="in_progress", in_progress_us=now_us())


def fail(connection: Connection, batch_id: str, errors: list[dict[str, object]]) -> None:
    """End a batch whose input is wrong."""
    _set(
        connection,
        batch_id,
        RUNNING,
        status="failed",
        errors=msgspec.json.encode(errors).decode(),
        ended_us=now_us(),
    )


def answer(connection: Connection, batch_id: str, line: int, status: int, body: bytes) -> None:
    """Keep the answer of a line that is not billed."""
    table = tables.batch_lines
    connection.execute(
        update(table)
        .where(table.c.batch_id == batch_id, table.c.line == line, table.c.status.is_(None))
        .values(status=status, body=body)
    )


def cancel(connection: Connection, workspace_id: str, batch_id: str) -> Batch:
    """Ask a batch to stop: lines under way end, no other begins. Raises Refusal once it ended."""
    batch = find_batch(connection, workspace_id, batch_id)
    if batch.status not in RUNNING:
        raise Refusal(
            RefusalKind.CONFLICT, f"Batch {batch.id} is {batch.status}; it cannot be cancelled."
        )
    if batch.status != "cancelling":
        _set(
            connection,
            batch_id,
            ("validating", "in_progress"),
            status="cancelling",
            cancelling_us=now_us(),
        )
    return find_batch(connection, workspace_id, batch_id)


def end(
    connection: Connection,
    batch_id: str,
    status: Status,
    *,
    output_file_id: str | None,
    error_file_id: str | None,
) -> None:
    """Close a batch with its result files."""
    _set(
        connection,
        batch_id,
        RUNNING,
        status=status,
        output_file_id=output_file_id,
        error_file_id=error_file_id,
        ended_us=now_us(),
    )


def finalize(connection: Connection, batch_id: str) -> None:
    """All lines have answers; the result files come next."""
    _set(connection, batch_id, ("in_progress",), status="finalizing", finalizing_us=now_us())


def status_of(connection: Connection, batch_id: str) -> Status:
    """A batch's present status."""
    status: Status = connection.scalar(
        select(tables.batches.c.status).where(tables.batches.c.id == batch_id)
    )  # type: ignore[assignment]
    return status


def open_lines(connection: Connection, batch_id: str) -> list[Line]:
    """The lines that have no answer yet, in order."""
    table = tables.batch_lines
    rows = connection.execute(
        select(table.c.line, table.c.custom_id, table.c.request_id)
        .where(table.c.batch_id == batch_id, table.c.status.is_(None))
        .order_by(table.c.line)
    )
    return [Line(row.line, row.custom_id, row.request_id) for row in rows]


def answered_lines(
    connection: Connection, batch_id: str, *, well: bool, after: int, limit: int
) -> list[tuple[int, Answered]]:
    """Answers in the order of lines from `after` on: those with 200, or all others."""
    table = tables.batch_lines
    wanted = (
        table.c.status == 200 if well else and_(table.c.status.is_not(None), table.c.status != 200)
    )
    rows = connection.execute(
        select(table)
        .where(table.c.batch_id == batch_id, table.c.line > after, wanted)
        .order_by(table.c.line)
        .limit(limit)
    )
    return [
        (row.line, Answered(row.custom_id, row.request_id, row.status, row.body)) for row in rows
    ]


def _set(
    connection: Connection, batch_id: str, only_from: tuple[Status, ...], **values: object
) -> None:
    table = tables.batches
    connection.execute(
        update(table).where(table.c.id == batch_id, table.c.status.in_(only_from)).values(**values)
    )
