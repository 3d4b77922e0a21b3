"""The formula counts every known shape to the digit, and transformers counts the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from qwenstack.catalog.architecture import configuration, count
from qwenstack.catalog.load import load
from qwenstack.catalog.model import Architecture

SHAPES = load().architectures
# Total, and active where it is a mixture of experts (in hundredths of a billion, as published).
PUBLISHED = {
    "qwen-72b": (72_287_920_128, None),
    "qwen1.5-32b": (32_512_218_112, None),
    "qwen2-0.5b": (494_032_768, None),
    "qwen2-1.5b": (1_543_714_304, None),
    "qwen2.5-3b": (3_085_938_688, None),
    "qwen2-7b": (7_615_616_512, None),
    "qwen2.5-14b": (14_770_033_664, None),
    "qwen2.5-32b": (32_763_876_352, None),
    "qwen2-72b": (72_706_203_648, None),
    "qwen2-57b-a14b": (57_408_658_944, 1425),
    "qwen3-0.6b": (596_049_920, None),
    "qwen3-1.7b": (1_720_574_976, None),
    "qwen3-4b": (4_022_468_096, None),
    "qwen3-8b": (8_190_735_360, None),
    "qwen3-14b": (14_768_307_200, None),
    "qwen3-32b": (32_762_123_264, None),
    "qwen3-30b-a3b": (30_532_122_624, 335),
    "qwen3-235b-a22b": (235_093_634_560, 2219),
    "qwen3-coder-480b-a35b": (480_154_875_392, 3547),
    "qwen3-embedding-4b": (4_021_774_336, None),
    "qwen3-embedding-8b": (7_567_295_488, None),
    "qwen3-reranker-4b": (4_021_784_576, None),
    "qwen3-reranker-8b": (8_188_548_096, None),
}
ROUNDED = {"qwen-1.8b": 1.84, "qwen-7b": 7.72, "qwen-14b": 14.17}


def test_no_shape_on_record_is_left_out_of_the_table() -> None:
    assert {each.id for each in SHAPES} == {*PUBLISHED, *ROUNDED}


@pytest.mark.parametrize("shape", SHAPES, ids=[each.id for each in SHAPES])
def test_the_configuration_holds_the_published_number_of_parameters(shape: Architecture) -> None:
    found = count(shape)
    if shape.id in ROUNDED:
        assert round(found.total / 1e9, 2) == ROUNDED[shape.id]
        return
    total, active = PUBLISHED[shape.id]
    assert found.total == total
    if active is None:
        assert found.active == total
    else:
        assert round(found.active / 1e7) == active


@pytest.mark.parametrize("field", ["hidden", "layers", "kv_heads", "vocabulary", "head_dim"])
def test_a_wrong_digit_in_a_configuration_changes_the_count(field: str) -> None:
    shape = next(each for each in SHAPES if each.id == "qwen3-8b")
    wrong = msgspec.structs.replace(shape, **{field: getattr(shape, field) + 1})
    assert count(wrong) != count(shape)


def test_head_dim_is_not_derived_from_the_width() -> None:
    shapes = {each.id: each for each in SHAPES}
    for name in ("qwen3-0.6b", "qwen3-4b", "qwen3-32b", "qwen3-30b-a3b"):
        assert shapes[name].heads * shapes[name].head_dim != shapes[name].hidden


_PROGRAM = """
import json, sys
import torch, transformers
for name, model_type, arguments in json.load(sys.stdin):
    config = transformers.AutoConfig.for_model(model_type, **arguments)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    print(json.dumps([name, model.num_parameters()]))
"""


def _python_with_transformers() -> str | None:
    """A Python that can import transformers and torch: ours may not, they are not needed."""
    for candidate in (
        os.environ.get("QWENSTACK_TEST_TRANSFORMERS_PYTHON"),
        shutil.which("python3"),
    ):
        if candidate and Path(candidate).exists():
            probe = (
                "from importlib.util import find_spec as f; print(f('transformers') and f('torch'))"
            )
            done = subprocess.run([candidate, "-c", probe], capture_output=True, timeout=60)
            if done.returncode == 0 and done.stdout.strip() != b"None":
                return candidate
    return None


def test_transformers_counts_the_same_on_the_meta_device() -> None:
    python = _python_with_transformers()
    if python is None:
        pytest.skip(
            "no Python with transformers and torch; name one in QWENSTACK_TEST_TRANSFORMERS_PYTHON"
        )
    # Two layers tell all that many do, and a mixture of experts is built in a second.
    shapes = [
        each if each.id == "qwen3-0.6b" else msgspec.structs.replace(each, layers=2)
        for each in SHAPES
        if each.model_type
    ]
    asked = [(each.id, each.model_type, configuration(each)) for each in shapes]
    done = subprocess.run(
        [python, "-c", _PROGRAM],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counted = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert counted == {each.id: count(each).total for each in shapes}
