"""A release's facts: counted from headers, held against what the card and config.json claim."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qwenstack.hub.facts import (
    Facts,
    LicenceFacts,
    compute,
    read_facts,
    write_facts,
)
from qwenstack.hub.formats.config import ModelConfig
from qwenstack.hub.formats.counting import expected_parameters
from qwenstack.hub.formats.safetensors import DTYPE_BITS
from qwenstack.hub.licence_history import LicenceRevision, licence_history
from qwenstack.storage.database import open_database
from qwenstack.storage.hub_tables import manifests
from tests.unit.test_gguf import gguf


class File(msgspec.Struct, frozen=True):
    path: str
    size: int
    sha256: str


def weights(shapes: dict[str, tuple[str, list[int]]]) -> bytes:
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(end)


def facts(files: dict[str, bytes], **options: Any) -> Facts:
    manifest = tuple(
        File(path, len(raw), hashlib.sha256(raw).hexdigest()) for path, raw in sorted(files.items())
    )
    return compute(manifest, lambda entry: io.BytesIO(files[entry.path]), **options)


def verdicts(found: Facts) -> dict[str, str]:
    """By what is claimed; where it is claimed twice, a contradiction goes before agreement."""
    order = sorted(found.claims, key=lambda claim: claim.verdict == "contradict")
    return {claim.what: claim.verdict for claim in order}


H, V, L, N, KV, D, F = 16, 40, 2, 4, 2, 8, 24


def dense(*, tied: bool = True, layers: int = L) -> dict[str, tuple[str, list[int]]]:
    shapes: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("BF16", [V, H]),
        "model.norm.weight": ("BF16", [H]),
    }
    if not tied:
        shapes["lm_head.weight"] = ("BF16", [V, H])
    for n in range(layers):
        at = f"model.layers.{n}."
        for name, shape in {
            "self_attn.q_proj": [N * D, H],
            "self_attn.k_proj": [KV * D, H],
            "self_attn.v_proj": [KV * D, H],
            "self_attn.o_proj": [H, N * D],
            "self_attn.q_norm": [D],
            "self_attn.k_norm": [D],
            "mlp.gate_proj": [F, H],
            "mlp.up_proj": [F, H],
            "mlp.down_proj": [H, F],
            "input_layernorm": [H],
            "post_attention_layernorm": [H],
        }.items():
            shapes[f"{at}{name}.weight"] = ("BF16", shape)
    return shapes


CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": L,
    "num_attention_heads": N,
    "num_key_value_heads": KV,
    "head_dim": D,
    "intermediate_size": F,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
CARD = b"---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-0.6B\n---\n- Number of Layers: 2\n"
TOTAL = sum(prod(shape) for _, shape in dense().values())


def release(**changes: Any) -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "config.json": json.dumps({**CONFIG, **changes}).encode(),
        "model.safetensors": weights(dense()),
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    }


def test_an_honest_release_agrees_in_everything_it_claims() -> None:
    found = facts(release())
    assert found.faults == ()
    assert found.parameters is not None
    assert found.parameters.value == TOTAL
    assert found.parameters.source == "model.safetensors, its header"
    assert found.elements == {"BF16": TOTAL}
    assert found.architecture is not None
    assert found.architecture.value == "Qwen3ForCausalLM"
    assert found.context_tokens is not None
    assert found.context_tokens.value == 4096
    assert found.tied_embeddings is not None
    assert found.tied_embeddings.value
    assert found.chat_template is not None
    assert found.chat_template.value
    assert found.relation is not None
    assert (found.relation.value, found.base_models[0].name) == ("finetune", "Qwen/Qwen3-0.6B")
    contradicted = {what for what, verdict in verdicts(found).items() if verdict == "contradict"}
    assert contradicted == set()
    assert verdicts(found)["parameters"] == verdicts(found)["architecture"] == "agree"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vocab_size": 99}, "vocabulary"),
        ({"hidden_size": 8}, "hidden size"),
        ({"num_hidden_layers": 28}, "layers"),
        ({"intermediate_size": 999}, "parameters"),
        ({"torch_dtype": "float32"}, "dtype"),
        ({"model_type": "llama"}, "architecture"),
        ({"tie_word_embeddings": False}, "tied embeddings"),
    ],
)
def test_a_configuration_that_lies_is_contradicted(changes: dict[str, Any], what: str) -> None:
    assert verdicts(facts(release(**changes)))[what] == "contradict"


def test_a_card_that_boasts_is_contradicted_and_one_that_rounds_is_not() -> None:
    files = release()
    files["README.md"] = CARD + b"- Number of Parameters: 8.2B\n- Context Length: 4,096 tokens\n"
    found = facts(files)
    assert verdicts(found)["parameters"] == "contradict"
    assert verdicts(found)["context length"] == "agree"
    files["README.md"] = CARD + f"- Number of Parameters: {TOTAL / 1000:.1f}K\n".encode()
    assert [c.verdict for c in facts(files).claims if c.claimed_in == "the card's text"] == [
        "agree",
        "agree",
    ]


def test_a_mixture_counts_what_one_token_uses() -> None:
    shapes = {k: v for k, v in dense().items() if ".mlp." not in k}
    for layer in range(L):
        shapes[f"model.layers.{layer}.mlp.gate.weight"] = ("BF16", [4, H])
        for expert in range(4):
            for name, shape in (("gate", [F, H]), ("up", [F, H]), ("down", [H, F])):
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
                shapes[key] = ("BF16", shape)
    files = release(
        model_type="qwen3_moe", num_experts=4, num_experts_per_tok=1, moe_intermediate_size=F
    )
    files["model.safetensors"] = weights(shapes)
    found = facts(files)
    assert found.parameters is not None
    assert found.active_parameters is not None
    assert found.parameters.value - found.active_parameters.value == L * 3 * 3 * F * H
    assert verdicts(found)["parameters"] == "agree"
    assert verdicts(found)["architecture"] == "agree"


def test_packed_weights_count_as_weights_and_their_scales_do_not() -> None:
    files = release(quantization_config={"quant_method": "gptq", "bits": 4})
    files["model.safetensors"] = weights(
        {
            "model.layers.0.self_attn.q_proj.qweight": ("I32", [4, 32]),
            "model.layers.0.self_attn.q_proj.qzeros": ("I32", [1, 4]),
            "model.layers.0.self_attn.q_proj.scales": ("F16", [1, 32]),
            "model.layers.0.self_attn.q_proj.g_idx": ("I32", [32]),
        }
    )
    found = facts(files)
    assert found.parameters is not None
    assert found.parameters.value == 4 * 32 * 8
    assert found.quantisation is not None
    assert found.quantisation.value == "gptq 4 bits"
    assert found.relation is not None
    assert found.relation.value == "quantized"


def test_shards_count_together_and_an_index_that_lies_is_a_fault() -> None:
    shapes = dense()
    names = sorted(shapes)
    half = {name: shapes[name] for name in names[:9]}
    rest = {name: shapes[name] for name in names[9:]}
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    files = release()
    del files["model.safetensors"]
    files |= {one: weights(half), two: weights(rest)}
    index = {name: one if name in half else two for name in names}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    found = facts(files)
    assert found.faults == ()
    assert found.parameters is not None
    assert found.parameters.value == TOTAL
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index | {"x": two}}).encode()
    assert "'x'" in facts(files).faults[0]


def test_a_gguf_release_is_told_from_its_header() -> None:
    found = facts({"README.md": CARD, "model.gguf": gguf()})
    assert found.weights == "gguf"
    assert found.quantisation is not None
    assert found.quantisation.value == "Q8_0"
    assert found.relation is not None
    assert found.relation.source == "inferred: it holds GGUF files only"
    card = CARD.replace(b"apache-2.0", b"mit")
    found = facts({"README.md": card, "model.gguf": gguf()})
    (contradicted,) = [c for c in found.claims if "general.license" in c.claimed_in]
    assert (contradicted.claimed, contradicted.verdict) == ("Apache-2.0", "contradict")


def test_an_adapter_names_the_base_that_it_was_trained_on() -> None:
    files = {
        "README.md": CARD,
        "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "other/base"}',
        "adapter_model.safetensors": weights({"a.lora_A.weight": ("F32", [2, 2])}),
    }
    found = facts(files, exists=lambda name: name == "Qwen/Qwen3-0.6B")
    assert [(base.name, base.exists) for base in found.base_models] == [
        ("Qwen/Qwen3-0.6B", True),
        ("other/base", False),
    ]
    assert verdicts(found)["base model"] == "contradict"


def test_broken_files_are_faults_and_never_errors() -> None:
    files = {
        "README.md": b"---\nlicense: [\n---\n",
        "config.json": b"[" * 100_000,
        "tokenizer_config.json": b"\xff",
        "model.safetensors": b"\xff" * 100,
        "x.gguf": b"GGUF",
        "LICENSE": b"\xff\xfe",
        "model.safetensors.index.json": b"{}",
    }
    found = facts(files)
    assert len(found.faults) == 5
    assert found.parameters is None


def test_a_declared_licence_that_the_file_contradicts_is_said(tmp_path: Path) -> None:
    files = release()
    files["LICENSE"] = b"All rights reserved.\n"
    found = facts(files)
    assert found.licence.declared_id == "Apache-2.0"
    assert (found.licence.file, found.licence.file_id) == ("LICENSE", None)
    assert found.licence.text == "All rights reserved.\n"
    assert verdicts(found)["licence"] == "absent"


def test_stored_facts_are_the_facts(tmp_path: Path) -> None:
    found = facts(release())
    database = open_database(f"sqlite:///{tmp_path / 'hub.db'}")
    with database.begin() as connection:
        connection.execute(manifests.insert().values(digest="d" * 64, document=b""))
        assert read_facts(connection, "d" * 64) is None
        write_facts(connection, "d" * 64, found)
        assert read_facts(connection, "d" * 64) == found
    database.dispose()


# Name, hidden, layers, heads, key-value heads, feed-forward, vocabulary, tied, published count.
PUBLISHED = [
    ("qwen2", 896, 24, 14, 2, 4864, 151936, True, 494_032_768),
    ("qwen2", 1536, 28, 12, 2, 8960, 151936, True, 1_543_714_304),
    ("qwen2", 2048, 36, 16, 2, 11008, 151936, True, 3_085_938_688),
    ("qwen2", 3584, 28, 28, 4, 18944, 152064, False, 7_615_616_512),
    ("qwen2", 5120, 64, 40, 8, 27648, 152064, False, 32_763_876_352),
    ("qwen2", 8192, 80, 64, 8, 29568, 152064, False, 72_706_203_648),
    ("qwen3", 1024, 28, 16, 8, 3072, 151936, True, 596_049_920),
    ("qwen3", 2560, 36, 32, 8, 9728, 151936, True, 4_022_468_096),
    ("qwen3", 4096, 36, 32, 8, 12288, 151936, False, 8_190_735_360),
    ("qwen3", 5120, 64, 64, 8, 25600, 151936, False, 32_762_123_264),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=[str(row[-1]) for row in PUBLISHED])
def test_the_count_from_a_configuration_is_the_published_one(
    row: tuple[str, int, int, int, int, int, int, bool, int],
) -> None:
    kind, hidden, layers, heads, kv, feed, vocabulary, tied, published = row
    config = ModelConfig(
        model_type=kind,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv,
        intermediate_size=feed,
        vocab_size=vocabulary,
        tied_embeddings=tied,
    )
    assert expected_parameters(config) == published


def test_the_count_of_a_mixture_is_the_published_one() -> None:
    config = ModelConfig(
        model_type="qwen3_moe", hidden_size=2048, layers=48, heads=32, kv_heads=4, head_dim=128,
        intermediate_size=6144, vocab_size=151936, tied_embeddings=False, experts=128,
        experts_per_token=8, expert_intermediate_size=768,
    )  # fmt: skip
    assert expected_parameters(config) == 30_532_122_624


def licence(declared: str | None, text: str | None) -> LicenceFacts:
    sha256 = hashlib.sha256(text.encode()).hexdigest() if text is not None else None
    file = "LICENSE" if text is not None else None
    return LicenceFacts(declared=declared, file=file, sha256=sha256, text=text)


def test_a_licence_that_changes_shows_as_a_difference() -> None:
    states = [
        licence(None, None),
        licence("apache-2.0", "one\ntwo\n"),
        licence("apache-2.0", "one\ntwo\n"),
        licence("apache-2.0", "one\nthree\n"),
        licence("other", None),
    ]
    revisions = [LicenceRevision(f"c{n}", n, "a", state) for n, state in enumerate(states)]
    first, second, third = licence_history(revisions)
    assert (first.commit, first.before, first.words[:29]) == (
        "c1",
        None,
        "declared: none → apache-2.0; ",
    )
    assert second.words == "the text changed"
    assert second.diff.splitlines()[2:] == ["@@ -1,2 +1,2 @@", " one", "-two", "+three"]
    assert third.diff.splitlines()[:2] == ["--- LICENSE", "+++ /dev/null"]
