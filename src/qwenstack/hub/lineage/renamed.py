"""Tensors whose names say nothing get the names of those that they resemble in another model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Final

import numpy as np

from qwenstack.hub.lineage.fingerprint import (
    Codes,
    correlations,
    finite,
    matrix_codes,
    probes_of,
    table_codes,
)
from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.roles import assign_roles
from qwenstack.hub.lineage.tensors import Floats, Stored, Tensor

_ALIKE_MIN: Final = 0.5
_MATRICES_MAX: Final = 4096
_WRITER: Final = ("o_proj", "down_proj", "attn_output", "ffn_down", ".wo", ".w2", "out_proj")


def named_like(child: Model, parent: Model) -> Model | None:
    """The child with the parent's names, or None where too few tensors resemble any.

    Each matrix is told by its layer geometry (see `fingerprint`), so that neither the order of
    units nor that of the residual stream matters; norms and biases by their values.
    """
    tables = _match_tables(child, parent)
    if tables is None or len(child.tensors) > _MATRICES_MAX:
        return None
    names = dict(tables)
    embed = next(tensor for tensor in child.tensors if tensor.name in tables)
    mine, theirs = probes_of(embed), _parent_probes(parent, tables[embed.name])
    if mine is None or theirs is None or mine.shape[0] != theirs.shape[0]:
        return None
    _match_matrices(child, parent, mine, theirs, names)
    matched = len(names) - len(tables)
    wanted = sum(tensor.shape[0] > 1 for tensor in child.tensors) - len(tables)
    if matched < max(1, wanted // 3):
        return None
    _match_vectors(child, parent, names)
    renamed = [
        replace(tensor, name=names[tensor.name])
        for tensor in child.tensors
        if isinstance(tensor, Stored) and tensor.name in names
    ]
    roles = assign_roles(list(renamed), {})
    return Model(child.name, roles, tuple(renamed), child.adapter, renamed=True)


def _tables(model: Model) -> list[Tensor]:
    return [table for table in (model.roles.embed, model.roles.head) if table is not None]


def _match_tables(child: Model, parent: Model) -> dict[str, str] | None:
    """Which of the parent's tables each of the child's is; the best pair first."""
    pairs = sorted(
        (
            (_alike(table_codes(mine), table_codes(theirs)), mine.name, theirs.name)
            for mine in _tables(child)
            for theirs in _tables(parent)
        ),
        reverse=True,
    )
    out: dict[str, str] = {}
    for alike, mine, theirs in pairs:
        if alike > _ALIKE_MIN and mine not in out and theirs not in out.values():
            out[mine] = theirs
    if out and len(_tables(child)) == 2 and len(out) == 1:
        other = next(table.name for table in _tables(child) if table.name not in out)
        out[other] = "lm_head.weight"  # the parent ties what the child keeps apart
    return out or None


def _parent_probes(parent: Model, name: str) -> Floats | None:
    table = next((tensor for tensor in _tables(parent) if tensor.name == name), None)
    return probes_of(table) if table is not None else None


def _alike(one: Codes, other: Codes) -> float:
    values = correlations(one, other)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _match_matrices(
    child: Model, parent: Model, mine: Floats, theirs: Floats, names: dict[str, str]
) -> None:
    taken = set(names) | set(names.values())
    by_shape: dict[tuple[int, int], list[tuple[str, Codes]]] = defaultdict(list)
    for tensor in parent.tensors:
        if tensor.shape[0] > 1 and tensor.name not in taken:
            writes = any(word in tensor.name for word in _WRITER)
            codes = matrix_codes(tensor, theirs, writes=writes)
            by_shape[tensor.shape].append((tensor.name, codes))
    found: list[tuple[float, str, str]] = []
    for tensor in child.tensors:
        candidates = by_shape.get(tensor.shape)
        if not candidates or tensor.name in names:
            continue
        stack = np.stack([codes for _, codes in candidates])
        values = np.full(len(candidates), -1.0)
        for writes in (False, True):
            codes = matrix_codes(tensor, mine, writes=writes)
            values = np.fmax(values, correlations(stack, codes[None]))
        order = np.argsort(-values)[:8]
        found += [(float(values[at]), tensor.name, candidates[at][0]) for at in order]
    for alike, name, like in sorted(found, reverse=True):
        if alike > _ALIKE_MIN and name not in names and like not in taken:
            names[name] = like
            taken.add(like)


def _match_vectors(child: Model, parent: Model, names: dict[str, str]) -> None:
    vectors = [tensor for tensor in parent.tensors if tensor.shape[0] == 1]
    values = {tensor.name: finite(tensor.rows(0, 1))[0] for tensor in vectors}
    found: list[tuple[float, str, str]] = []
    for tensor in child.tensors:
        if tensor.shape[0] > 1:
            continue
        mine = finite(tensor.rows(0, 1))[0]
        for name, other in values.items():
            if other.shape == mine.shape:
                size = float(np.linalg.norm(mine) + np.linalg.norm(other)) or 1.0
                found.append((float(np.linalg.norm(mine - other)) / size, tensor.name, name))
    taken: set[str] = set()
    for apart, name, like in sorted(found):
        if apart < 0.25 and name not in names and like not in taken:
            names[name] = like
            taken.add(like)
