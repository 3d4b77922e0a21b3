"""Any model of the zoo as float tensors under the usual names, for methods that need them.

This is a courtesy to the baselines: most published code reads safetensors under known names
only. Renamed tensors stay renamed, and an adapter alone is no model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.lineage import weights
from benchmarks.lineage.manifest import Entry
from benchmarks.lineage.quantise import GROUP, gguf_names
from benchmarks.lineage.weights import Array, Config, Tensors

Integers = npt.NDArray[np.int64]


def read(zoo: Path, entry: Entry, config: Config) -> Tensors | None:
    """The tensors of `entry`, dequantised; None for an adapter. `config` is its family's."""
    folder = zoo / entry.path
    if entry.format == "peft":
        return None
    if entry.format == "gguf":
        return from_gguf(next(folder.glob("*.gguf")), config)
    tensors = weights.read_tensors(folder)
    if entry.format in ("gptq", "awq"):
        return _from_int4(tensors, entry.format)
    return tensors


def from_gguf(file: Path, config: Config) -> Tensors:
    """A GGUF file's tensors, dequantised, under the usual names."""
    usual = {value: key for key, value in gguf_names().items()}
    out: Tensors = {}
    for tensor in gguf.GGUFReader(str(file)).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        flat = gguf.dequantize(tensor.data, tensor.tensor_type)
        value: Array = np.asarray(flat, dtype=np.float32).reshape(shape)
        whole = {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        }
        if tensor.name in whole:
            out[whole[tensor.name]] = value
            continue
        match = re.match(r"blk\.(\d+)\.(.+)\.(weight|bias)$", tensor.name)
        assert match is not None, tensor.name
        layer, part, kind = match.groups()
        if part.endswith("_exps"):
            stem = part.removeprefix("ffn_").removesuffix("_exps")
            for expert, one in enumerate(value):
                out[f"model.layers.{layer}.mlp.experts.{expert}.{stem}_proj.weight"] = one
            continue
        if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
            which = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"
            rows = value.reshape(config[which], -1, 2, *value.shape[1:])
            value = rows.swapaxes(1, 2).reshape(value.shape)
        out[f"model.layers.{layer}.{usual[part]}.{kind}"] = value
    return out


def _unpack(packed: npt.NDArray[np.int32], order: tuple[int, ...]) -> Integers:
    """Eight 4-bit numbers out of each integer along the last axis, back in their places."""
    eight = (packed.view(np.uint32)[..., None].astype(np.int64) >> (4 * np.arange(8))) & 15
    places: Integers = np.empty_like(eight)
    places[..., list(order)] = eight
    return places.reshape(*packed.shape[:-1], -1)


def _from_int4(tensors: dict[str, npt.NDArray[Any]], form: str) -> Tensors:
    straight, woven = (0, 1, 2, 3, 4, 5, 6, 7), (0, 2, 4, 6, 1, 3, 5, 7)
    out: Tensors = {}
    for name, value in tensors.items():
        if name.endswith((".qzeros", ".scales", ".g_idx")):
            continue
        if not name.endswith(".qweight"):
            out[name] = value
            continue
        stem = name.removesuffix("qweight")
        if form == "gptq":
            levels = _unpack(np.ascontiguousarray(value.T), straight).T
            zeros = _unpack(tensors[stem + "qzeros"], straight) + 1
            zeros &= 15
        else:
            levels = _unpack(value, woven)
            zeros = _unpack(tensors[stem + "qzeros"], woven)
        scales = tensors[stem + "scales"].astype(np.float32)
        rows = np.arange(levels.shape[0]) // GROUP
        out[stem + "weight"] = ((levels - zeros[rows]) * scales[rows]).T.astype(np.float32)
    return out
