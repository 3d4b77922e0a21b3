"""An invoice for people in a terminal and for programs in JSON.

Amounts are rounded here and nowhere else, and only for display.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qwenstack.core.safe_text import printable
from qwenstack.studio.invoice import Invoice, InvoiceGroup

METER_NAMES = {
    "input": "input",
    "cache_hit": "cache hit",
    "cache_hit_explicit": "cache hit, explicit",
    "cache_creation": "cache creation",
    "output": "output",
    "reasoning": "reasoning",
}

_WITHOUT_MINOR_UNIT = frozenset({"JPY", "KRW", "VND", "CLP", "ISK"})


def exact(micro: int) -> str:
    """Micro-units as a decimal number of whole units, all six places."""
    return f"{Decimal(micro).scaleb(-6):,f}"


def payable(micro: int, currency: str) -> str:
    """Micro-units rounded half to even to what can be paid, with the currency."""
    step = Decimal(1) if currency in _WITHOUT_MINOR_UNIT else Decimal("0.01")
    amount = Decimal(micro).scaleb(-6).quantize(step, rounding=ROUND_HALF_EVEN)
    return f"{amount:,f} {currency}"


def invoice_json(invoice: Invoice) -> bytes:
    """The whole invoice; `read_invoice_json` gives the same one back."""
    return msgspec.json.encode(invoice)


def read_invoice_json(data: bytes) -> Invoice:
    """Decode and check (msgspec.ValidationError for what doesn't hold together)."""
    return msgspec.json.decode(data, type=Invoice)


def invoice_table(invoice: Invoice) -> RenderableType:
    """The invoice for `rich.console.Console.print`."""
    head = invoice.head
    title = Text(f"Invoice {printable(head.invoice_id)}", style="bold")
    lines = [
        f"{printable(head.workspace_name)} ({printable(head.workspace_id)})",
        f"{head.period_start:%Y-%m-%d %H:%M} to {head.period_end:%Y-%m-%d %H:%M} UTC, end excluded",
        f"{invoice.requests:,} requests, {invoice.interrupted:,} of them interrupted",
    ]
    shared = [
        f"{name.lower()} {next(iter(each))}" for name, each in _sources(invoice) if len(each) == 1
    ]
    if shared:
        lines.append(f"All by {', '.join(shared)}")
    return Group(title, Text("\n".join(lines) + "\n"), _details(invoice), "", _sums(invoice))


def _sources(invoice: Invoice) -> list[tuple[str, set[str]]]:
    """The different keys and regions: what is the same everywhere is said once, not in a column."""
    labels = [group_labels(group) for group in invoice.groups]
    return [("Key", {key for _, _, key, _ in labels}), ("Region", {each for *_, each in labels})]


def _details(invoice: Invoice) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    # Day and model always; key and region where they differ.
    in_columns = [True, True, *(len(each) > 1 for _, each in _sources(invoice))]
    some_free = any(line.free for group in invoice.groups for line in group.lines)
    for name, has_column in zip(("Day", "Model", "Key", "Region"), in_columns, strict=True):
        if has_column:
            table.add_column(name, overflow="fold", no_wrap=name == "Day")
    table.add_column("Meter", no_wrap=True)
    for name in ("Tokens", *(["Free"] if some_free else []), "Per 1M", invoice.head.currency):
        table.add_column(name, justify="right", no_wrap=True)
    for group in invoice.groups:
        for place, line in enumerate(group.lines):
            labels = group_labels(group) if place == 0 else ("", "", "", "")
            free = [f"{line.free:,}" if line.free else ""] if some_free else []
            table.add_row(
                *(Text(label) for label, shown in zip(labels, in_columns, strict=True) if shown),
                Text(METER_NAMES[line.meter]),
                f"{line.tokens:,}",
                *free,
                line.rate,
                exact(line.amount_micro),
            )
    return table


def group_labels(group: InvoiceGroup) -> tuple[str, str, str, str]:
    """Day, model (marked in front when interrupted or batch), key and region, safe to show."""
    model = printable(group.model)
    marks = [mark for mark, on in (("batch", group.batch), ("interrupted", _cut(group))) if on]
    if marks:
        model = f"{', '.join(marks)}: {model}"
    return group.day.isoformat(), model, printable(group.key_name), printable(group.region)


def _cut(group: InvoiceGroup) -> bool:
    return group.outcome == "interrupted"


def sum_lines(invoice: Invoice) -> list[tuple[str, str]]:
    """What stands under the details: label and amount, in order."""
    currency = invoice.head.currency
    rows = [("Subtotal", f"{exact(invoice.subtotal_micro)} {currency}")]
    for entry in invoice.entries:
        if entry.kind != "top_up":
            label = f"{entry.kind.capitalize()}, {printable(entry.description)}"
            rows.append((label, f"{exact(-entry.amount_micro)} {currency}"))
    rows.append(("Total", f"{exact(invoice.total_micro)} {currency}"))
    rows.append(("Amount due, rounded", payable(invoice.total_micro, currency)))
    return rows


def statement_lines(invoice: Invoice) -> list[tuple[str, str]]:
    """The balance over the period, or nothing when the invoice carries no statement."""
    if invoice.statement is None:
        return []
    currency = invoice.head.currency
    rows = [("Opening balance", f"{exact(invoice.statement.opening_micro)} {currency}")]
    for entry in invoice.entries:
        label = f"{entry.at:%Y-%m-%d} {entry.kind.replace('_', '-')}"
        rows.append(
            (f"{label}, {printable(entry.description)}", f"{exact(entry.amount_micro)} {currency}")
        )
    rows.append(("Charges of this period", f"{exact(-invoice.subtotal_micro)} {currency}"))
    rows.append(("Closing balance", f"{exact(invoice.statement.closing_micro)} {currency}"))
    return rows


def _sums(invoice: Invoice) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for label, amount in (*sum_lines(invoice), *statement_lines(invoice)):
        style = "bold" if label.startswith("Amount due") else ""
        table.add_row(Text(label, style=style), Text(amount, style=style))
    return table
