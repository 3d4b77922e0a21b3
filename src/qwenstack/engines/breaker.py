"""When a failing replica is left alone and when it is tried again (the circuit breaker pattern)."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable

import msgspec


class BreakerOptions(msgspec.Struct, frozen=True):
    """After `failures` in a row a replica rests for `rest_s`, then one request tries it again.

    Every `health_interval_s` each replica is asked whether it is well. A request is given to at
    most `attempts_max` replicas.
    """

    failures: int = 3
    rest_s: float = 5.0
    health_interval_s: float = 5.0
    attempts_max: int = 3

    def __post_init__(self) -> None:
        for field in ("failures", "rest_s", "health_interval_s", "attempts_max"):
            value = getattr(self, field)
            if not value > 0:
                raise ValueError(f"{field} is {value}; it must be more than 0")


class BreakerState(enum.Enum):
    """Whether a replica gets requests: all, none, or a single one to try it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The circuit breaker of one replica (Nygard, Release It!, "Circuit Breaker")."""

    def __init__(
        self, options: BreakerOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._clock = clock
        self._failures = 0
        self._rests_until_s = 0.0
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """Where it stands now; while a trial runs it is open for all others."""
        if self._failures < self._options.failures:
            return BreakerState.CLOSED
        if self._trying or self._clock() < self._rests_until_s:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def enter(self) -> bool:
        """Let a request through that `state` allows; True where it is the trial.

        Whoever runs the trial owes one of `answered`, `succeeded`, `failed` or `forgotten`.
        """
        trial = self.state is BreakerState.HALF_OPEN
        self._trying = self._trying or trial
        return trial

    def answered(self) -> None:
        """An answer began. That closes the breaker, but the next failure opens it again."""
        if self._failures >= self._options.failures:
            self._failures = self._options.failures - 1
        self._trying = False

    def succeeded(self) -> None:
        """An answer came whole: nothing is held against the replica."""
        self._failures = 0
        self._trying = False

    def failed(self) -> None:
        """No answer came, or it broke off."""
        self._failures = min(self._failures + 1, self._options.failures)
        self._rests_until_s = self._clock() + self._options.rest_s
        self._trying = False

    def forgotten(self) -> None:
        """The trial ended without telling anything, as when its client left: another may run."""
        self._trying = False

    def well(self) -> None:
        """A health check succeeded: the rest is over, and the next request is the trial.

        It does not close the breaker, since a server can be healthy and fail every generation.
        """
        self._rests_until_s = 0.0
