"""What was done to a parent to make its child: the relation, read off a comparison."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from qwenstack.hub.lineage.compare import Comparison, Sampled
from qwenstack.hub.lineage.family import ZEROS_MIN

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
_ZEROED_MIN: Final = 0.01
_ALL: Final = 0.995
_STEP_MIN: Final = 4.0
_REST_MAX: Final = 0.2  # of the energy, behind the step
_SIDE_MAX: Final = 256


def relation_of(child: Sampled, parent: Sampled, pair: Comparison, *, same: bool) -> Relation:
    """The relation of a child to the parent that it was found to have (merges are told apart)."""
    if same:
        return "same weights"
    coarse, coarse_parent = child.model.quantised, parent.model.quantised
    if coarse and (not coarse_parent or child.model.storage != parent.model.storage):
        return "quantization"
    if child.print.depth != parent.print.depth:
        return "depth-changed"
    if child.print.vocabulary > parent.print.vocabulary:
        return "expanded vocabulary"
    if narrower(child, parent) or _zeroed(pair) or _cut(child, parent, pair):
        return "pruned"
    if added_rank(child, parent, pair) is not None:
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


def _cut(child: Sampled, parent: Sampled, pair: Comparison) -> bool:
    """Whether only tokens were taken away."""
    changes = [change.change for layer in pair.layers for change in layer.changes.values()]
    return child.print.vocabulary < parent.print.vocabulary and max(changes, default=1.0) < 1e-6


def _zeroed(pair: Comparison) -> bool:
    """Whether weights were set to zero: many, or some and nothing else was changed."""
    added = zeros_added(pair)
    if added > ZEROS_MIN:
        return True
    changes = [change for layer in pair.layers for change in layer.changes.values()]
    kept = float(np.mean([change.equal for change in changes] or [0.0]))
    return added > _ZEROED_MIN and kept + added > _ALL


def zeros_added(pair: Comparison) -> float:
    """How much more of the child's matrices is zero than of the parent's."""
    added = [
        change.zeros - change.parent_zeros
        for layer in pair.layers
        for change in layer.changes.values()
    ]
    return float(np.mean(added)) if added else 0.0


def added_rank(child: Sampled, parent: Sampled, pair: Comparison) -> int | None:
    """The rank of what was added to the parent's matrices, None where it has no sharp one.

    A merged adapter of rank r leaves r large singular values, then those of the rounding, many
    times smaller. Training all weights leaves a spectrum without such a step.
    """
    if pair.units_moved:
        return None
    found: list[tuple[float, int]] = []
    for layer in pair.layers:
        for role, change in layer.changes.items():
            a, b = child.take(layer.layer, role), parent.take(layer.parent_layer, role)
            if a is None or b is None or change.change < 1e-5:
                continue
            values = np.linalg.svd((a - b)[:_SIDE_MAX, :1024], compute_uv=False)
            half = values[: len(values) // 2 + 1]
            steps = half[:-1] / np.maximum(half[1:], 1e-12)
            rank = int(steps.argmax()) + 1 if len(steps) else 0
            rest = float((values[rank:] ** 2).sum() / max(float((values**2).sum()), 1e-30))
            if rank:
                found.append((float(steps.max()) if rest < _REST_MAX else 1.0, rank))
    if not found or float(np.median([step for step, _ in found])) < _STEP_MIN:
        return None
    return int(np.median([rank for _, rank in found]))
