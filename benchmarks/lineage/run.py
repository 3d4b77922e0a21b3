"""Hold QwenStack's lineage and the published methods against the zoo's truth.

    python -m benchmarks.lineage.run ZOO                          # everything built so far
    python -m benchmarks.lineage.run ZOO --methods product,awm    # some methods
    python -m benchmarks.lineage.run ZOO --docs docs/benchmarks.lineage.md

README.md beside this file says what is measured. Thresholds of the baselines come from the
calibration split; every figure is over the test split. Scores and answers are kept in
`ZOO/scores`, so that one method can be run again without the others (`--again product`).
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.lineage import corpus, manifest, measures, reading, report, training
from benchmarks.lineage.baselines import Awm, Baseline, HuRef, Reef, TensorCosine, rare_tokens
from benchmarks.lineage.families import ARCHITECTURES
from benchmarks.lineage.manifest import Entry
from benchmarks.lineage.measures import Prediction
from benchmarks.lineage.report import Method, RealAnswer, Results
from benchmarks.lineage.truth import Tree

BASELINES = ("cosine", "huref", "awm", "reef")
METHODS = ("product", *BASELINES, "cisco")
CISCO = {
    "cisco": ("provenance kit, weight signals", "cisco-ai-provenance-kit 1.0.0", None),
    # As shipped it has a threshold of its own (`SIMILARITY_THRESHOLD`).
    "cisco-decision": ("provenance kit, as shipped", "cisco-ai-provenance-kit 1.0.0", 0.75),
}

SAVED_EACH = 200
# What the product is asked: with older candidates only, with all, with strangers only, by pairs.
PARTS = ("closed", "anyone", "open_set", "pairs")

Pair = tuple[str, str]


class Answers(msgspec.Struct):
    """All that the product said, kept between runs."""

    closed: dict[str, Prediction] = {}
    anyone: dict[str, Prediction] = {}
    open_set: dict[str, Prediction] = {}
    pairs: dict[str, Prediction] = {}


class Scores(msgspec.Struct):
    """A baseline's scores by `first|second` in order of name; models that it cannot take.

    `families` is empty when all were scored.
    """

    scores: dict[str, float | None] = {}
    no_features: list[str] = []
    seconds_features: float = 0.0
    seconds_scores: float = 0.0
    families: list[str] = []


class Bench:
    """One run over a zoo."""

    def __init__(self, zoo: Path, progress: Progress, without: Sequence[str] = ()) -> None:
        self.zoo = zoo
        known = manifest.load(zoo).entries
        self.tree = Tree([entry for entry in known if entry.family not in without])
        self._progress = progress
        self.folder = zoo / "scores"
        self.folder.mkdir(exist_ok=True)

    def split(self, split: str) -> list[Entry]:
        """The entries of one split."""
        return [entry for entry in self.tree.entries if entry.split == split]

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        """Iterate with a bar."""
        task = self._progress.add_task(label, total=total)
        for item in items:
            yield item
            self._progress.advance(task)

    def stranger_pairs(self, split: str) -> list[Pair]:
        """Pairs of strangers of one architecture, both of `split`, each once."""
        return [
            (entry.id, other.id)
            for entry in self.split(split)
            for other in self.tree.strangers(entry, split)
            if entry.id < other.id
        ]

    def cousin_pairs(self) -> list[Pair]:
        """Pairs of families with the same initial weights and other data."""
        return [
            (entry.id, other.id)
            for entry in self.tree.entries
            for other in self.tree.cousins(entry)
            if entry.id < other.id
        ]

    def kin_pairs(self, split: str) -> list[Pair]:
        """(model, each ancestor of it)."""
        return [
            (entry.id, name)
            for entry in self.split(split)
            if entry.format != "peft"
            for name in self.tree.kin(entry)
        ]


def run_product(bench: Bench, parts: Sequence[str]) -> Answers:
    """Ask the product everything in `parts`; what was answered before is kept."""
    from benchmarks.lineage.product import Product

    known = Answers()
    for part in PARTS:
        file = bench.folder / f"product-{part}.json"
        if file.exists():
            said = msgspec.json.decode(file.read_bytes(), type=dict[str, Prediction])
            setattr(known, part, said)
    product = Product(bench.zoo, bench.tree.entries)
    everyone = bench.tree.candidates()

    def strangers(entry: Entry) -> list[str]:
        related = {entry.family} | {other.family for other in bench.tree.cousins(entry)}
        return [name for name in everyone if bench.tree.by_id[name].family not in related]

    def anyone(entry: Entry) -> list[str]:
        return [name for name in everyone if name != entry.id]

    test = bench.split("test")
    pairs = bench.stranger_pairs("test") + bench.cousin_pairs()
    pairs += [(second, first) for first, second in pairs]
    earlier = bench.tree.earlier
    questions: dict[str, list[tuple[str, Entry, Callable[[], list[str]]]]] = {
        "closed": [(e.id, e, functools.partial(earlier, e)) for e in test],
        "anyone": [(e.id, e, functools.partial(anyone, e)) for e in test],
        "open_set": [(e.id, e, functools.partial(strangers, e)) for e in test],
        "pairs": [
            (f"{first}|{second}", bench.tree.by_id[first], functools.partial(list, [second]))
            for first, second in pairs
        ],
    }
    for part in parts:
        done: dict[str, Prediction] = getattr(known, part)
        file = bench.folder / f"product-{part}.json"
        missing = [question for question in questions[part] if question[0] not in done]
        try:
            for key, entry, candidates in bench.track(missing, f"product, {part}", len(missing)):
                done[key] = product.ask(entry, candidates())
                if len(done) % SAVED_EACH == 0:
                    file.write_bytes(msgspec.json.encode(done))
        finally:
            if missing:
                file.write_bytes(msgspec.json.encode(done))
    return known


def baseline(bench: Bench, name: str) -> Baseline:
    """A baseline by its short name."""
    folder = bench.zoo / "corpus"
    if name == "cosine":
        return TensorCosine()
    if name == "huref":
        return HuRef({size: rare_tokens(folder, size) for size in corpus.VOCABULARIES})
    if name == "awm":
        return Awm()
    training.calm()
    windows = {}
    for size in corpus.VOCABULARIES:
        text = corpus.tokens(folder, "manual+c+german", size).astype(np.int64)
        starts = np.random.default_rng(7).integers(0, len(text) - Reef.length, Reef.prompts)
        windows[size] = np.stack([text[start : start + Reef.length] for start in starts])
    return Reef(windows)


def run_baseline(bench: Bench, name: str) -> Scores:
    """Score all pairs of one architecture, architecture by architecture; kept between runs."""
    file = bench.folder / f"{name}.json"
    known = msgspec.json.decode(file.read_bytes(), type=Scores) if file.exists() else Scores()
    method = baseline(bench, name)
    for architecture, config in ARCHITECTURES.items():
        entries = [e for e in bench.tree.entries if e.architecture == architecture]
        keys = [e.id for e in entries if e.id not in known.no_features]
        missing = [
            (a, b)
            for i, a in enumerate(keys)
            for b in keys[i + 1 :]
            if _key(a, b) not in known.scores
        ]
        if not missing:
            continue
        needed = {name for pair in missing for name in pair}
        features: dict[str, Any] = {}
        start = time.perf_counter()
        label = f"{method.name}, {architecture}"
        for entry in bench.track(entries, f"{label}: features", len(entries)):
            if entry.id in needed:
                tensors = reading.read(bench.zoo, entry, config)
                features[entry.id] = method.features(entry, config, tensors)
                if features[entry.id] is None:
                    known.no_features.append(entry.id)
        known.seconds_features += time.perf_counter() - start
        start = time.perf_counter()
        for first, second in bench.track(missing, f"{label}: pairs", len(missing)):
            a, b = features[first], features[second]
            if a is not None and b is not None:
                known.scores[_key(first, second)] = method.score(a, b)
        known.seconds_scores += time.perf_counter() - start
        file.write_bytes(msgspec.json.encode(known))
    return known


def _key(first: str, second: str) -> str:
    return "|".join(sorted((first, second)))


def judge_scores(
    bench: Bench, scores: Scores, about: tuple[str, str], fixed: float | None = None
) -> Method:
    """All figures of a method that gives scores, at its `fixed` threshold or at a tuned one."""

    def of(pairs: Sequence[Pair]) -> list[tuple[str, float]]:
        found = []
        for first, second in pairs:
            score = scores.scores.get(_key(first, second))
            if score is not None and np.isfinite(score):
                found.append((f"{first} ~ {second}", float(score)))
        return found

    def values(pairs: Sequence[Pair]) -> list[float]:
        return [score for _, score in of(pairs)]

    def scored(name: str) -> bool:
        return not scores.families or bench.tree.by_id[name].family in scores.families

    def both(pairs: Sequence[Pair]) -> list[Pair]:
        return [pair for pair in pairs if scored(pair[0]) and scored(pair[1])]

    calibration_kin = values(bench.kin_pairs("calibration"))
    tuned = measures.threshold(calibration_kin, values(bench.stranger_pairs("calibration")))
    cut = tuned if fixed is None else fixed
    test = [entry for entry in bench.split("test") if scored(entry.id)]

    def answer(entry: Entry, candidates: list[str]) -> Prediction:
        best, top = None, -np.inf
        for name in candidates:
            score = scores.scores.get(_key(entry.id, name))
            if score is not None and score > top:
                best, top = name, score
        derived = best is not None and top >= cut
        verdict = "insufficient" if best is None else "derived" if derived else "independent"
        return Prediction(entry.id, best if derived else None, "", float("nan"), verdict, 0.0)

    said = {entry.id: answer(entry, bench.tree.earlier(entry)) for entry in test}
    right, by_kind = measures.accuracy(test, said)
    strangers, all_kin = both(bench.stranger_pairs("test")), both(bench.kin_pairs("test"))
    stranger_scores, kin = of(strangers), of(all_kin)
    false = [name for name, score in stranger_scores if score >= cut]
    cousins = of(bench.cousin_pairs())
    return Method(
        name=about[0],
        cites=about[1],
        parent=right,
        by_kind=by_kind,
        roots=_roots(bench, test, said),
        false_positives=measures.errors(
            false, len(strangers), len(strangers) - len(stranger_scores)
        ),
        kin_found=measures.share(sum(score >= cut for _, score in kin), len(all_kin)),
        cousins_found=measures.share(sum(score >= cut for _, score in cousins), len(cousins)),
        area=measures.area([s for _, s in kin], [s for _, s in stranger_scores]),
        threshold=cut,
        cannot_take=len([n for n in scores.no_features if bench.tree.by_id[n].split == "test"]),
        seconds_per_model=scores.seconds_features / max(len(bench.tree.entries), 1),
        seconds_per_pair=scores.seconds_scores / max(len(scores.scores), 1),
    )


def _roots(bench: Bench, entries: list[Entry], said: dict[str, Prediction]) -> measures.Share:
    """How often the parent that was named is at least of the right family."""
    made = [entry for entry in entries if entry.weight_parents]
    hits = 0
    for entry in made:
        parent = said[entry.id].parent
        hits += parent is not None and bench.tree.by_id[parent].root == entry.root
    return measures.share(hits, len(made))


def judge_product(bench: Bench, answers: Answers) -> Method:
    """All figures of the product."""
    test = [entry for entry in bench.split("test") if entry.id in answers.closed]
    right, by_kind = measures.accuracy(test, answers.closed)
    asked = [entry for entry in test if entry.id in answers.anyone]
    anyone, _ = measures.accuracy(asked, answers.anyone)
    strangers = [pair for pair in bench.stranger_pairs("test") if _verdicts(answers, *pair)]
    false = [f"{a} ~ {b}" for a, b in strangers if "derived" in _verdicts(answers, a, b)]
    unsaid = [a for a, b in strangers if "insufficient" in _verdicts(answers, a, b)]
    cousins = [pair for pair in bench.cousin_pairs() if "derived" in _verdicts(answers, *pair)]
    bins, gap, brier = measures.reliability(test, answers.closed)
    opened = list(answers.open_set.values())
    open_false = [said.id for said in opened if said.verdict == "derived"]
    made = [entry for entry in test if entry.weight_parents]
    relation = sum(measures.relation_right(e, answers.closed[e.id]) for e in test)
    found = sum(answers.closed[entry.id].verdict == "derived" for entry in made)
    times = [answers.closed[entry.id].seconds for entry in test]
    merges = [entry for entry in test if entry.relation == "merge"]
    both = sum(set(answers.closed[e.id].parents) == set(e.weight_parents) for e in merges)
    return Method(
        name="qwenstack lineage",
        cites="this repository",
        parent=right,
        by_kind=by_kind,
        roots=_roots(bench, test, answers.closed),
        parent_among_all=anyone,
        relation=measures.share(relation, len(test)),
        confusion=measures.confusion(test, answers.closed),
        merge_both=measures.share(both, len(merges)),
        false_positives=measures.errors(false, len(strangers), len(unsaid)),
        open_set=measures.errors(open_false, len(opened)),
        kin_found=measures.share(found, len(made)),
        cousins_found=measures.share(len(cousins), len(bench.cousin_pairs())),
        reliability=bins,
        calibration_error=gap,
        brier=brier,
        seconds_per_model=float(np.median(times)),
        seconds_per_pair=float(np.mean([s.seconds for s in answers.pairs.values()] or [0.0])),
        wrong=_wrong(test, answers.closed),
    )


def _verdicts(answers: Answers, first: str, second: str) -> set[str]:
    """What was said of a pair, asked in both directions."""
    keys = (f"{first}|{second}", f"{second}|{first}")
    return {answers.pairs[key].verdict for key in keys if key in answers.pairs}


def _wrong(entries: list[Entry], said: dict[str, Prediction]) -> list[str]:
    return [
        f"{entry.id}: said {said[entry.id].parent} ({said[entry.id].relation}, "
        f"{said[entry.id].confidence:.2f}), is {' + '.join(entry.weight_parents) or 'nobody’s'}"
        for entry in entries
        if not measures.parent_right(entry, said[entry.id])
    ]


def ask_by_command(
    bench: Bench, command: list[str], count: int
) -> tuple[measures.Share, list[str]]:
    """A sample of test models through the command line, against their own family's folder."""
    from benchmarks.lineage.product import ask_command

    made = [e for e in bench.split("test") if e.weight_parents and e.format != "peft"]
    sample = made[:: max(1, len(made) // count)][:count]
    hits, notes = 0, []
    for entry in bench.track(sample, "command line", len(sample)):
        folder = bench.zoo / "models" / entry.family
        said, trouble = ask_command(command, bench.zoo / entry.path, folder)
        parent = f"{entry.family}/{said.parent}" if said.parent else None
        # A copy of the parent in another form lies in the same folder: the same weights.
        copied = bench.tree.by_id.get(parent or "")
        copy_of = (
            set(copied.weight_parents) if copied and copied.relation == "same_weights" else set()
        )
        hit = parent in entry.weight_parents or bool(copy_of & set(entry.weight_parents))
        hits += hit
        if not hit:
            notes.append(trouble or f"{entry.id}: said {parent}, is {entry.weight_parents}")
    return measures.share(hits, len(sample)), notes


def _real(file: Path | None) -> list[RealAnswer]:
    if file is None:
        return []
    return msgspec.json.decode(file.read_bytes(), type=list[RealAnswer])


def main() -> None:
    """Run what is asked for and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", type=Path, help="the zoo's folder")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="some of " + ", ".join(METHODS)
    )
    parser.add_argument("--again", default="", help="methods whose kept answers are thrown away")
    parser.add_argument("--without", default="", help="families to leave out, joined by commas")
    parser.add_argument("--real", type=Path, help="`real.json` of benchmarks.lineage.real")
    parser.add_argument("--parts", default=",".join(PARTS), help="what the product is asked anew")
    parser.add_argument("--docs", type=Path, help="the Markdown file to write the report into")
    parser.add_argument("--command", default="", help="the `qwenstack` program, to ask a sample")
    parser.add_argument("--command-sample", type=int, default=24)
    options = parser.parse_args()
    methods = [name for name in options.methods.split(",") if name]
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: {unknown[0]} is none of {', '.join(METHODS)}")
    parts = [part for part in options.parts.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: {unknown[0]} is none of {', '.join(PARTS)}")
    columns = (TextColumn("{task.description}"), BarColumn(),
               TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bench = Bench(options.zoo.resolve(), progress, options.without.split(","))
        if not bench.split("test"):
            parser.error(f"{options.zoo}: no test models yet; build with benchmarks.lineage.zoo")
        for name in options.again.split(","):
            for file in bench.folder.glob(f"{name}*.json") if name else ():
                file.unlink()
        judged = []
        for name in methods:
            if name == "product":
                judged.append(judge_product(bench, run_product(bench, parts)))
            elif name in BASELINES:
                method = baseline(bench, name)
                scores = run_baseline(bench, name)
                judged.append(judge_scores(bench, scores, (method.name, method.cites)))
            elif (bench.folder / "cisco.json").exists():
                for kind, (title, cites, cut) in CISCO.items():
                    data = (bench.folder / f"{kind}.json").read_bytes()
                    kit = msgspec.json.decode(data, type=Scores)
                    judged.append(judge_scores(bench, kit, (title, cites), cut))
        sample = measures.share(0, 0)
        notes: list[str] = []
        if options.command:
            command = options.command.split()
            sample, notes = ask_by_command(bench, command, options.command_sample)
    results = Results(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=f"{platform.system()}, Python {platform.python_version()}, one thread",
        command="python -m benchmarks.lineage.run ZOO"
        + f" --without {options.without}" * bool(options.without)
        + " --real WORK/real.json" * bool(options.real),
        zoo=report.describe(bench.tree),
        methods=judged,
        command_sample=sample,
        command_notes=notes,
        real=_real(options.real),
    )
    (bench.folder / "results.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(results), indent=2)
    )
    report.publish(results, options.docs)


if __name__ == "__main__":
    main()
