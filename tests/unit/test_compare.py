"""Candidates stand side by side on facts; what is unknown is not guessed."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwenstack.catalog.compare import BITS, Measured, candidate, memory_bytes
from qwenstack.catalog.load import load
from qwenstack.catalog.which import which
from qwenstack.cli.main import qwenstack


def test_memory_is_weights_and_one_sequences_cache() -> None:
    shape = next(each for each in load().architectures if each.parameters.value == 8_190_735_360)
    weights = memory_bytes(8_190_735_360, None, "bf16", 8192)
    assert weights == 2 * 8_190_735_360
    # Qwen3-8B: 36 layers, 8 heads of keys and of values, 128 wide, 2 bytes: 147 456 bytes a token.
    assert memory_bytes(8_190_735_360, shape, "bf16", 8192) - weights == 147_456 * 8192


@pytest.mark.parametrize("precision", BITS)
def test_a_smaller_precision_never_needs_more(precision: str) -> None:
    assert memory_bytes(10**9, None, precision, 0) <= memory_bytes(10**9, None, "bf16", 0)


def test_weights_have_memory_and_no_price_and_an_api_the_reverse() -> None:
    catalogue = load()
    weights = candidate(which("Qwen/Qwen3-8B"), catalogue, memory_gib=16)
    assert weights.parameters == 8_190_735_360
    assert (weights.fits["bf16"], weights.fits["q4_k_m"]) == (False, True)
    assert (weights.price_input, weights.governed_by) == (None, "licence")
    api = candidate(which("qwen-plus"), catalogue, memory_gib=16)
    assert (api.layer, api.memory_gib, api.governed_by) == ("studio", {}, "api-terms")
    assert str(api.price_input).startswith("0.4")
    assert api.price_blended == Decimal("0.6")
    unknown = candidate(which("nobody/nothing-at-all"), catalogue)
    assert (unknown.parameters, unknown.memory_gib, unknown.document) == (None, {}, "unknown")


def test_the_command_prints_a_table_json_and_a_picture(tmp_path: Path) -> None:
    measured = tmp_path / "m.json"
    measured.write_text(json.dumps({"qwen-plus": {"quality": 0.7, "task": "mmlu"}}))
    picture = tmp_path / "q.svg"
    arguments = ["compare", "Qwen/Qwen3-8B", "qwen-plus", "--measured", str(measured)]
    told = CliRunner().invoke(qwenstack, [*arguments, "--plot", str(picture), "--json"])
    assert told.exit_code == 0, told.output
    first, second = json.loads(told.stdout)["candidates"]
    assert first["release"] == "Qwen3-8B"
    assert second["measured"]["quality"] == 0.7
    assert b"qwen-plus" in picture.read_bytes()
    assert "Apache-2.0" in CliRunner().invoke(qwenstack, arguments).output
    nothing = CliRunner().invoke(qwenstack, ["compare", "qwen-plus", "--plot", str(picture)])
    assert "nothing to draw" in nothing.output


def test_measurements_are_taken_by_reference_only() -> None:
    measured = {"qwen-plus": Measured(quality=0.5)}
    other = candidate(which("qwen-flash"), load(), measured=measured)
    assert other.measured.quality is None
