"""Who in a family is whose child: direction of each pair, copies, and the tree.

Distances say who is near; they don't say who came first. That is told by what cannot be undone
(rounding, pruning, a longer vocabulary, repeated layers, a disguise) and, between full-precision
models of one shape, by the weights' size: training with AdamW keeps adding to the feed-forward
matrices. MoTHer (arXiv 2405.18432) uses weights' kurtosis for the same purpose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qwenstack.hub.lineage.arborescence import parents_of
from qwenstack.hub.lineage.compare import Comparison, Sampled, compare
from qwenstack.hub.lineage.fingerprint import finite
from qwenstack.hub.lineage.inheritance import descends, order
from qwenstack.hub.lineage.rounding import lossless_storage, rounds_to, step_share
from qwenstack.hub.lineage.tensors import Stacked

_HARD: Final = 8.0  # log-odds of what cannot be undone
_SOFT: Final = 3.0
_SAME_EQUAL_MIN: Final = 0.999
_SAME_TABLE_MAX: Final = 1e-4
_SAME_MOVED_MAX: Final = 0.004  # distance: rounding to bfloat16 after a disguise leaves 0.002
ZEROS_MIN: Final = 0.15  # more than the numbers that quantising rounds to zero
_FFN: Final = ("gate", "up", "down")
_ROOT_COST: Final = 30.0  # dearer than any edge, so that related models make one tree
_ROUNDED_MIN: Final = 0.2  # steps of the grid; rounding to the nearest errs by 0.29
_DISGUISED: Final = 4.0
_ASKED_PAIR: Final = 3.5  # of a pair, the model asked about is the child, if nothing hard speaks
_ASKED: Final = 0.5
_PUBLISHED: Final = 4.0  # log-odds of having appeared first: more than growth says, less than _HARD
_NEW_SPREAD: Final = 0.25  # of the old rows' size
_NEW_SHARED: Final = 0.3  # of their share in the strongest directions
_OLD_SHARED: Final = 0.45
_ADDED: Final = 0.15  # of _HARD
_COPIED_MIN: Final = 0.95
_NEAREST: Final = 6
_EXACT_MIN: Final = 0.2


@dataclass
class Family:
    """Models that share an origin, under different names; each pair is compared once.

    `known` and `told` hold what was computed, by name, and may be shared between families.
    `published` says when members appeared, in any unit, where that is known. `outside` says that
    the first member, which is asked about, is none of those that it is compared with.
    """

    members: list[Sampled]
    known: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    told: dict[tuple[str, str, str], tuple[float | None, bool | None]] = field(default_factory=dict)
    published: Mapping[str, int] = field(default_factory=dict)
    outside: bool = False

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

    def _told(
        self, child: Sampled, parent: Sampled, root: Sampled
    ) -> tuple[float | None, bool | None]:
        """The order of two seen from the root, and whether the child went through the parent."""
        key = child.model.name, parent.model.name, root.model.name
        if key not in self.told:
            self.told[key] = order(child, parent, root), descends(child, parent, root)
        return self.told[key]

    def same(self, one: int, other: int) -> bool:
        """Whether two members are the same weights, perhaps stored or arranged differently."""
        a, b = self.members[one], self.members[other]
        if _shape(a) != _shape(b):
            return False
        pair = self.between(one, other)
        if pair.units_moved:
            coarse = a.model.quantised or b.model.quantised
            return pair.distance < _SAME_MOVED_MAX and not coarse
        if pair.table is not None and pair.table.change > _SAME_TABLE_MAX:
            return False
        equal = _equal(pair)
        return equal >= _SAME_EQUAL_MIN or rounds_to(a, b) or rounds_to(b, a)

    def parents(self) -> list[int]:
        """For each member the place of its parent, -1 for none.

        The tree is found twice: first to learn the root, then with what the root tells about the
        order of the others (see `inheritance`).
        """
        originals = self._originals()
        leaders = sorted(set(originals))
        copies = {leader: originals.count(leader) - 1 for leader in leaders}
        tree = self._tree(leaders, copies, None)
        roots = [place for place, up in zip(leaders, tree, strict=True) if up < 0]
        if len(leaders) > 2 and len(roots) == 1:
            tree = self._tree(leaders, copies, roots[0])
        up = dict(zip(leaders, tree, strict=True))
        return [
            up[place] if originals[place] == place else originals[place]
            for place in range(len(self.members))
        ]

    def _tree(self, leaders: list[int], copies: dict[int, int], root: int | None) -> list[int]:
        """The parents of these members among themselves, by place."""
        costs = np.full((len(leaders), len(leaders)), np.inf)
        for c, child in enumerate(leaders):
            near = sorted(
                (place for place in leaders if place != child),
                key=lambda place: self.distance(child, place),
            )
            for parent in near[:_NEAREST]:
                if self.between(child, parent).related:
                    costs[leaders.index(parent), c] = self._cost(child, parent, root)
            if root is not None and root != child and self.between(child, root).related:
                costs[leaders.index(root), c] = self._cost(child, root, root)
        roots = np.array(
            [_ROOT_COST + self._remoteness(place, leaders, copies[place]) for place in leaders]
        )
        return [leaders[p] if p >= 0 else -1 for p in parents_of(costs, roots)]

    def _remoteness(self, place: int, leaders: list[int], copies: int) -> float:
        """Breaks ties between roots: of whom there are copies, or models with whole matrices
        unchanged, is more likely the origin; of two that nothing certain tells apart, the one
        asked about is the later one.
        """
        exact = sum(
            _equal(self.between(other, place)) > _EXACT_MIN for other in leaders if other != place
        )
        asked = _ASKED_PAIR if self.outside and len(leaders) == 2 else _ASKED
        return asked * (place == 0) - float(np.log1p(exact + copies))

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
            first = min(places, key=self._unoriginal) if len(places) > 1 else leader
            for place in places:
                out[place] = first if len(places) > 1 else place
        return out

    def _unoriginal(self, place: int) -> tuple[float | str, ...]:
        """Orders copies: what was disguised, renamed, or stored wider than needed comes later.

        Numbers that are exactly a quantised model's were read from it, whatever they are stored as.
        """
        member = self.members[place]
        others = [other for other in range(len(self.members)) if other != place]
        moved = sum(self.between(place, other).units_moved for other in others)
        wide = member.model.storage != lossless_storage(member)
        is_gguf = any(t.name.startswith("blk.") for t in member.model.tensors[:64])
        fine = int(not member.model.quantised)
        name = member.model.name
        asked = place == 0 and self.outside
        date = self.published.get(name, math.inf)
        plain = moved, fine, is_gguf, member.model.renamed, wide
        return *plain, asked, date, len(name), name

    def _cost(self, child: int, parent: int, root: int | None) -> float:
        """Grows with the distance, and with what speaks for the other direction."""
        distance = max(self.distance(child, parent), 1e-5)
        pair, back = self.between(child, parent), self.between(parent, child)
        odds = direction(self.members[child], self.members[parent], pair, back)
        odds += self._published(child, parent)
        cost = float(np.log(distance / 1e-5))
        if pair.units_moved:
            cost += _DISGUISED
        elif root is not None and root not in (child, parent):
            trio = [self.members[place] for place in (child, parent, root)]
            if not self.between(parent, root).units_moved:
                later, holds = self._told(*trio)
                if later is not None:
                    odds = float(np.clip(odds, -_SOFT, _SOFT)) if abs(odds) < _HARD / 2 else odds
                    odds += _SOFT * 2 * later
                if holds is False:
                    cost += _HARD
        if pair.units_moved:
            odds += _HARD * float(np.sign(self._moved(child) - self._moved(parent)))
        return cost + max(0.0, -odds)

    def _published(self, child: int, parent: int) -> float:
        """What the dates say for the child being the later one."""
        dates = [self.published.get(self.members[place].model.name) for place in (child, parent)]
        if dates[0] is None or dates[1] is None:
            return 0.0
        return _PUBLISHED * float(np.sign(dates[0] - dates[1]))

    def _moved(self, place: int) -> int:
        """1 for a member that lies apart from most others: disguised or narrowed."""
        others = [other for other in range(len(self.members)) if other != place]
        apart = sum(self.between(place, other).units_moved for other in others)
        return int(apart > len(others) / 2 and len(others) > 1)


def direction(child: Sampled, parent: Sampled, pair: Comparison, back: Comparison) -> float:
    """The log-odds that, of two related models, `child` is indeed the later one.

    `pair` compares the child with the parent, `back` the parent with the child.
    """
    cues = [
        _HARD * float(np.clip(mine - theirs, -1, 1))
        for mine, theirs in (
            (_rounding(child, parent, pair), 0),
            (_vocabulary(child, parent, pair), 0),
            (parent.print.hidden, child.print.hidden),
            (_experts(child), _experts(parent)),
            (_width(parent), _width(child)),
            (_depth_edits(child, parent, pair, back), 0),
        )
    ]
    changes = [change for layer in pair.layers for change in layer.changes.values()]
    zeros = float(np.mean([change.zeros - change.parent_zeros for change in changes] or [0.0]))
    if abs(zeros) > ZEROS_MIN:
        cues.append(_HARD * float(np.sign(zeros)))
    against = sum(cue for cue in cues if cue < 0)
    if against < 0:  # one thing that cannot be undone is enough, whatever else speaks for it
        return against
    odds = sum(cues)
    if not pair.units_moved and child.print.depth == parent.print.depth:
        gains = [c.gain for layer in pair.layers for r, c in layer.changes.items() if r in _FFN]
        if gains:
            odds += float(np.clip(np.log(np.mean(gains)) / 0.002, -_SOFT, _SOFT))
    return odds


def _rounding(child: Sampled, parent: Sampled, pair: Comparison) -> int:
    """1 where the child was quantised from the parent or the parent's numbers lie on its grid."""
    mine, theirs = child.model.quantised, parent.model.quantised
    if mine == theirs:
        return 0
    if pair.units_moved:
        return 1 if mine else -1
    share = step_share(*((child, parent) if mine else (parent, child)))
    rounded_to = share is None or share > _ROUNDED_MIN
    return 1 if mine == rounded_to else -1


def _vocabulary(child: Sampled, parent: Sampled, pair: Comparison) -> float:
    """1 where the child has tokens more than the parent, or was cut down from it; -1 otherwise.

    Where no layer was touched, the tokens themselves tell: those that look as old as the others
    were cut off the smaller one. Those that look neither old nor new were more likely added.
    """
    mine, theirs = child.print.vocabulary, parent.print.vocabulary
    if mine == theirs:
        return 0
    longer = 1 if mine > theirs else -1
    changes = [change.equal for layer in pair.layers for change in layer.changes.values()]
    if not changes or float(np.mean(changes)) < _SAME_EQUAL_MIN:
        return longer
    told = _newness(child if mine > theirs else parent, min(mine, theirs))
    return longer * (told or _ADDED)


def _newness(member: Sampled, old: int) -> int:
    """1 where the tokens from `old` on look added, -1 where they look as old as those before.

    Added ones lie near a mean, are copies, or lack what all old ones have in common.
    """
    table = member.model.roles.embed
    if table is None or table.shape[0] <= old:
        return 0
    ends = ((0, old - 1), (old, table.shape[0] - 1))
    places = [np.linspace(*one, min(256, one[1] - one[0] + 1)).astype(np.int64) for one in ends]
    known, new = (finite(table.take(np.unique(rows))).astype(np.float64) for rows in places)
    known, new = known - known.mean(axis=0), new - known.mean(axis=0)
    size = float(np.median(np.linalg.norm(known, axis=1)))
    spread = float(np.median(np.linalg.norm(new - new.mean(axis=0), axis=1)))
    if spread < _NEW_SPREAD * size:
        return 1
    top = np.linalg.eigh(known.T @ known)[1][:, -max(1, known.shape[1] // 16) :]
    shared = [
        float(((rows @ top) ** 2).sum() / max((rows**2).sum(), 1e-30)) for rows in (known, new)
    ]
    if shared[1] < _NEW_SHARED * shared[0]:
        return 1
    told = shared[0] > 3 * top.shape[1] / top.shape[0] and spread > 2 * _NEW_SPREAD * size
    directions = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
        for rows in (known, new)
    ]
    copied = float(np.median((directions[1] @ directions[0].T).max(axis=1))) > _COPIED_MIN
    return -1 if told and not copied and shared[1] > _OLD_SHARED * shared[0] else 0


def _experts(member: Sampled) -> int:
    """1 where the feed-forward part is experts, which can be made of a dense one's copies."""
    layers = member.model.roles.layers[:1]
    return int(any(isinstance(layer.get("gate"), Stacked) for layer in layers))


def _width(member: Sampled) -> int:
    """Rows of the first layer's queries and gate, of one expert where there are several."""
    found = [layer[role] for layer in member.model.roles.layers[:1] for role in ("q", "gate")
             if role in layer]  # fmt: skip
    return sum((one.parts[0] if isinstance(one, Stacked) else one).shape[0] for one in found)


def _depth_edits(child: Sampled, parent: Sampled, pair: Comparison, back: Comparison) -> int:
    """1 where the child dropped or repeated layers of the parent, -1 the other way round."""
    mine, theirs = child.print.depth, parent.print.depth
    if mine == theirs:
        return 0
    deeper = [layer for layer in (pair if mine > theirs else back).layer_map if layer >= 0]
    repeats = len(set(deeper)) < len(deeper)  # the deeper one holds layers of the other twice
    return 1 if repeats == (mine > theirs) else -1


def _shape(member: Sampled) -> tuple[int, ...]:
    print_ = member.print
    return print_.vocabulary, print_.hidden, print_.depth, _width(member)


def _equal(pair: Comparison) -> float:
    values = [change.equal for layer in pair.layers for change in layer.changes.values()]
    if pair.table is not None:
        values.append(pair.table.equal)
    return float(np.mean(values)) if values else 0.0
