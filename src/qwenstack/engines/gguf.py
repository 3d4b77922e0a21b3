"""What a GGUF file says of itself, read from its header without touching a tensor.

The format is specified in ggml's `docs/gguf.md`. A file comes from anywhere, so every count and
length in it is an assertion to be checked: against a limit, and against the bytes that there are.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_HEADER_BYTES_MAX: Final = 256 * 1024 * 1024
_KEYS_MAX: Final = 4096
_TENSORS_MAX: Final = 65_536
_KEY_BYTES_MAX: Final = 65_535  # the specification's own limit
_STRING_BYTES_MAX: Final = 4 * 1024 * 1024
_ARRAY_ITEMS_MAX: Final = 4_000_000  # of all arrays together
_DIMENSIONS_MAX: Final = 4
_ALIGNMENT_MAX: Final = 65_536
_SHARDS_MAX: Final = 1_000
_TEXT_CHARACTERS_KEPT: Final = 1_000
_TEMPLATE_KEY: Final = "tokenizer.chat_template"

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final[dict[int, struct.Struct]] = {
    number: struct.Struct(f"<{code}")
    for number, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
    }.items()
}  # fmt: skip

# llama.cpp's `llama_ftype`, the number in `general.file_type`: what the whole file is called.
_FILE_TYPES: Final[dict[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip

# `ggml_type`: name, weights a block, bytes a block. A type that is not here is not sized.
_TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


class GgufError(ValueError):
    """A file that is no GGUF, is damaged or cut short, or asserts what no honest file would."""


class _ArrayLength(msgspec.Struct, frozen=True):
    """Stands for an array: its length is all that is kept of it."""

    items: int


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file says of itself. `parameters` is counted from the tensors' shapes.

    `quantisation` is the name of the whole mixture (`Q4_K_M`), or of the most common tensor type
    where the file does not name it. `embeds` is set for a model made for embeddings: its file says
    how token vectors are pooled. `cache_bytes_per_token` is what the context of one token takes in
    F16, at most (an architecture that keeps less for some layers takes less).
    """

    version: int
    architecture: str
    name: str | None
    licence: str | None
    quantisation: str
    context_tokens: int | None
    embedding_width: int | None
    layers: int | None
    vocabulary: int
    cache_bytes_per_token: int
    chat_template: str | None
    embeds: bool
    parameters: int
    tensors: int
    file_bytes: int

    @property
    def is_qwen(self) -> bool:
        """Whether it has one of the family's architectures (qwen, qwen2, qwen3, qwen3moe, …)."""
        return self.architecture.startswith("qwen")


class GgufTensor(msgspec.Struct, frozen=True):
    """A tensor as the file lists it. `offset` counts from the start of the tensors' data.

    `bytes` is None for a type that is not known here; `shape` has the fastest axis first.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    bytes: int | None
    whole_blocks: bool

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class GgufLayout(msgspec.Struct, frozen=True, kw_only=True):
    """All that a header lists, of any GGUF: a model, one of its shards, an adapter, a vocabulary.

    `values` are the metadata that are no arrays, `lengths` the arrays' lengths; `templates` are
    the chat templates by name, `""` for the default one.
    """

    version: int
    values: dict[str, str | int | float | bool]
    lengths: dict[str, int]
    templates: dict[str, str]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_start: int
    file_bytes: int

    @property
    def architecture(self) -> str | None:
        """`general.architecture`, where it is named."""
        value = self.values.get("general.architecture")
        return value if isinstance(value, str) and value else None

    @property
    def quantisation(self) -> str | None:
        """The name of the whole mixture (`Q4_K_M`), where the file says it."""
        value = self.values.get("general.file_type")
        return _FILE_TYPES.get(value) if isinstance(value, int) else None


def read_layout(file: BinaryIO, file_bytes: int) -> GgufLayout:
    """List the header of the GGUF of `file_bytes` that `file`, seekable, is at the start of.

    Counts, lengths and types are checked, where the tensors lie is not. Raises GgufError.
    """
    return _Reader(file, file_bytes).layout()


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at `path`.

    Raises GgufError with what is wrong and the way out, OSError where the file can't be read.
    """
    with path.open("rb") as file:
        file_bytes = path.stat().st_size
        return _Reader(file, file_bytes).header()


class GgufMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a header states, as far as it can be read; nothing of it is proved.

    `texts` and `integers` are the single values by key (text is cut at 1 000 characters), `lengths`
    those of arrays. `parameters` is counted from the tensors' shapes, None where they can't be
    read. `problem` says what stopped the reading; what came before it stands.
    """

    texts: dict[str, str]
    integers: dict[str, int]
    lengths: dict[str, int]
    parameters: int | None
    quantisation: str | None
    problem: str | None

    @property
    def architecture(self) -> str | None:
        """`general.architecture`."""
        return self.texts.get("general.architecture")


def read_metadata(path: Path) -> GgufMetadata:
    """Read what the GGUF file at `path` states, a damaged file or a shard too, without judging it.

    Raises GgufError where it is no GGUF at all, OSError where it can't be read.
    """
    with path.open("rb") as file:
        return _Reader(file, path.stat().st_size).metadata()


class _Reader:
    """Reads one header; every read is checked against the file's end and the header's limit."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._left = min(file_bytes, _HEADER_BYTES_MAX)
        self._allowed = self._left
        self._items_left = _ARRAY_ITEMS_MAX

    def header(self) -> GgufHeader:
        version = self._preamble()
        tensor_count = self._bounded("tensor count", self._u64(), _TENSORS_MAX)
        values = self._metadata()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise GgufError("the file names no architecture (general.architecture)")
        _refuse_shard(values)
        parameters, common_type = self._tensors(tensor_count, _alignment(values))
        file_type = _integer(values, "general.file_type")
        return GgufHeader(
            version=version,
            architecture=architecture,
            name=_text(values, "general.name"),
            licence=_text(values, "general.license"),
            quantisation=_FILE_TYPES.get(-1 if file_type is None else file_type, common_type),
            context_tokens=_integer(values, f"{architecture}.context_length"),
            embedding_width=_integer(values, f"{architecture}.embedding_length"),
            layers=_integer(values, f"{architecture}.block_count"),
            vocabulary=_length(values, "tokenizer.ggml.tokens"),
            cache_bytes_per_token=_cache_bytes_per_token(values, architecture),
            chat_template=_text(values, _TEMPLATE_KEY),
            embeds=bool(_integer(values, f"{architecture}.pooling_type")),
            parameters=parameters,
            tensors=tensor_count,
            file_bytes=self._file_bytes,
        )

    def layout(self) -> GgufLayout:
        version = self._preamble()
        tensor_count = self._bounded("tensor count", self._u64(), _TENSORS_MAX)
        values = self._metadata()
        tensors = tuple(self._listed(number) for number in range(tensor_count))
        alignment = _alignment(values)
        prefix = _TEMPLATE_KEY + "."
        return GgufLayout(
            version=version,
            values={
                key: value
                for key, value in values.items()
                if isinstance(value, (str, int, float, bool))
            },
            lengths={
                key: value.items for key, value in values.items() if isinstance(value, _ArrayLength)
            },
            templates={
                key[len(prefix) :]: value
                for key, value in values.items()
                if isinstance(value, str) and (key == _TEMPLATE_KEY or key.startswith(prefix))
            },
            tensors=tensors,
            alignment=alignment,
            data_start=-(-self._consumed // alignment) * alignment,
            file_bytes=self._file_bytes,
        )

    def _listed(self, number: int) -> GgufTensor:
        name = self._string(f"the name of tensor {number}", _KEY_BYTES_MAX)
        shape, kind, offset = self._tensor(name)
        type_name, block, block_bytes = _TENSOR_TYPES.get(kind, (f"type {kind}", 0, 0))
        size = math.prod(shape) // block * block_bytes if block else None
        return GgufTensor(
            name, type_name, shape, offset, size, bool(block) and not shape[0] % block
        )

    def _metadata(self) -> dict[str, object]:
        key_count = self._bounded("metadata count", self._u64(), _KEYS_MAX)
        values: dict[str, object] = {}
        for _ in range(key_count):
            key = self._string("a metadata key", _KEY_BYTES_MAX)
            if key in values:
                raise GgufError(f"the file is damaged: it holds the metadata key {key!r} twice")
            values[key] = self._value(key)
        return values

    def metadata(self) -> GgufMetadata:
        self._preamble()
        values: dict[str, object] = {}
        parameters, common_type, problem = None, None, None
        try:
            tensor_count = self._bounded("tensor count", self._u64(), _TENSORS_MAX)
            for _ in range(self._bounded("metadata count", self._u64(), _KEYS_MAX)):
                key = self._string("a metadata key", _KEY_BYTES_MAX)
                values.setdefault(key, self._value(key))
            parameters, common_type = self._tensors(tensor_count, _alignment(values))
        except GgufError as error:
            problem = str(error)
        file_type = _integer(values, "general.file_type")
        return GgufMetadata(
            texts={k: v[:_TEXT_CHARACTERS_KEPT] for k, v in values.items() if isinstance(v, str)},
            integers={k: v for k, v in values.items() if isinstance(v, int)},
            lengths={k: v.items for k, v in values.items() if isinstance(v, _ArrayLength)},
            parameters=parameters,
            quantisation=_FILE_TYPES.get(-1 if file_type is None else file_type, common_type),
            problem=problem,
        )

    def _preamble(self) -> int:
        magic = self._take(4, "the magic number") if self._file_bytes >= 4 else b""
        if magic != _MAGIC:
            raise GgufError(
                f"not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}. Convert safetensors "
                "with llama.cpp's convert_hf_to_gguf.py, or give a .gguf file"
            )
        raw = self._take(4, "the version")
        version = int.from_bytes(raw, "little")
        if version not in _VERSIONS:
            if int.from_bytes(raw, "big") in _VERSIONS:
                raise GgufError("the file is big-endian; only little-endian GGUF is served")
            raise GgufError(f"GGUF version {version} is unknown; known are 2 and 3")
        return version

    def _value(self, key: str) -> object:
        kind = self._u32()
        if kind == _STRING:
            return self._string(key, _STRING_BYTES_MAX)
        if kind != _ARRAY:
            return self._scalar(key, kind)
        item = self._u32()
        count = self._bounded(f"length of {key!r}", self._u64(), self._items_left)
        self._items_left -= count
        if item == _STRING:
            for _ in range(count):
                self._skip(self._u64(), key)
        elif item in _SCALARS:
            self._skip(count * _SCALARS[item].size, key)
        else:
            raise GgufError(f"the file is damaged: {key!r} is an array of type {item}")
        return _ArrayLength(count)

    def _scalar(self, key: str, kind: int) -> object:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise GgufError(f"the file is damaged: {key!r} has the unknown type {kind}")
        value: object = layout.unpack(self._take(layout.size, key))[0]
        return value

    def _tensors(self, count: int, alignment: int) -> tuple[int, str]:
        """The number of weights and the most common tensor type; checks that all data is there."""
        weights_by_type: dict[str, int] = {}
        parameters = 0
        end = 0
        for number in range(count):
            name = self._string(f"the name of tensor {number}", _KEY_BYTES_MAX)
            shape, kind, offset = self._tensor(name)
            weights = math.prod(shape)
            if offset % alignment:
                raise GgufError(f"the file is damaged: tensor {name!r} is not aligned")
            type_name, block, block_bytes = _TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
            end = max(end, offset + weights // block * block_bytes)
            parameters += weights
            weights_by_type[type_name] = weights_by_type.get(type_name, 0) + weights
        if not count:
            raise GgufError("the file holds no tensors: it is a vocabulary only, not a model")
        start = -(-self._file.tell() // alignment) * alignment
        if start + end > self._file_bytes:
            raise GgufError(
                f"the file is cut short: its tensors reach to byte {start + end}, but it ends at "
                f"{self._file_bytes}. Download it again"
            )
        return parameters, max(weights_by_type, key=weights_by_type.__getitem__)

    def _tensor(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """The shape, the type and the offset of the next tensor."""
        dimensions = self._u32()
        if not 1 <= dimensions <= _DIMENSIONS_MAX:
            raise GgufError(f"the file is damaged: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        weights = math.prod(shape)
        # No type stores a weight in less than a bit.
        if not 0 < weights <= 8 * self._file_bytes:
            raise GgufError(
                f"the file is damaged or cut short: tensor {name!r} claims {weights} weights, more "
                f"than {self._file_bytes} bytes can hold"
            )
        kind = self._u32()
        offset = self._u64()
        if offset > self._file_bytes:
            raise GgufError(
                f"the file is damaged or cut short: tensor {name!r} lies past its end. "
                "Download it again"
            )
        return shape, kind, offset

    @property
    def _consumed(self) -> int:
        return self._allowed - self._left

    def _string(self, what: str, bytes_max: int) -> str:
        size = self._u64()
        if size > bytes_max:
            raise GgufError(f"the file is damaged: {what} claims {size} bytes, over {bytes_max}")
        try:
            return self._take(size, what).decode()
        except UnicodeDecodeError as error:
            raise GgufError(f"the file is damaged: {what} is no UTF-8 text") from error

    def _bounded(self, what: str, value: int, limit: int) -> int:
        if value > limit:
            raise GgufError(f"the file is damaged: its {what} is {value}, over {limit}")
        return value

    def _u32(self) -> int:
        return int.from_bytes(self._take(4, "a number"), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8, "a number"), "little")

    def _take(self, size: int, what: str) -> bytes:
        self._spend(size, what)
        data = self._file.read(size)
        if len(data) != size:
            raise GgufError(f"the file is cut short in {what}. Download it again")
        return data

    def _skip(self, size: int, what: str) -> None:
        self._spend(size, what)
        if size < 65_536:
            self._file.read(size)  # stays in the buffer; a seek would drop it
        else:
            self._file.seek(size, 1)

    def _spend(self, size: int, what: str) -> None:
        if size > self._left:
            if self._file_bytes > _HEADER_BYTES_MAX:
                raise GgufError(f"the file is damaged: {what} claims {size} bytes")
            raise GgufError(f"the file is cut short or damaged in {what}. Download it again")
        self._left -= size


def _alignment(values: dict[str, object]) -> int:
    alignment = _integer(values, "general.alignment")
    if alignment is None:
        return 32
    if not 8 <= alignment <= _ALIGNMENT_MAX or alignment % 8:
        raise GgufError(f"the file is damaged: general.alignment is {alignment}")
    return alignment


def _cache_bytes_per_token(values: dict[str, object], architecture: str) -> int:
    layers = _integer(values, f"{architecture}.block_count") or 0
    width = _integer(values, f"{architecture}.embedding_length") or 0
    heads = _integer(values, f"{architecture}.attention.head_count") or 1
    # Where it varies from layer to layer it is an array, and the heads are the upper bound.
    heads_kv = _integer(values, f"{architecture}.attention.head_count_kv") or heads
    key = _integer(values, f"{architecture}.attention.key_length") or width // max(heads, 1)
    value = _integer(values, f"{architecture}.attention.value_length") or key
    return 2 * layers * heads_kv * (key + value)


def _length(values: dict[str, object], key: str) -> int:
    value = values.get(key)
    return value.items if isinstance(value, _ArrayLength) else 0


def _refuse_shard(values: dict[str, object]) -> None:
    shards = _integer(values, "split.count")
    if shards is not None and shards > 1:
        raise GgufError(
            f"the file is one of {min(shards, _SHARDS_MAX)} shards of a model; join them with "
            "`llama-gguf-split --merge FIRST_SHARD WHOLE.gguf` and give the whole file"
        )


def _integer(values: dict[str, object], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(values: dict[str, object], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value else None
