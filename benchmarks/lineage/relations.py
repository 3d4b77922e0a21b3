"""Relations between models that need no training: merges, pruning, depth, vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.lineage.attacks import (
    Attacked,
    Random,
    experts_of,
    ffn_prefixes,
    head_size,
    layer_of,
    take_experts,
    take_heads,
    take_units,
)
from benchmarks.lineage.weights import Config, Tensors


def merge_linear(first: Tensors, second: Tensors, share: float) -> Tensors:
    """`(1 - share) · first + share · second`."""
    return {name: (1 - share) * first[name] + share * second[name] for name in first}


def merge_slerp(first: Tensors, second: Tensors, share: float) -> Tensors:
    """Spherical interpolation, tensor by tensor."""
    out: Tensors = {}
    for name, a in first.items():
        b = second[name]
        norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
        cosine = float(np.clip((a.ravel() @ b.ravel()) / norms, -1, 1)) if norms else 1.0
        angle = float(np.arccos(cosine))
        if angle < 1e-4:
            out[name] = (1 - share) * a + share * b
            continue
        weights = np.sin(np.array([1 - share, share]) * angle) / np.sin(angle)
        out[name] = (weights[0] * a + weights[1] * b).astype(np.float32)
    return out


def merge_ties(base: Tensors, children: Sequence[Tensors], density: float) -> Tensors:
    """TIES merging (arXiv 2306.01708): trim, elect a sign, average what agrees."""
    out: Tensors = {}
    for name, origin in base.items():
        deltas = []
        for child in children:
            delta = child[name] - origin
            floor = np.quantile(np.abs(delta), 1 - density)
            deltas.append(np.where(np.abs(delta) >= floor, delta, 0))
        stack = np.stack(deltas)
        sign = np.sign(stack.sum(0))
        agree = (np.sign(stack) == sign) & (stack != 0)
        mean = (stack * agree).sum(0) / np.maximum(agree.sum(0), 1)
        out[name] = (origin + mean).astype(np.float32)
    return out


def prune_magnitude(tensors: Tensors, share: float) -> Tensors:
    """Set the smallest `share` of each matrix of the layers to zero."""
    out: Tensors = {}
    for name, value in tensors.items():
        if value.ndim < 2 or layer_of(name) is None:
            out[name] = value
            continue
        out[name] = np.where(np.abs(value) < np.quantile(np.abs(value), share), 0, value)
    return out


def prune_structure(config: Config, tensors: Tensors, share: float) -> Attacked:
    """Drop the weakest `share` of FFN units (or experts) and a key-value group or two."""
    out = dict(tensors)
    size = head_size(config)
    groups, heads = int(config["num_key_value_heads"]), int(config["num_attention_heads"])
    per_group = heads // groups
    # Transformers wants the width to be a multiple of the number of heads.
    left = next(n for n in range(groups - 1, 0, -1) if config["hidden_size"] % (n * per_group) == 0)
    config = dict(config)
    for layer in range(config["num_hidden_layers"]):
        experts = experts_of(config)
        if experts:
            router = out[f"model.layers.{layer}.mlp.gate.weight"]
            keep = np.sort(np.argsort(-np.linalg.norm(router, axis=1))[: experts - experts // 4])
            take_experts(out, layer, keep)
        else:
            for prefix in ffn_prefixes(out, layer):
                power = np.linalg.norm(out[prefix + "up_proj.weight"], axis=1)
                power *= np.linalg.norm(out[prefix + "down_proj.weight"], axis=0)
                count = round(len(power) * (1 - share) / 32) * 32
                take_units(out, prefix, np.sort(np.argsort(-power)[:count]))
                config["intermediate_size"] = count
        values = out[f"model.layers.{layer}.self_attn.v_proj.weight"].reshape(groups, -1)
        kept = np.sort(np.argsort(-np.linalg.norm(values, axis=1))[:left])
        rows = (kept[:, None] * per_group + np.arange(per_group)).ravel()
        take_heads(out, layer, rows, kept, size)
    if experts := experts_of(config):
        config.pop("num_local_experts", None)
        config["num_experts"] = experts - experts // 4
    config |= {
        "num_key_value_heads": left,
        "num_attention_heads": left * per_group,
        "head_dim": size,
    }
    return config, out


def change_depth(config: Config, tensors: Tensors, layers: Sequence[int]) -> Attacked:
    """A model whose layer i is the old layer `layers[i]`: dropped or repeated."""
    out = {name: value for name, value in tensors.items() if layer_of(name) is None}
    for new, old in enumerate(layers):
        prefix = f"model.layers.{old}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                out[f"model.layers.{new}.{name.removeprefix(prefix)}"] = value.copy()
    config = config | {"num_hidden_layers": len(layers)}
    config.pop("layer_types", None)
    return config, out


def expand_vocabulary(config: Config, tensors: Tensors, more: int, random: Random) -> Attacked:
    """`more` new rows, each the mean embedding with noise, as resizing tools do."""
    out = dict(tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in out:
            old = out[name]
            jitter = 0.1 * old.std() * random.standard_normal((more, old.shape[1]))
            out[name] = np.concatenate([old, (old.mean(0) + jitter).astype(np.float32)])
    return config | {"vocab_size": config["vocab_size"] + more}, out
