"""Lineage told from real files: what survives each disguise, and who is whose child."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenstack.hub.lineage.fingerprint import Fingerprint, fingerprint
from qwenstack.hub.lineage.library import affinity, folder_library, own_name
from qwenstack.hub.lineage.model import open_path
from qwenstack.hub.lineage.trace import Answer, trace
from tests import lineage_models as models
from tests.lineage_models import Tensors


def print_of(path: Path) -> Fingerprint:
    return fingerprint(open_path(path))


@pytest.fixture(scope="module")
def base() -> Tensors:
    return models.make_model(1)


@pytest.fixture(scope="module")
def base_print(base: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return print_of(models.write(tmp_path_factory.mktemp("base"), base))


def orthogonal() -> models.Array:
    q, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((models.HIDDEN,) * 2))
    return np.asarray(q, np.float32)


@pytest.mark.parametrize(
    "disguise",
    ["BF16", "F16", "shards", "permuted", "rescaled", "rotated", "reordered", "everything"],
)
def test_a_disguise_leaves_the_fingerprint(
    disguise: str, base: Tensors, base_print: Fingerprint, tmp_path: Path
) -> None:
    order = np.eye(models.HIDDEN, dtype=np.float32)[np.random.default_rng(2).permutation(64)]
    made = {
        "permuted": lambda: models.permute(base, 3),
        "rescaled": lambda: models.rescale(base, 3),
        "rotated": lambda: models.turn(base, orthogonal()),
        "reordered": lambda: models.turn(base, order),
        "everything": lambda: models.turn(models.permute(models.rescale(base, 3), 4), orthogonal()),
    }.get(disguise, lambda: base)()
    dtype = disguise if disguise in ("BF16", "F16") else "F32"
    path = models.write(tmp_path / "m", made, dtype=dtype, shards=3 if disguise == "shards" else 1)
    assert affinity(print_of(path), base_print) > 0.99


@pytest.mark.parametrize(("kind", "least"), [("F16", 0.99), ("Q8_0", 0.99), ("Q4_0", 0.8)])
def test_quantising_leaves_the_fingerprint(
    kind: str, least: float, base: Tensors, base_print: Fingerprint, tmp_path: Path
) -> None:
    path = models.write_gguf(tmp_path / "m.gguf", base, kind)
    assert affinity(print_of(path), base_print) > least


def test_training_leaves_the_fingerprint_and_another_seed_does_not(
    base: Tensors, base_print: Fingerprint, tmp_path: Path
) -> None:
    tuned = print_of(models.write(tmp_path / "tuned", models.train(base, 7, 0.1)))
    assert affinity(tuned, base_print) > 0.8
    for seed in range(20, 30):
        stranger = print_of(models.write(tmp_path / str(seed), models.make_model(seed)))
        assert affinity(stranger, base_print) < 0.25


@pytest.fixture(scope="module")
def family(base: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a stranger of its shape, and a chain of fine-tunes with a sibling."""
    folder = tmp_path_factory.mktemp("family")
    tuned = models.train(base, 11)
    models.write(folder / "base", base, dtype="BF16")
    models.write(folder / "stranger", models.make_model(2), dtype="BF16")
    models.write(folder / "tuned", tuned, dtype="BF16")
    models.write(folder / "sibling", models.train(base, 12, 0.06), dtype="BF16")
    models.write(folder / "second", models.train(tuned, 13), dtype="BF16")
    return folder


def ask(made: Path, family: Path) -> Answer:
    return trace(open_path(made, name="asked"), folder_library(family))


def test_each_relation_is_named_with_its_parent(
    base: Tensors, family: Path, tmp_path: Path
) -> None:
    tuned, sibling = models.train(base, 11), models.train(base, 12, 0.06)
    pruned = {
        name: np.where(np.abs(value) < np.quantile(np.abs(value), 0.5), 0, value)
        if "proj" in name
        else value
        for name, value in tuned.items()
    }
    longer = dict(tuned)
    table = tuned["model.embed_tokens.weight"]
    longer["model.embed_tokens.weight"] = np.concatenate([table, table[:32] * 0.5])
    shorter = {
        name.replace("layers.3.", "layers.2."): value
        for name, value in tuned.items()
        if "layers.2." not in name
    }
    low_rank = dict(tuned)
    random = np.random.default_rng(3)
    for layer in range(models.LAYERS):
        for part in ("q_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{part}.weight"
            a = random.standard_normal((4, models.HIDDEN))
            b = random.standard_normal((len(tuned[name]), 4))
            low_rank[name] = (tuned[name] + 0.004 * b @ a).astype(np.float32)
    mixed = {name: (0.6 * tuned[name] + 0.4 * sibling[name]).astype(np.float32) for name in tuned}
    cases = {
        "fine-tune": models.train(tuned, 31),
        "continued pre-training": models.train(tuned, 32, 0.5),
        "pruned": pruned,
        "expanded vocabulary": longer,
        "depth-changed": shorter,
        "adapter": low_rank,
        "same weights": models.permute(models.rescale(tuned, 5), 6),
        "merge": mixed,
    }
    for relation, tensors in cases.items():
        answer = ask(models.write(tmp_path / relation, tensors, dtype="BF16"), family)
        assert (answer.verdict, answer.relation, answer.parent) == ("derived", relation, "tuned")
        assert 0.5 < answer.confidence <= 1
    assert set(ask(tmp_path / "merge", family).parents) == {"tuned", "sibling"}
    for kind in ("Q8_0", "Q4_0"):
        answer = ask(models.write_gguf(tmp_path / f"{kind}.gguf", tuned, kind), family)
        assert (answer.relation, answer.parent) == ("quantization", "tuned")


def test_names_that_say_nothing_hide_no_parent(base: Tensors, family: Path, tmp_path: Path) -> None:
    made = models.write(tmp_path / "opaque", models.rename(models.train(base, 11), 4), dtype="BF16")
    answer = ask(made, family)
    assert (answer.parent, answer.relation) == ("tuned", "same weights")


def test_an_origin_has_descendants_and_no_parent(family: Path) -> None:
    answer = trace(open_path(family / "base", name="base"), folder_library(family))
    assert (answer.parent, answer.verdict) == (None, "independent")
    assert set(answer.descendants) == {"tuned", "sibling", "second"}


def test_a_stranger_of_the_same_shape_has_no_parent(family: Path, tmp_path: Path) -> None:
    answer = ask(models.write(tmp_path / "m", models.make_model(77)), family)
    assert (answer.parent, answer.verdict, answer.relation) == (None, "independent", "unrelated")


def test_what_cannot_be_told_is_said_to_be_undecided(family: Path, tmp_path: Path) -> None:
    small = {"weight": np.ones((4, 4), np.float32)}
    answer = ask(models.write(tmp_path / "small", small), family)
    assert answer.verdict == "insufficient"
    assert answer.evidence[0].detail
    models.write(tmp_path / "empty" / "nothing", {"w": np.ones((2, 2), np.float32)})
    answer = trace(open_path(family / "base", name="x"), folder_library(tmp_path / "empty"))
    assert answer.verdict == "insufficient"


def test_of_a_pair_alone_the_model_asked_about_is_the_child(base: Tensors, tmp_path: Path) -> None:
    models.write(tmp_path / "bases" / "only", base, dtype="BF16")
    smaller = {name: value * np.float32(0.99) for name, value in models.train(base, 5).items()}
    for made, relation in ((base, "same weights"), (smaller, "fine-tune")):
        answer = ask(models.write(tmp_path / relation, made, dtype="BF16"), tmp_path / "bases")
        assert (answer.parent, answer.relation) == ("only", relation)


def test_tokens_that_were_cut_reordered_or_exchanged_hide_no_parent(
    base: Tensors, family: Path, tmp_path: Path
) -> None:
    tuned = models.train(base, 11)
    name = "model.embed_tokens.weight"
    random = np.random.default_rng(8)
    table = tuned[name]
    cases = {
        "same weights": table[random.permutation(len(table))],
        "pruned": table[random.permutation(len(table))[:500]],
        "continued pre-training": random.standard_normal(table.shape).astype(np.float32),
    }
    for relation, tokens in cases.items():
        made = models.write(tmp_path / relation, tuned | {name: tokens}, dtype="BF16")
        answer = ask(made, family)
        assert (answer.verdict, answer.parent) == ("derived", "tuned")
        assert answer.relation == relation


def test_a_cut_vocabulary_makes_no_parent_of_its_own_parent(
    base: Tensors, family: Path, tmp_path: Path
) -> None:
    cut = {n: v[:600] if len(v) == models.VOCABULARY else v for n, v in base.items()}
    answer = ask(models.write(tmp_path / "cut", cut, dtype="BF16"), family)
    assert (answer.parent, answer.relation) == ("base", "pruned")


def lora(base: Tensors, folder: Path, declared: str, seed: int) -> Path:
    """An adapter for queries and values as training leaves it: made of what the base sends back."""
    random = np.random.default_rng(seed)
    out: Tensors = {}
    inputs = base["model.embed_tokens.weight"] - base["model.embed_tokens.weight"].mean(axis=0)
    for layer in range(models.LAYERS):
        stem = f"model.layers.{layer}.self_attn."
        gains = base[f"model.layers.{layer}.input_layernorm.weight"]
        keys = (inputs * gains) @ base[f"{stem}k_proj.weight"].T
        outputs = base[f"{stem}o_proj.weight"]
        group = models.HEADS // models.KV_HEADS
        sent = {
            "q": np.concatenate([keys[:, head // group * models.HEAD :][:, : models.HEAD].T
                                 for head in range(models.HEADS)]),
            "v": outputs.T.reshape(models.KV_HEADS, group, models.HEAD, -1)
            .transpose(0, 2, 1, 3).reshape(models.KV_HEADS * models.HEAD, -1),
        }  # fmt: skip
        for part, back in sent.items():
            prefix = f"base_model.model.{stem}{part}_proj.lora_"
            mix = random.standard_normal((back.shape[1], 4))
            out[f"{prefix}A.weight"] = random.standard_normal((4, models.HIDDEN)).astype(np.float32)
            out[f"{prefix}B.weight"] = np.ascontiguousarray(back @ mix, np.float32)
    folder.mkdir(parents=True)
    save_file(out, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": declared}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_an_adapter_finds_its_family_by_weights_and_its_base_in_it_by_the_card(
    base: Tensors, family: Path, tmp_path: Path
) -> None:
    silent = ask(lora(base, tmp_path / "silent", "someone/else", 4), family)
    assert (silent.parent, silent.relation, silent.verdict) == ("base", "adapter", "derived")
    told = ask(lora(base, tmp_path / "told", "acme/tuned", 4), family)
    assert (told.parent, told.verdict) == ("tuned", "derived")
    assert silent.confidence < told.confidence
    said = {each.about: each.detail for each in told.evidence}
    assert said["declared base"] == "acme/tuned"
    assert said["chosen"].startswith("by its card")


def test_an_adapter_of_a_stranger_is_undecided_whatever_its_card_says(
    family: Path, tmp_path: Path
) -> None:
    adapter = lora(models.make_model(90), tmp_path / "lora", "base", 4)
    answer = ask(adapter, family)
    assert (answer.parent, answer.verdict) == (None, "insufficient")
    assert any(each.about == "declared base" for each in answer.evidence)


def test_a_broken_candidate_is_named_and_the_others_are_asked(
    base: Tensors, tmp_path: Path
) -> None:
    folder = tmp_path / "bases"
    (folder / "cut").mkdir(parents=True)
    (folder / "cut" / "model.safetensors").write_bytes(b"\x01\x02")
    (folder / "loop").symlink_to(folder)
    child = models.write(tmp_path / "child", models.train(base, 4), dtype="BF16")
    answer = ask(child, folder)
    assert answer.verdict == "insufficient"
    assert any("cut" in each.detail for each in answer.evidence if each.about == "not read")
    models.write(folder / "base", base, dtype="BF16")
    assert ask(child, folder).parent == "base"


def test_numbers_that_overflow_or_vanish_break_no_answer(base: Tensors, tmp_path: Path) -> None:
    def spoilt(name: str, factor: float, *, only: str = "") -> Path:
        with np.errstate(over="ignore", invalid="ignore"):
            found = {key: each * np.float32(factor) if only in key else each
                     for key, each in base.items()}  # fmt: skip
        return models.write(tmp_path / "all" / name, found, dtype="F32")

    spoilt("base", 1.0)
    layers = spoilt("layers", 1e37, only="proj")
    spoilt("norms", 3e38, only="norm")
    tiny = spoilt("tiny", 1e-35)
    child = models.write(tmp_path / "child", models.train(base, 4), dtype="F32")
    assert ask(child, tmp_path / "all").verdict == "derived"
    assert ask(layers, tmp_path / "all").verdict != "independent"
    assert ask(tiny, tmp_path / "all").verdict == "insufficient"


def test_a_model_among_its_candidates_is_not_its_own_parent(base: Tensors, tmp_path: Path) -> None:
    made = models.write(tmp_path / "all" / "base", base)
    assert own_name(tmp_path / "all", made) == "base"
    assert own_name(made, made) == "base"
    assert own_name(tmp_path / "all", tmp_path) is None
