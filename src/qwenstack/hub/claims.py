"""What a card and a configuration claim about the weights, held against what the weights hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Final, Literal

import msgspec

from qwenstack.hub.cards import Card
from qwenstack.hub.formats.config import ModelConfig
from qwenstack.hub.formats.counting import Count, expected_parameters

Verdict = Literal["agree", "contradict", "absent"]

_BODY_CHARACTERS_MAX: Final = 200_000
_PARAMETERS: Final = re.compile(
    r"number of (?:total )?parameters[^0-9\n]{0,20}(?P<number>[0-9]{1,12}(?:\.[0-9]{1,4})?)\s?"
    r"(?P<unit>[KMBT])\b",
    re.IGNORECASE,
)
_ACTIVE: Final = re.compile(
    r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,4})?)\s?(?P<unit>[MBT])\s+activated", re.IGNORECASE
)
_CONTEXT: Final = re.compile(r"context length[^0-9\n]{0,20}(?P<number>[0-9][0-9,]{2,10})\b", re.I)
_LAYERS: Final = re.compile(r"number of layers[^0-9\n]{0,10}(?P<number>[0-9]{1,4})\b", re.I)
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_DTYPES: Final = {
    "bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"
}  # fmt: skip
_FAMILIES: Final = frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "llama", "mistral"})


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One claim: what (`parameters`, `licence`, …), where it is made, and what the files show.

    `found_in` says where the second value comes from. `absent` is a claim that nothing in the files
    can bear out, or a value that nobody claims.
    """

    what: str
    claimed: str | None
    claimed_in: str
    found: str | None
    found_in: str
    verdict: Verdict


def compare(
    what: str, claimed: object, claimed_in: str, found: object, found_in: str
) -> Claim | None:
    """The claim with its verdict by equality; None where neither side says anything."""
    if claimed is None and found is None:
        return None
    verdict: Verdict = "agree" if claimed == found else "contradict"
    if claimed is None or found is None:
        verdict = "absent"
    return Claim(
        what=what,
        claimed=None if claimed is None else str(claimed),
        claimed_in=claimed_in,
        found=None if found is None else str(found),
        found_in=found_in,
        verdict=verdict,
    )


def config_claims(config: ModelConfig, count: Count) -> Iterator[Claim | None]:
    """What config.json says of the tensors, against their shapes and names."""
    where, found = "config.json", "the tensors' shapes"
    yield compare("vocabulary", config.vocab_size, f"{where}: vocab_size", count.vocabulary, found)
    if count.hidden_size is not None:
        yield compare(
            "hidden size", config.hidden_size, f"{where}: hidden_size", count.hidden_size, found
        )
    if count.layers:
        said = f"{where}: num_hidden_layers"
        # A release may hold one for multi-token prediction after those that are counted.
        has_extra = config.layers is not None and count.layers - config.layers == 1
        layers = config.layers if has_extra else count.layers
        yield compare("layers", config.layers, said, layers, "the tensors' names")
    if count.experts:
        yield compare("experts", config.experts, where, count.experts, found)
    implied = expected_parameters(config)
    if implied is not None and config.quantisation is None:
        extra = (config.vocab_size or 0) * (config.hidden_size or 0)
        stored_twice = config.tied_embeddings and count.has_head
        held = count.parameters - (extra if stored_twice else 0)
        yield compare("parameters", implied, f"{where}: its sizes", held, found)
    if config.quantisation is None and config.dtype in _DTYPES and count.elements:
        most = next(iter(count.elements))
        yield compare("dtype", _DTYPES[config.dtype], f"{where}: dtype", most, "the header")
    if count.family is not None and config.model_type in _FAMILIES:
        shown = "llama" if config.model_type == "mistral" else config.model_type
        yield compare(
            "architecture", shown, f"{where}: model_type", count.family, "the tensors' names"
        )
    if config.tied_embeddings is not None and count.vocabulary is not None:
        tied = not count.has_head
        # Both may be stored and equal, which a header does not tell.
        verdict = None if config.tied_embeddings and not tied else tied
        yield compare(
            "tied embeddings", config.tied_embeddings, f"{where}: tie_word_embeddings", verdict,
            "whether lm_head is stored",
        )  # fmt: skip


def body_claims(
    card: Card, count: Count | None, active: int | None, context_tokens: int | None
) -> Iterator[Claim | None]:
    """What the card's text says in the phrases that Qwen's cards use, against the computed."""
    body, where = card.body[:_BODY_CHARACTERS_MAX], "the card's text"
    if count is None:
        return
    for what, pattern, value in (
        ("parameters", _PARAMETERS, count.parameters),
        ("active parameters", _ACTIVE, active),
    ):
        match = pattern.search(body)
        if match is not None and value is not None:
            yield Claim(
                what=what,
                claimed=match["number"] + match["unit"].upper(),
                claimed_in=where,
                found=str(value),
                found_in="the tensors' shapes",
                verdict="agree" if _rounds(match, value) else "contradict",
            )
    if (match := _LAYERS.search(body)) and count.layers:
        yield compare("layers", int(match["number"]), where, count.layers, "the tensors' names")
    if (match := _CONTEXT.search(body)) and context_tokens is not None:
        said = int(match["number"].replace(",", ""))
        yield compare("context length", said, where, context_tokens, "the configuration")


def _rounds(match: re.Match[str], value: int) -> bool:
    """Whether a figure in words is the number, rounded either way at its last digit."""
    number, unit = Decimal(match["number"]), _UNITS[match["unit"].upper()]
    step = Decimal(1).scaleb(-len(match["number"].partition(".")[2]))
    return abs(number - Decimal(value) / unit) <= step
