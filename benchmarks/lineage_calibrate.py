"""Fit `calibration.json` on the lineage bench's calibration families, and test it on the others.

    python benchmarks/lineage_calibrate.py ZOO [COUNTS]

ZOO is what `python -m benchmarks.lineage.zoo ZOO` makes. COUNTS is a JSON file of what was right
in other families, `{"clear": [right, cases], …}`, which is added. Prints how the fitted
probabilities stand against what was right in the test families, on which none was fitted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import numpy as np

from benchmarks.lineage import manifest
from benchmarks.lineage.manifest import Entry
from benchmarks.lineage.truth import Tree
from qwenstack.hub.lineage import adapters, calibrate
from qwenstack.hub.lineage.calibrate import Calibration, Frequency, fit_logistic
from qwenstack.hub.lineage.fingerprint import Fingerprint, fingerprint
from qwenstack.hub.lineage.library import Library, affinity
from qwenstack.hub.lineage.model import Model, open_path
from qwenstack.hub.lineage.trace import Answer, trace


class Bench:
    """The zoo with every model's fingerprint."""

    def __init__(self, zoo: Path) -> None:
        self.zoo = zoo
        self.entries = manifest.load(zoo).entries
        self.tree = Tree(self.entries)
        self.prints: dict[str, Fingerprint] = {
            entry.id: fingerprint(self.open(entry.id))
            for entry in self.entries
            if entry.format != "peft"
        }
        self.library = Library([], self.open, self.prints)

    def open(self, name: str) -> Model:
        return open_path(self.zoo / self.tree.by_id[name].path, name=name)

    def pairs(self, split: str) -> tuple[list[float], list[float]]:
        """Affinities of models with their ancestors, and with same-architecture strangers."""
        kin, strangers = [], set()
        for entry in self.entries:
            if entry.split != split or entry.id not in self.prints:
                continue
            for name in self.tree.kin(entry):
                if name in self.prints:
                    kin.append(affinity(self.prints[entry.id], self.prints[name]))
            for other in self.tree.strangers(entry, split):
                strangers.add(tuple(sorted((entry.id, other.id))))
        apart = [affinity(self.prints[one], self.prints[other]) for one, other in strangers]
        return kin, apart

    def adapter_scores(self, split: str) -> tuple[list[float], list[float]]:
        """Scores of adapters with their base, and with other families' bases."""
        right: list[float] = []
        wrong: list[float] = []
        self.library.names = [e.id for e in self.entries if e.relation == "base"]
        for entry in self.entries:
            if entry.format == "peft" and entry.split == split:
                for fit in adapters.fit_all(self.open(entry.id), self.library):
                    (right if fit.name in entry.parents else wrong).append(fit.score)
        return right, wrong

    def answers(self, split: str, *, anyone: bool = False) -> list[tuple[Entry, Answer, bool]]:
        """Each model's answer among all that are older, or among all; whether its parent is right.

        Names of models mean nothing to the method but an adapter's declared base, which is not one.
        """
        out = []
        everyone = self.tree.candidates()
        for entry in self.entries:
            if entry.split == split:
                names = [name for name in everyone if name != entry.id]
                self.library.names = names if anyone else self.tree.earlier(entry)
                answer = trace(self.open(entry.id), self.library)
                wanted = entry.weight_parents
                right = answer.parent in wanted if wanted else answer.parent is None
                out.append((entry, answer, right))
        return out


def kind_of(answer: Answer) -> str | None:
    """Which of the calibration's frequencies an answer belongs to."""
    said = {each.about: each for each in answer.evidence}
    if answer.verdict == "insufficient":
        return None
    if answer.relation == "adapter" and "chosen" in said:
        if answer.parent and said["chosen"].detail.startswith("by its card"):
            return None
        return "adapter_alone" if said["chosen"].detail.startswith("alone") else "adapter_origin"
    if answer.parent is None:
        return "origin" if answer.descendants or "descendants" in said else None
    if answer.descendants:
        return "below"
    margin = said["margin"].value if "margin" in said else None
    return "clear" if (margin or 0.0) >= calibrate.CLEAR_MARGIN else "close"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    bench = Bench(Path(sys.argv[1]))
    kin, apart = bench.pairs("calibration")
    right, wrong = bench.adapter_scores("calibration")
    kinds = ("adapter_alone", "adapter_origin", "clear", "close", "below", "origin")
    counts = {kind: [0, 0] for kind in kinds}
    if len(sys.argv) == 3:
        more = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=dict[str, tuple[int, int]])
        counts |= {kind: list(more[kind]) for kind in kinds if kind in more}
    for anyone in (False, True):
        for _, answer, good in bench.answers("calibration", anyone=anyone):
            kind = kind_of(answer)
            if kind is None or (anyone and kind != "below"):
                continue
            counts[kind][0] += good
            counts[kind][1] += 1
    found = Calibration(
        related=fit_logistic(np.array(kin), np.array(apart)),
        adapter=fit_logistic(np.array(right), np.array(wrong)),
        **{kind: Frequency(*counts[kind]) for kind in kinds},
    )
    path = Path(calibrate.__file__).with_name("calibration.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    calibrate.calibration.cache_clear()
    print(path.read_text())
    report(bench, found)


def report(bench: Bench, found: Calibration) -> None:
    kin, apart = bench.pairs("test")
    print(f"test: {len(kin)} kin, affinity from {min(kin):.3f}; {len(apart)} strangers, to "
          f"{max(apart):.3f}; over even odds {sum(found.related(a) > 0.5 for a in apart)}, "
          f"under {sum(found.related(a) < 0.5 for a in kin)}")  # fmt: skip
    answers = bench.answers("test")
    for entry, answer, good in answers:
        if not good:
            print(f"wrong: {entry.id} is from {entry.weight_parents}, answered {answer.parent}")
    rows = [(answer.confidence, good) for _, answer, good in answers]
    said = np.array([confidence for confidence, _ in rows])
    was = np.array([good for _, good in rows])
    print(f"answers: {len(rows)}, right {was.mean():.4f}, mean confidence {said.mean():.4f}, "
          f"Brier score {((said - was) ** 2).mean():.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
