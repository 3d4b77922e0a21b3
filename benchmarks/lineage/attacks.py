"""Ways to hide where weights come from. All but the noise keep the model's function.

Each takes a config and tensors under their usual names and gives new ones. What is exact and
what is not is measured, not assumed: the zoo compares the logits before and after.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.lineage.weights import Array, Config, Tensors

Random = np.random.Generator
Order = npt.NDArray[np.intp]
Attacked = tuple[Config, Tensors]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def head_size(config: Config) -> int:
    """Numbers per attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def experts_of(config: Config) -> int:
    """Experts a layer, 0 in a dense model; Transformers writes the number under either name."""
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def ffn_prefixes(tensors: Tensors, layer: int) -> list[str]:
    """The prefixes of a layer's feed-forward blocks: one, or one an expert."""
    found = [
        name.removesuffix("gate_proj.weight")
        for name in tensors
        if name.startswith(f"model.layers.{layer}.mlp.") and name.endswith("gate_proj.weight")
    ]
    return sorted(found)


def permute_units(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Reorder FFN units, experts and attention heads (whole key-value groups, and within)."""
    out = dict(tensors)
    size = head_size(config)
    groups = int(config["num_key_value_heads"])
    per_group = int(config["num_attention_heads"]) // groups
    for layer in range(config["num_hidden_layers"]):
        for prefix in ffn_prefixes(tensors, layer):
            order = random.permutation(tensors[prefix + "gate_proj.weight"].shape[0])
            take_units(out, prefix, order)
        take_experts(out, layer, random.permutation(experts_of(config) or 1))
        kv_heads = random.permutation(groups)
        heads = np.concatenate(
            [group * per_group + random.permutation(per_group) for group in kv_heads]
        )
        take_heads(out, layer, heads, kv_heads, size)
    return config, out


def take_units(tensors: Tensors, prefix: str, units: Order) -> None:
    """Keep these FFN units, in this order (in place)."""
    for name in ("gate_proj", "up_proj"):
        tensors[f"{prefix}{name}.weight"] = tensors[f"{prefix}{name}.weight"][units]
    tensors[f"{prefix}down_proj.weight"] = tensors[f"{prefix}down_proj.weight"][:, units]


def take_experts(tensors: Tensors, layer: int, experts: Order) -> None:
    """Keep these experts, in this order (in place); nothing to do in a dense layer."""
    prefix = f"model.layers.{layer}.mlp."
    router = tensors.get(prefix + "gate.weight")
    if router is None:
        return
    old = {name: value for name, value in tensors.items() if name.startswith(prefix + "experts.")}
    for name in old:
        del tensors[name]
    tensors[prefix + "gate.weight"] = router[experts]
    for new, expert in enumerate(experts):
        for part in ("gate_proj", "up_proj", "down_proj"):
            source = old[f"{prefix}experts.{expert}.{part}.weight"]
            tensors[f"{prefix}experts.{new}.{part}.weight"] = source


def take_heads(tensors: Tensors, layer: int, heads: Order, kv_heads: Order, size: int) -> None:
    """Keep these query heads and key-value heads, in this order (in place)."""
    prefix = f"model.layers.{layer}.self_attn."
    for part, chosen in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
        rows = (chosen[:, None] * size + np.arange(size)).ravel()
        for kind in ("weight", "bias"):
            if f"{prefix}{part}.{kind}" in tensors:
                tensors[f"{prefix}{part}.{kind}"] = tensors[f"{prefix}{part}.{kind}"][rows]
    columns = (heads[:, None] * size + np.arange(size)).ravel()
    tensors[prefix + "o_proj.weight"] = tensors[prefix + "o_proj.weight"][:, columns]


def _readers(tensors: Tensors, layer: int) -> tuple[list[str], list[str]]:
    """Names of the matrices that read the residual stream after each of the two norms."""
    prefix = f"model.layers.{layer}."
    attention = [f"{prefix}self_attn.{part}_proj.weight" for part in "qkv"]
    ffn = [f"{p}{part}.weight" for p in ffn_prefixes(tensors, layer) for part in _READ]
    if f"{prefix}mlp.gate.weight" in tensors:
        ffn.append(f"{prefix}mlp.gate.weight")
    return attention, ffn


_READ = ("gate_proj", "up_proj")


def _writers(tensors: Tensors) -> list[str]:
    """Names of the matrices that write into the residual stream (rows are its channels)."""
    return [name for name in tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]


def untie(config: Config, tensors: Tensors) -> Attacked:
    """Store the output matrix by itself, as folding the last norm needs."""
    out = dict(tensors)
    if config.get("tie_word_embeddings") or "lm_head.weight" not in out:
        out["lm_head.weight"] = out["model.embed_tokens.weight"].copy()
    return config | {"tie_word_embeddings": False}, out


def permute_residual(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Reorder the channels of the residual stream everywhere (tied weights stay tied)."""
    order = random.permutation(config["hidden_size"])
    out: Tensors = {}
    for name, value in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or _is_residual_norm(name):
            out[name] = value[order]
        elif value.ndim == 2:
            out[name] = value[:, order]
        else:
            out[name] = value
    return config, out


def _is_residual_norm(name: str) -> bool:
    return name == "model.norm.weight" or name.endswith("layernorm.weight")


def fold_norms(config: Config, tensors: Tensors) -> Attacked:
    """Move every norm's gains into the matrices behind it."""
    config, out = untie(config, tensors)
    for layer in range(config["num_hidden_layers"]):
        norms = ("input_layernorm", "post_attention_layernorm")
        for norm, names in zip(norms, _readers(out, layer), strict=True):
            gain = out[f"model.layers.{layer}.{norm}.weight"]
            for name in names:
                out[name] = out[name] * gain[None, :]
            out[f"model.layers.{layer}.{norm}.weight"] = np.ones_like(gain)
    out["lm_head.weight"] = out["lm_head.weight"] * out["model.norm.weight"][None, :]
    out["model.norm.weight"] = np.ones_like(out["model.norm.weight"])
    return config, out


def rotate_residual(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Fold the norms, then turn the residual stream by a random orthogonal matrix.

    RMS norm without gains commutes with rotations (SliceGPT, arXiv 2401.15024; QuaRot,
    arXiv 2404.00456).
    """
    config, out = fold_norms(config, tensors)
    q, r = np.linalg.qr(random.standard_normal((config["hidden_size"],) * 2))
    turn = (q * np.sign(np.diag(r))).astype(np.float32)
    for name, value in out.items():
        if value.ndim != 2:
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        out[name] = (turn.T @ value if writes else value @ turn).astype(np.float32)
    return config, out


def rescale(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Scale what cancels: FFN up against down, values against outputs, norms against readers.

    Queries and keys also turn against each other inside each rotary pair, where no norm
    stands between; values and outputs are mixed by an invertible matrix a group.
    """
    out = dict(tensors)
    size = head_size(config)
    groups = int(config["num_key_value_heads"])
    per_group = int(config["num_attention_heads"]) // groups
    for layer in range(config["num_hidden_layers"]):
        for prefix in ffn_prefixes(out, layer):
            units = out[prefix + "up_proj.weight"].shape[0]
            scale = _scales(random, units)
            out[prefix + "up_proj.weight"] = out[prefix + "up_proj.weight"] * scale[:, None]
            out[prefix + "down_proj.weight"] = out[prefix + "down_proj.weight"] / scale
        for norm, names in zip(
            ("input_layernorm", "post_attention_layernorm"), _readers(out, layer), strict=True
        ):
            scale = _scales(random, config["hidden_size"])
            key = f"model.layers.{layer}.{norm}.weight"
            out[key] = out[key] * scale
            for name in names:
                out[name] = out[name] / scale
        _mix_values(out, layer, groups, per_group, size, random)
        if f"model.layers.{layer}.self_attn.q_norm.weight" not in out:
            _turn_pairs(out, layer, groups, per_group, size, random)
    return config, out


def _scales(random: Random, count: int) -> Array:
    return np.exp(random.normal(0.0, 0.7, count)).astype(np.float32)


def _mix_values(
    out: Tensors, layer: int, groups: int, per_group: int, size: int, random: Random
) -> None:
    prefix = f"model.layers.{layer}.self_attn."
    values, outputs = out[prefix + "v_proj.weight"].copy(), out[prefix + "o_proj.weight"].copy()
    bias = out.get(prefix + "v_proj.bias")
    bias = None if bias is None else bias.copy()
    for group in range(groups):
        mix = np.eye(size) + 0.5 * random.standard_normal((size, size)) / size**0.5
        undo = np.linalg.inv(mix)
        rows = slice(group * size, (group + 1) * size)
        values[rows] = mix @ values[rows]
        if bias is not None:
            bias[rows] = mix @ bias[rows]
        for head in range(group * per_group, (group + 1) * per_group):
            columns = slice(head * size, (head + 1) * size)
            outputs[:, columns] = outputs[:, columns] @ undo
    out[prefix + "v_proj.weight"], out[prefix + "o_proj.weight"] = values, outputs
    if bias is not None:
        out[prefix + "v_proj.bias"] = bias


def _turn_pairs(
    out: Tensors, layer: int, groups: int, per_group: int, size: int, random: Random
) -> None:
    """Turn and scale the plane that rotary position mixes: it commutes with that rotation."""
    prefix = f"model.layers.{layer}.self_attn."
    half = size // 2
    for group in range(groups):
        angle = random.uniform(-np.pi, np.pi, half)
        scale = _scales(random, half)
        heads = range(group * per_group, (group + 1) * per_group)
        targets = [("q_proj", head, scale) for head in heads]
        for part, head, factor in [*targets, ("k_proj", group, 1 / scale)]:
            for kind in ("weight", "bias"):
                value = out.get(f"{prefix}{part}.{kind}")
                if value is None:
                    continue
                value = value.copy()
                start = head * size
                first, second = value[start : start + half], value[start + half : start + size]
                shape = (half,) + (1,) * (value.ndim - 1)
                cos = (factor * np.cos(angle)).reshape(shape)
                sin = (factor * np.sin(angle)).reshape(shape)
                turned = (cos * first - sin * second, sin * first + cos * second)
                value[start : start + half], value[start + half : start + size] = turned
                out[f"{prefix}{part}.{kind}"] = value


def noise(config: Config, tensors: Tensors, random: Random, share: float = 0.05) -> Attacked:
    """Add Gaussian noise of `share` of each matrix's spread. Changes the function a little."""
    out = {
        name: value + (share * value.std() * random.standard_normal(value.shape)).astype(np.float32)
        if value.ndim == 2
        else value
        for name, value in tensors.items()
    }
    return config, out


_META = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def rename_plausibly(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Names of another well-known code base."""
    del random
    out: Tensors = {}
    for name, value in tensors.items():
        new = name
        for old, other in _META.items():
            new = new.replace(old, other)
        out[new.removeprefix("model.")] = value
    return config, out


def rename_opaquely(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Names that say nothing, in an order that says nothing."""
    names = list(tensors)
    random.shuffle(names)
    return config, {f"t{index:04d}": tensors[name] for index, name in enumerate(names)}


def mixed(config: Config, tensors: Tensors, random: Random) -> Attacked:
    """Rescaled, units and heads permuted, residual stream rotated, 1 % noise, renamed."""
    for step in (rescale, permute_units, rotate_residual):
        config, tensors = step(config, tensors, random)
    config, tensors = noise(config, tensors, random, 0.01)
    return rename_plausibly(config, tensors, random)


ATTACKS: dict[str, Callable[[Config, Tensors, Random], Attacked]] = {
    "rename": rename_plausibly,
    "rename_opaque": rename_opaquely,
    "permute_units": permute_units,
    "permute_residual": permute_residual,
    "rotate_residual": rotate_residual,
    "rescale": rescale,
    "noise": noise,
    "mixed": mixed,
}

# These leave the usual names, so that the logits can be compared.
EXACT = ("permute_units", "permute_residual", "rotate_residual", "rescale")


def layer_of(name: str) -> int | None:
    """The layer that a tensor of the usual names belongs to."""
    match = _LAYER.match(name)
    return int(match.group(1)) if match else None
