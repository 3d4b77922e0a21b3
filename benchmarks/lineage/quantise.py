"""Quantised copies: GGUF files (F16, Q8_0, Q4_0, Q4_K), GPTQ and AWQ packed integers.

GGUF's simple types come from the `gguf` package. Q4_K has no quantiser there; ours rounds to
the same layout (super-blocks of 256, eight 6-bit scales and minima, 4-bit values) without
llama.cpp's search for the best scales, so it errs a little more than theirs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.lineage.weights import Array, Config, Tensors, copy_tokenizer, write_folder

Bytes = npt.NDArray[np.uint8]
GROUP = 32

_ARCHITECTURES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "llama": "llama",
}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}


def gguf_names() -> dict[str, str]:
    """What llama.cpp calls the parts of a layer, by their usual names."""
    return dict(_NAMES)


def quantise_q4_k(values: Array) -> Bytes:
    """Rows of multiples of 256 numbers as Q4_K blocks of 144 bytes."""
    blocks = values.reshape(-1, 8, 32).astype(np.float64)
    low = np.minimum(blocks.min(-1), 0.0)
    scales = (blocks.max(-1) - low) / 15.0
    minima = -low
    d = (scales.max(-1) / 63.0).astype(np.float16)
    dmin = (minima.max(-1) / 63.0).astype(np.float16)
    sc = _sixths(scales, d)
    mn = _sixths(minima, dmin)
    step = sc * d.astype(np.float64)[:, None]
    offset = mn * dmin.astype(np.float64)[:, None]
    safe = np.where(step > 0, step, 1.0)[..., None]
    levels = np.clip(np.rint((blocks + offset[..., None]) / safe), 0, 15).astype(np.uint8)
    packed = np.empty((len(blocks), 12), dtype=np.uint8)
    packed[:, 0:4] = (sc[:, :4] & 63) | ((sc[:, 4:] >> 4) << 6)
    packed[:, 4:8] = (mn[:, :4] & 63) | ((mn[:, 4:] >> 4) << 6)
    packed[:, 8:12] = (sc[:, 4:] & 15) | ((mn[:, 4:] & 15) << 4)
    pairs = levels.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)
    heads = [part.view(np.uint8).reshape(-1, 2) for part in (d, dmin)]
    rows = np.concatenate([*heads, packed, nibbles], axis=1)
    return rows.reshape(*values.shape[:-1], values.shape[-1] // 256 * 144)


def _sixths(values: npt.NDArray[np.float64], unit: npt.NDArray[np.float16]) -> Bytes:
    divisor = np.where(unit > 0, unit.astype(np.float64), 1.0)[:, None]
    return np.clip(np.rint(values / divisor), 0, 63).astype(np.uint8)


def write_gguf(
    folder: Path, config: Config, tensors: Tensors, kind: str, source: Path | None
) -> None:
    """`folder/model-KIND.gguf`, named and laid out as llama.cpp's converter does it."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(
        str(folder / f"model-{kind}.gguf"), _ARCHITECTURES[config["model_type"]]
    )
    _write_about(writer, config, kind, source)
    for name, value in _gguf_tensors(config, tensors).items():
        data, dtype = _encode(name, value, kind)
        shape = data.shape if dtype is not None else None
        writer.add_tensor(name, data, raw_shape=shape, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_about(writer: Any, config: Config, kind: str, source: Path | None) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config["vocab_size"])
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    kinds = gguf.LlamaFileType
    writer.add_file_type(
        {
            "F16": kinds.MOSTLY_F16,
            "Q8_0": kinds.MOSTLY_Q8_0,
            "Q4_0": kinds.MOSTLY_Q4_0,
            "Q4_K": kinds.MOSTLY_Q4_K_S,
        }[kind]
    )
    if source is None:
        return
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]
    words = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    words += [f"[PAD{index}]" for index in range(len(words), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in vocabulary["merges"]]
    writer.add_token_merges(merges)


def _gguf_tensors(config: Config, tensors: Tensors) -> Tensors:
    out: Tensors = {}
    experts: dict[str, list[Array]] = {}
    for name, value in tensors.items():
        match = re.match(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)
        if match is None:
            whole = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }
            out[whole[name]] = value
            continue
        layer, part, kind = match.groups()
        if ".experts." in part:
            stem = part.rsplit(".", 1)[1].removesuffix("_proj")
            experts.setdefault(f"blk.{layer}.ffn_{stem}_exps.weight", []).append(value)
            continue
        if config["model_type"] == "llama" and part.endswith(("q_proj", "k_proj")):
            which = "num_attention_heads" if "q_proj" in part else "num_key_value_heads"
            value = _pair_halves(value, config[which])
        out[f"blk.{layer}.{_NAMES[part]}.{kind}"] = value
    return out | {name: np.stack(values) for name, values in experts.items()}


def _pair_halves(value: Array, heads: int) -> Array:
    """Llama files store rotary pairs side by side: rows 0, half, 1, half + 1, …"""
    rows = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return rows.swapaxes(1, 2).reshape(value.shape)


def _encode(name: str, value: Array, kind: str) -> tuple[npt.NDArray[Any], Any]:
    types = gguf.GGMLQuantizationType
    if value.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        return value.astype(np.float32), None
    if kind == "F16":
        return value.astype(np.float16), None
    if kind == "Q4_K":
        if value.shape[-1] % 256 == 0:
            return quantise_q4_k(value), types.Q4_K
        kind = "Q4_0"
    # llama.cpp keeps the output matrix at more bits; so do we.
    if name.startswith("output.") or (kind == "Q4_0" and name.startswith("token_embd")):
        kind = "Q8_0"
    return gguf.quantize(value, types[kind]), types[kind]


def _integers(value: Array) -> tuple[npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    """4-bit levels [in, out], scales and zero points [groups, out] by asymmetric rounding."""
    columns = value.T.reshape(-1, GROUP, value.shape[0])
    low, high = np.minimum(columns.min(1), 0), np.maximum(columns.max(1), 0)
    scales = np.maximum((high - low) / 15, 1e-8).astype(np.float16).astype(np.float32)
    scales = np.maximum(scales, 6e-8)
    zeros = np.clip(np.rint(-low / scales), 0, 15).astype(np.int64)
    levels = np.clip(np.rint(columns / scales[:, None]) + zeros[:, None], 0, 15)
    return levels.astype(np.int64).reshape(value.T.shape), scales, zeros


def _pack(levels: npt.NDArray[np.int64], order: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Eight 4-bit numbers of the last axis into one integer, the i-th from `order[i]`."""
    eight = levels.reshape(*levels.shape[:-1], -1, 8)[..., list(order)]
    shifted = eight << (4 * np.arange(8))
    packed: npt.NDArray[np.int32] = shifted.sum(-1).astype(np.uint32).view(np.int32)
    return packed


def write_int4(folder: Path, config: Config, tensors: Tensors, form: str, source: Path) -> None:
    """Group-wise int4 by rounding, packed as GPTQ (rows) or AWQ (columns, interleaved) do."""
    straight, woven = (0, 1, 2, 3, 4, 5, 6, 7), (0, 2, 4, 6, 1, 3, 5, 7)
    out: dict[str, npt.NDArray[Any]] = {}
    for name, value in tensors.items():
        if not name.endswith("_proj.weight"):
            out[name] = value
            continue
        stem = name.removesuffix("weight")
        levels, scales, zeros = _integers(value)
        out[stem + "scales"] = scales.astype(np.float16)
        if form == "gptq":
            out[stem + "qweight"] = np.ascontiguousarray(_pack(levels.T, straight).T)
            # GPTQ's first format stores each zero point less one.
            out[stem + "qzeros"] = _pack((zeros - 1) & 15, straight)
            out[stem + "g_idx"] = (np.arange(value.shape[1]) // GROUP).astype(np.int32)
        else:
            out[stem + "qweight"] = _pack(levels, woven)
            out[stem + "qzeros"] = _pack(zeros, woven)
    about: Config = {"quant_method": form, "bits": 4, "group_size": GROUP}
    about |= (
        {"sym": False, "desc_act": False, "checkpoint_format": "gptq"}
        if form == "gptq"
        else {"zero_point": True, "version": "gemm"}
    )
    write_folder(folder, config | {"quantization_config": about}, out, dtype="F16")
    copy_tokenizer(source, folder)
