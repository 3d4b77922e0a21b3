"""Weights packed by the integer and 8-bit quantisers of the safetensors world.

Layouts: GPTQ (`qweight` packs 2-, 4- or 8-bit codes along the inputs, `qzeros`, `scales`, `g_idx`),
AWQ (`qweight` packs along the outputs in the order 0 2 4 6 1 3 5 7), compressed-tensors
(`weight_packed` of 4 or 8 bits along the inputs, `weight_scale`, `weight_shape`), bitsandbytes NF4
and FP4 (two codes a byte, the first in the high half, into a table of 16 values; `absmax` a block,
itself perhaps in 8 bits), and FP8 or INT8 with a scale beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.tensors import Floats, Indices, Stored, Tensor, UnreadableModel

_AWQ_ORDER: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_ELEMENTS_MAX: Final = 1 << 28
_BLOCKS: Final = (128, 64, 32)  # of FP8 scales
_CODE_BITS: Final = (2, 4, 8)
_STATE: Final = "weight.quant_state.bitsandbytes__"
_STATE_BYTES_MAX: Final = 1 << 16
_SCALED_MIN: Final = 16  # weights with one scale, in the finest 8-bit format

Words = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.int16]


class _BlockState(msgspec.Struct):
    """What bitsandbytes says of a packed matrix; `nested_*` where its scales are packed too."""

    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


@dataclass
class Packed:
    """A matrix that is unpacked when it is read."""

    name: str
    storage: str
    shape: tuple[int, int]
    parts: dict[str, Stored]

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        return self.take(np.arange(start, min(stop, self.shape[0])))

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers."""
        try:
            if self.storage in ("FP8", "INT8"):
                return self._scaled(rows) / np.float32(127 if self.storage == "INT8" else 1)
            return self._whole()[rows]
        except (ValueError, IndexError, ZeroDivisionError, msgspec.DecodeError) as error:
            raise UnreadableModel(f"the packed parts of {self.name} do not fit") from error

    def _whole(self) -> Floats:
        """All of it, unpacked. The one unpacked last is kept: it is read some rows at a time."""
        kept = _LAST.get("kept")
        if kept is None or kept[0] is not self:
            _LAST.clear()
            kept = self, _UNPACK[self.storage.partition("-")[0]](self.parts, self.shape)
            _LAST["kept"] = kept
        return kept[1]

    def _scaled(self, rows: Indices) -> Floats:
        values = self.parts["weight"].take(rows)
        scale = self.parts["scale"]
        grid = scale.rows(0, scale.shape[0])
        if grid.size == 1:
            return values * grid.reshape(())
        if scale.is_vector:
            grid = grid.reshape(-1, 1)
        tall = _block(self.shape[0], grid.shape[0])
        wide = _block(self.shape[1], grid.shape[1])
        columns = np.repeat(grid[rows // tall], wide, axis=1)[:, : self.shape[1]]
        return np.asarray(values * columns, np.float32)


_LAST: Final[dict[str, tuple[Packed, Floats]]] = {}


def _block(extent: int, count: int) -> int:
    """How much of `extent` each of `count` scales covers; the last block may be cut off."""
    usual = (size for size in _BLOCKS if -(-extent // size) == count)
    return next(usual, -(-extent // count))


def join_packed(tensors: list[Stored]) -> list[Tensor]:
    """The tensors with each packed group replaced by the one matrix that it stands for."""
    by_name = {tensor.name: tensor for tensor in tensors}
    out: list[Tensor] = []
    used: set[str] = set()
    for name in by_name:
        readings = (_packed_words(name, by_name), _blocks(name, by_name), _scaled(name, by_name))
        for joined, names in filter(None, readings):
            out.append(joined)
            used |= names
    out += [tensor for tensor in tensors if tensor.name not in used]
    return out


_Joined = tuple[Packed, set[str]] | None


def _packed_words(name: str, by_name: dict[str, Stored]) -> _Joined:
    """GPTQ, AWQ or compressed-tensors, by the suffix and the shapes."""
    stem, _, suffix = name.rpartition(".")
    if suffix == "weight_packed" and f"{stem}.weight_scale" in by_name:
        return _compressed(stem, by_name)
    if suffix != "qweight" or f"{stem}.scales" not in by_name or f"{stem}.qzeros" not in by_name:
        return None
    parts = {key: by_name[f"{stem}.{key}"] for key in ("qweight", "scales", "qzeros")}
    names = {f"{stem}.{key}" for key in ("qweight", "scales", "qzeros", "g_idx")}
    groups, outputs = parts["scales"].shape
    words = parts["qweight"].shape[0]
    # What is read whole beside the words is no more than they are.
    if (
        groups > 32 * words
        or parts["qzeros"].shape[0] != groups
        or _count(parts["qzeros"]) > _count(parts["scales"])
    ):
        raise UnreadableModel(f"the scales of {stem} do not fit its weights")
    if parts["qweight"].shape[1] == outputs:
        bits = 4
        if f"{stem}.g_idx" in by_name:
            parts["g_idx"] = by_name[f"{stem}.g_idx"]
            bits = _bits(stem, words, parts["g_idx"].shape[0] * parts["g_idx"].shape[1])
        shape = (outputs, words * (32 // bits))
        return _packed(stem, f"GPTQ-INT{bits}", shape, parts), names
    if parts["qweight"].shape[1] * 8 == outputs:
        return _packed(stem, "AWQ-INT4", (outputs, words), parts), names
    return None


def _compressed(stem: str, by_name: dict[str, Stored]) -> _Joined:
    keys = {"packed": "packed", "scales": "scale", "shape": "shape", "zeros": "zero_point"}
    parts = {
        key: by_name[f"{stem}.weight_{name}"]
        for key, name in keys.items()
        if f"{stem}.weight_{name}" in by_name
    }
    rows, words = parts["packed"].shape
    columns = words * 8
    if "shape" in parts and _count(parts["shape"]) == 2:
        said = parts["shape"].rows(0, parts["shape"].shape[0]).ravel()
        columns = int(said[-1]) if len(said) == 2 and 0 < said[-1] <= words * 16 else columns
    bits = _bits(stem, words, columns)
    if any(_count(parts[key]) > rows * columns for key in ("scales", "zeros") if key in parts):
        raise UnreadableModel(f"the scales of {stem} do not fit its weights")
    names = {f"{stem}.weight_{name}" for name in (*keys.values(), "g_idx")}
    return _packed(stem, f"CT-INT{bits}", (rows, columns), parts), names


def _bits(stem: str, words: int, codes: int) -> int:
    """How many bits each of `codes` numbers has in so many 32-bit words, the last partly filled."""
    found = next((bits for bits in _CODE_BITS if -(-codes // (32 // bits)) == words), None)
    if found is None:
        raise UnreadableModel(f"{stem} packs {codes} weights into {words} words: not understood")
    return found


def _blocks(name: str, by_name: dict[str, Stored]) -> _Joined:
    """A bitsandbytes matrix of 4 bits, by the state that it keeps beside its codes."""
    stem, found, kind = name.partition(_STATE)
    if not found or f"{stem}weight" not in by_name:
        return None
    keys = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    beside = {key: by_name.get(f"{stem}weight.{key}") for key in keys}
    parts = {key: tensor for key, tensor in beside.items() if tensor is not None}
    parts |= {"codes": by_name[f"{stem}weight"], "state": by_name[name]}
    names = {tensor.name for tensor in parts.values()}
    return _packed(stem.removesuffix("."), kind.upper(), _state(parts).shape, parts), names


def _state(parts: dict[str, Stored]) -> _BlockState:
    if _count(parts["state"]) > _STATE_BYTES_MAX:
        raise UnreadableModel(f"{parts['state'].name} has {_count(parts['state'])} numbers")
    try:
        document = parts["state"].raw().tobytes()
        state = msgspec.json.decode(document, type=_BlockState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableModel(f"{parts['state'].name} is not valid: {error}") from error
    if min(*state.shape, state.blocksize) <= 0 or state.nested_blocksize < 0:
        raise UnreadableModel(f"{parts['state'].name} says a shape or a block that cannot be")
    return state


def _scaled(name: str, by_name: dict[str, Stored]) -> _Joined:
    weight = by_name[name]
    if weight.storage not in ("F8_E4M3", "F8_E5M2", "I8"):
        return None
    stem = name.removesuffix(".weight")
    for suffix in ("weight_scale_inv", "weight_scale", "scale_weight", "scale", "SCB"):
        scale = by_name.get(f"{stem}.{suffix}")
        if scale is not None:
            # bitsandbytes keeps the greatest of a row, which stands for the code 127.
            kind = "INT8" if suffix == "SCB" else "FP8"
            parts = {"weight": weight, "scale": scale}
            # The scales are read for every few rows.
            if _count(scale) > max(weight.shape[0], _count(weight) // _SCALED_MIN):
                raise UnreadableModel(f"{scale.name} has as many scales as there are weights")
            return _packed(stem, kind, weight.shape, parts), {name, scale.name}
    return None


def _packed(stem: str, kind: str, shape: tuple[int, int], parts: dict[str, Stored]) -> Packed:
    if shape[0] * shape[1] > _ELEMENTS_MAX:
        raise UnreadableModel(f"{stem} packs {shape[0]} times {shape[1]} weights: too many")
    return Packed(f"{stem}.weight", kind, shape, parts)


def _count(tensor: Stored) -> int:
    return tensor.shape[0] * tensor.shape[1]


def _words(tensor: Stored) -> Words:
    """32-bit words as they are stored."""
    if tensor.storage not in ("I32", "U32"):
        raise UnreadableModel(f"{tensor.name} is {tensor.storage}, not packed 32-bit words")
    return tensor.raw().view(np.uint32).reshape(tensor.shape)


def _codes(words: Words, bits: int = 4) -> Codes:
    """The codes of each word, lowest first, along a new last axis."""
    codes = np.empty((*words.shape, 32 // bits), np.int16)
    for place in range(32 // bits):
        codes[..., place] = (words >> np.uint32(bits * place)) & np.uint32((1 << bits) - 1)
    return codes


def _unpack_gptq(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    outputs, inputs = shape
    scales = parts["scales"].rows(0, parts["scales"].shape[0])
    bits = 32 * parts["qweight"].shape[0] // inputs
    codes = _codes(_words(parts["qweight"]), bits).transpose(0, 2, 1).reshape(inputs, outputs)
    # The stored zero point is one less than the real one.
    zeros = _codes(_words(parts["qzeros"]), bits).reshape(len(scales), -1)[:, :outputs] + 1
    if "g_idx" in parts:
        group = parts["g_idx"].raw().view(np.int32).astype(np.int64)
    else:
        group = np.arange(inputs) // -(-inputs // len(scales))
    if len(group) != inputs or group.min() < 0 or group.max() >= len(scales):
        raise UnreadableModel(f"{parts['qweight'].name} has groups that do not fit its weights")
    return np.ascontiguousarray(((codes - zeros[group]) * scales[group]).T, np.float32)


def _unpack_awq(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    outputs, inputs = shape
    scales = parts["scales"].rows(0, parts["scales"].shape[0])
    codes = _codes(_words(parts["qweight"]))[..., _AWQ_ORDER].reshape(inputs, outputs)
    zeros = _codes(_words(parts["qzeros"]))[..., _AWQ_ORDER].reshape(len(scales), outputs)
    group = np.arange(inputs) // -(-inputs // len(scales))
    return np.ascontiguousarray(((codes - zeros[group]) * scales[group]).T, np.float32)


def _unpack_compressed(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    outputs, inputs = shape
    scales = parts["scales"].rows(0, parts["scales"].shape[0]).reshape(outputs, -1)
    words = _words(parts["packed"])
    bits = 32 // -(-inputs // words.shape[1])
    codes = _codes(words, bits).reshape(outputs, -1)[:, :inputs] - (1 << (bits - 1))
    group = np.arange(inputs) // -(-inputs // scales.shape[1])
    if "zeros" in parts and parts["zeros"].storage == "I32":  # packed along the outputs
        packed = _codes(_words(parts["zeros"]), bits).transpose(0, 2, 1)
        zeros = packed.reshape(-1, packed.shape[2])[:outputs] - (1 << (bits - 1))
        codes = codes - zeros[:, group]
    return np.asarray(codes * scales[:, group], np.float32)


def _unpack_blocks(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    state = _state(parts)
    count = shape[0] * shape[1]
    each, scaled = min(state.blocksize, count), _count(parts["absmax"])
    if -(-count // each) != scaled or _count(parts["codes"]) > count:
        raise UnreadableModel(f"{parts['state'].name} says blocks that its scales do not fit")
    raw = parts["codes"].raw()
    codes = np.stack([raw >> 4, raw & 15], axis=-1).ravel()[:count]
    table, scales = _flat(parts["quant_map"]), _flat(parts["absmax"])
    if "nested_absmax" in parts:
        nested = min(state.nested_blocksize, scaled)
        if -(-scaled // nested) != _count(parts["nested_absmax"]):
            raise UnreadableModel(f"{parts['state'].name} says blocks that do not fit")
        outer = _flat(parts["nested_absmax"]).repeat(nested)[: len(scales)]
        inner = _flat(parts["nested_quant_map"])[parts["absmax"].raw()]
        scales = inner * outer + np.float32(state.nested_offset)
    values = table[codes] * scales.repeat(each)[:count]
    return np.asarray(values.reshape(shape), np.float32)


def _flat(tensor: Stored) -> Floats:
    return tensor.rows(0, tensor.shape[0]).ravel()


_UNPACK: Final = {
    "GPTQ": _unpack_gptq,
    "AWQ": _unpack_awq,
    "CT": _unpack_compressed,
    "NF4": _unpack_blocks,
    "FP4": _unpack_blocks,
}
