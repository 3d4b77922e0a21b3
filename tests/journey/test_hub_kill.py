"""A few kills of the harness, in every run of the suite; `tests/hub_kill_harness.py` does more."""

from __future__ import annotations

from pathlib import Path

from tests.hub_kill_harness import run


def test_kills_of_server_and_client_leave_whole_revisions_and_the_next_try_completes(
    tmp_path: Path,
) -> None:
    report = run(tmp_path, kills=2, seed=20261124)
    assert report.problems == []
    assert (report.server_kills, report.client_kills, report.resumed) == (1, 1, 2)
