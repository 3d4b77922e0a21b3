"""Whose adapter is this: the base of a low-rank update, told without the base's own weights in it.

LoRA's B matrices start at zero, so all that is in them came back through the base during training.
What comes back to the queries of a head is made of the keys that it saw, to the keys of its
queries, to the values of what the output projection passes on; what comes back to a matrix that
writes into the residual stream has passed the output table. So the second moment of an update is
like that of what the base sends there, and for a stranger of the same shape it is not. Both are
compared without their mean (centred kernel alignment, Cortes et al., JMLR 2012): how much a model
sends somewhere says how long it was trained, not whose adapter it is.
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
from qwenstack.hub.lineage.tensors import Floats, Tensor, UnreadableModel

CLOSE_SHARE: Final = 0.7  # candidates this near to the best are not told from it
_NAME: Final = re.compile(r"layers\.(\d{1,5})\.(.+?)\.lora_([AB])(?:\.\w+)?\.weight$")
_ROLE: Final = re.compile(r"(q|k|v|o|gate|up|down)_proj$")
_TOKENS: Final = 4096
_SEEN: Final = 512  # rows of what a base sends somewhere
_ATTENTION: Final = frozenset({"q", "k", "v"})
_LAYERS_MAX: Final = 8
_DENSE_FLOATS_MAX: Final = 1 << 27
_UPDATE_FLOATS_MAX: Final = 1 << 24
_HEAD_SIZES: Final = (64, 128, 8, 12, 16, 32, 96, 256)


class Update(msgspec.Struct, frozen=True):
    """A low-rank update of one matrix, of `shape`. `b` (outputs, rank) is there for some layers."""

    shape: tuple[int, int]
    b: Floats | None


Modules = dict[tuple[int, str], Update]


class Fit(msgspec.Struct, frozen=True):
    """A candidate base. `score` is the mean alignment: about 0 for a stranger, at most 1."""

    name: str
    score: float


def modules(model: Model) -> Modules:
    """The adapter's updates by layer and role; none where a matrix of a pair is missing.

    Raises UnreadableModel for a matrix that is too large for a low-rank update.
    """
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for tensor in model.tensors:
        found = _NAME.search(tensor.name)
        role = _ROLE.search(found[2]) if found else None
        if found and role:
            pairs.setdefault((int(found[1]), role[1]), {})[found[3]] = tensor
    if any(set(pair) != {"A", "B"} for pair in pairs.values()):
        return {}
    layers = sorted({layer for layer, _ in pairs})
    if len(layers) > _LAYERS_MAX:
        layers = [layers[at] for at in np.linspace(0, len(layers) - 1, _LAYERS_MAX).astype(int)]
    return {
        (layer, role): Update(
            (pair["B"].shape[0], pair["A"].shape[1]),
            _columns(pair["B"]) if layer in layers else None,
        )
        for (layer, role), pair in pairs.items()
    }


def _columns(b: Tensor) -> Floats:
    """The update's columns, the first ones of more than it takes to tell."""
    outputs, rank = b.shape
    if outputs * rank > _DENSE_FLOATS_MAX:
        raise UnreadableModel(f"{b.name} has {outputs} rows of {rank}: no low-rank update")
    count = max(1, _UPDATE_FLOATS_MAX // outputs)
    whole = finite(b.rows(0, outputs))
    return whole if rank <= count else whole[:, :count].copy()


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
    for (layer, role), update in parts.items():
        tensor = base.layers[layer].get(role) if layer < len(base.layers) else None
        if tensor is None or update.shape != tensor.shape:
            return None
    outputs = _centred(table)
    inputs = outputs if base.head is None else _centred(base.embed)
    by_role: dict[str, list[float]] = {}
    for (layer, role), update in parts.items():
        if update.b is not None and update.b.any():
            value = _alignment_of(base.layers[layer], role, update.b, inputs, outputs)
            if value is not None:
                by_role.setdefault(role, []).append(value)
    # Attention's updates tell strangers apart without fail, the others mostly.
    roles = [role for role in by_role if role in _ATTENTION] or list(by_role)
    if not roles:
        return 0.0
    return float(np.mean([np.mean(by_role[role]) for role in roles]))


def _alignment_of(
    layer: dict[str, Tensor], role: str, b: Floats, inputs: Floats, outputs: Floats
) -> float | None:
    """How like an update of one matrix is to what the base sends there; None if unknowable."""
    if role in ("o", "down"):
        return _alignment(outputs, b)
    if role == "up" and "down" in layer:
        return _alignment(_whole(layer["down"]), b)
    if role == "v" and "o" in layer:
        return _best(_heads(_whole(layer["o"]), b, layer))
    other = {"q": "k", "k": "q"}.get(role)
    if other is not None and other in layer:
        norm = layer.get("attn_norm")
        scaled = inputs if norm is None else inputs * finite(norm.rows(0, 1))
        sent = np.asarray(scaled @ _whole(layer[other]).T, np.float32)
        return _best(_heads(sent, b, layer))
    return None


def _best(values: Iterator[float]) -> float | None:
    return max(values, default=None)


def _heads(sent: Floats, b: Floats, layer: dict[str, Tensor]) -> Iterator[float]:
    """The mean alignment of the heads, of which one on either side may serve several on the other.

    The size of a head is what a head's norm says, else each that fits is tried.
    """
    norm = layer.get("q_norm")
    for size in _HEAD_SIZES if norm is None else (norm.shape[1],):
        one, other = len(b) // size, sent.shape[1] // size
        if not one or not other or len(b) % size or sent.shape[1] % size:
            continue
        count = max(one, other)
        if count % one or count % other:
            continue
        found = [
            _alignment(
                sent[:, head * other // count * size :][:, :size],
                b[head * one // count * size :][:size],
            )
            for head in range(count)
        ]
        yield float(np.mean(found))


def _alignment(sent: Floats, update: Floats) -> float:
    """The cosine of two second moments without their means: 0 by chance, 1 for the same."""
    rows, update = _level(sent[:: max(1, len(sent) // _SEEN)]), _level(update)
    width = rows.shape[1]
    across = rows @ update
    one, other = rows @ rows.T if len(rows) < width else rows.T @ rows, update.T @ update
    traces = float(np.trace(one)), float(np.trace(other))
    shared = float(np.vdot(across, across)) - traces[0] * traces[1] / width
    sizes = [
        float(np.vdot(gram, gram)) - trace**2 / width
        for gram, trace in zip((one, other), traces, strict=True)
    ]
    return shared / max(sizes[0] * sizes[1], 1e-60) ** 0.5 if min(sizes) > 0 else 0.0


def _level(values: Floats) -> Floats:
    """The same up to a factor, of which fourth powers can be taken."""
    return values / max(float(np.abs(values).max(initial=0)), 1e-30)


def _centred(table: Tensor) -> Floats:
    count = min(table.shape[0], _TOKENS)
    rows = finite(table.take(np.arange(0, count, max(1, count // _SEEN))))
    return np.asarray(rows - rows.mean(axis=0), np.float32)


def _whole(tensor: Tensor) -> Floats:
    rows = min(tensor.shape[0], max(1, _DENSE_FLOATS_MAX // tensor.shape[1]))
    return finite(tensor.rows(0, rows))
