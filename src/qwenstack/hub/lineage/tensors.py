"""Tensors as rows of 32-bit floats, whatever they are stored as, read a block at a time.

A tensor of more than two dimensions (fused experts) is cut into matrices along its first one.
Storage names are those of safetensors (`BF16`, `F8_E4M3`, …), of ggml (`Q4_K`, …), or of the
packed integer formats in `packed`. Dequantisation of ggml types is the `gguf` package's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

import gguf
import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.bytes_at import Bytes, ByteSource

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_PLAIN_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1,
    "I16": 2, "I32": 4, "U32": 4, "I64": 8, "BOOL": 1,
}  # fmt: skip
_INTEGERS: Final = {
    "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "U32": np.uint32,
    "I64": np.int64, "BOOL": np.uint8,
}  # fmt: skip
_GGML: Final = {kind.name: kind for kind in gguf.GGMLQuantizationType}
_BLOCK_FLOATS: Final = 1 << 16  # converted at a time, so that the work stays in the cache
FULL_PRECISION: Final = frozenset({"F64", "F32", "F16", "BF16"})


class UnreadableModel(ValueError):
    """A file that is no model, is damaged, or is stored in a way that is not understood."""


class Tensor(Protocol):
    """A named matrix; a vector is a matrix of one row."""

    @property
    def name(self) -> str:
        """As the file calls it."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs), columns (inputs)."""
        ...

    @property
    def storage(self) -> str:
        """How the numbers are kept."""
        ...

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        ...

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in one piece, row after row."""

    name: str
    storage: str
    shape: tuple[int, int]
    source: ByteSource
    offset: int
    is_vector: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.storage, self.shape[1])

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        stop = min(stop, self.shape[0])
        width = self.row_bytes
        raw = self.source.read(self.offset + start * width, max(stop - start, 0) * width)
        return decode(raw.reshape(-1, width), self.storage)

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers, each read where it lies."""
        if len(rows) and bool((np.diff(rows) == 1).all()):
            return self.rows(int(rows[0]), int(rows[-1]) + 1)
        width = self.row_bytes
        raw = np.empty((len(rows), width), np.uint8)
        for place, row in enumerate(rows.tolist()):
            raw[place] = self.source.read(self.offset + row * width, width)
        return decode(raw, self.storage)

    def raw(self) -> Bytes:
        """The bytes as they are stored."""
        return self.source.read(self.offset, self.shape[0] * self.row_bytes)

    def split(self, parts: int) -> list[Stored]:
        """`parts` equal runs of rows, such as the experts of a fused tensor."""
        each = self.shape[0] // parts
        return [
            replace(
                self,
                name=f"{self.name}[{part}]",
                shape=(each, self.shape[1]),
                offset=self.offset + part * each * self.row_bytes,
            )
            for part in range(parts)
        ]


@dataclass(frozen=True)
class RowRange:
    """Some rows of another tensor, such as the queries of a fused query-key-value matrix."""

    name: str
    whole: Tensor
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.count, self.whole.shape[1]

    @property
    def storage(self) -> str:
        """As the whole is kept."""
        return self.whole.storage

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        return self.whole.rows(self.first + start, self.first + min(stop, self.count))

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers."""
        return self.whole.take(rows + self.first)


@dataclass(frozen=True)
class Reordered:
    """Another tensor's rows in another order."""

    whole: Tensor
    order: Indices

    @property
    def name(self) -> str:
        """As the file calls it."""
        return self.whole.name

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.whole.shape

    @property
    def storage(self) -> str:
        """As the whole is kept."""
        return self.whole.storage

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        return self.whole.take(self.order[start:stop])

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers."""
        return self.whole.take(self.order[rows])


@dataclass(frozen=True)
class Stacked:
    """Matrices joined, experts after experts: below each other, or side by side."""

    name: str
    parts: tuple[Tensor, ...]
    side_by_side: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        rows, columns = self.parts[0].shape
        count = len(self.parts)
        return (rows, columns * count) if self.side_by_side else (rows * count, columns)

    @property
    def storage(self) -> str:
        """As the first is kept."""
        return self.parts[0].storage

    def rows(self, start: int, stop: int) -> Floats:
        """Rows from `start` to before `stop`."""
        return self.take(np.arange(start, min(stop, self.shape[0])))

    def take(self, rows: Indices) -> Floats:
        """The rows of these numbers."""
        if self.side_by_side:
            return np.concatenate([part.take(rows) for part in self.parts], axis=1)
        each = self.parts[0].shape[0]
        out = np.empty((len(rows), self.shape[1]), np.float32)
        for part in np.unique(rows // each).tolist():
            chosen = rows // each == part
            out[chosen] = self.parts[part].take(rows[chosen] % each)
        return out


def row_bytes(storage: str, columns: int) -> int:
    """Bytes that `columns` numbers take. Raises UnreadableModel for a type that is not known."""
    if storage in _PLAIN_BYTES:
        return _PLAIN_BYTES[storage] * columns
    kind = _GGML.get(storage)
    if kind is None or kind not in gguf.constants.GGML_QUANT_SIZES:
        raise UnreadableModel(f"the storage type {storage} is not known")
    block, block_bytes = gguf.constants.GGML_QUANT_SIZES[kind]
    if columns % block:
        raise UnreadableModel(f"a row of {columns} is no multiple of {storage}'s block of {block}")
    return int(columns // block * block_bytes)


def decode(raw: Bytes, storage: str) -> Floats:
    """Rows of stored bytes as 32-bit floats."""
    if storage == "F32":
        return raw.view(np.float32) if raw.flags.c_contiguous else raw.copy().view(np.float32)
    if storage == "BF16":
        return _from_bf16(np.ascontiguousarray(raw).view(np.uint16))
    if storage in ("F16", "F64"):
        kind = np.float16 if storage == "F16" else np.float64
        return np.ascontiguousarray(raw).view(kind).astype(np.float32)
    if storage in ("F8_E4M3", "F8_E5M2"):
        table = _F8_E4M3 if storage == "F8_E4M3" else _F8_E5M2
        return np.asarray(table[raw], np.float32)
    if storage in _INTEGERS:
        return np.ascontiguousarray(raw).view(_INTEGERS[storage]).astype(np.float32)
    try:
        return np.asarray(gguf.quants.dequantize(raw, _GGML[storage]), np.float32)
    except (KeyError, NotImplementedError) as error:
        raise UnreadableModel(f"the storage type {storage} cannot be read") from error


def _from_bf16(raw: npt.NDArray[np.uint16]) -> Floats:
    out = np.zeros(raw.shape, np.float32)
    # The high half of each float; on a little-endian machine the second of its two words.
    out.view(np.uint16)[..., 1::2] = raw
    return out


def _f8_table(exponent_bits: int) -> Floats:
    """All 256 values of an 8-bit float: E4M3 (no infinities) or E5M2."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    value = np.where(
        exponent == 0,
        mantissa * 2.0 ** (1 - bias),
        (1 + mantissa) * 2.0 ** (exponent.astype(float) - bias),
    )
    return np.asarray(np.where(codes & 128, -value, value), np.float32)


_F8_E4M3: Final = _f8_table(4)
_F8_E5M2: Final = _f8_table(5)
