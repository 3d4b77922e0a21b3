"""What a limiter must do, told by a plain log of events and checked over every window.

Shares no code with the limiters: nothing is compressed, expired or summed up ahead of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwenstack.studio.admission.limits import (
    Admission,
    Limit,
    Limiter,
    LimitKind,
    Refused,
    Scopes,
)

T = TypeVar("T")
MINUTE = 60_000_000
SECOND = 1_000_000
# How much longer than its window the documentation allows an event to be counted.
SLACK = {MINUTE: 500_000, SECOND: 50_000}


@dataclass
class Event:
    """Something that was counted: an admission, or (requests 0) tokens beyond a reservation."""

    at: int
    scopes: frozenset[str]
    requests: int
    tokens: int


@dataclass
class Log:
    """Every event, and what runs."""

    events: list[Event] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)

    def used(self, scope: str, after: int, until: int) -> tuple[int, int]:
        """Requests and tokens in `(after, until]`."""
        inside = [e for e in self.events if scope in e.scopes and after < e.at <= until]
        return sum(e.requests for e in inside), sum(e.tokens for e in inside)

    def admitted_beyond(self, scope: str, limit: Limit) -> str | None:
        """A window in which what was admitted and kept exceeds the limit, or None."""
        for span, requests_most, tokens_most in figures(limit):
            for end in {event.at for event in self.events}:
                inside = [
                    e
                    for e in self.events
                    if scope in e.scopes and end - span < e.at <= end and e.requests
                ]
                if requests_most is not None and len(inside) > requests_most:
                    return f"{scope}: {len(inside)} requests in ({end - span}, {end}]"
                tokens = sum(e.tokens for e in inside)
                if tokens_most is not None and tokens > tokens_most:
                    return f"{scope}: {tokens} tokens in ({end - span}, {end}]"
        return None

    def room(self, scopes: Scopes, tokens: int, now: int, *, slack: bool) -> bool:
        """Whether a limiter that counts exactly (`slack`: up to the allowed time longer) admits."""
        for scope, limit in scopes:
            if limit.concurrency is not None and self.running.get(scope, 0) >= limit.concurrency:
                return False
            for span, requests_most, tokens_most in figures(limit):
                after = now - span - (SLACK[span] if slack else 0)
                requests, used = self.used(scope, after, now)
                if requests_most is not None and requests + 1 > requests_most:
                    return False
                if tokens_most is not None and used + tokens > tokens_most:
                    return False
        return True


def figures(limit: Limit) -> tuple[tuple[int, int | None, int | None], ...]:
    return (
        (MINUTE, limit.requests_per_minute, limit.tokens_per_minute),
        (SECOND, limit.requests_per_second, limit.tokens_per_second),
    )


@dataclass
class Running:
    """An admission that is not settled."""

    admission: Admission
    worker: int
    event: Event


maybe = st.none() | st.integers(1, 8)
# Few figures at a time, or the smallest always decides and the others are never reached.
limits = (
    st.builds(Limit, requests_per_minute=st.integers(1, 8))
    | st.builds(Limit, tokens_per_minute=st.integers(1, 100))
    | st.builds(Limit, requests_per_minute=maybe, requests_per_second=st.integers(1, 4))
    | st.builds(Limit, tokens_per_minute=st.none() | st.integers(60, 300), concurrency=maybe)
    | st.builds(
        Limit,
        requests_per_minute=maybe,
        tokens_per_minute=st.none() | st.integers(1, 100),
        concurrency=maybe,
        requests_per_second=st.none() | st.integers(1, 4),
        tokens_per_second=st.none() | st.integers(1, 60),
    )
)
# Round and just-off durations meet the edges of runs and windows.
_edges = (1, 50_000, 500_000, 950_000, 1_000_000, 10_000_000, 59_500_000, 60_000_000, 60_500_000)
pauses = (
    st.integers(1, 600_000)
    | st.sampled_from([edge + off for edge in _edges for off in (-1, 0, 1)])
    | st.integers(1, 61_000_000)
    | st.just(200_000_000)
)
asked = st.integers(0, 70)


class LimiterMachine(RuleBasedStateMachine):
    """Random reservations against `Log`; a subclass says where the limiters come from."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.raw_us = 1_700_000_000_000_000
        self.now_us = self.raw_us  # real time, which never steps back
        self.log = Log()
        self.limits: dict[str, Limit] = {}
        self.open: list[Running] = []
        self.limiters = self.run(self.make_limiters(lambda: self.raw_us))

    async def make_limiters(self, clock: Callable[[], int]) -> list[Limiter]:
        raise NotImplementedError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(model=limits, key=limits, whole=limits)
    def set_limits(self, model: Limit, key: Limit, whole: Limit) -> None:
        self.limits = {"model:m": model, "key:k": key, "all": whole}

    def scopes(self, which: set[str]) -> Scopes:
        return tuple((scope, limit) for scope, limit in self.limits.items() if scope in which)

    def judge(self, scopes: Scopes, tokens: int, worker: int, verdict: Admission | Refused) -> None:
        """Hold a verdict to the log. Several that came together are judged admissions first."""
        if isinstance(verdict, Refused):
            assert not self.log.room(scopes, tokens, self.now_us, slack=True), (
                f"refused without need: {verdict}"
            )
            assert (verdict.retry_after_us is None) == (verdict.kind is LimitKind.OVERSIZED)
            return
        assert self.log.room(scopes, tokens, self.now_us, slack=False), "admitted beyond a limit"
        names = frozenset(scope for scope, _ in scopes)
        event = Event(self.now_us, names, 1, tokens)
        self.log.events.append(event)
        for scope in names:
            self.log.running[scope] = self.log.running.get(scope, 0) + 1
        self.open.append(Running(verdict, worker, event))

    @rule(
        which=st.sets(st.sampled_from(["model:m", "key:k", "all"]), min_size=1),
        tokens=asked,
        worker=st.integers(0, 2),
    )
    def reserve(self, which: set[str], tokens: int, worker: int) -> None:
        scopes, worker = self.scopes(which), worker % len(self.limiters)
        verdict = self.run(self.limiters[worker].reserve("ws", scopes, tokens))
        self.judge(scopes, tokens, worker, verdict)

    @rule(tokens=asked, count=st.integers(2, 9))
    def reserve_together(self, tokens: int, count: int) -> None:
        scopes = self.scopes(set(self.limits))
        workers = [number % len(self.limiters) for number in range(count)]

        async def all_at_once() -> list[Admission | Refused]:
            return await asyncio.gather(
                *(self.limiters[worker].reserve("ws", scopes, tokens) for worker in workers)
            )

        verdicts = list(zip(self.run(all_at_once()), workers, strict=True))
        verdicts.sort(key=lambda pair: isinstance(pair[0], Refused))
        for verdict, worker in verdicts:
            self.judge(scopes, tokens, worker, verdict)

    @rule(tokens=asked)
    def come_back_when_told(self, tokens: int) -> None:
        scopes = self.scopes(set(self.limits))
        verdict = self.run(self.limiters[0].reserve("ws", scopes, tokens))
        self.judge(scopes, tokens, 0, verdict)
        if isinstance(verdict, Refused) and verdict.retry_after_us is not None:
            self.pass_time(verdict.retry_after_us)
            again = self.run(self.limiters[0].reserve("ws", scopes, tokens))
            self.judge(scopes, tokens, 0, again)
            if isinstance(again, Refused):
                assert again.kind is LimitKind.CONCURRENCY, "Retry-After came too early"

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 90))
    def settle(self, data: st.DataObject, used: int) -> None:
        running = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        limiter = self.limiters[running.worker]
        self.run(limiter.settle(running.admission, used))
        reserved = running.admission.reserved_tokens
        running.event.tokens = min(used, reserved)
        if used > reserved:
            beyond = Event(self.now_us, running.event.scopes, 0, used - reserved)
            self.log.events.append(beyond)
        for scope in running.event.scopes:
            self.log.running[scope] -= 1
        # A second settlement changes nothing, or the next verdicts would be wrong.
        self.run(limiter.settle(running.admission, 0))

    @rule(us=pauses)
    def pass_time(self, us: int) -> None:
        self.now_us += us
        self.raw_us += us

    @precondition(lambda self: self.log.events)
    @rule(data=st.data(), span=st.sampled_from([MINUTE, SECOND]), off=st.integers(-1, 1))
    def pass_time_until_an_event_leaves(self, data: st.DataObject, span: int, off: int) -> None:
        """Go to where one event is just in, or just out of, its window."""
        instants = {event.at for event in self.log.events}
        ahead = sorted(at + span + off - self.now_us for at in instants)
        ahead = [us for us in ahead if us > 0]
        if ahead:
            self.pass_time(data.draw(st.sampled_from(ahead)))

    @rule(
        tokens=asked,
        span=st.sampled_from([MINUTE, SECOND]),
        apart=st.sampled_from([1, 30_000, 49_999, 50_000, 300_000, 499_999, 500_000]),
        off=st.integers(-1, 1),
    )
    def fill_up_and_meet_the_edge(self, tokens: int, span: int, apart: int, off: int) -> None:
        """Two lots a little apart; then ask again as the first, and only the first, has left."""
        everything = set(self.limits)
        self.reserve_together(tokens, 3)
        self.pass_time(apart)
        self.reserve_together(tokens, 4)
        self.pass_time(span - apart + off)
        self.reserve(everything, tokens, 1)

    @rule(us=st.integers(1, 4_000_000_000))
    def clock_steps_back(self, us: int) -> None:
        # A look at the clock before and after: what it can't see of the step it would count as
        # less time than really passed, which is safe but no longer exact.
        self.look()
        self.raw_us -= us
        self.look()

    def look(self) -> None:
        looked = self.run(self.limiters[0].reserve("ws", (("look", Limit()),), 0))
        assert not isinstance(looked, Refused)
        self.run(self.limiters[0].settle(looked, 0))

    @invariant()
    def no_window_exceeds_its_limit(self) -> None:
        for scope, limit in self.limits.items():
            assert (found := self.log.admitted_beyond(scope, limit)) is None, found

    def teardown(self) -> None:
        for limiter in self.limiters:
            self.run(limiter.close())
        self.runner.close()
