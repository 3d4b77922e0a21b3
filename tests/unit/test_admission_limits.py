"""Rate limits in one process, against an independent log of events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from qwenstack.core.refusals import RefusalKind
from qwenstack.studio.admission.limits import (
    MINUTE_US,
    Limit,
    Limiter,
    LimitKind,
    Refused,
    Snapshot,
    format_duration,
    rate_limit_headers,
    refusal_for,
    retry_after_header,
)
from qwenstack.studio.admission.memory import MemoryAdmission, MemoryLimiter
from qwenstack.studio.admission.window import SlidingWindow, SteadyClock
from tests.admission_model import LimiterMachine, limits


class MemoryMachine(LimiterMachine):
    async def make_limiters(self, clock: Callable[[], int]) -> list[Limiter]:
        return [MemoryLimiter(clock)]


def test_no_window_exceeds_its_limit_and_nothing_is_refused_without_need() -> None:
    run_state_machine_as_test(
        MemoryMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )


class Clock:
    def __init__(self) -> None:
        self.us = 0

    def __call__(self) -> int:
        return self.us


def admitted(verdict: MemoryAdmission | Refused) -> MemoryAdmission:
    assert isinstance(verdict, MemoryAdmission), verdict
    return verdict


def refused(verdict: MemoryAdmission | Refused) -> Refused:
    assert isinstance(verdict, Refused)
    return verdict


def test_a_full_minute_can_be_used_at_once_and_not_twice_across_its_edge() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    scopes = (("all", Limit(requests_per_minute=100)),)
    clock.us = 59_900_000  # just before the edge of a calendar minute
    for _ in range(100):
        admitted(limiter.reserve_now("ws", scopes, 0))
    clock.us = 60_100_000  # just behind it
    again = refused(limiter.reserve_now("ws", scopes, 0))
    assert again.kind is LimitKind.REQUESTS
    assert again.retry_after_us == 59_800_000


def test_a_run_counts_until_its_last_event_has_left() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    scopes = (("all", Limit(requests_per_minute=2)),)
    admitted(limiter.reserve_now("ws", scopes, 0))
    clock.us = 400_000
    admitted(limiter.reserve_now("ws", scopes, 0))
    clock.us = 60_399_999
    refused(limiter.reserve_now("ws", scopes, 0))
    clock.us = 60_400_000
    admitted(limiter.reserve_now("ws", scopes, 0))


def test_a_settlement_after_the_window_gives_nothing_back() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    scopes = (("all", Limit(tokens_per_minute=100)),)
    old = admitted(limiter.reserve_now("ws", scopes, 100))
    clock.us = 60_000_000
    admitted(limiter.reserve_now("ws", scopes, 100))
    limiter.settle_now(old, 0)
    refused(limiter.reserve_now("ws", scopes, 1))


def test_a_steady_caller_gets_at_least_99_percent_of_the_limit() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    scopes = (("all", Limit(requests_per_minute=3000)),)
    done = 0
    for _ in range(10 * 60 * 100):  # ten minutes, asking 100 times a second
        clock.us += 10_000
        done += isinstance(limiter.reserve_now("ws", scopes, 0), MemoryAdmission)
    assert 0.99 * 30_000 <= done <= 33_000


def test_the_vendors_largest_tier_stays_small_in_memory() -> None:
    clock = Clock()
    window = SlidingWindow(MINUTE_US, MINUTE_US // 120)
    for _ in range(90_000):  # 30 000 a minute for three minutes
        clock.us += 2_000
        window.expire(clock.us)
        window.add(clock.us, 1, 333)
    assert len(window.runs) <= 122
    assert 30_000 <= window.requests <= 30_250


def test_unused_reservation_returns_at_once_and_the_request_still_counts() -> None:
    limiter = MemoryLimiter(Clock())
    scopes = (("all", Limit(requests_per_minute=3, tokens_per_minute=100)),)
    first = admitted(limiter.reserve_now("ws", scopes, 100))
    assert refused(limiter.reserve_now("ws", scopes, 1)).kind is LimitKind.TOKENS
    limiter.settle_now(first, 30)
    second = admitted(limiter.reserve_now("ws", scopes, 70))
    limiter.settle_now(second, 0)  # void
    third = admitted(limiter.reserve_now("ws", scopes, 70))
    assert third.snapshot.remaining_requests == 0
    assert refused(limiter.reserve_now("ws", scopes, 0)).kind is LimitKind.REQUESTS


def test_a_request_is_counted_in_all_scopes_or_in_none() -> None:
    limiter = MemoryLimiter(Clock())
    wide, narrow = Limit(requests_per_minute=10), Limit(requests_per_minute=1)
    scopes = (("wide", wide), ("narrow", narrow))
    admitted(limiter.reserve_now("ws", scopes, 0))
    for _ in range(20):
        assert refused(limiter.reserve_now("ws", scopes, 0)).scope == "narrow"
    assert limiter.snapshot("ws", (("wide", wide),)).remaining_requests == 9


def test_a_request_beyond_a_whole_window_is_refused_for_good() -> None:
    limiter = MemoryLimiter(Clock())
    verdict = refused(limiter.reserve_now("ws", (("all", Limit(tokens_per_minute=100)),), 101))
    assert verdict.kind is LimitKind.OVERSIZED
    assert verdict.retry_after_us is None
    refusal = refusal_for(verdict)
    assert refusal.kind is RefusalKind.INVALID_REQUEST
    assert refusal.retry_after_s is None
    assert "101" in refusal.message and "100 tokens per minute" in refusal.message


def test_workspaces_do_not_share_a_scope_of_the_same_name() -> None:
    limiter = MemoryLimiter(Clock())
    scopes = (("all", Limit(requests_per_minute=1)),)
    admitted(limiter.reserve_now("a", scopes, 0))
    admitted(limiter.reserve_now("b", scopes, 0))
    refused(limiter.reserve_now("a", scopes, 0))


def test_concurrency_is_held_until_settlement_however_long_that_takes() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    scopes = (("all", Limit(concurrency=1)),)
    running = admitted(limiter.reserve_now("ws", scopes, 0))
    clock.us += 3_600_000_000
    assert refused(limiter.reserve_now("ws", scopes, 0)).kind is LimitKind.CONCURRENCY
    limiter.settle_now(running, 0)
    limiter.settle_now(running, 0)
    admitted(limiter.reserve_now("ws", scopes, 0))
    refused(limiter.reserve_now("ws", scopes, 0))


def test_a_lowered_limit_applies_to_the_next_request() -> None:
    limiter = MemoryLimiter(Clock())
    for _ in range(5):
        admitted(limiter.reserve_now("ws", (("all", Limit(requests_per_minute=10)),), 0))
    assert (
        refused(limiter.reserve_now("ws", (("all", Limit(requests_per_minute=5)),), 0)).limit == 5
    )


def test_scopes_that_nobody_uses_are_forgotten_and_running_ones_are_not() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    limit = Limit(requests_per_minute=1, concurrency=1)
    admitted(limiter.reserve_now("keeps", (("all", limit),), 0))
    for number in range(20_000):
        clock.us += 100_000  # 600 new scopes a minute
        passing = admitted(limiter.reserve_now(f"ws{number}", (("all", limit), ("key", limit)), 0))
        limiter.settle_now(passing, 0)
        refused(limiter.reserve_now(f"ws{number}", (("all", limit), ("key", limit)), 0))
    assert limiter.scopes_held < 5_000
    assert refused(limiter.reserve_now("keeps", (("all", limit),), 0)).kind is LimitKind.CONCURRENCY


@pytest.mark.parametrize(
    "scopes", [(("a", Limit()), ("a", Limit())), tuple((str(n), Limit()) for n in range(17))]
)
def test_scopes_named_twice_or_without_bound_are_a_mistake(
    scopes: tuple[tuple[str, Limit], ...],
) -> None:
    with pytest.raises(ValueError, match="scope"):
        MemoryLimiter().reserve_now("ws", scopes, 0)


def test_a_limit_names_the_figure_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="tokens_per_minute is -1"):
        Limit(tokens_per_minute=-1)


@given(limits)
def test_bursts_never_allow_less_than_the_minute_does(limit: Limit) -> None:
    bursts = limit.with_bursts()
    for minute, second in (
        (bursts.requests_per_minute, bursts.requests_per_second),
        (bursts.tokens_per_minute, bursts.tokens_per_second),
    ):
        assert (minute is None) == (second is None)
        assert minute is None or second is None or minute <= 60 * second < minute + 60


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 10**6)), max_size=30))
def test_the_steady_clock_never_goes_back_and_never_runs_ahead(
    steps: list[tuple[int, int]],
) -> None:
    raw = 10**15
    clock = SteadyClock(raw)
    before, passed = clock.read(raw), 0
    start = before
    for jump, elapsed in steps:
        raw += elapsed + min(jump, 0)  # a jump ahead can't be told from time
        passed += elapsed
        now = clock.read(raw)
        assert before <= now <= start + passed
        before = now


def test_headers_show_the_tightest_scope() -> None:
    limiter = MemoryLimiter(Clock())
    scopes = (
        ("all", Limit(requests_per_minute=100, tokens_per_minute=1000)),
        ("key", Limit(requests_per_minute=200, tokens_per_minute=500)),
    )
    headers = rate_limit_headers(admitted(limiter.reserve_now("ws", scopes, 40)).snapshot)
    assert dict(headers) == {
        b"x-ratelimit-limit-requests": b"100",
        b"x-ratelimit-remaining-requests": b"99",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"500",
        b"x-ratelimit-remaining-tokens": b"460",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }
    assert rate_limit_headers(Snapshot()) == ()


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (250_000, "250ms"),
        (999_001, "1s"),
        (12_000_001, "13s"),
        (60_000_000, "1m0s"),
        (63_000_000, "1m3s"),
    ],
)
def test_durations_are_never_early(us: int, text: str) -> None:
    assert format_duration(us) == text


@pytest.mark.parametrize(("seconds", "header"), [(0.001, b"1"), (1.0, b"1"), (1.001, b"2")])
def test_retry_after_is_whole_seconds_and_never_early(seconds: float, header: bytes) -> None:
    assert retry_after_header(seconds) == (b"retry-after", header)


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        (Limit(requests_per_minute=1), RefusalKind.RATE_REQUESTS),
        (Limit(tokens_per_minute=15), RefusalKind.RATE_TOKENS),
        (Limit(concurrency=1), RefusalKind.RATE_CONCURRENCY),
        (Limit(requests_per_minute=0), RefusalKind.ACCESS_DENIED),
    ],
)
def test_each_refusal_has_its_own_kind(limit: Limit, kind: RefusalKind) -> None:
    limiter = MemoryLimiter(Clock())
    limiter.reserve_now("ws", (("secret-scope", limit),), 10)
    refusal = refusal_for(refused(limiter.reserve_now("ws", (("secret-scope", limit),), 10)))
    assert refusal.kind is kind
    assert "secret-scope" not in refusal.message
    assert (refusal.retry_after_s is None) == (kind is RefusalKind.ACCESS_DENIED)
