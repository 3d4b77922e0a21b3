"""From a reading to an answer: who operates it, what governs it, and every line with its source."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from qwenstack.catalog.model import (
    Derivative,
    Fact,
    HostedKind,
    HostedModel,
    HostedState,
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
    Likeness,
    Line,
)
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading
from qwenstack.catalog.which.spelling import fold
from qwenstack.core import licences
from qwenstack.core.layers import Layer

T = TypeVar("T")

SELF_OPERATED: Final = "whoever runs the weights"
_LIKENESSES_MAX: Final = 12


def compose(reference: str, reading: Reading, others: Sequence[Reading], index: Index) -> Answer:
    """The answer that takes `reading`; the other readings become look-alikes."""
    document, duties, conflicts = _governing(reading, index)
    lines = tuple(_lines(reading, document, index))
    return Answer(
        reference=reference,
        kind=reading.kind.value,
        layer=reading.layer.value if reading.layer else UNKNOWN,
        release=_release(reading),
        operator=_operator(reading, index),
        governing_document=document,
        obligations=duties,
        lookalikes=tuple(_likenesses(reading, others, index))[:_LIKENESSES_MAX],
        base=_base(reading, index),
        status=_weaker(_status(reading), document),
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
    if reading.release is not None and reading.release.base:
        return _written(reading.release.base, index)
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


def _weaker(identified: Status, document: GoverningDocument) -> Status:
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
        return (
            msgspec.structs.replace(
                document, source=f"of its base: {document.source}", status=Status.REPORTED
            ),
            duties,
            conflicts,
        )
    return GoverningDocument(), (), ()


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
    return fact.note or _title(fact.source, index)


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
        source=_title(fact.source, index),
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
        source=_title(fact.source, index),
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
            f"{_title(claim.source, index)}, checked {claim.checked}{note}"
        )


# --- the lines of a report ---


def _lines(reading: Reading, document: GoverningDocument, index: Index) -> Iterator[Line]:
    for label, value in reading.claims:
        yield Line(
            label=label, value=value, source="the file itself", checked=None, status=Status.REPORTED
        )
    if reading.hosted is not None:
        yield from _hosted_lines(reading.hosted, index)
    if reading.release is not None:
        yield from _release_lines(reading.release, reading, index)
    if reading.derivative is not None:
        yield from _fact("base", reading.derivative.base, index)
        yield from _fact("licence as stated", reading.derivative.licence, index)
    if reading.tag is not None:
        yield from _fact("size in bytes", reading.tag.size_bytes, index)
        yield from _fact("licence in the tag", reading.tag.licence_carried, index)
    if reading.host is not None:
        yield from _fact("region", reading.host.region, index)
    if reading.negative is not None:
        record = reading.negative
        yield Line(
            label="found",
            value=record.note or reading.why,
            source=_title(record.source, index),
            checked=record.checked,
            status=record.status,
        )


def _hosted_lines(hosted: HostedModel, index: Index) -> Iterator[Line]:
    yield Line(
        label="kind of name",
        value=hosted.kind.value + (f" of {hosted.main}" if hosted.main else ""),
        source=_title(hosted.source, index),
        checked=hosted.checked,
        status=hosted.status,
    )
    yield from _fact("state", hosted.state, index)
    yield from _fact("available since", hosted.available, index)
    if hosted.retirement_noticed.known:
        yield from _fact("end as announced", hosted.retirement_noticed, index)
    if hosted.retired.known:
        yield from _fact("ended", hosted.retired, index)
    yield from _fact("open weights", hosted.open_counterpart, index)
    yield from _fact("context", hosted.context, index)


def _release_lines(release: Release, reading: Reading, index: Index) -> Iterator[Line]:
    licence = (reading.repo.licence if reading.repo is not None else None) or release.licence
    yield from _fact("licence", licence, index)
    yield from _fact("released", release.released, index)
    yield from _fact("parameters", release.parameters, index)
    if release.active_parameters.known:
        yield from _fact("active parameters", release.active_parameters, index)
    yield from _fact("context", release.context, index)
    for lag in index.catalogue.lags_of(release.id):
        days = lag.days
        if days is not None:
            when = (
                "the same day"
                if days == 0
                else f"{abs(days)} days " + ("later" if days > 0 else "earlier")
            )
            yield Line(
                label="lag",
                value=f"the API's {lag.hosted} came {when}",
                source=_title(lag.source, index),
                checked=lag.checked,
                status=lag.status,
            )


def _fact(label: str, fact: Fact[T], index: Index) -> Iterator[Line]:
    value = fact.value
    if isinstance(value, HostedState):
        shown = value.value
    elif value is None:
        shown = UNKNOWN
    else:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
    if fact.note:
        shown += f" ({fact.note})"
    if fact.in_conflict:
        shown += "; otherwise: " + ", ".join(
            f"{claim.value} ({_title(claim.source, index)}, {claim.checked})"
            for claim in fact.otherwise
        )
    yield Line(
        label=label,
        value=shown,
        source=_title(fact.source, index),
        checked=fact.checked,
        status=fact.status,
    )


def _title(key: str, index: Index) -> str:
    source = index.catalogue.find_source(key)
    if source is None:
        return key
    return f"{source.title} <{source.locator}>" if source.locator else source.title


# --- what it could be taken for ---


def _likenesses(reading: Reading, others: Sequence[Reading], index: Index) -> Iterator[Likeness]:
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
