"""From a reading to an answer: who operates it, what governs it, and every line with its source."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from qwenstack.catalog.model import (
    Derivative,
    Fact,
    Record,
    Release,
    Status,
)
from qwenstack.catalog.which.answer import (
    UNKNOWN,
    Answer,
    Duty,
    GoverningDocument,
    GoverningKind,
)
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.likeness import likenesses
from qwenstack.catalog.which.reading import Kind, Reading
from qwenstack.catalog.which.statements import lines_of, title_of
from qwenstack.core import licences
from qwenstack.core.layers import Layer

T = TypeVar("T")

SELF_OPERATED: Final = "whoever runs the weights"
_LIKENESSES_MAX: Final = 12


def compose(reference: str, reading: Reading, others: Sequence[Reading], index: Index) -> Answer:
    """The answer that takes `reading`; the other readings become look-alikes."""
    document, duties, conflicts = _governing(reading, index)
    lines = tuple(lines_of(reading, index))
    return Answer(
        reference=reference,
        kind=reading.kind.value,
        layer=reading.layer.value if reading.layer else UNKNOWN,
        release=_release(reading),
        operator=_operator(reading, index),
        governing_document=document,
        obligations=duties,
        lookalikes=tuple(likenesses(reading, others, index))[:_LIKENESSES_MAX],
        base=_base(reading, index),
        status=weaker(_status(reading), document),
        publisher=_publisher(reading, index),
        repo=reading.repo.id if reading.repo else None,
        why=reading.why,
        region=reading.region or (reading.host.region.value if reading.host else None),
        released=_dated(reading),
        state=_state(reading),
        retired=reading.hosted.retired.value if reading.hosted else None,
        lines=lines,
        suggestions=_suggestions(reading, index),
        conflicts=(*reading.conflicts, *conflicts),
        problems=reading.problems,
    )


def _release(reading: Reading) -> str | None:
    if reading.hosted is not None:
        return reading.hosted.id
    if reading.release is not None and reading.layer is Layer.WEIGHTS:
        return reading.repo.id.rpartition("/")[2] if reading.repo else reading.release.name
    if reading.derivative is not None:
        return reading.derivative.id.rpartition("/")[2]
    if (
        reading.layer is Layer.STUDIO
        and reading.kind is Kind.HOSTED_MODEL
        and not reading.conflicts
    ):
        return reading.subject
    return None


def _base(reading: Reading, index: Index) -> str | None:
    if reading.derivative is not None:
        return reading.derivative.base.value or UNKNOWN
    if reading.base:
        return reading.base
    if reading.layer is Layer.COMMUNITY:
        return UNKNOWN
    if reading.release is not None and reading.release.base.value:
        return _written(reading.release.base.value, index)
    return None


def _status(reading: Reading) -> Status:
    if reading.status is not None:
        return reading.status
    records: list[Record | None] = [reading.release, reading.hosted, reading.derivative]
    records += [reading.tag, reading.negative]
    if reading.kind in (Kind.API_URL, Kind.SITE):
        records.append(reading.host)
    if reading.kind in (Kind.ORGANISATION, Kind.GENERATION):
        records += [reading.organisation, reading.generation]
    for record in records:
        if record is not None:
            return record.status
    if reading.kind is Kind.HOSTED_MODEL and reading.operator and not reading.conflicts:
        return Status.REPORTED
    return Status.UNKNOWN


def weaker(identified: Status, document: GoverningDocument) -> Status:
    """An answer is as sure as the weaker of what it is and what governs it."""
    order = (Status.UNKNOWN, Status.REPORTED, Status.VERIFIED)
    if document.kind is GoverningKind.UNKNOWN or document.status is Status.UNKNOWN:
        return identified
    return min(identified, document.status, key=order.index)


def _operator(reading: Reading, index: Index) -> str:
    if reading.operator:
        return _name(reading.operator, index)
    if reading.hosted is not None:
        return _name(reading.hosted.operator, index)
    if reading.host is not None:
        return _name(reading.host.operator, index)
    if reading.layer in (Layer.WEIGHTS, Layer.COMMUNITY):
        return SELF_OPERATED
    if reading.organisation is not None:
        return reading.organisation.name
    return UNKNOWN


def _publisher(reading: Reading, index: Index) -> str:
    if reading.hosted is not None:
        return _name(reading.hosted.operator, index)
    if reading.derivative is not None:
        return _name(reading.derivative.organisation, index)
    if reading.organisation is not None:
        return reading.organisation.name
    if reading.release is not None and reading.layer is Layer.WEIGHTS:
        owner = reading.release.repos[0].id.partition("/")[0] if reading.release.repos else "Qwen"
        return _name(owner, index)
    if reading.layer is Layer.COMMUNITY and "/" in reading.subject:
        return reading.subject.partition("/")[0]
    return UNKNOWN


def _name(organisation: str, index: Index) -> str:
    found = index.catalogue.find_organisation(organisation)
    return found.name if found is not None else organisation


def _dated(reading: Reading) -> datetime.date | None:
    if reading.hosted is not None:
        return reading.hosted.available.value
    return reading.release.released.value if reading.release is not None else None


def _state(reading: Reading) -> str | None:
    state = reading.hosted.state.value if reading.hosted is not None else None
    return state.value if state is not None else None


def _suggestions(reading: Reading, index: Index) -> tuple[str, ...]:
    if reading.negative is not None:
        return tuple(_written(each, index) for each in reading.negative.instead)
    return reading.candidates


def _written(record_id: str, index: Index) -> str:
    """A release as its first repo, so that what is suggested can be used; else the id itself."""
    release = index.catalogue.find_release(record_id)
    return release.repos[0].id if release is not None and release.repos else record_id


# --- the governing document ---


def _governing(
    reading: Reading, index: Index
) -> tuple[GoverningDocument, tuple[Duty, ...], tuple[str, ...]]:
    if reading.layer is Layer.STUDIO:
        return _terms(reading, index), (), ()
    if reading.derivative is not None:
        return _derivative(reading, reading.derivative, index)
    if reading.stated_licence and (reading.release is None or reading.layer is not Layer.WEIGHTS):
        return _stated(reading, index)
    if reading.release is not None and reading.layer is Layer.WEIGHTS:
        return _licence(reading, reading.release, index)
    if reading.release is not None and reading.layer is Layer.COMMUNITY:
        # A known copy of a release: who passes it on can't free it from the release's licence.
        document, duties, conflicts = _licence(reading, reading.release, index)
        return _of_base(document), duties, conflicts
    return GoverningDocument(), (), ()


def _of_base(document: GoverningDocument) -> GoverningDocument:
    return msgspec.structs.replace(
        document, source=f"of its base: {document.source}", status=Status.REPORTED
    )


def _terms(reading: Reading, index: Index) -> GoverningDocument:
    """The operator's terms where the host tells them; a name alone leaves open which apply."""
    host = reading.host
    if host is not None:
        terms = index.catalogue.find_terms(host.terms.value) if host.terms.value else None
        return GoverningDocument(
            kind=GoverningKind.API_TERMS,
            id=terms.id if terms is not None else UNKNOWN,
            source=terms.locator if terms is not None else _why_unknown(host.terms, index),
            checked=host.terms.checked,
            status=host.terms.status,
        )
    operator = reading.hosted.operator if reading.hosted is not None else reading.operator
    known = [each for each in index.catalogue.terms if each.operator == operator]
    every = {each.terms.value for each in index.catalogue.hosts if each.operator == operator}
    if len(known) == 1 and every <= {known[0].id}:
        return GoverningDocument(
            kind=GoverningKind.API_TERMS,
            id=known[0].id,
            source=known[0].locator,
            checked=known[0].checked,
            status=known[0].status,
        )
    if not known:
        return GoverningDocument(kind=GoverningKind.API_TERMS)
    return GoverningDocument(
        kind=GoverningKind.API_TERMS,
        source="depends on the account, which the name does not say: "
        + "; ".join(f"{each.id} ({each.covers})" for each in known)
        + ("; elsewhere not known" if None in every else ""),
        checked=min(each.checked for each in known),
    )


def _why_unknown(fact: Fact[T], index: Index) -> str:
    return fact.note or title_of(fact.source, index)


def _licence(
    reading: Reading, release: Release, index: Index
) -> tuple[GoverningDocument, tuple[Duty, ...], tuple[str, ...]]:
    fact = (reading.repo.licence if reading.repo is not None else None) or release.licence
    conflicts = list(_conflicts("licence", fact, index))
    tag = reading.tag
    if tag is not None and tag.conflict:
        conflicts.append(f"the tag's own licence text: {tag.conflict}")
    if reading.stated_licence and fact.value and reading.stated_licence != fact.value:
        conflicts.append(
            f"the file states {reading.stated_licence}, the catalogue has {fact.value}: the "
            "licence file in the maker's repo governs"
        )
    document = GoverningDocument(
        kind=GoverningKind.LICENCE if fact.value else GoverningKind.UNKNOWN,
        id=fact.value or UNKNOWN,
        source=title_of(fact.source, index),
        checked=fact.checked,
        status=fact.status,
    )
    return document, duties_of(fact.value), tuple(conflicts)


def _derivative(
    reading: Reading, derivative: Derivative, index: Index
) -> tuple[GoverningDocument, tuple[Duty, ...], tuple[str, ...]]:
    fact = derivative.licence
    conflicts = list(_conflicts("licence", fact, index))
    if derivative.conflict:
        conflicts.append(derivative.conflict)
    duties = list(duties_of(fact.value))
    root = (
        index.catalogue.find_release(derivative.base_release) if derivative.base_release else None
    )
    upstream = root.licence.value if root is not None else None
    if root is not None and derivative.same_weights and upstream and upstream != fact.value:
        document, owed, said = _licence(reading, root, index)
        conflicts.append(f"its publisher states {fact.value}: the licence of the base governs")
        return _of_base(document), owed, (*conflicts, *said)
    if upstream and upstream != fact.value:
        duties += [
            Duty(
                kind=each.kind,
                text=f"from the base's licence, {upstream}: {each.text}",
                document=each.document,
                clause=each.clause,
                source=each.source,
                checked=each.checked,
            )
            for each in duties_of(upstream)
        ]
    document = GoverningDocument(
        kind=GoverningKind.LICENCE if fact.value else GoverningKind.UNKNOWN,
        id=fact.value or UNKNOWN,
        source=title_of(fact.source, index),
        checked=fact.checked,
        status=fact.status,
    )
    return document, tuple(duties), tuple(conflicts)


def _stated(
    reading: Reading, index: Index
) -> tuple[GoverningDocument, tuple[Duty, ...], tuple[str, ...]]:
    """A licence that only the file or folder itself states."""
    document = GoverningDocument(
        kind=GoverningKind.LICENCE,
        id=reading.stated_licence,
        source="stated by the file itself" if reading.kind is not Kind.DIGEST else "its SHA-256",
        checked=datetime.datetime.now(datetime.UTC).date(),
        status=Status.REPORTED,
    )
    return document, duties_of(reading.stated_licence), ()


def duties_of(licence_id: str | None) -> tuple[Duty, ...]:
    """The obligations of a licence, each with where that was read."""
    found = licences.by_id(licence_id) if licence_id else None
    if found is None:
        return ()
    return tuple(
        Duty(
            kind=each.kind.value,
            text=each.summary,
            document=found.id,
            clause=each.clause,
            source=found.source,
            checked=found.checked,
        )
        for each in found.obligations
    )


def _conflicts(label: str, fact: Fact[T], index: Index) -> Iterator[str]:
    for claim in fact.otherwise:
        note = f" ({claim.note})" if claim.note else ""
        yield (
            f"sources conflict on the {label}: {claim.value} according to "
            f"{title_of(claim.source, index)}, checked {claim.checked}{note}"
        )
