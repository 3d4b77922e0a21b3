"""A dossier as Markdown: tables that any viewer shows."""

from __future__ import annotations

import re

from qwenstack.dossier.document import Document, Row, Section
from qwenstack.dossier.render.words import NAMES, NOTICE

_STEERS = re.compile(r"([\\`*_{}\[\]()<>#|~])")


def markdown(document: Document) -> str:
    """The whole document. Text from outside is escaped: it cannot become markup."""
    lines = [
        f"# Dossier: {_text(document.reference)}",
        "",
        f"As of {document.as_of or 'no evidence'}. {NOTICE}",
    ]
    if document.deployment:
        lines.append(f"Deployment: {_text(document.deployment)}.")
    for section in document.sections:
        lines += ["", f"## {_text(section.title)}", "", _text(section.about), ""]
        lines += _table(section)
    lines += ["", "## Evidence", "", "| id | claim | value | source | method | observed |"]
    lines.append("|---|---|---|---|---|---|")
    for each in document.evidence:
        cells = (each.id, each.claim, each.text, each.source, each.method, each.observed_at)
        lines.append("| " + " | ".join(_text(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _table(section: Section) -> list[str]:
    head = ("", *section.columns, "Standing")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [_line(row) for row in section.rows]


def _line(row: Row) -> str:
    standing = NAMES[row.standing] + (f" ({', '.join(row.evidence)})" if row.evidence else "")
    if row.note:
        standing += f"; {row.note}"
    return "| " + " | ".join(_text(cell) for cell in (row.label, *row.cells, standing)) + " |"


def _text(text: str) -> str:
    return _STEERS.sub(r"\\\1", " ".join(text.split()))
