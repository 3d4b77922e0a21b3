"""`/metrics` of several workers: whichever answers shows what all have counted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from qwenstack.studio.observability import worker_counts
from qwenstack.studio.settings import DatabaseSettings, Settings
from tests.kill_harness import Server, Upstream, free_port, make_tenant, write_settings

WORKERS = 3
SCRAPES = 12

Shown = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Group:
    """A group of workers, asked and scraped on connections of their own: any of them may answer."""

    def __init__(self, server: Server, key: str) -> None:
        self.server = server
        self._key = key
        self._root = server.url.removesuffix("/v1")

    async def ask(self, times: int) -> None:
        """Run that many requests, each on a connection of its own."""
        await asyncio.gather(*(self._ask() for _ in range(times)))

    async def _ask(self) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {self._key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.server.url}/chat/completions", json=body, headers=headers) as got,
        ):
            assert got.status == 200, await got.text()
            await got.read()

    async def scrape(self) -> Shown:
        """One scrape."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._root}/metrics") as response,
        ):
            text = await response.text()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest_asyncio.fixture
async def group(tmp_path: Path, postgres_url: str, valkey_url: str) -> AsyncIterator[Group]:
    upstream = Upstream()
    await upstream.start()
    key = make_tenant(Settings(database=DatabaseSettings(url=postgres_url)), tmp_path)
    write_settings(tmp_path, upstream.url, postgres_url, valkey_url)
    server = Server(tmp_path, free_port(), WORKERS)
    await server.start()
    yield Group(server, key)
    await server.terminate()
    await upstream.stop()
    assert not list((tmp_path / "metrics").iterdir())


def figure(shown: Shown, name: str, **labels: str) -> float:
    return shown.get((f"qwenstack_{name}", frozenset(labels.items())), 0.0)


def pids(shown: Shown) -> set[int]:
    name = "process_resident_memory_bytes"
    return {int(dict(labels)["pid"]) for found, labels in shown if found == name}


async def wait_for_workers(group: Group, count: int) -> None:
    while (
        figure(await group.scrape(), "journal_healthy") != 1
        or len(pids(await group.scrape()) & set(group.server.workers())) < count
    ):
        await asyncio.sleep(0.1)


async def test_any_worker_shows_what_all_have_counted_and_a_kill_takes_nothing_away(
    group: Group, tmp_path: Path
) -> None:
    await wait_for_workers(group, WORKERS)
    total = {"surface": "openai.chat", "model": "m", "outcome": "complete"}
    await group.ask(20)
    shown = [await group.scrape() for _ in range(SCRAPES)]
    assert {figure(each, "requests_total", **total) for each in shown} == {20}
    assert {figure(each, "request_seconds_count", model="m") for each in shown} == {20}

    for _ in range(2):
        before = shown[-1]
        victim = group.server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await wait_for_workers(group, WORKERS)
        await group.ask(10)
        shown = [await group.scrape() for _ in range(SCRAPES)]
        for each in shown:
            assert victim not in pids(each)
            fallen = {
                name: (value, each[name])
                for name, value in before.items()
                if name[0].endswith(("_total", "_count", "_bucket", "_sum"))
                and value > each.get(name, value if "pid" in dict(name[1]) else 0)
            }
            assert fallen == {}
    assert {figure(each, "requests_total", **total) for each in shown} == {40}
    assert {figure(each, "draining") for each in shown} == {0}
    assert ("qwenstack_build_info", 1) in {(name, value) for (name, _), value in shown[0].items()}
    # A file with holes, on a disk that is full meanwhile, would kill who counts in it.
    counts = [each.stat() for each in tmp_path.glob("metrics/*/*")]
    assert counts and all(each.st_blocks * 512 >= each.st_size for each in counts)


async def test_workers_end_when_their_supervisor_is_killed_so_that_another_can_start(
    group: Group,
) -> None:
    process = group.server.process
    assert process is not None
    left = group.server.workers()
    process.kill()
    process.wait()
    while any(map(is_running, left)):
        await asyncio.sleep(0.1)
    await group.server.start()
    await group.ask(3)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_dead_workers_gauges_go_and_its_counts_stay(tmp_path: Path) -> None:
    folder = worker_counts.folder_of(tmp_path, 8317)
    worker_counts.begin(folder)
    for name in ("counter_0", "counter_1", "gauge_livesum_0", "gauge_livesum_1", "gauge_livemin_1"):
        (folder / f"{name}.db").touch()
    worker_counts.worker_died(worker_counts.Place(folder, 1))
    left = {each.stem for each in folder.iterdir()}
    assert left == {"counter_0", "counter_1", "gauge_livesum_0"}
