"""Evidence from an organisation's policy: what it decides, and each rule's reason."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

from qwenstack.catalog.policy import Deployed, evaluate, load_policy
from qwenstack.catalog.which import Answer
from qwenstack.core.evidence import Evidence, Value


def from_policy(
    path: Path, answer: Answer, *, region: str | None, today: datetime.date
) -> list[Evidence]:
    """The decision of the policy file at `path`; raises PolicyError."""
    decision = evaluate(load_policy(path), answer, today, Deployed(region=region))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def say(claim: str, value: Value) -> Evidence:
        return Evidence(
            subject=answer.reference,
            claim=claim,
            value=value,
            source=path.name,
            method="computed",
            observed_at=today.isoformat(),
            digest=digest,
        )

    return [
        say("policy.decision", decision.decision.value),
        *(
            say(f"policy.reason.{number}", f"{each.outcome.value}: {each.text}")
            for number, each in enumerate(decision.reasons, 1)
        ),
    ]
