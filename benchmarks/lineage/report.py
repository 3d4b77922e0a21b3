"""The figures as Markdown, in the documentation between two markers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from benchmarks.lineage.measures import Bin, Errors, Prediction, Share
from benchmarks.lineage.truth import Tree

BEGIN = "<!-- lineage benchmark: begin (written by the driver) -->"
END = "<!-- lineage benchmark: end -->"


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one method, over the test split. None where it says nothing of the kind."""

    name: str
    cites: str
    parent: Share
    by_kind: dict[str, Share]
    roots: Share
    false_positives: Errors
    kin_found: Share
    cousins_found: Share
    seconds_per_model: float
    seconds_per_pair: float
    area: float | None = None
    threshold: float | None = None
    cannot_take: int = 0
    parent_among_all: Share | None = None
    relation: Share | None = None
    confusion: dict[str, dict[str, int]] = {}
    merge_both: Share | None = None
    open_set: Errors | None = None
    reliability: list[Bin] = []
    calibration_error: float | None = None
    brier: float | None = None
    wrong: list[str] = []


class Zoo(msgspec.Struct, frozen=True):
    """What the zoo holds."""

    models: int
    families: int
    by_split: dict[str, int]
    by_architecture: dict[str, int]
    by_relation: dict[str, int]
    attacked: int
    depths: dict[str, int]
    cpu_minutes: float
    losses: tuple[float, float]
    drift: dict[str, tuple[float, float, float]]
    attack_error: float


class RealAnswer(msgspec.Struct, frozen=True):
    """One question over real weights: what was asked, what is true, what was said."""

    name: str
    truth: list[str]
    relation: str
    said: Prediction
    right: bool


class Results(msgspec.Struct, frozen=True):
    """One run."""

    date: str
    machine: str
    command: str
    zoo: Zoo
    methods: list[Method]
    command_sample: Share
    command_notes: list[str] = []
    real: list[RealAnswer] = []


def describe(tree: Tree) -> Zoo:
    """The zoo in figures."""
    entries = tree.entries
    bases = [entry for entry in entries if entry.relation == "base"]
    drifts: dict[str, list[float]] = {}
    for entry in entries:
        if entry.drift is not None:
            drifts.setdefault(entry.relation, []).append(entry.drift)
    spread = {
        relation: (min(values), sorted(values)[len(values) // 2], max(values))
        for relation, values in sorted(drifts.items())
    }
    firsts = [entry.loss_first for entry in bases if entry.loss_first is not None]
    lasts = [entry.loss_last for entry in bases if entry.loss_last is not None]
    exact = [e.function_error for e in entries if e.function_error is not None]
    return Zoo(
        models=len(entries),
        families=len({entry.family for entry in entries}),
        by_split=dict(Counter(entry.split for entry in entries)),
        by_architecture=dict(Counter(entry.architecture for entry in entries)),
        by_relation=dict(Counter(entry.relation for entry in entries)),
        attacked=sum(bool(entry.attacks) for entry in entries),
        depths={str(k): v for k, v in sorted(Counter(entry.depth for entry in entries).items())},
        cpu_minutes=sum(entry.cpu_s for entry in entries) / 60,
        losses=(sum(firsts) / len(firsts), sum(lasts) / len(lasts)) if lasts else (0.0, 0.0),
        drift=spread,
        attack_error=max(exact, default=0.0),
    )


def publish(results: Results, document: Path | None) -> None:
    """Print the report; with `document`, replace its section there (or append it)."""
    text = render(results)
    print(text)
    if document is None:
        return
    old = document.read_text() if document.exists() else "# Lineage benchmark\n"
    section = f"{BEGIN}\n{text}\n{END}\n"
    if BEGIN in old and END in old:
        head, rest = old.split(BEGIN, 1)
        new = head + section + rest.split(END, 1)[1].lstrip("\n")
    else:
        new = f"{old.rstrip()}\n\n{section}"
    document.write_text(new)
    document.with_suffix(".json").write_bytes(
        msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"
    )


def render(results: Results) -> str:
    """The report as Markdown."""
    parts = [
        "## Results",
        f"Measured {results.date} on {results.machine}. Made by:",
        f"```\n{results.command}\n```",
        *_zoo(results.zoo),
        *_methods(results.methods),
        *_kinds(results.methods),
    ]
    for method in results.methods:
        if method.relation is not None:
            parts += _product(method, results)
    return "\n\n".join([*parts, *_real(results.real)])


def _real(answers: list[RealAnswer]) -> list[str]:
    if not answers:
        return []
    rows = [
        f"| {a.name} | {' or '.join(a.truth) or 'nobody'} | {a.relation} | {a.said.parent or '–'} "
        f"| {a.said.relation} | {a.said.confidence:.2f} | {a.said.verdict} "
        f"| {'yes' if a.right else '**no**'} | {a.said.seconds:.0f} |"
        for a in answers
    ]
    head = (
        "| model | true parent | relation | said | relation said | confidence | verdict | right "
        "| s |\n|---|---|---|---|---|---:|---|---|---:|"
    )
    return [
        "### Real weights",
        "Qwen2.5-Coder-0.5B-Instruct as released (Q4_K_M), what was made of it here, SmolLM2 as "
        "a stranger; candidates are the release, its values as bfloat16, the full fine-tune and "
        "SmolLM2. The release and its values as bfloat16 are the same weights: either is right. "
        "Seconds were taken on a machine that nine people shared.",
        "\n".join([head, *rows]),
    ]


def _zoo(zoo: Zoo) -> list[str]:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    drift = "; ".join(
        f"{relation} {low:.3f}–{high:.3f}, median {middle:.3f}"
        for relation, (low, middle, high) in zoo.drift.items()
    )
    return [
        "### The zoo",
        f"- {zoo.models} models in {zoo.families} families ({listed(zoo.by_split)}), of which "
        f"{zoo.attacked} are disguised copies.\n"
        f"- By architecture: {listed(zoo.by_architecture)}.\n"
        f"- By relation: {listed(zoo.by_relation)}.\n"
        f"- By depth below the base: {listed(zoo.depths)}.\n"
        f"- Made in {zoo.cpu_minutes:.0f} CPU minutes; the bases' mean loss fell from "
        f"{zoo.losses[0]:.2f} to {zoo.losses[1]:.2f} nats a token.\n"
        f"- Distance moved from the parent (relative L2): {drift}.\n"
        f"- Attacks that claim to keep the function change a logit by at most "
        f"{zoo.attack_error:.1e} of the logits' spread.",
    ]


def _methods(methods: list[Method]) -> list[str]:
    head = (
        "| method | parent, top 1 | right family | kin found | strangers called kin | 95 % bound "
        "| no answer (pairs) | same initial weights called kin | AUC | s a model | ms a pair |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    rows = []
    for method in methods:
        false = method.false_positives
        rows.append(
            f"| {method.name} ({method.cites}) | {_share(method.parent)} | {_share(method.roots)} "
            f"| {_share(method.kin_found)} | {false.false:,} of {false.pairs:,} "
            f"| {false.upper:.3%} | {false.no_answer:,} | {_share(method.cousins_found)} "
            f"| {_number(method.area)} | {method.seconds_per_model:.2f} "
            f"| {1000 * method.seconds_per_pair:.1f} |"
        )
    return [
        "### Methods, over the test split",
        "Parent: the first answer among all bases and intermediates older than the model (not its "
        "own descendants), and no parent for bases and for students distilled from fresh weights; "
        "no answer counts as wrong. Strangers: pairs of models of the same architecture from "
        "different families (the product is asked both ways, either error counts). The bound is "
        "the exact one-sided 95 % bound were the pairs independent, which pairs of the same two "
        "families are not.",
        "\n".join([head, *rows]),
    ]


def _kinds(methods: list[Method]) -> list[str]:
    kinds = sorted({kind for method in methods for kind in method.by_kind})
    head = "| | " + " | ".join(method.name for method in methods) + " |"
    line = "|---|" + "---:|" * len(methods)
    rows = [
        f"| {kind} | "
        + " | ".join(
            f"{m.by_kind[kind].hits}/{m.by_kind[kind].total}" if kind in m.by_kind else "–"
            for m in methods
        )
        + " |"
        for kind in kinds
    ]
    return ["### Parent found, by relation and by attack", "\n".join([head, line, *rows])]


def _product(method: Method, results: Results) -> list[str]:
    parts = ["### The product in detail: relation, confidence, open set"]
    lines = []
    if method.relation is not None:
        lines.append(f"- Relation right (or accepted by the manifest): {_share(method.relation)}.")
    if method.parent_among_all is not None:
        lines.append(
            "- Parent, top 1, with the model's own descendants among the candidates (the direction "
            f"must be told from the weights): {_share(method.parent_among_all)}."
        )
    if method.merge_both is not None:
        lines.append(f"- Merges with exactly both parents named: {_share(method.merge_both)}.")
    if method.open_set is not None:
        opened = method.open_set
        lines.append(
            f"- With the whole family taken out of the candidates, {opened.false} of "
            f"{opened.pairs} models were called derived (bound {opened.upper:.2%})."
        )
    if results.command_sample.total:
        lines.append(f"- Through the command line, a sample: {_share(results.command_sample)}.")
        lines += [f"  - {note}" for note in results.command_notes[:8]]
    parts.append("\n".join(lines))
    columns = sorted({said for row in method.confusion.values() for said in row})
    table = ["| is \\ said | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for relation, row in method.confusion.items():
        cells = " | ".join(str(row.get(column, "")) for column in columns)
        table.append(f"| {relation} | {cells} |")
    parts += ["Relations (attacked copies are `same_weights`):", "\n".join(table)]
    if method.reliability:
        rows = [
            f"| {b.low:.2f}–{b.high:.2f} | {b.count} | {b.claimed:.3f} | {b.right:.3f} |"
            for b in method.reliability
        ]
        parts += [
            f"Confidence against the share of right parents (expected calibration error "
            f"{method.calibration_error:.3f}, Brier score {method.brier:.3f}):",
            "\n".join(
                ["| confidence | answers | claimed | right |", "|---|---:|---:|---:|", *rows]
            ),
        ]
    if method.wrong:
        parts.append(f"All {len(method.wrong)} wrong parents:")
        parts.append("\n".join(f"- {line}" for line in method.wrong[:60]))
    return parts


def _share(share: Share) -> str:
    if share.total == 0:
        return "–"
    return f"{share.value:.1%} ({share.hits}/{share.total}, {share.low:.1%}–{share.high:.1%})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
