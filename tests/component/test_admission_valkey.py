"""Rate limits shared over a real Valkey server, by several workers, with kills and restarts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from valkey import Valkey

from qwenstack.core.refusals import RefusalKind
from qwenstack.studio.admission.limits import (
    Admission,
    Limit,
    Limiter,
    LimiterUnavailableError,
    LimitKind,
    Refused,
    Scopes,
    refusal_for,
)
from qwenstack.studio.admission.memory import MemoryLimiter
from qwenstack.studio.admission.valkey import ValkeyLimiter
from tests.admission_model import LimiterMachine
from tests.component.valkey_server import ValkeyServer, free_port

WORKER = Path(__file__).with_name("admission_worker.py")


def fresh() -> str:
    return f"ws_{uuid.uuid4().hex}"


def admitted(verdict: Admission | Refused) -> Admission:
    assert not isinstance(verdict, Refused), verdict
    return verdict


def refused(verdict: Admission | Refused) -> Refused:
    assert isinstance(verdict, Refused)
    return verdict


async def restart(server: ValkeyServer) -> None:
    """Kill and start again; the pause lets pooled connections learn that they were closed."""
    server.kill()
    server.start()
    await asyncio.sleep(0.1)


def test_no_window_exceeds_its_limit_across_three_workers(valkey_url: str) -> None:
    class SharedMachine(LimiterMachine):
        async def make_limiters(self, clock: Callable[[], int]) -> list[Limiter]:
            # Leases outlast every pause here: what a dead worker holds has a test of its own.
            prefix = f"t{uuid.uuid4().hex}"
            return [
                ValkeyLimiter(valkey_url, prefix=prefix, lease_s=10**6, clock_us=clock)
                for _ in range(3)
            ]

    run_state_machine_as_test(
        SharedMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


async def test_the_shared_limiter_and_the_one_in_process_say_the_same(valkey_url: str) -> None:
    now_us = 10**15

    def clock() -> int:
        return now_us

    scopes: Scopes = (
        ("model", Limit(requests_per_minute=15, tokens_per_minute=300, requests_per_second=4)),
        ("all", Limit(requests_per_minute=20, tokens_per_second=90, concurrency=9)),
    )
    workspace, memory = fresh(), MemoryLimiter(clock)
    async with ValkeyLimiter(valkey_url, clock_us=clock) as shared:
        running: list[tuple[Admission, Admission]] = []
        for step in range(400):
            now_us += (step * 7919) % (130_000 if step % 100 < 70 else 3_000_000)
            tokens = (step * 31) % 60
            ours = memory.reserve_now(workspace, scopes, tokens)
            theirs = await shared.reserve(workspace, scopes, tokens)
            if isinstance(ours, Refused):
                assert ours.kind is LimitKind.OVERSIZED or ours == theirs
                assert refused(theirs).kind is ours.kind
            else:
                assert ours.snapshot == admitted(theirs).snapshot
                running.append((ours, admitted(theirs)))
            if step % 3 == 0 and running:
                one, other = running.pop(0)
                memory.settle_now(one, (step * 13) % 70)
                await shared.settle(other, (step * 13) % 70)
        assert any(isinstance(memory.reserve_now(workspace, scopes, 5), Refused) for _ in range(9))


async def test_concurrent_requests_of_many_workers_do_not_overrun_a_limit(valkey_url: str) -> None:
    workspace, scopes = fresh(), (("all", Limit(requests_per_minute=50, tokens_per_minute=3000)),)
    workers = [ValkeyLimiter(valkey_url) for _ in range(4)]
    verdicts = await asyncio.gather(
        *(workers[number % 4].reserve(workspace, scopes, 100) for number in range(200))
    )
    granted = [verdict for verdict in verdicts if not isinstance(verdict, Refused)]
    assert len(granted) == 30  # 3000 tokens at 100 each come before 50 requests
    for worker in workers:
        await worker.close()


async def test_a_limit_does_not_multiply_with_the_replicas(valkey_url: str) -> None:
    workspace, scopes = fresh(), (("key", Limit(requests_per_minute=5)),)
    granted = 0
    for _ in range(4):
        async with ValkeyLimiter(valkey_url) as replica:
            for _ in range(5):
                granted += not isinstance(await replica.reserve(workspace, scopes, 0), Refused)
    assert granted == 5


async def test_a_server_clock_that_steps_back_does_not_stop_time(valkey_url: str) -> None:
    now_us = 10**15

    def clock() -> int:
        return now_us

    workspace, scopes = fresh(), (("all", Limit(requests_per_minute=1)),)
    async with ValkeyLimiter(valkey_url, clock_us=clock) as limiter:
        admitted(await limiter.reserve(workspace, scopes, 0))
        now_us -= 3_600_000_000
        assert refused(await limiter.reserve(workspace, scopes, 0)).retry_after_us == 60_000_000
        now_us += 60_000_000
        admitted(await limiter.reserve(workspace, scopes, 0))


async def test_nothing_is_admitted_when_the_store_does_not_answer(own_valkey: ValkeyServer) -> None:
    scopes = (("all", Limit(requests_per_minute=5)),)
    async with ValkeyLimiter(own_valkey.url, timeout_s=0.5) as limiter:
        running = admitted(await limiter.reserve("ws", scopes, 10))
        own_valkey.kill()
        with pytest.raises(LimiterUnavailableError):
            await limiter.reserve("ws", scopes, 10)
        with pytest.raises(LimiterUnavailableError):
            await limiter.settle(running, 10)
    with pytest.raises(LimiterUnavailableError):
        await ValkeyLimiter(own_valkey.url).start()


async def test_a_store_that_hangs_is_given_up_in_bounded_time(own_valkey: ValkeyServer) -> None:
    scopes = (("all", Limit(requests_per_minute=5)),)
    async with ValkeyLimiter(own_valkey.url, timeout_s=0.2) as limiter:
        admitted(await limiter.reserve("ws", scopes, 10))
        own_valkey.pause()
        with pytest.raises(LimiterUnavailableError):
            async with asyncio.timeout(5):
                await limiter.reserve("ws", scopes, 10)
        own_valkey.resume()
        # The lost answer may stand as one reservation, and no answer goes to the wrong caller.
        after = admitted(await limiter.reserve("ws", scopes, 10))
        assert after.snapshot.remaining_requests in (2, 3)


async def test_a_store_that_lost_its_data_admits_nothing_until_the_window_has_passed(
    own_valkey: ValkeyServer,
) -> None:
    now_us = 10**15

    def clock() -> int:
        return now_us

    scopes = (("all", Limit(requests_per_minute=5)),)
    async with (
        ValkeyLimiter(own_valkey.url, clock_us=clock) as one,
        ValkeyLimiter(own_valkey.url, clock_us=clock) as other,
    ):
        running = [admitted(await one.reserve("ws", scopes, 10)) for _ in range(5)]
        now_us += 10_000_000
        await restart(own_valkey)
        verdict = refused(await one.reserve("ws", scopes, 10))
        assert verdict.kind is LimitKind.HISTORY_LOST
        assert verdict.retry_after_us == 50_000_000
        assert refusal_for(verdict).kind is RefusalKind.STORAGE_UNAVAILABLE
        # A worker that knows nothing of it is held to the same.
        assert refused(await other.reserve("ws", scopes, 10)).kind is LimitKind.HISTORY_LOST
        admitted(await other.reserve("another", scopes, 10))
        for admission in running:
            await one.settle(admission, 0)  # gives nothing back into the new epoch
        now_us += 50_000_000
        for _ in range(5):
            admitted(await one.reserve("ws", scopes, 10))
        assert refused(await other.reserve("ws", scopes, 10)).kind is LimitKind.REQUESTS


async def test_a_store_that_kept_its_data_goes_on_after_a_restart(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    try:
        scopes = (("all", Limit(requests_per_minute=5)),)
        async with ValkeyLimiter(server.url) as limiter:
            for _ in range(3):
                admitted(await limiter.reserve("ws", scopes, 10))
            await restart(server)
            for _ in range(2):
                admitted(await limiter.reserve("ws", scopes, 10))
            assert refused(await limiter.reserve("ws", scopes, 10)).kind is LimitKind.REQUESTS
    finally:
        server.kill()


async def test_a_killed_worker_gives_its_concurrency_back_when_its_leases_end(
    valkey_url: str,
) -> None:
    workspace, scopes = fresh(), (("all", Limit(concurrency=3)),)
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), valkey_url, workspace, "0.9"], stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == b"holding\n"
        async with ValkeyLimiter(valkey_url) as limiter:
            # It lives, and renews: held for longer than a lease.
            await asyncio.sleep(1.2)
            assert refused(await limiter.reserve(workspace, scopes, 0)).kind is (
                LimitKind.CONCURRENCY
            )
            worker.kill()
            worker.wait()
            deadline = time.monotonic() + 10
            while isinstance(await limiter.reserve(workspace, scopes, 0), Refused):
                assert time.monotonic() < deadline, "the leases of a dead worker never ended"
                await asyncio.sleep(0.05)
            for _ in range(2):
                admitted(await limiter.reserve(workspace, scopes, 0))
            refused(await limiter.reserve(workspace, scopes, 0))
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


async def test_renewing_does_not_bring_a_settled_request_back(valkey_url: str) -> None:
    workspace, scopes = fresh(), (("all", Limit(concurrency=1)),)
    async with ValkeyLimiter(valkey_url) as limiter:
        for _ in range(50):
            running = admitted(await limiter.reserve(workspace, scopes, 0))
            await asyncio.gather(limiter.renew_leases(), limiter.settle(running, 0))
        admitted(await limiter.reserve(workspace, scopes, 0))


async def test_a_cancelled_reservation_leaves_no_answer_for_the_next_caller(
    valkey_url: str,
) -> None:
    workspace, wide = fresh(), (("all", Limit(requests_per_minute=10_000)),)
    narrow = (("none", Limit(requests_per_minute=1)),)
    async with ValkeyLimiter(valkey_url, max_connections=1) as limiter:
        admitted(await limiter.reserve(workspace, narrow, 0))
        for turns in range(12):
            task = asyncio.ensure_future(limiter.reserve(workspace, wide, 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert refused(await limiter.reserve(workspace, narrow, 0)).scope == "none"


async def test_every_key_expires_and_carries_the_hash_tag_of_its_workspace(
    valkey_url: str,
) -> None:
    workspace = fresh()
    scopes = (
        ("model:qwen-plus", Limit(requests_per_minute=9, concurrency=3).with_bursts()),
        ("all", Limit(concurrency=5)),
    )
    server = Valkey.from_url(valkey_url)
    async with ValkeyLimiter(valkey_url, prefix=workspace) as limiter:
        running = admitted(await limiter.reserve(workspace, scopes, 10))
        await limiter.renew_leases()
        assert set(expiries(server, workspace)) == {
            f"{workspace}:{{{workspace}}}:{key}".encode()
            for key in ("clock", "w:model:qwen-plus", "c:model:qwen-plus", "w:all", "c:all")
        }
        assert all(0 < ms <= 200_000 for ms in expiries(server, workspace).values())
        await limiter.settle(running, 20)
        assert all(0 < ms <= 200_000 for ms in expiries(server, workspace).values())
    server.close()  # type: ignore[no-untyped-call]


def expiries(server: Valkey, prefix: str) -> dict[bytes, int]:
    """The keys under a prefix, and in how many ms each expires (-1: never)."""
    keys = list(server.scan_iter(f"{prefix}:*"))
    return {key: cast(int, server.pttl(key)) for key in keys}


async def test_scripts_stay_in_one_slot_of_a_cluster(tmp_path: Path) -> None:
    # Without a cluster port of its own the bus takes port + 10000, which may not exist.
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server = ValkeyServer(tmp_path, *options)
    server.start()
    try:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        scopes = (("a", Limit(requests_per_minute=9, concurrency=3)), ("b", Limit(concurrency=5)))
        async with ValkeyLimiter(server.url) as limiter:
            deadline = time.monotonic() + 10
            while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            for workspace in ("ws_1", "ws_2"):
                running = admitted(await limiter.reserve(workspace, scopes, 10))
                await limiter.renew_leases()
                await limiter.settle(running, 20)
    finally:
        server.kill()


async def test_a_request_without_scopes_needs_no_store(own_valkey: ValkeyServer) -> None:
    async with ValkeyLimiter(own_valkey.url) as limiter:
        own_valkey.kill()
        await limiter.settle(admitted(await limiter.reserve("ws", (), 10)), 5)


async def test_a_workspace_id_cannot_leave_its_hash_tag(valkey_url: str) -> None:
    async with ValkeyLimiter(valkey_url) as limiter:
        for workspace in ("", "a}b", "{"):
            with pytest.raises(ValueError, match="workspace"):
                await limiter.reserve(workspace, (("all", Limit()),), 0)
