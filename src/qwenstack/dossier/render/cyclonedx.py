"""A dossier's model as CycloneDX 1.6 ML-BOM (ECMA-424).

Only what evidence says goes in; `modelCard` stands on the machine-learning model alone, lineage in
`pedigree.ancestors`, as the specification has it.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Final

import msgspec

from qwenstack.core.licences import licences
from qwenstack.dossier.document import Document
from qwenstack.dossier.render.evidence import Known

_SPEC: Final = "1.6"
_REF: Final = "model"


def cyclonedx(document: Document) -> bytes:
    """The BOM as JSON; the serial number follows from the evidence."""
    known = Known(document.evidence)
    digest = hashlib.sha256(msgspec.json.encode(document, order="sorted")).digest()
    bom: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{_SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {
            **({"timestamp": known.timestamp} if known.timestamp else {}),
            "tools": {"components": [{"type": "application", "name": "qwenstack"}]},
            "component": _model(document, known),
        },
        "components": _files(known),
    }
    return msgspec.json.format(msgspec.json.encode(bom), indent=2) + b"\n"


def _model(document: Document, known: Known) -> dict[str, Any]:
    group, _, name = document.reference.rpartition("/")
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _REF,
        "name": name or document.reference,
        "modelCard": _card(known),
        "properties": [
            {"name": f"qwenstack:{each.claim}", "value": each.text} for each in document.evidence
        ],
    }
    if group:
        model["group"] = group
    if digest := known.digest("weights.release-digest"):
        model["version"] = digest
        model["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if publisher := known.text("identity.publisher"):
        model["publisher"] = publisher
    licence = known.text("governing.id")
    if licence and known.text("governing.kind") == "licence":
        key = "id" if licence in _spdx_ids() else "name"
        model["licenses"] = [{"license": {key: licence}}]
    parent = known.text("weights.lineage.parent")
    parent = parent or known.text("card.base-model") or known.text("identity.base")
    if parent:
        ancestor = {"type": "machine-learning-model", "name": parent}
        model["pedigree"] = {"ancestors": [ancestor]}
        if relation := known.text("weights.lineage.relation"):
            model["pedigree"]["notes"] = f"relation computed from the weights: {relation}"
    return model


def _spdx_ids() -> frozenset[str]:
    return frozenset(each.id for each in licences() if each.spdx)


def _card(known: Known) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if architecture := known.text("weights.architecture"):
        parameters["modelArchitecture"] = architecture
        parameters["architectureFamily"] = "transformer"
    if modality := known.text("identity.modality"):
        parameters["inputs"] = [{"format": modality}]
    card: dict[str, Any] = {}
    if parameters:
        card["modelParameters"] = parameters
    metrics = [
        {"type": each.claim.removeprefix("evaluation.measured."), "value": each.text}
        for each in known.starting("evaluation.measured.")
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    considerations = {}
    if use := known.text("card.intended-use"):
        considerations["useCases"] = [use]
    if limits := known.text("card.limitations"):
        considerations["technicalLimitations"] = [limits]
    if considerations:
        card["considerations"] = considerations
    return card


def _files(known: Known) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "bom-ref": f"file:{each.claim.removeprefix('weights.file.')}",
            "name": each.claim.removeprefix("weights.file."),
            "hashes": [{"alg": "SHA-256", "content": each.digest}],
        }
        for each in known.starting("weights.file.")
        if each.digest
    ]
