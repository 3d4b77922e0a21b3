"""What the serving path tells those who watch it: metrics, traces, logs."""

from __future__ import annotations

from typing import Protocol

from qwenstack.core.refusals import Refusal
from qwenstack.studio.charge import Charge
from qwenstack.studio.ticket import Ticket


class Observer(Protocol):
    """Is told of each request's end. Its methods are short and do not raise."""

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """A bill is durable."""
        ...

    def voided(self, ticket: Ticket) -> None:
        """A request ended without a bill."""
        ...

    def unmetered(self, ticket: Ticket) -> None:
        """A stream broke off and its engine cannot say what was delivered: it is not billed."""
        ...

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """An engine did not do its part."""
        ...

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """A request was refused before it ran, or broke."""
        ...


class Silent:
    """Watches nothing."""

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """Nothing."""

    def voided(self, ticket: Ticket) -> None:
        """Nothing."""

    def unmetered(self, ticket: Ticket) -> None:
        """Nothing."""

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """Nothing."""

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """Nothing."""
