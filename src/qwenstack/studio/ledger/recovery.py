"""After a worker died: bill what its streams had delivered, free what its requests held."""

from __future__ import annotations

import logging

import msgspec
from sqlalchemy import Connection, delete, func, select

from qwenstack.core.instants import now_us
from qwenstack.storage import tables
from qwenstack.storage.database import replace_in
from qwenstack.studio.ledger.writes import Forget, Refused, Settle, write_all, write_each

_log = logging.getLogger(__name__)

# A worker that is silent for this long is taken for dead. Should it live after all, nothing is
# billed twice: whichever settlement of a request comes second changes nothing.
LEASE_S = 15
HEARTBEAT_S = 3.0


def heartbeat(connection: Connection, worker_id: str) -> None:
    """Say that this worker lives."""
    replace_in(
        connection, tables.workers, [{"id": worker_id, "heartbeat_us": _clock_us(connection)}]
    )


def _clock_us(connection: Connection) -> int:
    """The one clock of all workers: between those of several machines may lie more than a lease."""
    if connection.dialect.name != "postgresql":
        return now_us()
    seconds = connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
    return int(seconds * 1_000_000)


def recover(connection: Connection, *, alone: bool) -> tuple[int, list[Settle]]:
    """Settle the saved streams of dead workers as interrupted: how many were new, and the refused.

    `alone` says that the caller is the only process on this database: then every worker that left
    something behind is dead, whatever the clock says, which may have been set back since.
    """
    workers, living = tables.workers, []
    if not alone:
        dead_before_us = _clock_us(connection) - LEASE_S * 1_000_000
        alive = select(workers.c.id).where(workers.c.heartbeat_us >= dead_before_us)
        living = list(connection.scalars(alive))
    streams = tables.open_streams
    left = connection.execute(
        select(streams.c.request_id, streams.c.charge).where(streams.c.worker_id.not_in(living))
    ).all()
    settlements = []
    for row in left:
        try:
            settlements.append(msgspec.json.decode(row.charge, type=Settle))
        except msgspec.MsgspecError:  # of another release
            _log.critical("the saved stream %s is no bill: %r", row.request_id, row.charge)
    results = write_each(connection, settlements)
    pairs = zip(settlements, results, strict=True)
    refused = [settle for settle, result in pairs if isinstance(result, Refused)]
    if left:  # what stayed of them would be looked at again and again
        write_all(connection, [Forget(tuple(row.request_id for row in left))])
    connection.execute(delete(tables.holds).where(tables.holds.c.worker_id.not_in(living)))
    connection.execute(delete(workers).where(workers.c.id.not_in(living)))
    return results.count(True), refused
