"""Watching the budgets and sending what waits, in the background of every serving process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine

from qwenstack.core.money import Money
from qwenstack.storage.database import reading
from qwenstack.studio.alerts.budgets import Crossing, crossings, raise_alert
from qwenstack.studio.alerts.sending import Outcome, Sender
from qwenstack.studio.alerts.webhooks import Claimed, any_due, claim, settle
from qwenstack.studio.background import Background
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.standing import read_standing
from qwenstack.studio.ledger.writes import Run
from qwenstack.studio.tenancy import Tenancy

_log = logging.getLogger(__name__)

WATCH_EVERY_S = 2.0
_AT_ONCE = 8


class AlertWatch:
    """Raises an alert when a budget's line is crossed, and delivers it at least once.

    An alert is a line in the log and a message to each webhook of its workspace. A message that is
    delivered, and whose process dies before it is noted, is delivered again under the same id.
    """

    def __init__(
        self,
        database: Engine,
        journal: Journal,
        sender: Sender,
        tenancy: Callable[[], Tenancy],
    ) -> None:
        self.sender = sender
        self._database = database
        self._journal = journal
        self._tenancy = tenancy
        self._raised: set[tuple[str, int]] = set()
        # What is being sent when it stops is sent again by the next process.
        self.background = Background("the watch over budgets", WATCH_EVERY_S, self.look)

    async def look(self) -> None:
        """Raise what has to be raised, and send what is due."""
        if not self._journal.healthy:
            return
        spent = await self._read(lambda connection: read_standing(connection).spent)
        for crossing in crossings(self._tenancy(), spent, datetime.now(UTC)):
            if crossing.key not in self._raised:
                await self._raise(crossing)
        if await self._read(any_due):
            # What this leaves is taken up at the next look: one receiver that hangs must not keep
            # the budgets from being watched.
            claimed: list[Claimed] = await self._write(lambda it: claim(it, _AT_ONCE))
            outcomes = await asyncio.gather(*map(self._send, claimed))
            tried = [
                (each.delivery, outcome) for each, outcome in zip(claimed, outcomes, strict=True)
            ]
            await self._write(lambda it: settle(it, tried))

    async def _raise(self, crossing: Crossing) -> None:
        new, problems = await self._write(lambda connection: raise_alert(connection, crossing))
        self._raised.add(crossing.key)
        if not new:
            return
        budget, workspace = crossing.budget, crossing.workspace
        _log.warning(
            "budget %s of workspace %s: %s of %s per %s are spent",
            budget.id,
            workspace.name,
            Money(crossing.spent_micro, workspace.currency),
            Money(budget.limit_micro, workspace.currency),
            budget.period,
            extra={"event": "budget_alert", "budget": budget.id, "workspace": workspace.id},
        )
        for problem in problems:
            _log.error("a budget alert is not sent: %s", problem)

    async def _send(self, claimed: Claimed) -> Outcome:
        delivery, webhook = claimed.delivery, claimed.webhook
        outcome = await self.sender.send(
            webhook_id=webhook.id,
            url=webhook.url,
            secret_digest=webhook.secret_digest,
            message_id=delivery.message_id,
            body=delivery.body,
        )
        if not outcome.delivered:
            _log.warning(
                "alert %s did not reach the webhook %s at attempt %s: %s",
                delivery.message_id,
                webhook.id,
                delivery.attempts,
                outcome.words,
            )
        return outcome

    async def _read(self, what: Callable[[Connection], Any]) -> Any:
        def act() -> Any:
            with reading(self._database) as connection:
                return what(connection)

        return await asyncio.to_thread(act)

    async def _write(self, what: Callable[[Connection], Any]) -> Any:
        return await self._journal.submit(Run(what))
