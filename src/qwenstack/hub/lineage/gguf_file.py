"""The tensor table of a GGUF file, read as a hostile thing.

The engines' reader (`engines.gguf`) says what a file can be served as; this one says where each
tensor lies, and passes over everything else.
"""

from __future__ import annotations

import struct
from typing import Final

import gguf

from qwenstack.hub.lineage.bytes_at import ByteSource
from qwenstack.hub.lineage.tensors import Stored, UnreadableModel, row_bytes

_MAGIC: Final = b"GGUF"
_KEYS_MAX: Final = 4096
_TENSORS_MAX: Final = 65_536
_STRING_BYTES_MAX: Final = 4 * 1024 * 1024
_ARRAY_ITEMS_MAX: Final = 4_000_000
_DIMENSIONS_MAX: Final = 4
_ELEMENTS_MAX: Final = 1 << 40
_WINDOW: Final = 1 << 20
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip

Scalar = int | float | str | bool


def read_gguf(source: ByteSource, where: str) -> tuple[list[Stored], dict[str, Scalar]]:
    """All tensors of the file and its scalar metadata; raises UnreadableModel."""
    try:
        return _Reader(source, where).read()
    except EOFError as error:
        raise UnreadableModel(f"{where} is cut short. Download it again") from error


class _Reader:
    def __init__(self, source: ByteSource, where: str) -> None:
        self._source = source
        self._where = where
        self._at = 0
        self._window = b""
        self._window_at = 0

    def read(self) -> tuple[list[Stored], dict[str, Scalar]]:
        if self._source.size < 24 or self._take(4) != _MAGIC:
            raise UnreadableModel(f"{self._where} is no GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise UnreadableModel(f"{self._where} is GGUF version {version}; known are 2 and 3")
        tensors = self._bounded("tensors", self._number("<Q"), _TENSORS_MAX)
        keys = self._bounded("metadata keys", self._number("<Q"), _KEYS_MAX)
        metadata: dict[str, Scalar] = {}
        for _ in range(keys):
            key = self._string()
            value = self._value(self._number("<I"))
            if value is not None:
                metadata[key] = value
        infos = [self._info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 65_536:
            raise UnreadableModel(f"{self._where} is damaged: its alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        out: list[Stored] = []
        for name, dimensions, kind, offset in infos:
            out += self._tensor(name, dimensions, kind, start + offset)
        return out, metadata

    def _tensor(self, name: str, dimensions: list[int], kind: int, at: int) -> list[Stored]:
        try:
            storage = gguf.GGMLQuantizationType(kind).name
        except ValueError:
            return []  # a type of a later version: it takes part in nothing
        columns = dimensions[0]
        elements = 1
        for size in dimensions:
            elements *= size
            if not 0 < elements <= _ELEMENTS_MAX:
                raise UnreadableModel(
                    f"{self._where} is damaged: tensor {name!r} has the shape {dimensions}"
                )
        rows = elements // columns
        if at + rows * row_bytes(storage, columns) > self._source.size:
            raise UnreadableModel(
                f"{self._where} is damaged or cut short: tensor {name!r} reaches past its end. "
                "Download it again"
            )
        whole = Stored(
            name, storage, (rows, columns), self._source, at, is_vector=len(dimensions) < 2
        )
        return whole.split(dimensions[2]) if len(dimensions) == 3 else [whole]

    def _info(self) -> tuple[str, list[int], int, int]:
        name = self._string()
        count = self._number("<I")
        if not 1 <= count <= _DIMENSIONS_MAX:
            raise UnreadableModel(
                f"{self._where} is damaged: tensor {name!r} has {count} dimensions"
            )
        dimensions = [self._number("<Q") for _ in range(count)]
        return name, dimensions, self._number("<I"), self._number("<Q")

    def _value(self, kind: int) -> Scalar | None:
        """A scalar or a string; arrays are passed over."""
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            layout = _SCALARS[kind]
            value: Scalar = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
            return value
        if kind != _ARRAY:
            raise UnreadableModel(f"{self._where} is damaged: a value has the type {kind}")
        item = self._number("<I")
        count = self._bounded("array items", self._number("<Q"), _ARRAY_ITEMS_MAX)
        if item == _STRING:
            self._skip_strings(count)
        elif item in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[item]))
        else:
            raise UnreadableModel(f"{self._where} is damaged: an array has the type {item}")
        return None

    def _bounded(self, what: str, value: int, limit: int) -> int:
        if value > limit:
            raise UnreadableModel(f"{self._where} claims {value} {what}, over {limit}")
        return value

    def _string(self) -> str:
        size = self._bounded("bytes in a string", self._number("<Q"), _STRING_BYTES_MAX)
        return self._take(size).decode("utf-8", "replace")

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _skip(self, size: int) -> None:
        if size > self._source.size - self._at:
            raise EOFError
        self._at += size

    def _skip_strings(self, count: int) -> None:
        """Pass over a vocabulary: hundreds of thousands of strings, so in a plain loop."""
        while count:
            size = min(_WINDOW, self._source.size - self._at)
            window = self._source.read(self._at, size).tobytes()
            at = 0
            while count and at + 8 <= size:
                after = at + 8 + int.from_bytes(window[at : at + 8], "little")
                if after > size:
                    break
                at = after
                count -= 1
            if at == 0:  # one string longer than the window, or none
                self._skip(self._number("<Q"))
                count -= 1
            self._at += at

    def _take(self, size: int) -> bytes:
        start = self._at - self._window_at
        if start < 0 or start + size > len(self._window):
            wanted = max(size, min(_WINDOW, self._source.size - self._at))
            self._window = self._source.read(self._at, wanted).tobytes()
            self._window_at, start = self._at, 0
        self._at += size
        return self._window[start : start + size]
