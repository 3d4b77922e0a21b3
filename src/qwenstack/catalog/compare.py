"""Candidates side by side on what decides: terms, size, memory on a machine, price, measurements.

Memory is arithmetic on the catalogue's shapes: weights in a precision, and the KV cache of one
sequence. What is not known stays unknown; nothing is estimated from a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.catalog.load import Catalogue
from qwenstack.catalog.model import Architecture, HostedModel, Release
from qwenstack.catalog.picture import picture
from qwenstack.catalog.which import Answer

BITS: Final[dict[str, float]] = {
    # Bits a weight with its scales: ggml's blocks, and whole types.
    "bf16": 16.0,
    "q8_0": 8.5,
    "q4_k_m": 4.85,
}
_CACHE_BYTES: Final = 2  # keys and values in 16 bits


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a candidate, by whoever ran it: quality from 0 to 1, tokens a second."""

    quality: float | None = None
    task: str = ""
    tokens_per_s: float | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One column. None is unknown; `fits` is by precision, for the memory that was asked about.

    `memory_gib` holds the weights and the KV cache of one sequence of `context_tokens`.
    """

    reference: str
    layer: str
    release: str | None
    governed_by: str
    document: str
    obligations: tuple[str, ...]
    operator: str
    modality: tuple[str, ...] = ()
    parameters: int | None = None
    active_parameters: int | None = None
    context_tokens: int | None = None
    memory_gib: dict[str, float] = {}
    fits: dict[str, bool] = {}
    price_input: str | None = None
    price_output: str | None = None
    price_currency: str | None = None
    state: str | None = None
    measured: Measured = Measured()
    status: str = "unknown"

    @property
    def price_blended(self) -> Decimal | None:
        """Three parts input to one part output, per million tokens; of tiers, the first."""
        entry, exit_ = _amount(self.price_input), _amount(self.price_output)
        return None if entry is None or exit_ is None else (3 * entry + exit_) / 4


def candidate(
    answer: Answer,
    catalogue: Catalogue,
    *,
    context_tokens: int = 8192,
    memory_gib: float | None = None,
    measured: Mapping[str, Measured] | None = None,
) -> Candidate:
    """The column of one answer. Memory is for one sequence of `context_tokens`."""
    release = catalogue.find_release(answer.release or "")
    hosted = catalogue.find_hosted(answer.release or answer.reference)
    if release is None and hosted is not None and hosted.open_counterpart.value:
        release = catalogue.find_release(hosted.open_counterpart.value)
    on_api = answer.layer == "studio"
    needs = {} if on_api or release is None else _memory(release, catalogue, context_tokens)
    price = hosted.prices[0] if on_api and hosted is not None and hosted.prices else None
    return Candidate(
        reference=answer.reference,
        layer=answer.layer,
        release=answer.release,
        governed_by=answer.governing_document.kind.value,
        document=answer.governing_document.id,
        obligations=tuple(duty.kind for duty in answer.obligations),
        operator=answer.operator,
        modality=_modality(release, hosted),
        parameters=release.parameters.value if release else None,
        active_parameters=release.active_parameters.value if release else None,
        context_tokens=_context(release, hosted, on_api),
        memory_gib=needs,
        fits={} if memory_gib is None else {name: gib <= memory_gib for name, gib in needs.items()},
        price_input=price.input if price else None,
        price_output=price.output if price else None,
        price_currency=price.currency if price else None,
        state=hosted.state.value.value if on_api and hosted and hosted.state.value else None,
        measured=(measured or {}).get(answer.reference, Measured()),
        status=answer.status.value,
    )


def memory_bytes(
    parameters: int, shape: Architecture | None, precision: str, context_tokens: int
) -> int:
    """Bytes of the weights in `precision`, and of one sequence's keys and values in 16 bits.

    Without a shape the cache is left out: the figure is then the weights alone.
    """
    weights = int(parameters * BITS[precision] / 8)
    if shape is None:
        return weights
    return weights + 2 * shape.layers * shape.kv_heads * shape.head_dim * _CACHE_BYTES * (
        context_tokens
    )


def draw(candidates: Iterable[Candidate], path: Path) -> bool:
    """Draw price against measured quality; False, and no picture, where nobody has both."""
    points = [
        (float(each.price_blended), each.measured.quality, each.reference)
        for each in candidates
        if each.price_blended is not None and each.measured.quality is not None
    ]
    if not points:
        return False
    with picture(path, 7, 5) as figure:
        axes = figure.subplots()
        axes.scatter([each[0] for each in points], [each[1] for each in points], color="#3182bd")
        for price, quality, name in points:
            axes.annotate(name, (price, quality), xytext=(6, 4), textcoords="offset points")
        axes.set_xlabel("price per million tokens, three parts input to one part output")
        axes.set_ylabel("measured quality")
        axes.spines[["top", "right"]].set_visible(False)
    return True


def _memory(release: Release, catalogue: Catalogue, context_tokens: int) -> dict[str, float]:
    parameters = release.parameters.value
    if parameters is None:
        return {}
    shape = next(
        (each for each in catalogue.architectures if each.id == release.architecture), None
    )
    return {
        name: round(memory_bytes(parameters, shape, name, context_tokens) / 2**30, 2)
        for name in BITS
    }


def _amount(stated: str | None) -> Decimal | None:
    """The first amount of a price as it is stated: `0.4`, or `0.4 / 1.2` for tiers."""
    match = re.match(r"\d+(\.\d+)?", stated or "")
    return Decimal(match[0]) if match else None


def _modality(release: Release | None, hosted: HostedModel | None) -> tuple[str, ...]:
    found = hosted.modality if hosted is not None and hosted.modality else ()
    if not found and release is not None:
        found = release.modality
    return tuple(each.value for each in found)


def _context(release: Release | None, hosted: HostedModel | None, on_api: bool) -> int | None:
    if on_api:
        return hosted.context.value if hosted is not None else None
    return release.context.value if release is not None else None
