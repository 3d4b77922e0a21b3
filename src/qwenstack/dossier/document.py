"""What a dossier says, apart from how it looks: sections of rows, each with its evidence."""

from __future__ import annotations

from typing import Literal

import msgspec

from qwenstack.core.evidence import Evidence

FORMAT = 1

Standing = Literal["shown", "partly", "gap", "none", "conflict", "organisational", "open"]
"""`shown` by evidence, `partly`, a `gap`, `none` where nothing on record is no matter, a `conflict`
between sources, a matter of the `organisational` process that no evidence about a model shows, or
`open` for people to decide."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `cells` belong to the section's columns, `evidence` are ids in the document."""

    label: str
    cells: tuple[str, ...]
    standing: Standing
    evidence: tuple[str, ...] = ()
    note: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the dossier. `about` says in a sentence what it is for."""

    id: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A whole dossier. `as_of` is the newest instant in the evidence, so the same evidence makes
    the same document whenever it is made."""

    format: int = FORMAT
    reference: str
    deployment: str | None
    as_of: str
    sections: tuple[Section, ...]
    evidence: tuple[Evidence, ...]

    def section(self, name: str) -> Section:
        """The section with this id; raises KeyError."""
        for section in self.sections:
            if section.id == name:
                return section
        raise KeyError(name)
