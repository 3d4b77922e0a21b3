"""Frameworks as checklists: which claims show which item; and how evidence stands against one."""

from __future__ import annotations

import datetime
import functools
import tomllib
from collections.abc import Sequence
from importlib import resources

import msgspec

from qwenstack.core.evidence import Evidence, matches
from qwenstack.dossier.document import Row, Section, Standing

NAMES = ("nist_ai_rmf", "nist_ai_600_1", "eu_ai_act", "export_control")


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subcategory or field. An `organisational` one is not for evidence about a model."""

    id: str
    title: str
    claims: tuple[str, ...] = ()
    organisational: bool = False


class Framework(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A framework's items, in its own order and in our own words."""

    id: str
    title: str
    source: str
    checked: datetime.date
    items: tuple[Item, ...]


@functools.cache
def load_framework(name: str) -> Framework:
    """One of `NAMES`."""
    text = (resources.files("qwenstack.dossier") / "frameworks" / f"{name}.toml").read_text(
        encoding="utf-8"
    )
    return msgspec.convert(tomllib.loads(text), Framework)


def crosswalk(name: str, evidence: Sequence[Evidence]) -> Section:
    """The framework, item by item: shown by which evidence, partly, or a gap.

    An item is shown where each of its claims has evidence that says something, partly where some
    have. That is a statement about evidence at hand, not about compliance.
    """
    framework = load_framework(name)
    rows = tuple(_row(item, evidence) for item in framework.items)
    shown = sum(row.standing == "shown" for row in rows)
    about = (
        f"{shown} of {len(rows)} items are shown by evidence; {framework.source}, checked "
        f"{framework.checked}. It says which evidence is at hand, not whether the law is met."
    )
    return Section(
        id=framework.id.lower(),
        title=framework.title,
        about=about,
        columns=("Item", "Shown by"),
        rows=rows,
    )


def _row(item: Item, evidence: Sequence[Evidence]) -> Row:
    if item.organisational:
        return Row(
            label=item.id,
            cells=(item.title, "a matter of the organisation's own process"),
            standing="organisational",
        )
    found: list[Evidence] = []
    missing: list[str] = []
    for claim in item.claims:
        fitting = [each for each in evidence if each.known and matches(each.claim, claim)]
        found += fitting
        if not fitting:
            missing.append(claim)
    standing: Standing = "shown" if not missing else "partly" if found else "gap"
    shown = ", ".join(dict.fromkeys(each.claim for each in found)) or "nothing"
    return Row(
        label=item.id,
        cells=(item.title, shown),
        standing=standing,
        evidence=tuple(dict.fromkeys(each.id for each in found)),
        note=f"no evidence of {', '.join(missing)}" if missing else "",
    )
