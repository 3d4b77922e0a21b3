"""What a scan says: a verdict, and the findings that it rests on."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Verdict = Literal["clean", "suspicious", "refused"]
Action = Literal["publish", "quarantine", "refuse"]

_MESSAGE_CHARACTERS_MAX: Final = 500
FINDINGS_MAX: Final = 100
"""How many findings a scan keeps; a file with more is no better known by the rest."""


class Finding(msgspec.Struct, frozen=True):
    """One thing found. `rule` is a name from rules.toml; `place` is where inside the file."""

    rule: str
    message: str
    place: str = ""


class Scan(msgspec.Struct, frozen=True):
    """The verdict on one file: the gravest of its findings' rules."""

    verdict: Verdict
    findings: tuple[Finding, ...]


class Findings:
    """Collects findings: each once, shortened, and no more than a bound."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}

    def add(self, rule: str, message: str, place: str = "") -> None:
        """Note a finding; foreign text in it is shortened and made printable."""
        if len(self._found) < FINDINGS_MAX:
            finding = Finding(rule, _shown(message), _shown(place))
            self._found[finding] = None

    @property
    def all(self) -> tuple[Finding, ...]:
        """What was found, in order."""
        return tuple(self._found)


def _shown(text: str) -> str:
    short = text[:_MESSAGE_CHARACTERS_MAX]
    if short.isascii() and short.isprintable():
        return short
    return "".join(character if character.isprintable() else "\ufffd" for character in short)
