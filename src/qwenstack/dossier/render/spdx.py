"""A dossier's model as SPDX 3.0.1 with the AI profile, in JSON-LD, through SPDX's own bindings."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
from typing import Any, Final

import msgspec
from spdx_python_model import v3_0_1 as spdx

from qwenstack.dossier.document import Document
from qwenstack.dossier.render.evidence import Known

_NAMESPACE: Final = "https://qwenstack.example/spdx/"
_FIELDS: Final = (
    ("card.training-data", "ai_informationAboutTraining"),
    ("card.intended-use", "ai_informationAboutApplication"),
    ("card.limitations", "ai_limitation"),
)


def spdx_json(document: Document) -> bytes:
    """The document as JSON-LD; identifiers follow from the evidence, so the same makes the same."""
    known = Known(document.evidence)
    digest = hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
    base = f"{_NAMESPACE}{digest[:32]}"
    made = datetime.datetime.fromisoformat(known.timestamp or "2000-01-01T00:00:00+00:00")
    agent: Any = spdx.SoftwareAgent(_id=f"{base}#agent", name="qwenstack")
    info = spdx.CreationInfo(
        _id="_:creation", specVersion="3.0.1", created=made, createdBy=[agent._id]
    )
    agent.creationInfo = info
    package = _package(document, known, f"{base}#model", info)
    elements: list[Any] = [agent, package, *_licence(known, package, base, info)]
    elements += _files(known, package, base, info)
    whole = spdx.SpdxDocument(
        _id=f"{base}#document",
        name=f"Dossier: {document.reference}"[:200],
        creationInfo=info,
        rootElement=[package],
        profileConformance=[
            spdx.ProfileIdentifierType.core,
            spdx.ProfileIdentifierType.software,
            spdx.ProfileIdentifierType.simpleLicensing,
            spdx.ProfileIdentifierType.ai,
        ],
    )
    whole.element = list(elements)
    graph = spdx.SHACLObjectSet([info, *elements, whole])
    buffer = io.BytesIO()
    spdx.JSONLDSerializer().write(graph, buffer, indent=2)
    return buffer.getvalue() + b"\n"


def _package(document: Document, known: Known, identifier: str, info: Any) -> Any:
    package = spdx.ai_AIPackage(_id=identifier, name=document.reference, creationInfo=info)
    package.software_packageVersion = known.text("weights.release-digest") or "unknown"
    location = known.text("identity.repo")
    package.software_downloadLocation = f"urn:qwenstack:{location or 'unknown'}"
    package.software_primaryPurpose = spdx.software_SoftwarePurpose.model
    if architecture := known.text("weights.architecture"):
        package.ai_typeOfModel = [architecture]
    for claim, field in _FIELDS:
        if text := known.text(claim):
            setattr(package, field, text)
    package.ai_metric = [
        spdx.DictionaryEntry(key=each.claim.removeprefix("evaluation.measured."), value=value)
        for each in known.starting("evaluation.measured.")
        if (value := known.text(each.claim))
    ]
    if digest := known.digest("weights.release-digest"):
        package.verifiedUsing = [_hash(digest)]
    with contextlib.suppress(ValueError):  # a date that is not known to the day
        released = datetime.date.fromisoformat(known.text("identity.released"))
        package.releaseTime = datetime.datetime.combine(
            released, datetime.time(), tzinfo=datetime.UTC
        )
    return package


def _licence(known: Known, package: Any, base: str, info: Any) -> list[Any]:
    name = known.text("governing.id")
    if not name or known.text("governing.kind") != "licence":
        return []
    licence = spdx.simplelicensing_LicenseExpression(
        _id=f"{base}#licence", creationInfo=info, simplelicensing_licenseExpression=name
    )
    kind = (
        spdx.RelationshipType.hasDeclaredLicense
        if known.text("card.licence")
        else spdx.RelationshipType.hasConcludedLicense
    )
    related = spdx.Relationship(
        _id=f"{base}#licensed",
        creationInfo=info,
        from_=package,
        to=[licence],
        relationshipType=kind,
    )
    return [licence, related]


def _files(known: Known, package: Any, base: str, info: Any) -> list[Any]:
    files = []
    for number, each in enumerate(known.starting("weights.file.")):
        file = spdx.software_File(
            _id=f"{base}#file-{number}",
            creationInfo=info,
            name=each.claim.removeprefix("weights.file."),
        )
        if each.digest:
            file.verifiedUsing = [_hash(each.digest)]
        files.append(file)
    if not files:
        return []
    contains = spdx.Relationship(
        _id=f"{base}#contains",
        creationInfo=info,
        from_=package,
        to=list(files),
        relationshipType=spdx.RelationshipType.contains,
    )
    return [*files, contains]


def _hash(digest: str) -> Any:
    return spdx.Hash(algorithm=spdx.HashAlgorithm.sha256, hashValue=digest)
