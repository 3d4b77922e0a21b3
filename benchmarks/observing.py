"""What watching costs a settled request: its log line, its metrics and, where asked, its span.

    python -m benchmarks.observing

Takes a real request's ticket and charge, tells each watcher of it again and again, and prints the
median microseconds of this thread's processor time over rounds. Log lines go to a file; the
collector of the spans is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from qwenstack.studio.charge import Charge
from qwenstack.studio.observability.logs import RequestLog, configure_logging
from qwenstack.studio.observability.metrics import Metrics
from qwenstack.studio.observability.traces import Traces
from qwenstack.studio.observability.watchers import Watchers
from qwenstack.studio.observers import Observer, Silent
from qwenstack.studio.settings import LogSettings, TelemetrySettings
from qwenstack.studio.ticket import Ticket
from tests.studio import running_studio

ROUNDS = 30
REQUESTS_PER_ROUND = 500
_NOBODY = "http://127.0.0.1:9"


class Capture(Silent):
    """Keeps the last bill."""

    def __init__(self) -> None:
        self.bills: list[tuple[Ticket, Charge]] = []

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """Keep it."""
        self.bills.append((ticket, charge))


async def one_bill(home: Path) -> tuple[Ticket, Charge]:
    """A streamed request through a whole studio."""
    capture = Capture()
    async with running_studio(home, observer=capture) as studio:
        response = await studio.chat(await studio.tenant(), stream=True)
        await response.read()
        [bill] = capture.bills
        return bill


def cost_us(observer: Observer, ticket: Ticket, charge: Charge) -> float:
    """The median microseconds of processor time that `observer` takes for a bill."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(REQUESTS_PER_ROUND):
            observer.settled(ticket, charge)
        rounds.append((time.thread_time() - start) / REQUESTS_PER_ROUND * 1e6)
    return statistics.median(rounds)


@contextlib.contextmanager
def logging_to(path: Path, shape: Literal["json", "text"], level: str) -> Iterator[None]:
    """Log as a server does."""
    with path.open("w") as stream:
        settings = LogSettings(format=shape, level=level)  # type: ignore[arg-type]
        configure_logging(settings, stream)
        yield


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ticket, charge = asyncio.run(one_bill(home))

        def show(what: str, observer: Observer) -> None:
            print(f"{what:44}{cost_us(observer, ticket, charge):8.1f} us")

        show("metrics", Metrics())
        with logging_to(home / "log", "json", "info"):
            show("log line, JSON", RequestLog())
            show("log and metrics, JSON", Watchers(TelemetrySettings()))
        with logging_to(home / "log", "text", "info"):
            show("log line, text", RequestLog())
            show("log and metrics, text", Watchers(TelemetrySettings()))
        with logging_to(home / "log", "json", "warning"):
            show("log and metrics, level warning", Watchers(TelemetrySettings()))
        logging.disable()
        for ratio in (0.0, 1.0):
            traces = Traces(
                TelemetrySettings(otlp_endpoint=_NOBODY, sample_ratio=ratio), version="0"
            )
            show(f"span, sample_ratio {ratio:g}", traces)
            traces.close()


if __name__ == "__main__":
    main()
