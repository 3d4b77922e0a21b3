"""Evidence from the catalogue: what `which` answers, the hosted counterpart, the organisations."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import Any, Final

from qwenstack.catalog.load import Catalogue
from qwenstack.catalog.model import (
    Fact,
    HostedModel,
    Organisation,
    Record,
    Release,
    Status,
)
from qwenstack.catalog.which import Answer, GoverningKind
from qwenstack.core import licences
from qwenstack.core.evidence import Evidence, EvidenceStatus, Method, Value
from qwenstack.core.layers import Layer


def from_answer(answer: Answer, catalogue: Catalogue) -> list[Evidence]:
    """What the answer and the catalogue behind it say of a reference."""
    found = [
        *_identity(answer, catalogue),
        *_governing(answer, catalogue),
        *_release(answer, catalogue),
        *_corporate(catalogue),
    ]
    hosted = _hosted(answer, catalogue)
    if hosted is not None:
        found += _api(answer, hosted, catalogue)
    return found


_SURE: Final[dict[Status, EvidenceStatus]] = {
    Status.VERIFIED: "verified",
    Status.REPORTED: "reported",
    Status.UNKNOWN: "unknown",
}


class _Speaker:
    """Makes evidence about one subject out of the catalogue's words."""

    def __init__(self, subject: str, catalogue: Catalogue | None = None) -> None:
        self._subject = subject
        self._catalogue = catalogue

    def say(
        self,
        claim: str,
        value: Value,
        source: str,
        checked: datetime.date | None,
        status: EvidenceStatus,
        *,
        note: str = "",
        method: Method = "read",
    ) -> Evidence:
        return Evidence(
            subject=self._subject,
            claim=claim,
            value=value,
            source=self._locator(source),
            method=method,
            status=status,
            observed_at=checked.isoformat() if checked else "",
            note=note,
        )

    def record(self, claim: str, value: Value, record: Record) -> Evidence:
        """What a record of the catalogue says of itself."""
        return self.say(claim, value, record.source, record.checked, _SURE[record.status])

    def fact(self, claim: str, fact: Fact[Any], *, note: str = "") -> Evidence:
        """A fact of the catalogue, also an unknown one."""
        value = "" if fact.value is None else _plain(fact.value)
        otherwise = "; ".join(
            f"{_plain(each.value)} says {self._locator(each.source)}" for each in fact.otherwise
        )
        return self.say(
            claim,
            value,
            fact.source,
            fact.checked,
            _SURE[fact.status],
            note="; ".join(each for each in (note or fact.note, otherwise) if each),
        )

    def _locator(self, key: str) -> str:
        source = self._catalogue.find_source(key) if self._catalogue else None
        return f"{source.title}, {source.locator}" if source else key


def _plain(value: object) -> Value:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(getattr(value, "value", value))


def _identity(answer: Answer, catalogue: Catalogue) -> Iterator[Evidence]:
    """What it is. The source is the release's or API name's own record, where it is one of ours."""
    speak = _Speaker(answer.reference, catalogue)
    status = _SURE[answer.status]
    record = catalogue.find_release(answer.release or "") or catalogue.find_hosted(
        answer.release or ""
    )
    source = record.source if record else f"qwenstack which, by the {answer.kind}"
    checked = record.checked if record else None
    known = {
        "identity.layer": answer.layer,
        "identity.release": answer.release,
        "identity.repo": answer.repo,
        "identity.publisher": answer.publisher,
        "identity.operator": answer.operator,
        "identity.why": answer.why,
        "identity.base": answer.base,
    }
    for claim, value in known.items():
        if value and value != "unknown":
            yield speak.say(claim, value, source, checked, status)
    dated = None
    if record is not None:
        dated = record.released if isinstance(record, Release) else record.available
    if dated is not None and dated.known:
        yield speak.fact("identity.released", dated)
    elif answer.released is not None:
        day = answer.released.isoformat()
        yield speak.say("identity.released", day, source, checked, status, note="of its base")
    for number, likeness in enumerate(answer.lookalikes, 1):
        text = f"{likeness.reference} ({likeness.layer}): {likeness.reason}"
        yield speak.say(f"identity.lookalike.{number}", text, "qwenstack which", checked, status)
    for number, conflict in enumerate(answer.conflicts, 1):
        yield speak.say(f"identity.conflict.{number}", conflict, "qwenstack which", checked, status)


def _governing(answer: Answer, catalogue: Catalogue) -> Iterator[Evidence]:
    speak = _Speaker(answer.reference, catalogue)
    document = answer.governing_document
    status = _SURE[answer.status]
    if document.kind is GoverningKind.UNKNOWN:
        yield speak.say(
            "governing.kind", "unknown", document.source or "qwenstack which", document.checked,
            "verified", note="no document that grants the use was found",
        )  # fmt: skip
        return
    yield speak.say(
        "governing.kind", document.kind.value, document.source, document.checked, status
    )
    yield speak.say("governing.id", document.id, document.source, document.checked, status)
    if document.kind is GoverningKind.LICENCE:
        licence = licences.by_id(document.id)
        if licence is not None:
            yield speak.say(
                "governing.category",
                licence.category.value,
                licence.source,
                licence.checked,
                "verified" if licence.status == "verified" else "reported",
            )
    for number, duty in enumerate(answer.obligations, 1):
        yield speak.say(
            f"obligation.{duty.kind}.{number}",
            duty.text,
            duty.source or document.source,
            duty.checked or document.checked,
            status,
        )


def _release(answer: Answer, catalogue: Catalogue) -> Iterator[Evidence]:
    release = catalogue.find_release(answer.release or "")
    if release is None:
        return
    speak = _Speaker(answer.reference, catalogue)
    if release.modality:
        yield speak.record(
            "identity.modality", tuple(each.value for each in release.modality), release
        )
    yield speak.fact("catalogue.parameters", release.parameters)
    yield speak.fact("catalogue.context", release.context)
    if release.licence_digest.known:
        yield speak.fact("governing.text-digest", release.licence_digest)


def _hosted(answer: Answer, catalogue: Catalogue) -> HostedModel | None:
    if answer.layer == Layer.STUDIO.value:
        return catalogue.find_hosted(answer.release or answer.reference)
    release = catalogue.find_release(answer.release or "")
    candidates = [
        hosted
        for hosted in catalogue.hosted
        if release is not None and hosted.open_counterpart.value == release.id
    ]
    # The main line says most; a snapshot is only a part of it.
    return next((each for each in candidates if not each.main), next(iter(candidates), None))


def _api(answer: Answer, hosted: HostedModel, catalogue: Catalogue) -> Iterator[Evidence]:
    speak = _Speaker(answer.reference, catalogue)
    yield speak.record("api.name", hosted.id, hosted)
    yield speak.record("api.operator", hosted.operator, hosted)
    yield speak.record("hosted.kind", hosted.kind.value, hosted)
    terms = [each for each in catalogue.terms if each.operator == hosted.operator]
    for each in terms[:1]:
        yield speak.record("api.terms", f"{each.title} ({each.id})", each)
    yield speak.fact("hosted.state", hosted.state)
    if hosted.retired.known:
        yield speak.fact("hosted.retirement", hosted.retired)
    elif hosted.retirement_noticed.known:
        yield speak.fact("hosted.retirement", hosted.retirement_noticed, note="as noticed")
    for price in hosted.prices[:1]:
        text = f"{price.input} in, {price.output} out, {price.currency} per million tokens"
        yield speak.say(
            "api.price", text, price.source, price.checked, "reported", note=price.scope
        )
    for lag in catalogue.lags:
        if hosted.id == lag.hosted and lag.days is not None:
            text = f"{lag.days} days from open weights to API"
            yield speak.record("hosted.lag", text, lag)


_CORPORATE = (
    (Layer.CORPORATE, "corporate.parent"),
    (Layer.RESEARCH, "corporate.research"),
    (Layer.STUDIO, "corporate.cloud"),
)


def _corporate(catalogue: Catalogue) -> Iterator[Evidence]:
    for layer, claim in _CORPORATE:
        for organisation in _of(catalogue.organisations, layer):
            speak = _Speaker(organisation.id, catalogue)
            text = organisation.name
            if organisation.owns:
                text += f": owns {', '.join(organisation.owns)}"
            yield speak.record(claim, text, organisation)
            yield speak.fact(f"corporate.legal-entity.{organisation.id}", organisation.legal_entity)
            if organisation.filings:
                yield speak.record("corporate.filings", organisation.filings, organisation)


def _of(organisations: Iterable[Organisation], layer: Layer) -> list[Organisation]:
    """The makers' own organisations on a layer: those under the parent, and the parent."""
    found = [each for each in organisations if each.layer is layer]
    related = [each for each in found if each.parent or layer is Layer.CORPORATE]
    return (related or found)[:2]
