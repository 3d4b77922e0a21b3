"""Which paths a tree's own `.gitignore` files leave out, by the rules of gitignore(5).

Patterns compile to regular expressions that cannot backtrack into exponential time: runs of stars
are one star, and a pattern has a length limit.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_PATTERN_CHARACTERS_MAX: Final = 512
_PATTERNS_MAX: Final = 2_000
_STARS_MAX: Final = 8


class IgnoreRules:
    """The patterns of one `.gitignore`, for paths below its folder."""

    __slots__ = ("_patterns",)

    def __init__(self, text: str) -> None:
        self._patterns: list[tuple[re.Pattern[str], bool, bool, bool]] = []
        for line in text.splitlines()[:_PATTERNS_MAX]:
            compiled = _compile(line)
            if compiled is not None:
                self._patterns.append(compiled)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def verdict(self, relative: str, name: str, is_folder: bool) -> bool | None:
        """True: ignored; False: taken back in by a later `!`; None: no pattern says."""
        for pattern, negated, folders_only, by_name in reversed(self._patterns):
            if folders_only and not is_folder:
                continue
            if pattern.fullmatch(name if by_name else relative):
                return not negated
        return None


@lru_cache(maxsize=4096)
def _compile(line: str) -> tuple[re.Pattern[str], bool, bool, bool] | None:
    """Expression, whether it takes back in, whether for folders only, whether for bare names."""
    text = line.rstrip("\n")
    if not text.endswith("\\ "):
        text = text.rstrip()
    if not text or text.startswith("#") or len(text) > _PATTERN_CHARACTERS_MAX:
        return None
    negated = text.startswith("!")
    text = text[1:] if negated else text
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    if not text or text.count("*") > _STARS_MAX:
        return None
    anchored = "/" in text
    try:
        return re.compile(_expression(text.lstrip("/")), re.S), negated, folders_only, not anchored
    except re.error:
        return None


def _expression(text: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(text):
        if text.startswith("**/", at) and (at == 0 or text[at - 1] == "/"):
            out.append("(?:[^/]+/)*")
            at += 3
        elif text.startswith("/**", at) and at + 3 == len(text):
            out.append("/.+")
            at += 3
        elif text[at] == "*":
            while at < len(text) and text[at] == "*":
                at += 1
            out.append("[^/]*")
        elif text[at] == "?":
            out.append("[^/]")
            at += 1
        elif text[at] == "[" and "]" in text[at + 2 :]:
            end = text.index("]", at + 2)
            inside = text[at + 1 : end].replace("\\", "\\\\")
            out.append("[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            at = end + 1
        elif text[at] == "\\" and at + 1 < len(text):
            out.append(re.escape(text[at + 1]))
            at += 2
        else:
            out.append(re.escape(text[at]))
            at += 1
    return "".join(out)
