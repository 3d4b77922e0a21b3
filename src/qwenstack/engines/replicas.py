"""Several engines as one: the least loaded is asked, a failing one is left alone for a while.

A request goes to another replica only as long as nothing of an answer was given out: after the
first step it ends where it broke, since a second run could say something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step
from qwenstack.engines.interface import (
    Capabilities,
    Engine,
    EngineError,
    EngineIdentity,
    EngineUnavailable,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class BreakerOptions(msgspec.Struct, frozen=True):
    """After `failures` in a row a replica rests for `rest_s`, then one request tries it again."""

    failures: int = 3
    rest_s: float = 5.0
    health_interval_s: float = 5.0


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
        self._opened_s = 0.0
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
        if self._failures < self._options.failures:
            return BreakerState.CLOSED
        if self._clock() - self._opened_s < self._options.rest_s or self._trying:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def admits(self) -> bool:
        """Whether a request may go through; in the half-open state only the first."""
        state = self.state
        if state is BreakerState.HALF_OPEN:
            self._trying = True
        return state is not BreakerState.OPEN

    def succeeded(self) -> None:
        """An answer came: all is well again."""
        self._failures = 0
        self._trying = False

    def failed(self) -> None:
        """No answer came."""
        self._failures = min(self._failures + 1, self._options.failures)
        self._opened_s = self._clock()
        self._trying = False


class _Replica:
    def __init__(self, engine: Engine, options: BreakerOptions) -> None:
        self.engine = engine
        self.breaker = Breaker(options)
        self.running = 0


class Replicas:
    """One engine over several that run the same model."""

    def __init__(self, engines: Sequence[Engine], options: BreakerOptions | None = None) -> None:
        if not engines:
            raise ValueError("an engine needs at least one replica")
        self._options = options or BreakerOptions()
        self._replicas = [_Replica(engine, self._options) for engine in engines]
        self._task: asyncio.Task[None] | None = None

    @property
    def identity(self) -> EngineIdentity:
        """What runs; replicas are alike."""
        return self._replicas[0].engine.identity

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; replicas are alike."""
        return self._replicas[0].engine.capabilities

    async def start(self) -> None:
        """Start every replica; raises EngineUnavailable when none answers."""
        failures = await asyncio.gather(
            *(each.engine.start() for each in self._replicas), return_exceptions=True
        )
        for replica, failure in zip(self._replicas, failures, strict=True):
            if isinstance(failure, EngineError):
                _log.warning("a replica is not available: %s", failure)
                for _ in range(self._options.failures):
                    replica.breaker.failed()
            elif failure is not None:
                raise failure
        if all(isinstance(failure, EngineError) for failure in failures):
            raise EngineUnavailable(f"none of {len(failures)} replicas answers: {failures[0]}")
        self._task = asyncio.get_running_loop().create_task(self._check_regularly())

    async def close(self) -> None:
        """Close every replica."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(each.engine.close() for each in self._replicas))

    async def healthy(self) -> bool:
        """Whether any replica would take a request."""
        return any(each.breaker.state is not BreakerState.OPEN for each in self._replicas)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run on the least loaded replica, on another one while no step has come."""
        tried: list[_Replica] = []
        while True:
            replica = self._choose(tried)
            tried.append(replica)
            began = False
            replica.running += 1
            steps = replica.engine.generate(request)
            try:
                async with contextlib.aclosing(steps):
                    async for step in steps:
                        began = True
                        yield step
                replica.breaker.succeeded()
                return
            except EngineError as error:
                self._failed(replica, error)
                if began or not error.retryable or len(tried) == len(self._replicas):
                    raise
                _log.info("a request goes to another replica: %s", error)
            finally:
                replica.running -= 1

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed on the least loaded replica, on another one where that fails."""
        return await self._call(lambda engine: engine.embed(request))

    async def count_prompt(self, request: GenerationRequest | EmbeddingRequest) -> int:
        """Any replica's count: they run the same model."""
        return await self._call(lambda engine: engine.count_prompt(request))

    async def count_text(self, text: str) -> int:
        """Any replica's count."""
        return await self._call(lambda engine: engine.count_text(text))

    async def _call(self, ask: Callable[[Engine], Awaitable[_T]]) -> _T:
        tried: list[_Replica] = []
        while True:
            replica = self._choose(tried)
            tried.append(replica)
            replica.running += 1
            try:
                answer = await ask(replica.engine)
            except EngineError as error:
                self._failed(replica, error)
                if not error.retryable or len(tried) == len(self._replicas):
                    raise
            else:
                replica.breaker.succeeded()
                return answer
            finally:
                replica.running -= 1

    def _choose(self, tried: list[_Replica]) -> _Replica:
        candidates = sorted(
            (each for each in self._replicas if each not in tried), key=lambda each: each.running
        )
        for replica in candidates:
            if replica.breaker.admits():
                return replica
        raise EngineUnavailable(
            f"each of {len(self._replicas)} replicas failed lately; trying again within "
            f"{self._options.rest_s:g} s"
        )

    def _failed(self, replica: _Replica, error: EngineError) -> None:
        # A request that was refused as invalid says nothing against the replica.
        if error.retryable:
            replica.breaker.failed()
        else:
            replica.breaker.succeeded()

    async def _check_regularly(self) -> None:
        """Let a resting replica that answers again take requests, without a request's failing."""
        while True:
            await asyncio.sleep(self._options.health_interval_s)
            for replica in self._replicas:
                if replica.breaker.state is BreakerState.CLOSED:
                    continue
                if await replica.engine.healthy():
                    replica.breaker.succeeded()
