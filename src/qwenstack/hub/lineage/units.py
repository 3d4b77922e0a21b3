"""What of a layer survives a disguise: its units as vectors, and its heads' products.

A feed-forward unit may be moved and rescaled but stays a direction. Of attention even the heads'
own coordinates can be changed: values and outputs mixed by any invertible matrix, queries and keys
turned in the planes that rotary position mixes. The sums over heads of `Wq' Wk` and `Wo Wv` stay
(HuRef's invariant terms, arXiv 2312.04828), and so does their basis, the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qwenstack.hub.lineage.alignment import Basis
from qwenstack.hub.lineage.fingerprint import finite
from qwenstack.hub.lineage.roles import WRITERS
from qwenstack.hub.lineage.tensors import Floats, Indices, Tensor

_DENSE_FLOATS_MAX: Final = 1 << 27
_CHANNELS: Final = 64
_HEAD_SIZES: Final = (64, 128, 16, 32, 48, 80, 96, 256)


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


def units(
    layer: dict[str, Tensor],
    role: str,
    basis: Basis | None,
    count: int | None,
    *,
    scaled: bool = True,
) -> Floats | None:
    """Units over the residual stream, the norm's gains folded in: (units, width).

    `scaled` makes each of length one. None where the matrix is too large to be read whole.
    """
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
    if not scaled:
        return np.asarray(rows, np.float32)
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(size, 1e-20), np.float32)


def _some(total: int, count: int | None) -> Indices:
    if count is None or count >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, count).astype(np.int64))


def attention_changes(
    mine: dict[str, Tensor], theirs: dict[str, Tensor], basis: Basis
) -> dict[str, Change]:
    """The changes of the sums over heads of `Wq' Wk` and `Wo Wv`, under `qk` and `ov`."""
    out: dict[str, Change] = {}
    for name, writer, reader in (("qk", "q", "k"), ("ov", "o", "v")):
        if not all(role in layer for layer in (mine, theirs) for role in (writer, reader)):
            continue
        best: Change | None = None
        for size in _head_sizes(mine, theirs):
            a = _product(mine, writer, reader, size, None)
            b = _product(theirs, writer, reader, size, basis)
            if a is None or b is None or a.shape != b.shape:
                continue
            change = change_of(a, b)
            if best is None or change.change < best.change:
                best = change
        if best is not None:
            out[name] = best
    return out


def _head_sizes(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[int]:
    """Possible sizes of a head: what a head's norm says, else all that divide both."""
    for layer in (mine, theirs):
        if "q_norm" in layer:
            return [layer["q_norm"].shape[1]]
    if all(layer["q"].shape[0] == layer["k"].shape[0] for layer in (mine, theirs)):
        return [1]  # a key head for each query head: the sum needs no heads
    counts = [layer[role].shape[0] for layer in (mine, theirs) for role in ("q", "k")]
    return [size for size in _HEAD_SIZES if all(count % size == 0 for count in counts)]


def _product(
    layer: dict[str, Tensor], first: str, second: str, size: int, basis: Basis | None
) -> Floats | None:
    """Some rows of the sum over heads, in the child's basis: (channels, width)."""
    a, b = (
        units(layer, first, None, None, scaled=False),
        units(layer, second, None, None, scaled=False),
    )
    if a is None or b is None or len(a) % max(len(b), 1) or len(b) % size:
        return None
    if basis is not None:
        a, b = basis.apply(a), basis.apply(b)
    each = len(a) // len(b)
    b = np.repeat(b.reshape(-1, size, b.shape[1]), each, axis=0).reshape(len(a), -1)
    channels = _some(a.shape[1], _CHANNELS)
    return np.asarray(a[:, channels].T @ b, np.float32)
