"""The second half of a request's path: generate, deliver, settle.

A surface parses and encodes; `admit` lets in; this module runs what was let in, and ends each
request in exactly one bill or none. Nothing here knows a wire format.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Literal

import msgspec

from qwenstack.core.generation import (
    Completion,
    CompletionBuilder,
    Delta,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    Step,
)
from qwenstack.core.instants import from_us, now_us
from qwenstack.core.refusals import Refusal
from qwenstack.core.tokens import TokenUsage
from qwenstack.engines.interface import EngineError, EngineProtocolError
from qwenstack.studio.admission.limits import Limiter, LimiterUnavailableError
from qwenstack.studio.admission.queue import Priority
from qwenstack.studio.charge import Charge
from qwenstack.studio.engine_refusals import refusal_of
from qwenstack.studio.ledger.funds import Funds
from qwenstack.studio.ledger.journal import Journal
from qwenstack.studio.ledger.streams import OpenStreams
from qwenstack.studio.ledger.writes import Forget, Reverse, Settle
from qwenstack.studio.observers import Observer
from qwenstack.studio.pricing import quote
from qwenstack.studio.ticket import Ticket

_log = logging.getLogger(__name__)

Outcome = Literal["complete", "interrupted"]
_NO_QUEUE = nullcontext()


class Serving:
    """Runs admitted requests. One a process: every surface and the batch runner go through it."""

    def __init__(
        self,
        *,
        limiter: Limiter,
        funds: Funds,
        journal: Journal,
        streams: OpenStreams,
        observer: Observer,
    ) -> None:
        self._limiter = limiter
        self._funds = funds
        self._journal = journal
        self._streams = streams
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0

    async def stream(self, ticket: Ticket) -> AsyncGenerator[Step, None]:
        """Run an admitted generation step by step; raises Refusal when it breaks.

        The first step may be empty: the engine has begun to answer. The final step comes only once
        the bill is durable; everything before it may be sent at once. Deltas that end a choice are
        kept back for the final step: nobody sees a whole answer that is not billed. Closing this
        generator settles what was delivered.
        """
        delivery = _Delivery(ticket)
        self._running += 1
        self._streams.opened(ticket.request_id, _Saved(ticket))
        try:
            async with _slot(ticket), aclosing(_steps(ticket)) as steps:
                async for step in steps:
                    part = delivery.next(step)
                    if part is not None:
                        yield part
                        delivery.delivered(part)
                    if step.final:
                        break
            final = delivery.final()
            await self.settle(ticket, "complete")
            yield final
        except EngineError as error:
            raise self._failed(ticket, error) from error
        finally:
            self._running -= 1
            if not ticket.closed:
                self._end_early(ticket, delivery)

    async def complete(self, ticket: Ticket, encode: Callable[[Completion], bytes]) -> bytes:
        """Run an admitted generation to its end, encode it, settle it, and give the bytes.

        All or nothing: whatever breaks, before or while settling, nothing is billed. Raises
        Refusal.
        """
        builder = CompletionBuilder()
        self._running += 1
        try:
            async with _slot(ticket), aclosing(_steps(ticket)) as steps:
                step = Step()
                async for step in steps:
                    if ticket.first_token_us is None and step.deltas:
                        ticket.first_token_us = now_us()
                    builder.add(step)
                    if step.final:
                        break
            ticket.usage = _final_usage(step)
            body = encode(builder.build())
            await self.settle(ticket, "complete", result=(200, body))
        except EngineError as error:
            raise self._failed(ticket, error) from error
        finally:
            self._running -= 1
            if not ticket.closed:
                self._void(ticket)
        return body

    async def embed(self, ticket: Ticket, encode: Callable[[EmbeddingResult], bytes]) -> bytes:
        """Run an admitted embedding, encode it, settle it, and give the bytes; raises Refusal."""
        assert isinstance(ticket.request, EmbeddingRequest)
        self._running += 1
        try:
            async with _slot(ticket):
                result = await ticket.deployment.engine.embed(ticket.request)
            ticket.usage = result.usage
            body = encode(result)
            await self.settle(ticket, "complete", result=(200, body))
        except EngineError as error:
            raise self._failed(ticket, error) from error
        finally:
            self._running -= 1
            if not ticket.closed:
                self._void(ticket)
        return body

    async def settle(
        self, ticket: Ticket, outcome: Outcome, *, result: tuple[int, bytes] | None = None
    ) -> Charge:
        """Bill a request for `ticket.usage`; returns once the bill is durable.

        `result` (HTTP status, body) is stored with the bill of a batch line. Raises Refusal
        (STORAGE_UNAVAILABLE) when the ledger does not confirm in time: the bill of a stream stays
        in the journal, any other is taken back, since its client gets nothing.
        """
        saved = self._streams.closed(ticket.request_id)
        settlement = settlement_of(
            ticket, outcome, now_us(), result=result, leaves=saved or self._funds.stored
        )
        hold, charge = ticket.hold, settlement.charge
        future = self._journal.submit(
            settlement,
            lambda _fresh: self._funds.settled(hold, charge),
            alone=self._running == 1,
        )
        ticket.closed = True
        await self._return_unused(ticket, charge.usage.total)
        try:
            await future
        except Refusal:
            if not ticket.stream:
                self.take_back(ticket, "the ledger was away and the answer was never sent")
            raise
        self._observer.settled(ticket, charge)
        return charge

    def take_back(self, ticket: Ticket, reason: str) -> None:
        """Reverse a bill whose answer never left."""
        self._journal.submit(
            Reverse(ticket.request_id, reason),
            lambda was_billed: self._spawn(self._funds.refresh()) if was_billed else None,
        )

    async def drain(self, timeout_s: float) -> None:
        """Wait for the settlements that run in the background."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _failed(self, ticket: Ticket, error: EngineError) -> Refusal:
        ticket.failure = type(error).__name__
        self._observer.engine_failed(ticket, error)
        return refusal_of(error)

    def _end_early(self, ticket: Ticket, delivery: _Delivery) -> None:
        """Bill a stream for what it delivered, and anything else for nothing."""
        if not delivery.any:
            self._void(ticket)
            return
        ticket.closed = True
        self._spawn(self._settle_interrupted(ticket, delivery))

    async def _settle_interrupted(self, ticket: Ticket, delivery: _Delivery) -> None:
        if ticket.usage is None:
            ticket.usage = await _count_delivered(ticket, delivery.steps)
        if ticket.usage is None:
            # Tokens are the engine's own or none: what it cannot count is not billed.
            self._observer.unmetered(ticket)
            self._void(ticket)
            return
        try:
            await self.settle(ticket, "interrupted")
        except Refusal as refusal:
            _log.error("the bill of an interrupted stream waits: %s", refusal.message)

    def _void(self, ticket: Ticket) -> None:
        ticket.closed = True
        self._funds.release(ticket.hold)
        if self._streams.closed(ticket.request_id):
            self._journal.submit(Forget((ticket.request_id,)))
        self._spawn(self._return_unused(ticket, 0))
        self._observer.voided(ticket)

    async def _return_unused(self, ticket: Ticket, used_tokens: int) -> None:
        try:
            await self._limiter.settle(ticket.admission, used_tokens)
        except LimiterUnavailableError as error:
            # This fails closed: the reservation stands until its window has passed.
            _log.warning("an unused reservation could not be returned: %s", error)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def settlement_of(
    ticket: Ticket,
    outcome: Outcome,
    at_us: int,
    *,
    result: tuple[int, bytes] | None = None,
    leaves: bool = True,
) -> Settle:
    """The bill of a request for `ticket.usage`, as of an instant."""
    usage = ticket.usage or TokenUsage()
    thinking = ticket.thinking or usage.reasoning > 0
    priced = quote(
        ticket.price,
        usage,
        thinking=thinking,
        at=from_us(ticket.started_us),
        batch=ticket.line is not None,
        free_tokens_left=ticket.hold.free_tokens,
    )
    identity = ticket.deployment.engine.identity
    first_us, line = ticket.first_token_us, ticket.line
    charge = Charge(
        request_id=ticket.request_id,
        workspace_id=ticket.caller.workspace.id,
        key_id=ticket.caller.key.id,
        surface=ticket.surface,
        model=ticket.deployment.name,
        deployment=ticket.deployment.name,
        engine=identity.name,
        engine_version=identity.version,
        region=identity.region,
        digest=identity.digest,
        outcome=outcome,
        usage=usage,
        thinking=thinking,
        price=priced.price,
        lines=priced.lines,
        amount_micro=priced.amount_micro,
        currency=priced.currency,
        started_at=from_us(ticket.started_us),
        finished_at=from_us(at_us),
        first_token_ms=None if first_us is None else (first_us - ticket.started_us) // 1000,
        batch_id=line.batch_id if line else None,
    )
    return Settle(
        charge=charge,
        leaves=leaves,
        budgets=tuple((budget.id, start) for budget, start in ticket.hold.request.budgets),
        line=(line.batch_id, line.line, *result) if line and result else None,
    )


class _Delivery:
    """What of a stream went to the consumer, and what is kept back for the end."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._endings: list[Delta] = []
        self._last = Step()
        self._opened = False
        # Without a running count the text itself is needed to have the engine count it.
        self._keep = not ticket.deployment.engine.capabilities.running_usage
        self.steps: list[Step] = []
        self.any = False

    def next(self, step: Step) -> Step | None:
        """The part of an engine's step to deliver now, if any."""
        deltas = step.deltas
        if self._ticket.first_token_us is None and deltas:
            self._ticket.first_token_us = now_us()
        if step.final:
            self._last = step
        for delta in deltas:
            if delta.finish is not None:
                deltas = self._without_endings(deltas)
                break
        if not deltas and (self._opened or step.final):
            return None
        self._opened = True
        return Step(deltas, step.usage)

    def delivered(self, part: Step) -> None:
        """The consumer took it."""
        if not part.deltas:
            return
        self.any = True
        if part.usage is not None:
            self._ticket.usage = part.usage
        if self._keep:
            self.steps.append(part)

    def final(self) -> Step:
        """The final step; raises EngineProtocolError when the engine gave no usage."""
        usage = self._ticket.usage = _final_usage(self._last)
        return Step(tuple(self._endings), usage, final=True)

    def _without_endings(self, deltas: tuple[Delta, ...]) -> tuple[Delta, ...]:
        kept = []
        for delta in deltas:
            if delta.finish is None:
                kept.append(delta)
                continue
            self._endings.append(
                Delta(index=delta.index, finish=delta.finish, stopped_by=delta.stopped_by)
            )
            if delta.text or delta.reasoning or delta.tool_calls or delta.logprobs:
                kept.append(msgspec.structs.replace(delta, finish=None, stopped_by=None))
        return tuple(kept)


class _Saved:
    """A ticket as the saved state of streams sees it."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    @property
    def usage(self) -> TokenUsage | None:
        return self._ticket.usage

    def settlement(self, at_us: int) -> Settle:
        return settlement_of(self._ticket, "interrupted", at_us)


def _final_usage(step: Step) -> TokenUsage:
    if not step.final or step.usage is None:
        raise EngineProtocolError("the engine ended without saying its usage")
    wrong = step.usage.inconsistency()
    if wrong is not None:
        raise EngineProtocolError(wrong)
    return step.usage


def _slot(ticket: Ticket) -> AbstractAsyncContextManager[None]:
    """A place on the engine; a remote engine has a queue of its own."""
    queue = ticket.deployment.queue
    if queue is None:
        return _NO_QUEUE
    priority = Priority.BATCH if ticket.line else Priority.INTERACTIVE
    return queue.slot(ticket.caller.workspace.id, priority)


def _steps(ticket: Ticket) -> AsyncGenerator[Step, None]:
    return ticket.deployment.engine.generate(_generation(ticket))


def _generation(ticket: Ticket) -> GenerationRequest:
    assert isinstance(ticket.request, GenerationRequest)
    return ticket.request


async def _count_delivered(ticket: Ticket, steps: list[Step]) -> TokenUsage | None:
    """The engine's own count of what was delivered, or None where it cannot say."""
    engine = ticket.deployment.engine
    if not engine.capabilities.counts_prompts:
        return None
    builder = CompletionBuilder()
    for step in (*steps, Step((), TokenUsage())):
        builder.add(step)
    completion = reasoning = 0
    try:
        prompt = await engine.count_prompt(_generation(ticket))
        for choice in builder.build().choices:
            thought = await engine.count_text(choice.reasoning) if choice.reasoning else 0
            calls = "".join(call.name + call.arguments for call in choice.tool_calls)
            reasoning += thought
            completion += thought + await engine.count_text(choice.text + calls)
    except EngineError as error:
        # Its words may quote the stream.
        _log.warning("the engine could not count an interrupted stream: %s", type(error).__name__)
        return None
    return TokenUsage(prompt=prompt, completion=completion, reasoning=reasoning)
