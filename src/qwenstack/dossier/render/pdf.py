"""A dossier as PDF, A4. The same document makes the same bytes.

The built-in font knows Western European characters only: others are shown as `?`, and the last
page says so. `font` is a TrueType file that knows more.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Final

from fpdf import FPDF
from fpdf.enums import TableBordersLayout
from fpdf.fonts import FontFace

from qwenstack.dossier.document import Document, Section, Standing
from qwenstack.dossier.render.words import NAMES, NOTICE

_MARGIN_MM: Final = 15.0
_WIDTH_MM: Final = 180.0
_COLOURS: Final[dict[Standing, tuple[int, int, int]]] = {
    "shown": (19, 108, 59),
    "partly": (138, 90, 0),
    "gap": (164, 38, 44),
    "none": (90, 100, 114),
    "conflict": (164, 38, 44),
    "open": (31, 78, 156),
    "organisational": (90, 100, 114),
}
_GREY: Final = (90, 100, 114)
_EPOCH: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def pdf(document: Document, *, font: Path | None = None) -> bytes:
    """The finished document."""
    page = _Page(document, font)
    page.add_page()
    page.set_font(page.face, "B", 18)
    page.multi_cell(0, 9, page.say(document.reference), new_x="LMARGIN", new_y="NEXT")
    page.plain(f"Dossier as of {document.as_of or 'no evidence'}. {NOTICE}")
    for section in document.sections:
        _section(page, section)
    _evidence(page, document)
    if page.lost:
        page.plain("Characters outside the built-in font are shown as a question mark.")
    return bytes(page.output())


class _Page(FPDF):
    def __init__(self, document: Document, font: Path | None) -> None:
        super().__init__(format="A4")
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(True, margin=18)
        self.face = "helvetica"
        self.lost = False
        if font is not None:
            self.face = "given"
            for style in ("", "B"):
                self.add_font("given", style, str(font))
        self.reference = document.reference
        made = _EPOCH
        if document.as_of:
            made = datetime.datetime.fromisoformat(document.as_of)
            made = made if made.tzinfo else made.replace(tzinfo=datetime.UTC)
        self.set_creation_date(made)
        self.set_title(self.say(f"Dossier: {document.reference}"))

    def say(self, text: str) -> str:
        """`text` as the font can show it."""
        if self.face == "given":
            return text
        shown = text.encode("latin-1", "replace").decode("latin-1")
        self.lost = self.lost or shown != text
        return shown

    def plain(self, text: str) -> None:
        """A grey line."""
        self.set_font(self.face, "", 9)
        self.set_text_color(*_GREY)
        self.multi_cell(0, 4.5, self.say(text), new_x="LMARGIN", new_y="NEXT")
        self.set_text_color(0, 0, 0)

    def footer(self) -> None:
        """Reference and page number."""
        self.set_y(-12)
        self.set_font(self.face, "", 7.5)
        self.set_text_color(*_GREY)
        self.cell(0, 5, self.say(f"{self.reference[:90]}   {self.page_no()}"), align="C")
        self.set_text_color(0, 0, 0)


def _section(page: _Page, section: Section) -> None:
    page.ln(5)
    if page.will_page_break(30):
        page.add_page()
    page.start_section(page.say(section.title))
    page.set_font(page.face, "B", 12)
    page.cell(0, 7, page.say(section.title), new_x="LMARGIN", new_y="NEXT")
    page.plain(section.about)
    cells = len(section.columns)
    share = (_WIDTH_MM - 42 - 24) / cells
    page.set_font(page.face, "", 8)
    with page.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        col_widths=(42, *(share for _ in range(cells)), 24),
        line_height=4,
        text_align="LEFT",
        headings_style=FontFace(emphasis="BOLD", color=_GREY),
    ) as table:
        head = table.row()
        for title in ("", *section.columns, "Standing"):
            head.cell(page.say(title))
        for row in section.rows:
            line = table.row()
            line.cell(page.say(row.label), style=FontFace(emphasis="BOLD"))
            for cell in row.cells:
                line.cell(page.say(cell))
            line.cell(NAMES[row.standing], style=FontFace(color=_COLOURS[row.standing]))


def _evidence(page: _Page, document: Document) -> None:
    page.add_page()
    page.start_section("Evidence")
    page.set_font(page.face, "B", 12)
    page.cell(0, 7, "Evidence", new_x="LMARGIN", new_y="NEXT")
    page.set_font(page.face, "", 6.5)
    with page.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        col_widths=(20, 38, 52, 46, 24),
        line_height=3.2,
        text_align="LEFT",
        headings_style=FontFace(emphasis="BOLD", color=_GREY),
    ) as table:
        head = table.row()
        for title in ("id", "claim", "value", "source", "observed"):
            head.cell(title)
        for each in document.evidence:
            line = table.row()
            source = f"{each.source} ({each.method})"
            for cell in (each.id, each.claim, each.text[:600], source[:300], each.observed_at):
                line.cell(page.say(cell))
