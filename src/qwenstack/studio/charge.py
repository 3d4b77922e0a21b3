"""The record of one billed request: what ran, what it consumed, what it costs and why."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from qwenstack.core.tokens import TokenUsage

Meter = Literal["input", "cache_hit", "cache_hit_explicit", "cache_creation", "output", "reasoning"]


class PriceLine(msgspec.Struct, frozen=True):
    """One meter of a charge.

    `tokens` were consumed, `free` of them were covered by free quota; the rest cost `rate`
    (decimal text, currency units per million tokens, multipliers applied).
    """

    meter: Meter
    tokens: int
    free: int
    rate: str


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """A settled request. Immutable; its amount recomputes from `lines` alone.

    `price` names the row that priced it: `book@version#row`. `outcome` is `interrupted` where the
    stream ended before the model did and the charge covers what was delivered.
    """

    request_id: str
    workspace_id: str
    key_id: str
    surface: str
    model: str
    deployment: str
    engine: str
    engine_version: str
    region: str
    digest: str | None
    outcome: Literal["complete", "interrupted"]
    usage: TokenUsage
    thinking: bool
    price: str
    lines: tuple[PriceLine, ...]
    amount_micro: int
    currency: str
    started_at: datetime
    finished_at: datetime
    first_token_ms: int | None = None
    batch_id: str | None = None
