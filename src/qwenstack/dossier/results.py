"""Results of benchmarks: what a name means, and whether two results can be held side by side.

A claim about a result is named `evaluation.claimed.ID` or `evaluation.measured.TASK`, with what was
said of the method behind it: the metric, `5-shot`, `cot`, `tools`.
"""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources
from typing import Final, Literal

import msgspec

from qwenstack.core.evidence import Evidence

CLAIMED: Final = "evaluation.claimed."
MEASURED: Final = "evaluation.measured."
UNREAD: Final = "card.results-unread"
"""How many claimed results were left out because they could not be read for certain."""

_SHOTS: Final = re.compile(r"(\d{1,3})-shot")
_WAYS: Final = frozenset({"cot", "no-cot", "tools", "no-tools"})
_METRICS: Final = {
    "accuracy": "acc",
    "acc": "acc",
    "acc_norm": "acc_norm",
    "exact_match": "exact_match",
    "exactmatch": "exact_match",
    "em": "exact_match",
    "f1": "f1",
    "pass@1": "pass@1",
    "pass_at_1": "pass@1",
}


class Benchmark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A benchmark: `names` as cards write it, `tasks` of lm-eval that run it."""

    id: str
    names: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    scale: Literal["share", "other"] = "share"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One result as its evidence tells it. `benchmark` is None where the name is not on record."""

    evidence: Evidence
    name: str
    benchmark: Benchmark | None
    metric: str = ""
    shots: int | None = None
    ways: frozenset[str] = frozenset()

    @property
    def method(self) -> str:
        """How it was got, as far as it is said: `acc, 5-shot`."""
        shots = () if self.shots is None else (f"{self.shots}-shot",)
        return ", ".join((*((self.metric,) if self.metric else ()), *shots, *sorted(self.ways)))


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    benchmarks: tuple[Benchmark, ...]


@functools.cache
def _by_name() -> dict[str, Benchmark]:
    text = (resources.files("qwenstack.dossier") / "benchmarks.toml").read_text(encoding="utf-8")
    table = msgspec.convert(tomllib.loads(text), _Table)
    found: dict[str, Benchmark] = {}
    for each in table.benchmarks:
        for name in (each.id, *each.names, *each.tasks):
            if found.setdefault(folded(name), each) is not each:
                raise ValueError(f"benchmarks.toml: {name!r} names two benchmarks")
    return found


def folded(name: str) -> str:
    """A name without case, spaces and punctuation; a plus sign names another benchmark."""
    return re.sub(r"[\W_]+", "", name.replace("+", "plus")).casefold()


def benchmark(name: str) -> Benchmark | None:
    """The benchmark of this name or lm-eval task, if it is on record."""
    return _by_name().get(folded(name))


def setting(text: str) -> str | None:
    """`text` as part of a claim's name where it says something of the method, else None.

    >>> setting("5 shot"), setting("CoT"), setting("Accuracy"), setting("ours")
    ('5-shot', 'cot', 'acc', None)
    """
    plain = text.strip().casefold()
    if shots := re.fullmatch(r"(\d{1,3})[ -]?shots?", plain):
        return f"{int(shots[1])}-shot"
    if plain in ("zero-shot", "zero shot"):
        return "0-shot"
    plain = {"with tools": "tools", "no tools": "no-tools", "without tools": "no-tools"}.get(
        plain, plain
    )
    return plain if plain in _WAYS else _METRICS.get(plain.replace(" ", "_"))


def result(evidence: Evidence) -> Result:
    """What evidence of a claimed or measured result tells."""
    tail = evidence.claim.removeprefix(CLAIMED).removeprefix(MEASURED)
    name, *said = tail.split(".")
    metric, shots, ways = "", None, set()
    for part in said:
        if match := _SHOTS.fullmatch(part):
            shots = int(match[1])
        elif part in _WAYS:
            ways.add(part)
        else:
            metric = _METRICS.get(part, part)
    if evidence.claim.startswith(MEASURED) and "_cot" in name:
        ways.add("cot")
    return Result(
        evidence=evidence,
        name=name,
        benchmark=benchmark(name),
        metric=metric,
        shots=shots,
        ways=frozenset(ways),
    )


def beside(claimed: Result, measured: Result) -> str:
    """How `measured` stands to `claimed`: the difference, or "not comparable" with the reason."""
    if reason := _apart(claimed, measured):
        return f"not comparable: {reason}"
    says, found = _points(claimed), _points(measured)
    if says is None or found is None:
        return "not comparable: a value is no number"
    difference = found - says
    unit = " points" if _is_share(claimed) else ""
    read = claimed.evidence.value
    how = f" ({read} read as a share)" if _is_share(claimed) and says != read else ""
    if abs(difference) < 0.05:
        return f"measured as claimed{how}"
    way = "higher" if difference > 0 else "lower"
    return f"measured {abs(difference):.1f}{unit} {way}{how}"


def _apart(claimed: Result, measured: Result) -> str:
    if claimed.benchmark is not measured.benchmark or (
        claimed.benchmark is None and claimed.name != measured.name
    ):
        return "another benchmark"
    if claimed.shots is None or measured.shots is None:
        who = "the claim" if claimed.shots is None else "the measurement"
        return f"{who} does not say how many examples were shown"
    if claimed.shots != measured.shots:
        return f"claimed {claimed.shots}-shot, measured {measured.shots}-shot"
    if claimed.metric and measured.metric and claimed.metric != measured.metric:
        return f"claimed {claimed.metric}, measured {measured.metric}"
    if claimed.ways != measured.ways:
        says, found = (", ".join(sorted(each.ways)) or "plain" for each in (claimed, measured))
        return f"claimed {says}, measured {found}"
    return ""


def _is_share(each: Result) -> bool:
    return each.benchmark is None or each.benchmark.scale == "share"


def _points(each: Result) -> float | None:
    """The value; a share as percent. Measured shares are 0 to 1; a claim under 1 is read as one."""
    value = each.evidence.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    measured = each.evidence.claim.startswith(MEASURED)
    share = value <= 1 if measured else value < 1
    return value * 100 if _is_share(each) and share else value
