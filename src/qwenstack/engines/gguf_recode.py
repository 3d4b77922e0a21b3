"""A GGUF file with its Q5 tensors stored as Q8_0, for a reader that lacks Q5 (OpenVINO GenAI).

Nothing is lost: both types keep 32 weights a block as one half-precision scale times small
integers, and five bits fit in eight. So the weights are the very same numbers (ggml's
`ggml-common.h` and `ggml-quants.c` define the layouts); only the file grows.
"""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenstack.engines.gguf import GgufLayout, GgufTensor, read_layout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECODED: Final = frozenset({"Q5_0"})
_Q5_0_BLOCK_BYTES: Final = 22
_Q8_0: Final = 8
_Q8_0_BLOCK_BYTES: Final = 34
_BLOCKS_AT_ONCE: Final = 1 << 18


def needs_recoding(layout: GgufLayout) -> bool:
    """Whether any tensor has a type that `recode` stores otherwise."""
    return any(tensor.kind in RECODED for tensor in layout.tensors)


def recode(source: Path, target: Path) -> None:
    """Write `source` to `target` with its Q5_0 tensors as Q8_0; whole or not at all.

    Takes some hundred megabytes of memory. Raises GgufError and OSError.
    """
    layout = read_layout(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    partial = Path(name)
    try:
        with source.open("rb") as read, os.fdopen(descriptor, "wb") as write:
            write.write(_header(read.read(layout.header_end), layout))
            write.write(bytes(layout.data_at - layout.header_end))
            for tensor in layout.tensors:
                read.seek(layout.data_at + tensor.offset)
                written = 0
                left = tensor.size
                while left:
                    piece = read.read(min(left, _BLOCKS_AT_ONCE * _Q5_0_BLOCK_BYTES))
                    if not piece:
                        raise OSError(f"{source} became shorter while it was read")
                    left -= len(piece)
                    written += write.write(q5_0_as_q8_0(piece) if tensor.kind in RECODED else piece)
                write.write(bytes(-written % layout.alignment))
            write.flush()
            os.fsync(write.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _header(head: bytes, layout: GgufLayout) -> bytes:
    """The same header with the new types and offsets of the tensors."""
    new = bytearray(head)
    offset = 0
    for tensor in layout.tensors:
        entry = tensor.entry_end - 12
        if tensor.kind in RECODED:
            new[entry : entry + 4] = struct.pack("<I", _Q8_0)
        new[entry + 4 : entry + 12] = struct.pack("<Q", offset)
        size = _recoded_size(tensor)
        offset += size + -size % layout.alignment
    return bytes(new)


def _recoded_size(tensor: GgufTensor) -> int:
    if tensor.kind in RECODED:
        return tensor.size // _Q5_0_BLOCK_BYTES * _Q8_0_BLOCK_BYTES
    return tensor.size


def q5_0_as_q8_0(blocks: bytes) -> bytes:
    """Whole Q5_0 blocks as Q8_0 blocks of the same weights.

    Q5_0: scale (2 bytes), the fifth bits of 32 weights (4), their low nibbles (16: first half of
    the block in the low ones), each weight less 16. Q8_0: scale (2), 32 signed bytes.
    """
    import numpy as np

    old: npt.NDArray[np.uint8] = np.frombuffer(blocks, np.uint8).reshape(-1, _Q5_0_BLOCK_BYTES)
    nibbles = old[:, 6:]
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    high = np.unpackbits(old[:, 2:6], axis=1, bitorder="little")
    weights = (low | (high << 4)).astype(np.int8) - 16
    new = np.empty((len(old), _Q8_0_BLOCK_BYTES), np.uint8)
    new[:, :2] = old[:, :2]
    new[:, 2:] = weights.astype(np.int8).view(np.uint8)
    return new.tobytes()
