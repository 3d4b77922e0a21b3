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
