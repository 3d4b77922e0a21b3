"""Which sections a dossier has, and what each asks for. Read it as the table of contents."""

from __future__ import annotations

import msgspec


class Ask(msgspec.Struct, frozen=True):
    """A line that a section owes: evidence of `claim` (a pattern), or the words of its absence."""

    label: str
    claim: str
    absent: str


class SectionPlan(msgspec.Struct, frozen=True):
    """A section that lists evidence as it is."""

    id: str
    title: str
    about: str
    asks: tuple[Ask, ...]


IDENTITY = SectionPlan(
    "identity",
    "Identity and layer",
    "What the reference is, on which layer, and who stands behind it.",
    (
        Ask("Layer", "identity.layer", "the layer is unknown"),
        Ask("Release", "identity.release", "no release is identified"),
        Ask("Repository", "identity.repo", "no repository is identified"),
        Ask("Publisher", "identity.publisher", "nobody is known to publish it"),
        Ask("Operator", "identity.operator", "nobody is known to operate it"),
        Ask("Released", "identity.released", "no date of release is known"),
        Ask("Made from", "identity.base", "no base is on record"),
        Ask("Modality", "identity.modality", "no modality is known"),
        Ask("Why", "identity.why", "how it was identified is not said"),
        Ask("Could be confused with", "identity.lookalike.*", "no look-alikes are on record"),
        Ask("Sources in conflict", "identity.conflict.*", "no conflict is on record"),
    ),
)
LICENCE = SectionPlan(
    "licence",
    "Licence and obligations",
    "The document that governs use, and what it asks.",
    (
        Ask("Kind of document", "governing.kind", "which document governs use is unknown"),
        Ask("Document", "governing.id", "the governing document is unknown"),
        Ask("Category", "governing.category", "how freely it may be used is unknown"),
        Ask("Licence file", "governing.text-digest", "no licence file was captured"),
        Ask("Licence on the card", "card.licence", "the card declares no licence"),
        Ask("Obligation", "obligation.*", "no obligation is on record"),
    ),
)
PROVENANCE = SectionPlan(
    "provenance",
    "Provenance",
    "Which bytes these are, where they come from, and what was found in them.",
    (
        Ask("Digest of the release", "weights.release-digest", "no bytes were at hand"),
        Ask("Files", "weights.files", "no bytes were at hand"),
        Ask("Architecture", "weights.architecture", "not read from the bytes"),
        Ask("Parameters", "weights.parameters", "not counted from the bytes"),
        Ask("Context", "weights.context", "no context length was read"),
        Ask("Types of tensors", "weights.tensor-types", "not read from the bytes"),
        Ask("Signature", "weights.signature", "the release is not signed, or nobody checked"),
        Ask("Scan", "weights.scan", "the files were not scanned"),
        Ask("Findings", "weights.scan-finding.*", "no finding is on record"),
        Ask("Lineage from the weights", "weights.lineage.*", "lineage was not computed"),
        Ask("Base on the card", "card.base-model", "the card names no base model"),
    ),
)
DISCLOSURES = SectionPlan(
    "disclosures",
    "Training and evaluation disclosures",
    "What the makers say of how it was made; what the card does not say stands as a gap.",
    (
        Ask("Card", "card.present", "there is no model card"),
        Ask("Intended use", "card.intended-use", "the card does not say"),
        Ask("How to use it", "card.usage", "the card does not say"),
        Ask("Training data", "card.training-data", "the card does not say"),
        Ask("Training method", "card.training-method", "the card does not say"),
        Ask("Compute", "card.compute", "the card does not say"),
        Ask("Energy", "card.energy", "the card does not say"),
        Ask("Evaluation", "card.evaluation", "the card does not say"),
        Ask("Limitations", "card.limitations", "the card does not say"),
        Ask("Bias", "card.bias", "the card does not say"),
        Ask("Copyright policy", "card.copyright-policy", "the card does not say"),
        Ask("Summary of training content", "card.training-summary", "the card does not say"),
    ),
)
RESIDENCY = SectionPlan(
    "residency",
    "Data residency and processing",
    "Where requests are processed, by whom, and what is kept.",
    (
        Ask("Deployment", "deployment.name", "no deployment was named"),
        Ask("Engine", "deployment.engine", "no deployment was named"),
        Ask("Weights", "deployment.digest", "no digest of the deployed weights is known"),
        Ask("Region", "deployment.region", "the region is unknown"),
        Ask("Hardware", "deployment.hardware", "the hardware is not stated"),
        Ask("Retention", "processing.retention", "no retention is stated"),
        Ask("Sub-processors", "processing.sub-processors", "no sub-processors are stated"),
        Ask("Data processing agreement", "processing.dpa", "no agreement is stated"),
    ),
)
SLA = SectionPlan(
    "continuity",
    "Service levels and continuity",
    "What was measured of the service, what is owed when it fails, and the way out.",
    (
        Ask("Availability", "sla.availability", "nothing was measured"),
        Ask("Service credits", "sla.credits", "no credits are agreed"),
        Ask("State on the API", "hosted.state", "no hosted name is concerned"),
        Ask("Retirement", "hosted.retirement", "no retirement is on record"),
        Ask("Lag between layers", "hosted.lag", "no lag is on record"),
        Ask("Ledger", "service.ledger-verified", "the ledger was not verified"),
        Ask("Audit log", "service.audit-verified", "the audit log was not verified"),
        Ask("Exit plan", "sla.exit-plan", "no exit plan is stated"),
    ),
)
CORPORATE = SectionPlan(
    "corporate",
    "Corporate background",
    "The legal entities behind each layer, and where their filings are found.",
    (
        Ask("Parent", "corporate.parent", "unknown"),
        Ask("Legal entity", "corporate.legal-entity.*", "unknown"),
        Ask("Research group", "corporate.research", "unknown"),
        Ask("Cloud unit", "corporate.cloud", "unknown"),
        Ask("Filings", "corporate.filings", "unknown"),
        Ask("Interest", "corporate.interest", "unknown"),
        Ask("EU representative", "corporate.eu-representative", "none is known"),
    ),
)
POLICY = SectionPlan(
    "policy",
    "The organisation's policy",
    "What the policy file decides on this reference, rule by rule.",
    (
        Ask("Decision", "policy.decision", "no policy was applied"),
        Ask("Rule", "policy.reason.*", "no policy was applied"),
    ),
)
LICENCE_HISTORY = SectionPlan(
    "licence-history",
    "Stability of the licence",
    "Whether the terms changed between revisions or generations.",
    (Ask("Change", "licence-history.*", "no history was recorded"),),
)
# Claims whose absence is good news or no matter: they are not called a gap.
ABSENCE_IS_NO_GAP = frozenset(
    {
        "identity.base",
        "identity.lookalike.*",
        "identity.conflict.*",
        "weights.scan-finding.*",
        "hosted.retirement",
        "hosted.lag",
        "hosted.state",
        "card.base-model",
        "policy.reason.*",
    }
)
