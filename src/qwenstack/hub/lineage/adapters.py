"""Whose adapter is this: the base of a low-rank update, told without the base's own weights in it.

LoRA's B matrices start at zero, so all that is in them came back through the base during training.
What comes back to a matrix that writes into the residual stream has passed the output table; to
the values, the output projection; to the up projection, the down projection. Each of those passes
some directions on more than others, and the update lies along them: several times more of its
energy than chance would put there, if it is the right base, and just chance's share if it is a
stranger of the same shape. A's rows start at random and turn towards the inputs that the base
gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from qwenstack.hub.lineage.fingerprint import finite
from qwenstack.hub.lineage.library import Library
from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.roles import Roles
from qwenstack.hub.lineage.tensors import Floats, Tensor

RELATED_MIN: Final = 0.6
CLOSE_SHARE: Final = 0.8  # candidates this near to the best are of one family
_NAME: Final = re.compile(r"layers\.(\d+)\.(.+?)\.lora_([AB])(?:\.\w+)?\.weight$")
_ROLE: Final = re.compile(r"(q|k|v|o|gate|up|down)_proj$")
_TOKENS: Final = 4096
_LAYERS_MAX: Final = 8
_DENSE_FLOATS_MAX: Final = 1 << 27
_HEAD_SIZES: Final = (64, 128, 16, 32, 96, 256)

Modules = dict[tuple[int, str], dict[str, Floats]]


class Fit(msgspec.Struct, frozen=True):
    """A candidate base. `score` is the mean logarithm of energy over chance: 0 for a stranger."""

    name: str
    score: float


def modules(model: Model) -> Modules:
    """The adapter's matrices by layer and role: `A` (rank, inputs) and `B` (outputs, rank)."""
    out: Modules = {}
    for tensor in model.tensors:
        found = _NAME.search(tensor.name)
        role = _ROLE.search(found[2]) if found else None
        if found and role:
            place = out.setdefault((int(found[1]), role[1]), {})
            place[found[3]] = _whole(tensor)
    return out


def fit_all(model: Model, library: Library) -> list[Fit]:
    """The candidates that have the adapter's shapes, the best first."""
    parts = modules(model)
    found: list[Fit] = []
    for name in library.names:
        sampled = library.sampled(name) if name != model.name else None
        score = fit(parts, sampled.model.roles) if sampled is not None else None
        if score is not None:
            found.append(Fit(name, score))
    return sorted(found, key=lambda one: -one.score)


def names(declared: str, candidate: str) -> bool:
    """Whether a declared base is this candidate, by its last words."""
    mine, theirs = declared.strip("/").lower(), candidate.strip("/").lower()
    return mine == theirs or theirs.endswith("/" + mine) or mine.endswith("/" + theirs)


def fit(parts: Modules, base: Roles) -> float | None:
    """How well the updates lie in a base; None where its shapes are others."""
    table = base.head if base.head is not None else base.embed
    if table is None or base.embed is None or not parts:
        return None
    for (layer, role), pair in parts.items():
        tensor = base.layers[layer].get(role) if layer < len(base.layers) else None
        if tensor is None or not {"A", "B"} <= set(pair):
            return None
        if (pair["B"].shape[0], pair["A"].shape[1]) != tensor.shape:
            return None
    outputs = _centred(table)
    inputs = outputs if base.head is None else _centred(base.embed)
    layers = sorted({layer for layer, _ in parts})
    if len(layers) > _LAYERS_MAX:
        layers = [layers[at] for at in np.linspace(0, len(layers) - 1, _LAYERS_MAX).astype(int)]
    by_kind: dict[str, list[float]] = {}
    for (layer, role), pair in parts.items():
        if layer in layers:
            for kind, value in _energies(base.layers[layer], role, pair, inputs, outputs):
                by_kind.setdefault(kind, []).append(value)
    if not by_kind:
        return None
    means = [max(float(np.mean(values)), 1e-6) for values in by_kind.values()]
    return float(np.mean(np.log(means)))


def _energies(
    layer: dict[str, Tensor], role: str, pair: dict[str, Floats], inputs: Floats, outputs: Floats
) -> Iterator[tuple[str, float]]:
    """What share of an update's energy the base passes on, over chance's."""
    b = pair["B"]
    if not b.any():
        return
    if role in ("o", "down"):
        yield f"{role}: outputs", _energy(outputs, b)
    elif role == "up" and "down" in layer:
        yield "up: down", _energy(_whole(layer["down"]), b)
    elif role == "v" and "o" in layer:
        yield "v: o", max(_through_heads(_whole(layer["o"]), b), default=1.0)
    if role in ("v", "up", "gate"):
        norm = layer.get("attn_norm" if role == "v" else "ffn_norm")
        scaled = inputs if norm is None else inputs * finite(norm.rows(0, 1))
        yield f"{role}: inputs", _energy(scaled, pair["A"].T)


def _through_heads(o: Floats, b: Floats) -> Iterator[float]:
    """The values of each group go to several heads; the size of a head is tried."""
    if o.shape[1] == len(b):
        yield _energy(o, b)
        return
    each = o.shape[1] // max(len(b), 1)
    for size in _HEAD_SIZES:
        if len(b) % size == 0 and each * len(b) == o.shape[1]:
            heads = np.repeat(b.reshape(-1, size, b.shape[1]), each, axis=0)
            yield _energy(o, heads.reshape(o.shape[1], -1))


def _energy(passes: Floats, update: Floats) -> float:
    """Energy of `passes @ update` over what directions at random would have: 1 by chance."""
    seen = passes @ update
    chance = float((update * update).sum()) * float((passes * passes).sum()) / passes.shape[1]
    found: float = float(np.vdot(seen, seen)) / max(chance, 1e-30)
    return found


def _centred(table: Tensor) -> Floats:
    rows = finite(table.rows(0, min(table.shape[0], _TOKENS)))
    return np.asarray(rows - rows.mean(axis=0), np.float32)


def _whole(tensor: Tensor) -> Floats:
    rows = min(tensor.shape[0], max(1, _DENSE_FLOATS_MAX // tensor.shape[1]))
    return finite(tensor.rows(0, rows))
