"""Everyone who watches the serving path, as one observer."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from qwenstack.core.refusals import Refusal
from qwenstack.studio.charge import Charge
from qwenstack.studio.observability.logs import RequestLog
from qwenstack.studio.observability.metrics import Metrics
from qwenstack.studio.observability.worker_counts import Place
from qwenstack.studio.observers import Observer
from qwenstack.studio.settings import TelemetrySettings
from qwenstack.studio.ticket import Ticket

if TYPE_CHECKING:
    from qwenstack.studio.observability.traces import Traces


class Watchers:
    """Log, metrics, and traces where an endpoint for them is configured.

    `place` is where one of several workers counts.
    """

    def __init__(self, telemetry: TelemetrySettings, place: Place | None = None) -> None:
        self.metrics = Metrics(place)
        self._traces: Traces | None = None
        self._all: tuple[Observer, ...] = (RequestLog(), self.metrics)
        if telemetry.otlp_endpoint:
            # OpenTelemetry takes time and memory to load: only who sends traces pays for it.
            from qwenstack.studio.observability.traces import Traces

            version = importlib.metadata.version("qwenstack")
            self._traces = Traces(telemetry, version=version)
            self._all = (*self._all, self._traces)

    def close(self) -> None:
        """Send the spans that wait. Blocks for some seconds when the receiver is away."""
        if self._traces is not None:
            self._traces.close()

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """Tell everyone."""
        for each in self._all:
            each.settled(ticket, charge)

    def voided(self, ticket: Ticket) -> None:
        """Tell everyone."""
        for each in self._all:
            each.voided(ticket)

    def unmetered(self, ticket: Ticket) -> None:
        """Tell everyone."""
        for each in self._all:
            each.unmetered(ticket)

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """Tell everyone."""
        for each in self._all:
            each.engine_failed(ticket, error)

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """Tell everyone."""
        for each in self._all:
            each.refused(surface, refusal, request_id)
