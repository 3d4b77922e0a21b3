"""Names that the vendor's API answers to: `qwen-plus`, `qwen3-max-2026-01-23`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.model import HostedKind, HostedModel
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.spelling import fold
from qwenstack.core.layers import Layer

_SNAPSHOT: Final = re.compile(r"(.+?)-(\d{4}-\d{2}-\d{2}|\d{4}|latest|preview)")


def read(text: str, index: Index) -> Iterator[Reading]:
    """A name as the API takes it, in lower case; or a snapshot of a known line."""
    folded = text.casefold()
    hosted = index.catalogue.find_hosted(folded)
    if hosted is not None:
        lower = text == hosted.id
        # The same word with capitals is how people write the weights.
        yield Reading(
            kind=Kind.HOSTED_MODEL,
            sure=Sureness.EXACT if lower else Sureness.POSSIBLE,
            why=_why(hosted) if lower else f"the API's name is {hosted.id}, in lower case",
            subject=hosted.id,
            layer=Layer.STUDIO,
            hosted=hosted,
        )
        return
    if text == folded and fold(text) in index.repo_names:
        yield Reading(
            kind=Kind.HOSTED_MODEL,
            sure=Sureness.SHAPED,
            why="in lower case, as the API names open weights that it serves, but the catalogue "
            "lists no such API name",
            subject=text,
            layer=Layer.STUDIO,
            conflicts=(f"whether the API serves {text} is not known",),
        )
        return
    match = _SNAPSHOT.fullmatch(folded)
    if match is None:
        return
    main = index.catalogue.find_hosted(match[1])
    if main is not None and text == folded and main.kind is not HostedKind.SNAPSHOT:
        yield Reading(
            kind=Kind.HOSTED_MODEL,
            sure=Sureness.SHAPED,
            why=f"has the form of a snapshot or alias of {main.id}, but the catalogue lists none "
            "of this name",
            subject=text,
            layer=Layer.STUDIO,
            operator=main.operator,
            conflicts=(f"whether {text} exists is not known",),
        )


def _why(hosted: HostedModel) -> str:
    return {
        HostedKind.ALIAS: "an alias of the API: repointed without a change of name",
        HostedKind.MAIN: "a main line of the API: repointed, late and with notice",
        HostedKind.SNAPSHOT: "a snapshot of the API: not repointed, but it can be withdrawn",
        HostedKind.OPEN: "open weights served by the API under their own name, on the API's terms",
    }[hosted.kind]
