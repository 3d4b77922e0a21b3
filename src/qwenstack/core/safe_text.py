"""Foreign text made safe to show: names of models, keys and workspaces are chosen by strangers."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    """`text` with every character that steers a terminal or hides shown as U+FFFD.

    That is control, format (also the ones that turn the writing direction), surrogate, private-use
    characters and the line separators.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def spreadsheet_text(text: str) -> str:
    """`text` for a CSV cell: printable, and no formula to a spreadsheet (OWASP, "CSV Injection").

    A cell that would start a formula, blanks before it or not, gets an apostrophe in front.
    """
    shown = printable(text)
    if text.lstrip().startswith(_FORMULA_STARTS) or text.startswith(_FORMULA_STARTS):
        return f"'{shown}"
    return shown
