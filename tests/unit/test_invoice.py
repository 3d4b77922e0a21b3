"""Invoices add up to the ledger's last micro-unit, in every form they are given out in."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qwenstack.core.safe_text import printable, spreadsheet_text
from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.charge import Charge
from qwenstack.studio.focus import COLUMNS, FocusParties, FocusRow, focus_csv, focus_rows
from qwenstack.studio.invoice import (
    Entry,
    Invoice,
    InvoiceError,
    InvoiceHead,
    Statement,
    build_invoice,
    line_shares,
)
from qwenstack.studio.invoice_pdf import DETAIL_ROWS_MAX, invoice_pdf
from qwenstack.studio.invoice_render import (
    exact,
    invoice_json,
    invoice_table,
    payable,
    read_invoice_json,
)
from qwenstack.studio.price_book import packaged_shelf
from qwenstack.studio.pricing import quote

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
PARTIES = FocusParties(provider="Example Operator", publisher="Qwen")
SHELF = packaged_shelf()
SMALL = TokenUsage(1001, 333)
HOSTILE = '=HYPERLINK("http://x","a")\x1b[31m\r\n[bold]x\u202egnp.exe 通义'


def head(**changes: object) -> InvoiceHead:
    fields: dict[str, object] = {
        "invoice_id": "INV-1",
        "issuer": "Example Operator",
        "workspace_id": "ws_1",
        "workspace_name": "Acme",
        "currency": "USD",
        "period_start": START,
        "period_end": END,
        "issued_at": END + timedelta(hours=8),
    }
    return msgspec.convert(fields | changes, InvoiceHead)


def charge(
    number: int = 1,
    *,
    model: str = "qwen-plus",
    usage: TokenUsage = SMALL,
    key: str = "key_a",
    minute: int = 0,
    outcome: Literal["complete", "interrupted"] = "complete",
    thinking: bool = False,
    batch: bool = False,
    free: int = 0,
) -> Charge:
    at = START + timedelta(minutes=minute)
    books = ("model-studio-international", "local")
    row = SHELF.row(books, model, "international", at)
    assert row is not None
    got = quote(row, usage, thinking=thinking, batch=batch, at=at, free_tokens_left=free)
    return Charge(
        request_id=f"req_{number}",
        workspace_id="ws_1",
        key_id=key,
        surface="openai",
        model=model,
        deployment=f"dep_{model}",
        engine="e",
        engine_version="1",
        region="international",
        digest=None,
        outcome=outcome,
        usage=usage,
        thinking=thinking,
        price=got.price,
        lines=got.lines,
        amount_micro=got.amount_micro,
        currency=got.currency,
        started_at=at,
        finished_at=at,
        batch_id="batch_1" if batch else None,
    )


@st.composite
def charges(draw: st.DrawFn) -> Charge:
    prompt, completion = draw(st.integers(0, 40_000)), draw(st.integers(0, 3000))
    cached = draw(st.integers(0, prompt))
    usage = TokenUsage(
        prompt,
        completion,
        cached=cached,
        cache_creation=draw(st.integers(0, prompt - cached)),
        reasoning=draw(st.integers(0, completion)),
    )
    return charge(
        model=draw(st.sampled_from(["qwen-plus", "qwen3-max", "my/model", "qwen3.8-flash"])),
        usage=usage,
        key=draw(st.sampled_from(["key_a", "key_b"])),
        minute=draw(st.integers(0, 30 * 24 * 60 - 1)),
        outcome=draw(st.sampled_from(["complete", "interrupted"])),
        thinking=draw(st.booleans()),
        batch=draw(st.booleans()),
        free=draw(st.integers(0, 2000)),
    )


entries = st.lists(
    st.builds(
        Entry,
        at=st.datetimes(datetime(2026, 11, 1), datetime(2026, 11, 30), timezones=st.just(UTC)),
        kind=st.sampled_from(["top_up", "credit", "adjustment"]),
        description=st.text(max_size=20),
        amount_micro=st.integers(1, 10**9),
    ),
    max_size=3,
)


@given(charges())
def test_the_shares_of_a_charge_add_up_and_none_is_a_micro_unit_off(one: Charge) -> None:
    shares = line_shares(one)
    assert sum(shares) == one.amount_micro
    for share, line in zip(shares, one.lines, strict=True):
        assert abs(share - (line.tokens - line.free) * Decimal(line.rate)) < 1


@given(st.lists(charges(), max_size=20), entries)
def test_every_sum_on_the_invoice_is_the_sum_of_the_charges(
    many: list[Charge], moved: list[Entry]
) -> None:
    invoice = build_invoice(many, head(), entries=moved)
    billed = sum(one.amount_micro for one in many)
    granted = sum(entry.amount_micro for entry in moved if entry.kind != "top_up")
    assert invoice.subtotal_micro == billed
    assert invoice.total_micro == billed - granted
    lines = [line for group in invoice.groups for line in group.lines]
    assert sum(line.amount_micro for line in lines) == billed
    assert sum(line.tokens for line in lines) == sum(one.usage.total for one in many)
    assert sum(line.free for line in lines) == sum(line.free for one in many for line in one.lines)
    assert sum(model.amount_micro for model in invoice.models) == billed
    assert sum(model.input_tokens for model in invoice.models) == sum(
        one.usage.prompt for one in many
    )
    assert invoice.requests == len(many)
    assert invoice.interrupted == sum(one.outcome == "interrupted" for one in many)


@given(st.lists(charges(), max_size=10), entries)
def test_json_gives_the_same_invoice_back_whatever_the_order_of_the_charges(
    many: list[Charge], moved: list[Entry]
) -> None:
    invoice = build_invoice(many, head(), entries=moved)
    assert read_invoice_json(invoice_json(invoice)) == invoice
    assert build_invoice(reversed(many), head(), entries=moved).groups == invoice.groups


def test_groups_separate_day_model_key_outcome_and_batch() -> None:
    many = [
        charge(1),
        charge(2),
        charge(3, minute=24 * 60),
        charge(4, key="key_b"),
        charge(5, model="qwen3-max"),
        charge(6, outcome="interrupted"),
        charge(7, batch=True),
    ]
    invoice = build_invoice(many, head(), key_names={"key_a": "production"})
    assert [
        (group.day.day, group.model, group.key_name, group.outcome, group.batch, group.requests)
        for group in invoice.groups
    ] == [
        (1, "qwen-plus", "production", "complete", False, 2),
        (1, "qwen-plus", "production", "complete", True, 1),
        (1, "qwen-plus", "production", "interrupted", False, 1),
        (1, "qwen-plus", "key_b", "complete", False, 1),
        (1, "qwen3-max", "production", "complete", False, 1),
        (2, "qwen-plus", "production", "complete", False, 1),
    ]


def test_two_tiers_of_a_model_are_two_lines_at_their_own_rates() -> None:
    many = [charge(1, model="qwen3-max"), charge(2, model="qwen3-max", usage=TokenUsage(40_000, 1))]
    (group,) = build_invoice(many, head()).groups
    assert [(line.meter, line.rate, line.tokens, line.amount_micro) for line in group.lines] == [
        ("input", "1.2", 1001, 1201),
        ("input", "2.4", 40_000, 96_000),
        ("output", "6", 333, 1998),
        ("output", "12", 1, 12),
    ]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("workspace_id", "ws_2", "workspace 'ws_2', not 'ws_1'"),
        ("currency", "CNY", "currency 'CNY', not 'USD'"),
        ("finished_at", END, "finished 2026-12-01T00:00:00"),
        ("finished_at", START - timedelta(microseconds=1), "outside"),
        ("amount_micro", 801, "801 micro-units, but its lines come to 800"),
    ],
)
def test_a_charge_that_does_not_belong_or_add_up_is_refused_by_name(
    field: str, value: object, says: str
) -> None:
    wrong = msgspec.structs.replace(charge(), **{field: value})
    with pytest.raises(InvoiceError, match=says) as caught:
        build_invoice([wrong], head())
    assert "req_1" in str(caught.value)


def test_the_period_takes_its_start_and_leaves_its_end() -> None:
    first = msgspec.structs.replace(charge(), finished_at=START)
    last = msgspec.structs.replace(charge(), finished_at=END - timedelta(microseconds=1))
    assert build_invoice([first, last], head()).requests == 2


def test_a_statement_that_does_not_lead_to_its_closing_balance_is_refused() -> None:
    top_up = Entry(at=START, kind="top_up", description="card", amount_micro=5_000)
    right = Statement(opening_micro=100, closing_micro=4_300)
    assert build_invoice([charge()], head(), entries=[top_up], statement=right).total_micro == 800
    with pytest.raises(InvoiceError, match="do not lead to the closing balance 4301"):
        build_invoice(
            [charge()],
            head(),
            entries=[top_up],
            statement=msgspec.structs.replace(right, closing_micro=4_301),
        )


def test_an_invoice_changed_in_its_json_is_not_read_back() -> None:
    data = invoice_json(build_invoice([charge()], head()))
    assert b'"subtotal_micro":800' in data
    with pytest.raises(msgspec.ValidationError, match="come to 800, not to 799"):
        read_invoice_json(data.replace(b'"subtotal_micro":800', b'"subtotal_micro":799'))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"period_end": START}, "is not after period_start"),
        ({"issued_at": datetime(2026, 12, 1)}, "issued_at 2026-12-01T00:00:00 has no time zone"),
    ],
)
def test_an_impossible_period_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvoiceError, match=says):
        build_invoice([], head(**changes))


def test_display_rounds_half_to_even_and_only_to_what_can_be_paid() -> None:
    assert [payable(micro, "USD") for micro in (5_000, 15_000, 1_234_565_000)] == [
        "0.00 USD",
        "0.02 USD",
        "1,234.56 USD",
    ]
    assert payable(2_500_000, "JPY") == "2 JPY"
    assert exact(-1) == "-0.000001"


def focus_violations(row: FocusRow) -> list[str]:
    """The rules of FOCUS 1.2 that bear on our rows, each from its column's page."""
    usage = row.charge_category == "Usage"
    zero = Decimal(0)
    rules = {
        "PricingQuantity, unit prices, SKU not null for usage": not usage
        or None
        not in (
            row.pricing_quantity,
            row.list_unit_price,
            row.contracted_unit_price,
            row.sku_id,
            row.sku_price_id,
            row.pricing_category,
        ),
        "ConsumedQuantity only for usage": (row.consumed_quantity is not None) == usage,
        "units follow quantities": (row.pricing_unit is None) == (row.pricing_quantity is None)
        and (row.consumed_unit is None) == (row.consumed_quantity is None),
        "unit prices not negative": (row.list_unit_price or zero) >= 0
        and (row.contracted_unit_price or zero) >= 0,
        "ListCost is price times quantity": not usage
        or row.list_cost == (row.list_unit_price or zero) * (row.pricing_quantity or zero),
        "ContractedCost is price times quantity": not usage
        or row.contracted_cost
        == (row.contracted_unit_price or zero) * (row.pricing_quantity or zero),
        "other costs match BilledCost": usage
        or row.billed_cost == row.effective_cost == row.list_cost == row.contracted_cost,
        "SkuMeter and SkuPriceDetails follow the SKU": (row.sku_id is None)
        == (row.sku_meter is None)
        == (row.sku_price_details is None),
        "Resource and sub account attributes follow the id": (row.resource_id is None)
        == (row.resource_type is None)
        and (row.sub_account_id is None)
        == (row.sub_account_name is None)
        == (row.sub_account_type is None),
        "charge period within the billing period": row.billing_period_start
        <= row.charge_period_start
        < row.charge_period_end
        <= row.billing_period_end,
        "key-value columns are flat JSON objects": all(
            not isinstance(value, list | dict)
            for text in (row.tags, row.sku_price_details)
            if text is not None
            for value in msgspec.json.decode(text, type=dict[str, object]).values()
        ),
        "property keys of ours start with x_": row.sku_price_details is None
        or all(key.startswith("x_") for key in msgspec.json.decode(row.sku_price_details)),
    }
    return [rule for rule, holds in rules.items() if not holds]


@settings(max_examples=50)
@given(st.lists(charges(), max_size=12), entries)
def test_focus_rows_keep_the_specifications_rules_and_sum_to_the_invoice(
    many: list[Charge], moved: list[Entry]
) -> None:
    invoice = build_invoice(many, head(), entries=moved)
    rows = list(focus_rows(invoice, PARTIES))
    assert [broken for row in rows for broken in focus_violations(row)] == []
    assert sum(row.billed_cost for row in rows) == Decimal(invoice.total_micro).scaleb(-6)
    tokens = sum(row.consumed_quantity or 0 for row in rows)
    assert tokens == sum(one.usage.total for one in many)
    by_price: dict[str | None, set[Decimal | None]] = {}
    for row in rows:
        by_price.setdefault(row.sku_price_id, set()).add(row.list_unit_price)
    assert all(len(prices) == 1 for prices in by_price.values())


def test_focus_csv_has_every_mandatory_column_and_reads_back() -> None:
    mandatory = (
        "BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd "
        "BillingPeriodStart ChargeCategory ChargeClass ChargeDescription ChargePeriodEnd "
        "ChargePeriodStart ContractedCost EffectiveCost InvoiceIssuerName ListCost "
        "PricingQuantity PricingUnit ProviderName PublisherName ServiceCategory ServiceName"
    )
    assert set(mandatory.split()) <= set(COLUMNS)
    invoice = build_invoice([charge(free=1000), charge(2, batch=True)], head())
    rows = list(csv.DictReader(io.StringIO(focus_csv(invoice, PARTIES))))
    assert [(row["ConsumedQuantity"], row["BilledCost"], row["ListCost"]) for row in rows] == [
        ("1", "0", "0.0000004"),
        ("1000", "0", "0.0004"),
        ("333", "0.0004", "0.0003996"),
        ("1001", "0.0002", "0.0002002"),
        ("333", "0.0002", "0.0001998"),
    ]
    assert rows[1]["ContractedCost"] == "0"
    assert rows[0]["ChargePeriodStart"] == "2026-11-01T00:00:00Z"
    assert rows[0]["ChargePeriodEnd"] == "2026-11-02T00:00:00Z"
    assert rows[0]["PricingUnit"] == "1000000 Tokens"
    assert rows[0]["ChargeClass"] == ""
    numeric = re.compile(r"-?\d+(\.\d+)?")
    for column in ("BilledCost", "ListUnitPrice", "PricingQuantity", "ContractedUnitPrice"):
        assert all(numeric.fullmatch(row[column]) for row in rows)


def hostile_invoice() -> Invoice:
    one = charge(model="my/model")
    two = msgspec.structs.replace(charge(2), model=HOSTILE, region="+1", deployment="@x")
    credit = Entry(at=START, kind="credit", description="-1+cmd|' /C calc'!A0", amount_micro=7)
    return build_invoice(
        [one, two],
        head(workspace_name=HOSTILE, issuer="\t=1+1", invoice_id="@SUM(1)"),
        entries=[credit],
        statement=Statement(opening_micro=0, closing_micro=7 - one.amount_micro - two.amount_micro),
        key_names={"key_a": "  =1"},
    )


def test_no_csv_cell_starts_a_formula_or_carries_a_control_character() -> None:
    text = focus_csv(hostile_invoice(), PARTIES)
    for row in csv.DictReader(io.StringIO(text, newline="")):
        for column, cell in row.items():
            assert cell.isprintable() or "\N{REPLACEMENT CHARACTER}" in cell
            assert not re.search(r"[\x00-\x1f\u202e]", cell)
            if not re.fullmatch(r"-?\d+(\.\d+)?", cell):
                assert not cell.lstrip().startswith(("=", "+", "-", "@")), column


@given(st.text())
def test_spreadsheet_text_never_starts_a_formula(text: str) -> None:
    safe = spreadsheet_text(text)
    assert not safe.lstrip(" \u3000\u00a0").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert printable(safe) == safe


def test_the_terminal_shows_hostile_names_as_text() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, color_system="truecolor", force_terminal=True)
    console.print(invoice_table(hostile_invoice()))
    shown = out.getvalue()
    assert "\x1b[31m" not in shown and "\u202e" not in shown and "\r" not in shown
    assert "[bold]x" in shown
    assert "interrupted" in shown and "0.000840 USD" in shown


def test_the_pdf_is_whole_the_same_every_time_and_takes_hostile_names() -> None:
    invoice = hostile_invoice()
    pdf = invoice_pdf(invoice)
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
    assert pdf == invoice_pdf(invoice)
    assert b"/JavaScript" not in pdf and b"/URI" not in pdf


def test_a_pdf_of_very_many_lines_stays_bounded_and_an_empty_one_works() -> None:
    many = [
        charge(number, key=f"key_{number}", model="my/model") for number in range(DETAIL_ROWS_MAX)
    ]
    pdf = invoice_pdf(build_invoice(many, head()))
    pages = len(re.findall(rb"/Type /Page\b", pdf))
    assert DETAIL_ROWS_MAX // 60 < pages < DETAIL_ROWS_MAX // 30
    assert len(re.findall(rb"/Type /Page\b", invoice_pdf(build_invoice([], head())))) == 1
