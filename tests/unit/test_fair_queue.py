"""Who gets a slot next, and what bounds the wait."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.refusals import Refusal, RefusalKind
from qwenstack.studio.admission.queue import FairQueue, Priority

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


class Bench:
    """Puts work in a queue and lets it end when told; notes who was served, in order."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.served: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._gates: list[asyncio.Event] = []

    async def add(
        self, workspace: str, count: int = 1, priority: Priority = INTERACTIVE
    ) -> asyncio.Task[None]:
        for _ in range(count):
            task = asyncio.ensure_future(self._work(workspace, priority))
            self.tasks.append(task)
        await settle_down()
        return task

    async def _work(self, workspace: str, priority: Priority) -> None:
        async with self.queue.slot(workspace, priority):
            self.served.append(workspace)
            gate = asyncio.Event()
            self._gates.append(gate)
            await gate.wait()

    async def finish(self, count: int = 1) -> None:
        """End the work that has run longest."""
        for _ in range(count):
            self._gates.pop(0).set()
            await settle_down()

    async def finish_all(self) -> None:
        while self._gates:
            await self.finish()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settle_down() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def outcome(task: asyncio.Task[None]) -> Refusal:
    error = task.exception()
    assert isinstance(error, Refusal)
    return error


async def test_a_workspace_with_a_hundred_waiting_does_not_delay_anothers_one() -> None:
    bench = Bench(FairQueue(1))
    await bench.add("greedy", 101)
    await bench.add("modest")
    await bench.finish(2)
    assert bench.served == ["greedy", "greedy", "modest"]
    await bench.finish_all()
    assert bench.queue.running == bench.queue.waiting == 0


async def test_workspaces_take_turns_and_each_is_served_in_order_of_arrival() -> None:
    bench = Bench(FairQueue(1))
    await bench.add("a", 4)
    await bench.add("b", 2)
    await bench.add("c", 1)
    await bench.finish_all()
    assert bench.served == ["a", "a", "b", "c", "a", "b", "a"]


async def test_batch_waits_for_interactive_and_is_not_starved() -> None:
    bench = Bench(FairQueue(1, batch_every=4))
    await bench.add("running")
    await bench.add("batch", 3, BATCH)
    await bench.add("live", 20)
    await bench.finish(12)
    assert bench.served[1:] == (["live"] * 3 + ["batch"]) * 3
    await bench.finish_all()


async def test_batch_never_holds_the_last_slot_of_several() -> None:
    bench = Bench(FairQueue(3))
    await bench.add("batch", 5, BATCH)
    assert bench.queue.running == 2
    await bench.add("live")
    assert bench.served == ["batch", "batch", "live"]
    await bench.finish_all()
    assert bench.served.count("batch") == 5


async def test_a_full_queue_refuses_with_an_estimate() -> None:
    bench = Bench(FairQueue(1, max_waiting=2))
    await bench.add("a", 3)
    refusal = outcome(await bench.add("a"))
    assert refusal.kind is RefusalKind.OVERLOADED
    assert refusal.retry_after_s is not None and refusal.retry_after_s > 0
    assert bench.queue.waiting == 2
    await bench.finish_all()
    assert bench.served == ["a"] * 3


async def test_one_workspace_cannot_fill_the_queue_against_the_others() -> None:
    bench = Bench(FairQueue(1, max_waiting=4))
    await bench.add("greedy", 5)
    await bench.add("modest")
    assert outcome(bench.tasks[4]).kind is RefusalKind.OVERLOADED  # the latest of the greedy one
    assert bench.queue.waiting == 4
    await bench.finish(2)
    assert bench.served == ["greedy", "greedy", "modest"]
    await bench.finish_all()


async def test_a_full_queue_gives_batch_places_to_interactive_requests() -> None:
    bench = Bench(FairQueue(1, max_waiting=2))
    await bench.add("a")
    await bench.add("b", 2, BATCH)
    await bench.add("c")
    assert outcome(bench.tasks[2]).kind is RefusalKind.OVERLOADED
    assert (bench.queue.waiting_in(BATCH), bench.queue.waiting_in(INTERACTIVE)) == (1, 1)
    # And not the other way round.
    assert outcome(await bench.add("d", 1, BATCH)).kind is RefusalKind.OVERLOADED
    await bench.finish_all()


async def test_a_workspace_has_a_bound_of_its_own() -> None:
    bench = Bench(FairQueue(1, max_waiting=100, max_waiting_per_workspace=2))
    await bench.add("a", 3)
    assert outcome(await bench.add("a")).kind is RefusalKind.OVERLOADED
    await bench.add("b")
    assert bench.queue.waiting == 3
    await bench.finish_all()


async def test_the_wait_ends_when_its_time_is_over() -> None:
    bench = Bench(FairQueue(1, max_wait_s=0.02))
    await bench.add("a")
    task = await bench.add("b")
    await asyncio.wait([task], timeout=10)
    assert outcome(task).kind is RefusalKind.OVERLOADED
    assert bench.queue.waiting == 0
    await bench.finish_all()
    assert bench.served == ["a"]


async def test_a_cancelled_waiter_frees_its_place() -> None:
    bench = Bench(FairQueue(1, max_waiting=1))
    await bench.add("a")
    waiting = await bench.add("b")
    waiting.cancel()
    await settle_down()
    assert bench.queue.waiting == 0
    await bench.add("c")
    await bench.finish()
    assert bench.served == ["a", "c"]
    await bench.finish_all()


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_slot_granted_to_a_cancelled_waiter_goes_to_the_next(cancel_first: bool) -> None:
    queue = FairQueue(1)
    bench = Bench(queue)
    slot = queue.slot("a")
    await slot.__aenter__()
    cancelled = await bench.add("b")
    await bench.add("c")
    # Both in one turn of the loop, in either order.
    if cancel_first:
        cancelled.cancel()
    await slot.__aexit__(None, None, None)
    if not cancel_first:
        cancelled.cancel()
    await settle_down()
    assert bench.served == ["c"]
    await bench.finish_all()
    assert queue.running == queue.waiting == 0


async def test_an_error_inside_gives_the_slot_back() -> None:
    queue = FairQueue(1)
    with pytest.raises(ZeroDivisionError):
        async with queue.slot("a"):
            raise ZeroDivisionError
    assert queue.running == 0


async def test_closing_refuses_all_who_wait_and_leaves_running_work_alone() -> None:
    bench = Bench(FairQueue(1))
    await bench.add("a")
    await bench.add("b", 3)
    bench.queue.close()
    await settle_down()
    assert {outcome(task).kind for task in bench.tasks[1:]} == {RefusalKind.DRAINING}
    assert outcome(await bench.add("c")).kind is RefusalKind.DRAINING
    assert bench.queue.running == 1
    await bench.finish_all()
    assert bench.tasks[0].exception() is None


async def test_more_slots_serve_at_once_and_fewer_let_running_work_end() -> None:
    bench = Bench(FairQueue(1))
    await bench.add("a", 5)
    bench.queue.resize(3)
    await settle_down()
    assert bench.queue.running == 3
    bench.queue.resize(1)
    await bench.finish(2)
    assert (bench.queue.running, bench.queue.waiting) == (1, 2)
    await bench.finish_all()


async def test_a_free_slot_is_taken_without_a_turn_of_the_event_loop() -> None:
    turned = False

    def turn() -> None:
        nonlocal turned
        turned = True

    queue = FairQueue(1)
    asyncio.get_running_loop().call_soon(turn)
    async with queue.slot("a"):
        assert not turned


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"slots": 1, "max_waiting": -1}, {"slots": 1, "batch_every": 0}]
)
def test_nonsense_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        FairQueue(**wrong)


@settings(max_examples=150, deadline=None)
@given(
    slots=st.integers(1, 3),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["live", "batch", "finish", "cancel"]),
            st.sampled_from(["a", "b", "c", "d"]),
            st.integers(0, 30),
        ),
        max_size=80,
    ),
)
def test_slots_are_never_exceeded_idled_or_lost(
    slots: int, steps: list[tuple[str, str, int]]
) -> None:
    async def play() -> None:
        queue = FairQueue(slots, max_waiting=8, max_waiting_per_workspace=5)
        bench = Bench(queue)
        for what, workspace, which in steps:
            if what == "finish":
                if queue.running:
                    await bench.finish()
            elif what == "cancel":
                alive = [task for task in bench.tasks if not task.done()]
                waiting = alive[queue.running :]
                if waiting:
                    waiting[which % len(waiting)].cancel()
                    await settle_down()
            else:
                await bench.add(workspace, 1, BATCH if what == "batch" else INTERACTIVE)
            assert queue.running <= slots
            assert queue.waiting <= 8
            assert queue.waiting == queue.waiting_in(BATCH) + queue.waiting_in(INTERACTIVE)
            if queue.waiting_in(INTERACTIVE):
                assert queue.running == slots
        while queue.running:
            await bench.finish()
        assert queue.waiting == 0
        ended = await asyncio.gather(*bench.tasks, return_exceptions=True)
        assert all(
            end is None or isinstance(end, Refusal | asyncio.CancelledError) for end in ended
        )
        assert len(bench.served) >= sum(end is None for end in ended)

    asyncio.run(play())


@settings(max_examples=100, deadline=None)
@given(
    waiting=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=2),
    newcomer_after=st.integers(0, 10),
)
def test_a_newcomer_waits_at_most_one_turn_of_each_other_workspace(
    waiting: dict[str, int], newcomer_after: int
) -> None:
    async def play() -> None:
        bench = Bench(FairQueue(1, max_waiting=1000))
        for workspace, count in waiting.items():
            await bench.add(workspace, count)
        for _ in range(newcomer_after):
            if bench.queue.running:
                await bench.finish()
        before = len(bench.served)
        await bench.add("newcomer")
        while "newcomer" not in bench.served:
            await bench.finish()
        ahead = bench.served[before : bench.served.index("newcomer")]
        assert len(ahead) == len(set(ahead)), "someone was served twice ahead of the newcomer"
        await bench.finish_all()

    asyncio.run(play())
