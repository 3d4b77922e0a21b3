"""`GET /v1/usage`: what a workspace consumed, for its own keys; and the query behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Connection, Engine

from qwenstack.core.instants import now_us, to_us
from qwenstack.core.refusals import invalid
from qwenstack.storage.database import reading
from qwenstack.studio.http.exchange import Exchange
from qwenstack.studio.http.query import read_query
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.surfaces.interface import Reply
from qwenstack.studio.tenants import Tenants
from qwenstack.studio.usage import Grouping, UsageLine, read_charges, sum_usage


class UsageRoute:
    """Shows a caller with the scope `usage` the sums of its own workspace.

    `key=self` keeps to the calling key; `by`, `start` and `end` are as in the admin API.
    """

    def __init__(self, tenants: Tenants, database: Engine, journal: Journal) -> None:
        self._tenants = tenants
        self._database = database
        self._journal = journal

    async def __call__(self, exchange: Exchange) -> None:
        """GET /v1/usage."""
        caller = self._tenants.caller(exchange.secret, "usage", now_us())
        query = read_query(exchange.query)
        if query.get("key", "self") != "self":
            raise invalid("'key' can only be 'self', or be left out.", "key")
        key_id = caller.key.id if "key" in query else None

        def read() -> list[UsageLine]:
            with reading(self._database) as connection:
                return usage_lines(connection, query, caller.workspace.id, key_id)

        await self._journal.written()
        await exchange.reply(Reply(200, msgspec.json.encode(await asyncio.to_thread(read))))


def usage_lines(
    connection: Connection,
    query: Mapping[str, str],
    workspace_id: str | None,
    key_id: str | None = None,
) -> list[UsageLine]:
    """The sums that `by`, `start` and `end` (ISO 8601, UTC unless they say) ask for."""
    try:
        grouping = msgspec.convert(query.get("by", "model"), Grouping)
        start = _utc(datetime.fromisoformat(query.get("start", "1970-01-01")))
        end = _utc(datetime.fromisoformat(query.get("end", "9999-12-31")))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise invalid(f"The query is not as expected: {str(error)[:120]}.") from error
    charges = read_charges(
        connection,
        start_us=to_us(start),
        end_us=to_us(end),
        workspace_id=workspace_id,
        key_id=key_id,
    )
    return sum_usage(charges, grouping)


def _utc(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
