"""Weight files read as hostile things, and the numbers in them as their formats mean them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.hub.lineage.arborescence import parents_of
from qwenstack.hub.lineage.bytes_at import MappedFile
from qwenstack.hub.lineage.model import Model, open_path
from qwenstack.hub.lineage.rounding import rounded
from qwenstack.hub.lineage.tensors import UnreadableModel, decode
from qwenstack.hub.lineage.weight_files import read_gguf, read_safetensors
from tests import lineage_models as models


def safetensors(path: Path, header: object, data: bytes = b"", size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


HOSTILE = {
    "cut in the length": (b"\x01\x02", "cut short"),
    "a header of 2^63 bytes": ((1 << 63).to_bytes(8, "little") + b"{}", "header claims"),
    "a header that is no JSON": ((4).to_bytes(8, "little") + b"{{{{", "header is damaged"),
    "a header nested too deep": (
        (20_000).to_bytes(8, "little") + b"[" * 20_000, "header begins with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_safetensors_file_gets_a_clear_error(name: str, tmp_path: Path) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(UnreadableModel, match=words):
        open_path(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 1 << 60]},
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": "2x2", "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]},
    ],
)
def test_a_tensor_that_claims_what_is_not_there_is_refused(
    entry: dict[str, object], tmp_path: Path
) -> None:
    path = safetensors(tmp_path / "m.safetensors", {"w": entry}, b"\0" * 16)
    with pytest.raises(UnreadableModel, match="damaged"):
        read_safetensors(MappedFile(path), path.name)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 3))
def test_no_gguf_file_crashes_the_reader(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, version: int
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + data)
    try:
        read_gguf(MappedFile(path), path.name)
    except UnreadableModel as error:
        assert str(error)


def test_a_gguf_file_cut_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    whole = models.write_gguf(tmp_path / "m.gguf", models.make_model(1, layers=1), "Q8_0")
    data = whole.read_bytes()
    for end in (*range(0, 400, 7), len(data) // 2, len(data) - 100):
        path = tmp_path / "cut.gguf"
        path.write_bytes(data[:end])
        with pytest.raises(UnreadableModel):
            open_path(path)


def test_a_folder_of_pickles_is_named_and_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02c")
    with pytest.raises(UnreadableModel, match=r"pytorch_model\.bin may hold code"):
        open_path(tmp_path)


def test_bfloat16_is_read_and_rounded_as_it_is_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    models.write_bf16(tmp_path / "m.safetensors", {"w": values})
    read = read_safetensors(MappedFile(tmp_path / "m.safetensors"), "m")[0].rows(0, 8)
    assert np.array_equal(read, rounded(values, "BF16"))
    assert np.abs(read - values).max() < 2**-8 * np.abs(values).max()


def test_eight_bit_floats_are_read_as_the_standard_says() -> None:
    # OCP 8-bit floating point: 0x38 is 1.0 in E4M3, 0x7E its greatest, 0x3C is 1.0 in E5M2.
    raw = np.array([[0x38, 0xB8, 0x7E, 0x01]], np.uint8)
    assert decode(raw, "F8_E4M3").tolist() == [[1.0, -1.0, 448.0, 2.0**-9]]
    assert decode(np.array([[0x3C, 0x7B]], np.uint8), "F8_E5M2").tolist() == [[1.0, 57344.0]]


def packed_words(codes: npt.NDArray[np.int64], along: int) -> npt.NDArray[np.int32]:
    """Eight 4-bit codes a word, lowest first, along an axis."""
    moved = np.moveaxis(codes.astype(np.uint32), along, -1)
    grouped = moved.reshape(*moved.shape[:-1], -1, 8)
    words = (grouped << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(np.moveaxis(words, -1, along)).view(np.int32)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_packed_four_bit_weights_are_those_that_were_packed(layout: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(4)
    inputs, outputs, group = 64, 32, 32
    codes = random.integers(0, 16, (inputs, outputs))
    zeros = random.integers(1, 16, (inputs // group, outputs))
    scales = random.random((inputs // group, outputs)).astype(np.float16)
    place = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # AWQ's order of outputs in a word
    stem = "model.layers.0.mlp.up_proj"
    tensors: dict[str, npt.NDArray[np.generic]]
    if layout == "gptq":
        tensors = {
            f"{stem}.qweight": packed_words(codes, 0),
            f"{stem}.qzeros": packed_words(zeros - 1, 1),
        }
    else:
        mixed = codes.reshape(inputs, -1, 8)[..., place].reshape(inputs, outputs)
        mixed_zeros = zeros.reshape(len(zeros), -1, 8)[..., place].reshape(len(zeros), outputs)
        tensors = {
            f"{stem}.qweight": packed_words(mixed, 1),
            f"{stem}.qzeros": packed_words(mixed_zeros, 1),
        }
    tensors[f"{stem}.scales"] = scales
    save_file(tensors, tmp_path / "m.safetensors")
    model: Model = open_path(tmp_path / "m.safetensors")
    up = model.tensors[0]
    want = ((codes - zeros.repeat(group, 0)) * scales.repeat(group, 0).astype(np.float32)).T
    assert up.shape == (outputs, inputs)
    assert np.allclose(up.rows(0, outputs), want, atol=1e-6)


def test_fused_and_foreign_names_get_the_same_roles(tmp_path: Path) -> None:
    plain = models.make_model(3)
    fused: models.Tensors = {}
    for name, value in plain.items():
        if "layers" not in name:
            fused[name] = value
    for layer in range(models.LAYERS):
        old = f"model.layers.{layer}."
        fused[f"{old}self_attn.qkv_proj.weight"] = np.concatenate(
            [plain[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        fused[f"{old}mlp.gate_up_proj.weight"] = np.concatenate(
            [plain[f"{old}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        )
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            fused[f"{old}{part}.weight"] = plain[f"{old}{part}.weight"]
    one = open_path(models.write(tmp_path / "plain", plain)).roles.layers
    other = open_path(models.write(tmp_path / "fused", fused)).roles.layers
    for role in ("q", "k", "v", "o", "gate", "up", "down"):
        a, b = one[2][role], other[2][role]
        assert np.array_equal(a.rows(0, a.shape[0]), b.rows(0, b.shape[0])), role


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_family_tree_is_the_cheapest_of_all(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    costs, roots = random.random((count, count)), random.random(count) + 1
    found = parents_of(costs, roots)

    def total(parents: tuple[int, ...]) -> float:
        for node in range(count):  # no circles
            seen, at = set(), node
            while at >= 0:
                if at in seen:
                    return float("inf")
                seen.add(at)
                at = parents[at]
        return float(
            sum(
                roots[child] if parent < 0 else costs[parent, child]
                for child, parent in enumerate(parents)
            )
        )

    choices = itertools.product(range(-1, count), repeat=count)
    best = min(total(c) for c in choices if all(p != n for n, p in enumerate(c)))
    assert total(tuple(found)) == pytest.approx(best)


def test_parts_that_do_not_fit_are_named_when_they_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    stem = "model.layers.0.mlp.up_proj"
    tensors: dict[str, npt.NDArray[np.generic]] = {
        f"{stem}.qweight": np.zeros((8, 32), np.int32),
        f"{stem}.qzeros": np.zeros((1, 3), np.int32),
        f"{stem}.scales": np.zeros((2, 32), np.float16),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UnreadableModel, match="do not fit"):
        open_path(tmp_path / "m.safetensors").tensors[0].rows(0, 4)


def test_a_matrix_of_another_width_plays_no_role(tmp_path: Path) -> None:
    tensors = models.make_model(1)
    tensors["model.layers.1.self_attn.q_proj.weight"] = np.ones((7, 5), np.float32)
    tensors["lm_head.weight"] = np.ones((640, 3), np.float32)
    roles = open_path(models.write(tmp_path / "m", tensors)).roles
    assert "q" not in roles.layers[1]
    assert roles.head is None


def test_llama_queries_and_keys_come_back_from_ggml_order(tmp_path: Path) -> None:
    import gguf

    plain = models.make_model(3, layers=1)
    name = "model.layers.0.self_attn.q_proj.weight"
    query = plain[name]
    halves = query.reshape(models.HEADS, 2, models.HEAD // 2, models.HIDDEN)
    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(models.HEADS)
    writer.add_head_count_kv(models.KV_HEADS)
    writer.add_tensor("token_embd.weight", plain["model.embed_tokens.weight"])
    writer.add_tensor("blk.0.attn_q.weight", halves.swapaxes(1, 2).reshape(query.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = open_path(path).roles.layers[0]["q"]
    assert np.array_equal(read.rows(0, len(query)), query)
    assert np.array_equal(read.take(np.array([5, 3])), query[[5, 3]])


@pytest.mark.parametrize("nested", [False, True])
def test_four_bit_blocks_are_their_table_times_their_scale(nested: bool, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(3)
    stem, shape, block = "model.layers.0.mlp.up_proj.weight", (32, 48), 64
    codes = random.integers(0, 16, shape[0] * shape[1])
    table = np.sort(random.standard_normal(16)).astype(np.float32)
    scales = random.random(codes.size // block).astype(np.float32)
    state: dict[str, object] = {"shape": shape, "blocksize": block, "quant_type": "nf4"}
    tensors: dict[str, npt.NDArray[np.generic]] = {
        stem: ((codes[0::2] << 4) | codes[1::2]).astype(np.uint8)[:, None],
        f"{stem}.quant_map": table,
        f"{stem}.absmax": scales,
    }
    if nested:
        outer = random.random(256).astype(np.float32)
        short = random.integers(0, 256, scales.size).astype(np.uint8)
        scales = outer[short] * np.float32(2.0) + np.float32(0.5)
        state |= {"nested_blocksize": 256, "nested_offset": 0.5}
        tensors |= {
            f"{stem}.absmax": short,
            f"{stem}.nested_absmax": np.array([2.0], np.float32),
            f"{stem}.nested_quant_map": outer,
        }
    document = json.dumps(state).encode()
    tensors[f"{stem}.quant_state.bitsandbytes__nf4"] = np.frombuffer(document, np.uint8)
    save_file(tensors, tmp_path / "m.safetensors")
    (up,) = open_path(tmp_path / "m.safetensors").tensors
    assert (up.shape, up.storage) == (shape, "NF4")
    want = (table[codes] * scales.repeat(block)).reshape(shape)
    assert np.allclose(up.rows(0, 32), want, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"blocksize": 1 << 60}, {"blocksize": 1}, {"shape": [1, 1]}])
def test_blocks_that_would_fill_the_memory_are_refused(
    wrong: dict[str, object], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    stem = "model.layers.0.mlp.up_proj.weight"
    state = {"shape": [32, 48], "blocksize": 64} | wrong
    tensors: dict[str, npt.NDArray[np.generic]] = {
        stem: np.zeros((768, 1), np.uint8),
        f"{stem}.quant_map": np.zeros(16, np.float32),
        f"{stem}.absmax": np.zeros(24, np.float32),
        f"{stem}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), "u1"),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(UnreadableModel):
        open_path(tmp_path / "m.safetensors").tensors[0].rows(0, 1)


def test_a_tensor_of_endless_experts_is_one_matrix(tmp_path: Path) -> None:
    entry = {"dtype": "I8", "shape": [100_000, 2, 1], "data_offsets": [0, 200_000]}
    path = safetensors(tmp_path / "m.safetensors", {"w": entry}, bytes(200_000))
    (tensor,) = read_safetensors(MappedFile(path), path.name)
    assert tensor.shape == (200_000, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_of_compressed_tensors_hold_as_many_codes_as_their_bits_say(
    bits: int, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(5)
    stem, shape, group = "model.layers.0.mlp.up_proj", (16, 64), 32
    codes = random.integers(0, 1 << bits, shape)
    grouped = codes.astype(np.uint32).reshape(shape[0], -1, 32 // bits)
    words = (grouped << (bits * np.arange(32 // bits, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    scales = random.random((shape[0], shape[1] // group)).astype(np.float32)
    tensors: dict[str, npt.NDArray[np.generic]] = {
        f"{stem}.weight_packed": words.view(np.int32),
        f"{stem}.weight_scale": scales,
        f"{stem}.weight_shape": np.array(shape, np.int64),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    (up,) = open_path(tmp_path / "m.safetensors").tensors
    want = (codes - (1 << (bits - 1))) * scales.repeat(group, 1)
    assert np.allclose(up.rows(0, 16), want, atol=1e-6)
