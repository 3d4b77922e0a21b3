"""A span for each admitted request, after OpenTelemetry's conventions for generative AI.

Import this module only where traces go somewhere: it loads OpenTelemetry. A span carries counts,
names and identifiers, never text of a request.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import logging
import threading

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from qwenstack.core.generation import EmbeddingRequest, GenerationRequest
from qwenstack.core.instants import now_us, to_us
from qwenstack.core.refusals import Refusal
from qwenstack.core.trace_context import TraceContext, begin_span
from qwenstack.studio.charge import Charge
from qwenstack.studio.settings import TelemetrySettings
from qwenstack.studio.ticket import Ticket

_log = logging.getLogger(__name__)

Attributes = dict[str, str | int | float | bool]

QUEUE_MAX = 4096
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 3.0
_TRACES_PATH = "/v1/traces"


class Traces:
    """An observer that makes spans and sends them from a thread of its own.

    At most `QUEUE_MAX` spans wait; where the receiver cannot keep up, further ones are dropped.
    """

    def __init__(self, settings: TelemetrySettings, *, version: str) -> None:
        resource = Resource.create({"service.name": "qwenstack", "service.version": version})
        self._sample_ratio = settings.sample_ratio
        self._ids = _GivenIds()
        self._provider = TracerProvider(
            resource=resource,
            # What is sampled was decided when the request came, since its engine was told.
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._exporter = OTLPSpanExporter(
            endpoint=traces_url(settings.otlp_endpoint), timeout=EXPORT_TIMEOUT_S
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(self._exporter, max_queue_size=QUEUE_MAX)
        )
        self._tracer = self._provider.get_tracer("qwenstack", version)

    def close(self) -> None:
        """Send what waits, or give it up after `CLOSE_S`. Blocks."""
        # The library's own shutdown tries for half a minute when the receiver is away.
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            _log.warning("spans were dropped: the receiver did not take them in %g s", CLOSE_S)

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """The span of a billed request."""
        attributes = _request_attributes(ticket)
        usage = charge.usage
        attributes["gen_ai.usage.input_tokens"] = usage.prompt
        attributes["gen_ai.usage.output_tokens"] = usage.completion
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached + usage.cached_explicit
        attributes["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_creation
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning
        attributes["qwenstack.outcome"] = charge.outcome
        attributes["qwenstack.amount_micro"] = charge.amount_micro
        attributes["qwenstack.currency"] = charge.currency
        attributes["qwenstack.price"] = charge.price
        self._record(ticket, attributes, to_us(charge.finished_at))

    def voided(self, ticket: Ticket) -> None:
        """The span of a request without a bill."""
        attributes = _request_attributes(ticket)
        attributes["qwenstack.outcome"] = "voided"
        self._record(ticket, attributes, now_us())

    def unmetered(self, ticket: Ticket) -> None:
        """Nothing: the request is voided next."""

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """Nothing: the ticket knows, and its span comes at the request's end."""

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """Nothing: what was not admitted has no span."""

    def _record(self, ticket: Ticket, attributes: Attributes, end_us: int) -> None:
        # Convention: CLIENT for a model elsewhere, INTERNAL for one within reach of this process,
        # whose weights have a digest.
        trace = ticket.request.trace or begin_span(None, self._sample_ratio)
        if not trace.sampled:
            return
        remote = ticket.deployment.engine.identity.digest is None
        self._ids.follow(trace)
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {ticket.deployment.name}",
            context=_parent(trace),
            kind=SpanKind.CLIENT if remote else SpanKind.INTERNAL,
            attributes=attributes,
            start_time=ticket.started_us * 1000,
        )
        if ticket.failure is not None:
            span.set_attribute("error.type", ticket.failure)
            span.set_status(Status(StatusCode.ERROR))
        span.end(max(end_us, ticket.started_us) * 1000)


class _GivenIds(IdGenerator):
    """Gives the next span the ids that its engine was already told."""

    def __init__(self) -> None:
        self._span_id = self._trace_id = 0

    def follow(self, trace: TraceContext) -> None:
        """The next span is this one."""
        self._trace_id, self._span_id = int(trace.trace_id, 16), int(trace.span_id, 16)

    def generate_span_id(self) -> int:
        return self._span_id

    def generate_trace_id(self) -> int:
        return self._trace_id


def _parent(trace: TraceContext) -> Context:
    """The span of the caller, where there is one."""
    if trace.parent_id is None:
        return Context()
    parent = SpanContext(
        int(trace.trace_id, 16),
        int(trace.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([trace.state]),
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def traces_url(endpoint: str) -> str:
    """Where spans are posted for an OTLP/HTTP base URL; a URL with the path stays as it is."""
    base = endpoint.rstrip("/")
    return base if base.endswith(_TRACES_PATH) else base + _TRACES_PATH


def _request_attributes(ticket: Ticket) -> Attributes:
    request, identity = ticket.request, ticket.deployment.engine.identity
    attributes: Attributes = {
        "gen_ai.operation.name": _operation(request),
        "gen_ai.provider.name": identity.name,
        # The deployment's name, not the client's spelling, which may be an alias.
        "gen_ai.request.model": ticket.deployment.name,
        "gen_ai.response.model": ticket.deployment.name,
        "gen_ai.response.id": ticket.request_id,
        "qwenstack.surface": ticket.surface,
        "qwenstack.workspace.id": ticket.caller.workspace.id,
        "qwenstack.key.id": ticket.caller.key.id,
        "qwenstack.region": identity.region,
        "qwenstack.engine.version": identity.version,
    }
    if isinstance(request, GenerationRequest):
        attributes["gen_ai.request.stream"] = ticket.stream
        attributes["gen_ai.request.choice.count"] = request.n
        if request.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = request.max_tokens
    if ticket.line is not None:
        attributes["qwenstack.batch.id"] = ticket.line.batch_id
    if ticket.first_token_us is not None:
        waited_us = max(0, ticket.first_token_us - ticket.started_us)
        attributes["gen_ai.response.time_to_first_chunk"] = waited_us / 1e6
    return attributes


def _operation(request: GenerationRequest | EmbeddingRequest) -> str:
    if isinstance(request, EmbeddingRequest):
        return "embeddings"
    return "chat" if request.prompt is None else "text_completion"
