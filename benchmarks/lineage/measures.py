"""From answers to figures: pure functions over predictions and the manifest's truth."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from scipy.stats import beta  # type: ignore[import-untyped]

from benchmarks.lineage.manifest import Entry


class Prediction(msgspec.Struct, frozen=True):
    """What a method said of one model. `relation` is empty where it says none."""

    id: str
    parent: str | None
    relation: str
    confidence: float
    verdict: str
    seconds: float
    parents: list[str] = []


class Share(msgspec.Struct, frozen=True):
    """`hits` of `total`, with the exact (Clopper-Pearson) two-sided 95 % interval."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself; 0 of 0 is 0."""
        return self.hits / self.total if self.total else 0.0


class Errors(msgspec.Struct, frozen=True):
    """False positives over pairs of strangers; `upper` is the one-sided exact 95 % bound."""

    false: int
    pairs: int
    upper: float
    no_answer: int = 0
    examples: list[str] = []


class Bin(msgspec.Struct, frozen=True):
    """Answers of like confidence: how many, what they claimed, how many were right."""

    low: float
    high: float
    count: int
    claimed: float
    right: float


def share(hits: int, total: int) -> Share:
    """A share with its interval."""
    if total == 0:
        return Share(0, 0, 0.0, 1.0)
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, total - hits + 1))
    high = 1.0 if hits == total else float(beta.ppf(0.975, hits + 1, total - hits))
    return Share(hits, total, low, high)


def errors(false: Sequence[str], pairs: int, no_answer: int = 0) -> Errors:
    """False positives with the bound that holds with 95 % were the pairs independent."""
    count = len(false)
    upper = 1.0 if count >= pairs else float(beta.ppf(0.95, count + 1, pairs - count))
    return Errors(count, pairs, upper, no_answer, list(false[:12]))


def parent_right(entry: Entry, said: Prediction) -> bool:
    """Whether the parent is one of the true ones; none at all where no weights were taken."""
    if not entry.weight_parents:
        return said.parent is None and said.verdict != "derived"
    return said.parent in entry.weight_parents


def relation_right(entry: Entry, said: Prediction) -> bool:
    """Whether the relation is the true one or one that the manifest accepts as well."""
    if not entry.weight_parents:
        return said.relation in ("unrelated", "distilled", "base")
    return said.relation in entry.accept


def accuracy(
    entries: Iterable[Entry], said: dict[str, Prediction]
) -> tuple[Share, dict[str, Share]]:
    """Parent accuracy, over all and by relation (attacked models under their attack)."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for entry in entries:
        kind = f"attack: {'+'.join(entry.attacks)}" if entry.attacks else entry.relation
        total[kind] += 1
        right[kind] += entry.id in said and parent_right(entry, said[entry.id])
    by_kind = {kind: share(right[kind], total[kind]) for kind in sorted(total)}
    return share(sum(right.values()), sum(total.values())), by_kind


def confusion(entries: Iterable[Entry], said: dict[str, Prediction]) -> dict[str, dict[str, int]]:
    """True relation (rows) against the one that was said (columns)."""
    table: dict[str, Counter[str]] = {}
    for entry in entries:
        if entry.id in said:
            row = table.setdefault(entry.relation, Counter())
            row[said[entry.id].relation or said[entry.id].verdict] += 1
    return {row: dict(cells) for row, cells in sorted(table.items())}


def reliability(
    entries: Iterable[Entry], said: dict[str, Prediction]
) -> tuple[list[Bin], float, float]:
    """Bins of confidence against how often the parent was right; ECE and Brier score."""
    pairs = [
        (said[entry.id].confidence, parent_right(entry, said[entry.id]))
        for entry in entries
        if entry.id in said
    ]
    if not pairs:
        return [], 0.0, 0.0
    claimed = np.array([confidence for confidence, _ in pairs])
    right = np.array([hit for _, hit in pairs], dtype=float)
    edges = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0000001]
    bins = []
    gap = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (claimed >= low) & (claimed < high)
        if inside.any():
            mean, hit = float(claimed[inside].mean()), float(right[inside].mean())
            bins.append(Bin(low, min(high, 1.0), int(inside.sum()), mean, hit))
            gap += inside.mean() * abs(mean - hit)
    return bins, float(gap), float(np.square(claimed - right).mean())


def threshold(kin: Sequence[float], strangers: Sequence[float]) -> float:
    """The threshold of a baseline: the best balanced accuracy, in the middle of its gap."""
    values = np.unique(np.array([*kin, *strangers]))
    if len(values) < 2:
        return float(values[0]) if len(values) else 0.0
    a, b = np.sort(np.array(kin)), np.sort(np.array(strangers))
    middles = (values[:-1] + values[1:]) / 2
    caught = 1 - np.searchsorted(a, middles) / max(len(a), 1)
    false = 1 - np.searchsorted(b, middles) / max(len(b), 1)
    gain = caught - false
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    widths = (values[1:] - values[:-1])[best]
    return float(middles[best[int(widths.argmax())]])


def area(kin: Sequence[float], strangers: Sequence[float]) -> float:
    """The area under the ROC curve: how often kin score above strangers."""
    if not kin or not strangers:
        return float("nan")
    b = np.sort(np.array(strangers))
    a = np.array(kin)
    below = np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")
    return float(below.mean() / 2 / len(b))
