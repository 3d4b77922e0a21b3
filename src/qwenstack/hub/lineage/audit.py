"""Where cards and weights disagree about descent, and which licences that touches.

A finding is a fact with its evidence, not a judgement: what the weights say with which confidence,
what the card says, and the clause of the parent's licence that the child's does not carry on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import msgspec

from qwenstack.core.licences import Category, Licence, Obligation, ObligationKind, by_id
from qwenstack.hub.facts import LicenceFacts

_STRICTNESS: Final = {
    Category.PERMISSIVE: 0,
    Category.CONDITIONAL: 1,
    Category.NON_COMMERCIAL: 2,
}
_CHAIN_MAX: Final = 100

Kind = Literal[
    "parent omitted",
    "parent contradicted",
    "broken chain",
    "licence conflict",
    "notice missing",
    "licence unknown",
]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A release as the audit sees it: what its card declares and what its weights say.

    `here` are those of the declared bases that are on this hub.
    """

    name: str
    declared: tuple[str, ...] = ()
    here: frozenset[str] = frozenset()
    parent: str | None = None
    relation: str = "unrelated"
    confidence: float = 0.0
    verdict: str = "insufficient"
    licence: LicenceFacts = LicenceFacts()


class Finding(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One disagreement. `clause` is where the parent's licence asks for what is missing."""

    release: str
    kind: Kind
    detail: str
    parent: str | None = None
    confidence: float | None = None
    licence: str = ""
    parent_licence: str = ""
    clause: str = ""


def audit(standings: Mapping[str, Standing]) -> list[Finding]:
    """All findings over the releases of a hub, by name."""
    found: list[Finding] = []
    for standing in standings.values():
        if standing.verdict == "derived" and standing.parent is not None:
            found += _descent(standing, standings)
            found += _licences(standing, standings)
    return found


def ancestors(standing: Standing, standings: Mapping[str, Standing]) -> Iterator[Standing]:
    """The releases that a release comes from by its weights, nearest first."""
    seen = {standing.name}
    at: Standing | None = standing
    for _ in range(_CHAIN_MAX):
        at = standings.get(at.parent) if at is not None and at.parent else None
        if at is None or at.name in seen:
            return
        seen.add(at.name)
        yield at


def _descent(standing: Standing, standings: Mapping[str, Standing]) -> Iterator[Finding]:
    parent, confidence = standing.parent, standing.confidence
    how = f"the weights are a {standing.relation} of {parent}"
    if not standing.declared:
        yield Finding(
            release=standing.name, kind="parent omitted", parent=parent, confidence=confidence,
            detail=f"{how}; the card names no base_model",
        )  # fmt: skip
        return
    line = [each.name for each in ancestors(standing, standings)]
    named = {name.lower() for name in standing.declared}
    if named & {name.lower() for name in line[:1]}:
        return
    said = ", ".join(standing.declared)
    if named & {name.lower() for name in line}:
        yield Finding(
            release=standing.name, kind="broken chain", parent=parent, confidence=confidence,
            detail=f"{how}; the card names {said}, which is farther back",
        )  # fmt: skip
    elif standing.here:
        yield Finding(
            release=standing.name, kind="parent contradicted", parent=parent,
            confidence=confidence, detail=f"{how}; the card names {said}",
        )  # fmt: skip
    else:
        yield Finding(
            release=standing.name, kind="broken chain", parent=parent, confidence=confidence,
            detail=f"{how}; the card names {said}, which is not on this hub",
        )  # fmt: skip


def _licences(standing: Standing, standings: Mapping[str, Standing]) -> Iterator[Finding]:
    mine = _licence(standing)
    for ancestor in ancestors(standing, standings):
        theirs = _licence(ancestor)
        if theirs is None:
            yield Finding(
                release=standing.name, kind="licence unknown", parent=ancestor.name,
                licence=_name(standing), parent_licence=_name(ancestor),
                detail=f"the licence of {ancestor.name}, which it comes from, is not recognised",
            )  # fmt: skip
            continue
        if mine is None or mine.id != theirs.id:
            yield from _conflicts(standing, mine, ancestor, theirs)
        yield from _notices(standing, ancestor, theirs)


def _conflicts(
    standing: Standing, mine: Licence | None, ancestor: Standing, theirs: Licence
) -> Iterator[Finding]:
    strict = _STRICTNESS.get(theirs.category, 0)
    if strict == 0 or (mine is not None and _STRICTNESS.get(mine.category, 0) > strict):
        return
    said = mine.id if mine is not None else _name(standing) or "nothing"
    for obligation in _binding(theirs):
        yield Finding(
            release=standing.name, kind="licence conflict", parent=ancestor.name,
            licence=said, parent_licence=theirs.id, clause=obligation.clause,
            detail=f"it says {said}, but {ancestor.name} is under {theirs.name} "
            f"({theirs.category.value}): {obligation.summary}",
        )  # fmt: skip


def _binding(licence: Licence) -> list[Obligation]:
    """The obligations that a freer licence would drop: those that bar or limit a use."""
    limiting = (
        ObligationKind.FIELD_OF_USE, ObligationKind.USER_THRESHOLD,
        ObligationKind.REVENUE_THRESHOLD, ObligationKind.SERVICE_LICENCE,
        ObligationKind.NO_COMPETE, ObligationKind.COPYLEFT,
    )  # fmt: skip
    found = [each for each in licence.obligations if each.kind in limiting]
    return found or list(licence.obligations[:1])


def _notices(standing: Standing, ancestor: Standing, theirs: Licence) -> Iterator[Finding]:
    """A licence that must be passed on, where the release has no licence file at all."""
    if standing.licence.file is not None:
        return
    for obligation in theirs.obligations:
        if obligation.kind is ObligationKind.NOTICE:
            yield Finding(
                release=standing.name, kind="notice missing", parent=ancestor.name,
                licence=_name(standing), parent_licence=theirs.id, clause=obligation.clause,
                detail=f"it has no licence file; {theirs.name} asks: {obligation.summary}",
            )  # fmt: skip


def _licence(standing: Standing) -> Licence | None:
    """By the file where it is recognised, else by the card."""
    facts = standing.licence
    for name in (facts.file_id, facts.declared_id):
        found = by_id(name) if name else None
        if found is not None:
            return found
    return None


def _name(standing: Standing) -> str:
    facts = standing.licence
    return facts.file_id or facts.declared_id or facts.declared or ""
