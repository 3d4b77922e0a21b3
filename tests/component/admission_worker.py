"""A worker process that holds concurrency until it is killed: URL, workspace, lease in seconds."""

from __future__ import annotations

import asyncio
import sys

from qwenstack.studio.admission.limits import Limit, Refused
from qwenstack.studio.admission.valkey import ValkeyLimiter


async def hold() -> None:
    url, workspace, lease_s = sys.argv[1:]
    async with ValkeyLimiter(url, lease_s=float(lease_s)) as limiter:
        for _ in range(3):
            verdict = await limiter.reserve(workspace, (("all", Limit(concurrency=3)),), 10)
            assert not isinstance(verdict, Refused)
        print("holding", flush=True)
        await asyncio.sleep(60)


asyncio.run(hold())
