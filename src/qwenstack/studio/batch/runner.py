"""Running batches: every line once, at the batch price, below interactive traffic.

A line's answer and its bill become durable in one transaction, under a request id that was fixed
before the line ran. So a process that comes back after a kill runs exactly the lines that have no
answer, and bills none twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Engine, select

from qwenstack.core.identifiers import new_id
from qwenstack.core.instants import now_us
from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.storage import tables
from qwenstack.storage.database import reading
from qwenstack.storage.objects import ObjectFolder
from qwenstack.studio.background import Background
from qwenstack.studio.batch import records
from qwenstack.studio.batch.input import InputError, LineInput, check_input, parse_line
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.writes import Run
from qwenstack.studio.ticket import BatchLine

POLL_S = 1.0
LINES_AT_ONCE = 8
_PAGE_LINES = 200
_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 30.0
# What another try may cure; everything else is the line's own fault and its answer.
_RETRYABLE = frozenset(
    {
        RefusalKind.RATE_REQUESTS,
        RefusalKind.RATE_TOKENS,
        RefusalKind.RATE_CONCURRENCY,
        RefusalKind.OVERLOADED,
        RefusalKind.DRAINING,
        RefusalKind.ENGINE_UNAVAILABLE,
        RefusalKind.ENGINE_TIMEOUT,
        RefusalKind.STORAGE_UNAVAILABLE,
    }
)

RunLine = Callable[[records.Batch, LineInput, BatchLine, str], Awaitable[None]]
"""Serve a line and settle it together with its answer; raises Refusal."""

RefuseLine = Callable[[str, Refusal, str], tuple[int, bytes]]
"""The status and body of a refused line, in its endpoint's shape."""


class BatchRunner:
    """Takes up batches that nobody runs, one at a time, in the background."""

    def __init__(
        self,
        *,
        database: Engine,
        journal: Journal,
        folder: Path,
        worker_id: str,
        run_line: RunLine,
        refuse_line: RefuseLine,
    ) -> None:
        self.objects = ObjectFolder(folder)
        self._database = database
        self._journal = journal
        self._worker_id = worker_id
        self._run_line = run_line
        self._refuse_line = refuse_line
        self._wake = asyncio.Event()
        # The lines under way when it stops run again later, unbilled so far.
        self.background = Background("the runner of batches", 0.0, self._take_up)

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    async def write(self, act: Callable[[Connection], object]) -> object:
        """Carry out a durable act, in order with the ledger's own."""
        return await self._journal.submit(Run(act))

    async def read(self, query: Callable[[Connection], object]) -> object:
        """Read from the database off the event loop."""
        return await asyncio.to_thread(self._read, query)

    def _read(self, query: Callable[[Connection], object]) -> object:
        with reading(self._database) as connection:
            return query(connection)

    async def _take_up(self) -> None:
        """Run a batch, or wait a while for one."""
        batch = await self.write(self._claim)
        if isinstance(batch, records.Batch):
            await self._advance(batch)
            return
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    def _claim(self, connection: Connection) -> object:
        living = list(connection.scalars(select(tables.workers.c.id)))
        return records.claim(
            connection, self._worker_id, [each for each in living if each != self._worker_id]
        )

    async def _advance(self, batch: records.Batch) -> None:
        """Take one batch from where it stands to its end."""
        try:
            if batch.status == "validating":
                await self._validate(batch)
            status = await self.read(lambda connection: records.status_of(connection, batch.id))
            if status == "in_progress":
                await self._run_lines(batch)
        except FileNotFoundError:
            missing: list[dict[str, object]] = [
                {"code": "missing_file", "message": "The input file is gone.", "line": None}
            ]
            await self.write(lambda connection: records.fail(connection, batch.id, missing))
        await self._close(batch)

    async def _validate(self, batch: records.Batch) -> None:
        lines = self.objects.lines(batch.input_file_id)
        try:
            ids = await asyncio.to_thread(check_input, lines, batch.endpoint)
        except InputError as error:
            errors = error.errors
            await self.write(lambda connection: records.fail(connection, batch.id, errors))
        else:
            await self.write(lambda connection: records.begin(connection, batch.id, ids))

    async def _run_lines(self, batch: records.Batch) -> None:
        todo = await self.read(lambda connection: records.open_lines(connection, batch.id))
        assert isinstance(todo, list)
        waiting: dict[int, records.Line] = {line.number: line for line in todo}
        running: set[asyncio.Task[None]] = set()
        try:
            for number, raw in enumerate(self.objects.lines(batch.input_file_id)):
                line = waiting.pop(number, None)
                if line is None:
                    continue
                if len(running) >= LINES_AT_ONCE:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if await self._must_stop(batch):
                    break
                running.add(asyncio.create_task(self._answer(batch, line, raw)))
            if running:
                await asyncio.wait(running)
        finally:
            for task in running:
                task.cancel()

    async def _must_stop(self, batch: records.Batch) -> bool:
        if now_us() >= batch.expires_us:
            return True
        status = await self.read(lambda connection: records.status_of(connection, batch.id))
        return status != "in_progress"

    async def _answer(self, batch: records.Batch, line: records.Line, raw: bytes) -> None:
        """Run a line until it has an answer or the batch's time is over."""
        delay_s = _RETRY_FIRST_S
        while now_us() < batch.expires_us:
            try:
                parsed = parse_line(raw, batch.endpoint)
                place = BatchLine(batch.id, line.number)
                await self._run_line(batch, parsed, place, line.request_id)
            except Refusal as refusal:
                if refusal.kind not in _RETRYABLE:
                    await self._keep_refusal(batch, line, refusal)
                    return
                if await self._must_stop(batch):
                    return
                await asyncio.sleep(max(refusal.retry_after_s or 0, delay_s))
                delay_s = min(delay_s * 2, _RETRY_MAX_S)
            else:
                return

    async def _keep_refusal(
        self, batch: records.Batch, line: records.Line, refusal: Refusal
    ) -> None:
        status, body = self._refuse_line(batch.endpoint, refusal, line.request_id)
        await self.write(
            lambda connection: records.answer(connection, batch.id, line.number, status, body)
        )

    async def _close(self, batch: records.Batch) -> None:
        """Write the result files of a batch that runs no more, and end it."""
        status = await self.read(lambda connection: records.status_of(connection, batch.id))
        if status == "failed":
            return
        if status == "in_progress":
            left = await self.read(lambda connection: records.open_lines(connection, batch.id))
            if left and now_us() < batch.expires_us:
                return
            await self.write(lambda connection: records.finalize(connection, batch.id))
        final: records.Status = "completed"
        if status == "cancelling":
            final = "cancelled"
        elif await self.read(lambda connection: records.open_lines(connection, batch.id)):
            final = "expired"
        output = await self._write_results(batch, well=True)
        errors = await self._write_results(batch, well=False)
        await self.write(
            lambda connection: records.end(
                connection, batch.id, final, output_file_id=output, error_file_id=errors
            )
        )

    async def _write_results(self, batch: records.Batch, *, well: bool) -> str | None:
        file_id = new_id("file")
        size, sha256 = await asyncio.to_thread(
            self.objects.put, file_id, self._result_lines(batch, well=well)
        )
        if size == 0:
            self.objects.delete(file_id)
            return None
        name = f"{batch.id}_{'output' if well else 'error'}.jsonl"
        await self.write(
            lambda connection: records.add_file(
                connection,
                workspace_id=batch.workspace_id,
                file_id=file_id,
                purpose="batch_output",
                filename=name,
                size=size,
                sha256=sha256,
            )
        )
        return file_id

    def _result_lines(self, batch: records.Batch, *, well: bool) -> Iterator[bytes]:
        after = -1
        while True:
            with reading(self._database) as connection:
                page = records.answered_lines(
                    connection, batch.id, well=well, after=after, limit=_PAGE_LINES
                )
            for _, answered in page:
                yield _result(answered, well=well)
            if len(page) < _PAGE_LINES:
                return
            after = page[-1][0]


def _result(answered: records.Answered, *, well: bool) -> bytes:
    response = {
        "status_code": answered.status,
        "request_id": answered.request_id,
        "body": msgspec.Raw(answered.body),
    }
    line = {
        "id": f"batch_{answered.request_id}",
        "custom_id": answered.custom_id,
        "response": response,
        "error": None if well else {"code": str(answered.status), "message": "see response.body"},
    }
    return msgspec.json.encode(line) + b"\n"
