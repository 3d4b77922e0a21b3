"""W3C Trace Context: what is read, what is ignored, and what is passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.trace_context import begin_span, read_trace_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01".encode()


def test_a_callers_span_is_read_and_ours_is_its_child() -> None:
    caller = read_trace_context(VALID, b"vendor=1")
    assert caller is not None
    assert (caller.trace_id, caller.span_id, caller.sampled) == (TRACE, SPAN, True)
    ours = begin_span(caller, 1.0)
    assert (ours.trace_id, ours.parent_id) == (TRACE, SPAN)
    assert ours.span_id != SPAN
    assert ours.headers() == {
        "traceparent": f"00-{TRACE}-{ours.span_id}-01",
        "tracestate": "vendor=1",
    }


def test_a_later_version_with_more_fields_is_read() -> None:
    assert read_trace_context(VALID.replace(b"00-", b"cc-", 1) + b"-more") is not None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        VALID[:-1],
        VALID + b"-more",
        VALID + b"\n",
        b" " + VALID,
        VALID.upper(),
        VALID.replace(b"00-", b"ff-", 1),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-0g".encode(),
        VALID * 1000,
        b"\xff" * 55,
    ],
)
def test_what_is_no_trace_context_is_ignored(value: bytes) -> None:
    assert read_trace_context(value) is None


@given(st.binary(max_size=80))
def test_no_bytes_whatever_raise(value: bytes) -> None:
    read_trace_context(value, value)


@pytest.mark.parametrize(
    "state", [b"a=1\r\nx: y", b"\xff", b"a=" + b"a" * 511, b"read me", b"a=1 ", b"A=1", b"a=1=2"]
)
def test_a_hostile_state_is_dropped_and_the_trace_goes_on(state: bytes) -> None:
    context = read_trace_context(VALID, state)
    assert context is not None
    assert "tracestate" not in context.headers()


def test_a_strangers_flag_does_not_decide_what_is_sampled() -> None:
    caller = read_trace_context(VALID)
    assert begin_span(caller, 1.0).sampled
    assert not begin_span(caller, 0.0).sampled


def test_the_share_that_is_sampled_is_the_one_that_is_set() -> None:
    sampled = sum(begin_span(None, 0.25).sampled for _ in range(4000))
    assert 800 < sampled < 1200
