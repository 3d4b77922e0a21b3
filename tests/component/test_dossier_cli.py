"""A dossier of a release in our own hub: from files and measurements, none of it typed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from safetensors.numpy import save

from qwenstack.cli.main import qwenstack
from tests.hub import running_hub

LICENCE = "Permission is granted to read this.\n"
CARD = """---
license: apache-2.0
base_model: Qwen/Qwen3-0.6B
---
# Tuned

## Intended use
Answering questions about bicycles, in English, for cyclists.

## Training data
Forty thousand questions and answers that were written by hand.

## Limitations
"""
CONFIG = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8}
WEIGHTS = save({"model.embed_tokens.weight": np.zeros((16, 8), np.float32)})
RESULTS = {
    "results": {"mmlu": {"acc,none": 0.5125, "acc_stderr,none": 0.004, "alias": "mmlu"}},
    "date": 1764000000.0,
    "lm_eval_version": "0.4.9",
}
DECISIONS = """
[[sign_offs]]
role = "legal"
name = "A. Counsel"
decision = "approved"
date = 2026-11-24

[processing]
retention = "prompts are not stored"
"""


def run(*arguments: str) -> Any:
    return CliRunner().invoke(qwenstack, ["dossier", *arguments], catch_exceptions=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder whose hub holds `acme/tuned`, at its second licence."""
    home = tmp_path / "home"
    with running_hub(home / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("acme/tuned")
        for path, data in (
            ("LICENSE", LICENCE.encode()),
            ("README.md", CARD.encode()),
            ("config.json", json.dumps(CONFIG).encode()),
            ("model.safetensors", WEIGHTS),
            ("LICENSE", LICENCE.replace("read", "use").encode()),
        ):
            api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id="acme/tuned")
    return home


def test_a_release_of_the_hub_speaks_for_itself(home: Path, tmp_path: Path) -> None:
    results, decisions = tmp_path / "results.json", tmp_path / "decisions.toml"
    results.write_text(json.dumps(RESULTS))
    decisions.write_text(DECISIONS)
    out = tmp_path / "tuned.dossier"
    arguments = ["acme/tuned", "--hub", "--home", str(home), "--evaluation", str(results)]
    done = run(*arguments, "--decisions", str(decisions), "--out", str(out))
    assert done.exit_code == 0, done.output
    document = json.loads((out / "dossier.json").read_text())
    said = {each["claim"]: each["value"] for each in document["evidence"]}
    assert said["weights.parameters"] == 128
    assert said["weights.scan"] == "clean"
    assert said["card.base-model"] == ["Qwen/Qwen3-0.6B"]
    assert "bicycles" in said["card.intended-use"]
    assert "card.limitations" not in said
    assert said["evaluation.measured.mmlu.acc"] == 0.5125
    assert said["sign-off.legal"] == "approved by A. Counsel"
    assert len(said["weights.release-digest"]) == 64
    assert "text changed" in said["licence-history.change.2"]
    assert {path.name for path in out.iterdir()} == {
        "dossier.json",
        "dossier.html",
        "dossier.md",
        "dossier.pdf",
        "dossier.cdx.json",
        "dossier.spdx.json",
        "dossier.sig.json",
    }
    assert run("verify", str(out)).exit_code == 0
    again = tmp_path / "again.dossier"
    assert run(*arguments, "--decisions", str(decisions), "--out", str(again)).exit_code == 0
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_changed_release_says_what_to_review_again(home: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert run("acme/tuned", "--hub", "--home", str(home), "--out", str(old)).exit_code == 0
    with running_hub(home / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.upload_file(
            path_or_fileobj=save({"model.embed_tokens.weight": np.ones((16, 8), np.float32)}),
            path_in_repo="model.safetensors",
            repo_id="acme/tuned",
        )
    assert run("acme/tuned", "--hub", "--home", str(home), "--out", str(new)).exit_code == 0
    done = run("diff", str(old), str(new), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert "weights.release-digest" in {each["claim"] for each in found["changes"]}
    assert "provenance" in found["review"]
    assert run("diff", str(old), str(old)).exit_code == 0


def test_a_folder_is_read_without_a_hub(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "evil.pkl").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    done = run(str(folder), "--json", "--home", str(tmp_path / "home"))
    document = json.loads(done.stdout)
    said = {each["claim"]: each["value"] for each in document["evidence"]}
    assert said["weights.scan"] == "refused"
    assert any("evil.pkl" in str(value) for value in said.values())
    (risks,) = [each for each in document["sections"] if each["id"] == "risks"]
    assert "scan-not-clean" in {row["label"] for row in risks["rows"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [("[procesing]\n", "procesing"), ("sign_offs = 3", "sign_offs"), ("= =", "no TOML")],
)
def test_a_wrong_decisions_file_names_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(Exception, match=words):
        run("Qwen/Qwen3-8B", "--decisions", str(path), "--json")
