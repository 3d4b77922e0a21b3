"""A dossier of a release in our own hub: from files and measurements, none of it typed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from safetensors.numpy import save

from qwenstack.cli.main import qwenstack
from qwenstack.hub.registry.repos import find_repo
from qwenstack.hub.registry.revisions import find_commit
from qwenstack.hub.summaries import Lineage, note_lineage
from qwenstack.storage.database import open_database
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

## Evaluation
| Benchmark | Other-7B | Tuned |
|---|---|---|
| MMLU (5-shot) | 60.0 | 52.0 |

## Limitations
"""
CONFIG = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8}
WEIGHTS = save({"model.embed_tokens.weight": np.zeros((16, 8), np.float32)})
RESULTS = {
    "results": {"mmlu": {"acc,none": 0.5125, "acc_stderr,none": 0.004, "alias": "mmlu"}},
    "n-shot": {"mmlu": 5},
    "date": 1764000000.0,
    "lm_eval_version": "0.4.9",
}
EVAL_RESULTS = b"- dataset: {id: openai/gsm8k, task_id: gsm8k}\n  value: 61.5\n"
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
def home(made_home: Path, tmp_path: Path) -> Path:
    """A home folder whose hub holds `acme/tuned`, at its second licence."""
    return shutil.copytree(made_home, tmp_path / "home")


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that each test gets a copy of."""
    home: Path = tmp_path_factory.mktemp("dossiers") / "home"
    with running_hub(home / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("acme/tuned")
        for path, data in (
            ("LICENSE", LICENCE.encode()),
            ("README.md", CARD.encode()),
            ("config.json", json.dumps(CONFIG).encode()),
            ("model.safetensors", WEIGHTS),
            (".eval_results/gsm8k.yaml", EVAL_RESULTS),
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
    assert said["identity.layer"] == "community", "told by its files: the name says nothing"
    assert said["identity.base"] == "Qwen/Qwen3-0.6B"
    assert said["weights.parameters"] == 128
    assert said["weights.scan"] == "clean"
    assert said["card.base-model"] == ["Qwen/Qwen3-0.6B"]
    assert "bicycles" in said["card.intended-use"]
    assert "card.limitations" not in said
    assert said["evaluation.claimed.gsm8k"] == 61.5
    assert said["evaluation.claimed.mmlu.5-shot"] == 52.0
    assert said["evaluation.measured.mmlu.acc.5-shot"] == 0.5125
    (benchmarks,) = [each for each in document["sections"] if each["id"] == "benchmarks"]
    assert "measured 0.8 points lower" in [row["cells"][2] for row in benchmarks["rows"]]
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


POLICY = """
version = 1

[licences]
categories = ["permissive"]
deny = ["LicenseRef-scancode-qwen-research-2024"]
"""


def test_a_policy_that_denies_is_in_the_dossier_and_in_the_exit_code(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    home = ("--home", str(tmp_path / "home"))
    denied = run("Qwen/Qwen2.5-3B-Instruct", "--policy", str(policy), "--json", *home)
    document = json.loads(denied.stdout)
    said = {each["claim"]: each["value"] for each in document["evidence"]}
    assert (denied.exit_code, said["policy.decision"]) == (1, "deny")
    assert any("non-commercial" in str(v) or "research" in str(v) for v in said.values())
    (risks,) = [each for each in document["sections"] if each["id"] == "risks"]
    assert "policy-denies" in {row["label"] for row in risks["rows"]}
    allowed = run("Qwen/Qwen3-8B", "--policy", str(policy), "--json", *home)
    assert allowed.exit_code == 0


def decoder(seed: int, drift: float = 0.0) -> bytes:
    """A two-layer Qwen3 decoder of random weights, moved by `drift` of their size."""
    start, moved = np.random.default_rng(seed), np.random.default_rng(99)
    hidden, width, rows = 64, 160, 800
    shapes = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}
    for layer in range(3):
        base = f"model.layers.{layer}"
        shapes |= {
            f"{base}.self_attn.q_proj.weight": (hidden, hidden),
            f"{base}.self_attn.k_proj.weight": (hidden, hidden),
            f"{base}.self_attn.v_proj.weight": (hidden, hidden),
            f"{base}.self_attn.o_proj.weight": (hidden, hidden),
            f"{base}.mlp.gate_proj.weight": (width, hidden),
            f"{base}.mlp.up_proj.weight": (width, hidden),
            f"{base}.mlp.down_proj.weight": (hidden, width),
            f"{base}.input_layernorm.weight": (hidden,),
            f"{base}.post_attention_layernorm.weight": (hidden,),
        }
    tensors = {}
    for name, shape in shapes.items():
        values = start.normal(size=shape) + drift * moved.normal(size=shape)
        tensors[name] = values.astype(np.float32)
    return save(tensors)


def test_the_weights_are_heard_beside_the_card(tmp_path: Path) -> None:
    config = json.dumps(
        {**CONFIG, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    )
    for name, data in (
        ("bases/one", decoder(1)),
        ("bases/two", decoder(2)),
        ("tuned", decoder(1, drift=0.03)),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
        (folder / "model.safetensors").write_bytes(data)
    (tmp_path / "tuned" / "README.md").write_text("---\nbase_model: acme/two\n---\n# Tuned\n")
    done = run(
        str(tmp_path / "tuned"),
        "--against",
        str(tmp_path / "bases"),
        "--json",
        "--home",
        str(tmp_path / "home"),
    )
    said = {each["claim"]: each["value"] for each in json.loads(done.stdout)["evidence"]}
    assert said["weights.lineage.verdict"] == "derived"
    assert said["weights.lineage.parent"] == ["one"]
    assert said["weights.lineage.agrees-with-card"] is False


def test_verify_hashes_the_weights_of_the_hub_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that is called as the repo is neither read nor held against it.
    (tmp_path / "acme/tuned").mkdir(parents=True)
    (tmp_path / "acme/tuned/other.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "tuned.dossier"
    # What the lineage index found of another release is none of this one's.
    engine = open_database(f"sqlite:///{home / 'hub' / 'hub.db'}")
    with engine.begin() as connection:
        repo = find_repo(connection, "model", "acme/tuned")
        assert repo is not None
        first = find_commit(connection, repo.id, "main").parents[0]
        note_lineage(connection, repo.id, Lineage("acme/base", "fine-tune", 0.9, "derived"))
    engine.dispose()
    for revision, found in (("main", True), (first, False)):
        told = run("acme/tuned", "--hub", "--revision", revision, "--home", str(home), "--json")
        assert ("acme/base" in told.stdout) is found
    assert run("acme/tuned", "--hub", "--home", str(home), "--out", str(out)).exit_code == 0
    verify = ("verify", str(out), "--json", "--home", str(home))
    held = json.loads(run(*verify).stdout)
    assert (held["holds"], held["weights"]) == (True, "6 files hash to what the dossier records")
    # A later commit changes nothing of the one that the dossier read.
    with running_hub(home / "hub") as hub:
        HfApi(endpoint=hub.url, token=hub.token).upload_file(
            path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="acme/tuned"
        )
    assert run(*verify).exit_code == 0
    away = json.loads(run(*verify[:3], "--home", str(tmp_path / "nowhere")).stdout)
    assert away["holds"] and away["weights"].startswith("not checked: There is no file")


def test_verify_names_the_first_file_of_a_folder_that_differs(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "m.dossier"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/z.txt"):
        (folder / name).write_bytes(WEIGHTS if "safetensors" in name else b"{}")
    key = ("--home", str(tmp_path / "home"))
    assert run(str(folder), "--out", str(out), *key).exit_code == 0
    verify = ("verify", str(out), "--json", *key)
    assert json.loads(run(*verify).stdout)["weights"].startswith("3 files hash")
    (folder / "sub/z.txt").write_bytes(b"[]")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"\x01")
    done = run(*verify)
    (problem,) = json.loads(done.stdout)["problems"]
    assert done.exit_code == 1
    assert problem.startswith("the weights differ: 'model.safetensors' differs: SHA-256 ")
    skipped = run(*verify, "--no-weights")
    assert (skipped.exit_code, json.loads(skipped.stdout)["weights"][:11]) == (0, "not checked")
    (folder / "config.json").unlink()
    assert "'config.json' is missing" in run(*verify).stdout
    (folder / "config.json").write_bytes(b"{}")
    (folder / "evil.pkl").write_bytes(b"")
    assert "'evil.pkl' is not in the dossier" in run(*verify).stdout
    # The weights were moved: --weights says where they lie.
    folder.rename(tmp_path / "moved")
    assert json.loads(run(*verify).stdout)["weights"].startswith("not checked: nothing lies at")
    assert run(*verify, "--weights", str(tmp_path / "moved")).exit_code == 1
