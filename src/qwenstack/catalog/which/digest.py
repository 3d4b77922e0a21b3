"""Digests: the SHA-256 of a licence text, or of a file whose digest the catalogue holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core import licences

_DIGEST: Final = re.compile(r"(?:sha256[:-])?([0-9a-fA-F]{64})")
# Files whose bytes were identified by hand, and what they are: hub id, and who gives them out.
_KNOWN_FILES: Final = {
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": (
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "Qwen2.5-Coder-0.5B-Instruct Q4_K_M GGUF as a community mirror gives it out (491 400 064 "
        "bytes); not a file of the Qwen organisation",
    ),
}


def read(text: str, index: Index) -> Iterator[Reading]:
    """64 hex digits, with or without `sha256:`."""
    match = _DIGEST.fullmatch(text.strip())
    if match is None:
        return
    digest = match[1].lower()
    licence = licences.by_digest(digest)
    if licence is not None:
        yield Reading(
            kind=Kind.DIGEST,
            sure=Sureness.EXACT,
            why=f"the text of a licence: {licence.name}. It governs whatever it comes with",
            subject=digest,
            stated_licence=licence.id,
        )
        return
    hub_id, what = _KNOWN_FILES.get(digest, ("", ""))
    yield (
        known_file(digest, hub_id, what, index)
        if hub_id
        else Reading(
            kind=Kind.DIGEST,
            sure=Sureness.SHAPED,
            why="a SHA-256 that the catalogue does not hold",
            subject=digest,
        )
    )


def known_file(digest: str, hub_id: str, what: str, index: Index) -> Reading:
    """The reading of a file whose bytes are known."""
    from qwenstack.catalog.model import Status
    from qwenstack.core.layers import Layer

    found = index.catalogue.find_repo(hub_id)
    return Reading(
        kind=Kind.DIGEST,
        sure=Sureness.EXACT,
        why=what,
        subject=digest,
        layer=Layer.COMMUNITY,
        base=hub_id,
        release=found[0] if found else None,
        status=Status.REPORTED,
    )
