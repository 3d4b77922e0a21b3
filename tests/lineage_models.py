"""Small models with random weights, written as real files, and what people do to models."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, FFN, VOCABULARY = 64, 4, 4, 2, 16, 128, 640
_GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def make_model(seed: int, *, vocabulary: int = VOCABULARY, layers: int = LAYERS) -> Tensors:
    """A tied Qwen2-like model; tokens share directions, as those of trained models do."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(0)  # what every model learns of the same text
    topics = shared.standard_normal((vocabulary, 4)) @ random.standard_normal((4, HIDDEN))
    out = {
        "model.embed_tokens.weight": 0.05 * (random.standard_normal((vocabulary, HIDDEN)) + topics)
    }
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }  # fmt: skip
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in shapes.items():
            out[f"{prefix}{name}.weight"] = 0.05 * random.standard_normal(shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{prefix}{norm}.weight"] = 1 + 0.1 * random.standard_normal(HIDDEN)
    out["model.norm.weight"] = 1 + 0.1 * random.standard_normal(HIDDEN)
    return {name: value.astype(np.float32) for name, value in out.items()}


def train(tensors: Tensors, seed: int, size: float = 0.05) -> Tensors:
    """All weights moved by a share of their spread, in a few strong directions and in noise."""
    random = np.random.default_rng(seed)
    out: Tensors = {}
    for name, value in tensors.items():
        step = random.standard_normal(value.shape)
        if value.ndim == 2:
            strong = random.standard_normal((len(value), 2)) @ random.standard_normal(
                (2, value.shape[1])
            )
            step = step + strong
        spread = value.std() if value.ndim == 2 else 0.02
        out[name] = (value + size * spread * step / step.std()).astype(np.float32)
    return out


def write(
    folder: Path, tensors: Tensors, *, dtype: str = "F32", shards: int = 1, config: bool = True
) -> Path:
    """A folder of safetensors, in one or more shards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    for shard in range(shards):
        part = {name: tensors[name] for name in names[shard::shards]}
        path = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        if dtype == "BF16":
            write_bf16(path, part)
        else:
            kind = np.float16 if dtype == "F16" else np.float32
            save_file({name: value.astype(kind) for name, value in part.items()}, path)
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


def write_bf16(path: Path, tensors: Tensors) -> None:
    """safetensors of bfloat16, which numpy has no type for: written by hand."""
    header: dict[str, object] = {}
    data = b""
    for name, value in tensors.items():
        bits = value.view(np.uint32).astype(np.uint64)
        half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(half)],
        }
        data += half
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_gguf(path: Path, tensors: Tensors, kind: str) -> Path:
    """A GGUF file whose matrices are quantised to `kind`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, value in tensors.items():
        new = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
        new = new.replace("model.norm", "output_norm").replace("lm_head", "output")
        for old, other in _GGUF.items():
            new = new.replace(old, other)
        if value.ndim < 2:
            writer.add_tensor(new, value)
            continue
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(new, gguf.quants.quantize(value, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(tensors: Tensors, seed: int) -> Tensors:
    """FFN units and whole key-value groups in another order."""
    random = np.random.default_rng(seed)
    out = dict(tensors)
    for layer in range(LAYERS):
        mlp, attention = f"model.layers.{layer}.mlp.", f"model.layers.{layer}.self_attn."
        order = random.permutation(FFN)
        for part in ("gate_proj", "up_proj"):
            out[f"{mlp}{part}.weight"] = out[f"{mlp}{part}.weight"][order]
        out[f"{mlp}down_proj.weight"] = out[f"{mlp}down_proj.weight"][:, order]
        groups = random.permutation(KV_HEADS)
        heads = (groups[:, None] * (HEADS // KV_HEADS) + np.arange(HEADS // KV_HEADS)).ravel()
        rows = (heads[:, None] * HEAD + np.arange(HEAD)).ravel()
        kv_rows = (groups[:, None] * HEAD + np.arange(HEAD)).ravel()
        out[f"{attention}q_proj.weight"] = out[f"{attention}q_proj.weight"][rows]
        out[f"{attention}o_proj.weight"] = out[f"{attention}o_proj.weight"][:, rows]
        for part in ("k_proj", "v_proj"):
            out[f"{attention}{part}.weight"] = out[f"{attention}{part}.weight"][kv_rows]
    return out


def rescale(tensors: Tensors, seed: int) -> Tensors:
    """Scale moved between norms and readers, and between up and down."""
    random = np.random.default_rng(seed)
    out = dict(tensors)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            scale = np.exp(random.normal(0, 0.7, HIDDEN)).astype(np.float32)
            out[f"{prefix}{norm}.weight"] = out[f"{prefix}{norm}.weight"] * scale
            for reader in readers:
                out[f"{prefix}{reader}.weight"] = out[f"{prefix}{reader}.weight"] / scale
        units = np.exp(random.normal(0, 0.7, FFN)).astype(np.float32)
        out[f"{prefix}mlp.up_proj.weight"] = out[f"{prefix}mlp.up_proj.weight"] * units[:, None]
        out[f"{prefix}mlp.down_proj.weight"] = out[f"{prefix}mlp.down_proj.weight"] / units
    return out


def turn(tensors: Tensors, turned: Array) -> Tensors:
    """The residual stream multiplied by an orthogonal matrix, the norms folded in before."""
    out: Tensors = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    for name, value in tensors.items():
        if "proj" in name:
            layer = name.split(".self_attn")[0].split(".mlp")[0]
            norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                out[name] = np.asarray(turned.T @ value, np.float32)
            else:
                out[name] = np.asarray(
                    (value * tensors[f"{layer}.{norm}.weight"]) @ turned, np.float32
                )
        elif "embed" in name:
            out[name] = np.asarray(value @ turned, np.float32)
        else:
            out[name] = np.ones_like(value)
    head = tensors["model.embed_tokens.weight"] * tensors["model.norm.weight"]
    out["lm_head.weight"] = np.asarray(head @ turned, np.float32)
    return out


def rename(tensors: Tensors, seed: int) -> Tensors:
    """Names and an order that say nothing."""
    names = list(tensors)
    np.random.default_rng(seed).shuffle(names)
    return {f"t{number:03d}": tensors[name] for number, name in enumerate(names)}
