"""Evidence by claim, for formats that have a place for each kind of statement."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwenstack.core.evidence import Evidence

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Known:
    """What is known, by claim; the first of several wins."""

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self._every = [each for each in evidence if each.known]
        self._first: dict[str, Evidence] = {}
        for each in self._every:
            self._first.setdefault(each.claim, each)

    @property
    def timestamp(self) -> str:
        """The newest observation as an instant; empty where there is none."""
        newest = max((each.observed_at for each in self._every), default="")
        return f"{newest}T00:00:00Z" if len(newest) == 10 else newest

    def text(self, claim: str) -> str:
        """The value as text; empty where it is unknown."""
        each = self._first.get(claim)
        return each.text if each is not None else ""

    def digest(self, claim: str) -> str:
        """The value where it is a SHA-256, without its prefix; empty where it is none."""
        value = self.text(claim).removeprefix("sha256:")
        return value if _SHA256.fullmatch(value) else ""

    def starting(self, prefix: str) -> list[Evidence]:
        """Everything whose claim begins so, in order."""
        return [each for each in self._every if each.claim.startswith(prefix)]
