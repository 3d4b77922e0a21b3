"""A model's fingerprint: a few kilobytes that fine-tuning, quantisation and disguise leave alone.

Two kinds of numbers, both taken in a basis that only the vocabulary fixes:

* *Token geometry.* The cosines between the embeddings of fixed pairs of token ids, after their
  mean is taken away. A permutation or rotation of the residual stream cannot change them, further
  training moves them little, and a larger vocabulary keeps its old rows.
* *Layer geometry.* The same tokens, orthonormalised among themselves, sent through each matrix
  that reads or writes the residual stream (the norm's weights folded in, each unit scaled to
  length one): the correlations between what they become. Permuting or rescaling units or heads,
  moving scale between a norm and a matrix, or rotating the residual stream with everything that
  touches it, cannot change them.

Models that learn the same text learn the same structure: of two strangers of the bench the plain
cosines correlate at 0.94. That structure lies in the few strongest directions (the observation of
"all-but-the-top", Mu and Viswanath, arXiv 1702.01417); without those, strangers correlate below
0.1 and a model with its fine-tunes as before. What is left is each model's own accident of birth.

The token products are the idea of HuRef's invariant terms (Zeng et al., arXiv 2312.04828); that a
model's random start stays visible after training is that of the independence tests (Zhu et al.,
2502.12292) and of AWM (Zeng et al., 2510.06738), which aligns by the embeddings too. Unlike those,
nothing here needs the other model, so that fingerprints can be kept and searched.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.roles import WRITERS
from qwenstack.hub.lineage.tensors import Floats, Indices, Tensor, UnreadableModel

VERSION: Final = 1
# Vocabulary ids are drawn from these ranges, each on its own: a model has those that it reaches.
_RANGES: Final = ((0, 256), (256, 512), (512, 2048), (2048, 16_384), (16_384, 65_536))
_TABLES: Final = 2
_TOKENS: Final = 64
PAIRS: Final = 256
# Strongest directions left out: they are what any model learns of the same text, not an accident.
_COMMON_TOKENS: Final = 10
_COMMON_PROBES: Final = 6
_PROBES: Final = 32
LAYER_PAIRS: Final = 64
ROLES: Final = ("k", "v", "q", "gate", "up", "o", "down")
_ALWAYS: Final = 2  # of ROLES these many are taken in every layer, the others in every eighth …
_DEEP: Final = 12  # … of a model with more layers than this
_SCALE: Final = 127.0
MISSING: Final = -128
_CHUNK_FLOATS: Final = 1 << 18
_HIDDEN_MAX: Final = 1 << 16
_NUMBER_MAX: Final = 1e12

Codes = npt.NDArray[np.int8]


class Fingerprint(msgspec.Struct, frozen=True):
    """`tokens` holds PAIRS codes for each table (input, output) and range of ids, `layers`
    LAYER_PAIRS for each layer and role; MISSING (-128) stands where the model has nothing. Both
    are int8 arrays. A model that has one table for both keeps it in the first place."""

    version: int
    vocabulary: int
    hidden: int
    depth: int
    parameters: int
    storage: str
    tokens: bytes
    layers: bytes

    def token_codes(self) -> Codes:
        """(tables, ranges, PAIRS)."""
        return np.frombuffer(self.tokens, np.int8).reshape(_TABLES, len(_RANGES), PAIRS)

    def layer_codes(self) -> Codes:
        """(layers, roles, LAYER_PAIRS)."""
        codes = np.frombuffer(self.layers, np.int8)
        return codes.reshape(self.depth, len(ROLES), LAYER_PAIRS)


def fingerprint(model: Model) -> Fingerprint:
    """Compute the fingerprint of an opened model, reading its tensors once and in blocks.

    Raises UnreadableModel where it has no token table, without which nothing has a common basis.
    """
    roles = model.roles
    if roles.embed is None or not 1 < roles.hidden <= _HIDDEN_MAX:
        raise UnreadableModel(f"{model.name} has no token embeddings: nothing to compare by")
    vocabulary = roles.embed.shape[0]
    tokens = np.stack([table_codes(table) for table in (roles.embed, roles.head)])
    layers = np.full((len(roles.layers), len(ROLES), LAYER_PAIRS), MISSING, np.int8)
    probes = probes_of(roles.embed)
    if probes is not None:
        for number, layer in enumerate(roles.layers):
            for place, role in enumerate(ROLES):
                skipped = len(roles.layers) > _DEEP and place >= _ALWAYS and number % 8
                if role in layer and not skipped:
                    layers[number, place] = _layer_codes(layer, role, probes)
    return Fingerprint(
        VERSION, vocabulary, roles.hidden, len(roles.layers), model.parameters, model.storage,
        tokens.tobytes(), layers.tobytes(),
    )  # fmt: skip


def table_codes(table: Tensor | None) -> Codes:
    """The token geometry of one table: (ranges, PAIRS)."""
    codes = np.full((len(_RANGES), PAIRS), MISSING, np.int8)
    vocabulary = table.shape[0] if table is not None else 0
    for number, (_, end) in enumerate(_RANGES):
        if table is not None and (vocabulary >= end or (number == 0 and vocabulary >= 128)):
            codes[number] = _token_codes(table, number, min(end, vocabulary))
    return codes


@functools.cache
def _ids(number: int, end: int) -> Indices:
    """The token ids of a range, the same for everyone."""
    start = _RANGES[number][0]
    drawn = np.random.Generator(np.random.PCG64(1000 + number)).permutation(
        np.arange(start, _RANGES[number][1])
    )
    return np.sort(drawn[drawn < end][:_TOKENS])


@functools.cache
def _pairs(tokens: int, count: int) -> tuple[Indices, Indices]:
    """`count` distinct pairs of `tokens` things."""
    first, second = np.triu_indices(tokens, 1)
    order = np.random.Generator(np.random.PCG64(tokens)).permutation(len(first))
    order = np.resize(order, count)
    return first[order], second[order]


def _quantise(values: npt.NDArray[np.floating]) -> Codes:
    """Centred and scaled to int8, so that one outlier does not flatten the rest."""
    values = values - np.median(values)
    spread = float(np.quantile(np.abs(values), 0.98)) or 1.0
    return np.asarray(np.clip(np.rint(values / spread * 100.0), -_SCALE, _SCALE), np.int8)


def _cosines(rows: Floats, count: int) -> Floats:
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    first, second = _pairs(len(rows), count)
    return np.asarray(np.einsum("ij,ij->i", rows[first], rows[second]), np.float32)


def _token_codes(embed: Tensor, number: int, end: int) -> Codes:
    rows = finite(embed.take(_ids(number, end)))
    rows = rows - rows.mean(axis=0)
    return _quantise(_cosines(_without_top(rows, _COMMON_TOKENS), PAIRS))


def _without_top(rows: Floats, count: int) -> Floats:
    """The rows without their strongest common directions."""
    values, vectors = np.linalg.eigh(rows.astype(np.float64) @ rows.T.astype(np.float64))
    top = vectors[:, np.argsort(values)[-count:]]
    return np.asarray(rows - top @ (top.T @ rows), np.float32)


def probes_of(embed: Tensor) -> Floats | None:
    """Token directions, orthonormal among themselves: (probes, hidden).

    None for tiny vocabularies, and for tables whose rows are all alike.

    The inverse square root of their Gram matrix depends on nothing but their geometry, so it
    turns with the residual stream; a little of the identity keeps near-equal tokens harmless.
    """
    vocabulary, hidden = embed.shape
    if vocabulary < 512:
        if vocabulary < 128:
            return None
        ids = _ids(0, min(vocabulary, 256))
    else:
        ids = np.concatenate([_ids(0, 256)[::2], _ids(1, 512)])
    ids = ids[np.linspace(0, len(ids) - 1, min(_PROBES, hidden // 2)).astype(int)]
    rows = finite(embed.take(ids))
    rows = rows - rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    gram = rows.astype(np.float64) @ rows.T.astype(np.float64)
    if not np.trace(gram):
        return None
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0) + 0.05 * np.trace(gram) / len(gram)
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T @ rows, np.float32)


def _layer_codes(layer: dict[str, Tensor], role: str, probes: Floats) -> Codes:
    norm = layer.get("ffn_norm" if role in ("gate", "up") else "attn_norm")
    return matrix_codes(layer[role], probes, writes=role in WRITERS, norm=norm)


def matrix_codes(
    tensor: Tensor, probes: Floats, *, writes: bool, norm: Tensor | None = None
) -> Codes:
    """The layer geometry of one matrix; all MISSING where its shape does not fit the stream.

    `writes` tells a matrix whose columns are the units; `norm` holds the gains before it.
    """
    hidden = probes.shape[1]
    if tensor.shape[0 if writes else 1] != hidden:
        return np.full(LAYER_PAIRS, MISSING, np.int8)
    gram = _writer_gram(tensor, probes) if writes else _reader_gram(tensor, probes, norm)
    size = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    first, second = _pairs(len(gram), LAYER_PAIRS)
    return _quantise(_levelled(gram / size / size[:, None])[first, second])


def _levelled(gram: npt.NDArray[np.floating]) -> Floats:
    """The matrix with its strongest directions made as weak as the others are on average."""
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    values[-_COMMON_PROBES:] = values[:-_COMMON_PROBES].mean()
    return np.asarray((vectors * values) @ vectors.T, np.float32)


def _reader_gram(tensor: Tensor, probes: Floats, norm: Tensor | None) -> Floats:
    """How alike the probes look to the matrix's units, its rows: (probes, probes)."""
    hidden = probes.shape[1]
    scale = finite(norm.rows(0, 1))[0] if norm is not None and norm.shape == (1, hidden) else None
    gram = np.zeros((len(probes), len(probes)), np.float32)
    step = max(1, _CHUNK_FLOATS // hidden)
    for start in range(0, tensor.shape[0], step):
        rows = finite(tensor.rows(start, start + step))
        if scale is not None:
            rows = rows * scale
        size = np.einsum("ij,ij->i", rows, rows)
        seen = probes @ rows.T
        gram += (seen / np.maximum(size, 1e-20)) @ seen.T
    return gram


def _writer_gram(tensor: Tensor, probes: Floats) -> Floats:
    """The same for a matrix whose columns are the units: a sum over blocks of rows."""
    seen = np.zeros((len(probes), tensor.shape[1]), np.float32)
    size = np.zeros(tensor.shape[1], np.float32)
    step = max(1, _CHUNK_FLOATS // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        rows = finite(tensor.rows(start, start + step))
        size += np.einsum("ij,ij->j", rows, rows)
        seen += probes[:, start : start + len(rows)] @ rows
    return np.asarray((seen / np.maximum(size, 1e-20)) @ seen.T, np.float32)


def finite(values: Floats) -> Floats:
    """NaN, infinity and numbers whose products would be, which some file will hold, count as
    nothing.
    """
    if np.vdot(values, values) < _NUMBER_MAX**2:
        return values
    return np.where(np.abs(values) <= _NUMBER_MAX, values, np.float32(0))


def correlations(one: Codes, other: Codes) -> npt.NDArray[np.float64]:
    """The correlation along the last axis; NaN where either has nothing."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    missing = (one == MISSING).any(axis=-1) | (other == MISSING).any(axis=-1)
    a = a - a.mean(axis=-1, keepdims=True)
    b = b - b.mean(axis=-1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    value = (a * b).sum(axis=-1) / np.maximum(size, 1e-9)
    return np.where(missing, np.nan, value)


def token_similarity(one: Fingerprint, other: Fingerprint) -> float:
    """The best of `table_similarities`; NaN where the models share no range of ids."""
    values = table_similarities(one, other)
    return float(np.nanmax(values)) if np.isfinite(values).any() else float("nan")


def table_similarities(one: Fingerprint, other: Fingerprint) -> npt.NDArray[np.float64]:
    """(tables of one, tables of the other): mean correlation over the ranges that both have."""
    values = correlations(one.token_codes()[:, None], other.token_codes()[None])
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def layer_similarities(one: Fingerprint, other: Fingerprint) -> npt.NDArray[np.float64]:
    """(layers of one, layers of the other): mean correlation over the roles that both have."""
    a, b = one.layer_codes(), other.layer_codes()
    if not len(a) or not len(b):
        return np.full((len(a), len(b)), np.nan)
    values = correlations(a[:, None], b[None])
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
