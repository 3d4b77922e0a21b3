"""Evidence from a model card: under which headings it says something, and what it leaves out.

A heading is no disclosure: what counts is text below it. The first lines are quoted, so that a
reader sees what the evidence is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

from qwenstack.core.evidence import Evidence

CARD_BYTES_MAX: Final = 2 * 1024 * 1024
_QUOTE_CHARACTERS: Final = 300
_TEXT_CHARACTERS_MIN: Final = 30
# Claim, and the words of a heading that announce it.
_HEADINGS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (claim, re.compile(words, re.IGNORECASE))
    for claim, words in (
        ("card.intended-use", r"\b(intended|direct|downstream)\s+use|\buse\s+cases?\b"),
        ("card.usage", r"\b(quick\s*start|how\s+to\s+use|usage|deployment|requirements)\b"),
        ("card.training-data", r"\b(training|pre-?training)\s+(data|corpus)|\bdatasets?\b"),
        ("card.training-method", r"\b(training\s+(procedure|details?|method)|fine-?tuning)\b"),
        ("card.compute", r"\b(compute|hardware|training\s+cost|gpu\s+hours)\b"),
        ("card.energy", r"\b(energy|carbon|environmental|emissions?)\b"),
        ("card.evaluation", r"\b(evaluation|benchmarks?|performance|results)\b"),
        ("card.limitations", r"\b(limitations?|out-of-scope|known\s+issues)\b"),
        ("card.bias", r"\b(bias(es)?|fairness|ethical)\b"),
        ("card.copyright-policy", r"\bcopyright\b"),
        ("card.training-summary", r"\bsummary\s+of\s+(the\s+)?(training\s+)?content"),
    )
)
_HEADING: Final = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
_FENCE: Final = re.compile(r"^\s*(```|~~~)")


def from_card(subject: str, text: str, *, source: str, observed_at: str) -> list[Evidence]:
    """What the card (Markdown with or without front matter) says, heading by heading."""
    digest = hashlib.sha256(text.encode()).hexdigest()

    def say(claim: str, value: str | bool) -> Evidence:
        return Evidence(
            subject=subject,
            claim=claim,
            value=value,
            source=source,
            method="declared",
            observed_at=observed_at,
            digest=digest,
        )

    found = [say("card.present", True)]
    seen: set[str] = set()
    for heading, body in _sections(text):
        quote = " ".join(body.split())
        if len(quote) < _TEXT_CHARACTERS_MIN:
            continue
        for claim, words in _HEADINGS:
            if claim not in seen and words.search(heading):
                seen.add(claim)
                cut = quote[:_QUOTE_CHARACTERS]
                more = "…" if len(quote) > _QUOTE_CHARACTERS else ""
                found.append(say(claim, f"“{cut}{more}” (under “{heading[:80]}”)"))
    return found


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Each heading with the text below it, down to the next of the same rank or a higher one."""
    lines = _without_front_matter(text).splitlines()
    marks: list[tuple[int, int, str]] = []
    fenced = False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and (match := _HEADING.match(line)):
            marks.append((number, len(match[1]), match[2]))
    for position, (number, rank, title) in enumerate(marks):
        end = next(
            (later for later, other, _ in marks[position + 1 :] if other <= rank), len(lines)
        )
        body = [line for line in lines[number + 1 : end] if not _HEADING.match(line)]
        yield title, "\n".join(body)


def _without_front_matter(text: str) -> str:
    if not text.startswith("---"):
        return text
    _, _, rest = text[3:].partition("\n---")
    return rest
