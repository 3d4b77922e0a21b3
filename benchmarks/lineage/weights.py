"""Model folders as plain arrays: read, write, shard and cast, without a framework."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]
Config = dict[str, Any]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def to_bf16(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16 (ties to even), as bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> Array:
    """The values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_safetensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of one file; floating point as float32, integers as they are."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in about["data_offsets"])
        flat = np.frombuffer(data[start:end], dtype=kinds[about["dtype"]])
        if about["dtype"] == "BF16":
            flat = from_bf16(flat)
        elif about["dtype"] == "F16":
            flat = flat.astype(np.float32)
        tensors[name] = flat.reshape(about["shape"])
    return tensors


def write_safetensors(file: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str) -> None:
    """One file; float tensors are stored as `dtype` (F32, F16 or BF16)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name, array in tensors.items():
        if array.dtype == np.int32:
            kind, blob = "I32", array.tobytes()
        elif array.dtype == np.float16:
            kind, blob = "F16", array.tobytes()
        elif dtype == "BF16":
            kind, blob = "BF16", to_bf16(array).tobytes()
        else:
            kind = dtype
            blob = array.astype(np.float16 if dtype == "F16" else np.float32).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def read_config(folder: Path) -> Config:
    """The model's `config.json`."""
    config: Config = json.loads((folder / "config.json").read_text())
    return config


def read_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a folder, whatever the shards."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_safetensors(file)
    return tensors


def write_folder(
    folder: Path,
    config: Config,
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    tokenizer_from: Path | None = None,
) -> None:
    """A folder as `save_pretrained` leaves it: config, one or several shards, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": names[dtype]}, indent=2))
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, folder)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    where: dict[str, str] = {}
    keys = list(tensors)
    for index in range(shards):
        part = keys[index::shards]
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / name, {key: tensors[key] for key in part}, dtype)
        where |= dict.fromkeys(part, name)
    index_text = json.dumps({"metadata": {}, "weight_map": where}, indent=2)
    (folder / "model.safetensors.index.json").write_text(index_text)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files where the source has them."""
    for name in _TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def count(tensors: Mapping[str, npt.NDArray[Any]]) -> int:
    """How many numbers the tensors hold."""
    return sum(int(array.size) for array in tensors.values())


def drift(tensors: Mapping[str, npt.NDArray[Any]], parent: Mapping[str, Any]) -> float | None:
    """Relative L2 distance over matrices of equal name and shape; None where there are none."""
    moved = norm = 0.0
    for name, array in tensors.items():
        other = parent.get(name)
        if other is None or other.shape != array.shape or array.ndim < 2:
            continue
        moved += float(np.square(array - other, dtype=np.float64).sum())
        norm += float(np.square(other, dtype=np.float64).sum())
    return (moved / norm) ** 0.5 if norm else None
