"""Which paths a tree's own `.gitignore` files leave out, by the rules of gitignore(5).

Patterns compile to regular expressions that backtrack little: a tree's own patterns and names must
not make a scan slow.
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
    """The pattern's expression. What stands between two `**`, and in a name between two stars, is
    looked for leftmost first and never again: right for such patterns, and quick to fail.
    """
    groups: list[list[str]] = [[]]
    for name in text.split("/"):
        if name == "**":
            groups.append([])
        else:
            groups[-1].append(_name_expression(name))
    if len(groups) == 1:
        return "/".join(groups[0])
    first, *between, last = groups
    return (
        "".join(f"{each}/" for each in first)
        + "".join(f"(?>(?:[^/]+/)*?{'/'.join(each)}/)" for each in between if each)
        + ("(?:[^/]+/)*" + "/".join(last) if last else ".+")
    )


def _name_expression(text: str) -> str:
    pieces = [""]
    at = 0
    while at < len(text):
        if text[at] == "*":
            while at < len(text) and text[at] == "*":
                at += 1
            pieces.append("")
        elif text[at] == "?":
            pieces[-1] += "[^/]"
            at += 1
        elif text[at] == "[" and "]" in text[at + 2 :]:
            end = text.index("]", at + 2)
            inside = text[at + 1 : end].replace("\\", "\\\\")
            pieces[-1] += "[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]"
            at = end + 1
        elif text[at] == "\\" and at + 1 < len(text):
            pieces[-1] += re.escape(text[at + 1])
            at += 2
        else:
            pieces[-1] += re.escape(text[at])
            at += 1
    if len(pieces) == 1:
        return pieces[0]
    first, *between, last = pieces
    return first + "".join(f"(?>[^/]*?{each})" for each in between) + "[^/]*" + last
