"""The tensor table of a safetensors file, read as a hostile thing."""

from __future__ import annotations

from typing import Final

import msgspec

from qwenstack.hub.lineage.bytes_at import ByteSource
from qwenstack.hub.lineage.tensors import Stored, UnreadableModel, row_bytes

_HEADER_BYTES_MAX: Final = 100 * 1024 * 1024  # the reference implementation's own limit
_DIMENSIONS_MAX: Final = 8
_TENSORS_MAX: Final = 400_000
_ELEMENTS_MAX: Final = 1 << 40


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(source: ByteSource, where: str) -> list[Stored]:
    """All tensors of the file; raises UnreadableModel with what is wrong with it."""
    if source.size < 8:
        raise UnreadableModel(f"{where} is no safetensors file: it has {source.size} bytes")
    size = int.from_bytes(source.read(0, 8).tobytes(), "little")
    if size > min(_HEADER_BYTES_MAX, source.size - 8):
        raise UnreadableModel(
            f"{where} is damaged: its header claims {size} bytes, the file has {source.size}"
        )
    try:
        table = msgspec.json.decode(source.read(8, size).tobytes(), type=dict[str, msgspec.Raw])
        table.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in table.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableModel(f"{where} is damaged: its header is not valid: {error}") from error
    if len(entries) > _TENSORS_MAX:
        raise UnreadableModel(f"{where} claims {len(entries)} tensors, over {_TENSORS_MAX}")
    out: list[Stored] = []
    for name, entry in entries.items():
        out += _tensor(source, where, name, entry, 8 + size)
    return out


def _tensor(source: ByteSource, where: str, name: str, entry: _Entry, data: int) -> list[Stored]:
    shape, (start, end) = entry.shape, entry.data_offsets
    elements = 1
    for size in shape:
        if size < 0 or len(shape) > _DIMENSIONS_MAX:
            raise UnreadableModel(f"{where} is damaged: tensor {name!r} has the shape {shape}")
        elements *= size
        if elements > _ELEMENTS_MAX:
            raise UnreadableModel(f"{where} is damaged: tensor {name!r} has the shape {shape}")
    if not 0 <= start <= end or data + end > source.size:
        raise UnreadableModel(
            f"{where} is damaged or cut short: tensor {name!r} lies at {start} to {end} of "
            f"{source.size - data} bytes. Download it again"
        )
    try:
        expected = row_bytes(entry.dtype, elements)
    except UnreadableModel:
        return []  # a type of a later version: it takes part in nothing
    if end - start != expected:
        raise UnreadableModel(
            f"{where} is damaged: tensor {name!r} of shape {shape} and type {entry.dtype} takes "
            f"{end - start} bytes instead of {expected}"
        )
    if not elements:
        return []
    columns = shape[-1] if shape else 1
    whole = Stored(
        name, entry.dtype, (elements // columns, columns), source, data + start, len(shape) < 2
    )
    if len(shape) == 3:
        return whole.split(shape[0]) if shape[1] > 1 else [whole]
    return [whole]
