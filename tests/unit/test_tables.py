"""Tables at any width: nothing of them is cut off."""

from __future__ import annotations

import pytest
from rich.table import Table

from qwenstack.cli.tables import show_table

ID = "ws_01m87fy8axxyvsg94mt2r6pnje"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    table = Table("name", "id", "cost")
    table.add_row("a-rather-long-model-name", ID, "0.000056 USD")
    show_table(table)
    return capsys.readouterr().out


def test_without_a_terminal_a_row_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    last = printed(capsys).splitlines()[-1].split()
    assert last == ["a-rather-long-model-name", ID, "0.000056", "USD"]


def test_in_a_narrow_terminal_cells_go_on_below_and_ids_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    output = printed(capsys)
    assert "…" not in output
    assert ID in output
    rows = output.splitlines()[2:]
    assert "".join(row.split(" ")[0] for row in rows) == "a-rather-long-model-name"
