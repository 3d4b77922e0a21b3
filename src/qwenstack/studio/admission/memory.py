"""The limiter of a single process: exact sums in memory, no I/O, a few microseconds a request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from qwenstack.studio.admission.limits import (
    CONCURRENCY_RETRY_US,
    MINUTE_US,
    SECOND_US,
    Admission,
    Limit,
    LimitKind,
    Refused,
    Scopes,
    Snapshot,
    check_request,
    never_fits,
)
from qwenstack.studio.admission.window import (
    MINUTE_GRAIN_US,
    SECOND_GRAIN_US,
    Run,
    SlidingWindow,
    SteadyClock,
)


def monotonic_us() -> int:
    """Microseconds of the system's monotonic clock."""
    return time.monotonic_ns() // 1000


class _Scope:
    """What one scope of one workspace has used and is running."""

    __slots__ = ("minute", "running", "second")

    def __init__(self) -> None:
        self.minute = SlidingWindow(MINUTE_US, MINUTE_GRAIN_US)
        self.second: SlidingWindow | None = None
        self.running = 0

    def idle(self, now_us: int) -> bool:
        """Whether nothing would be lost by forgetting this scope (a second is within a minute)."""
        self.minute.expire(now_us)
        return self.running == 0 and not self.minute.runs


class MemoryAdmission:
    """A reservation in this process."""

    __slots__ = ("_headroom", "_places", "open", "reserved_tokens")

    def __init__(
        self,
        reserved_tokens: int,
        places: list[tuple[_Scope, Run, Run | None]],
        headroom: tuple[int | None, int, int | None, int],
    ) -> None:
        self.reserved_tokens = reserved_tokens
        self._places = places
        self._headroom = headroom
        self.open = True

    @property
    def snapshot(self) -> Snapshot:
        """The tightest scope right after this reservation."""
        limit_requests, requests, limit_tokens, tokens = self._headroom
        # This request is the newest event of every window, so each is empty a full span from now.
        return Snapshot(limit_requests, requests, MINUTE_US, limit_tokens, tokens, MINUTE_US)

    def places(self) -> list[tuple[_Scope, Run, Run | None]]:
        """Where it is counted: the limiter's own business."""
        return self._places


class MemoryLimiter:
    """A `Limiter` for one process and one event loop (or thread).

    `clock` gives microseconds; it may step back, see `SteadyClock`. Scopes that nobody uses are
    forgotten: each new scope looks at two old ones, so there are never more than about twice as
    many as were used in the last minute.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_us) -> None:
        self._raw_clock = clock
        self._clock = SteadyClock(clock())
        self._scopes: OrderedDict[tuple[str, str], _Scope] = OrderedDict()
        self._to_sweep = 0

    @property
    def scopes_held(self) -> int:
        """How many scopes are in memory."""
        return len(self._scopes)

    async def reserve(self, workspace: str, scopes: Scopes, tokens: int) -> Admission | Refused:
        """See `Limiter.reserve`. Never waits."""
        return self.reserve_now(workspace, scopes, tokens)

    async def settle(self, admission: Admission, actual_tokens: int) -> None:
        """See `Limiter.settle`. Never waits."""
        self.settle_now(admission, actual_tokens)

    async def close(self) -> None:
        """Nothing is held open."""

    def reserve_now(self, workspace: str, scopes: Scopes, tokens: int) -> MemoryAdmission | Refused:
        """Reserve without an event loop."""
        check_request(scopes, tokens)
        now_us = self._clock.read(self._raw_clock())
        if self._to_sweep:
            self._sweep(now_us)
        states: list[_Scope] = []
        limit_requests = limit_tokens = None
        left_requests = left_tokens = 0
        for scope, limit in scopes:
            state = self._scopes.get((workspace, scope))
            if state is None:
                state = self._scopes[workspace, scope] = _Scope()
                self._to_sweep += 2
            states.append(state)
            minute = state.minute
            minute.expire(now_us)
            most = limit.requests_per_minute
            if most is not None:
                left = most - minute.requests - 1
                if left < 0:
                    return self._refuse(scopes, states, tokens, now_us, workspace)
                if limit_requests is None or left < left_requests:
                    limit_requests, left_requests = most, left
            most = limit.tokens_per_minute
            if most is not None:
                left = most - minute.tokens - tokens
                if left < 0:
                    return self._refuse(scopes, states, tokens, now_us, workspace)
                if limit_tokens is None or left < left_tokens:
                    limit_tokens, left_tokens = most, left
            if not _rest_fits(state, limit, tokens, now_us):
                return self._refuse(scopes, states, tokens, now_us, workspace)
        places: list[tuple[_Scope, Run, Run | None]] = []
        for state in states:
            state.running += 1
            second = state.second
            places.append(
                (
                    state,
                    state.minute.add(now_us, 1, tokens),
                    None if second is None else second.add(now_us, 1, tokens),
                )
            )
        headroom = (limit_requests, left_requests, limit_tokens, left_tokens)
        return MemoryAdmission(tokens, places, headroom)

    def settle_now(self, admission: Admission, actual_tokens: int) -> None:
        """Settle without an event loop."""
        if not isinstance(admission, MemoryAdmission):
            raise TypeError("this admission was granted by another limiter")
        if actual_tokens < 0:
            raise ValueError(f"a request can't have used {actual_tokens} tokens")
        if not admission.open:
            return
        admission.open = False
        unused = admission.reserved_tokens - actual_tokens
        if unused >= 0:
            for state, run, second_run in admission.places():
                state.running -= 1
                state.minute.give_back(run, unused)
                if second_run is not None and state.second is not None:
                    state.second.give_back(second_run, unused)
            return
        now_us = self._clock.read(self._raw_clock())
        for state, _, _ in admission.places():
            state.running -= 1
            for window in (state.minute, state.second):
                if window is not None:
                    window.expire(now_us)
                    window.add(now_us, 0, -unused)

    def snapshot(self, workspace: str, scopes: Scopes) -> Snapshot:
        """How full the minute windows are now, without reserving anything."""
        now_us = self._clock.read(self._raw_clock())
        states = [self._scopes.get((workspace, scope)) or _Scope() for scope, _ in scopes]
        for state in states:
            state.minute.expire(now_us)
        return _snapshot(scopes, states, now_us)

    def _sweep(self, now_us: int) -> None:
        """Forget idle scopes among the oldest. Not while a reservation holds scopes in its hand."""
        for _ in range(min(self._to_sweep, len(self._scopes))):
            oldest = next(iter(self._scopes))
            if self._scopes[oldest].idle(now_us):
                del self._scopes[oldest]
            else:
                self._scopes.move_to_end(oldest)
        self._to_sweep = 0

    def _refuse(
        self, scopes: Scopes, states: list[_Scope], tokens: int, now_us: int, workspace: str
    ) -> Refused:
        """Say which limit holds the request up the longest. `states` covers the first scopes."""
        for scope, _ in scopes[len(states) :]:
            state = self._scopes.get((workspace, scope)) or _Scope()
            state.minute.expire(now_us)
            states.append(state)
        snapshot = _snapshot(scopes, states, now_us)
        never = never_fits(scopes, tokens, snapshot)
        if never is not None:
            return never
        longest: Refused | None = None
        for (scope, limit), state in zip(scopes, states, strict=True):
            for wait_us, kind, most, window_us in _waits(state, limit, tokens, now_us):
                if longest is None or wait_us > (longest.retry_after_us or 0):
                    longest = Refused(
                        kind=kind,
                        scope=scope,
                        limit=most,
                        window_us=window_us,
                        asked=tokens,
                        retry_after_us=wait_us,
                        snapshot=snapshot,
                    )
        assert longest is not None, "a refusal without a limit that is reached"
        return longest


def _rest_fits(state: _Scope, limit: Limit, tokens: int, now_us: int) -> bool:
    """Whether concurrency and the per-second window leave room."""
    most = limit.concurrency
    if most is not None and state.running >= most:
        return False
    second = state.second
    if second is None:
        if not limit.per_second:
            return True
        second = state.second = SlidingWindow(SECOND_US, SECOND_GRAIN_US)
    second.expire(now_us)
    most = limit.requests_per_second
    if most is not None and second.requests >= most:
        return False
    most = limit.tokens_per_second
    return most is None or second.tokens + tokens <= most


def _waits(
    state: _Scope, limit: Limit, tokens: int, now_us: int
) -> list[tuple[int, LimitKind, int, int]]:
    """Each figure of `limit` that is reached: how long, which, its value, its window in µs."""
    waits: list[tuple[int, LimitKind, int, int]] = []
    for window, requests_most, tokens_most in (
        (state.minute, limit.requests_per_minute, limit.tokens_per_minute),
        (state.second, limit.requests_per_second, limit.tokens_per_second),
    ):
        if window is None:
            continue
        window.expire(now_us)
        if requests_most is not None:
            wait_us = window.wait_us(now_us, window.requests + 1 - requests_most, 0)
            if wait_us:
                waits.append((wait_us, LimitKind.REQUESTS, requests_most, window.span_us))
        if tokens_most is not None:
            wait_us = window.wait_us(now_us, 0, window.tokens + tokens - tokens_most)
            if wait_us:
                waits.append((wait_us, LimitKind.TOKENS, tokens_most, window.span_us))
    if limit.concurrency is not None and state.running >= limit.concurrency:
        waits.append((CONCURRENCY_RETRY_US, LimitKind.CONCURRENCY, limit.concurrency, 0))
    return waits


def _snapshot(scopes: Scopes, states: list[_Scope], now_us: int) -> Snapshot:
    limit_requests = limit_tokens = None
    left_requests = left_tokens = reset_requests_us = reset_tokens_us = 0
    for (_, limit), state in zip(scopes, states, strict=True):
        minute = state.minute
        most = limit.requests_per_minute
        if most is not None:
            left = max(0, most - minute.requests)
            if limit_requests is None or left < left_requests:
                limit_requests, left_requests = most, left
                reset_requests_us = minute.empty_in_us(now_us)
        most = limit.tokens_per_minute
        if most is not None:
            left = max(0, most - minute.tokens)
            if limit_tokens is None or left < left_tokens:
                limit_tokens, left_tokens = most, left
                reset_tokens_us = minute.empty_in_us(now_us)
    return Snapshot(
        limit_requests,
        left_requests,
        reset_requests_us,
        limit_tokens,
        left_tokens,
        reset_tokens_us,
    )
