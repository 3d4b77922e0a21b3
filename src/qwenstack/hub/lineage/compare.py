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
from qwenstack.hub.lineage.tensors import Floats, Indices, Stacked, Tensor

_ROW_FLOATS: Final = 1 << 16  # sampled of one tensor
_ROWS_MIN: Final = 8
_EXPERTS_MAX: Final = 8
_UNITS: Final = 128
_MATCHED_LAYERS_MAX: Final = 8
_DENSE_FLOATS_MAX: Final = 1 << 27
_KEPT_MIN: Final = 0.5  # a cosine from which a tensor counts as kept
ROLES: Final = (*READERS, *WRITERS)

_GROUPS: Final[tuple[tuple[str, ...], ...]] = (
    ("gate", "up", "down"),
    ("q",),
    ("k",),
    ("v",),
    ("o",),
)

Key = tuple[int, str]


@dataclass(frozen=True)
class Change:
    """One tensor of the child against the parent's: `cosine`, `change` = 1 - cos² and more.

    `equal` is the share of numbers that did not change at all, `zeros` and `parent_zeros` the
    shares that are zero; `gain` is the energy of the child's over the parent's.
    """

    cosine: float
    change: float
    equal: float = 0.0
    zeros: float = 0.0
    parent_zeros: float = 0.0
    gain: float = 1.0


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
        """Whether most of what could be compared was kept."""
        return self.kept >= 0.5


@dataclass
class Sampled:
    """A model with the numbers that comparisons use, taken once."""

    model: Model
    print: Fingerprint
    rows: dict[Key, Floats] = field(default_factory=dict)

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


def _sample(tensor: Tensor) -> Floats:
    if isinstance(tensor, Stacked) and tensor.side_by_side:
        tensor = Stacked(tensor.name, tensor.parts[:_EXPERTS_MAX], side_by_side=True)
    rows, columns = tensor.shape
    count = min(rows, max(_ROWS_MIN, _ROW_FLOATS // columns))
    chosen = np.unique(np.linspace(0, rows - 1, count).astype(np.int64))
    return finite(tensor.take(chosen))


def change_of(child: Floats, parent: Floats) -> Change:
    """How the numbers of `child` differ from those of `parent`, of the same shape."""
    a, b = child.ravel(), parent.ravel()
    aa, bb = float(a @ a), float(b @ b)
    if aa <= 0 or bb <= 0:
        same = aa == bb
        return Change(float(same), float(not same), float((a == b).mean()))
    ab = float(a @ b)
    rest = a - np.float32(ab / bb) * b
    return Change(
        cosine=ab / (aa * bb) ** 0.5,
        change=min(1.0, float(rest @ rest) / aa),
        equal=float((a == b).mean()),
        zeros=float((a == 0).mean()),
        parent_zeros=float((b == 0).mean()),
        gain=aa / bb,
    )


def compare(child: Sampled, parent: Sampled) -> Comparison:
    """Compare the child with a possible parent."""
    basis, tables = _basis(child, parent)
    mapped, similarity = _layer_map(child, parent)
    table = _table_change(child, parent, basis, tables)
    pairs = [
        LayerPair(layer, like, float(similarity[layer, like]), {})
        for layer, like in enumerate(mapped)
        if like >= 0
    ]
    moved = basis.kind != "same"
    if not moved:
        pairs = [_in_place(child, parent, pair) for pair in pairs]
        moved = bool(pairs) and not _mostly_kept(pairs)
    if moved and basis.kind != "unrelated":
        chosen = _spread(pairs, _MATCHED_LAYERS_MAX)
        matched = [_matched(child, parent, pair, basis) for pair in chosen]
        if basis.kind != "same" or _mostly_kept(matched):
            pairs = matched
        else:
            moved = False
    distance, kept = _summary(table, pairs, moved)
    return Comparison(
        basis, moved, table, tuple(pairs), distance, kept, tuple(mapped), parent.print.depth
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


def _mostly_kept(pairs: list[LayerPair]) -> bool:
    values = [change.cosine for pair in pairs for change in pair.changes.values()]
    return bool(values) and float(np.median(values)) >= _KEPT_MIN


def _spread(pairs: list[LayerPair], count: int) -> list[LayerPair]:
    if len(pairs) <= count:
        return pairs
    return [pairs[at] for at in np.linspace(0, len(pairs) - 1, count).astype(int)]


def _matched(child: Sampled, parent: Sampled, pair: LayerPair, basis: Basis) -> LayerPair:
    """Compare after looking for each unit of the child among the parent's."""
    mine = child.model.roles.layers[pair.layer]
    theirs = parent.model.roles.layers[pair.parent_layer]
    changes: dict[str, Change] = {}
    for group in _GROUPS:
        roles = [role for role in group if role in mine and role in theirs]
        if not roles:
            continue
        a = [_units(mine, role, None, _UNITS) for role in roles]
        b = [_units(theirs, role, basis, None) for role in roles]
        pieces = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        if len(pieces) == len(roles) and all(x.shape[1] == y.shape[1] for x, y in pieces):
            changes |= zip(roles, _match(pieces), strict=True)
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


def _units(
    layer: dict[str, Tensor], role: str, basis: Basis | None, count: int | None
) -> Floats | None:
    """Unit vectors over the residual stream, the norm's gains folded in: (units, width)."""
    tensor = layer[role]
    if tensor.shape[0] * tensor.shape[1] > _DENSE_FLOATS_MAX:
        return None
    if role in WRITERS:
        rows = finite(tensor.rows(0, tensor.shape[0])).T
        rows = rows[_some(len(rows), count)]
    else:
        rows = finite(tensor.take(_some(tensor.shape[0], count)))
        norm = layer.get("ffn_norm" if role in ("gate", "up") else "attn_norm")
        if norm is not None and norm.shape == (1, rows.shape[1]):
            rows = rows * finite(norm.rows(0, 1))
    if basis is not None:
        rows = basis.apply(rows)
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(size, 1e-20), np.float32)


def _some(total: int, count: int | None) -> Indices:
    if count is None or count >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, count).astype(np.int64))


def _summary(table: Change | None, pairs: list[LayerPair], moved: bool) -> tuple[float, float]:
    """The distance, and the share of compared tensors that were kept."""
    by_role: dict[str, list[Change]] = {}
    for pair in pairs:
        for role, change in pair.changes.items():
            by_role.setdefault(role, []).append(change)
    if moved:  # attention can be mixed in ways that its rows don't survive; units can't
        by_role = {
            role: changes
            for role, changes in by_role.items()
            if role in ("gate", "up", "down") or len(by_role) < 3
        }
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
