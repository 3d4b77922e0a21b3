"""What `which` answers: one reading of a reference, what governs its use, and how we know.

The first ten fields are the published form of an answer; the fields after them may grow.
"""

from __future__ import annotations

import datetime
import enum

import msgspec

from qwenstack.catalog.model import Status

UNKNOWN = "unknown"


class GoverningKind(enum.Enum):
    """What kind of document rules over the use of a thing; a licence is never a contract."""

    LICENCE = "licence"
    API_TERMS = "api-terms"
    UNKNOWN = UNKNOWN


class GoverningDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The document that governs use. `id` is SPDX or `LicenseRef-…` for a licence."""

    kind: GoverningKind = GoverningKind.UNKNOWN
    id: str = UNKNOWN
    source: str = ""
    checked: datetime.date | None = None
    status: Status = Status.UNKNOWN


class Duty(msgspec.Struct, frozen=True, kw_only=True):
    """One obligation that follows from `document`; `clause` is where it stands in that text."""

    kind: str
    text: str
    document: str = ""
    clause: str = ""
    source: str = ""
    checked: datetime.date | None = None


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """Another thing that the same or a similar name could mean."""

    reference: str
    kind: str
    layer: str
    reason: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One statement about the reference, with where it comes from and when that was checked."""

    label: str
    value: str
    source: str
    checked: datetime.date | None
    status: Status


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference is. `status` is the weaker of how sure the identification and the
    governing document are; every line has its own.

    `release` is the release, hosted name or tag that it resolves to; None where that is unknown.
    `base` is what a community model was made from: `unknown` unless somebody said so.
    `problems` are what could not be read or does not fit together; the rest still holds.
    """

    reference: str
    kind: str
    layer: str
    release: str | None
    operator: str
    governing_document: GoverningDocument
    obligations: tuple[Duty, ...] = ()
    lookalikes: tuple[Likeness, ...] = ()
    base: str | None = None
    status: Status = Status.UNKNOWN
    publisher: str = UNKNOWN
    repo: str | None = None
    why: str = ""
    region: str | None = None
    released: datetime.date | None = None
    state: str | None = None
    """Of an API name: live, retiring, gone, announced."""
    retired: datetime.date | None = None
    """The day on which an API name ended."""
    lines: tuple[Line, ...] = ()
    suggestions: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    parts: tuple[Answer, ...] = ()
    """For a snippet or command that names several models: one answer each."""

    @property
    def identified(self) -> bool:
        """Whether the layer is known."""
        return self.layer != UNKNOWN
