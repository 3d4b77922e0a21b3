"""Open risks, derived from evidence by rules that anybody can read: none is typed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from qwenstack.core.evidence import Evidence, matches

Severity = Literal["high", "medium", "low"]


class Risk(msgspec.Struct, frozen=True, kw_only=True):
    """A risk with what it rests on; `owner` and `due` come from the decisions, if there are any."""

    id: str
    severity: Severity
    text: str
    evidence: tuple[str, ...] = ()
    owner: str = ""
    due: str = ""


class Rule(msgspec.Struct, frozen=True):
    """When `when` finds something, or `unless` is not found, there is a risk."""

    id: str
    severity: Severity
    text: str
    when: Callable[[Evidence], bool] | None = None
    unless: str | None = None


def _is(claim: str, *values: object) -> Callable[[Evidence], bool]:
    return lambda each: matches(each.claim, claim) and each.value in values


def _is_not(claim: str, *values: object) -> Callable[[Evidence], bool]:
    return lambda each: matches(each.claim, claim) and each.value not in values


def _any(claim: str) -> Callable[[Evidence], bool]:
    return lambda each: matches(each.claim, claim)


RULES: tuple[Rule, ...] = (
    Rule("layer-unknown", "high", "What this is, is unknown.", _is("identity.layer", "unknown")),
    Rule(
        "terms-unknown",
        "high",
        "No governing document is known: nobody has granted the use.",
        _is("governing.kind", "unknown", ""),
    ),
    Rule("policy-denies", "high", "The policy denies this use.", _is("policy.decision", "deny")),
    Rule("terms-absent", "high", "No governing document was looked up.", unless="governing.kind"),
    Rule(
        "non-commercial",
        "high",
        "The licence is for research or evaluation only.",
        _is("governing.category", "non-commercial"),
    ),
    Rule(
        "conditional",
        "medium",
        "The licence sets conditions on commercial use; check each obligation.",
        _is("governing.category", "conditional"),
    ),
    Rule(
        "sources-in-conflict",
        "high",
        "Sources contradict each other about the identity or its terms.",
        _any("identity.conflict.*"),
    ),
    Rule(
        "card-contradicted",
        "high",
        "The bytes contradict what the card says.",
        _any("card.contradicted.*"),
    ),
    Rule("not-signed", "medium", "Nobody has signed the release.", unless="weights.signature"),
    Rule(
        "signature-bad",
        "high",
        "The signature does not hold.",
        _is_not("weights.signature", "valid"),
    ),
    Rule("not-scanned", "medium", "The files were not scanned.", unless="weights.scan"),
    Rule(
        "scan-not-clean",
        "high",
        "The scan found what should not be loaded, or not without a look.",
        _is_not("weights.scan", "clean"),
    ),
    Rule(
        "lineage-absent",
        "medium",
        "Where the weights come from was not computed; the card is believed.",
        unless="weights.lineage.verdict",
    ),
    Rule(
        "lineage-contradicts",
        "high",
        "The weights descend from another model than the card says.",
        _is("weights.lineage.agrees-with-card", False),
    ),
    Rule(
        "training-data-unsaid",
        "medium",
        "The makers do not say on what it was trained.",
        unless="card.training-data",
    ),
    Rule(
        "not-measured",
        "medium",
        "None of the claimed results was measured here.",
        unless="evaluation.measured.*",
    ),
    Rule(
        "alias-moves",
        "medium",
        "The name is repointed by its operator: what answers can change without notice.",
        _is("hosted.kind", "alias", "main"),
    ),
    Rule(
        "retiring",
        "high",
        "The hosted name ends or has ended.",
        _is("hosted.state", "retiring", "gone"),
    ),
    Rule("region-unknown", "medium", "Where requests run is unknown.", unless="deployment.region"),
    Rule("no-exit-plan", "low", "There is no plan for leaving.", unless="sla.exit-plan"),
    Rule(
        "licence-changed",
        "medium",
        "The licence changed between revisions.",
        _any("licence-history.change.*"),
    ),
)


def open_risks(evidence: Sequence[Evidence]) -> tuple[Risk, ...]:
    """The risks that `evidence` leaves open, gravest first."""
    found = []
    owners = {
        each.claim.removeprefix("risk.owner."): str(each.value)
        for each in evidence
        if each.claim.startswith("risk.owner.")
    }
    due = {
        each.claim.removeprefix("risk.due."): str(each.value)
        for each in evidence
        if each.claim.startswith("risk.due.")
    }
    for rule in RULES:
        hits = [each.id for each in evidence if each.known and rule.when and rule.when(each)]
        absent = rule.unless is not None and not any(
            each.known and matches(each.claim, rule.unless) for each in evidence
        )
        if hits or absent:
            found.append(
                Risk(
                    id=rule.id,
                    severity=rule.severity,
                    text=rule.text,
                    evidence=tuple(hits),
                    owner=owners.get(rule.id, ""),
                    due=due.get(rule.id, ""),
                )
            )
    order = {"high": 0, "medium": 1, "low": 2}
    return tuple(sorted(found, key=lambda risk: order[risk.severity]))
