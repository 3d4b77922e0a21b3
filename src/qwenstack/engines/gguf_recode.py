"""A GGUF file with its Q5_0 tensors stored as Q8_0, for a reader that lacks Q5 (OpenVINO GenAI).

Nothing is lost: both types keep 32 weights a block as one half-precision scale times small
integers, and five bits fit in eight. So the weights are the very same numbers (ggml's
`ggml-common.h` and `ggml-quants.c` define the layouts); only the file grows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenstack.engines.gguf import GgufLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECODED: Final = frozenset({"Q5_0"})
_Q5_0_BLOCK_BYTES: Final = 22
_Q8_0_BLOCK_BYTES: Final = 34


def needs_recoding(layout: GgufLayout) -> bool:
    """Whether any tensor has a type that `recode` stores otherwise."""
    return any(tensor.type_name in RECODED for tensor in layout.tensors)


def recode(source: Path, target: Path) -> None:
    """Write `source`, a GGUF whose layout was read without an error, to `target`, Q5_0 as Q8_0.

    `target` is there whole or not at all. One tensor at a time is in memory. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    os.close(descriptor)
    partial = Path(name)
    try:
        _rewrite(source, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _rewrite(source: Path, target: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys

    reader = GGUFReader(source)
    architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
    writer = GGUFWriter(target, arch=architecture, endianess=reader.endianess)
    alignment = reader.fields.get(Keys.General.ALIGNMENT)
    if alignment is not None:
        writer.data_alignment = alignment.contents()
    for field in reader.fields.values():
        if field.name == Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue  # the writer says those itself
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        recoded = tensor.tensor_type.name in RECODED
        writer.add_tensor_info(
            tensor.name,
            _recoded_shape(tensor.data.shape) if recoded else tensor.data.shape,
            tensor.data.dtype,
            _recoded_bytes(tensor.data.nbytes) if recoded else tensor.data.nbytes,
            GGMLQuantizationType.Q8_0 if recoded else tensor.tensor_type,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        data = tensor.data
        writer.write_tensor_data(q5_0_as_q8_0(data) if tensor.tensor_type.name in RECODED else data)
    writer.close()


def _recoded_bytes(size: int) -> int:
    return size // _Q5_0_BLOCK_BYTES * _Q8_0_BLOCK_BYTES


def _recoded_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the raw bytes: its last axis is one of blocks."""
    return (*shape[:-1], _recoded_bytes(shape[-1]))


def q5_0_as_q8_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Whole Q5_0 blocks (bytes, on the last axis) as Q8_0 blocks of the same weights.

    Q5_0: scale (2 bytes), the fifth bits of 32 weights (4), their low nibbles (16: first half of
    the block in the low ones), each weight less 16. Q8_0: scale (2), 32 signed bytes.
    """
    import numpy as np

    old = blocks.reshape(-1, _Q5_0_BLOCK_BYTES)
    nibbles = old[:, 6:]
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    high = np.unpackbits(old[:, 2:6], axis=1, bitorder="little")
    weights = (low | (high << 4)).astype(np.int8) - 16
    new = np.empty((len(old), _Q8_0_BLOCK_BYTES), np.uint8)
    new[:, :2] = old[:, :2]
    new[:, 2:] = weights.astype(np.int8).view(np.uint8)
    return new.reshape(*_recoded_shape(blocks.shape))
