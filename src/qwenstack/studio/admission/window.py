"""A sliding window over requests and tokens that never under-counts.

Why not a token bucket or GCRA: with a burst of a full minute, which a per-minute tier needs, either
admits up to twice the limit in some 60 s (a full bucket at the start, and a refill after). A fixed
window does the same across its edge. A log of every event is exact but holds 30 000 entries a
scope. This is that log, compressed: events less than `grain_us` after the first of their *run* join
it, and a run is counted in full until its **last** event has left the window.

- Never over: every event of the last `span_us` is counted, so at each admission the window that
  ends there is within the limit, and any other window is a part of one that ends at an admission.
- Over-refusal, the price: an event may be counted up to `grain_us` too long. A request is refused
  only if an exact log over `span_us + grain_us` would refuse it: with 120 grains a steady caller
  gets at least 120/121 (99.2 %) of the limit, and with at most one event a grain it is exact.
- Memory: at most `grains + 2` runs, whatever the rate. Time: O(1) amortised for an admission and a
  settlement; a refusal walks the runs to say when to come back.
"""

from __future__ import annotations

from collections import deque

from qwenstack.studio.admission.limits import MINUTE_US, SECOND_US

MINUTE_GRAIN_US = MINUTE_US // 120
SECOND_GRAIN_US = SECOND_US // 20


class Run:
    """Requests and kept tokens admitted from `first_us` to `last_us`, less than a grain later."""

    __slots__ = ("first_us", "last_us", "live", "requests", "tokens")

    def __init__(self, now_us: int, requests: int, tokens: int) -> None:
        self.first_us = now_us
        self.last_us = now_us
        self.requests = requests
        self.tokens = tokens
        self.live = True


class SlidingWindow:
    """What one scope admitted in the last `span_us`. Times given must not decrease."""

    __slots__ = ("grain_us", "newest", "requests", "runs", "span_us", "tokens")

    def __init__(self, span_us: int, grain_us: int) -> None:
        self.span_us = span_us
        self.grain_us = grain_us
        self.requests = 0
        self.tokens = 0
        self.runs: deque[Run] = deque()
        self.newest: Run | None = None

    def expire(self, now_us: int) -> None:
        """Forget the runs that have left the window. Call it before reading the sums."""
        runs = self.runs
        horizon_us = now_us - self.span_us
        while runs and runs[0].last_us <= horizon_us:
            run = runs.popleft()
            run.live = False
            self.requests -= run.requests
            self.tokens -= run.tokens
        if not runs:
            self.newest = None

    def add(self, now_us: int, requests: int, tokens: int) -> Run:
        """Count an event now, and return the run that holds it, for `give_back`."""
        self.requests += requests
        self.tokens += tokens
        run = self.newest
        if run is not None and now_us - run.first_us < self.grain_us:
            run.last_us = now_us
            run.requests += requests
            run.tokens += tokens
            return run
        run = self.newest = Run(now_us, requests, tokens)
        self.runs.append(run)
        return run

    def give_back(self, run: Run, tokens: int) -> None:
        """Return tokens that were counted in `run`; nothing if it has left the window."""
        if run.live:
            run.tokens -= tokens
            self.tokens -= tokens

    def wait_us(self, now_us: int, excess_requests: int, excess_tokens: int) -> int:
        """How long until that many requests and tokens have left; 0 if neither is positive."""
        if excess_requests <= 0 and excess_tokens <= 0:
            return 0
        for run in self.runs:
            excess_requests -= run.requests
            excess_tokens -= run.tokens
            if excess_requests <= 0 and excess_tokens <= 0:
                return run.last_us + self.span_us - now_us
        return self.span_us

    def empty_in_us(self, now_us: int) -> int:
        """How long until nothing is counted any more."""
        return 0 if self.newest is None else self.newest.last_us + self.span_us - now_us


class SteadyClock:
    """Makes a clock that never goes back out of one that may.

    When the raw clock steps back, the time it lost is added from then on, so time goes on from
    where it was rather than standing still until the raw clock has caught up: windows then last
    too long, never too short. A step forward can't be told from time that passed.
    """

    __slots__ = ("offset_us", "raw_us")

    def __init__(self, raw_us: int) -> None:
        self.raw_us = raw_us
        self.offset_us = 0

    def read(self, raw_us: int) -> int:
        """The steady time for a reading of the raw clock."""
        if raw_us < self.raw_us:
            self.offset_us += self.raw_us - raw_us
        self.raw_us = raw_us
        return raw_us + self.offset_us
