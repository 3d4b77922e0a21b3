"""Weights packed by the integer and 8-bit quantisers of the safetensors world.

Layouts: GPTQ (`qweight` packs eight 4-bit codes along the inputs, `qzeros`, `scales`, `g_idx`),
AWQ (`qweight` packs along the outputs in the order 0 2 4 6 1 3 5 7), compressed-tensors
(`weight_packed` along the inputs, `weight_scale`), and FP8 or INT8 with a scale beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qwenstack.hub.lineage.tensors import Floats, Indices, Stored, Tensor, UnreadableModel

_AWQ_ORDER: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_ELEMENTS_MAX: Final = 1 << 28


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
            if self.storage == "FP8":
                return self._scaled(rows)
            return _UNPACK[self.storage](self.parts, self.shape)[rows]
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise UnreadableModel(f"the packed parts of {self.name} do not fit") from error

    def _scaled(self, rows: Indices) -> Floats:
        values = self.parts["weight"].take(rows)
        scale = self.parts["scale"]
        grid = scale.rows(0, scale.shape[0])
        if grid.size == 1:
            return values * grid.reshape(())
        if scale.is_vector:
            grid = grid.reshape(-1, 1)
        tall, wide = -(-self.shape[0] // grid.shape[0]), -(-self.shape[1] // grid.shape[1])
        columns = np.repeat(grid[rows // tall], wide, axis=1)[:, : self.shape[1]]
        return np.asarray(values * columns, np.float32)


def join_packed(tensors: list[Stored]) -> list[Tensor]:
    """The tensors with each packed group replaced by the one matrix that it stands for."""
    by_name = {tensor.name: tensor for tensor in tensors}
    out: list[Tensor] = []
    used: set[str] = set()
    for name in by_name:
        for joined, names in filter(None, (_gptq(name, by_name), _scaled(name, by_name))):
            out.append(joined)
            used |= names
    out += [tensor for tensor in tensors if tensor.name not in used]
    return out


_Joined = tuple[Packed, set[str]] | None


def _gptq(name: str, by_name: dict[str, Stored]) -> _Joined:
    """GPTQ, AWQ or compressed-tensors, by the suffix and the shapes."""
    stem, _, suffix = name.rpartition(".")
    if suffix == "weight_packed" and f"{stem}.weight_scale" in by_name:
        parts = {"packed": by_name[name], "scales": by_name[f"{stem}.weight_scale"]}
        rows, words = by_name[name].shape
        names = {name, f"{stem}.weight_scale", f"{stem}.weight_shape", f"{stem}.weight_zero_point"}
        return _packed(stem, "CT-INT4", (rows, words * 8), parts), names
    if suffix != "qweight" or f"{stem}.scales" not in by_name or f"{stem}.qzeros" not in by_name:
        return None
    parts = {key: by_name[f"{stem}.{key}"] for key in ("qweight", "scales", "qzeros")}
    names = {f"{stem}.{key}" for key in ("qweight", "scales", "qzeros", "g_idx")}
    outputs = parts["scales"].shape[1]
    if parts["qweight"].shape[1] == outputs:
        if f"{stem}.g_idx" in by_name:
            parts["g_idx"] = by_name[f"{stem}.g_idx"]
        shape = (outputs, parts["qweight"].shape[0] * 8)
        return _packed(stem, "GPTQ-INT4", shape, parts), names
    if parts["qweight"].shape[1] * 8 == outputs:
        return _packed(stem, "AWQ-INT4", (outputs, parts["qweight"].shape[0]), parts), names
    return None


def _scaled(name: str, by_name: dict[str, Stored]) -> _Joined:
    weight = by_name[name]
    if weight.storage not in ("F8_E4M3", "F8_E5M2", "I8"):
        return None
    stem = name.removesuffix(".weight")
    for suffix in ("weight_scale_inv", "weight_scale", "scale_weight", "scale", "SCB"):
        scale = by_name.get(f"{stem}.{suffix}")
        if scale is not None:
            parts = {"weight": weight, "scale": scale}
            return _packed(stem, "FP8", weight.shape, parts), {name, scale.name}
    return None


def _packed(stem: str, kind: str, shape: tuple[int, int], parts: dict[str, Stored]) -> Packed:
    if shape[0] * shape[1] > _ELEMENTS_MAX:
        raise UnreadableModel(f"{stem} packs {shape[0]} times {shape[1]} weights: too many")
    return Packed(f"{stem}.weight", kind, shape, parts)


def _words(tensor: Stored) -> Indices:
    """32-bit words as they are stored."""
    if tensor.storage not in ("I32", "U32"):
        raise UnreadableModel(f"{tensor.name} is {tensor.storage}, not packed 32-bit words")
    words = tensor.raw().view(np.uint32).reshape(tensor.shape)
    return words.astype(np.int64)


def _nibbles(words: Indices) -> Indices:
    """Eight 4-bit codes of each word, lowest first, along a new last axis."""
    return (words[..., None] >> (4 * np.arange(8))) & 15


def _unpack_gptq(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    outputs, inputs = shape
    scales = parts["scales"].rows(0, parts["scales"].shape[0])
    codes = _nibbles(_words(parts["qweight"])).transpose(0, 2, 1).reshape(inputs, outputs)
    # The stored zero point is one less than the real one.
    zeros = _nibbles(_words(parts["qzeros"])).reshape(len(scales), -1)[:, :outputs] + 1
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
    codes = _nibbles(_words(parts["qweight"]))[..., _AWQ_ORDER].reshape(inputs, outputs)
    zeros = _nibbles(_words(parts["qzeros"]))[..., _AWQ_ORDER].reshape(len(scales), outputs)
    group = np.arange(inputs) // -(-inputs // len(scales))
    return np.ascontiguousarray(((codes - zeros[group]) * scales[group]).T, np.float32)


def _unpack_compressed(parts: dict[str, Stored], shape: tuple[int, int]) -> Floats:
    outputs, inputs = shape
    scales = parts["scales"].rows(0, parts["scales"].shape[0]).reshape(outputs, -1)
    codes = _nibbles(_words(parts["packed"])).reshape(outputs, inputs) - 8
    group = np.arange(inputs) // -(-inputs // scales.shape[1])
    return (codes * scales[:, group]).astype(np.float32)


_UNPACK: Final = {
    "GPTQ-INT4": _unpack_gptq,
    "AWQ-INT4": _unpack_awq,
    "CT-INT4": _unpack_compressed,
}
