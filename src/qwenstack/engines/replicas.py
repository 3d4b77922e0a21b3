"""Several engines as one: the least loaded is asked, a failing one is left alone for a while.

A request goes to another replica only as long as nothing of an answer was given out: after the
first step it ends where it broke, since a second run could say something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from qwenstack.core.generation import EmbeddingRequest, EmbeddingResult, GenerationRequest, Step
from qwenstack.engines.breaker import Breaker, BreakerOptions, BreakerState
from qwenstack.engines.interface import (
    Capabilities,
    Engine,
    EngineError,
    EngineIdentity,
    EngineRejected,
    EngineUnavailable,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Replica:
    """One engine, with what choosing between several needs to know of it."""

    def __init__(self, engine: Engine, options: BreakerOptions) -> None:
        self.engine = engine
        self.breaker = Breaker(options)
        self.started = False
        self.running = 0
        self.chosen_at = 0

    def judge(self, error: EngineError) -> None:
        """Hold an error against the replica, unless the request itself was at fault."""
        if isinstance(error, EngineRejected):
            self.breaker.succeeded()
        else:
            self.breaker.failed()


class Replicas:
    """An `Engine` over several that run the same model in the same region."""

    def __init__(self, engines: Sequence[Engine], options: BreakerOptions | None = None) -> None:
        if not engines:
            raise ValueError("an engine needs at least one replica")
        # The region is what a residency rule was checked against, so it must hold for all.
        for field in ("region", "digest"):
            values = {str(getattr(engine.identity, field)) for engine in engines}
            if len(values) > 1:
                raise ValueError(
                    f"replicas must share one {field}, but these have {', '.join(sorted(values))}"
                )
        self._options = options or BreakerOptions()
        self._replicas = [_Replica(engine, self._options) for engine in engines]
        self._turn = 0
        self._watches: list[asyncio.Task[None]] = []

    @property
    def identity(self) -> EngineIdentity:
        """What runs: the identity of the first replica that is up, since replicas are alike."""
        return self._speaker().engine.identity

    @property
    def capabilities(self) -> Capabilities:
        """What they can do: of all together in parallel, with the smallest context of them."""
        every = [each.engine.capabilities for each in self._replicas]
        parallel = [each.parallel for each in every if each.parallel is not None]
        contexts = [each.context_tokens for each in every if each.context_tokens is not None]
        return msgspec.structs.replace(
            self._speaker().engine.capabilities,
            parallel=sum(parallel) if len(parallel) == len(every) else None,
            context_tokens=min(contexts, default=None),
        )

    # --- Requests -------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Run on the least loaded replica, on another one while no step has come."""
        tried: list[_Replica] = []
        failure: EngineError | None = None
        while True:
            replica, trial = self._choose(tried, failure)
            tried.append(replica)
            began = False
            replica.running += 1
            steps = replica.engine.generate(request)
            try:
                async for step in steps:
                    if step.final:
                        replica.breaker.succeeded()
                    elif step.deltas and not began:
                        replica.breaker.answered()
                    # An answer that has not said anything yet may still be another's.
                    began = began or bool(step.deltas) or step.final
                    yield step
                return
            except EngineError as error:
                replica.judge(error)
                if began or not error.retryable:
                    raise
                failure = error
            finally:
                replica.running -= 1
                if trial:
                    replica.breaker.forgotten()
                await steps.aclose()

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
        failure: EngineError | None = None
        while True:
            replica, trial = self._choose(tried, failure)
            tried.append(replica)
            replica.running += 1
            try:
                answer = await ask(replica.engine)
                replica.breaker.succeeded()
                return answer
            except EngineError as error:
                replica.judge(error)
                if not error.retryable:
                    raise
                failure = error
            finally:
                replica.running -= 1
                if trial:
                    replica.breaker.forgotten()

    def _choose(self, tried: list[_Replica], failure: EngineError | None) -> tuple[_Replica, bool]:
        """The least loaded replica not tried yet, and whether this request is its trial.

        Of equally loaded ones it is the one not chosen for longest.

        Raises `failure`, the reason why another is looked for, when there is none.
        """
        best: _Replica | None = None
        if len(tried) < self._options.attempts_max:
            for each in self._replicas:
                if not each.started or each in tried or each.breaker.state is BreakerState.OPEN:
                    continue
                if best is None or (each.running, each.chosen_at) < (best.running, best.chosen_at):
                    best = each
        if best is None:
            raise failure or EngineUnavailable(
                f"each of {len(self._replicas)} replicas failed lately; one is tried again within "
                f"{self._options.rest_s:g} s"
            )
        if failure is not None:
            _log.info("a request goes to another replica: %s", failure)
        self._turn += 1
        best.chosen_at = self._turn
        return best, best.breaker.enter()

    def _speaker(self) -> _Replica:
        return next((each for each in self._replicas if each.started), self._replicas[0])

    # --- Life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start every replica; raises EngineUnavailable when none answers.

        One that does not is started later, as soon as it answers.
        """
        failures = await asyncio.gather(*(self._try_start(each) for each in self._replicas))
        if not any(each.started for each in self._replicas):
            raise EngineUnavailable(f"none of {len(failures)} replicas answers: {failures[0]}")
        loop = asyncio.get_running_loop()
        self._watches = [loop.create_task(self._watch(each)) for each in self._replicas]

    async def healthy(self) -> bool:
        """Whether any replica would take a request."""
        return any(
            each.started and each.breaker.state is not BreakerState.OPEN for each in self._replicas
        )

    async def close(self) -> None:
        """Close every replica."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches = []
        for each in self._replicas:
            each.started = False
        await asyncio.gather(*(each.engine.close() for each in self._replicas))

    async def _try_start(self, replica: _Replica) -> EngineError | None:
        try:
            await replica.engine.start()
        except EngineError as error:
            _log.warning("a replica is not available: %s", error)
            return error
        replica.started = True
        return None

    async def _watch(self, replica: _Replica) -> None:
        """Find out that a replica is gone or back without a request's paying for it."""
        interval_s = self._options.health_interval_s
        while True:
            await asyncio.sleep(interval_s)
            if not replica.started:
                await self._try_start(replica)
                continue
            try:
                async with asyncio.timeout(interval_s):
                    healthy = await replica.engine.healthy()
            except TimeoutError:
                healthy = False
            if healthy:
                replica.breaker.well()
            else:
                replica.breaker.failed()
