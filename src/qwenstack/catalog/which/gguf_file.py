"""GGUF files: what the header states, with no tensor read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from qwenstack.catalog.which import digest
from qwenstack.catalog.which.claims import Claims, judge
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading
from qwenstack.catalog.which.shape import Shape
from qwenstack.engines.gguf import GgufMetadata, read_metadata

_SAID = (
    "general.name", "general.basename", "general.organization", "general.finetune",
    "general.quantized_by", "general.size_label", "general.license", "general.license.name",
    "general.license.link", "general.repo_url", "general.source.url", "general.source.repo_url",
)  # fmt: skip
_BASES_MAX = 4


def read(path: Path, index: Index) -> Iterator[Reading]:
    """The file at `path`; raises GgufError where it is no GGUF, OSError where unreadable."""
    found = read_metadata(path)
    claims = Claims(
        shape=_shape(found),
        made_from=_bases(found),
        name=found.texts.get("general.name", ""),
        publisher=found.texts.get("general.quantized_by")
        or found.texts.get("general.organization", ""),
        repo=found.texts.get("general.repo_url", ""),
        licence_named=_licence(found),
    )
    for key in _SAID:
        claims.say(key, found.texts.get(key, ""))
    if found.parameters is not None:
        claims.say("parameters", f"{found.parameters:,} (counted from the tensors' shapes)")
    claims.say("stored as", found.quantisation or "")
    if found.problem:
        claims.problems.append(f"{path.name}: {found.problem}")
    if found.architecture is None:
        claims.problems.append(f"{path.name}: the header names no architecture")
    reading = judge(claims, kind=Kind.GGUF_FILE, subject=path.name, index=index)
    known = digest.of_file(path, index)
    if known is not None:
        yield msgspec.structs.replace(
            known, kind=Kind.GGUF_FILE, subject=path.name, claims=reading.claims
        )
        return
    yield reading


def _shape(found: GgufMetadata) -> Shape:
    prefix = found.architecture or ""

    def number(key: str) -> int:
        return found.integers.get(f"{prefix}.{key}", 0)

    return Shape(
        model_type=prefix,
        hidden=number("embedding_length"),
        layers=number("block_count"),
        heads=number("attention.head_count"),
        kv_heads=number("attention.head_count_kv"),
        intermediate=number("feed_forward_length"),
        expert_intermediate=number("expert_feed_forward_length"),
        experts=number("expert_count"),
        vocabulary=found.lengths.get("tokenizer.ggml.tokens", 0),
    )


def _bases(found: GgufMetadata) -> list[str]:
    count = min(found.integers.get("general.base_model.count", 0), _BASES_MAX)
    bases = []
    for number in range(count):
        start = f"general.base_model.{number}."
        base = found.texts.get(start + "repo_url", "")
        if not base and (name := found.texts.get(start + "name")):
            organisation = found.texts.get(start + "organization", "")
            base = f"{organisation}/{name}".strip("/").replace(" ", "-")
        if base:
            bases.append(base)
    return bases


def _licence(found: GgufMetadata) -> str:
    stated = found.texts.get("general.license", "")
    if stated.casefold() in ("other", ""):
        return found.texts.get("general.license.name", "") or stated
    return stated
