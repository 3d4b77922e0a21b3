"""safetensors files: the header's length, its metadata and the tensors' shapes, and no tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qwenstack.catalog.which.bounded import Unreadable, decode_json, text_of
from qwenstack.catalog.which.claims import Claims, judge
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading
from qwenstack.catalog.which.shape import Shape

HEADER_BYTES_MAX: Final = 100_000_000
"""The format's own limit."""
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_LAYERS_MAX: Final = 10_000
_LORA: Final = re.compile(r"\.lora_[AB]\.")


def read(path: Path, index: Index) -> Iterator[Reading]:
    """The file at `path`; raises Unreadable or OSError."""
    claims = Claims()
    add_header(path, claims)
    if (path.parent / "config.json").is_file() or (path.parent / "adapter_config.json").is_file():
        from qwenstack.catalog.which.folder import add_files

        add_files(path.parent, claims)
    kind = Kind.ADAPTER if claims.adapter else Kind.SAFETENSORS_FILE
    yield judge(claims, kind=kind, subject=path.name, index=index)


def add_header(path: Path, claims: Claims) -> None:
    """Add what the header at `path` says to `claims`; raises Unreadable with the place."""
    tensors, metadata = _header(path)
    for key in ("format", "modelspec.title", "modelspec.license", "ss_base_model_version"):
        claims.say(key, text_of(metadata.get(key)))
    claims.licence_named = claims.licence_named or text_of(metadata.get("modelspec.license"))
    weights = 0
    layers: set[int] = set()
    shape: dict[str, list[int]] = {}
    for name, dimensions in tensors.items():
        count = 1
        for each in dimensions:
            count *= each
        weights += count
        if (match := _LAYER.search(name)) and len(match[1]) <= 5:
            layers.add(int(match[1]))
        shape.setdefault(name.rpartition("layers.0.")[2], dimensions)
    claims.adapter = claims.adapter or any(_LORA.search(name) for name in tensors)
    if claims.adapter:
        claims.say("tensors", f"{len(tensors)} of a LoRA adapter")
        return
    claims.say("tensors", f"{len(tensors):,} with {weights:,} weights in {path.name}")
    if not claims.shape.hidden:
        claims.shape = _shape(shape, len(layers))


def _shape(shape: dict[str, list[int]], layers: int) -> Shape:
    """What names and shapes show; the model's type only where a tensor of its own gives it away."""
    vocabulary, hidden = (shape.get("model.embed_tokens.weight") or [0, 0])[:2]
    norm = shape.get("self_attn.q_norm.weight") or [0]
    bias = shape.get("self_attn.q_proj.bias")
    model_type = "qwen3" if norm[0] else "qwen2" if bias else ""
    experts = 0
    if shape.get("mlp.gate.weight"):
        experts = shape["mlp.gate.weight"][0]
        model_type += "_moe" if model_type else ""
    return Shape(
        model_type=model_type if hidden and layers else "",
        hidden=hidden,
        layers=layers if layers <= _LAYERS_MAX else 0,
        intermediate=(shape.get("mlp.gate_proj.weight") or [0])[0],
        vocabulary=vocabulary,
        experts=experts,
        expert_intermediate=(shape.get("mlp.experts.0.gate_proj.weight") or [0])[0],
    )


def _header(path: Path) -> tuple[dict[str, list[int]], dict[str, object]]:
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(HEADER_BYTES_MAX, size - 8):
            raise Unreadable(
                f"{path.name}: byte 0: the header claims {length:,} bytes, the file has {size:,}: "
                "no safetensors file, or cut short"
            )
        raw = file.read(length)
    header = decode_json(raw, f"{path.name}: header")
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, list[int]] = {}
    for name, entry in header.items():
        dimensions = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(dimensions, list) or not all(
            isinstance(each, int) and 0 <= each < 1 << 40 for each in dimensions
        ):
            raise Unreadable(f"{path.name}: header: tensor {name[:80]!r} has no valid shape")
        tensors[name] = dimensions
    return tensors, metadata if isinstance(metadata, dict) else {}
