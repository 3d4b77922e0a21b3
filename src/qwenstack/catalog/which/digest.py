"""Digests: the SHA-256 of a licence text, or of a file whose digest the catalogue holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from qwenstack.catalog.model import Status
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.core import licences
from qwenstack.core.layers import Layer

_DIGEST: Final = re.compile(r"(?:sha256[:-])?([0-9a-fA-F]{64})")


class _KnownFile(NamedTuple):
    """A file whose bytes were identified by hand: its size, what it is made from, who gives it."""

    bytes: int
    base: str
    what: str


_KNOWN_FILES: Final = {
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": _KnownFile(
        491_400_064,
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "by its SHA-256, Qwen2.5-Coder-0.5B-Instruct in Q4_K_M as a community mirror gives it out; "
        "not a file of the Qwen organisation",
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
    known = _KNOWN_FILES.get(digest)
    yield (
        _known(digest, known, index)
        if known is not None
        else Reading(
            kind=Kind.DIGEST,
            sure=Sureness.SHAPED,
            why="a SHA-256 that the catalogue does not hold",
            subject=digest,
        )
    )


def of_file(path: Path, index: Index) -> Reading | None:
    """The reading of a file whose bytes are known; only one of a known size is read through."""
    size = path.stat().st_size
    known = [(digest, each) for digest, each in _KNOWN_FILES.items() if each.bytes == size]
    if not known:
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return next((_known(digest, each, index) for digest, each in known if digest == found), None)


def _known(digest: str, known: _KnownFile, index: Index) -> Reading:
    found = index.catalogue.find_repo(known.base)
    return Reading(
        kind=Kind.DIGEST,
        sure=Sureness.EXACT,
        why=known.what,
        subject=digest,
        layer=Layer.COMMUNITY,
        base=known.base,
        release=found[0] if found else None,
        status=Status.REPORTED,
    )
