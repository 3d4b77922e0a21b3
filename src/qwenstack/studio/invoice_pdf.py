"""An invoice as PDF: a summary that fits a page for most, then the details, A4.

Same input, same bytes: the only time in the file is the invoice's own. Without a font file the
built-in Helvetica is used, which knows Western European characters only: others are shown as `?`
and a note says so. Give a TrueType or OpenType font to show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from fpdf import FPDF, XPos, YPos

from qwenstack.core.safe_text import printable
from qwenstack.studio.invoice import Invoice, InvoiceGroup, InvoiceLine
from qwenstack.studio.invoice_render import (
    METER_NAMES,
    exact,
    group_labels,
    payable,
    statement_lines,
    sum_lines,
)

DETAIL_ROWS_MAX = 2_000

_MARGIN_MM = 15.0
_ROW_MM = 5.0
_GREY = (110, 110, 110)
_RULE = (200, 200, 200)

_Align = Literal["L", "R"]


class _Column(msgspec.Struct, frozen=True):
    title: str
    width: float
    align: _Align = "L"


_MODEL_COLUMNS = (
    _Column("Model", 62),
    _Column("Requests", 22, "R"),
    _Column("Input tokens", 30, "R"),
    _Column("Output tokens", 30, "R"),
    _Column("Amount", 36, "R"),
)
_DETAIL_COLUMNS = (
    _Column("Day", 16),
    _Column("Model", 36),
    _Column("Key", 22),
    _Column("Region", 18),
    _Column("Meter", 22),
    _Column("Tokens", 20, "R"),
    _Column("Free", 15, "R"),
    _Column("Per 1M", 12, "R"),
    _Column("Amount", 19, "R"),
)


def invoice_pdf(invoice: Invoice, *, font: Path | None = None) -> bytes:
    """The finished document. `font` is a TTF or OTF file for names outside Latin-1."""
    page = _Page(invoice, font)
    page.add_page()
    _heading(page, invoice)
    page.grid(_MODEL_COLUMNS, _model_rows(invoice))
    page.ln(3)
    page.sums(sum_lines(invoice), bold="Amount due, rounded")
    if statement := statement_lines(invoice):
        page.section("Balance")
        page.sums(statement, bold="Closing balance")
    page.section("Details")
    rows, left_out, left_out_micro = _detail_rows(invoice)
    page.grid(_DETAIL_COLUMNS, rows, size=7.5, labels=4)
    if left_out:
        page.note(
            f"{left_out:,} further lines, {exact(left_out_micro)} {invoice.head.currency} "
            "together, are in the JSON and CSV forms of this invoice."
        )
    page.note(
        "Tokens are the engine's own counts. The free ones among them cost nothing. "
        "No tax is computed. Amounts are exact to a millionth; only the amount due is rounded."
    )
    if page.unknown_characters:
        page.note("A ? stands for a character that this document's font can't show.")
    return bytes(page.output())


class _Page(FPDF):
    """A4 with our margins, a footer with page numbers, and text that can't break the layout."""

    def __init__(self, invoice: Invoice, font: Path | None) -> None:
        super().__init__(orientation="portrait", unit="mm", format="A4")
        self.unknown_characters = False
        self._footer_left = f"Invoice {invoice.head.invoice_id}"
        self._family = "helvetica"
        if font is not None:
            self._family = "given"
            self.add_font("given", "", font)
            self.add_font("given", "B", font)
        self._latin_only = font is None
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(auto=True, margin=_MARGIN_MM + 5)
        self.alias_nb_pages("{nb}")
        self.set_title(self.safe(f"Invoice {invoice.head.invoice_id}"))
        self.set_author(self.safe(invoice.head.issuer))
        self.set_creator("qwenstack")
        self.set_creation_date(invoice.head.issued_at.astimezone(UTC))

    def safe(self, text: str) -> str:
        shown = printable(text).replace("{nb}", "{ nb}")
        if self._latin_only:
            latin = shown.encode("latin-1", "replace").decode("latin-1")
            self.unknown_characters |= latin != shown
            return latin
        return shown

    def type(self, size: float, *, bold: bool = False) -> None:
        self.set_font(self._family, "B" if bold else "", size)

    def fit(self, text: str, width: float) -> str:
        """`text`, cut with three dots where it is wider than `width` mm."""
        shown = self.safe(text[:300])
        if self.get_string_width(shown) <= width:
            return shown
        low, high = 0, len(shown)
        while low < high:
            middle = (low + high + 1) // 2
            if self.get_string_width(shown[:middle] + "...") <= width:
                low = middle
            else:
                high = middle - 1
        return shown[:low] + "..."

    def footer(self) -> None:
        self.set_y(-_MARGIN_MM)
        self.type(8)
        self.set_text_color(*_GREY)
        self.cell(self.epw / 2, 5, self.fit(self._footer_left, self.epw / 2))
        self.cell(self.epw / 2, 5, f"Page {self.page_no()} of {{nb}}", align="R")
        self.set_text_color(0)

    def section(self, title: str) -> None:
        if self.will_page_break(4 * _ROW_MM):
            self.add_page()
        self.ln(5)
        self.type(11, bold=True)
        self.cell(0, 7, self.safe(title), new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def note(self, text: str) -> None:
        self.ln(2)
        self.type(8)
        self.set_text_color(*_GREY)
        self.multi_cell(0, 4, self.safe(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.set_text_color(0)

    def grid(
        self,
        columns: Sequence[_Column],
        rows: Iterable[Sequence[str]],
        *,
        size: float = 9,
        labels: int = 0,
    ) -> None:
        """Rows under a head that every page repeats; equal runs of `labels` are written once."""
        self._grid_head(columns, size)
        above: Sequence[str] = ()
        for row in rows:
            if self.will_page_break(_ROW_MM):
                self.add_page()
                self._grid_head(columns, size)
                above = ()
            same = labels > 0 and above == row[:labels]
            for place, (column, text) in enumerate(zip(columns, row, strict=True)):
                self._grid_cell(column, "" if same and place < labels else text, size)
            above = row[:labels]
            self.ln(_ROW_MM)
        self._rule()

    def _grid_cell(self, column: _Column, text: str, size: float) -> None:
        """A number is set smaller rather than cut; a name is cut."""
        room = column.width - 2 * self.c_margin
        if column.align == "L":
            self.cell(column.width, _ROW_MM, self.fit(text, room))
            return
        width = self.get_string_width(text)
        if width > room:
            self.set_font_size(size * room / width)
        self.cell(column.width, _ROW_MM, self.safe(text), align="R")
        self.set_font_size(size)

    def _grid_head(self, columns: Sequence[_Column], size: float) -> None:
        self.type(size, bold=True)
        for column in columns:
            self.cell(column.width, _ROW_MM + 1, column.title, align=column.align)
        self.ln(_ROW_MM + 1)
        self._rule()
        self.type(size)

    def _rule(self) -> None:
        self.set_draw_color(*_RULE)
        self.line(self.l_margin, self.y, self.l_margin + self.epw, self.y)
        self.ln(1)

    def sums(self, rows: Iterable[tuple[str, str]], *, bold: str) -> None:
        for label, amount in rows:
            self.type(9, bold=label == bold)
            self.cell(self.epw - 50, _ROW_MM, self.fit(label, self.epw - 54), align="R")
            self.cell(50, _ROW_MM, self.fit(amount, 48), align="R")
            self.ln(_ROW_MM)


def _heading(page: _Page, invoice: Invoice) -> None:
    head = invoice.head
    page.type(18, bold=True)
    page.cell(0, 10, page.fit(head.issuer, page.epw), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    page.type(11)
    page.cell(
        0, 7, page.fit(f"Invoice {head.invoice_id}", page.epw), new_x=XPos.LMARGIN, new_y=YPos.NEXT
    )
    page.ln(4)
    facts = (
        ("For", f"{head.workspace_name} ({head.workspace_id})"),
        ("Period", f"{_minute(head.period_start)} to {_minute(head.period_end)} UTC, end excluded"),
        ("Issued", f"{_minute(head.issued_at)} UTC"),
        ("Requests", f"{invoice.requests:,}, of which {invoice.interrupted:,} were interrupted"),
        ("Amount due", payable(invoice.total_micro, head.currency)),
    )
    for label, value in facts:
        page.type(9, bold=True)
        page.cell(26, _ROW_MM, label)
        page.type(9)
        page.cell(0, _ROW_MM, page.fit(value, page.epw - 30), new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    page.ln(4)


def _model_rows(invoice: Invoice) -> Iterable[Sequence[str]]:
    for model in invoice.models:
        yield (
            model.model,
            f"{model.requests:,}",
            f"{model.input_tokens:,}",
            f"{model.output_tokens:,}",
            f"{exact(model.amount_micro)} {invoice.head.currency}",
        )


def _detail_rows(invoice: Invoice) -> tuple[list[Sequence[str]], int, int]:
    """The rows that are shown, and how many lines and micro-units are not."""
    rows: list[Sequence[str]] = []
    left_out = left_out_micro = 0
    for group in invoice.groups:
        for line in group.lines:
            if len(rows) < DETAIL_ROWS_MAX:
                rows.append(_detail_row(group, line))
            else:
                left_out += 1
                left_out_micro += line.amount_micro
    return rows, left_out, left_out_micro


def _detail_row(group: InvoiceGroup, line: InvoiceLine) -> Sequence[str]:
    return (
        *group_labels(group),
        METER_NAMES[line.meter],
        f"{line.tokens:,}",
        f"{line.free:,}" if line.free else "",
        line.rate,
        exact(line.amount_micro),
    )


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
