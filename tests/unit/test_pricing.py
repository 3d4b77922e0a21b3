"""Prices are exact, never above their ceiling, and recompute."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.charge import Charge, PriceLine
from qwenstack.studio.pricing import (
    WEEKDAYS,
    OffPeak,
    PriceRow,
    PriceTerms,
    Quote,
    Tier,
    amount_of,
    ceiling,
    price_row,
    quote,
    requote,
)

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
D = Decimal


def make_row(
    *tiers: Tier,
    cache: tuple[str, str, str] = ("0.2", "0.1", "1.25"),
    batch: str | None = "0.5",
    off_peak: tuple[OffPeak, ...] = (),
) -> PriceRow:
    terms = PriceTerms(
        id="m",
        model="m",
        scope="*",
        effective_from=datetime(2026, 1, 1, tzinfo=UTC),
        tiers=tiers or (Tier(input=D("0.4"), output=D("1.2"), output_thinking=D("4")),),
        cache_hit_multiplier=D(cache[0]),
        cache_hit_explicit_multiplier=D(cache[1]),
        cache_creation_multiplier=D(cache[2]),
        batch=None if batch is None else D(batch),
        off_peak=off_peak,
        status="example",
        source="test",
        checked=date(2026, 11, 24),
    )
    return price_row(terms, currency="USD", reference="b@1#m")


rates = st.decimals(min_value=0, max_value=100, places=4)
multipliers = st.decimals(min_value=0, max_value=2, places=3)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    bounds = sorted(draw(st.sets(st.integers(1, 3000), max_size=3)))
    return tuple(
        Tier(
            up_to=bound,
            input=draw(rates),
            output=draw(st.none() | rates),
            output_thinking=draw(st.none() | rates),
            cache_hit=draw(st.none() | rates),
            cache_creation=draw(st.none() | rates),
        )
        for bound in [*bounds, None]
    )


@st.composite
def windows(draw: st.DrawFn) -> OffPeak:
    return OffPeak(
        start=draw(st.times()),
        end=draw(st.times()),
        days=tuple(draw(st.sets(st.sampled_from(WEEKDAYS), min_size=1))),
        multiplier=draw(multipliers),
    )


@st.composite
def rows(draw: st.DrawFn) -> PriceRow:
    cache = tuple(str(draw(multipliers)) for _ in range(3))
    return make_row(
        *draw(tiers()),
        cache=(cache[0], cache[1], cache[2]),
        batch=draw(st.none() | st.sampled_from(["0.5", "0.125", "1"])),
        off_peak=tuple(draw(st.lists(windows(), max_size=2))),
    )


@st.composite
def usages(draw: st.DrawFn, prompt_max: int = 4000, completion_max: int = 2000) -> TokenUsage:
    prompt = draw(st.integers(0, prompt_max))
    cuts = sorted(draw(st.tuples(*[st.integers(0, prompt)] * 3)))
    completion = draw(st.integers(0, completion_max))
    return TokenUsage(
        prompt,
        completion,
        cached=cuts[0],
        cached_explicit=cuts[1] - cuts[0],
        cache_creation=cuts[2] - cuts[1],
        reasoning=draw(st.integers(0, completion)),
    )


instants = st.datetimes(
    min_value=datetime(2026, 1, 1), max_value=datetime(2027, 1, 1), timezones=st.just(UTC)
)


def textbook(
    row: PriceRow, usage: TokenUsage, *, thinking: bool, batch: bool, at: datetime
) -> Decimal:
    """The rules over again, in decimals and in the order of the vendor's text."""
    terms = row.terms
    tier = next(
        (tier for tier in terms.tiers[:-1] if tier.up_to and usage.prompt <= tier.up_to),
        terms.tiers[-1],
    )
    output = tier.output or D(0)
    if thinking and usage.reasoning and tier.output_thinking is not None:
        output = tier.output_thinking
    if batch and terms.batch is not None:
        return terms.batch * (usage.prompt * tier.input + usage.completion * output)
    hit = tier.input * terms.cache_hit_multiplier if tier.cache_hit is None else tier.cache_hit
    creation = (
        tier.input * terms.cache_creation_multiplier
        if tier.cache_creation is None
        else tier.cache_creation
    )
    rest = usage.prompt - usage.cached - usage.cached_explicit - usage.cache_creation
    full = (
        rest * tier.input
        + usage.cached * hit
        + usage.cached_explicit * tier.input * terms.cache_hit_explicit_multiplier
        + usage.cache_creation * creation
        + usage.completion * output
    )
    window = next((window for window in terms.off_peak if window.covers(at)), None)
    return full * (window.multiplier if window else 1)


@given(rows(), usages(), st.booleans(), st.booleans(), instants)
def test_a_quote_is_the_textbook_amount_rounded_once(
    row: PriceRow, usage: TokenUsage, thinking: bool, batch: bool, at: datetime
) -> None:
    got = quote(row, usage, thinking=thinking, batch=batch, at=at)
    exact = textbook(row, usage, thinking=thinking, batch=batch, at=at)
    assert got.amount_micro == int(exact.quantize(D(1), rounding=ROUND_HALF_EVEN))


@given(rows(), usages(), st.booleans(), st.booleans(), instants, st.integers(-5, 5000))
def test_the_lines_alone_give_the_amount_and_every_token_is_on_one(
    row: PriceRow, usage: TokenUsage, thinking: bool, batch: bool, at: datetime, free: int
) -> None:
    got = quote(row, usage, thinking=thinking, batch=batch, at=at, free_tokens_left=free)
    assert amount_of(got.lines) == got.amount_micro
    assert sum(line.tokens for line in got.lines) == usage.total
    assert all(0 <= line.free <= line.tokens for line in got.lines)
    assert got.free_used == sum(line.free for line in got.lines) <= max(free, 0)


@given(
    rows(),
    st.data(),
    st.integers(0, 4000),
    st.integers(0, 2000),
    st.booleans(),
    st.booleans(),
    instants,
)
def test_no_usage_within_the_bounds_costs_more_than_the_ceiling(
    row: PriceRow,
    data: st.DataObject,
    prompt_max: int,
    completion_max: int,
    thinking: bool,
    batch: bool,
    at: datetime,
) -> None:
    usage = data.draw(usages(prompt_max, completion_max))
    most = ceiling(row, prompt_max, completion_max, thinking=thinking, batch=batch, at=at)
    assert quote(row, usage, thinking=thinking, batch=batch, at=at).amount_micro <= most


@given(rows(), usages(), st.booleans(), instants)
def test_without_explicit_markers_the_lower_ceiling_still_holds(
    row: PriceRow, usage: TokenUsage, thinking: bool, at: datetime
) -> None:
    implicit = TokenUsage(
        usage.prompt, usage.completion, cached=usage.cached, reasoning=usage.reasoning
    )
    most = ceiling(
        row, usage.prompt, usage.completion, thinking=thinking, at=at, explicit_cache=False
    )
    assert quote(row, implicit, thinking=thinking, at=at).amount_micro <= most


@given(rows(), st.integers(0, 3000), st.integers(0, 2000), st.booleans(), instants)
def test_the_ceiling_never_falls_when_a_bound_rises(
    row: PriceRow, prompt: int, completion: int, thinking: bool, at: datetime
) -> None:
    here = ceiling(row, prompt, completion, thinking=thinking, at=at)
    assert here <= ceiling(row, prompt + 700, completion, thinking=thinking, at=at)
    assert here <= ceiling(row, prompt, completion + 1, thinking=thinking, at=at)


@given(rows(), usages(), st.booleans(), instants, st.integers(0, 100), st.integers(0, 500))
def test_more_output_or_less_free_quota_never_costs_less(
    row: PriceRow, usage: TokenUsage, thinking: bool, at: datetime, more: int, free: int
) -> None:
    longer = TokenUsage(
        usage.prompt,
        usage.completion + more,
        usage.cached,
        usage.cached_explicit,
        usage.cache_creation,
        usage.reasoning,
    )
    cost = quote(row, usage, thinking=thinking, at=at).amount_micro
    assert cost <= quote(row, longer, thinking=thinking, at=at).amount_micro
    assert quote(row, usage, thinking=thinking, at=at, free_tokens_left=free).amount_micro <= cost


@given(rows(), usages(), st.booleans(), st.booleans(), instants, st.integers(0, 3000))
def test_a_past_charge_priced_again_gives_the_same_lines(
    row: PriceRow, usage: TokenUsage, thinking: bool, batch: bool, at: datetime, free: int
) -> None:
    got = quote(row, usage, thinking=thinking, batch=batch, at=at, free_tokens_left=free)
    assert requote(row, charge_of(got, usage, thinking=thinking, batch=batch, at=at)) == got


def charge_of(
    got: Quote, usage: TokenUsage, *, thinking: bool, batch: bool, at: datetime
) -> Charge:
    return Charge(
        request_id="req_1",
        workspace_id="ws_1",
        key_id="key_1",
        surface="openai",
        model="m",
        deployment="dep_1",
        engine="e",
        engine_version="1",
        region="r",
        digest=None,
        outcome="complete",
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


def test_free_quota_covers_input_then_output_then_reasoning_and_no_cache_meter() -> None:
    usage = TokenUsage(100, 50, cached=20, cached_explicit=10, cache_creation=5, reasoning=30)
    got = quote(make_row(), usage, thinking=True, at=AT, free_tokens_left=90)
    assert [(line.meter, line.tokens, line.free) for line in got.lines] == [
        ("input", 65, 65),
        ("cache_hit", 20, 0),
        ("cache_hit_explicit", 10, 0),
        ("cache_creation", 5, 0),
        ("output", 20, 20),
        ("reasoning", 30, 5),
    ]
    assert got.free_used == 90


def test_batch_takes_no_cache_discount_no_free_quota_and_no_off_peak_rate() -> None:
    always = OffPeak(start=time(0), end=time(0), multiplier=D("0.1"))
    usage = TokenUsage(1000, 100, cached=900)
    got = quote(
        make_row(off_peak=(always,)), usage, thinking=False, batch=True, at=AT, free_tokens_left=99
    )
    assert got.lines == (PriceLine("input", 1000, 0, "0.2"), PriceLine("output", 100, 0, "0.6"))
    assert got.free_used == 0


def test_a_model_without_a_batch_price_bills_a_batch_line_like_real_time() -> None:
    row = make_row(batch=None)
    usage = TokenUsage(1000, 100, cached=900)
    assert not row.sells_batch
    assert quote(row, usage, thinking=False, batch=True, at=AT) == quote(
        row, usage, thinking=False, at=AT
    )


def test_asked_to_think_but_no_thoughts_written_costs_the_plain_rate() -> None:
    row = make_row()
    assert quote(row, TokenUsage(0, 1000), thinking=True, at=AT).amount_micro == 1200
    thoughts = TokenUsage(0, 1000, reasoning=1)
    assert quote(row, thoughts, thinking=True, at=AT).amount_micro == 4000


@pytest.mark.parametrize(
    ("at", "covered"),
    [
        ("2026-11-23T16:29:59+00:00", False),
        ("2026-11-23T16:30:00+00:00", True),
        ("2026-11-24T00:29:59+00:00", True),
        ("2026-11-24T00:30:00+00:00", False),
        ("2026-11-24T16:30:00+00:00", False),
        ("2026-11-24T00:30:00+08:00", True),
    ],
)
def test_an_off_peak_window_over_midnight_belongs_to_the_day_it_starts(
    at: str, covered: bool
) -> None:
    window = OffPeak(start=time(16, 30), end=time(0, 30), days=("mon",), multiplier=D("0.5"))
    assert window.covers(datetime.fromisoformat(at)) is covered


def test_half_a_micro_unit_rounds_to_even() -> None:
    row = make_row(Tier(input=D("0.5"), output=None))
    amounts = [
        quote(row, TokenUsage(tokens), thinking=False, at=AT).amount_micro for tokens in range(8)
    ]
    assert amounts == [0, 0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    "usage",
    [TokenUsage(5, 1, cached=6), TokenUsage(5, 1, reasoning=2), TokenUsage(-1), TokenUsage(0, -1)],
)
def test_counts_that_contradict_themselves_are_refused(usage: TokenUsage) -> None:
    with pytest.raises(ValueError, match=r"exceed|negative"):
        quote(make_row(), usage, thinking=False, at=AT)


def test_negative_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ceiling(make_row(), -1, 0, thinking=False, at=AT)
