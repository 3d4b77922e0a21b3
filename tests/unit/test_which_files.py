"""Files and folders: read from their headers, weighed as statements, and borne with when broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import Answer, GoverningKind, which

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 12288, "vocab_size": 151936, "head_dim": 128,
}  # fmt: skip
QWEN25_3B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 2048,
    "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
    "intermediate_size": 11008, "vocab_size": 151936,
}  # fmt: skip


def write_gguf(path: Path, values: dict[str, str | int], shapes: dict[str, list[int]]) -> Path:
    """A GGUF file of F32 tensors full of zeros, by ggml's docs/gguf.md."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(values))
    for key, value in values.items():
        if isinstance(value, str):
            out += text(key) + struct.pack("<I", 8) + text(value)
        else:
            out += text(key) + struct.pack("<II", 4, value)
    offset = 0
    for name, shape in shapes.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, offset)
        size = 4
        for each in shape:
            size *= each
        offset += -(-size // 32) * 32
    out += b"\0" * (-len(out) % 32)
    path.write_bytes(out + b"\0" * offset)
    return path


def gguf(path: Path, **said: str | int) -> Path:
    """A file with the shape of Qwen3-8B and the header keys `said` (dots written `__`)."""
    values: dict[str, str | int] = {
        "general.architecture": "qwen3", "qwen3.embedding_length": 4096, "qwen3.block_count": 36,
        "qwen3.attention.head_count": 32, "qwen3.attention.head_count_kv": 8,
        "qwen3.feed_forward_length": 12288, "general.file_type": 15,
    }  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in said.items()}
    return write_gguf(path, values, {"token_embd.weight": [4, 2]})


def safetensors(path: Path, tensors: dict[str, list[int]], metadata: dict[str, str]) -> Path:
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    return path


def said(answer: Answer) -> str:
    return " ".join((answer.why, *answer.problems, *answer.conflicts, *answer.suggestions))


def test_gguf_that_calls_the_makers_its_own_is_not_taken_at_its_word(tmp_path: Path) -> None:
    answer = which(
        gguf(
            tmp_path / "a.gguf",
            general__name="Qwen3 8B",
            general__organization="Qwen",
            general__license="apache-2.0",
        )
    )
    assert (answer.kind, answer.layer, answer.release) == ("gguf-file", "unknown", None)
    assert answer.status is Status.UNKNOWN
    assert answer.governing_document.id == "Apache-2.0"
    assert "SHA-256" in answer.why and "Qwen3-8B" in answer.suggestions


def test_a_licence_freer_than_all_of_its_shape_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 36,
             "num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 11008}
        )
    )  # fmt: skip
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    assert any("MIT" in each and "research" in each for each in which(tmp_path).conflicts)
    card.write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    assert not which(tmp_path).conflicts
    assert not which(gguf(tmp_path / "8b.gguf", general__license="mit")).conflicts


def test_a_merge_with_another_organisations_model_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "README.md").write_text("---\nbase_model:\n- Qwen/Qwen3-8B\n- acme/Foo-8B\n---\n")
    assert which(tmp_path).layer == "community"


def test_a_stated_base_of_another_shape_is_a_conflict(tmp_path: Path) -> None:
    answer = which(
        gguf(
            tmp_path / "a.gguf",
            general__base_model__count=1,
            general__base_model__0__repo_url="https://huggingface.co/Qwen/Qwen3-32B",
        )
    )
    assert any("Qwen3-32B" in each and "shape" in each for each in answer.conflicts)


def test_gguf_that_somebody_quantised_is_theirs(tmp_path: Path) -> None:
    answer = which(
        gguf(
            tmp_path / "Qwen3-8B.gguf",
            general__quantized_by="Unsloth",
            general__base_model__count=1,
            general__base_model__0__repo_url="https://huggingface.co/Qwen/Qwen3-8B",
        )
    )
    assert (answer.layer, answer.base) == ("community", "Qwen/Qwen3-8B")


def test_gguf_with_only_a_shape_names_what_it_can_be_and_no_layer(tmp_path: Path) -> None:
    answer = which(gguf(tmp_path / "Qwen3-8B-Q4_K_M.gguf"))
    assert (answer.layer, answer.release) == ("unknown", None)
    assert "Qwen3-8B" in answer.suggestions


def test_gguf_of_another_family_is_not_called_qwen(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "qwen3-8b.gguf",
        {"general.architecture": "llama", "llama.embedding_length": 4096, "llama.block_count": 36},
        {"token_embd.weight": [4, 2]},
    )
    answer = which(path)
    assert answer.layer == "unknown"
    assert not answer.suggestions
    assert "not Qwen's" in answer.why


def test_gguf_licence_freer_than_its_base_is_a_conflict(tmp_path: Path) -> None:
    answer = which(
        gguf(
            tmp_path / "a.gguf",
            general__license="apache-2.0",
            general__base_model__count=1,
            general__base_model__0__repo_url="https://huggingface.co/Qwen/Qwen2.5-3B",
        )
    )
    assert any("qwen-research" in each for each in answer.conflicts)


@pytest.mark.parametrize("cut", [4, 12, 30, 90, 200])
def test_cut_gguf_gives_a_message_and_what_was_read(tmp_path: Path, cut: int) -> None:
    whole = gguf(tmp_path / "a.gguf", general__name="Qwen3 8B").read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[:cut])
    answer = which(broken)
    assert answer.layer == "unknown"
    assert any("broken.gguf" in each for each in answer.problems)


def test_gguf_shard_is_read(tmp_path: Path) -> None:
    answer = which(gguf(tmp_path / "a-00001-of-00002.gguf", split__count=2))
    assert "Qwen3-8B" in answer.suggestions


def test_config_folder_names_the_sizes_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_3B))
    answer = which(str(tmp_path))
    assert answer.kind == "model-folder"
    assert answer.layer == "unknown"
    assert "Qwen2.5-3B" in answer.suggestions


def test_padded_width_is_the_same_release(tmp_path: Path) -> None:
    padded = {
        "model_type": "qwen2", "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 29696,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(padded))
    assert "Qwen2.5-72B" in which(str(tmp_path)).suggestions


def test_saved_from_a_release_is_not_called_that_release(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B | {"_name_or_path": "Qwen/Qwen3-8B"}))
    answer = which(tmp_path)
    assert (answer.layer, answer.release, answer.base) == ("unknown", None, "Qwen/Qwen3-8B")


def test_adapter_is_somebodys_with_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-3B-Instruct"})
    )
    answer = which(tmp_path / "adapter_config.json")
    assert (answer.kind, answer.layer) == ("adapter", "community")
    assert answer.base == "Qwen/Qwen2.5-3B-Instruct"


def test_safetensors_header_alone_shows_the_shape(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": [151936, 4096]}
    for layer in range(36):
        start = f"model.layers.{layer}."
        tensors[start + "mlp.gate_proj.weight"] = [12288, 4096]
        tensors[start + "self_attn.q_norm.weight"] = [128]
    answer = which(safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"}))
    assert answer.kind == "safetensors-file"
    assert "Qwen3-8B" in answer.suggestions
    assert answer.layer == "unknown"


def test_lora_safetensors_is_an_adapter(tmp_path: Path) -> None:
    path = safetensors(
        tmp_path / "adapter_model.safetensors", {"base.layers.0.q_proj.lora_A.weight": [8, 64]}, {}
    )
    assert which(path).kind == "adapter"


def test_cache_of_a_hub_client_says_its_repo(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen2.5-3B-Instruct" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN25_3B))
    answer = which(folder)
    assert (answer.layer, answer.repo) == ("weights", "Qwen/Qwen2.5-3B-Instruct")
    assert answer.governing_document.id == "LicenseRef-scancode-qwen-research-2024"
    assert answer.status is Status.REPORTED


def test_card_that_contradicts_itself_declares_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_3B))
    (tmp_path / "README.md").write_text(
        "---\nlicense: apache-2.0\nlicense_name: qwen-research\n---\n# Model\n"
    )
    answer = which(tmp_path)
    assert any("contradicts itself" in each for each in answer.conflicts)
    assert answer.governing_document.kind is GoverningKind.UNKNOWN


def test_licence_file_wins_over_the_tag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_3B))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    apache = Path(__file__).parents[2] / "LICENSE"
    (tmp_path / "LICENSE").write_bytes(apache.read_bytes())
    answer = which(tmp_path)
    assert answer.governing_document.id == "Apache-2.0"
    assert any("the file LICENSE is Apache-2.0" in each for each in answer.conflicts)


def test_licence_file_that_nobody_knows_leaves_the_licence_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_3B))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "LICENSE").write_text("You may use this on Tuesdays.")
    answer = which(tmp_path)
    assert answer.governing_document.kind is GoverningKind.UNKNOWN
    assert any("it governs" in each for each in answer.problems)


def test_a_caches_path_does_not_name_another_models_files(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}
    (folder / "config.json").write_text(json.dumps(config))
    answer = which(folder)
    assert (answer.layer, answer.release) == ("unknown", None)
    assert answer.governing_document.id == "unknown"
    assert "not the shape of Qwen3-8B" in answer.conflicts[0]
