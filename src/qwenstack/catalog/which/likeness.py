"""What a reference could be taken for: the same name on another layer, and pairs on record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwenstack.catalog.model import HostedKind
from qwenstack.catalog.which.answer import UNKNOWN, Likeness
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading
from qwenstack.catalog.which.spelling import fold
from qwenstack.core.layers import Layer


def likenesses(reading: Reading, others: Sequence[Reading], index: Index) -> Iterator[Likeness]:
    """Each name once, those on record first; none is the reading itself while it is sure."""
    seen = {fold(reading.subject)} if reading.layer is not None else set()
    for like in (*_recorded(reading, index), *map(_other, others), *_same_name(reading, index)):
        key = fold(like.reference)
        if key not in seen:
            seen.add(key)
            yield like


def _other(reading: Reading) -> Likeness:
    return Likeness(
        reference=reading.subject,
        kind=reading.kind.value,
        layer=reading.layer.value if reading.layer else UNKNOWN,
        reason=f"the same reference, read otherwise: {reading.why}",
    )


def _same_name(reading: Reading, index: Index) -> Iterator[Likeness]:
    """The same word on another layer."""
    subject = reading.subject
    bare = fold(subject.rpartition("/")[2].partition(":")[0])
    if reading.layer is not Layer.WEIGHTS and bare in index.repo_names:
        _, repo = index.repo_names[bare]
        yield Likeness(
            reference=repo.id,
            kind=Kind.HUB_ID.value,
            layer=Layer.WEIGHTS.value,
            reason="open weights of the same name: their licence file governs",
        )
    hosted = index.catalogue.find_hosted(bare)
    if hosted is not None and hosted is not reading.hosted:
        yield Likeness(
            reference=hosted.id,
            kind=Kind.HOSTED_MODEL.value,
            layer=Layer.STUDIO.value,
            reason="the vendor's API serves the same name: its terms govern, and its retirement "
            "says nothing about the weights",
        )
    if reading.hosted is not None:
        counterpart = reading.hosted.open_counterpart
        release = index.catalogue.find_release(counterpart.value) if counterpart.value else None
        if release is not None and release.repos:
            yield Likeness(
                reference=release.repos[0].id,
                kind=Kind.HUB_ID.value,
                layer=Layer.WEIGHTS.value,
                reason=f"the open weights behind it ({counterpart.status.value})",
            )
    if reading.release is not None and reading.kind is not Kind.OLLAMA_TAG:
        for tag in index.ollama_of.get(reading.release.id, ())[:2]:
            yield Likeness(
                reference=tag,
                kind=Kind.OLLAMA_TAG.value,
                layer=Layer.WEIGHTS.value,
                reason="Ollama's tag of this release, quantised; tags can be moved",
            )
        for name in index.catalogue.hosted_counterparts(reading.release.id)[:2]:
            if name.kind is not HostedKind.OPEN:
                yield Likeness(
                    reference=name.id,
                    kind=Kind.HOSTED_MODEL.value,
                    layer=Layer.STUDIO.value,
                    reason="an API name that some source says runs these weights",
                )


def _recorded(reading: Reading, index: Index) -> Iterator[Likeness]:
    names = {reading.subject, reading.subject.rpartition("/")[2]}
    if reading.release is not None:
        names.add(reading.release.name)
    for name in sorted(names):
        for pair in index.catalogue.find_lookalikes(name):
            for other in pair.names:
                if fold(other) != fold(name):
                    yield Likeness(
                        reference=other,
                        kind=UNKNOWN,
                        layer=_layer_of(other, index),
                        reason=pair.reason,
                    )


def _layer_of(name: str, index: Index) -> str:
    catalogue = index.catalogue
    tag = catalogue.find_ollama(name) if ":" in name else None
    if tag is not None and not tag.cloud:
        return Layer.COMMUNITY.value if tag.derivative else Layer.WEIGHTS.value
    if name == name.lower() and catalogue.find_hosted(name):
        return Layer.STUDIO.value
    if catalogue.find_repo(name) or fold(name) in index.release_names:
        return Layer.WEIGHTS.value
    return Layer.COMMUNITY.value if catalogue.find_derivative(name) else UNKNOWN
