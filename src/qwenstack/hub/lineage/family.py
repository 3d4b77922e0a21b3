"""Who in a family is whose child: direction of each pair, copies, and the tree.

Distances say who is near; they don't say who came first. That is told by what cannot be undone
(rounding, pruning, a longer vocabulary, repeated layers, a disguise) and, between full-precision
models of one shape, by the weights' size: training with AdamW keeps adding to the feed-forward
matrices. MoTHer (arXiv 2405.18432) uses weights' kurtosis for the same purpose.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qwenstack.hub.lineage.arborescence import parents_of
from qwenstack.hub.lineage.compare import Comparison, Sampled, compare
from qwenstack.hub.lineage.rounding import lossless_storage, rounds_to
from qwenstack.hub.lineage.tensors import FULL_PRECISION

_HARD: Final = 8.0  # log-odds of what cannot be undone
_SOFT: Final = 3.0
_SAME_EQUAL_MIN: Final = 0.999
_SAME_MOVED_MAX: Final = 0.004  # distance: rounding to bfloat16 after a disguise leaves 0.002
_FFN: Final = ("gate", "up", "down")
_ROOT_COST: Final = 12.0


@dataclass
class Family:
    """Models that share an origin, under different names; each pair is compared once.

    `known` holds the comparisons made, by name, and may be shared between families.
    """

    members: list[Sampled]
    known: dict[tuple[str, str], Comparison] = field(default_factory=dict)

    def between(self, child: int, parent: int) -> Comparison:
        """The comparison of two members, by their places."""
        a, b = self.members[child], self.members[parent]
        key = a.model.name, b.model.name
        if key not in self.known:
            self.known[key] = compare(a, b)
        return self.known[key]

    def distance(self, one: int, other: int) -> float:
        """How far apart two members are, from the nearer of both views."""
        return min(self.between(one, other).distance, self.between(other, one).distance)

    def same(self, one: int, other: int) -> bool:
        """Whether two members are the same weights, perhaps stored or arranged differently."""
        a, b = self.members[one], self.members[other]
        if _shape(a) != _shape(b) or a.model.quantised or b.model.quantised:
            return False
        pair = self.between(one, other)
        if pair.units_moved:
            return pair.distance < _SAME_MOVED_MAX
        equal = _equal(pair)
        return equal >= _SAME_EQUAL_MIN or rounds_to(a, b) or rounds_to(b, a)

    def parents(self) -> list[int]:
        """For each member the place of its parent, -1 for none."""
        originals = self._originals()
        leaders = sorted(set(originals))
        costs = np.full((len(leaders), len(leaders)), np.inf)
        for (p, parent), (c, child) in itertools.product(enumerate(leaders), repeat=2):
            if parent != child and self.between(child, parent).related:
                costs[p, c] = self._cost(child, parent)
        tree = parents_of(costs, _ROOT_COST)
        up = {leaders[c]: leaders[p] if p >= 0 else -1 for c, p in enumerate(tree)}
        return [
            up[place] if originals[place] == place else originals[place]
            for place in range(len(self.members))
        ]

    def _originals(self) -> list[int]:
        """Each member's original among those of the same weights: itself, mostly."""
        count = len(self.members)
        group = list(range(count))
        for one, other in itertools.combinations(range(count), 2):
            if group[one] != group[other] and self.same(one, other):
                old = group[other]
                group = [group[one] if value == old else value for value in group]
        out = list(range(count))
        for leader in set(group):
            places = [place for place in range(count) if group[place] == leader]
            first = min(places, key=self._unoriginal)
            for place in places:
                out[place] = first
        return out

    def _unoriginal(self, place: int) -> tuple[int, int, int, int, int]:
        """Orders copies: what was disguised, renamed, or stored wider than needed comes later."""
        member = self.members[place]
        others = [other for other in range(len(self.members)) if other != place]
        moved = sum(self.between(place, other).units_moved for other in others)
        wide = member.model.storage != lossless_storage(member)
        is_gguf = any(t.name.startswith("blk.") for t in member.model.tensors[:64])
        return moved, is_gguf, member.model.renamed, wide, place

    def _cost(self, child: int, parent: int) -> float:
        """Grows with the distance, and with what speaks for the other direction."""
        distance = max(self.distance(child, parent), 1e-5)
        odds = direction(self.members[child], self.members[parent], self.between(child, parent))
        return float(np.log(distance / 1e-5) + np.logaddexp(0.0, -odds))


def direction(child: Sampled, parent: Sampled, pair: Comparison) -> float:
    """The log-odds that, of two related models, `child` is indeed the later one."""
    odds = 0.0
    for mine, theirs in (
        (_coarseness(child), _coarseness(parent)),
        (child.print.vocabulary, parent.print.vocabulary),
        (parent.print.hidden, child.print.hidden),
        (_width(parent), _width(child)),
        (_depth_edits(child, pair), 0),
    ):
        odds += _HARD * float(np.sign(mine - theirs))
    zeros = np.mean(
        [c.zeros - c.parent_zeros for p in pair.layers for c in p.changes.values()] or [0]
    )
    if abs(zeros) > 0.05:
        odds += _HARD * float(np.sign(zeros))
    if not pair.units_moved and child.print.depth == parent.print.depth:
        gains = [c.gain for p in pair.layers for r, c in p.changes.items() if r in _FFN]
        if gains:
            odds += float(np.clip(np.log(np.mean(gains)) / 0.002, -_SOFT, _SOFT))
    return odds


def _coarseness(member: Sampled) -> int:
    return 0 if member.model.storage in FULL_PRECISION else 1


def _width(member: Sampled) -> int:
    layers = member.model.roles.layers
    return sum(
        layer[role].shape[0] for layer in layers[:1] for role in ("q", "gate") if role in layer
    )


def _depth_edits(child: Sampled, pair: Comparison) -> int:
    """1 where the child dropped or repeated layers of the parent, -1 the other way round."""
    mine, theirs = child.print.depth, len(pair.layer_map) and pair.parent_depth
    if mine == theirs:
        return 0
    used = [layer for layer in pair.layer_map if layer >= 0]
    if mine > theirs:
        return 1 if len(set(used)) < len(used) else -1
    return 1


def _shape(member: Sampled) -> tuple[int, ...]:
    print_ = member.print
    return print_.vocabulary, print_.hidden, print_.depth, _width(member)


def _equal(pair: Comparison) -> float:
    values = [change.equal for layer in pair.layers for change in layer.changes.values()]
    if pair.table is not None:
        values.append(pair.table.equal)
    return float(np.mean(values)) if values else 0.0
