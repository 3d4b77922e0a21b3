"""The layers that a model reference can belong to: each has its own owner, clock and terms."""

from __future__ import annotations

import enum


class Layer(enum.Enum):
    """Who stands behind a reference. Every reference resolves to exactly one, or to none yet."""

    CORPORATE = "corporate"
    """The parent company: funds research and compute, publishes accounts and filings."""
    RESEARCH = "research"
    """The research group: papers, blog posts, code, announcements without weights."""
    WEIGHTS = "weights"
    """An open-weight release of the research group: the licence file in its repo governs."""
    STUDIO = "studio"
    """A name served over an API: the operator's terms of service govern, never a licence file."""
    COMMUNITY = "community"
    """Weights that somebody else published: a derivative, a conversion, or another model."""


def governing_kind(layer: Layer) -> str:
    """The kind of document that governs use on this layer: `licence`, `api-terms`, `unknown`."""
    if layer in (Layer.WEIGHTS, Layer.COMMUNITY):
        return "licence"
    return "api-terms" if layer is Layer.STUDIO else "unknown"
