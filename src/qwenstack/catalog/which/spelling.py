"""Names that are almost another: folded spellings, letters of other scripts, and small typos."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NAME_CHARACTERS_MAX: Final = 200
DISTANCE_MAX: Final = 2

# Letters of other scripts that print like a Latin one (Unicode TR 39, the ones that names need).
_CONFUSABLE: Final = str.maketrans(
    {
        "а": "a", "в": "b", "с": "c", "ԁ": "d", "е": "e", "ё": "e", "һ": "h", "і": "i", "ї": "i",
        "ј": "j", "к": "k", "ӏ": "l", "м": "m", "н": "h", "о": "o", "р": "p", "ԛ": "q", "ѕ": "s",
        "т": "t", "ц": "u", "ѵ": "v", "ԝ": "w", "х": "x", "у": "y", "ʏ": "y", "З": "3", "О": "O",
        "А": "A", "В": "B", "С": "C", "Е": "E", "Н": "H", "І": "I", "К": "K", "М": "M", "Р": "P",
        "Ԛ": "Q", "Ѕ": "S", "Т": "T", "Ԝ": "W", "Х": "X", "α": "a", "ε": "e", "η": "n", "ι": "i",
        "κ": "k", "ν": "v", "ο": "o", "ρ": "p", "τ": "t", "υ": "u", "ω": "w", "χ": "x", "Α": "A",
        "Β": "B", "Ε": "E", "Ν": "N", "Ο": "O", "Ρ": "P", "Τ": "T", "ɑ": "a", "ɡ": "g", "ı": "i",
        "ո": "n", "ց": "g", "օ": "o", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-",
        "∕": "/", "⁄": "/", "：": ":",
    }
)  # fmt: skip


def fold(name: str) -> str:
    """The name in the spelling in which look-ups are made: lower case, one kind of hyphen."""
    return name.strip().casefold().replace("_", "-")


def plain(name: str) -> str:
    """The name in Latin letters: what a reader takes it for. Equal to `name` if it is honest."""
    if name.isascii():
        return name
    import unicodedata

    return "".join(
        each
        for each in unicodedata.normalize("NFKC", name).translate(_CONFUSABLE)
        if unicodedata.category(each) not in ("Cf", "Mn")
    )


def foreign_letters(name: str) -> str:
    """The characters in which `name` differs from what it looks like, named; empty if none do."""
    if name.isascii():
        return ""
    import unicodedata

    seen = dict.fromkeys(each for each in name if plain(each) != each)
    return ", ".join(
        f"{each!r} is U+{ord(each):04X} {unicodedata.name(each, 'unnamed').lower()}"
        for each in list(seen)[:5]
    )


def distance(one: str, other: str, limit: int = DISTANCE_MAX) -> int:
    """Edits between two names (insert, delete, replace, swap neighbours); over `limit`: limit + 1.

    Optimal string alignment in a band of `limit` around the diagonal: time is
    O(length × limit).
    """
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    previous = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        low, high = max(1, row - limit), min(len(other), row + limit)
        current = [limit + 1] * (len(other) + 1)
        current[0] = row
        for column in range(low, high + 1):
            same = other[column - 1] == letter
            cost = min(
                previous[column - 1] + (not same), previous[column] + 1, current[column - 1] + 1
            )
            swapped = (
                row > 1
                and column > 1
                and letter == other[column - 2]
                and one[row - 2] == other[column - 1]
            )
            current[column] = min(cost, before[column - 2] + 1) if swapped else cost
        if min(current[low - 1 : high + 1]) > limit:
            return limit + 1
        before, previous = previous, current
    return min(previous[-1], limit + 1)


def nearest(name: str, known: Iterable[str], *, most: int = 5) -> list[str]:
    """Those of `known` (folded) that differ from `name` by at most two edits, nearest first.

    A digit that differs is another model, not a typo: names whose digits differ come last.
    """
    if len(name) > NAME_CHARACTERS_MAX:
        return []
    letters = set(name)
    scored: list[tuple[int, int, str]] = []
    for other in known:
        if (
            abs(len(other) - len(name)) > DISTANCE_MAX
            or len(letters.symmetric_difference(other)) > 4
        ):
            continue
        edits = distance(name, other)
        if edits <= DISTANCE_MAX and (edits < 2 or len(name) > 4):
            scored.append((_digits(name) != _digits(other), edits, other))
    scored.sort()
    return [other for *_, other in scored[:most]]


def _digits(name: str) -> str:
    return "".join(each for each in name if each.isdigit())
