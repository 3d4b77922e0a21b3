"""Evidence: one observed statement about one thing. It is all that a dossier is made of."""

from __future__ import annotations

import datetime
import hashlib
from typing import Literal

import msgspec

Value = bool | int | float | str | tuple[str, ...]

Method = Literal["computed", "measured", "read", "declared"]
"""`computed` from the bytes, `measured` by running it, `read` in a document, `declared` by a
person or a card and believed no further than that."""

EvidenceStatus = Literal["verified", "reported", "unknown"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was observed: `claim` of `subject` is `value`.

    `claim` is a dotted name (`weights.release-digest`); `source` says where it was observed well
    enough to look again; `observed_at` is a UTC instant or a date. `digest` is the SHA-256 of the
    thing observed, where it has one. A `value` that nobody could find is "" with status `unknown`.
    """

    subject: str
    claim: str
    value: Value
    source: str
    method: Method
    status: EvidenceStatus = "verified"
    observed_at: str
    digest: str | None = None
    note: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 over the whole statement: the same says the same."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:12]

    @property
    def text(self) -> str:
        """The value in words, as machine-readable formats hold it."""
        return ", ".join(self.value) if isinstance(self.value, tuple) else str(self.value)

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return self.status != "unknown"


def matches(claim: str, pattern: str) -> bool:
    """Whether `pattern` (a claim, or a prefix with `.*`) covers `claim`.

    >>> matches("obligation.notice", "obligation.*"), matches("obligation", "obligation.*")
    (True, False)
    """
    if pattern.endswith(".*"):
        return claim.startswith(pattern[:-1])
    return claim == pattern


def instant(moment: datetime.datetime) -> str:
    """A UTC instant as evidence writes it, to the second: 2026-11-24T12:00:00Z."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
