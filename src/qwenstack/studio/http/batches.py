"""`/v1/files` and `/v1/batches`, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import Connection

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import invalid
from qwenstack.studio.batch import records
from qwenstack.studio.batch.input import ENDPOINTS
from qwenstack.studio.batch.runner import BatchRunner
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.multipart import read_form
from qwenstack.studio.http.query import read_limit, read_query
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.surfaces.json_body import decode
from qwenstack.studio.surfaces.openai_fields import check_metadata
from qwenstack.studio.tenancy import Workspace
from qwenstack.studio.tenants import Tenants

FILE_BYTES_MAX = 512 * 1024 * 1024
_BODY_BYTES_MAX = 64 * 1024
_HOUR_S = 3600
_WINDOWS = {"24h": 24 * _HOUR_S, "7d": 7 * 24 * _HOUR_S, "14d": 14 * 24 * _HOUR_S}


class NewBatch(msgspec.Struct, forbid_unknown_fields=True):
    """The body that creates a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: msgspec.Raw | None = None


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file; `created_at` is in Unix seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, frozen=True):
    """A page of files, newest first."""

    data: tuple[FileObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedFile(msgspec.Struct, frozen=True):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchErrors(msgspec.Struct, frozen=True):
    """Why a batch's input was refused."""

    data: list[dict[str, Any]]
    object: Literal["list"] = "list"


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch; the instants of its steps are in Unix seconds, null where one has not come."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: records.Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: records.Counts
    metadata: dict[str, str] | None


class BatchList(msgspec.Struct, frozen=True):
    """A page of batches, newest first."""

    data: tuple[BatchObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


_new_batch = msgspec.json.Decoder(NewBatch)


class FileRoutes:
    """Uploading, listing, reading and deleting a workspace's files."""

    def __init__(self, tenants: Tenants, runner: BatchRunner) -> None:
        self._tenants = tenants
        self._runner = runner

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/files."""
        workspace = _workspace(self._tenants, exchange)
        pieces = exchange.body_pieces(FILE_BYTES_MAX)
        async with read_form(exchange.headers.get(b"content-type", b""), pieces) as form:
            if form.filename is None:
                raise invalid("The form has no file in its field 'file'.", "file")
            purpose = form.fields.get("purpose", "")
            if purpose != "batch":
                raise invalid(f"'purpose' is {purpose[:40]!r}; it must be 'batch'.", "purpose")
            file_id, filename = new_id("file"), form.filename
            # Off the event loop: half a gigabyte and its flush would hold up every stream.
            size, sha256 = await asyncio.to_thread(self._runner.objects.put, file_id, form.pieces())
        stored = await self._runner.write(
            lambda connection: records.add_file(
                connection,
                workspace_id=workspace.id,
                file_id=file_id,
                purpose=purpose,
                filename=filename,
                size=size,
                sha256=sha256,
            )
        )
        await _reply(exchange, _file(cast(records.StoredFile, stored)))

    async def index(self, exchange: Exchange) -> None:
        """GET /v1/files."""
        workspace = _workspace(self._tenants, exchange)
        query = read_query(exchange.query)
        limit = read_limit(query, 20, records.PAGE_MAX)
        found = cast(
            list[records.StoredFile],
            await self._runner.read(
                lambda connection: records.list_files(
                    connection, workspace.id, query.get("purpose"), query.get("after"), limit + 1
                )
            ),
        )
        page = tuple([_file(each) for each in found[:limit]])
        await _reply(exchange, FileList(page, *_ends(page), len(found) > limit))

    async def by_id(self, exchange: Exchange) -> None:
        """GET /v1/files/{id} and GET /v1/files/{id}/content."""
        workspace = _workspace(self._tenants, exchange)
        file_id, _, tail = _tail(exchange).partition("/")
        file = cast(
            records.StoredFile,
            await self._runner.read(
                lambda connection: records.find_file(connection, workspace.id, file_id)
            ),
        )
        if tail == "content":
            pieces = self._runner.objects.pieces(file.id)
            await exchange.reply_pieces(file.bytes, b"application/jsonl", pieces)
            return
        await _reply(exchange, _file(file))

    async def delete(self, exchange: Exchange) -> None:
        """DELETE /v1/files/{id}."""
        workspace = _workspace(self._tenants, exchange)
        file_id = _tail(exchange)
        await self._runner.write(
            lambda connection: records.delete_file(connection, workspace.id, file_id)
        )
        self._runner.objects.delete(file_id)
        await _reply(exchange, DeletedFile(file_id))


class BatchRoutes:
    """Creating, listing, reading and cancelling a workspace's batches."""

    def __init__(self, tenants: Tenants, runner: BatchRunner) -> None:
        self._tenants = tenants
        self._runner = runner

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/batches."""
        caller = self._tenants.caller(exchange.secret, "batch", now_us())
        wire = decode(_new_batch, await exchange.body(_BODY_BYTES_MAX))
        if wire.endpoint not in ENDPOINTS:
            raise invalid(
                f"'endpoint' is {wire.endpoint[:80]!r}; it must be one of {', '.join(ENDPOINTS)}.",
                "endpoint",
            )
        window_s = _WINDOWS.get(wire.completion_window)
        if window_s is None:
            raise invalid(
                f"'completion_window' is {wire.completion_window[:20]!r}; it must be one of "
                f"{', '.join(_WINDOWS)}.",
                "completion_window",
            )
        check_metadata(wire.metadata)

        def act(connection: Connection) -> records.Batch:
            records.find_file(connection, caller.workspace.id, wire.input_file_id)
            return records.add_batch(
                connection,
                workspace_id=caller.workspace.id,
                key_id=caller.key.id,
                endpoint=wire.endpoint,
                input_file_id=wire.input_file_id,
                metadata=wire.metadata,
                window_s=window_s,
            )

        batch = cast(records.Batch, await self._runner.write(act))
        self._runner.wake()
        await _reply(exchange, _batch(batch, records.Counts(0, 0, 0)))

    async def index(self, exchange: Exchange) -> None:
        """GET /v1/batches."""
        workspace = _workspace(self._tenants, exchange)
        query = read_query(exchange.query)
        limit = read_limit(query, 20, records.PAGE_MAX)

        def act(connection: Connection) -> list[BatchObject]:
            found = records.list_batches(connection, workspace.id, query.get("after"), limit + 1)
            return [_batch(each, records.counts_of(connection, each.id)) for each in found]

        found = cast(list[BatchObject], await self._runner.read(act))
        page = tuple(found[:limit])
        await _reply(exchange, BatchList(page, *_ends(page), len(found) > limit))

    async def by_id(self, exchange: Exchange) -> None:
        """GET /v1/batches/{id}."""
        workspace = _workspace(self._tenants, exchange)
        batch_id = _tail(exchange)
        await _reply(exchange, await self._shown(workspace, batch_id))

    async def cancel(self, exchange: Exchange) -> None:
        """POST /v1/batches/{id}/cancel."""
        workspace = _workspace(self._tenants, exchange)
        batch_id, _, verb = _tail(exchange).partition("/")
        if verb != "cancel":
            raise invalid("A batch takes POST at /v1/batches/{id}/cancel only.")
        await self._runner.write(
            lambda connection: records.cancel(connection, workspace.id, batch_id)
        )
        self._runner.wake()
        await _reply(exchange, await self._shown(workspace, batch_id))

    async def _shown(self, workspace: Workspace, batch_id: str) -> BatchObject:
        def act(connection: Connection) -> BatchObject:
            batch = records.find_batch(connection, workspace.id, batch_id)
            return _batch(batch, records.counts_of(connection, batch_id))

        return cast(BatchObject, await self._runner.read(act))


def _workspace(tenants: Tenants, exchange: Exchange) -> Workspace:
    return tenants.caller(exchange.secret, "batch", now_us()).workspace


def _tail(exchange: Exchange) -> str:
    """What follows `…/files/` or `…/batches/` in the path."""
    for word in ("/files/", "/batches/"):
        _, found, tail = exchange.path.partition(word)
        if found:
            return tail
    return ""


def _ends(page: Sequence[FileObject | BatchObject]) -> tuple[str | None, str | None]:
    """The ids of the first and the last of a page."""
    return (page[0].id, page[-1].id) if page else (None, None)


async def _reply(exchange: Exchange, value: object) -> None:
    await exchange.reply(Reply(200, msgspec.json.encode(value)))


def _file(file: records.StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_us // 1_000_000,
        filename=file.filename,
        purpose=file.purpose,
    )


def _batch(batch: records.Batch, counts: records.Counts) -> BatchObject:
    def seconds(instant_us: int | None) -> int | None:
        return None if instant_us is None else instant_us // 1_000_000

    def ended(status: records.Status) -> int | None:
        return seconds(batch.ended_us) if batch.status == status else None

    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchErrors(msgspec.json.decode(batch.errors)) if batch.errors else None,
        input_file_id=batch.input_file_id,
        completion_window=next(
            name for name, window_s in _WINDOWS.items() if window_s == batch.window_s
        ),
        status=batch.status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_us // 1_000_000,
        in_progress_at=seconds(batch.in_progress_us),
        expires_at=batch.expires_us // 1_000_000,
        finalizing_at=seconds(batch.finalizing_us),
        completed_at=ended("completed"),
        failed_at=ended("failed"),
        expired_at=ended("expired"),
        cancelling_at=seconds(batch.cancelling_us),
        cancelled_at=ended("cancelled"),
        request_counts=counts,
        metadata=msgspec.json.decode(batch.metadata) if batch.metadata else None,
    )
