"""QwenStack's own lineage code under test, through its Python API and its command line."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.lineage.manifest import Entry, Relation
from benchmarks.lineage.measures import Prediction
from qwenstack.hub.lineage.library import Library
from qwenstack.hub.lineage.model import Model, open_path
from qwenstack.hub.lineage.trace import Answer, trace

# The product's words for the manifest's relations.
_WORDS: dict[str, Relation | str] = {
    "same weights": "same_weights",
    "quantization": "quantised",
    "fine-tune": "fine_tune",
    "continued pre-training": "continued_pretraining",
    "adapter": "adapter",
    "merge": "merge",
    "pruned": "pruned",
    "depth-changed": "depth_changed",
    "expanded vocabulary": "expanded_vocabulary",
    "distilled": "distilled",
    "unrelated": "unrelated",
}


class Product:
    """Answers over the zoo; each candidate is fingerprinted once, as in the hub's index.

    The product sees no name that means anything: models are called by a hash, and candidates
    come in the order of those, so that neither a name nor a tie can favour a parent.
    """

    def __init__(self, zoo: Path, entries: Iterable[Entry]) -> None:
        self._zoo = zoo
        aliases = {
            entry.id: hashlib.sha256(entry.id.encode()).hexdigest()[:12] for entry in entries
        }
        self._paths = {aliases[entry.id]: zoo / entry.path for entry in entries}
        self._aliases = aliases
        self._names = {alias: name for name, alias in aliases.items()}
        self._library = Library([], self._open)

    def _open(self, name: str) -> Model:
        return open_path(self._paths[name], name=name)

    def ask(self, entry: Entry, candidates: list[str]) -> Prediction:
        """Trace one model against `candidates`."""
        self._library.names = sorted(self._aliases[name] for name in candidates)
        start = time.perf_counter()
        answer = trace(self._open(self._aliases[entry.id]), self._library)
        said = prediction(entry.id, answer, time.perf_counter() - start)
        return msgspec.structs.replace(
            said,
            parent=said.parent and self._names[said.parent],
            parents=[self._names[alias] for alias in said.parents],
        )

    @property
    def unreadable(self) -> dict[str, str]:
        """Candidates that could not be read, with the reason."""
        return self._library.unreadable


def prediction(name: str, answer: Answer, seconds: float) -> Prediction:
    """An answer of the product in the bench's terms."""
    return Prediction(
        id=name,
        parent=answer.parent,
        relation=_WORDS[answer.relation],
        confidence=answer.confidence,
        verdict=answer.verdict,
        seconds=seconds,
        parents=list(answer.parents),
    )


class _Printed(msgspec.Struct):
    parent: str | None
    relation: str
    confidence: float
    verdict: str


def ask_command(command: list[str], model: Path, against: Path) -> tuple[Prediction, str]:
    """`qwenstack lineage MODEL --against FOLDER --json`; the answer, or what went wrong."""
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "lineage", str(model), "--against", str(against), "--json"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    failed = Prediction(str(model), None, "", 0.0, "failed", seconds)
    if done.returncode != 0:
        return failed, (done.stderr or done.stdout).strip()[-400:]
    try:
        said = msgspec.json.decode(done.stdout, type=_Printed)
    except msgspec.DecodeError as error:
        return failed, f"no JSON answer: {error}"
    relation = str(_WORDS.get(said.relation, said.relation))
    return Prediction(str(model), said.parent, relation, said.confidence, said.verdict, seconds), ""
