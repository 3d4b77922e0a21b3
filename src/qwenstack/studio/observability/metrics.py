"""Prometheus metrics: counted as requests end, and read off the installation when scraped."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from qwenstack.core.instants import to_us
from qwenstack.core.refusals import Refusal
from qwenstack.studio.admission.queue import Priority
from qwenstack.studio.charge import Charge
from qwenstack.studio.installation import Installation
from qwenstack.studio.observability.worker_counts import Place, count_at, sums
from qwenstack.studio.ticket import Ticket

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
OUTPUT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
# How old another worker's gauges may be.
GAUGES_EVERY_S = 1.0


class Metrics:
    """An observer that counts. All of its labels have few values, whatever clients send.

    A settled request costs some microseconds: the children of each label set are looked up once.
    With a `place`, this process is one of several workers, and a scrape shows the sum of all.
    """

    def __init__(self, place: Place | None = None) -> None:
        self._place = place
        if place is not None:
            count_at(place)
        # The time at which a counter began says nothing that the process's start does not, and
        # takes a line of its own for each child.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        if place is None:
            self.registry = registry
            ProcessCollector(registry=registry)
            registry.register(_Build())
        else:
            self.registry = sums(place, _Build())
        self._requests = Counter(
            "qwenstack_requests_total",
            "Admitted requests that ended: complete, interrupted (both billed) or voided.",
            ("surface", "model", "outcome"),
            registry=registry,
        )
        self._refusals = Counter(
            "qwenstack_refusals_total",
            "Requests answered with an error, by cause.",
            ("surface", "kind"),
            registry=registry,
        )
        self._tokens = Counter(
            "qwenstack_tokens_total",
            "Billed tokens, as the engine counted them, by the meter that priced them.",
            ("model", "meter"),
            registry=registry,
        )
        self._cost = Counter(
            "qwenstack_cost_micro_total",
            "What settled requests cost, in millionths of the currency.",
            ("model", "currency"),
            registry=registry,
        )
        self._failures = Counter(
            "qwenstack_engine_failures_total",
            "Requests whose engine did not do its part, by the error's class.",
            ("model", "error"),
            registry=registry,
        )
        self._unmetered = Counter(
            "qwenstack_unmetered_streams_total",
            "Broken streams whose tokens the engine could not count: not billed.",
            ("model",),
            registry=registry,
        )
        self._first_token = Histogram(
            "qwenstack_first_token_seconds",
            "From a request's arrival to its first token.",
            ("model",),
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self._duration = Histogram(
            "qwenstack_request_seconds",
            "From a billed request's arrival to its bill.",
            ("model",),
            buckets=REQUEST_S,
            registry=registry,
        )
        self._pace = Histogram(
            "qwenstack_output_token_seconds",
            "Mean time of an output token after the first, one observation a request.",
            ("model",),
            buckets=OUTPUT_TOKEN_S,
            registry=registry,
        )
        self._served: dict[tuple[str, str], _Served] = {}

    def watch(self, installation: Installation) -> None:
        """Show an installation's state from now on: queues, journal, streams. Call it once."""
        if self._place is None:
            self.registry.register(_State(installation))
        else:
            self._sharing = asyncio.get_running_loop().create_task(_share_state(installation))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """What a scrape that accepts `accept` gets, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """Count a bill."""
        key = (charge.surface, charge.model)
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = _Served(self, *key)
        served.add(ticket, charge)

    def voided(self, ticket: Ticket) -> None:
        """Count a request without a bill."""
        self._requests.labels(ticket.surface, ticket.deployment.name, "voided").inc()

    def unmetered(self, ticket: Ticket) -> None:
        """Count a stream that nobody could count."""
        self._unmetered.labels(ticket.deployment.name).inc()

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """Count an engine's failure by its class."""
        self._failures.labels(ticket.deployment.name, type(error).__name__).inc()

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """Count a refusal by its kind."""
        self._refusals.labels(surface, refusal.kind.value).inc()


class _Served:
    """The children that one (surface, model) counts on."""

    def __init__(self, metrics: Metrics, surface: str, model: str) -> None:
        self._model = model
        self._cost_of = metrics._cost
        self._tokens_of = metrics._tokens
        self._complete = metrics._requests.labels(surface, model, "complete")
        self._interrupted = metrics._requests.labels(surface, model, "interrupted")
        self._first_token = metrics._first_token.labels(model)
        self._duration = metrics._duration.labels(model)
        self._pace = metrics._pace.labels(model)
        self._tokens: dict[str, Counter] = {}
        self._cost: dict[str, Counter] = {}

    def add(self, ticket: Ticket, charge: Charge) -> None:
        (self._complete if charge.outcome == "complete" else self._interrupted).inc()
        for line in charge.lines:
            tokens = self._tokens.get(line.meter)
            if tokens is None:
                tokens = self._tokens_of.labels(self._model, line.meter)
                self._tokens[line.meter] = tokens
            tokens.inc(line.tokens)
        cost = self._cost.get(charge.currency)
        if cost is None:
            cost = self._cost_of.labels(self._model, charge.currency)
            self._cost[charge.currency] = cost
        cost.inc(charge.amount_micro)
        # The clock may have been set back meanwhile: a duration is never negative.
        end_us = to_us(charge.finished_at)
        self._duration.observe(max(0, end_us - ticket.started_us) / 1e6)
        first_us, completion = ticket.first_token_us, charge.usage.completion
        if first_us is not None:
            self._first_token.observe(max(0, first_us - ticket.started_us) / 1e6)
            if completion > 1:
                self._pace.observe(max(0, end_us - first_us) / 1e6 / (completion - 1))


class _Build(Collector):
    """The version that runs."""

    def collect(self) -> Iterator[Metric]:
        """Always 1."""
        version = importlib.metadata.version("qwenstack")
        yield InfoMetricFamily(
            "qwenstack_build", "The version that runs.", value={"version": version}
        )


class _State(Collector):
    """What an installation looks like at the moment of the scrape."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def describe(self) -> list[Metric]:
        """The families without samples: registering asks for names, not for state."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """The gauges as of now."""
        installation, families = self._installation, _families()
        for deployment in installation.deployments:
            queue = deployment.queue
            if queue is None:
                continue
            for priority in Priority:
                families["queue_waiting"].add_metric(
                    (deployment.name, priority.value), queue.waiting_in(priority)
                )
            families["slots_running"].add_metric((deployment.name,), queue.running)
            families["slots"].add_metric((deployment.name,), queue.slots)
        for name, value in _figures(installation).items():
            families[name].add_metric((), value)
        yield from families.values()


def _figures(installation: Installation) -> dict[str, int]:
    """What a process is busy with."""
    return {
        "journal_depth": installation.journal.depth,
        "journal_healthy": int(installation.journal.healthy),
        "open_streams": len(installation.streams),
        "draining": int(installation.door.draining),
    }


async def _share_state(installation: Installation) -> None:
    """Tell the other workers of this one's figures, again and again.

    Several workers embed no engine, so there are no queues and slots to tell of.
    """
    # How the workers' figures become one: none but the unhealthy one shows that one is unhealthy.
    modes = {"journal_healthy": "livemin", "draining": "livemax"}
    gauges = {
        name: Gauge(
            f"qwenstack_{name}",
            _families()[name].documentation,
            registry=None,
            multiprocess_mode=modes.get(name, "livesum"),  # type: ignore[arg-type]
        )
        for name in _figures(installation)
    }
    while True:
        for name, value in _figures(installation).items():
            gauges[name].set(value)
        await asyncio.sleep(GAUGES_EVERY_S)


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        name: GaugeMetricFamily(f"qwenstack_{name}", text, labels=labels)
        for name, text, labels in (
            ("queue_waiting", "Requests that wait for a slot.", ("model", "priority")),
            ("slots_running", "Requests on an engine of our own.", ("model",)),
            ("slots", "How many an engine of our own runs at once.", ("model",)),
            ("journal_depth", "Writes that are not durable yet.", ()),
            ("journal_healthy", "1 while the ledger can be written to.", ()),
            ("open_streams", "Streams under way.", ()),
            ("draining", "1 once the process takes no new requests.", ()),
        )
    }
