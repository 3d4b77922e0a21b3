"""Which releases a model can be, by the shape of its decoder. A shape proves no origin."""

from __future__ import annotations

from typing import Final

import msgspec

from qwenstack.catalog.model import Architecture
from qwenstack.catalog.which.index import Index

_PADDED: Final = 1.01
"""Quantised copies pad the feed-forward width up to a multiple (29 568 to 29 696)."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration or a header says of the decoder; 0 where it says nothing."""

    model_type: str = ""
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    intermediate: int = 0
    expert_intermediate: int = 0
    experts: int = 0
    vocabulary: int = 0

    @property
    def is_qwen(self) -> bool:
        """Whether the model's type is one of the family's."""
        return self.model_type.replace("_", "").startswith(("qwen", "qwq"))

    def describe(self) -> str:
        """In words, for a person."""
        parts = [f"{self.layers} layers", f"{self.hidden} wide"]
        if self.experts:
            parts.append(f"{self.experts} experts")
        elif self.intermediate:
            parts.append(f"feed-forward {self.intermediate}")
        return f"{self.model_type or 'unnamed type'}, " + ", ".join(parts)


def releases_of(shape: Shape, index: Index) -> tuple[str, ...]:
    """Names of the releases with this shape: none for another family, several for shared shapes."""
    if not shape.is_qwen or not shape.hidden or not shape.layers:
        return ()
    fitting = {each.id for each in index.catalogue.architectures if _fits(shape, each)}
    named = [each for each in index.catalogue.releases if each.architecture in fitting]
    wanted = _plain_type(shape.model_type)
    same = [
        each
        for each in named
        if each.model_type.value is not None and _plain_type(each.model_type.value) == wanted
    ]
    return tuple(each.name for each in (same or named))


def _fits(shape: Shape, known: Architecture) -> bool:
    if (shape.hidden, shape.layers) != (known.hidden, known.layers):
        return False
    if shape.heads and shape.heads != known.heads:
        return False
    if shape.kv_heads and shape.kv_heads != known.kv_heads:
        return False
    if shape.experts != known.experts:
        return False
    if known.experts:
        return (
            not shape.expert_intermediate or shape.expert_intermediate == known.expert_intermediate
        )
    if not shape.intermediate:
        return True
    # Qwen's first configurations store the width of both halves together.
    return shape.intermediate == 2 * known.intermediate or (
        known.intermediate <= shape.intermediate <= known.intermediate * _PADDED
    )


def _plain_type(model_type: str) -> str:
    return model_type.replace("_", "").replace(".", "").removesuffix("text")
