"""What a request costs: a pure function of a price row, the token counts and the instant it began.

The rules are the vendor's (Model Studio, "Model pricing" and "Context cache", read 2026-11-24):

- The total number of input tokens picks the tier, and the tier sets the rate of every token of the
  request: all or nothing, cached and output tokens too.
- A thinking-mode output rate holds for the whole output, and only where thoughts were in fact
  written; a request that was asked to think and did not is billed at the plain rate.
- Cache discounts touch input tokens only. Batch rates touch everything, and exclude cache
  discounts, free quota and off-peak rates.
- Free quota covers plain input and output tokens of real-time requests, no cache meter.

Money is exact: a rate in currency units per million tokens is the same number in micro-units per
token, kept as an integer over a power of ten. Each request is rounded once, half to even.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Literal

import msgspec

from qwenstack.core.tokens import TokenUsage
from qwenstack.studio.charge import Charge, Meter, PriceLine

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Status = Literal["verified", "reported", "example"]

WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_ONE = Decimal(1)
_METERS: tuple[Meter, ...] = (
    "input",
    "cache_hit",
    "cache_hit_explicit",
    "cache_creation",
    "output",
    "reasoning",
)
_FREE_METERS = frozenset({"input", "output", "reasoning"})


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rates of requests with at most `up_to` input tokens (None: any number).

    Rates are currency units per million tokens. `output` None means that output costs nothing
    (embeddings). `output_thinking` None means that thinking costs what plain output does. The
    three cache rates, where given, replace the row's multipliers.
    """

    up_to: int | None = None
    input: Decimal
    output: Decimal | None = None
    output_thinking: Decimal | None = None
    cache_hit: Decimal | None = None
    cache_hit_explicit: Decimal | None = None
    cache_creation: Decimal | None = None


class OffPeak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A discount from `start` to `end` (UTC, end excluded) on the days on which it starts.

    An `end` at or before `start` lies on the next day, so 16:30 to 00:30 is one window.
    """

    start: time
    end: time
    days: tuple[Weekday, ...] = WEEKDAYS
    multiplier: Decimal

    def covers(self, at: datetime) -> bool:
        """Whether `at` (aware) falls in the window."""
        at = at.astimezone(UTC)
        now, today = at.time(), WEEKDAYS[at.weekday()]
        if self.start < self.end:
            return today in self.days and self.start <= now < self.end
        if now >= self.start:
            return today in self.days
        return now < self.end and WEEKDAYS[at.weekday() - 1] in self.days


class PriceTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of a price book as it is written in the file.

    `scope` is the vendor's deployment scope or a region of this installation; `*` as `model` or
    `scope` means any. A multiplier left out is 1, `batch` left out means that there is no batch
    price. The row is in force from `effective_from` until `effective_to`, which is excluded.
    """

    id: str
    model: str
    scope: str
    effective_from: datetime
    effective_to: datetime | None = None
    aliases: tuple[str, ...] = ()
    tiers: tuple[Tier, ...]
    cache_hit_multiplier: Decimal = _ONE
    cache_hit_explicit_multiplier: Decimal = _ONE
    cache_creation_multiplier: Decimal = _ONE
    batch: Decimal | None = None
    off_peak: tuple[OffPeak, ...] = ()
    status: Status
    source: str
    checked: date
    note: str = ""


class _Card(msgspec.Struct, frozen=True):
    """The rates of one tier in one mode, in the order of `_METERS`: integers, and as text."""

    rates: tuple[int, ...]
    texts: tuple[str, ...]
    input_max: int
    input_max_implicit: int


class _TierCards(msgspec.Struct, frozen=True):
    """The cards of one tier. `plain` and `thinking` hold full price, then each off-peak window."""

    up_to: int | None
    plain: tuple[_Card, ...]
    thinking: tuple[_Card, ...]
    batch: _Card
    batch_thinking: _Card


class PriceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row ready to price with. Make it with `price_row`; `reference` is `book@version#row`."""

    reference: str
    currency: str
    terms: PriceTerms
    cards: tuple[_TierCards, ...]
    scale: int

    @property
    def sells_batch(self) -> bool:
        """Whether a batch price exists; without one a batch line costs what real time does."""
        return self.terms.batch is not None


class Quote(msgspec.Struct, frozen=True):
    """What a request costs and why. `tier` counts from 0; `free_used` is the sum over `lines`."""

    amount_micro: int
    currency: str
    price: str
    tier: int
    free_used: int
    lines: tuple[PriceLine, ...]


def price_row(terms: PriceTerms, *, currency: str, reference: str) -> PriceRow:
    """Precompute everything that `quote` needs, once per row."""
    windows = (_ONE, *(window.multiplier for window in terms.off_peak))
    decimals = [
        rates for tier in terms.tiers for rates in _tier_rates(terms, tier, windows).values()
    ]
    places = max(
        -int(rate.normalize().as_tuple().exponent)
        for group in decimals
        for rates in group
        for rate in rates
    )
    scale = 10 ** max(places, 0)
    cards = tuple(_tier_cards(terms, tier, windows, scale) for tier in terms.tiers)
    return PriceRow(reference=reference, currency=currency, terms=terms, cards=cards, scale=scale)


def quote(
    row: PriceRow,
    usage: TokenUsage,
    *,
    thinking: bool,
    at: datetime,
    batch: bool = False,
    free_tokens_left: int = 0,
) -> Quote:
    """Price a request that began at `at` (aware) and consumed `usage`.

    `free_tokens_left` is what the account has left of free quota for this model; it covers plain
    input, then output, then reasoning. Raises ValueError for counts that contradict themselves.
    """
    prompt, reasoning, completion = usage.prompt, usage.reasoning, usage.completion
    hit, hit_explicit, creation = usage.cached, usage.cached_explicit, usage.cache_creation
    plain = prompt - hit - hit_explicit - creation
    answer = completion - reasoning
    if min(prompt, completion, plain, hit, hit_explicit, creation, answer, reasoning) < 0:
        raise ValueError(usage.inconsistency() or f"token counts contradict themselves: {usage}")
    tier = _tier_of(row, prompt)
    batch = batch and row.sells_batch
    card = _card(row, tier, thinking=thinking and reasoning > 0, batch=batch, at=at)
    if batch:
        plain, hit, hit_explicit, creation, free_tokens_left = prompt, 0, 0, 0, 0
    left = max(free_tokens_left, 0)
    total = 0
    lines = []
    counts = (plain, hit, hit_explicit, creation, answer, reasoning)
    for meter, tokens, rate, text in zip(_METERS, counts, card.rates, card.texts, strict=True):
        if not tokens:
            continue
        free = min(tokens, left) if left and meter in _FREE_METERS else 0
        left -= free
        total += (tokens - free) * rate
        lines.append(PriceLine(meter, tokens, free, text))
    return Quote(
        _half_even(total, row.scale),
        row.currency,
        row.reference,
        tier,
        max(free_tokens_left, 0) - left,
        tuple(lines),
    )


def ceiling(
    row: PriceRow,
    prompt_max: int,
    completion_max: int,
    *,
    at: datetime,
    thinking: bool,
    batch: bool = False,
    explicit_cache: bool = True,
) -> int:
    """The most, in micro-units, that `quote` can come to within these bounds: what to hold.

    Every tier that a prompt of at most `prompt_max` tokens can fall in is considered, since a
    lower tier may be the dearer one. `explicit_cache` False says that the request carries no
    explicit cache marker, so that nothing can be billed as cache creation.
    """
    if prompt_max < 0 or completion_max < 0:
        raise ValueError(f"bounds must not be negative: {prompt_max}, {completion_max}")
    batch = batch and row.sells_batch
    most = 0
    for tier, cards in enumerate(row.cards):
        prompt = prompt_max if cards.up_to is None else min(prompt_max, cards.up_to)
        if tier == len(row.cards) - 1:
            prompt = prompt_max
        card = _card(row, tier, thinking=False, batch=batch, at=at)
        output = card.rates[4]
        if thinking:
            output = max(output, _card(row, tier, thinking=True, batch=batch, at=at).rates[4])
        per_input = card.input_max if explicit_cache else card.input_max_implicit
        most = max(most, prompt * per_input + completion_max * output)
        if prompt == prompt_max:
            break
    return -(-most // row.scale)


def amount_of(lines: Iterable[PriceLine]) -> int:
    """The amount in micro-units that these lines come to: what a charge's `lines` must say."""
    exact = sum(
        ((line.tokens - line.free) * Decimal(line.rate) for line in lines), start=Decimal(0)
    )
    numerator, denominator = exact.as_integer_ratio()
    return _half_even(numerator, denominator)


def requote(row: PriceRow, charge: Charge) -> Quote:
    """Price a past charge again with the row that priced it; the result must be the same."""
    return quote(
        row,
        charge.usage,
        thinking=charge.thinking,
        at=charge.started_at,
        batch=charge.batch_id is not None,
        free_tokens_left=sum(line.free for line in charge.lines),
    )


def _tier_of(row: PriceRow, prompt: int) -> int:
    last = len(row.cards) - 1
    for tier in range(last):
        up_to = row.cards[tier].up_to
        if up_to is not None and prompt <= up_to:
            return tier
    return last


def _card(row: PriceRow, tier: int, *, thinking: bool, batch: bool, at: datetime) -> _Card:
    cards = row.cards[tier]
    if batch:
        return cards.batch_thinking if thinking else cards.batch
    side = cards.thinking if thinking else cards.plain
    for number, window in enumerate(row.terms.off_peak, start=1):
        if window.covers(at):
            return side[number]
    return side[0]


def _half_even(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    twice = rest * 2
    if twice > denominator or (twice == denominator and whole & 1):
        return whole + 1
    return whole


_Rates = tuple[Decimal, ...]


def _tier_rates(
    terms: PriceTerms, tier: Tier, windows: tuple[Decimal, ...]
) -> dict[str, list[_Rates]]:
    """Every mode's rates, each in the order of `_METERS`."""
    output = tier.output or Decimal(0)
    thinking = output if tier.output_thinking is None else tier.output_thinking
    inputs = (
        tier.input,
        _or(tier.cache_hit, tier.input * terms.cache_hit_multiplier),
        _or(tier.cache_hit_explicit, tier.input * terms.cache_hit_explicit_multiplier),
        _or(tier.cache_creation, tier.input * terms.cache_creation_multiplier),
    )
    batch = _ONE if terms.batch is None else terms.batch
    uncached = (tier.input,) * 4
    return {
        "plain": [_times((*inputs, output, output), window) for window in windows],
        "thinking": [_times((*inputs, thinking, thinking), window) for window in windows],
        "batch": [_times((*uncached, output, output), batch)],
        "batch_thinking": [_times((*uncached, thinking, thinking), batch)],
    }


def _tier_cards(
    terms: PriceTerms, tier: Tier, windows: tuple[Decimal, ...], scale: int
) -> _TierCards:
    rates = _tier_rates(terms, tier, windows)
    return _TierCards(
        up_to=tier.up_to,
        plain=tuple(_rate_card(each, scale) for each in rates["plain"]),
        thinking=tuple(_rate_card(each, scale) for each in rates["thinking"]),
        batch=_rate_card(rates["batch"][0], scale),
        batch_thinking=_rate_card(rates["batch_thinking"][0], scale),
    )


def _rate_card(rates: _Rates, scale: int) -> _Card:
    numbers = tuple(int(rate * scale) for rate in rates)
    return _Card(
        rates=numbers,
        texts=tuple(decimal_text(rate) for rate in rates),
        input_max=max(numbers[:4]),
        input_max_implicit=max(numbers[:2]),
    )


def _times(rates: _Rates, factor: Decimal) -> _Rates:
    return tuple(rate * factor for rate in rates)


def _or(rate: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if rate is None else rate


def decimal_text(value: Decimal) -> str:
    """A decimal without exponent and without trailing zeros: `0.40` becomes `0.4`."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
