"""Price books: what is refused and how it is said, which row is in force, and the vendor's rows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.charge import Charge
from qwenstack.studio.price_book import (
    PriceBookError,
    PriceNotFound,
    PriceShelf,
    load_book,
    load_shelf,
    packaged_shelf,
    parse_book,
)
from qwenstack.studio.pricing import quote

NOW = datetime(2026, 11, 24, tzinfo=UTC)
INTERNATIONAL, MAINLAND = "model-studio-international", "model-studio-mainland"

HEAD = """
id = "b"
version = "1"
currency = "USD"
effective_from = 2026-01-01T00:00:00Z
title = "t"
source = "s"
checked = 2026-11-24
"""
ROW = """
[[rows]]
id = "r1"
model = "m"
scope = "local"
effective_from = 2026-01-01T00:00:00Z
status = "example"
source = "s"
checked = 2026-11-24
[[rows.tiers]]
up_to = 100
input = 0.1
output = 1
[[rows.tiers]]
input = 0.2
"""


def second(**changes: str) -> str:
    text = ROW.replace('"r1"', '"r2"')
    for old, new in changes.items():
        text = text.replace(f"{old} = ", f"{old} = {new} # ", 1)
    return text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id = ", "x.toml: not valid TOML"),
        (HEAD, "missing required field `rows`"),
        (HEAD.replace("USD", "usd") + ROW, "currency 'usd'"),
        (HEAD.replace('"b"', '"b@c"') + ROW, "id 'b@c'"),
        (HEAD.replace("00Z", "00") + ROW, "effective_from 2026-01-01T00:00:00 has no time zone"),
        (HEAD + "rows = []\n", "no [[rows]]"),
        (HEAD + ROW.replace("input = 0.1", "input = -0.1"), "row 1 (r1): tier 1: input -0.1"),
        (HEAD + ROW.replace("input = 0.1", "input = nan"), "tier 1: input NaN"),
        (HEAD + ROW.replace("input = 0.1", "input = 0.1234567891"), "more than 9 decimal places"),
        (
            HEAD + ROW.replace("input = 0.1\n", ""),
            "missing required field `input` - at `$.tiers[0]`",
        ),
        (HEAD + ROW.replace("output = 1", "outptu = 1"), "unknown field `outptu`"),
        (HEAD + ROW.replace("output = 1", "output = true"), "$.tiers[0].output"),
        (HEAD + ROW.replace("up_to = 100\n", ""), "row 1 (r1): tier 1: up_to is missing"),
        (HEAD + ROW.replace("input = 0.2", "up_to = 100\ninput = 0.2"), "tier 2: up_to 100 is not"),
        (HEAD + ROW.replace('status = "example"', 'status = "sure"'), "Invalid enum value 'sure'"),
        (HEAD + ROW.replace('source = "s"', 'source = " "'), "row 1 (r1): source is empty"),
        (HEAD + second(effective_from="2026-01-01T00:00:00"), "row 1 (r2): effective_from"),
        (HEAD + ROW + ROW, "two rows have the id 'r1'"),
        (HEAD + ROW + second(), "rows 'r1' and 'r2' both price 'm' in 'local' from 2026-01-01"),
        (
            HEAD + ROW + second(model='"other"\naliases = ["m"]'),
            "both price 'm' in 'local'",
        ),
        (
            HEAD + ROW.replace("status", "effective_to = 2025-01-01T00:00:00Z\nstatus"),
            "effective_to 2025-01-01T00:00:00+00:00 is not after",
        ),
        (HEAD + ROW.replace("status", "batch = 101\nstatus"), "batch 101 must lie between 0 and"),
    ],
)
def test_a_faulty_book_is_refused_naming_file_row_and_field(text: str, says: str) -> None:
    with pytest.raises(PriceBookError) as caught:
        parse_book(text, name="x.toml")
    assert str(caught.value).startswith("x.toml")
    assert says in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_book_or_a_price_book_error(text: str) -> None:
    with pytest.raises(PriceBookError):
        parse_book(text, name="x")


def test_rows_that_follow_each_other_change_at_the_instant_in_utc() -> None:
    first = ROW.replace("status", "effective_to = 2026-06-01T08:00:00+08:00\nstatus")
    book = parse_book(HEAD + first + second(effective_from="2026-06-01T00:00:00Z"), name="x")

    def row_at(text: str) -> str | None:
        row = book.row("m", "local", datetime.fromisoformat(text))
        return row.terms.id if row else None

    assert row_at("2025-12-31T23:59:59.999999+00:00") is None
    assert row_at("2026-05-31T23:59:59.999999+00:00") == "r1"
    assert row_at("2026-06-01T07:59:59+08:00") == "r1"
    assert row_at("2026-06-01T00:00:00+00:00") == "r2"
    assert row_at("2026-05-31T20:00:00-04:00") == "r2"


def test_an_exact_name_goes_before_the_row_for_any_model() -> None:
    book = parse_book(HEAD + ROW + second(model='"*"', scope='"*"'), name="x")
    found = [book.row(*key, NOW) for key in (("m", "local"), ("n", "local"), ("m", "elsewhere"))]
    assert [row and row.terms.id for row in found] == ["r1", "r2", "r2"]
    assert parse_book(HEAD + ROW, name="x").row("m", "elsewhere", NOW) is None


def test_rates_keep_every_digit_of_the_file() -> None:
    book = parse_book(HEAD + ROW.replace("input = 0.1\n", "input = 0.123456789\n"), name="x")
    assert book.rows[0].terms.tiers[0].input == Decimal("0.123456789")
    usage = TokenUsage(100)
    assert quote(book.rows[0], usage, thinking=False, at=NOW).lines[0].rate == "0.123456789"


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PriceBookError, match="not UTF-8"):
        load_book(binary)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(PriceBookError, match="more than"):
        load_book(huge)


def test_an_old_charge_recomputes_after_a_new_version_was_added(tmp_path: Path) -> None:
    (tmp_path / "b1.toml").write_text(HEAD + ROW)
    shelf = load_shelf(tmp_path)
    began = datetime(2026, 3, 1, tzinfo=UTC)
    row = shelf.row(["b"], "m", "local", began)
    assert row is not None
    usage = TokenUsage(1000, 5, cached=300)
    billed = quote(row, usage, thinking=False, at=began, free_tokens_left=44)
    charge = Charge(
        request_id="r",
        workspace_id="w",
        key_id="k",
        surface="openai",
        model="m",
        deployment="d",
        engine="e",
        engine_version="1",
        region="local",
        digest=None,
        outcome="complete",
        usage=usage,
        thinking=False,
        price=billed.price,
        lines=billed.lines,
        amount_micro=billed.amount_micro,
        currency=billed.currency,
        started_at=began,
        finished_at=began,
    )
    dearer = (
        (HEAD + ROW).replace('version = "1"', 'version = "2"').replace("input = 0", "input = 9")
    )
    (tmp_path / "b2.toml").write_text(dearer.replace("2026-01-01", "2026-02-01"))
    later = load_shelf(tmp_path)
    now = later.row(["b"], "m", "local", began)
    assert now is not None and now.reference == "b@2#r1"
    assert quote(now, usage, thinking=False, at=began).amount_micro > billed.amount_micro
    assert later.requote(charge) == billed
    (tmp_path / "b1.toml").unlink()
    with pytest.raises(PriceNotFound, match=r"b@1#r1.*put that version of the book back"):
        load_shelf(tmp_path).requote(charge)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("t", "t", "two books are b@1"),
        ('version = "1"', 'version = "2"', "take effect at the same instant"),
        (
            'version = "1"\ncurrency = "USD"\neffective_from = 2026',
            'version = "2"\ncurrency = "EUR"\neffective_from = 2027',
            "a book keeps its currency",
        ),
    ],
)
def test_versions_that_clash_are_refused(old: str, new: str, says: str) -> None:
    books = [parse_book(HEAD + ROW, name="1"), parse_book(HEAD.replace(old, new) + ROW, name="2")]
    with pytest.raises(PriceBookError, match=says):
        PriceShelf(books)


def test_every_packaged_row_says_where_its_price_was_read_and_how_sure_it_is() -> None:
    shelf = packaged_shelf()
    assert set(shelf.references()) == {
        "local@1",
        f"{INTERNATIONAL}@2025-04-22",
        f"{INTERNATIONAL}@2026-11-24",
        f"{MAINLAND}@2026-11-24",
    }
    for book in shelf:
        for row in book.rows:
            assert row.terms.source and row.terms.checked <= NOW.date()
            assert (row.terms.status == "example") is (book.id == "local")
            assert shelf.find(row.reference) is row


def test_a_self_hosted_model_has_the_example_price_and_it_is_called_one() -> None:
    row = packaged_shelf().row(["local"], "any/model:name", "any-region", NOW)
    assert row is not None and row.terms.status == "example"
    got = quote(row, TokenUsage(1_000_000, 1_000_000), thinking=False, at=NOW)
    assert (got.amount_micro, got.currency) == (80_000, "USD")


K = 1024
M = 1_000_000
U = TokenUsage


@pytest.mark.parametrize(
    ("book", "model", "usage", "mode", "micro"),
    [
        # qwen3-max 1.2/6, 2.4/12, 3/15: the bound itself is in the lower tier
        (INTERNATIONAL, "qwen3-max", U(32_000, 1000), "", 38_400 + 6_000),
        (INTERNATIONAL, "qwen3-max", U(32 * K, 1000), "", 39_322 + 6_000),
        (INTERNATIONAL, "qwen3-max", U(32 * K + 1, 1000), "", 78_646 + 12_000),
        (INTERNATIONAL, "qwen3-max", U(128 * K, 0), "", 314_573),
        (INTERNATIONAL, "qwen3-max", U(128 * K + 1, 0), "", 393_219),
        # the vendor's own example: 100K input falls in the second tier as a whole
        (INTERNATIONAL, "qwen3-max-2026-01-23", U(100_000, 100), "", 240_000 + 1_200),
        # cached tokens count for the tier and take its rate: 20 %, 10 %, 125 %
        (INTERNATIONAL, "qwen3-max", U(40_000, 0, cached=30_000), "", 24_000 + 14_400),
        (INTERNATIONAL, "qwen3-max", U(10_000, 0, cached_explicit=8_000), "", 2_400 + 960),
        (INTERNATIONAL, "qwen3-max", U(10_000, 0, cache_creation=8_000), "", 2_400 + 12_000),
        # qwen-plus: 0.4, 1.2 plain, 4 thinking; above 256K 1.2, 3.6, 12
        (INTERNATIONAL, "qwen-plus-latest", U(10_000, 1000), "", 4_000 + 1_200),
        (INTERNATIONAL, "qwen-plus-latest", U(10_000, 1000, reasoning=600), "think", 4_000 + 4_000),
        (INTERNATIONAL, "qwen-plus-latest", U(10_000, 1000), "think", 4_000 + 1_200),
        (INTERNATIONAL, "qwen-plus", U(256 * K, 1000), "", 104_858 + 1_200),
        (INTERNATIONAL, "qwen-plus", U(256 * K + 1, 1000, reasoning=1), "think", 314_574 + 12_000),
        # half price in a batch, and there no cache discount
        (INTERNATIONAL, "qwen-plus", U(10_000, 1000, cached=9_000), "batch", 2_000 + 600),
        (INTERNATIONAL, "qwen-flash", U(1_000, 1000), "", 50 + 400),
        (INTERNATIONAL, "qwen-flash", U(300_000, 1000), "", 75_000 + 2_000),
        (INTERNATIONAL, "qwen3-coder-plus", U(32 * K, 10), "", 32_768 + 50),
        (INTERNATIONAL, "qwen3-coder-plus", U(900_000, 1000), "", 5_400_000 + 60_000),
        (INTERNATIONAL, "qwen3.5-plus", U(300_000, 1000), "", 150_000 + 3_000),
        (INTERNATIONAL, "qwen3.7-plus", U(10_000, 1000, cached=5_000), "", 2_000 + 400 + 1_600),
        (INTERNATIONAL, "qwen3.7-max", U(M, 1000), "", 2_500_000 + 7_500),
        (INTERNATIONAL, "qwen3.7-max", U(2_000, 0, cached_explicit=2_000), "", 500),
        (INTERNATIONAL, "qwen3.8-max", U(10_000, 0, cached=10_000), "", 2_500),
        # embeddings: input only
        (INTERNATIONAL, "text-embedding-v4", U(1_000_000, 0), "", 70_000),
        (MAINLAND, "qwen3-max", U(32 * K, 1000), "", 81_920 + 10_000),
        (MAINLAND, "qwen3-max", U(32 * K + 1, 1000), "batch", 65_538 + 8_000),
        (MAINLAND, "qwen-plus", U(200_000, 1000, reasoning=1), "think", 480_000 + 24_000),
        (MAINLAND, "qwen3-8b", U(1_000, 1000, reasoning=9), "think", 500 + 5_000),
        (MAINLAND, "text-embedding-v4", U(1_000_000, 0), "batch", 250_000),
    ],
)
def test_the_vendors_published_rows_give_amounts_worked_out_by_hand(
    book: str, model: str, usage: TokenUsage, mode: str, micro: int
) -> None:
    scope = book.rpartition("-")[2]
    row = packaged_shelf().row([book], model, scope, NOW)
    assert row is not None
    got = quote(row, usage, thinking=mode == "think", batch=mode == "batch", at=NOW)
    assert got.amount_micro == micro


def test_an_implicit_hit_cost_40_percent_in_april_2025_and_costs_20_now() -> None:
    usage = TokenUsage(1_000_000, 0, cached=1_000_000)
    costs = []
    for at in (datetime(2025, 5, 1, tzinfo=UTC), NOW):
        row = packaged_shelf().row([INTERNATIONAL], "qwen-plus", "international", at)
        assert row is not None
        costs.append((row.reference, quote(row, usage, thinking=False, at=at).lines[0].rate))
    assert costs == [
        (f"{INTERNATIONAL}@2025-04-22#qwen-plus", "0.16"),
        (f"{INTERNATIONAL}@2026-11-24#qwen-plus", "0.24"),
    ]


def test_the_book_shown_in_the_documentation_loads_and_costs_what_is_said_there() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    book = parse_book(text, name="docs/prices.md")
    night = datetime(2026, 11, 24, 23, tzinfo=UTC)
    row = book.row("house-chat", "eu-1", night)
    assert row is not None
    usage = TokenUsage(40_000, 1_000, cached=30_000)
    by_day, by_night = (
        quote(row, usage, thinking=False, at=at).amount_micro
        for at in (NOW.replace(hour=12), night)
    )
    assert f"{by_day:,} micro-units by day, {by_night:,} at night" in page
