"""Published ways to tell whether two models are kin, re-implemented for this bench.

Each turns a model into features once and two features into a score; None says that the
method cannot take the model. Facts are from the papers and their public code, named at each
class; nothing is tuned here (thresholds come from the calibration split, in `run.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from benchmarks.lineage.manifest import Entry
from benchmarks.lineage.weights import Array, Config, Tensors

Layers = dict[int, dict[str, Array]]

_EMBEDDING = "model.embed_tokens.weight"


class Baseline(Protocol):
    """A method under test."""

    name: str
    cites: str

    def features(self, entry: Entry, config: Config, tensors: Tensors | None) -> Any:
        """What the method keeps of a model; None when it cannot take it."""

    def score(self, first: Any, second: Any) -> float | None:
        """How close two models are, more is closer; None when it cannot say."""


class TensorCosine:
    """Mean cosine over matrices of equal name and shape: what everybody tries first."""

    name = "tensor cosine"
    cites = "plain"

    def features(self, entry: Entry, config: Config, tensors: Tensors | None) -> Any:
        del entry, config
        if tensors is None:
            return None
        unit = {}
        for name, value in tensors.items():
            if value.ndim == 2:
                unit[name] = (value / max(float(np.linalg.norm(value)), 1e-12)).astype(np.float16)
        return unit

    def score(self, first: Any, second: Any) -> float | None:
        cosines = [
            float(np.vdot(a.astype(np.float32), second[name].astype(np.float32)))
            for name, a in first.items()
            if name in second and second[name].shape == a.shape
        ]
        return float(np.mean(cosines)) if cosines else None


class HuRef:
    """HuRef's invariant terms (arXiv 2312.04828, NeurIPS 2024) and their cosine (ICS).

    For the last two layers X·Wq·Wkᵀ·Xᵀ, X·Wv·Wo·Xᵀ and X·(Wgate∘Wup)·Wdown·Xᵀ over the
    embeddings X of rare tokens, each standardised. The paper takes 4096 tokens; the
    vocabularies here have 2048 or 4096, so 192 of the rarest are taken. Grouped keys and
    values are repeated to the query heads; experts are summed.
    """

    name = "HuRef (ICS)"
    cites = "arXiv 2312.04828"
    tokens = 192

    def __init__(self, rare: dict[int, npt.NDArray[np.intp]]) -> None:
        self._rare = rare

    def features(self, entry: Entry, config: Config, tensors: Tensors | None) -> Any:
        del entry
        if tensors is None or _EMBEDDING not in tensors:
            return None
        layers = _attention(tensors)
        if not layers:
            return None
        x = tensors[_EMBEDDING][self._rare[int(config["vocab_size"])][: self.tokens]]
        size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        terms = []
        for layer in sorted(layers)[-2:]:
            parts = layers[layer]
            heads = parts["q"].shape[0] // parts["k"].shape[0]
            k, v = (np.repeat(parts[p].reshape(-1, size, x.shape[1]), heads, 0) for p in "kv")
            queries, keys = x @ parts["q"].T, x @ k.reshape(-1, x.shape[1]).T
            values, outputs = x @ v.reshape(-1, x.shape[1]).T, x @ parts["o"]
            terms += [queries @ keys.T, values @ outputs.T, _ffn_term(tensors, layer, x)]
        flat = np.stack([(term - term.mean()) / max(float(term.std()), 1e-12) for term in terms])
        return (flat / np.linalg.norm(flat)).astype(np.float16)

    def score(self, first: Any, second: Any) -> float | None:
        if first.shape != second.shape:
            return None
        return float(np.vdot(first.astype(np.float32), second.astype(np.float32)))


def _ffn_term(tensors: Tensors, layer: int, x: Array) -> Array:
    total: Array = np.zeros((len(x), len(x)), dtype=np.float32)
    for name, gate in tensors.items():
        if name.startswith(f"model.layers.{layer}.mlp.") and name.endswith("gate_proj.weight"):
            stem = name.removesuffix("gate_proj.weight")
            product = (gate * tensors[stem + "up_proj.weight"]).T
            total = total + (x @ product) @ (x @ tensors[stem + "down_proj.weight"]).T
    return total


class Awm:
    """AWM (arXiv 2510.06738, ICLR 2026): aligned channels, then unbiased CKA of Wq and Wk.

    The channels of the wider model are matched to the other's by an optimal assignment on the
    absolute cosine of embedding columns over shared tokens, with signs; the scores of both
    matrices are averaged over layers, and layers are matched by assignment when their
    numbers differ.
    """

    name = "AWM"
    cites = "arXiv 2510.06738"

    def features(self, entry: Entry, config: Config, tensors: Tensors | None) -> Any:
        del entry, config
        if tensors is None or _EMBEDDING not in tensors:
            return None
        layers = _attention(tensors)
        if not layers:
            return None
        # Everything that does not depend on the other model is computed once.
        raw = {
            number: [_gram(parts[name].T) for name in "qk"]
            for number, parts in sorted(layers.items())
        }
        ready = [[_centred(gram) for gram in grams] for grams in raw.values()]
        return _unit_columns(tensors[_EMBEDDING]), list(raw.values()), ready

    def score(self, first: Any, second: Any) -> float | None:
        if first[0].shape[1] < second[0].shape[1]:
            first, second = second, first
        rows = min(len(first[0]), len(second[0]))
        similarity = first[0][:rows].T @ second[0][:rows]
        wide, narrow = linear_sum_assignment(-np.abs(similarity))
        order = wide[np.argsort(narrow)]
        signs = np.sign(similarity[order, np.arange(similarity.shape[1])])
        flips = signs[:, None] * signs[None, :]
        left = [
            [_centred(gram[np.ix_(order, order)] * flips) for gram in grams] for grams in first[1]
        ]
        right = second[2]
        if len(left) == len(right):
            return float(np.mean([_cka(a, b) for a, b in zip(left, right, strict=True)]))
        table = np.array([[_cka(one, other) for other in right] for one in left])
        chosen = linear_sum_assignment(-table)
        return float(table[chosen].mean())


def _unit_columns(values: Array) -> Array:
    norms = np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    return np.asarray(values / norms, dtype=np.float32)


def _gram(features: Array) -> Array:
    return np.asarray(features @ features.T, dtype=np.float32)


def _centred(gram: Array) -> Array:
    """A Gram matrix centred so that CKA is unbiased (Song et al. 2012), with norm one."""
    count = len(gram)
    out = gram.copy()
    np.fill_diagonal(out, 0)
    means = out.sum(0, dtype=np.float64) / (count - 2)
    means -= means.sum() / (2 * (count - 1))
    shift = means.astype(np.float32)
    out -= shift[:, None] + shift[None, :]
    np.fill_diagonal(out, 0)
    return np.asarray(out / max(float(np.linalg.norm(out)), 1e-12), dtype=np.float32)


def _cka(first: list[Array], second: list[Array]) -> float:
    return float(np.mean([np.vdot(a, b) for a, b in zip(first, second, strict=True)]))


def _attention(tensors: Tensors) -> Layers:
    """Wq, Wk, Wv and Wo by layer, where the usual names are used."""
    layers: Layers = {}
    for name, value in tensors.items():
        match = re.match(r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight$", name)
        if match:
            layers.setdefault(int(match.group(1)), {})[match.group(2)] = value
    return {number: parts for number, parts in layers.items() if len(parts) == 4}


class Reef:
    """REEF (arXiv 2410.14273, ICLR 2025): linear CKA of representations of the same prompts.

    The paper's setting: last token of 200 prompts, one layer at about 0.56 of the depth (18 of
    32). The prompts here are windows of the bench's own text. It runs the model, so that it
    needs weights that load under their usual names.
    """

    name = "REEF (CKA)"
    cites = "arXiv 2410.14273"
    prompts = 200
    length = 24
    depth = 18 / 32

    def __init__(self, windows: dict[int, npt.NDArray[np.int64]]) -> None:
        self._windows = windows

    def features(self, entry: Entry, config: Config, tensors: Tensors | None) -> Any:
        from benchmarks.lineage import training

        if tensors is None or _EMBEDDING not in tensors:
            return None
        names = [name for name in tensors if name.startswith("model.layers.")]
        count = 1 + max(int(name.split(".")[2]) for name in names)
        rows = len(tensors[_EMBEDDING])
        about = _shaped(config, tensors, count) | {"vocab_size": rows}
        windows = self._windows[int(config["vocab_size"])]
        hidden = training.hidden(about, tensors, windows, round(self.depth * count))
        gram = hidden - hidden.mean(0)
        gram = gram @ gram.T
        return (gram / np.linalg.norm(gram)).astype(np.float32)

    def score(self, first: Any, second: Any) -> float | None:
        return float(np.vdot(first, second))


def _shaped(config: Config, tensors: Tensors, layers: int) -> Config:
    """The family's config with what the tensors themselves say about heads, units and experts."""
    size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    prefix = "model.layers.0."
    about = dict(config)
    about |= {
        "num_hidden_layers": layers,
        "head_dim": size,
        "num_attention_heads": tensors[f"{prefix}self_attn.q_proj.weight"].shape[0] // size,
        "num_key_value_heads": tensors[f"{prefix}self_attn.k_proj.weight"].shape[0] // size,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    if f"{prefix}mlp.gate_proj.weight" in tensors:
        about["intermediate_size"] = tensors[f"{prefix}mlp.gate_proj.weight"].shape[0]
    if f"{prefix}mlp.gate.weight" in tensors:
        about["num_experts"] = tensors[f"{prefix}mlp.gate.weight"].shape[0]
    return about


def rare_tokens(folder: Path, vocabulary: int) -> npt.NDArray[np.intp]:
    """Tokens from the rarest upwards, of those that occur in the bench's text."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for file in sorted(folder.glob(f"*-{vocabulary}.npy")):
        counts += np.bincount(np.load(file), minlength=vocabulary)[:vocabulary]
    order = np.argsort(counts, kind="stable")
    return order[counts[order] > 0]
