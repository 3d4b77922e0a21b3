"""What was done to a parent to make its child: the relation, read off a comparison."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from qwenstack.hub.lineage.compare import Comparison, Sampled
from qwenstack.hub.lineage.tensors import Floats

Relation = Literal[
    "same weights",
    "quantization",
    "fine-tune",
    "adapter",
    "merge",
    "pruned",
    "depth-changed",
    "expanded vocabulary",
    "continued pre-training",
    "distilled",
    "unrelated",
]

# A full fine-tune of the bench moves 2 to 15 % of a model, continued pre-training more.
CONTINUED_MIN: Final = 0.2
_ZEROS_MIN: Final = 0.05
_RANK_ENERGY: Final = 0.98
_RANK_SHARE_MAX: Final = 0.35


def relation_of(child: Sampled, parent: Sampled, pair: Comparison, *, same: bool) -> Relation:
    """The relation of a child to the parent that it was found to have (merges are told apart)."""
    coarse, coarse_parent = child.model.quantised, parent.model.quantised
    if coarse and (not coarse_parent or child.model.storage != parent.model.storage):
        return "quantization"
    if same:
        return "same weights"
    if child.print.depth != parent.print.depth:
        return "depth-changed"
    if child.print.vocabulary > parent.print.vocabulary:
        return "expanded vocabulary"
    if narrower(child, parent) or zeros_added(pair) > _ZEROS_MIN:
        return "pruned"
    if low_rank(child, parent, pair):
        return "adapter"
    return "continued pre-training" if pair.distance > CONTINUED_MIN else "fine-tune"


def narrower(child: Sampled, parent: Sampled) -> bool:
    """Whether the child has fewer units, heads or channels in its layers."""
    if child.print.hidden < parent.print.hidden:
        return True
    layers = zip(child.model.roles.layers, parent.model.roles.layers, strict=False)
    return any(
        mine[role].shape[0] < theirs[role].shape[0]
        for mine, theirs in layers
        for role in ("q", "k", "gate")
        if role in mine and role in theirs
    )


def zeros_added(pair: Comparison) -> float:
    """How much more of the child's matrices is zero than of the parent's."""
    added = [
        change.zeros - change.parent_zeros
        for layer in pair.layers
        for change in layer.changes.values()
    ]
    return float(np.mean(added)) if added else 0.0


def low_rank(child: Sampled, parent: Sampled, pair: Comparison) -> bool:
    """Whether what was added to the parent's matrices is of low rank, as a merged adapter's is.

    Rounding to a short type adds noise of full rank: so the rank that explains nearly all of the
    difference is asked for, in matrices whose difference stands above the rounding.
    """
    if pair.units_moved:
        return False
    shares: list[float] = []
    for layer in pair.layers:
        for role, change in layer.changes.items():
            a, b = child.take(layer.layer, role), parent.take(layer.parent_layer, role)
            if a is None or b is None or change.change < 1e-5:
                continue
            shares.append(_rank_share(a - b))
    untouched = [c.equal > 0.9 for layer in pair.layers for c in layer.changes.values()]
    if not shares:
        return False
    return float(np.median(shares)) < _RANK_SHARE_MAX or float(np.mean(untouched)) > 0.2


def _rank_share(delta: Floats) -> float:
    """The share of singular directions that hold nearly all of the difference."""
    values = np.linalg.svd(delta[:256, :1024], compute_uv=False) ** 2
    total = np.cumsum(values) / max(float(values.sum()), 1e-30)
    return (int(np.searchsorted(total, _RANK_ENERGY)) + 1) / len(values)
