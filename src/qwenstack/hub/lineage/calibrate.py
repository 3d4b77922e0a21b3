"""From observations to probabilities."""

from __future__ import annotations

import math
from typing import Final

PARAMETERS_MIN: Final = 20_000


def derived(affinity: float, kept: float) -> float:
    """The probability that a model comes from the candidate at all."""
    return 1 / (1 + math.exp(-(8 * (kept - 0.4) + 6 * (affinity - 0.5))))


def placed(distance: float, margin: float) -> float:
    """The probability that the parent found is the right one of its family."""
    return 1 / (1 + math.exp(-(2 + 8 * margin)))


def adapter(score: float, close: int, *, named: bool) -> float:
    """The probability that an adapter's base is the one chosen among `close` equals."""
    sure = 1 / (1 + math.exp(-6 * (score - 0.6)))
    return sure if named or close == 1 else sure / close


def adapter_apart(score: float) -> float:
    """The probability that none of the candidates is an adapter's base."""
    return 1 / (1 + math.exp(6 * (score - 0.6)))
