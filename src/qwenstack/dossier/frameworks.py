"""Frameworks as checklists: which claims show which item; and how evidence stands against one."""

from __future__ import annotations

import collections
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
    """One subcategory or field. An `organisational` one is not for evidence about a model.

    Each of `claims` is asked for; in "a | b" either is enough.
    """

    id: str
    title: str
    claims: tuple[str, ...] = ()
    organisational: bool = False


class Action(Item, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A suggested action. `risks` are positions among the framework's items, from 1; 0 is one that
    the framework names beside the action and nowhere else."""

    risks: tuple[int, ...]


class Framework(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A framework's items, in its own order and in our own words."""

    id: str
    title: str
    source: str
    checked: datetime.date
    items: tuple[Item, ...]
    actions: tuple[Action, ...] = ()


@functools.cache
def load_framework(name: str) -> Framework:
    """One of `NAMES`."""
    text = (resources.files("qwenstack.dossier") / "frameworks" / f"{name}.toml").read_text(
        encoding="utf-8"
    )
    return msgspec.convert(tomllib.loads(text), Framework)


def crosswalk(name: str, evidence: Sequence[Evidence]) -> tuple[Section, ...]:
    """The framework, item by item: shown by which evidence, partly, or a gap; then its actions.

    An item is shown where each of its claims has evidence that says something, partly where some
    have. That is a statement about evidence at hand, not about compliance.
    """
    framework = load_framework(name)
    rows = tuple(_row(item, evidence) for item in framework.items)
    actions = tuple(_row(action, evidence) for action in framework.actions)
    items = Section(
        id=framework.id.lower(),
        title=framework.title,
        about=_about(framework, rows, "items"),
        columns=("Item", "Shown by"),
        rows=_with_actions(framework, rows, actions),
    )
    if not actions:
        return (items,)
    return (
        items,
        Section(
            id=f"{items.id}-actions",
            title=f"{framework.title}, suggested actions",
            about=_about(framework, actions, "suggested actions"),
            columns=("Action", "Shown by", "Risks"),
            rows=tuple(
                msgspec.structs.replace(row, cells=(*row.cells, _risks(framework, action)))
                for action, row in zip(framework.actions, actions, strict=True)
            ),
        ),
    )


def _about(framework: Framework, rows: Sequence[Row], what: str) -> str:
    shown = sum(row.standing == "shown" for row in rows)
    return (
        f"{shown} of {len(rows)} {what} are shown by evidence; {framework.source}, checked "
        f"{framework.checked}. It says which evidence is at hand, not whether the law is met."
    )


def _with_actions(
    framework: Framework, rows: Sequence[Row], actions: Sequence[Row]
) -> tuple[Row, ...]:
    """The items' rows; where there are actions, each says how those that bear on it stand."""
    if not actions:
        return tuple(rows)
    noted = []
    for number, row in enumerate(rows, 1):
        bearing = [
            stands
            for action, stands in zip(framework.actions, actions, strict=True)
            if number in action.risks
        ]
        counts = collections.Counter(each.standing for each in bearing)
        said = ", ".join(f"{count} {standing}" for standing, count in sorted(counts.items()))
        note = f"{len(bearing)} suggested actions: {said}"
        noted.append(msgspec.structs.replace(row, note=f"{row.note}; {note}" if row.note else note))
    return tuple(noted)


def _risks(framework: Framework, action: Action) -> str:
    return ", ".join(framework.items[number - 1].title for number in action.risks if number)


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
        fitting = [
            each
            for pattern in claim.split(" | ")
            for each in evidence
            if each.known and matches(each.claim, pattern)
        ]
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
