"""Whether a model went through another one on its way from a common ancestor.

Two children of one parent that saw alike text move the same way, so that a child may lie nearer
to its sibling than to its parent, and distances alone mistake the sibling for the parent. But a
model that comes from the sibling has *all* of what happened to it, also what no other training
would repeat: the sibling's step without its strongest directions. The share of that remainder
which a model holds is 1 for descendants, 0 for siblings, and between for merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.compare import ROLES, Sampled
from qwenstack.hub.lineage.tensors import Floats

_COMMON_SHARE: Final = 0.4  # of the directions of a step, the strongest, which training repeats
_SIDE_MAX: Final = 128
_COLUMNS_MAX: Final = 1024
_LAYERS_MAX: Final = 4
_PRUNED_MIN: Final = 0.05
_ERROR_MAX: Final = 0.1  # standard error of the share, above which nothing is said
_ROUGH_ERROR_MAX: Final = 0.25
_ROUGH_MAX: Final = 1.35  # of the whole step: a large step later goes on in its direction
_SIBLING_MAX: Final = 0.35  # of a remainder, what siblings hold of it
_SURE: Final = 1.5  # errors
_REST_MIN: Final = 2e-3  # of a step's energy; a merged adapter leaves only rounding behind
# Share of the strongest directions left out, and the least and greatest share of a descendant.
_ASKED: Final = ((0.25, 0.88, 1.15), (_COMMON_SHARE, 0.85, 1.2))


class Taken(Protocol):
    """A model's sampled matrices by layer and role, layers counted as the origin's are."""

    @property
    def depth(self) -> int:
        """How many layers."""
        ...

    def take(self, layer: int, role: str) -> Floats | None:
        """The sample of a matrix, None where there is none."""
        ...


@dataclass(frozen=True)
class Remapped:
    """A model whose layers are counted as its ancestor's: dropped ones are missing."""

    model: Sampled
    layers: tuple[int, ...]

    @property
    def depth(self) -> int:
        """As many as the ancestor has."""
        return len(self.layers)

    def take(self, layer: int, role: str) -> Floats | None:
        """The sample of what has become of the ancestor's layer."""
        return self.model.take(self.layers[layer], role) if self.layers[layer] >= 0 else None


def remapped(model: Sampled, layer_map: tuple[int, ...], depth: int) -> Remapped:
    """The model's layers by the places that `layer_map` says they come from."""
    places = [-1] * depth
    for layer, like in reversed(list(enumerate(layer_map))):
        if 0 <= like < depth:
            places[like] = layer
    return Remapped(model, tuple(places))


def descends(model: Taken, through: Taken, origin: Taken) -> bool | None:
    """Whether `model` holds the whole step from `origin` to `through`; None if unknowable.

    All three must lie in one basis. The share is asked for twice, without few and without many of
    the strongest directions: a sibling that learned the same comes near to 1 in one of them by
    chance, a descendant in both. Where the step has no remainder that could be told from noise,
    the whole step is asked for.
    """
    asked = False
    for common, low, high in _ASKED:
        found = _share(_steps(model, origin, through, origin, common))
        if found is None:
            continue
        share, error = found
        if error > _ERROR_MAX:
            return _roughly(model, through, origin, share, error)
        if not low - error / 2 <= share <= high:
            return False
        asked = True
    if asked:
        return True
    found = _share(_steps(model, origin, through, origin, 0.0))
    if found is None or found[1] > _ERROR_MAX:
        return None
    return _ASKED[0][1] <= found[0] <= _ASKED[0][2]


def _roughly(
    model: Taken, through: Taken, origin: Taken, share: float, error: float
) -> bool | None:
    """The answer where the remainder is told badly, as of a small model that moved far since.

    It has to be nearer to a descendant's than to a sibling's by its error, and the whole step has
    to be there too.
    """
    whole = _share(_steps(model, origin, through, origin, 0.0))
    if whole is None or whole[1] > _ERROR_MAX:
        return None
    low, high = _ASKED[1][1], _ROUGH_MAX
    if not low <= whole[0] <= high or share < _SIBLING_MAX - error:
        return False
    if error > _ROUGH_ERROR_MAX or share < _SIBLING_MAX + _SURE * error:
        return None
    return abs(share - 1) < 2 * error


def order(later: Taken, earlier: Taken, origin: Taken) -> float | None:
    """From 1 for `later` coming after `earlier` to -1 for before it, seen from `origin`.

    What a model learns last is no part of what it knew, so the step between the two, without its
    strongest directions, is at right angles to the earlier one's step from the origin.
    """
    found = _share(_steps(earlier, origin, later, earlier, _COMMON_SHARE))
    if found is None or found[1] > 2 * _ERROR_MAX:
        return None
    return float(np.clip(1 + 2 * found[0], -1.0, 1.0))


def _steps(
    model: Taken, model_from: Taken, through: Taken, through_from: Taken, common: float
) -> Iterator[tuple[float, float, float]]:
    """For each matrix how much a model's step has of another step's remainder.

    Gives the inner product of both, the remainder's energy, and the variance of their quotient.
    """
    members = (model, model_from, through, through_from)
    depth = min(member.depth for member in members)
    for layer in np.unique(np.linspace(0, depth - 1, min(depth, _LAYERS_MAX)).astype(int)).tolist():
        for role in ROLES:
            x, b, s, c = (member.take(layer, role) for member in members)
            if x is None or b is None or s is None or c is None:
                continue
            if not x.shape == b.shape == s.shape == c.shape:
                continue
            step = (s - c)[:_SIDE_MAX, :_COLUMNS_MAX]
            moved = (x - b)[:_SIDE_MAX, :_COLUMNS_MAX]
            rest = _remainder(step, common) if common else step
            gone = x[:_SIDE_MAX, :_COLUMNS_MAX] == 0
            if gone.mean() > _PRUNED_MIN:  # what was set to zero tells nothing of the rest
                moved, rest = np.where(gone, 0, moved), np.where(gone, 0, rest)
            energy = float((rest * rest).sum())
            if energy > (_REST_MIN if common else 0.5) * float((step * step).sum()) > 0:
                noise = max(float((moved * moved).sum()), energy) / step.size
                yield float((moved * rest).sum()), energy, noise / energy


def _share(steps: Iterator[tuple[float, float, float]]) -> tuple[float, float] | None:
    """The median share over matrices, weighted by how exactly each one tells it, and its error."""
    found = np.array(list(steps))
    if not len(found):
        return None
    weights = 1.0 / found[:, 2]
    if not weights.sum() > 0:
        return None
    error = float(weights.sum()) ** -0.5
    return _weighted_median(found[:, 0] / found[:, 1], weights), error


def _remainder(step: Floats, common: float) -> Floats:
    """The step without its strongest directions, found on its shorter side."""
    tall = step.shape[0] > step.shape[1]
    side = step.T if tall else step
    gram = side @ side.T
    if not np.isfinite(gram).all() or not gram.any():
        return step
    _, vectors = np.linalg.eigh(gram)
    top = vectors[:, -max(1, int(len(gram) * common)) :]
    rest = side - top @ (top.T @ side)
    return np.asarray(rest.T if tall else rest, np.float32)


def _weighted_median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][int(np.searchsorted(total, total[-1] / 2))])
