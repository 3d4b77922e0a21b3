"""Evidence from the weights' lineage: the verdict, its confidence, and whether the card agrees."""

from __future__ import annotations

from collections.abc import Sequence

from qwenstack.core.evidence import Evidence, Value
from qwenstack.hub.lineage.trace import Answer


def from_lineage(
    subject: str, answer: Answer, declared: Sequence[str], *, against: str, observed_at: str
) -> list[Evidence]:
    """What the weights say; `declared` are the card's base models, `against` names the candidates.

    Agreement is said only where the weights derive from something and the card names something; a
    candidate may be called otherwise than on a hub, so only the last part of a name is compared.
    """
    said: dict[str, Value] = {
        "weights.lineage.verdict": answer.verdict,
        "weights.lineage.confidence": round(answer.confidence, 4),
    }
    if answer.verdict == "derived":
        said["weights.lineage.parent"] = tuple(answer.parents)
        said["weights.lineage.relation"] = answer.relation
        if declared:
            found = {_last(name) for name in answer.parents}
            said["weights.lineage.agrees-with-card"] = bool(found & {_last(n) for n in declared})
    details = "; ".join(each.detail for each in answer.evidence[:5] if each.detail)
    return [
        Evidence(
            subject=subject,
            claim=claim,
            value=value,
            source=f"tensors, against {against}",
            method="computed",
            observed_at=observed_at,
            note=details[:600] if claim.endswith("verdict") else "",
        )
        for claim, value in said.items()
    ]


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
