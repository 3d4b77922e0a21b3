"""An answer's lines: each statement of the catalogue with its source, date and status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from qwenstack.catalog.model import Fact, HostedModel, HostedState, Release, Status
from qwenstack.catalog.which.answer import UNKNOWN, Line
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Reading

T = TypeVar("T")


def lines_of(reading: Reading, index: Index) -> Iterator[Line]:
    """What the file says of itself, then what the catalogue says of the records."""
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
            source=title_of(record.source, index),
            checked=record.checked,
            status=record.status,
        )


def _hosted_lines(hosted: HostedModel, index: Index) -> Iterator[Line]:
    yield Line(
        label="kind of name",
        value=hosted.kind.value + (f" of {hosted.main}" if hosted.main else ""),
        source=title_of(hosted.source, index),
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
    if release.base.known:
        yield from _fact("made from", release.base, index)
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
                source=title_of(lag.source, index),
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
            f"{claim.value} ({title_of(claim.source, index)}, {claim.checked})"
            for claim in fact.otherwise
        )
    yield Line(
        label=label,
        value=shown,
        source=title_of(fact.source, index),
        checked=fact.checked,
        status=fact.status,
    )


def title_of(key: str, index: Index) -> str:
    """A source's title and where to find it; the key itself where it is not recorded."""
    source = index.catalogue.find_source(key)
    if source is None:
        return key
    return f"{source.title} <{source.locator}>" if source.locator else source.title
