"""Where each tensor of a weight file lies: what an upload's checks read, as rows of numbers."""

from __future__ import annotations

import io
from typing import BinaryIO, Final, cast

from qwenstack.engines.gguf import GgufError, read_layout
from qwenstack.hub.formats.safetensors import SafetensorsError, read_header
from qwenstack.hub.lineage.bytes_at import ByteSource
from qwenstack.hub.lineage.tensors import Stored, UnreadableModel, row_bytes

_TENSORS_MAX: Final = 400_000
_EXPERTS_MAX: Final = 4096  # of a fused tensor
_BUFFER_BYTES: Final = 1 << 20

Scalar = int | float | str | bool


def read_safetensors(source: ByteSource, where: str) -> list[Stored]:
    """All tensors of the file; raises UnreadableModel with what is wrong with it."""
    try:
        header = read_header(_opened(source), source.size)
    except SafetensorsError as error:
        raise UnreadableModel(f"{where}: {error}") from error
    out: list[Stored] = []
    for each in header.tensors:
        if each.elements:
            columns = each.shape[-1] if each.shape else 1
            at = header.data_start + each.start
            experts = each.shape[0] if len(each.shape) == 3 and each.shape[1] > 1 else 1
            shape = each.elements // columns, columns
            is_vector = len(each.shape) < 2
            _add(out, Stored(each.name, each.dtype, shape, source, at, is_vector), experts, where)
    return out


def read_gguf(source: ByteSource, where: str) -> tuple[list[Stored], dict[str, Scalar]]:
    """All tensors of the file and its scalar metadata; raises UnreadableModel."""
    try:
        layout = read_layout(_opened(source), source.size)
    except GgufError as error:
        raise UnreadableModel(f"{where}: {error}") from error
    out: list[Stored] = []
    for each in layout.tensors:
        columns = each.shape[0]
        at = layout.data_start + each.offset
        experts = each.shape[2] if len(each.shape) == 3 else 1
        shape = each.weights // columns, columns
        is_vector = len(each.shape) < 2
        _add(out, Stored(each.name, each.type_name, shape, source, at, is_vector), experts, where)
    return out, dict(layout.values)


def _add(out: list[Stored], tensor: Stored, experts: int, where: str) -> None:
    """Add a tensor, a fused one as the experts that it holds."""
    try:
        size = tensor.shape[0] * row_bytes(tensor.storage, tensor.shape[1])
    except UnreadableModel:
        return  # of a type of a later version, or no whole blocks: it takes part in nothing
    if tensor.offset + size > tensor.source.size:
        raise UnreadableModel(
            f"{where} is damaged or cut short: tensor {tensor.name!r} reaches past its end. "
            "Download it again"
        )
    out += tensor.split(experts) if 1 < experts <= _EXPERTS_MAX else [tensor]
    if len(out) > _TENSORS_MAX:
        raise UnreadableModel(f"{where} holds over {_TENSORS_MAX} matrices")


class _Front(io.RawIOBase):
    """A source as a file that is read front to back."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._source.size)[whence]
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._source.size - self._at))
        buffer[:count] = self._source.read(self._at, count).tobytes() if count else b""
        self._at += count
        return count


def _opened(source: ByteSource) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Front(source), _BUFFER_BYTES))
