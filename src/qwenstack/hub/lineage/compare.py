"""Two models side by side, tensor by tensor: what was kept, what was changed, and by how much.

Where the models lie in one basis the same rows of both are compared. Where one was permuted,
rescaled, rotated or narrowed, each unit of it is first looked for among all units of the other:
a feed-forward unit is the three vectors that its gate, up and down matrices hold of it, which
together are compared (the matching of the independence tests, arXiv 2502.12292, without running
the models). A change is `1 - cos²`, the share of a tensor's energy that the other doesn't explain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qwenstack.hub.lineage.alignment import Basis, find_basis, sample_ids
from qwenstack.hub.lineage.fingerprint import Fingerprint, finite, layer_similarities
from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.roles import READERS, WRITERS
from qwenstack.hub.lineage.tensors import Floats, Stacked, Tensor, UnreadableModel
from qwenstack.hub.lineage.units import Change, attention_changes, change_of, units

_ROW_FLOATS: Final = 1 << 16  # sampled of one tensor
_ROWS_MIN: Final = 8
_EXPERTS_MAX: Final = 8
_UNITS: Final = 128
_MATCHED_LAYERS_MAX: Final = 8
_KEPT_MIN: Final = 0.5  # a cosine from which a tensor counts as kept
_TABLE_EQUAL: Final = 0.9
_TABLE_FLOATS_MAX: Final = 1 << 26
_REORDERED_MAX: Final = 1e-3
_IN_PLACE_MIN: Final = 0.9
_LAYERS_MAX: Final = 256
ROLES: Final = (*READERS, *WRITERS)

_FFN: Final = ("gate", "up", "down")
_ATTENTION: Final = frozenset({"q", "k", "v", "o"})
_SIZE_MIN: Final = 1e-9
_SIZE_MAX: Final = 1e9
_SIZED_LAYERS: Final = 4
_ODD_MAX: Final = 0.1
_SUSPECT: Final = 0.1  # mean change in place, above which a disguise is looked for

Key = tuple[int, str]


@dataclass(frozen=True)
class LayerPair:
    """A layer of the child, the layer of the parent that it comes from, and what changed."""

    layer: int
    parent_layer: int
    similarity: float
    changes: dict[str, Change]


@dataclass(frozen=True)
class Comparison:
    """The whole: `distance` is the root of the mean change over roles, layers and tables."""

    basis: Basis
    units_moved: bool
    table: Change | None
    layers: tuple[LayerPair, ...]
    distance: float
    kept: float
    layer_map: tuple[int, ...]
    parent_depth: int

    @property
    def related(self) -> bool:
        """Whether most of what could be compared was kept, or the token table as it was."""
        return self.kept >= 0.5 or (self.table is not None and self.table.equal >= _TABLE_EQUAL)


@dataclass
class Sampled:
    """A model with the numbers that comparisons use, taken once."""

    model: Model
    print: Fingerprint
    rows: dict[Key, Floats] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return self.print.depth

    def take(self, layer: int, role: str) -> Floats | None:
        """The sampled rows of a layer's matrix."""
        key = (layer, role)
        if key not in self.rows:
            tensor = self.model.roles.layers[layer].get(role)
            if tensor is None:
                return None
            self.rows[key] = _sample(tensor)
        return self.rows[key]

    def table(self, which: int) -> Floats | None:
        """The sampled rows of the input (0) or output (1) table."""
        key = (-1, str(which))
        if key not in self.rows:
            tensor = (self.model.roles.embed, self.model.roles.head)[which]
            if tensor is None:
                return None
            self.rows[key] = finite(tensor.take(sample_ids(tensor.shape[0])))
        return self.rows[key]


def check_sizes(member: Sampled) -> None:
    """Raises UnreadableModel where numbers are too large or too small for what is made of them.

    Their fourth powers must be 32-bit floats: no model in use is near, and what overflows or
    vanishes in a comparison would be called a stranger.
    """
    depth, odd, known = member.depth, 0, 0
    places = np.unique(np.linspace(0, max(depth - 1, 0), min(depth, _SIZED_LAYERS)).astype(int))
    samples = [member.table(0), *(member.take(at, role) for at in places for role in ROLES)]
    for sample in samples:
        if sample is not None and sample.any():
            size = float(np.sqrt(np.mean(np.square(sample, dtype=np.float64))))
            known += 1
            odd += not _SIZE_MIN < size < _SIZE_MAX
    if odd > known * _ODD_MAX:
        raise UnreadableModel(
            f"{odd} of {known} matrices of {member.model.name} have numbers too large or too small "
            "to compare"
        )


def _sample(tensor: Tensor) -> Floats:
    if isinstance(tensor, Stacked) and tensor.side_by_side:
        tensor = Stacked(tensor.name, tensor.parts[:_EXPERTS_MAX], side_by_side=True)
    rows, columns = tensor.shape
    count = min(rows, max(_ROWS_MIN, _ROW_FLOATS // columns))
    chosen = np.unique(np.linspace(0, rows - 1, count).astype(np.int64))
    return finite(tensor.take(chosen))


def compare(child: Sampled, parent: Sampled) -> Comparison:
    """Compare the child with a possible parent."""
    basis, tables = _basis(child, parent)
    found = layers_in_place(child, parent) if basis.kind == "unrelated" else None
    if found is not None:  # other tokens, or the same in another order: the layers tell
        (mapped, similarity), basis = found, Basis("same", 0.0)
        table = _reordered(child, parent)
    else:
        mapped, similarity = _layer_map(child, parent)
        table = _table_change(child, parent, basis, tables)
    pairs = [
        LayerPair(layer, like, float(similarity[layer, like]), {})
        for layer, like in enumerate(mapped)
        if like >= 0
    ]
    moved = basis.kind != "same" or _narrowed(child, parent)
    if not moved:
        pairs = [_in_place(child, parent, pair) for pair in pairs]
    distance, kept = _summary(table, pairs)
    if basis.kind != "unrelated" and (moved or distance**2 > _SUSPECT):
        chosen = _spread(pairs, _MATCHED_LAYERS_MAX)
        matched = [_matched(child, parent, pair, basis) for pair in chosen]
        other, other_kept = _summary(table, matched)
        if moved or other < distance / 2:
            pairs, distance, kept, moved = matched, other, other_kept, True
    depth = parent.print.depth
    return Comparison(basis, moved, table, tuple(pairs), distance, kept, tuple(mapped), depth)


def layers_in_place(child: Sampled, parent: Sampled) -> tuple[list[int], Floats] | None:
    """For each of the child's layers the parent's layer that it equals nearly, number by number.

    Needs no tokens in common, but the residual stream in one order; None where most layers have no
    counterpart. Strangers' layers are at right angles, those of two models of one random start at
    0.4 on the bench, those of one parent's children nearly equal.
    """
    if child.print.hidden != parent.print.hidden or not child.depth or not parent.depth:
        return None
    one, other = _directions(child), _directions(parent)
    if one is None or other is None or one.shape[1] != other.shape[1]:
        return None
    similarity = one @ other.T
    best = similarity.argmax(axis=1)
    values = similarity[np.arange(len(best)), best]
    if float(np.median(values)) < _IN_PLACE_MIN:
        return None
    rows = zip(similarity, best.tolist(), values.tolist(), strict=True)
    # Of equals the one in the same place: a model that repeats a layer holds it twice.
    mapped = [
        -1 if value < _KEPT_MIN else at if at < len(row) and row[at] > value - 0.001 else like
        for at, (row, like, value) in enumerate(rows)
    ]
    return mapped, np.asarray(similarity, np.float32)


def _directions(member: Sampled) -> Floats | None:
    """A few rows of each layer's keys and units as one vector of length one."""
    out: list[Floats] = []
    for layer in range(min(member.depth, _LAYERS_MAX)):
        parts = [member.take(layer, role) for role in ("k", "up")]
        rows = [part[:_ROWS_MIN].ravel() for part in parts if part is not None]
        if not rows:
            return None
        vector = np.concatenate(rows)
        out.append(vector / max(float(np.linalg.norm(vector)), 1e-20))
    return np.stack(out) if len({len(one) for one in out}) == 1 else None


def _reordered(child: Sampled, parent: Sampled) -> Change | None:
    """How a table whose rows do not correspond has changed: not, if they are only reordered."""
    one, other = child.model.roles.embed, parent.model.roles.embed
    if one is None or other is None or one.shape != other.shape:
        return None
    if one.shape[0] * one.shape[1] > _TABLE_FLOATS_MAX:
        return Change(0.0, 1.0)
    a, b = (np.sort(finite(table.rows(0, table.shape[0])), axis=0) for table in (one, other))
    change = change_of(a, b)
    return change if change.change < _REORDERED_MAX else Change(0.0, 1.0)


def _narrowed(child: Sampled, parent: Sampled) -> bool:
    """Whether units or heads were dropped, so that what is left must be looked for."""
    if not child.depth or not parent.depth:
        return False
    mine, theirs = child.model.roles.layers[0], parent.model.roles.layers[0]
    return any(
        mine[role].shape != theirs[role].shape for role in ROLES if role in mine and role in theirs
    )


def _basis(child: Sampled, parent: Sampled) -> tuple[Basis, tuple[int, int]]:
    """The best basis over the tables of both; most models have the same table in first place."""
    best, where = Basis("unrelated", -1.0), (0, 0)
    for mine, theirs in ((0, 0), (1, 0), (0, 1), (1, 1)):
        a = (child.model.roles.embed, child.model.roles.head)[mine]
        b = (parent.model.roles.embed, parent.model.roles.head)[theirs]
        if a is None or b is None or not min(a.shape[0], b.shape[0]) > 1:
            continue
        basis = find_basis(a, b)
        if basis.agreement > best.agreement:
            best, where = basis, (mine, theirs)
        if best.agreement > 0.9:
            break
    return best, where


def _layer_map(child: Sampled, parent: Sampled) -> tuple[list[int], Floats]:
    """For each of the child's layers the parent's layer it resembles, -1 for none."""
    similarity = np.nan_to_num(layer_similarities(child.print, parent.print), nan=0.0)
    out: list[int] = []
    if not similarity.size:
        return [-1] * similarity.shape[0], similarity.astype(np.float32)
    for layer, row in enumerate(similarity):
        like = int(row.argmax())
        # Of equals the one in the same place: a model that repeats a layer holds it twice.
        if layer < len(row) and row[layer] >= row[like] - 0.02:
            like = layer
        out.append(like if row[like] > 0.2 else -1)
    # A layer that only faintly resembles one that another is nearly equal to has none of its own.
    strong = {
        like: max(similarity[at, like] for at, to in enumerate(out) if to == like) for like in out
    }
    out = [
        like if like >= 0 and similarity[layer, like] > 0.6 * strong[like] else -1
        for layer, like in enumerate(out)
    ]
    if similarity.shape[0] == similarity.shape[1] and max(out) < 0:
        out = list(range(len(out)))
    return out, similarity.astype(np.float32)


def _table_change(
    child: Sampled, parent: Sampled, basis: Basis, where: tuple[int, int]
) -> Change | None:
    a, b = child.table(where[0]), parent.table(where[1])
    if a is None or b is None or basis.kind == "unrelated":
        return None
    shared = min(len(a), len(b))
    return change_of(a[:shared], basis.apply(b[:shared]))


def _in_place(child: Sampled, parent: Sampled, pair: LayerPair) -> LayerPair:
    changes: dict[str, Change] = {}
    for role in ROLES:
        a, b = child.take(pair.layer, role), parent.take(pair.parent_layer, role)
        if a is not None and b is not None and a.shape == b.shape:
            changes[role] = change_of(a, b)
    return LayerPair(pair.layer, pair.parent_layer, pair.similarity, changes)


def _spread(pairs: list[LayerPair], count: int) -> list[LayerPair]:
    if len(pairs) <= count:
        return pairs
    return [pairs[at] for at in np.linspace(0, len(pairs) - 1, count).astype(int)]


def _matched(child: Sampled, parent: Sampled, pair: LayerPair, basis: Basis) -> LayerPair:
    """Compare after looking for each unit of the child among the parent's."""
    mine = child.model.roles.layers[pair.layer]
    theirs = parent.model.roles.layers[pair.parent_layer]
    roles = [role for role in _FFN if role in mine and role in theirs]
    a = [units(mine, role, None, _UNITS) for role in roles]
    b = [units(theirs, role, basis, None) for role in roles]
    pieces = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    changes: dict[str, Change] = {}
    if pieces and len(pieces) == len(roles) and all(x.shape[1] == y.shape[1] for x, y in pieces):
        changes |= zip(roles, _match(pieces), strict=True)
    if all(mine[role].shape == theirs[role].shape for role in _ATTENTION & set(mine) & set(theirs)):
        changes |= attention_changes(mine, theirs, basis)
    else:  # heads were dropped: those that are left are looked for row by row
        for role in sorted(_ATTENTION & set(mine) & set(theirs)):
            x, y = units(mine, role, None, _UNITS), units(theirs, role, basis, None)
            if x is not None and y is not None and x.shape[1] == y.shape[1]:
                changes[role] = _match([(x, y)])[0]
    return LayerPair(pair.layer, pair.parent_layer, pair.similarity, changes)


def _match(pieces: list[tuple[Floats, Floats]]) -> list[Change]:
    alike = [np.abs(a @ b.T) for a, b in pieces]
    best = np.sum(alike, axis=0).argmax(axis=1)
    rows = np.arange(len(best))
    # Units that were moved have one counterpart each; a crowd at one place is no match.
    share = len(np.unique(best)) / max(len(best), 1)
    out: list[Change] = []
    for values in alike:
        cosines = np.minimum(values[rows, best], 1.0).astype(np.float64)
        out.append(Change(float(cosines.mean()) * share, float(1 - (cosines**2).mean())))
    return out


def _summary(table: Change | None, pairs: list[LayerPair]) -> tuple[float, float]:
    """The distance, and the share of compared tensors that were kept."""
    by_role: dict[str, list[Change]] = {}
    for pair in pairs:
        for role, change in pair.changes.items():
            by_role.setdefault(role, []).append(change)
    if table is not None:
        by_role["table"] = [table]
    every = [change for changes in by_role.values() for change in changes]
    if not every:
        return 1.0, 0.0
    means = [np.mean([change.change for change in changes]) for changes in by_role.values()]
    kept = [
        np.mean([change.cosine >= _KEPT_MIN for change in changes]) for changes in by_role.values()
    ]
    return float(np.mean(means)) ** 0.5, float(np.mean(kept))
