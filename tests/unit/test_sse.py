"""The event splitter: the same events however the network cuts them, and never without a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.engines.interface import EngineProtocolError
from qwenstack.engines.sse import EventSplitter

_LINE = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20).map(
    lambda text: text.encode()
)
_EVENT = st.one_of(
    st.tuples(st.just("data"), st.lists(_LINE.filter(bool), min_size=1, max_size=3)),
    st.tuples(st.just("comment"), st.lists(_LINE, min_size=1, max_size=2)),
    st.tuples(st.just("other"), st.lists(_LINE, min_size=1, max_size=2)),
)
_END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def _streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream in any of the standard's line endings, with the payloads that it holds."""
    end = draw(_END)
    stream, payloads = b"", []
    for kind, lines in draw(st.lists(_EVENT, max_size=8)):
        prefix = {"data": draw(st.sampled_from([b"data: ", b"data:  "])), "comment": b":"}.get(
            kind, b"event: "
        )
        stream += b"".join(prefix + line + end for line in lines) + end
        if kind == "data":
            payloads.append(b"\n".join(prefix[6:] + line for line in lines))
    return stream, payloads


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(edges)]


@given(_streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_of_a_stream_gives_the_same_payloads(
    case: tuple[bytes, list[bytes]], cuts: list[int]
) -> None:
    stream, payloads = case
    splitter = EventSplitter()
    got = [payload for read in _cut(stream, cuts) for payload in splitter.feed(read)]
    assert got + splitter.flush() == payloads


@given(_streams())
def test_a_stream_that_comes_byte_by_byte_gives_the_same_payloads(
    case: tuple[bytes, list[bytes]],
) -> None:
    stream, payloads = case
    splitter = EventSplitter()
    got = [payload for byte in stream for payload in splitter.feed(bytes([byte]))]
    assert got + splitter.flush() == payloads


def test_a_byte_order_mark_is_skipped_once() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n") == [b"1", b"2"]


def test_an_event_cut_off_by_the_end_is_there_on_flush_only() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: [DONE]") == [b"1"]
    assert splitter.flush() == [b"[DONE]"]
    assert splitter.flush() == []


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_an_event_over_the_limit_is_refused_in_whatever_reads_it_comes(size: int) -> None:
    stream = b"data: " + b"x" * 5_000 + b"\n\n"
    splitter = EventSplitter(max_event_bytes=1_000)
    with pytest.raises(EngineProtocolError, match="more than 1000 bytes"):
        for start in range(0, len(stream), size):
            splitter.feed(stream[start : start + size])


def test_many_small_events_may_together_be_larger_than_the_limit() -> None:
    splitter = EventSplitter(max_event_bytes=100)
    assert splitter.feed(b"data: 12345678\n\n" * 1_000) == [b"12345678"] * 1_000


def test_a_huge_comment_is_refused_too() -> None:
    with pytest.raises(EngineProtocolError):
        EventSplitter(max_event_bytes=100).feed(b":" + b"x" * 500 + b"\n\n")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_event_bytes"):
        EventSplitter(max_event_bytes=0)
