"""What rounding leaves behind: whether numbers are those of another model, stored shorter."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from qwenstack.hub.lineage.compare import ROLES, Sampled
from qwenstack.hub.lineage.tensors import FULL_PRECISION, Floats

_AGREE_MIN: Final = 0.999
_LAYERS_MAX: Final = 4
_BLOCK: Final = 32  # numbers with one scale, in most formats
_ROWS_MAX: Final = 128
_LEVEL_ROWS_MAX: Final = 48


def rounded(values: Floats, storage: str) -> Floats:
    """The values after a round trip through a storage type of 16-bit floats."""
    if storage == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if storage == "BF16":
        bits = values.view(np.int32).astype(np.int64)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF
        return even.astype(np.int32).view(np.float32)
    return values


def rounds_to(source: Sampled, copy: Sampled) -> bool:
    """Whether `copy` is `source` rounded to the copy's storage type and not changed otherwise."""
    storage = copy.model.storage
    if storage not in ("F16", "BF16") or source.print.depth != copy.print.depth:
        return False
    agree: list[float] = []
    for layer in range(source.print.depth):
        for role in ROLES:
            a, b = source.take(layer, role), copy.take(layer, role)
            if a is not None and b is not None and a.shape == b.shape:
                agree.append(float((rounded(np.ascontiguousarray(a), storage) == b).mean()))
        if agree and agree[-1] < 0.5:
            return False
    return bool(agree) and float(np.mean(agree)) >= _AGREE_MIN


def lossless_storage(member: Sampled) -> str:
    """The shortest type of floats that holds the model's numbers exactly."""
    for storage in ("BF16", "F16"):
        if rounds_to_itself(member, storage):
            return storage
    return "F32"


def rounds_to_itself(member: Sampled, storage: str) -> bool:
    """Whether a sample of the model's numbers is unchanged by a storage type."""
    for layer in range(min(member.print.depth, 2)):
        for role in ROLES[:2]:
            values = member.take(layer, role)
            if values is None:
                continue
            kept = rounded(np.ascontiguousarray(values), storage) == values
            if float(kept.mean()) < _AGREE_MIN:
                return False
    return True


def step_share(coarse: Sampled, fine: Sampled) -> float | None:
    """How far a quantised model lies from another, in steps of its own grid; None if unknowable.

    Rounding to the nearest step errs by 0.29 steps (1/sqrt(12)) in the mean. A model that lies
    nearer cannot have been rounded to this grid: it was read from it and changed a little.
    """
    shares: list[float] = []
    for layer in range(min(coarse.print.depth, fine.print.depth, _LAYERS_MAX)):
        for role in ROLES:
            tensor = coarse.model.roles.layers[layer].get(role)
            a, b = coarse.take(layer, role), fine.take(layer, role)
            if tensor is None or a is None or b is None or a.shape != b.shape:
                continue
            if tensor.storage in FULL_PRECISION or a.shape[1] < _BLOCK:
                continue
            columns = a.shape[1] // _BLOCK * _BLOCK
            blocks = np.sort(a[:_ROWS_MAX, :columns].reshape(-1, _BLOCK), axis=1)
            gaps = np.diff(blocks, axis=1)
            gaps = np.where(gaps > 1e-6 * np.abs(blocks).max(axis=1, keepdims=True), gaps, np.inf)
            steps = gaps.min(axis=1)
            apart = (a - b)[:_ROWS_MAX, :columns].reshape(-1, _BLOCK)
            known = np.isfinite(steps)
            if known.any():
                error = np.sqrt((apart[known] ** 2).mean())
                shares.append(float(error / np.sqrt((steps[known] ** 2).mean())))
    return float(np.median(shares)) if shares else None


def nearest_levels(coarse: Sampled, fine: Sampled) -> float | None:
    """The share of a quantised model's numbers that are, of those in their block, nearest to
    another model's: 1 for what was rounded from it, whatever the grid; None if unknowable.
    """
    found: list[float] = []
    for layer in range(min(coarse.print.depth, fine.print.depth, _LAYERS_MAX)):
        for role in ROLES:
            a, b = coarse.take(layer, role), fine.take(layer, role)
            if a is None or b is None or a.shape != b.shape:
                continue
            block = math.gcd(a.shape[1], _BLOCK)
            levels = a[:_LEVEL_ROWS_MAX].reshape(-1, 1, block)
            values = b[:_LEVEL_ROWS_MAX].reshape(-1, block, 1)
            own = np.abs(values - levels.reshape(-1, block, 1))[..., 0]
            best = np.abs(values - levels).min(axis=2)
            found.append(float((own <= best + 1e-6 * np.abs(values[..., 0])).mean()))
    return float(np.mean(found)) if found else None
