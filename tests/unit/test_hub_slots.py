"""Uploads at once: the hub's bound holds, and nobody takes all of it."""

from __future__ import annotations

import asyncio

from qwenstack.hub.http.slots import Slots


async def test_who_holds_slots_for_ever_leaves_others_theirs_and_the_bound_holds() -> None:
    slots, going, done = Slots(3, 2), asyncio.Event(), list[str]()

    async def use(account: str, until: asyncio.Event | None = None) -> None:
        async with slots.of(account):
            done.append(account)
            if until is not None:
                await until.wait()

    slow = [asyncio.create_task(use("mallory", going)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(*(use("alice") for _ in range(4)))
    assert done == ["mallory"] * 2 + ["alice"] * 4
    others = [asyncio.create_task(use(name, going)) for name in ("bob", "carol")]
    for _ in range(5):
        await asyncio.sleep(0)
    assert done[6:] == ["bob"], "three at once, whoever they are"
    slow[4].cancel()
    going.set()
    await asyncio.gather(*slow[:4], *others)
    assert sorted(done[7:]) == ["carol", "mallory", "mallory"]
    assert not slots._own and not slots._wanted
