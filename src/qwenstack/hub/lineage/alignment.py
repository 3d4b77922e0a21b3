"""How one model's residual stream lies in another's: the same, reordered, or turned.

Both models embed the same vocabulary, so their token tables answer it. A column of one table is
compared with each column of the other over the same tokens (the assignment idea of AWM, arXiv
2510.06738); where no reordering fits, the best rotation is found on half of the tokens (orthogonal
Procrustes) and judged on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from qwenstack.hub.lineage.fingerprint import finite
from qwenstack.hub.lineage.tensors import Floats, Indices, Tensor

_ROTATION_MAX: Final = 2048  # width of a residual stream that a rotation is sought for
_DENSE_IDS: Final = 1024
_SPARSE_STEP: Final = 97
_IDS_MAX: Final = 1 << 18

BasisKind = Literal["same", "permuted", "rotated", "unrelated"]


@dataclass(frozen=True)
class Basis:
    """Takes rows over the parent's residual channels to the child's.

    `agreement` is the mean cosine of token rows after that, judged on tokens not used to fit.
    """

    kind: BasisKind
    agreement: float
    order: Indices | None = None
    signs: Floats | None = None
    turn: Floats | None = None

    def apply(self, rows: Floats) -> Floats:
        """Rows (n, parent's width) as rows (n, child's width)."""
        if self.turn is not None:
            return np.asarray(rows @ self.turn, np.float32)
        if self.order is not None and self.signs is not None:
            return np.asarray(rows[:, self.order] * self.signs, np.float32)
        return rows


def sample_ids(vocabulary: int) -> Indices:
    """Token ids to compare, the same for every model that has them: dense, then sparse."""
    dense = np.arange(min(vocabulary, _DENSE_IDS))
    sparse = np.arange(_DENSE_IDS, min(vocabulary, _IDS_MAX), _SPARSE_STEP)
    return np.concatenate([dense, sparse])


def row_cosines(one: Floats, other: Floats) -> Floats:
    """The cosine of each row with its counterpart."""
    size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray(np.einsum("ij,ij->i", one, other) / np.maximum(size, 1e-20), np.float32)


def find_basis(child: Tensor, parent: Tensor) -> Basis:
    """The basis that takes the parent's token table to the child's."""
    ids = sample_ids(min(child.shape[0], parent.shape[0]))
    a, b = finite(child.take(ids)), finite(parent.take(ids))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    best = Basis("unrelated", 0.0)
    if a.shape[1] == b.shape[1]:
        agreement = float(row_cosines(a, b).mean())
        best = Basis("same", agreement)
        if agreement > 0.5:
            return best
    permuted = _permutation(a, b)
    if permuted.agreement > max(best.agreement, 0.5):
        return permuted
    if a.shape[1] == b.shape[1] <= _ROTATION_MAX and len(ids) >= 2 * a.shape[1]:
        turned = _rotation(a, b)
        if turned.agreement > max(best.agreement, permuted.agreement) + 0.1:
            best = turned
    if best.agreement < 0.2:
        return Basis("unrelated", best.agreement)
    return best


def _permutation(a: Floats, b: Floats) -> Basis:
    unit_a = a / np.maximum(np.linalg.norm(a, axis=0), 1e-20)
    unit_b = b / np.maximum(np.linalg.norm(b, axis=0), 1e-20)
    alike = unit_a.T @ unit_b
    order = np.abs(alike).argmax(axis=1)
    if len(np.unique(order)) < 0.9 * len(order):
        return Basis("unrelated", 0.0)
    signs = np.sign(alike[np.arange(len(order)), order]).astype(np.float32)
    agreement = float(row_cosines(a, b[:, order] * signs).mean())
    return Basis("permuted", agreement, order, signs)


def _rotation(a: Floats, b: Floats) -> Basis:
    left, _, right = np.linalg.svd(b[::2].T @ a[::2], full_matrices=False)
    turn = np.asarray(left @ right, np.float32)
    agreement = float(row_cosines(a[1::2], b[1::2] @ turn).mean())
    return Basis("rotated", agreement, turn=turn)
