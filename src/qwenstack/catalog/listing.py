"""The catalogue as lines, and one record looked up by whatever names it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import msgspec

from qwenstack.catalog.load import Catalogue
from qwenstack.catalog.model import Fact, Modality, Record, Source
from qwenstack.core import licences
from qwenstack.core.layers import Layer

CITATION_FIELDS = ("source", "checked", "status", "note")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A release, a hosted name or a derivative in one line.

    `governed_by` is a licence id for weights, the state of the name for an API; `status` is that of
    the fact that says so.
    """

    id: str
    layer: Layer
    generation: str = ""
    modality: tuple[Modality, ...] = ()
    size: str = ""
    context: int | None = None
    date: datetime.date | None = None
    governed_by: str = "unknown"
    status: str
    conflict: bool = False
    repos: int = 0


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines; empty means any. `licence` is an id, a hub's name for one, or a category."""

    layer: Layer | None = None
    modality: Modality | None = None
    licence: str = ""
    generation: str = ""

    def takes(self, line: Line) -> bool:
        """Whether `line` passes."""
        return (
            (self.layer is None or line.layer is self.layer)
            and (self.modality is None or self.modality in line.modality)
            and (not self.generation or self.generation.casefold() in _families(line.generation))
            and (not self.licence or self._licensed(line))
        )

    def _licensed(self, line: Line) -> bool:
        if line.layer is Layer.STUDIO:
            return False
        wanted = self.licence.casefold()
        licence = licences.by_id(line.governed_by)
        if licence is None:
            return wanted == "unknown"
        names = (licence.id, licence.category.value, *licence.hub_names)
        return wanted in (name.casefold() for name in names)


def _families(generation: str) -> tuple[str, ...]:
    return tuple(generation.casefold().split(" "))


def lines(catalogue: Catalogue) -> Iterator[Line]:
    """All lines: releases, then hosted names, then derivatives."""
    families = {each.id: each.family for each in catalogue.generations}
    for release in catalogue.releases:
        yield Line(
            id=release.id,
            layer=Layer.WEIGHTS,
            generation=" ".join(dict.fromkeys((release.generation, families[release.generation]))),
            modality=release.modality,
            size=release.size_label,
            context=release.context.value,
            date=release.released.value,
            governed_by=release.licence.value or "unknown",
            status=release.licence.status.value,
            conflict=release.licence.in_conflict,
            repos=len(release.repos),
        )
    for hosted in catalogue.hosted:
        yield Line(
            id=hosted.id,
            layer=Layer.STUDIO,
            modality=hosted.modality,
            context=hosted.context.value,
            date=hosted.retired.value or hosted.available.value,
            governed_by=f"API terms ({hosted.state.value.value if hosted.state.value else '?'})",
            status=hosted.state.status.value,
            conflict=hosted.open_counterpart.in_conflict,
        )
    for derivative in catalogue.derivatives:
        base = catalogue.find_release(derivative.base_release) if derivative.same_weights else None
        licence = base.licence if base is not None else derivative.licence
        yield Line(
            id=derivative.id,
            layer=Layer.COMMUNITY,
            modality=derivative.modality,
            governed_by=licence.value or "unknown",
            status=licence.status.value,
            conflict=bool(derivative.conflict) or derivative.licence.in_conflict,
        )


def find(catalogue: Catalogue, name: str) -> list[tuple[str, Record | Source | licences.Licence]]:
    """Every record that `name` names, with its kind; a hub id finds its release."""
    repo = catalogue.find_repo(name)
    found: list[tuple[str, Record | Source | licences.Licence | None]] = [
        ("release", catalogue.find_release(name) or (repo[0] if repo else None)),
        ("hosted", catalogue.find_hosted(name)),
        ("derivative", catalogue.find_derivative(name)),
        ("ollama", catalogue.find_ollama(name)),
        ("negative", catalogue.find_negative(name)),
        ("generation", catalogue.find_generation(name)),
        ("architecture", catalogue.find_architecture(name)),
        ("organisation", catalogue.find_organisation(name)),
        ("host", catalogue.find_host(name)),
        ("terms", catalogue.find_terms(name)),
        ("source", catalogue.find_source(name)),
        ("licence", licences.by_id(name) or licences.declared(name)),
    ]
    found += [("lookalike", each) for each in catalogue.find_lookalikes(name)]
    return [(kind, record) for kind, record in found if record is not None]


def facts(record: msgspec.Struct) -> Iterator[tuple[str, Fact[object]]]:
    """The record's facts that are plain fields, in their order."""
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if isinstance(value, Fact):
            yield field, value
