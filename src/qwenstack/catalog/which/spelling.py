"""Names that are almost another: folded spellings, letters of other scripts, and small typos."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final

NAME_CHARACTERS_MAX: Final = 200
DISTANCE_MAX: Final = 2
_COMPARED_MAX: Final = 48

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


HIDDEN: Final = (
    "\x00-\x08\x0b-\x1f\x7f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
)
"""Characters that don't show, as the inside of a character class."""

_HIDDEN: Final = re.compile(f"[{HIDDEN}]")
# What can make a name look like another: confusable, full-width, or not to be seen.
ODD: Final = re.compile(
    "[" + "".join(re.escape(chr(each)) for each in _CONFUSABLE) + f"\uff01-\uff5e{HIDDEN}]"
)


def visible(text: str) -> str:
    """`text` with what doesn't show written out: `\\u200b`."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain(name: str) -> str:
    """The name in Latin letters: what a reader takes it for. Equal to `name` if it is honest."""
    name = _HIDDEN.sub("", name)
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
    same = _shared(one, other)
    one, other = one[same:], other[same:]
    same = _shared(one[::-1], other[::-1])
    one, other = one[: len(one) - same], other[: len(other) - same]
    before: list[int] = []
    previous = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        low, high = max(1, row - limit), min(len(other), row + limit)
        current = [limit + 1] * (len(other) + 1)
        current[0] = row
        for column in range(low, high + 1):
            equal = other[column - 1] == letter
            cost = min(
                previous[column - 1] + (not equal), previous[column] + 1, current[column - 1] + 1
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

    A digit that differs is another model, not a typo: such names are given only where no other is.
    """
    if len(name) > NAME_CHARACTERS_MAX:
        return []
    letters, digits = _letters(name), _digits(name)
    # Each edit changes at most two of the letters that a name has.
    possible = [
        other for other in known if (letters ^ _letters(other)).bit_count() <= 2 * DISTANCE_MAX
    ]
    same = [other for other in possible if _digits(other) == digits]
    return (_close(name, same) or _close(name, possible[:_COMPARED_MAX]))[:most]


def _close(name: str, known: list[str]) -> list[str]:
    scored = [(distance(name, other), other) for other in known]
    most = DISTANCE_MAX if len(name) > 4 else 1
    return [other for edits, other in sorted(scored) if edits <= most]


def _shared(one: str, other: str) -> int:
    """How many letters both begin with."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


@functools.lru_cache(maxsize=8192)
def _letters(name: str) -> int:
    """A bit for each letter that occurs in `name` (those of one residue share theirs)."""
    mask = 0
    for each in name:
        mask |= 1 << (ord(each) & 127)
    return mask


@functools.lru_cache(maxsize=8192)
def _digits(name: str) -> str:
    return "".join(each for each in name if each.isdigit())
