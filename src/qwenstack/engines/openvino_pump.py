"""Many generations through one OpenVINO pipeline: a step at a time, between the loop's own work.

The pipeline's Python binding holds the interpreter's lock for the whole of a step (tried on
2026.4.1), so a thread would gain nothing: steps alternate with the event loop on one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

_TURNS_BETWEEN_STEPS: Final = 3
_REASON_CHARACTERS_MAX: Final = 300


class Tokens(msgspec.Struct, frozen=True):
    """What came of a generation; `finish` is `stop` or `length` at its end."""

    ids: list[int]
    logprobs: list[float]
    finish: str | None


class GenerationBroken(Exception):
    """The pipeline gave a generation up. `rejected`: for what was asked of it."""

    def __init__(self, message: str, *, rejected: bool = False) -> None:
        super().__init__(message)
        self.rejected = rejected


class Generation:
    """One sequence in the pipeline. At most its token limit waits in it for its reader."""

    def __init__(self, handle: Any, *, constrained: bool) -> None:
        self.handle = handle
        self.constrained = constrained
        self.began = False
        self.ended = False
        self._arrived: asyncio.Queue[Tokens | GenerationBroken] = asyncio.Queue()

    def put(self, tokens: Tokens) -> None:
        """Pass on what a step brought."""
        self.began = True
        self.ended = tokens.finish is not None
        self._arrived.put_nowait(tokens)

    def fail(self, broken: GenerationBroken) -> None:
        """End it with an error."""
        self.ended = True
        self._arrived.put_nowait(broken)

    async def tokens(self) -> AsyncIterator[Tokens]:
        """All that comes, several steps together where the reader is slower; raises as `fail`."""
        while True:
            arrived = await self._arrived.get()
            ids: list[int] = []
            logprobs: list[float] = []
            while True:
                if isinstance(arrived, GenerationBroken):
                    raise arrived
                ids += arrived.ids
                logprobs += arrived.logprobs
                if arrived.finish is not None or self._arrived.empty():
                    break
                arrived = self._arrived.get_nowait()
            yield Tokens(ids, logprobs, arrived.finish)
            if arrived.finish is not None:
                return


class Pump:
    """Drives `pipeline` (an `openvino_genai.ContinuousBatchingPipeline`) while it has work.

    `on_fatal` is called when the pipeline fails as a whole; every generation has failed by then.
    """

    def __init__(self, pipeline: Any, on_fatal: Callable[[str], None]) -> None:
        self._pipeline = pipeline
        self._on_fatal = on_fatal
        self._open: list[Generation] = []
        self._next_id = 0
        self._work = asyncio.Event()

    @property
    def open(self) -> int:
        """Generations that run or wait."""
        return len(self._open)

    def add(self, input_ids: Any, config: Any, *, constrained: bool) -> Generation:
        """Queue a generation. Raises GenerationBroken for a configuration that is refused."""
        self._next_id += 1
        try:
            handle = self._pipeline.add_request(self._next_id, input_ids, config)
        except RuntimeError as error:
            raise GenerationBroken(_reason(error), rejected=True) from error
        generation = Generation(handle, constrained=constrained)
        self._open.append(generation)
        self._work.set()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Free its place in the pipeline at the next step."""
        if not generation.ended:
            generation.handle.cancel()
            generation.ended = True
            self._work.set()

    async def run(self) -> None:
        """Step for ever, or until the pipeline fails as a whole."""
        while True:
            if not self._pipeline.has_non_finished_requests():
                self._work.clear()
                self._open = [each for each in self._open if not each.ended]
                await self._work.wait()
            if not self._step():
                return
            # A request takes a few turns of the loop from its socket to the pipeline.
            for _ in range(_TURNS_BETWEEN_STEPS):
                await asyncio.sleep(0)

    def _step(self) -> bool:
        try:
            self._pipeline.step()
        except RuntimeError as error:
            if not self._drop_suspects(_reason(error)):
                return False
        for generation in self._open:
            if not generation.ended:
                _collect(generation)
        self._open = [each for each in self._open if not each.ended]
        return True

    def _drop_suspects(self, reason: str) -> bool:
        """A grammar that does not compile fails every step until its request is gone."""
        suspects = [each for each in self._open if each.constrained and not each.began]
        for suspect in suspects:
            suspect.handle.cancel()
        try:
            if not suspects:
                raise RuntimeError(reason)
            self._pipeline.step()
        except RuntimeError as error:
            for generation in self._open:
                if not generation.ended:
                    generation.fail(GenerationBroken("the engine failed and restarts"))
            self._open = []
            self._on_fatal(_reason(error))
            return False
        for suspect in suspects:
            if not suspect.ended:
                suspect.fail(GenerationBroken(f"it cannot be held to: {reason}", rejected=True))
        return True


def _collect(generation: Generation) -> None:
    handle = generation.handle
    ids: list[int] = []
    logprobs: list[float] = []
    finish: str | None = None
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
            logprobs += output.generated_log_probs
            if output.finish_reason.name != "NONE":
                finish = "length" if output.finish_reason.name == "LENGTH" else "stop"
    if ids or finish is not None:
        generation.put(Tokens(ids, logprobs, finish))
    elif handle.get_status().name in ("IGNORED", "CANCEL"):
        generation.fail(GenerationBroken("the engine has no memory left for this generation"))


def _reason(error: RuntimeError) -> str:
    """The last words of an OpenVINO error, whose first are paths of the machine that built it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else "no reason given"
    return reason.rsplit(".cc:", 1)[-1].rsplit(".cpp:", 1)[-1][:_REASON_CHARACTERS_MAX]
