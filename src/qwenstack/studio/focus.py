"""An invoice as rows of FOCUS 1.2, the FinOps Open Cost and Usage Specification.

Read in FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec at tag v1.2, folder `specification`. Where its
rules leave a choice:

- A row is one meter at one rate of one group of the invoice, for one day. Tokens covered by free
  quota are a row of their own, with their list price and a contracted price of 0.
- ListCost and ContractedCost are unit price times quantity, exact, as the specification asks.
  BilledCost and EffectiveCost are the invoice's whole micro-units, so that their sum is the
  invoice's total. The two differ by less than a micro-unit per request.
- The workspace is the billing account, the API key the sub account, the deployment the resource.
- Text keeps its wording, except that characters that hide or start a formula are neutralised.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

import msgspec

from qwenstack.core.safe_text import printable, spreadsheet_text
from qwenstack.studio.invoice import Entry, Invoice, InvoiceGroup, InvoiceHead, InvoiceLine
from qwenstack.studio.pricing import decimal_text

FOCUS_VERSION = "1.2"

_TOKENS_PER_PRICE = 1_000_000
_METER_WORDS = {
    "input": "input tokens",
    "cache_hit": "input tokens, implicit cache hit",
    "cache_hit_explicit": "input tokens, explicit cache hit",
    "cache_creation": "input tokens, explicit cache creation",
    "output": "output tokens",
    "reasoning": "output tokens, reasoning",
}


class FocusParties(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs the service (`provider`) and who made what it serves (`publisher`)."""

    provider: str
    publisher: str
    service: str = "Model inference"


class FocusRow(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One row; field order is column order. None is written as an empty cell (null)."""

    billed_cost: Decimal
    billing_account_id: str
    billing_account_name: str
    billing_account_type: str = "Workspace"
    billing_currency: str
    billing_period_end: datetime
    billing_period_start: datetime
    charge_category: Literal["Usage", "Credit", "Adjustment"]
    charge_class: Literal["Correction"] | None = None
    charge_description: str
    charge_frequency: Literal["Usage-Based", "One-Time"]
    charge_period_end: datetime
    charge_period_start: datetime
    consumed_quantity: Decimal | None = None
    consumed_unit: str | None = None
    contracted_cost: Decimal
    contracted_unit_price: Decimal | None = None
    effective_cost: Decimal
    invoice_id: str
    invoice_issuer_name: str
    list_cost: Decimal
    list_unit_price: Decimal | None = None
    pricing_category: Literal["Standard"] | None = None
    pricing_quantity: Decimal | None = None
    pricing_unit: str | None = None
    provider_name: str
    publisher_name: str
    region_id: str | None = None
    region_name: str | None = None
    resource_id: str | None = None
    resource_name: str | None = None
    resource_type: str | None = None
    service_category: Literal["AI and Machine Learning"] = "AI and Machine Learning"
    service_name: str
    service_subcategory: Literal["Generative AI"] = "Generative AI"
    sku_id: str | None = None
    sku_meter: str | None = None
    sku_price_details: str | None = None
    sku_price_id: str | None = None
    sub_account_id: str | None = None
    sub_account_name: str | None = None
    sub_account_type: str | None = None
    tags: str | None = None


COLUMNS: tuple[str, ...] = FocusRow.__struct_encode_fields__


def focus_rows(invoice: Invoice, parties: FocusParties) -> Iterator[FocusRow]:
    """The rows of an invoice: usage first, then credits and adjustments (top-ups are payments)."""
    for group in invoice.groups:
        for line in group.lines:
            yield from _usage_rows(invoice.head, parties, group, line)
    for entry in invoice.entries:
        if entry.kind != "top_up":
            yield _entry_row(invoice.head, parties, entry)


def focus_csv(invoice: Invoice, parties: FocusParties) -> str:
    """The rows as CSV (RFC 4180) with a header line of the FOCUS column names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in focus_rows(invoice, parties):
        writer.writerow([_cell(value) for value in msgspec.structs.astuple(row)])
    return out.getvalue()


def _usage_rows(
    head: InvoiceHead, parties: FocusParties, group: InvoiceGroup, line: InvoiceLine
) -> Iterator[FocusRow]:
    paid = line.tokens - line.free
    if paid:
        yield _usage_row(head, parties, group, line, paid, free=False)
    if line.free:
        yield _usage_row(head, parties, group, line, line.free, free=True)


def _usage_row(
    head: InvoiceHead,
    parties: FocusParties,
    group: InvoiceGroup,
    line: InvoiceLine,
    tokens: int,
    *,
    free: bool,
) -> FocusRow:
    rate = Decimal(line.rate)
    quantity = Decimal(tokens) / _TOKENS_PER_PRICE
    agreed = Decimal(0) if free else rate
    billed = Decimal(0) if free else Decimal(line.amount_micro).scaleb(-6)
    midnight = datetime(group.day.year, group.day.month, group.day.day, tzinfo=UTC)
    words = f"{printable(group.model)}: {_METER_WORDS[line.meter]}"
    words += ", batch" if group.batch else ""
    words += ", free quota" if free else ""
    words += ", interrupted requests" if group.outcome == "interrupted" else ""
    details = {"x_Meter": line.meter, "x_PriceRow": line.price, "x_Rate": line.rate}
    tags = {
        "qwenstack/batch": group.batch,
        "qwenstack/free_quota": free,
        "qwenstack/outcome": group.outcome,
    }
    return FocusRow(
        billed_cost=billed,
        billing_account_id=head.workspace_id,
        billing_account_name=head.workspace_name,
        billing_currency=head.currency,
        billing_period_end=head.period_end,
        billing_period_start=head.period_start,
        charge_category="Usage",
        charge_description=words,
        charge_frequency="Usage-Based",
        charge_period_end=min(midnight + timedelta(days=1), head.period_end),
        charge_period_start=max(midnight, head.period_start),
        consumed_quantity=Decimal(tokens),
        consumed_unit="Tokens",
        contracted_cost=agreed * quantity,
        contracted_unit_price=agreed,
        effective_cost=billed,
        invoice_id=head.invoice_id,
        invoice_issuer_name=head.issuer,
        list_cost=rate * quantity,
        list_unit_price=rate,
        pricing_category="Standard",
        pricing_quantity=quantity,
        pricing_unit=f"{_TOKENS_PER_PRICE} Tokens",
        provider_name=parties.provider,
        publisher_name=parties.publisher,
        region_id=group.region,
        region_name=group.region,
        resource_id=group.deployment,
        resource_name=group.model,
        resource_type="Model deployment",
        service_name=parties.service,
        sku_id=f"{group.model}/{line.meter}",
        sku_meter=_METER_WORDS[line.meter].capitalize(),
        sku_price_details=msgspec.json.encode(details).decode(),
        sku_price_id=f"{line.price}/{group.model}/{line.meter}/{line.rate}",
        sub_account_id=group.key_id,
        sub_account_name=group.key_name,
        sub_account_type="API key",
        tags=msgspec.json.encode(tags).decode(),
    )


def _entry_row(head: InvoiceHead, parties: FocusParties, entry: Entry) -> FocusRow:
    amount = Decimal(-entry.amount_micro).scaleb(-6)
    midnight = entry.at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return FocusRow(
        billed_cost=amount,
        billing_account_id=head.workspace_id,
        billing_account_name=head.workspace_name,
        billing_currency=head.currency,
        billing_period_end=head.period_end,
        billing_period_start=head.period_start,
        charge_category="Credit" if entry.kind == "credit" else "Adjustment",
        charge_description=entry.description,
        charge_frequency="One-Time",
        charge_period_end=min(midnight + timedelta(days=1), head.period_end),
        charge_period_start=max(midnight, head.period_start),
        contracted_cost=amount,
        effective_cost=amount,
        invoice_id=head.invoice_id,
        invoice_issuer_name=head.issuer,
        list_cost=amount,
        provider_name=parties.provider,
        publisher_name=parties.publisher,
        service_name=parties.service,
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Decimal):
        return decimal_text(value)
    return spreadsheet_text(str(value))
