"""Names in Ollama's library: `qwen3:8b`, `qwen3-coder:480b-cloud`, `hf.co/…` is a hub address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.model import OllamaTag, Status
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core.layers import Layer

_TAG: Final = re.compile(
    r"(?:(?:https?://)?(?:www\.)?ollama\.com/|registry\.ollama\.ai/|ollama://)?"
    r"(?:(library|[\w.-]+)/)?"
    r"([a-z0-9][\w.-]*)(?::([\w.-]+))?"
)
_REGISTRY: Final = re.compile(r"(?:ollama\.com|registry\.ollama\.ai)/")
_OPERATOR: Final = "Ollama"


def read(text: str, index: Index, *, certain: bool = False) -> Iterator[Reading]:
    """A tag; `certain` where the context says that it is Ollama's (`ollama run …`)."""
    match = _TAG.fullmatch(text)
    if match is None:
        return
    owner, name, tag = match[1], match[2], match[3]
    addressed = text.startswith("ollama://") or bool(_REGISTRY.search(text))
    if owner and owner != "library":
        if certain or addressed:
            yield _somebodys(f"{owner}/{name}" + (f":{tag}" if tag else ""))
        return
    certain = certain or addressed or owner == "library"
    if tag is None and not certain:
        tag_record = index.catalogue.find_ollama(name)
        if tag_record is not None and name == name.casefold():
            yield _known(tag_record, name, index, Sureness.POSSIBLE)
        return
    full = f"{name}:{tag}" if tag else name
    if (tag == "cloud" or (tag or "").endswith("-cloud")) and (certain or _family(name, index)):
        yield _cloud(full, index)
        return
    known = index.catalogue.find_ollama(full)
    if known is not None:
        yield _known(known, full, index, Sureness.EXACT)
    elif certain or _family(name, index):
        yield Reading(
            kind=Kind.OLLAMA_TAG,
            sure=Sureness.SHAPED,
            why="has the form of an Ollama tag, but the catalogue does not list it",
            subject=full,
            layer=_layer(name, index),
            conflicts=("a tag can be moved to other bytes: only its digest says what it is",),
        )


def _layer(name: str, index: Index) -> Layer | None:
    """Whose the tags of this name are that the catalogue lists; None where they are of several."""
    listed = [
        each for each in index.catalogue.ollama if each.id.partition(":")[0] == name.casefold()
    ]
    if not listed:
        return Layer.COMMUNITY
    others = [bool(each.derivative) for each in listed]
    # A library with other organisations' models has some that are of no Qwen weights at all.
    return None if any(others) else Layer.WEIGHTS


def _known(tag: OllamaTag, full: str, index: Index, sure: Sureness) -> Reading:
    if tag.cloud:
        return _cloud(full, index)
    notes = ("a tag can be moved to other bytes: pin its digest",)
    stands = "" if tag.id == full else f"; {full} stands for {tag.id}"
    if tag.derivative:
        return Reading(
            kind=Kind.OLLAMA_TAG,
            sure=sure,
            why=f"a tag of Ollama's library for another organisation's model{stands}",
            subject=tag.id,
            layer=Layer.COMMUNITY,
            derivative=index.catalogue.find_derivative(tag.release),
            tag=tag,
            problems=notes,
        )
    return Reading(
        kind=Kind.OLLAMA_TAG,
        sure=sure,
        why=f"a tag of Ollama's library{stands}",
        subject=tag.id,
        layer=Layer.WEIGHTS,
        release=index.catalogue.find_release(tag.release),
        tag=tag,
        problems=notes,
    )


def _cloud(full: str, index: Index) -> Reading:
    host = index.catalogue.find_host("ollama.com")
    return Reading(
        kind=Kind.OLLAMA_TAG,
        sure=Sureness.EXACT,
        why="a :cloud tag runs on Ollama's machines: no weights come here, and what is sent leaves",
        subject=full,
        layer=Layer.STUDIO,
        tag=index.catalogue.find_ollama(full),
        host=host,
        operator=_OPERATOR,
    )


def _somebodys(subject: str) -> Reading:
    return Reading(
        kind=Kind.OLLAMA_TAG,
        sure=Sureness.SHAPED,
        why="a user's own upload to Ollama's registry; what it was made from is not known",
        subject=subject,
        layer=Layer.COMMUNITY,
        status=Status.UNKNOWN,
    )


def _family(name: str, index: Index) -> bool:
    return name.casefold() in index.ollama_families
