"""Names without an organisation: `Qwen3-8B`, `Qwen2.5-VL-3B-Instruct`, `Qwen3`, `Alibaba Cloud`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.model import NegativeKind, Status
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.spelling import fold
from qwenstack.core.layers import Layer

_FILE: Final = re.compile(r"([\w.@+ -]{1,200})\.(gguf|safetensors|bin|pt|pth)", re.IGNORECASE)
_QUANTISED: Final = re.compile(
    r"[.-](?:(?:ud-)?i?q\d[\w]*|f16|f32|bf16|fp16|fp8|mxfp4|int[48]|awq|gptq[\w-]*|\d{5}-of-\d{5})$",
    re.IGNORECASE,
)


def read(text: str, index: Index) -> Iterator[Reading]:
    """A release, a repo's name alone, or a generation."""
    folded = fold(text)
    if folded in index.repo_names:
        release, repo = index.repo_names[folded]
        yield Reading(
            kind=Kind.RELEASE_NAME,
            sure=Sureness.LISTED,
            why=f"the name of a release; its repo is {repo.id}",
            subject=repo.id.rpartition("/")[2],
            layer=Layer.WEIGHTS,
            release=release,
            repo=repo,
        )
    elif folded in index.release_names:
        release = index.release_names[folded]
        yield Reading(
            kind=Kind.RELEASE_NAME,
            sure=Sureness.LISTED,
            why="the name of a release",
            subject=release.name,
            layer=Layer.WEIGHTS,
            release=release,
        )
    elif folded in index.derivative_names:
        derivative = index.derivative_names[folded]
        yield Reading(
            kind=Kind.RELEASE_NAME,
            sure=Sureness.LISTED,
            why=f"the name of another organisation's model; its repo is {derivative.id}",
            subject=derivative.id,
            layer=Layer.COMMUNITY,
            derivative=derivative,
            status=Status.REPORTED,
        )
    if folded in index.generation_names:
        generation = index.generation_names[folded]
        yield Reading(
            kind=Kind.GENERATION,
            sure=Sureness.LISTED,
            why="the name of a generation: open weights of several sizes under their own licences, "
            "and API names under the API's terms. Say which",
            subject=generation.name,
            generation=generation,
        )


def read_organisation(text: str, index: Index) -> Iterator[Reading]:
    """A company, team, or publisher."""
    organisation = index.organisation_names.get(fold(text))
    if organisation is not None:
        yield Reading(
            kind=Kind.ORGANISATION,
            sure=Sureness.LISTED,
            why="an organisation, not a model",
            subject=organisation.name,
            layer=organisation.layer,
            organisation=organisation,
        )


def read_file_name(text: str, index: Index) -> Iterator[Reading]:
    """The name of a weights file that is not here: it proves nothing of what is in it."""
    match = _FILE.fullmatch(text.rpartition("/")[2])
    if match is None:
        return
    stem = match[1]
    while (shorter := _QUANTISED.sub("", stem)) != stem:
        stem = shorter
    found = index.repo_names.get(fold(stem))
    yield Reading(
        kind=Kind.FILE_NAME,
        sure=Sureness.SHAPED,
        why="the name of a weights file: anybody can make one of this name. Give the file itself, "
        "or its SHA-256",
        subject=text.rpartition("/")[2],
        candidates=(found[1].id,) if found else (),
    )


def read_negative(text: str, index: Index) -> Iterator[Reading]:
    """A name that people use and that is no release."""
    negative = index.catalogue.find_negative(text)
    if negative is None or (index.catalogue.find_hosted(text) and text == text.lower()):
        return
    hosted_only = negative.kind is NegativeKind.HOSTED_ONLY and "/" not in text
    names = [index.catalogue.find_hosted(each) for each in negative.instead]
    hosted = names[0] if hosted_only and len(names) == 1 else None
    operator = next((each.operator for each in names if each is not None), "")
    yield Reading(
        kind=Kind.HUB_ID if "/" in text else Kind.RELEASE_NAME,
        sure=Sureness.EXACT,
        why=_WHY[negative.kind],
        subject=text,
        layer=Layer.STUDIO if hosted_only else None,
        hosted=hosted,
        negative=negative,
        operator=operator if hosted_only else "",
        status=negative.status,
    )


_WHY: Final = {
    NegativeKind.DOES_NOT_EXIST: "no such release exists",
    NegativeKind.HOSTED_ONLY: "served over an API only: no open weights of this name were found",
    NegativeKind.ANNOUNCED_ONLY: "announced; no open weights of this name were found",
    NegativeKind.PLACEHOLDER: "a placeholder, not a release",
}
