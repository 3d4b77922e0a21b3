"""Whether a model went through another one on its way from a common ancestor.

Two children of one parent that saw alike text move the same way, so that a child may lie nearer
to its sibling than to its parent, and distances alone mistake the sibling for the parent. But a
model that comes from the sibling has *all* of what happened to it, also what no other training
would repeat: the sibling's step without its strongest directions. The share of that remainder
which a model holds is 1 for descendants, 0 for siblings, and between for merges.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from qwenstack.hub.lineage.compare import ROLES, Sampled
from qwenstack.hub.lineage.tensors import Floats

_COMMON_SHARE: Final = 0.5  # of the directions of a step, the strongest, which training repeats
_SIDE_MAX: Final = 160
_LAYERS_MAX: Final = 8
_ERROR_MAX: Final = 0.2  # standard error of the share, above which nothing is said
DESCENDS_MIN: Final = 0.8


def inherited(model: Sampled, through: Sampled, origin: Sampled) -> float | None:
    """The share of the step from `origin` to `through` that `model` holds; None if unknowable.

    All three must lie in one basis; the median over matrices.
    """
    shares: list[float] = []
    weights: list[float] = []
    depth = min(member.print.depth for member in (model, through, origin))
    for layer in np.unique(np.linspace(0, depth - 1, min(depth, _LAYERS_MAX)).astype(int)).tolist():
        for role in ROLES:
            x, s, b = (member.take(layer, role) for member in (model, through, origin))
            if x is None or s is None or b is None or not x.shape == s.shape == b.shape:
                continue
            step = (s - b)[:_SIDE_MAX, :1024]
            rest = _remainder(step)
            energy = float((rest * rest).sum())
            if energy <= 1e-6 * float((step * step).sum()) or energy <= 0:
                continue
            moved = (x - b)[:_SIDE_MAX, :1024]
            shares.append(float((moved * rest).sum()) / energy)
            weights.append(step.size * energy / max(float((moved * moved).sum()), energy))
    if not shares or sum(weights) ** -0.5 > _ERROR_MAX:
        return None
    return _weighted_median(np.array(shares), np.array(weights))


def _remainder(step: Floats) -> Floats:
    """The step without its strongest directions, found on its shorter side."""
    tall = step.shape[0] > step.shape[1]
    side = step.T if tall else step
    gram = side @ side.T
    if not np.isfinite(gram).all() or not gram.any():
        return step
    _, vectors = np.linalg.eigh(gram)
    top = vectors[:, -max(1, int(len(gram) * _COMMON_SHARE)) :]
    rest = side - top @ (top.T @ side)
    return np.asarray(rest.T if tall else rest, np.float32)


def _weighted_median(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][int(np.searchsorted(total, total[-1] / 2))])
