"""W3C Trace Context: reading it and passing it on. No I/O.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import secrets
from typing import Final

import msgspec

# A later version may have more fields after these four; version ff is none.
_TRACEPARENT: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_SAMPLED: Final = 1
# A list of `system=value` and `tenant@system=value`: exporters log a bad one, by a stranger.
_STATE_LENGTH_MAX: Final = 512
_KEY: Final = (
    rb"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
)
_MEMBER: Final = _KEY + rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE: Final = re.compile(rb"%b(?:[ \t]*,[ \t]*%b){0,31}" % (_MEMBER, _MEMBER))
_RATIO_BITS: Final = 64


class TraceContext(msgspec.Struct, frozen=True):
    """A span of a trace, as it is told to whoever is called next.

    `trace_id` is 32 and `span_id` 16 hexadecimal digits. `parent_id` is the span that this one is
    a child of, where it is ours. `state` is what other tracing systems want passed on.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""
    parent_id: str | None = None

    def headers(self) -> dict[str, str]:
        """The request headers that pass it on."""
        headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"}
        if self.state:
            headers["tracestate"] = self.state
        return headers


def read_trace_context(traceparent: bytes, tracestate: bytes = b"") -> TraceContext | None:
    """The caller's span; None for what is no valid `traceparent`. A bad `tracestate` is dropped.

    >>> read_trace_context(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").sampled
    True
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if trace_id.decode() == _NO_TRACE or span_id.decode() == _NO_SPAN:
        return None
    state = ""
    if len(tracestate) <= _STATE_LENGTH_MAX and _STATE.fullmatch(tracestate):
        state = tracestate.decode()
    return TraceContext(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & _SAMPLED), state)


def begin_span(caller: TraceContext | None, sample_ratio: float) -> TraceContext:
    """A span of ours: the caller's child, or the first of a new trace.

    Whether it is sampled follows from the trace's id and the ratio alone, as OpenTelemetry's
    TraceIdRatioBased decides: a stranger's flag must not make us send more than is set.
    """
    trace_id = secrets.token_hex(16) if caller is None else caller.trace_id
    low = int(trace_id, 16) & ((1 << _RATIO_BITS) - 1)
    return TraceContext(
        trace_id,
        secrets.token_hex(8),
        low < round(sample_ratio * (1 << _RATIO_BITS)),
        "" if caller is None else caller.state,
        None if caller is None else caller.span_id,
    )
