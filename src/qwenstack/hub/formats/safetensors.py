"""What a safetensors file says of itself, and whether its bytes bear it out.

The format (huggingface/safetensors, README, "Format"): 8 bytes little-endian with the length of a
JSON header, the header, the tensors' bytes without a hole. The header is parsed by its own narrow
grammar, so that a hostile one costs no more memory than its own size: whatever is not a name, a
dtype, a shape or a range ends the parse. Everything that the reference implementation (0.8) refuses
is refused here; beyond it, a name that comes twice, a field that the format does not know, and a
header that does not begin with a brace.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from qwenstack.hub.formats.reading import Readable, read_up_to

HEADER_BYTES_MAX: Final = 100_000_000  # the reference implementation's own limit
_TENSORS_MAX: Final = 200_000
_PIECE_BYTES: Final = 1024 * 1024
_NAME_BYTES_MAX: Final = 4096
_METADATA_BYTES_MAX: Final = 16 * 1024 * 1024
_DIMENSIONS_MAX: Final = 64
_INDEX_BYTES_MAX: Final = 32 * 1024 * 1024
_U64_MAX: Final = 2**64 - 1
_METADATA: Final = "__metadata__"

DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""The dtypes and the bits that one element takes."""

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_STRING: Final = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_NUMBER: Final = re.compile(rb"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])")


class SafetensorsError(ValueError):
    """A file that is no safetensors, is damaged or cut short, or claims what it does not hold."""


class Tensor(msgspec.Struct, frozen=True):
    """One tensor: its bytes are `start` to `end`, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds; one for a scalar."""
        return math.prod(self.shape)


class SafetensorsHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A checked header. `tensors` are in the order of their bytes."""

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]
    header_bytes: int
    file_bytes: int

    @property
    def data_start(self) -> int:
        """Where in the file the first tensor's bytes begin."""
        return 8 + self.header_bytes


def read_header(file: Readable, file_bytes: int) -> SafetensorsHeader:
    """Read and check the header at the reader's position; `file_bytes` is the whole file's size.

    Only the header is read. Raises SafetensorsError with what is wrong and the way out.
    """
    raw = read_up_to(file, 8)
    if len(raw) < 8 or file_bytes < 8:
        raise SafetensorsError(f"the file is cut short: {file_bytes} bytes hold no header length")
    header_bytes = int.from_bytes(raw, "little")
    if header_bytes > HEADER_BYTES_MAX:
        raise SafetensorsError(
            f"no safetensors file: its header claims {header_bytes} bytes, over {HEADER_BYTES_MAX}"
        )
    if header_bytes > file_bytes - 8:
        raise SafetensorsError(
            f"the file is cut short: its header claims {header_bytes} bytes, but {file_bytes - 8} "
            "follow. Upload it again"
        )
    # The first byte tells most of what is no safetensors, before 100 MB are read.
    start = read_up_to(file, min(header_bytes, 1))
    if start != b"{":
        raise SafetensorsError(f"no safetensors file: its header begins with {start!r}, not {{")
    document = bytearray(start)
    while len(document) < header_bytes:
        piece = read_up_to(file, min(header_bytes - len(document), _PIECE_BYTES))
        if not piece:
            raise SafetensorsError("the file is cut short in its header. Upload it again")
        if control := _CONTROL.search(piece):
            raise SafetensorsError(
                f"the header is damaged at byte {len(document) + control.start()}: it holds the "
                f"control character {control[0]!r}"
            )
        document += piece
    metadata, tensors = _Parser(document).header()
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_layout(tensors, file_bytes - 8 - header_bytes)
    return SafetensorsHeader(
        tensors=tuple(tensors),
        metadata=metadata,
        header_bytes=header_bytes,
        file_bytes=file_bytes,
    )


def _check_layout(tensors: list[Tensor], data_bytes: int) -> None:
    """The ranges follow each other from 0 to the end, and each is as long as its shape says."""
    end = 0
    for tensor in tensors:
        if tensor.start != end or tensor.end < tensor.start:
            what = "overlaps another" if tensor.start < end else "leaves a hole before it"
            if tensor.end < tensor.start:
                what = "ends before it begins"
            raise SafetensorsError(
                f"the file is damaged: tensor {tensor.name!r} at bytes {tensor.start} to "
                f"{tensor.end} {what}"
            )
        bits = _bits(tensor)
        if bits % 8:
            raise SafetensorsError(
                f"the file is damaged: tensor {tensor.name!r} of {bits} bits ends within a byte"
            )
        if bits // 8 != tensor.end - tensor.start:
            raise SafetensorsError(
                f"the file is damaged: tensor {tensor.name!r}, {tensor.dtype} "
                f"{list(tensor.shape)}, takes {bits // 8} bytes, but its range has "
                f"{tensor.end - tensor.start}"
            )
        end = tensor.end
    if end > data_bytes:
        raise SafetensorsError(
            f"the file is cut short: its tensors take {end} bytes, but {data_bytes} follow the "
            "header. Upload it again"
        )
    if end < data_bytes:
        raise SafetensorsError(
            f"the file is damaged: {data_bytes - end} bytes follow its last tensor"
        )


def _bits(tensor: Tensor) -> int:
    """The size in bits. Factors are multiplied in order, as 64-bit code does: 0 saves no one."""
    elements = 1
    for extent in tensor.shape:
        elements *= extent
        if elements > _U64_MAX:
            raise SafetensorsError(
                f"the file is damaged: tensor {tensor.name!r} has a shape of 2^64 elements or more"
            )
    bits = elements * DTYPE_BITS[tensor.dtype]
    if bits > _U64_MAX:
        raise SafetensorsError(
            f"the file is damaged: tensor {tensor.name!r} claims 2^64 bits or more"
        )
    return bits


class _Parser:
    """The header's own grammar, on its bytes: no value is built that the format does not know."""

    def __init__(self, document: bytearray) -> None:
        self._document = document
        self._at = 0

    def header(self) -> tuple[dict[str, str], list[Tensor]]:
        metadata: dict[str, str] | None = None
        tensors: list[Tensor] = []
        names: set[str] = set()
        for name in self._members("the header"):
            if name == _METADATA:
                if metadata is not None:
                    raise self._error(f"{_METADATA} comes twice")
                metadata = self._metadata()
            elif name in names:
                raise self._error(f"the tensor {name!r} comes twice")
            elif len(tensors) == _TENSORS_MAX:
                raise self._error(f"it holds more than {_TENSORS_MAX} tensors")
            else:
                names.add(name)
                tensors.append(self._tensor(name))
        if not self._at_end():
            raise self._error("something follows the closing brace")
        return metadata or {}, tensors

    def _metadata(self) -> dict[str, str]:
        if self._literal(b"null"):
            return {}
        metadata: dict[str, str] = {}
        begin = self._at
        for key in self._members(_METADATA):
            if key in metadata:
                raise self._error(f"{_METADATA} has the key {key!r} twice")
            metadata[key] = self._string(f"the value of {key!r} in {_METADATA}")
            if self._at - begin > _METADATA_BYTES_MAX:
                raise self._error(f"{_METADATA} is over {_METADATA_BYTES_MAX} bytes")
        return metadata

    def _tensor(self, name: str) -> Tensor:
        dtype: str | None = None
        shape: tuple[int, ...] | None = None
        offsets: tuple[int, ...] | None = None
        for field in self._members(f"tensor {name!r}"):
            if field == "dtype" and dtype is None:
                dtype = self._string("a dtype")
                if dtype not in DTYPE_BITS:
                    raise self._error(f"tensor {name!r} has the unknown dtype {dtype[:40]!r}")
            elif field == "shape" and shape is None:
                shape = self._numbers(f"the shape of {name!r}")
            elif field == "data_offsets" and offsets is None:
                offsets = self._numbers(f"the range of {name!r}")
            else:
                raise self._error(f"tensor {name!r} has the field {field[:40]!r} twice or too many")
        if dtype is None or shape is None or offsets is None or len(offsets) != 2:
            raise self._error(f"tensor {name!r} lacks its dtype, its shape or a range of two")
        return Tensor(name, dtype, shape, *offsets)

    def _members(self, what: str) -> _Members:
        self._expect(b"{", what)
        return _Members(self, what)

    def _numbers(self, what: str) -> tuple[int, ...]:
        self._expect(b"[", what)
        numbers: list[int] = []
        if self._literal(b"]"):
            return ()
        while True:
            self._skip()
            match = _NUMBER.match(self._document, self._at)
            if match is None or len(numbers) == _DIMENSIONS_MAX:
                raise self._error(f"{what} is no short list of whole numbers")
            self._at = match.end()
            number = int(match[0])
            if number > _U64_MAX:
                raise self._error(f"{what} holds {number}, over 2^64 - 1")
            numbers.append(number)
            if self._literal(b"]"):
                return tuple(numbers)
            self._expect(b",", what)

    def _string(self, what: str) -> str:
        self._skip()
        match = _STRING.match(self._document, self._at)
        if match is None:
            raise self._error(f"{what} is no string")
        self._at = match.end()
        try:
            text = match[0].decode()
            value: str = json.loads(text) if "\\" in text else text[1:-1]
            value.encode()  # half of a surrogate pair is no text
        except UnicodeError as error:
            raise self._error(f"{what} is no UTF-8 text") from error
        return value

    def _expect(self, token: bytes, what: str) -> None:
        if not self._literal(token):
            raise self._error(f"{token.decode()} is missing in {what}")

    def _literal(self, token: bytes) -> bool:
        self._skip()
        found = self._document.startswith(token, self._at)
        if found:
            self._at += len(token)
        return found

    def _at_end(self) -> bool:
        self._skip()
        return self._at == len(self._document)

    def _skip(self) -> None:
        match = _SPACE.match(self._document, self._at)
        assert match is not None
        self._at = match.end()

    def _error(self, what: str) -> SafetensorsError:
        return SafetensorsError(f"the header is damaged at byte {self._at}: {what}")


class _Members:
    """An object's keys, one by one; the caller reads each value before it asks for the next."""

    def __init__(self, parser: _Parser, what: str) -> None:
        self._parser = parser
        self._what = what
        self._first = True

    def __iter__(self) -> _Members:
        return self

    def __next__(self) -> str:
        parser = self._parser
        if parser._literal(b"}"):
            raise StopIteration
        if not self._first:
            parser._expect(b",", self._what)
        self._first = False
        key = parser._string(f"a name in {self._what[:80]}")
        if len(key.encode()) > _NAME_BYTES_MAX:
            raise parser._error(f"a name in {self._what[:80]} is over {_NAME_BYTES_MAX} bytes")
        parser._expect(b":", self._what)
        return key


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, object] = msgspec.field(default_factory=dict)


class ShardIndex(msgspec.Struct, frozen=True):
    """`model.safetensors.index.json`: which shard holds which tensor. `total_size` is in bytes."""

    weight_map: dict[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards' file names, beside the index, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(document: bytes) -> ShardIndex:
    """Parse a shard index; raises SafetensorsError for one that is none, or names other folders."""
    if len(document) > _INDEX_BYTES_MAX:
        raise SafetensorsError(f"the index is over {_INDEX_BYTES_MAX} bytes")
    try:
        index = msgspec.json.decode(document, type=_Index)
        json.loads(document, object_pairs_hook=_no_duplicates)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise SafetensorsError(f"the index is no shard index: {error}") from error
    for name in set(index.weight_map.values()):
        if not name or "/" in name or "\\" in name or name in (".", ".."):
            raise SafetensorsError(
                f"the index names the shard {name[:200]!r}, not a file beside it"
            )
    total = index.metadata.get("total_size")
    if isinstance(total, float) and total.is_integer():
        total = int(total)  # some writers give it as 1.0e9
    return ShardIndex(index.weight_map, total if isinstance(total, int) else None)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise SafetensorsError("the index holds a name twice")
    return members


def compare_index(index: ShardIndex, shards: Mapping[str, SafetensorsHeader]) -> list[str]:
    """In what the index and the shards' own headers disagree, a sentence each; empty for none.

    `shards` are the checked headers of the safetensors files beside the index, by file name.
    """
    faults: list[str] = []
    total = 0
    for name in index.shards:
        header = shards.get(name)
        if header is None:
            faults.append(f"the index names the shard {name!r}, which is not there")
            continue
        held = {tensor.name for tensor in header.tensors}
        said = {tensor for tensor, shard in index.weight_map.items() if shard == name}
        total += header.file_bytes - header.data_start
        for words, names in (
            (f"the index places in {name!r} what it does not hold", said - held),
            (f"{name!r} holds what the index does not place there", held - said),
        ):
            if names:
                faults.append(f"{words}: {min(names)!r} ({len(names)} tensors)")
    if index.total_size is not None and not faults and index.total_size != total:
        faults.append(
            f"the index says total_size {index.total_size}; the shards hold {total} bytes"
        )
    return faults
