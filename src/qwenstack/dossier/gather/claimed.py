"""Evidence of claimed results: what a release says that it scores, each with its place.

Read are the card's `model-index` metadata, the hub's `.eval_results/*.yaml` (Hugging Face,
"Evaluation Results"), and tables of the card's text. A number counts only where the benchmark's
name is on record and it is plain which number is this model's; all else is left out, and counted.
"""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from qwenstack.core.evidence import Evidence
from qwenstack.dossier.results import CLAIMED, UNREAD, Benchmark, benchmark, folded, setting
from qwenstack.hub.cards import Value, parse

RESULTS_FOLDER: Final = ".eval_results/"
RESULTS_BYTES_MAX: Final = 256 * 1024
_CLAIMS_MAX: Final = 2000
_CELL_CHARACTERS_MAX: Final = 200
_NUMBER: Final = re.compile(r"(\d{1,5}(?:\.\d{1,6})?)\s?%?")
_BRACKETS: Final = re.compile(r"(.*?)\s*[(\[]([^()\[\]]{1,80})[)\]]")
_EMPTY: Final = frozenset({"", "-", "–", "—", "n/a", "na", "/"})
_VALUE_HEADS: Final = frozenset(
    {"score", "value", "result", "results", "performance", "accuracy", "acc", "exactmatch"}
)
_SHOT_HEADS: Final = frozenset({"shots", "nshot", "nshots", "fewshot"})
_METRIC_HEADS: Final = frozenset({"metric", "metrics"})


class _Reader:
    """Collects claims with their place, and counts what was left out, by reason."""

    def __init__(self, subject: str, source: str, digest: str, observed_at: str) -> None:
        self.found: list[Evidence] = []
        self.unread: collections.Counter[str] = collections.Counter()
        self._subject, self._source = subject, source
        self._digest, self._observed_at = digest, observed_at

    def claim(
        self, named: Benchmark, said: Sequence[str], value: float, place: str, note: str = ""
    ) -> None:
        if len(self.found) >= _CLAIMS_MAX:
            self.unread[f"over {_CLAIMS_MAX} results"] += 1
            return
        tail = ".".join((named.id, *dict.fromkeys(said)))
        self.found.append(
            Evidence(
                claim=CLAIMED + tail,
                value=value,
                source=f"{self._source}, {place}",
                method="declared",
                status="reported",
                note=note[:300],
                subject=self._subject,
                digest=self._digest,
                observed_at=self._observed_at,
            )
        )

    def evidence(self) -> list[Evidence]:
        """All claims, and one statement of what was left out."""
        if not self.unread:
            return self.found
        return [
            *self.found,
            Evidence(
                claim=UNREAD,
                value=self.unread.total(),
                source=self._source,
                method="computed",
                note="; ".join(f"{count}: {why}" for why, count in sorted(self.unread.items())),
                subject=self._subject,
                digest=self._digest,
                observed_at=self._observed_at,
            ),
        ]


def from_card_results(subject: str, text: str, *, source: str, observed_at: str) -> list[Evidence]:
    """Results that a card (README.md) claims, in its metadata and in its tables."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    reader = _Reader(subject, source, digest, observed_at)
    card, _ = parse(text)
    _model_index(reader, card.metadata.get("model-index"))
    _tables(reader, card.body, {folded(subject.rstrip("/").rpartition("/")[2])})
    return reader.evidence()


def from_results_file(
    subject: str, path: str, text: str, *, source: str, observed_at: str
) -> list[Evidence]:
    """Results in one `.eval_results/*.yaml`; dataset and value are what the format requires."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    reader = _Reader(subject, f"{path} of {source}", digest, observed_at)
    # The format is a list; as a card's metadata it is read with that reader's bounds.
    card, findings = parse(f"---\nentries:\n{text}\n---\n")
    entries = card.metadata.get("entries")
    if not isinstance(entries, list) or any(each.level == "error" for each in findings):
        reader.unread["a file that is no list of results"] += 1
        return reader.evidence()
    for number, entry in enumerate(entries, 1):
        held = _mapping(entry)
        dataset = _mapping(held.get("dataset"))
        task, name = (str(dataset.get(key) or "") for key in ("task_id", "id"))
        named = benchmark(task) or benchmark(name.rpartition("/")[2])
        value = _number(held.get("value"))
        if named is None or value is None:
            reader.unread[_why(named)] += 1
            continue
        notes = str(held.get("notes") or "")
        said = [each for each in (setting(part) for part in notes.split(",")) if each]
        what = f"{name} {task}; {notes}" if notes else f"{name} {task}"
        reader.claim(named, said, value, f"entry {number}", what)
    return reader.evidence()


def _model_index(reader: _Reader, index: Value) -> None:
    """Hugging Face, "Model Cards": model-index[].results[].{task, dataset, metrics[]}."""
    for m, model in enumerate(index if isinstance(index, list) else ()):
        results = _mapping(model).get("results")
        for r, result in enumerate(results if isinstance(results, list) else ()):
            held = _mapping(result)
            dataset = _mapping(held.get("dataset"))
            named = next(
                filter(None, (benchmark(str(dataset.get(key) or "")) for key in ("name", "type"))),
                None,
            )
            shots = _mapping(dataset.get("args")).get("num_few_shot")
            metrics = held.get("metrics")
            for k, metric in enumerate(metrics if isinstance(metrics, list) else ()):
                about = _mapping(metric)
                value = _number(about.get("value"))
                if named is None or value is None:
                    reader.unread[_why(named)] += 1
                    continue
                said = [setting(str(about.get("type") or "")) or ""]
                said.append(f"{shots}-shot" if isinstance(shots, int) else "")
                split = dataset.get("split")
                note = f"split {split}" if split else ""
                place = f"model-index[{m}].results[{r}].metrics[{k}]"
                reader.claim(named, [each for each in said if each], value, place, note)


def _why(named: Benchmark | None) -> str:
    return "of a benchmark that is not on record" if named is None else "no plain number"


def _mapping(value: Value) -> Mapping[str, Value]:
    return value if isinstance(value, dict) else {}


def _number(value: Value) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    match = _NUMBER.fullmatch(str(value).strip()) if isinstance(value, str) else None
    return float(match[1]) if match else None


Table = list[list[str]]
Named = tuple[Benchmark, tuple[str, ...]]
"""A benchmark, and what its cell says of the method."""


def _tables(reader: _Reader, body: str, own: set[str]) -> None:
    """Tables under their headings. The card's first heading names the model, too."""
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    heading, number = "", 0
    rows: Table = []
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = _plain(tokens[position + 1])
            if token.tag == "h1" and len(own) == 1:
                own = {*own, folded(heading)} - {""}
        elif token.type == "table_open":
            rows, number = [], number + 1
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(_plain(tokens[position + 1]))
        elif token.type == "table_close":
            _table(reader, rows, own, f"table {number} under “{heading[:80]}”")
        elif token.type == "html_block" and "<table" in token.content.casefold():
            reader.unread["a table in HTML"] += 1


def _plain(token: Token) -> str:
    """The text of a heading or a cell, without marks."""
    texts = (each.content for each in token.children or () if each.type in ("text", "code_inline"))
    return " ".join("".join(texts).split())[:_CELL_CHARACTERS_MAX]


def _table(reader: _Reader, rows: Table, own: set[str], place: str) -> None:
    if len(rows) < 2:
        return
    head, *body = rows
    across = [_named(cell) for cell in head]
    down = [max((_named(row[c]) is not None) for row in body) for c in range(len(head))]
    if any(down):
        _rows_of_benchmarks(reader, head, body, down.index(True), own, place)
    elif sum(each is not None for each in across) >= 2:
        _columns_of_benchmarks(reader, across, body, own, place)


def _rows_of_benchmarks(
    reader: _Reader, head: list[str], body: Table, names: int, own: set[str], place: str
) -> None:
    heads = [folded(cell) for cell in head]
    column = _own_column(heads, own)
    values = sum(1 for row in body if _named(row[names]) is not None)
    if column is None:
        reader.unread["in a table where this model's column is not plain"] += values
        return
    shots = _only(heads, _SHOT_HEADS)
    metrics = _only(heads, _METRIC_HEADS)
    for number, row in enumerate(body, 1):
        cell = row[column]
        if cell.casefold() in _EMPTY:
            continue
        where = f"{place}, row {number}"
        extra = []
        if metrics is not None and row[metrics].casefold() not in _EMPTY:
            extra.append(setting(row[metrics]))
        if shots is not None and row[shots].casefold() not in _EMPTY:
            extra.append(setting(f"{row[shots]}-shot") or setting(row[shots]))
        if heads[column] in _VALUE_HEADS and (metric := setting(head[column])):
            extra.append(metric)
        _cell(reader, row[names], cell, extra, where, head[column])


def _columns_of_benchmarks(
    reader: _Reader, across: Sequence[Named | None], body: Table, own: set[str], place: str
) -> None:
    mine = [row for row in body if any(folded(cell) in own for cell in row)]
    if len(mine) != 1:
        reader.unread["in a table where this model's row is not plain"] += sum(
            each is not None for each in across
        )
        return
    for named, cell in zip(across, mine[0], strict=True):
        if named is not None and cell.casefold() not in _EMPTY:
            _settle(reader, *named, cell, place, "")


def _cell(
    reader: _Reader, name: str, cell: str, extra: Sequence[str | None], place: str, head: str
) -> None:
    named = _named(name)
    if named is None:
        reader.unread["of a benchmark that is not on record"] += 1
    elif None in extra:
        reader.unread["under a setting that is not understood"] += 1
    else:
        bench, said = named
        said = (*said, *(each for each in extra if each))
        _settle(reader, bench, said, cell, place, f"column “{head[:80]}”")


def _settle(
    reader: _Reader, bench: Benchmark, said: Sequence[str], cell: str, place: str, note: str
) -> None:
    """Take the cell's number; brackets behind it must say the method and nothing else."""
    match = _BRACKETS.fullmatch(cell)
    settings = [setting(part) for part in match[2].split(",")] if match else []
    value = _number(match[1] if match else cell)
    if value is None or None in settings:
        reader.unread["no plain number"] += 1
    else:
        reader.claim(bench, [*said, *(each for each in settings if each)], value, place, note)


def _named(cell: str) -> Named | None:
    """The benchmark that a cell names, with the settings in brackets; None where one is unclear."""
    if whole := benchmark(cell):
        return whole, ()
    if match := _BRACKETS.fullmatch(cell):
        named, settings = benchmark(match[1]), [setting(each) for each in match[2].split(",")]
        if named is not None and None not in settings:
            return named, tuple(each for each in settings if each)
    return None


def _own_column(heads: Sequence[str], own: set[str]) -> int | None:
    mine = [number for number, head in enumerate(heads) if head in own]
    if len(mine) == 1:
        return mine[0]
    return None if mine else _only(heads, _VALUE_HEADS)


def _only(heads: Sequence[str], wanted: frozenset[str]) -> int | None:
    found = [number for number, head in enumerate(heads) if head in wanted]
    return found[0] if len(found) == 1 else None


def results_files(paths: Sequence[str]) -> Iterator[str]:
    """Those of `paths` that are result files of the hub's format."""
    return (
        path
        for path in paths
        if path.startswith(RESULTS_FOLDER) and path.endswith((".yaml", ".yml"))
    )
