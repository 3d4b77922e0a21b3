"""Whether a model is a mixture of two others of its family.

A linear or spherical merge lies on the line between its parents; what is left of it besides them
is rounding. Merging with trimming and sign election (TIES, arXiv 2306.01708) does so only weight
by weight: there, where both parents moved, the merge is one's value, the other's, or their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qwenstack.hub.lineage.arborescence import is_below, root_of
from qwenstack.hub.lineage.compare import ROLES, Sampled
from qwenstack.hub.lineage.family import Family
from qwenstack.hub.lineage.tensors import Floats

_LEFT_MAX: Final = 0.35  # of the distance to the nearer parent
_MATCHED_MIN: Final = 0.8
_ULP: Final = 2.0**-7  # of bfloat16, with room for one rounding on each side
_MERGE_CANDIDATES: Final = 12
_UNCHANGED_MAX: Final = 1e-6
_ELEMENTS_MAX: Final = 1 << 21


@dataclass(frozen=True)
class Mixture:
    """`share` of the second parent; `left` is what neither explains, against the nearer one."""

    share: float
    left: float
    form: str


def vector(member: Sampled) -> Floats:
    """All sampled weights of the layers in one row."""
    pieces = [
        rows.ravel()
        for layer in range(member.print.depth)
        for role in ROLES
        if (rows := member.take(layer, role)) is not None
    ]
    return np.concatenate(pieces)[:_ELEMENTS_MAX] if pieces else np.zeros(0, np.float32)


def mixture(child: Floats, one: Floats, other: Floats, apart: float) -> Mixture | None:
    """The child as a point on the line through two models, or None where it is far from it.

    `apart` is the square of the child's distance to the nearest model of all.
    """
    if not child.shape == one.shape == other.shape or not len(child):
        return None
    along = other - one
    span = float(along @ along)
    if span <= 0:
        return None
    offset = child - one
    share = float(offset @ along) / span
    if not 0.05 < share < 0.95:
        return None
    rest = offset - np.float32(share) * along
    left = (float(rest @ rest) / max(apart, 1e-30)) ** 0.5
    return Mixture(share, left, "linear") if left < _LEFT_MAX else None


def sum_of_steps(
    child: Floats, origin: Floats, one: Floats, other: Floats, apart: float
) -> Mixture | None:
    """The child as the origin with some of the steps to two models made from it (task arithmetic,
    arXiv 2212.04089), or None.
    """
    if not child.shape == one.shape == other.shape == origin.shape or not len(child):
        return None
    a, b, moved = one - origin, other - origin, child - origin
    grams = np.array([[a @ a, a @ b], [a @ b, b @ b]], np.float64)
    if np.linalg.det(grams) <= 1e-4 * grams[0, 0] * grams[1, 1]:
        return None
    shares = np.linalg.solve(grams, np.array([moved @ a, moved @ b], np.float64))
    if shares.min() < 0.05 or shares.max() > 2:
        return None
    rest = moved - np.float32(shares[0]) * a - np.float32(shares[1]) * b
    left = (float(rest @ rest) / max(apart, 1e-30)) ** 0.5
    share = float(shares[1] / shares.sum())
    return Mixture(share, left, "task arithmetic") if left < _LEFT_MAX else None


def elementwise(child: Floats, origin: Floats, one: Floats, other: Floats) -> Mixture | None:
    """The child as each weight's choice between the origin, two models made from it, their mean."""
    if not child.shape == one.shape == other.shape == origin.shape or not len(child):
        return None
    room = np.abs(child) * np.float32(_ULP)
    near_one, near_other = np.abs(child - one) <= room, np.abs(child - other) <= room
    near = near_one | near_other | (np.abs(child - origin) <= room)
    near |= np.abs(child - (one + other) / 2) <= room
    told = np.abs(one - other) > 2 * room  # where the choice can be seen at all
    if float(told.mean()) < 0.05 or float(near[told].mean()) < _MATCHED_MIN:
        return None
    mine, theirs = float(near_one[told].mean()), float(near_other[told].mean())
    if min(mine, theirs) < 0.02:
        return None
    left = 1.0 - float(near[told].mean())
    return Mixture(theirs / max(mine + theirs, 1e-9), left, "weight by weight")


def merge_of(family: Family, tree: list[int]) -> tuple[int, int, Mixture] | None:
    """The two members that the subject is a mixture of, the nearer first."""
    if family.members[0].model.quantised:
        return None
    places = [
        place
        for place in range(1, len(tree))
        if not family.between(0, place).units_moved
        and not family.members[place].model.quantised
        and not family.same(0, place)
        and (tree[place] < 0 or not family.same(place, tree[place]))
    ]
    places = sorted(places, key=lambda place: family.distance(0, place))[:_MERGE_CANDIDATES]
    layers = _layer_by_layer(family, places)
    if layers is not None:
        return layers
    origin = root_of(tree, 0)
    wanted = {0, *places, origin, tree[0]}
    vectors: dict[int, Floats] = {
        place: vector(family.members[place])
        for place in wanted
        if not family.members[place].model.quantised
    }
    others = [vectors[place] for place in vectors if place and len(vectors[place])]
    apart = min(
        (float(((vectors[0] - one) ** 2).sum()) for one in others if one.shape == vectors[0].shape),
        default=0.0,
    )
    if apart <= _UNCHANGED_MAX * float((vectors[0] ** 2).sum()):
        return None  # one of them explains it alone
    best: tuple[int, int, Mixture] | None = None
    for at, one in enumerate(places):
        for other in places[at + 1 :]:
            found = mixture(vectors[0], vectors[one], vectors[other], apart)
            for start in {origin, tree[0]} - {one, other}:
                made = all(_made(tree, at, start) for at in (one, other))
                if found is None and made and start in vectors:
                    steps = vectors[0], vectors[start], vectors[one], vectors[other]
                    found = elementwise(*steps) or sum_of_steps(*steps, apart)
            if found is not None and (best is None or found.left < best[2].left):
                best = (one, other, found)
    return best


def _made(tree: list[int], place: int, origin: int) -> bool:
    """Whether a member was made from `origin` and not through the subject."""
    return is_below(tree, place, origin) and not is_below(tree, place, 0)


def _layer_by_layer(family: Family, places: list[int]) -> tuple[int, int, Mixture] | None:
    """Two members that each of the subject's layers is unchanged in one of, but not all in one."""
    depth = family.members[0].depth
    changed = np.full((len(places), depth), np.inf)
    for row, place in enumerate(places):
        for pair in family.between(0, place).layers:
            if pair.layer == pair.parent_layer and pair.changes:
                changed[row, pair.layer] = max(one.change for one in pair.changes.values())
    if not len(places) or depth < 2 or changed.min(axis=0).max() > _UNCHANGED_MAX:
        return None
    held = changed <= _UNCHANGED_MAX
    if held.all(axis=1).any():
        return None
    first = int(held.sum(axis=1).argmax())
    second = int((held & ~held[first]).sum(axis=1).argmax())
    share = float((held[second] & ~held[first]).sum()) / depth
    return places[first], places[second], Mixture(share, 0.0, "layer by layer")
