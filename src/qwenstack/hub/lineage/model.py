"""A model at hand: opened from a folder, a file, or the files of a release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.hub.lineage.bytes_at import ByteSource, MappedFile
from qwenstack.hub.lineage.packed import join_packed
from qwenstack.hub.lineage.roles import Roles, assign_roles
from qwenstack.hub.lineage.tensors import FULL_PRECISION, Stored, Tensor, UnreadableModel
from qwenstack.hub.lineage.weight_files import read_gguf, read_safetensors

_FILES_MAX: Final = 10_000
_CONFIG_BYTES_MAX: Final = 1 << 20
ADAPTER_FILE: Final = "adapter_model.safetensors"
_EXECUTABLE: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class AdapterConfig(msgspec.Struct, frozen=True):
    """What a PEFT adapter says of itself; believed in nothing that can be checked."""

    base_model_name_or_path: str | None = None
    peft_type: str = "LORA"
    r: int = 0
    lora_alpha: float = 0.0


@dataclass(frozen=True)
class Model:
    """A model's tensors by role. `adapter` is set where they are low-rank updates of another's.

    `renamed` says that its names are in no common scheme.
    """

    name: str
    roles: Roles
    tensors: tuple[Tensor, ...]
    adapter: AdapterConfig | None = None
    renamed: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers its tensors hold."""
        return sum(tensor.shape[0] * tensor.shape[1] for tensor in self.tensors)

    @property
    def storage(self) -> str:
        """The storage type that holds most of its layers' weights; tables are often kept finer."""
        counts: dict[str, int] = {}
        inside = [tensor for layer in self.roles.layers for tensor in layer.values()]
        for tensor in inside or self.tensors:
            size = tensor.shape[0] * tensor.shape[1]
            counts[tensor.storage] = counts.get(tensor.storage, 0) + size
        return max(counts, key=lambda kind: counts[kind]) if counts else "none"

    @property
    def quantised(self) -> bool:
        """Whether most of its weights are kept in less than 16-bit floats."""
        return self.storage not in FULL_PRECISION


def open_path(path: Path, *, name: str | None = None) -> Model:
    """Open a folder or a file, as `name` or under its own.

    Raises UnreadableModel, or OSError where there is nothing.
    """
    if path.is_file():
        return open_files([(path.name, MappedFile(path))], name=name or path.name)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    files = sorted(file for file in path.iterdir() if file.is_file())[:_FILES_MAX]
    wanted = [file for file in files if file.suffix in (".safetensors", ".gguf")]
    if not wanted:
        others = [file.name for file in files if file.suffix in _EXECUTABLE]
        reason = f": {others[0]} may hold code and is not loaded" if others else ""
        raise UnreadableModel(f"{path} holds no .safetensors or .gguf file{reason}")
    config = path / "adapter_config.json"
    adapter = config.read_bytes() if config.is_file() else None
    sources = [(file.name, MappedFile(file)) for file in wanted]
    return open_files(sources, name=name or path.name, adapter_config=adapter)


def open_files(
    files: Iterable[tuple[str, ByteSource]], *, name: str, adapter_config: bytes | None = None
) -> Model:
    """Open the weight files of one model, given by name; several are the shards of one."""
    stored: list[Stored] = []
    metadata: dict[str, object] = {}
    files = _one_model(list(files))
    for file_name, source in files:
        if file_name.endswith(".gguf"):
            tensors, values = read_gguf(source, file_name)
            metadata = dict(values)
        elif file_name.endswith(".safetensors"):
            tensors = read_safetensors(source, file_name)
        else:
            raise UnreadableModel(f"{file_name} is neither .safetensors nor .gguf")
        stored += tensors
    tensors_ = join_packed(stored)
    adapter = _adapter(files, adapter_config)
    roles = assign_roles(tensors_, metadata)
    return Model(name, roles, tuple(tensors_), adapter, renamed=_renamed(tensors_))


def _one_model(files: list[tuple[str, ByteSource]]) -> list[tuple[str, ByteSource]]:
    """Of a folder with several models the one to read: safetensors shards, else one GGUF."""
    adapters = [file for file in files if file[0].rpartition("/")[2] == ADAPTER_FILE]
    if adapters:
        return adapters[:1]
    shards = [file for file in files if file[0].endswith(".safetensors")]
    if shards:
        return shards
    sharded = [file for file in files if "-of-" in file[0]]
    return sharded or files[:1]


def _renamed(tensors: list[Tensor]) -> bool:
    """Whether the names are neither Transformers' nor ggml's."""
    return not any(
        tensor.name.endswith(("embed_tokens.weight", "token_embd.weight")) for tensor in tensors
    )


def _adapter(files: list[tuple[str, ByteSource]], config: bytes | None) -> AdapterConfig | None:
    if not any(name.rpartition("/")[2] == ADAPTER_FILE for name, _ in files):
        return None
    if config is None:
        return AdapterConfig()
    try:
        return msgspec.json.decode(config[:_CONFIG_BYTES_MAX], type=AdapterConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableModel(f"adapter_config.json is not valid: {error}") from error
