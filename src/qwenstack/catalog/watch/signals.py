"""What the record of releases says: cadence, openness, lag. Facts, and no forecast."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable

import msgspec

from qwenstack.catalog.model import HostedModel, Lag, Records, Release


class Quarter(msgspec.Struct, frozen=True, kw_only=True):
    """Releases of one calendar quarter, by modality and by class of size."""

    quarter: str
    releases: int
    by_modality: dict[str, int]
    by_size: dict[str, int]


class Openness(msgspec.Struct, frozen=True, kw_only=True):
    """Of a generation: releases with open weights, and hosted names that have none."""

    generation: str
    open_releases: int
    hosted_only: int

    @property
    def share(self) -> float:
        """Open ones of all, 0 to 1."""
        return self.open_releases / max(self.open_releases + self.hosted_only, 1)


class LagLine(msgspec.Struct, frozen=True, kw_only=True):
    """Hosted date minus open date, in days; None where one of them is unknown."""

    release: str
    hosted: str
    days: int | None
    status: str


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, with how many releases had no date and are left out of the cadence."""

    quarters: tuple[Quarter, ...]
    openness: tuple[Openness, ...]
    lags: tuple[LagLine, ...]
    undated: int


def signals(records: Records) -> Signals:
    """Read the catalogue's record as series."""
    dated = [each for each in records.releases if each.released.value is not None]
    return Signals(
        quarters=_quarters(dated),
        openness=_openness(records),
        lags=tuple(_lag(each) for each in records.lags),
        undated=len(records.releases) - len(dated),
    )


def size_class(parameters: int | None) -> str:
    """The class that a number of parameters falls into."""
    if parameters is None:
        return "unknown"
    for limit, name in ((2e9, "≤2B"), (9e9, "≤9B"), (40e9, "≤40B"), (130e9, "≤130B")):
        if parameters <= limit:
            return name
    return ">130B"


def _quarters(releases: Iterable[Release]) -> tuple[Quarter, ...]:
    groups: dict[str, list[Release]] = {}
    for release in releases:
        day = release.released.value
        assert day is not None
        groups.setdefault(_quarter(day), []).append(release)
    return tuple(
        Quarter(
            quarter=name,
            releases=len(members),
            by_modality=dict(
                sorted(Counter(m.value for each in members for m in each.modality).items())
            ),
            by_size=dict(
                sorted(Counter(size_class(each.parameters.value) for each in members).items())
            ),
        )
        for name, members in sorted(groups.items())
    )


def _quarter(day: datetime.date) -> str:
    return f"{day.year}-Q{(day.month - 1) // 3 + 1}"


def _openness(records: Records) -> tuple[Openness, ...]:
    generations = {each.id: each for each in records.generations}
    order = sorted(
        generations.values(),
        key=lambda each: (each.announced.value or datetime.date.max, each.id),
    )
    families = list(dict.fromkeys(each.family for each in order))
    found = []
    for family in families:
        members = {each.id for each in order if each.family == family}
        open_ = sum(each.generation in members for each in records.releases)
        closed = sum(
            each.no_open_weights and _family_of(each, families) == family for each in records.hosted
        )
        if open_ or closed:
            found.append(Openness(generation=family, open_releases=open_, hosted_only=closed))
    return tuple(found)


def _family_of(hosted: HostedModel, families: list[str]) -> str | None:
    """The longest family name that the hosted name begins with; None for `qwen-plus`."""
    fitting = [each for each in families if hosted.id.casefold().startswith(each.casefold())]
    return max(fitting, key=len, default=None)


def _lag(lag: Lag) -> LagLine:
    return LagLine(release=lag.release, hosted=lag.hosted, days=lag.days, status=lag.status.value)
