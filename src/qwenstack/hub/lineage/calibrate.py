"""From observations to probabilities: how often an answer of this kind was right on the bench.

`calibration.json` is fitted by `benchmarks/lineage_calibrate.py` on the bench's calibration
families, and holds how many models and pairs each number rests on. Where all were right or all
were wrong, Laplace's rule of succession keeps the probability below 1, as Platt's targets do in
the logistic fits.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

PARAMETERS_MIN: Final = 5_000
CLEAR_MARGIN: Final = 0.02  # how much nearer the parent is than the next, to be called clear
_STEPS: Final = 60

Values = npt.NDArray[np.float64]


class Logistic(msgspec.Struct, frozen=True):
    """`1 / (1 + exp(-slope (x - centre)))`, fitted on so many cases of either kind."""

    slope: float
    centre: float
    positives: int
    negatives: int

    def __call__(self, value: float) -> float:
        """The probability at `value`; of what is no number none."""
        if math.isnan(value):
            return 0.0
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, self.slope * (value - self.centre)))))


class Frequency(msgspec.Struct, frozen=True):
    """How many of how many were right."""

    right: int
    cases: int

    @property
    def probability(self) -> float:
        """Laplace's estimate."""
        return (self.right + 1) / (self.cases + 2)


class Calibration(msgspec.Struct, frozen=True):
    """All that was fitted. `related` is of the fingerprints' affinity, `adapter` of its score.

    `adapter_alone` and `adapter_origin` count adapters whose base was the only one near, and those
    of which the weights left several bases open and the one that the others come from was taken.
    `clear` and `close` count models whose parent was much nearer than the next candidate and not,
    `below` those with descendants of their own among the candidates, `origin` those without parent.
    """

    related: Logistic
    adapter: Logistic
    adapter_alone: Frequency
    adapter_origin: Frequency
    clear: Frequency
    close: Frequency
    below: Frequency
    origin: Frequency


@functools.cache
def calibration() -> Calibration:
    """What the bench taught."""
    raw = Path(__file__).with_name("calibration.json").read_bytes()
    return msgspec.json.decode(raw, type=Calibration)


def derived(affinity: float, kept: float) -> float:
    """The probability that a model comes from a candidate's family at all.

    By the fingerprints' affinity alone; where the comparison of the tensors themselves found most
    of them in common (`kept`), at least by how often such an answer was right.
    """
    found = calibration()
    related = found.related(affinity)
    if kept < 0.5:
        return related
    kinds = found.clear, found.close, found.below
    answers = Frequency(sum(kind.right for kind in kinds), sum(kind.cases for kind in kinds))
    return max(related, answers.probability)


def placed(margin: float, *, descendants: bool) -> float:
    """The probability that the parent found is the right one of its family.

    `descendants` says that some of the candidates come from the model, which is harder to tell.
    """
    found = calibration()
    if descendants:
        return found.below.probability
    return (found.clear if margin >= CLEAR_MARGIN else found.close).probability


def origin() -> float:
    """The probability that a model with descendants alone has no parent among the candidates."""
    return calibration().origin.probability


def chosen(close: int, *, named: bool) -> float:
    """The probability that an adapter's base is the one chosen among `close` near-equals.

    Where the card names one of them the choice is the card's, and this doesn't judge cards.
    """
    if named:
        return 1.0
    found = calibration()
    return (found.adapter_alone if close == 1 else found.adapter_origin).probability


def fit_logistic(positives: Values, negatives: Values) -> Logistic:
    """Platt's fit with his smoothed targets, by Newton's method."""
    x = np.concatenate([positives, negatives])
    high, low = (len(positives) + 1) / (len(positives) + 2), 1 / (len(negatives) + 2)
    target = np.concatenate([np.full(len(positives), high), np.full(len(negatives), low)])
    centre = (positives.min() + negatives.max()) / 2
    design = np.stack([x - centre, np.ones_like(x)], axis=1)
    weights = np.array([10.0, 0.0])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -60, 60)))
        curve = design.T @ (design * np.maximum(p * (1 - p), 1e-9)[:, None]) + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, design.T @ (target - p))
        weights = weights + np.clip(step, -5, 5)
    slope = float(weights[0])
    return Logistic(slope, float(centre - weights[1] / slope), len(positives), len(negatives))
