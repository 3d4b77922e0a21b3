"""A scan's report as SARIF 2.1.0, the form that code review tools read.

One rule for each layer, so that a reviewer can filter by it, and one for names that only look like
a reference. What a policy refuses has the level of an error.
Specification: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from qwenstack.catalog.policy import Decision, Outcome
from qwenstack.catalog.scan.find import Finding, Report
from qwenstack.catalog.which.answer import Answer
from qwenstack.catalog.which.reading import Kind

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_RULES: Final = {
    "weights": "A reference to open weights: the licence file in their repo governs.",
    "studio": "A reference to an API: the operator's terms of service govern.",
    "community": "A reference to weights that somebody else published.",
    "research": "A reference to the research group's publications or code.",
    "corporate": "A reference to the parent company.",
    "unknown": "A reference whose layer is not known.",
    "look-alike": "A name whose letters only look like those of a reference.",
}
_WARNED: Final = ("unknown", "look-alike")
_LEVELS: Final = {Outcome.ALLOW: "note", Outcome.WARN: "warning", Outcome.DENY: "error"}


def sarif(
    report: Report, version: str, decisions: Sequence[Decision] | None = None
) -> dict[str, object]:
    """The SARIF log of `report`; with `decisions`, one for each finding, their level follows."""
    results = [
        _result(finding, decisions[number] if decisions else None)
        for number, finding in enumerate(report.findings)
    ]
    rules = [
        {
            "id": f"qwenstack/{layer}",
            "name": f"{layer.title().replace('-', '')}Reference",
            "shortDescription": {"text": text},
            "defaultConfiguration": {"level": "warning" if layer in _WARNED else "note"},
        }
        for layer, text in _RULES.items()
    ]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "qwenstack which",
                        "version": version,
                        "rules": rules,
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": results,
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {
                                "level": "warning",
                                "message": {"text": f"{trouble.path}: {trouble.reason}"},
                            }
                            for trouble in report.troubles
                        ],
                    }
                ],
            }
        ],
    }


def _result(finding: Finding, decision: Decision | None) -> dict[str, object]:
    place, answer = finding.place, finding.answer
    rule = Kind.LOOK_ALIKE.value if answer.kind == Kind.LOOK_ALIKE.value else answer.layer
    level = "warning" if rule in _WARNED else "note"
    if decision is not None:
        level = _LEVELS[decision.decision]
    fingerprint = hashlib.sha256(f"{place.path}\0{place.reference}\0{place.text}".encode())
    return {
        "ruleId": f"qwenstack/{rule}",
        "ruleIndex": list(_RULES).index(rule),
        "level": level,
        "message": {"text": message(place.reference, answer, decision)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(place.path), "uriBaseId": "%SRCROOT%"},
                    "region": {
                        "startLine": place.line,
                        "startColumn": place.column,
                        "endColumn": place.column + len(place.reference),
                    },
                }
            }
        ],
        "partialFingerprints": {"qwenstackReference/v1": fingerprint.hexdigest()},
        "properties": {
            "layer": answer.layer,
            "governingDocument": answer.governing_document.id,
            "status": answer.status.value,
        },
    }


def message(reference: str, answer: Answer, decision: Decision | None) -> str:
    """What a reviewer reads: the reference, its layer, what governs it, and why it was refused."""
    document = answer.governing_document
    name = answer.release or answer.kind
    text = f"{reference}: {answer.layer}, {name}; governed by {document.kind.value} {document.id}"
    if answer.conflicts:
        text += f". {answer.conflicts[0]}"
    if answer.suggestions and answer.layer == "unknown":
        text += f". Did you mean {answer.suggestions[0]}?"
    if decision is not None and decision.decision is not Outcome.ALLOW:
        reasons = [each.text for each in decision.reasons if each.outcome is decision.decision]
        text = f"{decision.decision.value}: {'; '.join(reasons)}. {text}"
    return text


def _uri(path: str) -> str:
    return quote(posixpath.normpath(path.replace("\\", "/")), safe="/~@!$&'()*+,;=-._")
