"""From evidence to a document. Pure: the same evidence makes the same document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwenstack.core.evidence import Evidence, Value, matches
from qwenstack.dossier import plan
from qwenstack.dossier.document import Document, Row, Section, Standing
from qwenstack.dossier.frameworks import NAMES, crosswalk
from qwenstack.dossier.results import CLAIMED, MEASURED, UNREAD, Result, beside, result
from qwenstack.dossier.risks import open_risks

ROLES = ("legal", "procurement", "security", "data protection", "engineering", "executive")
_NOTE_CHARACTERS_MAX = 600


def compose(
    reference: str, evidence: Iterable[Evidence], *, deployment: str | None = None
) -> Document:
    """The dossier of `reference`; the order of `evidence`, and repeats, make no difference."""
    every = sorted({each.id: each for each in evidence}.values(), key=_order)
    risks = _risks(every)
    return Document(
        reference=reference,
        deployment=deployment,
        as_of=max((each.observed_at for each in every), default=""),
        sections=(
            _listed(plan.IDENTITY, every),
            _listed(plan.LICENCE, every),
            _side_by_side(every),
            _listed(plan.PROVENANCE, every),
            _listed(plan.DISCLOSURES, every),
            _benchmarks(every),
            _listed(plan.RESIDENCY, every),
            _listed(plan.SLA, every),
            _listed(plan.CORPORATE, every),
            _listed(plan.LICENCE_HISTORY, every),
            _listed(plan.POLICY, every),
            risks,
            *(section for name in NAMES for section in crosswalk(name, every)),
            _sign_offs(every),
        ),
        evidence=tuple(every),
    )


def shown(value: Value) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}".replace(",", " ")
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)


def _order(each: Evidence) -> tuple[str, str, str]:
    return each.claim, each.subject, each.id


def _listed(section: plan.SectionPlan, evidence: Sequence[Evidence]) -> Section:
    rows: list[Row] = []
    for ask in section.asks:
        found = [each for each in evidence if matches(each.claim, ask.claim)]
        rows += [_shown(ask, each) for each in found]
        if not found:
            harmless = ask.claim in plan.ABSENCE_IS_NO_GAP
            rows.append(
                Row(
                    label=ask.label,
                    cells=(ask.absent, ""),
                    standing="none" if harmless else "gap",
                )
            )
    return Section(
        id=section.id,
        title=section.title,
        about=section.about,
        columns=("What", "From"),
        rows=tuple(rows),
    )


def _shown(ask: plan.Ask, each: Evidence) -> Row:
    standing: Standing = "shown" if each.known else "gap"
    if each.claim.startswith(("identity.conflict.", "card.contradicted.")):
        standing = "conflict"
    label = ask.label
    if ask.claim.endswith(".*"):
        tail = each.claim.removeprefix(ask.claim[:-1])
        if not tail.isdigit():
            label = f"{ask.label}: {tail}"
    return Row(
        label=label,
        cells=(shown(each.value) if each.known else "unknown", _from(each)),
        standing=standing,
        evidence=(each.id,),
        note=each.note,
    )


def _from(each: Evidence) -> str:
    sure = "" if each.status == "verified" else each.status
    how = ", ".join(filter(None, (each.method, sure, each.observed_at[:10])))
    return f"{each.source} ({how})"


# What legal asks of a licence and of a contract alike; each from its own evidence.
_SIDE_BY_SIDE = (
    ("Governing document", "governing.id", "api.terms"),
    ("Who grants it", "identity.publisher", "api.operator"),
    ("Reference", "identity.repo", "api.name"),
    ("Can it be withdrawn", "governing.withdrawal", "api.withdrawal"),
    ("Who processes the data", "deployment.region", "api.region"),
    ("Price", "governing.price", "api.price"),
    ("State", "identity.status", "hosted.state"),
)


def _side_by_side(evidence: Sequence[Evidence]) -> Section:
    rows = []
    for label, weights, api in _SIDE_BY_SIDE:
        left, right = _first(evidence, weights), _first(evidence, api)
        known = [each is not None and each.known for each in (left, right)]
        rows.append(
            Row(
                label=label,
                cells=tuple(
                    shown(each.value) if each and each.known else "unknown"
                    for each in (left, right)
                ),
                standing="shown" if all(known) else "partly" if any(known) else "gap",
                evidence=tuple(each.id for each in (left, right) if each),
            )
        )
    return Section(
        id="side-by-side",
        title="Licence of the weights beside the terms of the API",
        about="Two documents with two owners: neither stands in for the other.",
        columns=("Weights", "API"),
        rows=tuple(rows),
    )


def _first(evidence: Sequence[Evidence], claim: str) -> Evidence | None:
    return next((each for each in evidence if each.claim == claim), None)


def _benchmarks(evidence: Sequence[Evidence]) -> Section:
    by_name: dict[str, tuple[list[Result], list[Result]]] = {}
    for each in evidence:
        if each.known and each.claim.startswith((CLAIMED, MEASURED)):
            found = result(each)
            name = found.benchmark.names[0] if found.benchmark else found.name
            sides = by_name.setdefault(name, ([], []))
            sides[each.claim.startswith(MEASURED)].append(found)
    rows = [_beside(name, *by_name[name]) for name in sorted(by_name, key=str.casefold)]
    if not rows:
        cells = ("none claimed", "none measured", "")
        rows.append(Row(label="Results", cells=cells, standing="gap"))
    rows += [
        Row(
            label="Left out",
            cells=(f"{shown(each.value)} values could not be read for certain", "", ""),
            standing="gap",
            evidence=(each.id,),
            note=f"{each.source}: {each.note}",
        )
        for each in evidence
        if each.claim == UNREAD
    ]
    return Section(
        id="benchmarks",
        title="Claimed and measured results",
        about="What the makers report beside what was measured here. Results are compared where "
        "benchmark, examples shown, metric and way of asking are the same and said.",
        columns=("Claimed", "Measured here", "Side by side"),
        rows=tuple(rows),
    )


def _beside(name: str, claimed: Sequence[Result], measured: Sequence[Result]) -> Row:
    pairs = [beside(says, found) for says in claimed for found in measured]
    compared = [each for each in pairs if not each.startswith("not comparable")]
    return Row(
        label=name,
        cells=(
            _results(claimed) or "not claimed",
            _results(measured) or "not measured",
            "; ".join(dict.fromkeys(compared or pairs)),
        ),
        standing="shown" if measured else "gap",
        evidence=tuple(each.evidence.id for each in (*claimed, *measured)),
        note="; ".join(
            dict.fromkeys(
                each.evidence.source if each in claimed else each.evidence.note
                for each in (*claimed, *measured)
            )
        )[:_NOTE_CHARACTERS_MAX],
    )


def _results(results: Sequence[Result]) -> str:
    """Each value with how it was got, once."""
    return "; ".join(
        dict.fromkeys(
            f"{shown(each.evidence.value)} ({each.method})"
            if each.method
            else shown(each.evidence.value)
            for each in results
        )
    )


def _by_tail(evidence: Sequence[Evidence], prefix: str) -> dict[str, list[Evidence]]:
    """All of it: where several say something of one thing, none may hide another."""
    found: dict[str, list[Evidence]] = {}
    for each in evidence:
        if each.claim.startswith(prefix):
            found.setdefault(each.claim.removeprefix(prefix), []).append(each)
    return found


def _risks(evidence: Sequence[Evidence]) -> Section:
    rows = tuple(
        Row(
            label=risk.id,
            cells=(risk.text, risk.severity, risk.owner or "nobody yet", risk.due or "no date"),
            standing="open" if risk.owner else "gap",
            evidence=risk.evidence,
        )
        for risk in open_risks(evidence)
    )
    return Section(
        id="risks",
        title="Open risks",
        about="Derived from the evidence by rules; owner and date are people's decisions.",
        columns=("Risk", "Severity", "Owner", "Due"),
        rows=rows,
    )


def _sign_offs(evidence: Sequence[Evidence]) -> Section:
    given = _by_tail(evidence, "sign-off.")
    rows: list[Row] = []
    for role in dict.fromkeys((*ROLES, *given)):
        rows += [
            Row(
                label=role,
                cells=(shown(each.value), each.observed_at[:10]),
                standing="shown",
                evidence=(each.id,),
                note=each.note,
            )
            for each in given.get(role, ())
        ]
        if role not in given:
            rows.append(Row(label=role, cells=("not signed off", ""), standing="open"))
    return Section(
        id="sign-offs",
        title="Sign-offs",
        about="Who has read it and decided.",
        columns=("Decision", "Date"),
        rows=tuple(rows),
    )
