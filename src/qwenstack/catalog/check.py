"""What must hold between the catalogue's records: no dangling reference, nothing twice."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator

from qwenstack.catalog.architecture import count
from qwenstack.catalog.model import (
    ApiHost,
    Architecture,
    Derivative,
    Fact,
    Generation,
    HostedModel,
    Lag,
    NegativeCase,
    OllamaTag,
    Organisation,
    Record,
    Release,
    Source,
)
from qwenstack.catalog.read import Placed, Problem, citations, facts_of
from qwenstack.core import licences

EARLIEST = datetime.date(2004, 1, 1)
"""No fact here is older: the date of the Apache licence."""


class _Names:
    """What can be referred to."""

    def __init__(self, placed: Iterable[Placed]) -> None:
        records = [each.record for each in placed]
        self.sources = {each.key for each in records if isinstance(each, Source)}
        self.organisations = _ids(records, Organisation)
        self.generations = _ids(records, Generation)
        self.architectures = _ids(records, Architecture)
        self.releases = _ids(records, Release)
        self.repos = {
            repo.id for each in records if isinstance(each, Release) for repo in each.repos
        }
        self.hosted = _ids(records, HostedModel)
        self.derivatives = _ids(records, Derivative)
        self.terms = {
            each.record.id
            for each in placed
            if each.kind == "terms" and isinstance(each.record, Record)
        }


def check(placed: list[Placed], today: datetime.date) -> list[Problem]:
    """Everything that is wrong between the records, in the order of the files."""
    names = _Names(placed)
    problems = [*_twice(placed)]
    for each in placed:
        texts = [
            *_sources(each.record, names.sources),
            *_claims(each.record),
            *_dates(each.record, today),
            *_licences(each.record),
            *_counts(each.record),
            *_references(each.record, names),
        ]
        problems += [Problem(each.place, text) for text in texts]
    return problems


def _ids(records: Iterable[Record | Source], kind: type[Record]) -> set[str]:
    return {each.id for each in records if isinstance(each, kind)}


def _sources(record: Record | Source, keys: Collection[str]) -> Iterator[str]:
    if isinstance(record, Source):
        if not record.title.strip() or not record.locator.strip():
            yield "title and locator: a source says what it is and where it is found"
        return
    for field, key in citations(record):
        if not key:
            yield f"{field}: a fact without a source; name one of the [[source]] keys"
        elif key not in keys:
            yield f"{field}: source {key!r} is not in the files; add a [[source]] with this key"


def _claims(record: Record | Source) -> Iterator[str]:
    """What contradicts must differ from the value: agreement is no conflict."""
    for field, fact in facts_of(record) if isinstance(record, Record) else ():
        if fact.value is not None and any(claim.value == fact.value for claim in fact.otherwise):
            yield f"{field}: otherwise repeats the value {fact.value!r}; put agreement in the note"


def _dates(record: Record | Source, today: datetime.date) -> Iterator[str]:
    dates = [("checked", record.checked)]
    if isinstance(record, Record):
        for field, fact in facts_of(record):
            dates.append((f"{field}.checked", fact.checked))
            for value in (fact.value, *(claim.value for claim in fact.otherwise)):
                # An end that was announced may lie ahead.
                if isinstance(value, datetime.date) and field != "retirement_noticed":
                    dates.append((field, value))
    for field, date in dates:
        if not EARLIEST <= date <= today + datetime.timedelta(days=1):
            yield f"{field}: {date} is not between {EARLIEST} and today"


def _licences(record: Record | Source) -> Iterator[str]:
    if not isinstance(record, Release | Derivative | OllamaTag):
        return
    for field, fact in facts_of(record):
        if not field.endswith(("licence", "licence_carried")):
            continue
        for value in (fact.value, *(claim.value for claim in fact.otherwise)):
            if value is not None and licences.by_id(str(value)) is None:
                yield (
                    f"{field}: no licence {value!r} in core/licences.toml; known: "
                    f"{', '.join(each.id for each in licences.licences())}"
                )


def _counts(record: Record | Source) -> Iterator[str]:
    """An architecture whose numbers don't add up to its published parameters is wrong."""
    if not isinstance(record, Architecture) or record.parameters.value is None:
        return
    counted, published = count(record).total, record.parameters.value
    apart = abs(counted - published) / published
    if apart > (0.01 if record.parameters_rounded else 0):
        yield f"parameters: {published}, but the configuration holds {counted}"


def _references(record: Record | Source, names: _Names) -> Iterator[str]:
    if isinstance(record, Release):
        yield from _one(record.generation, names.generations, "generation", "a [[generation]]")
        yield from _fact(record.base, names.releases | names.repos, "base")
        yield from _one(
            record.architecture, names.architectures, "architecture", "an [[architecture]]"
        )
        if not record.repos:
            yield "repos: a release of weights has at least one repo"
    elif isinstance(record, HostedModel):
        yield from _one(record.main, names.hosted, "main", "a [[hosted]]")
        yield from _one(record.replaced_by, names.hosted, "replaced_by", "a [[hosted]]")
        yield from _one(record.operator, names.organisations, "operator", "an [[organisation]]")
        yield from _fact(record.open_counterpart, names.releases, "open_counterpart")
        if record.no_open_weights and record.open_counterpart.known:
            yield "no_open_weights: but open_counterpart names some"
    elif isinstance(record, ApiHost):
        yield from _one(record.operator, names.organisations, "operator", "an [[organisation]]")
        yield from _fact(record.terms, names.terms, "terms")
    elif isinstance(record, Derivative):
        yield from _one(record.base_release, names.releases, "base_release", "a [[release]]")
    elif isinstance(record, NegativeCase):
        for each in record.instead:
            yield from _one(each, names.releases | names.hosted, "instead", "release or hosted")
    elif isinstance(record, OllamaTag):
        among = names.derivatives if record.derivative else names.releases
        yield from _one(record.release, among, "release", "a [[release]] or [[derivative]]")
    elif isinstance(record, Lag):
        yield from _one(record.release, names.releases, "release", "a [[release]]")
        yield from _one(record.hosted, names.hosted, "hosted", "a [[hosted]]")
    elif isinstance(record, Organisation):
        yield from _one(record.parent, names.organisations, "parent", "an [[organisation]]")
    elif isinstance(record, Generation):
        yield from _one(record.follows, names.generations, "follows", "a [[generation]]")


def _one(value: str, among: Collection[str], field: str, what: str) -> Iterator[str]:
    if value and value not in among:
        yield f"{field}: {value!r} is not {what} of the catalogue"


def _fact(fact: Fact[str], among: Collection[str], field: str) -> Iterator[str]:
    for value in (fact.value, *(claim.value for claim in fact.otherwise)):
        if value is not None:
            yield from _one(value, among, field, "an id")


def _twice(placed: list[Placed]) -> Iterator[Problem]:
    """A name that stands for two things, upper and lower case apart."""
    spaces: tuple[tuple[str, Callable[[Placed], Iterable[str]]], ...] = (
        ("source key", lambda each: [each.record.key] if isinstance(each.record, Source) else []),
        ("hub id", _hub_ids),
        ("ollama tag", lambda each: each.record.ollama if isinstance(each.record, Release) else []),
    )
    for what, names_of in spaces:
        yield from _duplicates(placed, what, names_of)
    for kind in {each.kind for each in placed if isinstance(each.record, Record)}:
        of_kind = [each for each in placed if each.kind == kind]
        yield from _duplicates(
            of_kind, "id", lambda each: [each.record.id] if isinstance(each.record, Record) else []
        )


def _hub_ids(each: Placed) -> Iterable[str]:
    if isinstance(each.record, Release):
        return each.record.hub_ids
    return [each.record.id] if isinstance(each.record, Derivative) else []


def _duplicates(
    placed: Iterable[Placed], what: str, names_of: Callable[[Placed], Iterable[str]]
) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for each in placed:
        for name in names_of(each):
            folded = name.casefold()
            if folded in first:
                yield Problem(each.place, f"{what} {name!r} stands already in {first[folded]}")
            first.setdefault(folded, each.place)
