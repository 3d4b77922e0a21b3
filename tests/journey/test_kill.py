"""Promise 1: billed exactly once, whatever instant the process is killed at.

A short run of the harness; `python -m tests.kill_harness --kills 100` is the long one.
"""

from __future__ import annotations

from pathlib import Path

from tests.kill_harness import run

KILLS_SQLITE = 5
KILLS_POSTGRESQL = 4
KILLS_WORKERS = 3


async def test_kill_at_random_instants_bills_every_whole_stream_once(tmp_path: Path) -> None:
    report = await run(tmp_path, KILLS_SQLITE)
    assert report.problems == []
    assert report.whole > 0


async def test_kill_at_random_instants_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    report = await run(tmp_path, KILLS_POSTGRESQL, postgres_url)
    assert report.problems == []
    assert report.whole > 0


async def test_kill_of_one_of_several_workers_or_of_all_keeps_every_bill_and_limit(
    tmp_path: Path, postgres_url: str, valkey_url: str
) -> None:
    report = await run(tmp_path, KILLS_WORKERS, postgres_url, workers=3, admission_url=valkey_url)
    assert report.problems == []
    assert report.whole > 0
    assert report.refused > 0
