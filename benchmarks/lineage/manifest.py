"""What the bench knows about each of its models: the truth that a method is held against."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

Relation = Literal[
    "base",
    "same_weights",
    "quantised",
    "fine_tune",
    "continued_pretraining",
    "adapter",
    "merge",
    "pruned",
    "depth_changed",
    "expanded_vocabulary",
    "distilled",
]
Split = Literal["calibration", "test"]
Format = Literal["safetensors", "gguf", "peft", "gptq", "awq"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the zoo.

    `parents` are whom it was made from; `weight_parents` those whose weights flowed into it (a
    student distilled from fresh weights has a parent and no weight parent). `accept` are the
    relations that are not wrong to answer, the first is the exact one. `drift` is the relative
    L2 distance to the first parent over tensors of equal name and shape. `function_error` is
    the largest difference of the logits to the source, relative to their spread, where an
    attack claims to preserve the function. Times are CPU seconds.
    """

    id: str
    path: str
    family: str
    architecture: str
    split: Split
    relation: Relation
    accept: list[Relation]
    parents: list[str]
    weight_parents: list[str]
    root: str
    depth: int
    attacks: list[str]
    format: Format
    dtype: str
    seed: int
    init_seed: int
    data: str
    steps: int
    loss_first: float | None
    loss_last: float | None
    params: int
    drift: float | None
    function_error: float | None
    cpu_s: float
    sha256: str
    note: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All models made so far, and the text that they were trained on."""

    corpus_sha256: str
    entries: list[Entry]

    def by_id(self) -> dict[str, Entry]:
        """The entries by their id."""
        return {entry.id: entry for entry in self.entries}


def load(zoo: Path) -> Manifest:
    """The manifest of the zoo in folder `zoo`; empty when there is none yet."""
    file = zoo / "manifest.json"
    if not file.exists():
        return Manifest(corpus_sha256="", entries=[])
    return msgspec.json.decode(file.read_bytes(), type=Manifest)


def add(zoo: Path, entry: Entry, corpus_sha256: str) -> None:
    """Put `entry` into the manifest; several processes may build different families at once."""
    with _locked(zoo):
        kept = [known for known in load(zoo).entries if known.id != entry.id]
        manifest = Manifest(corpus_sha256=corpus_sha256, entries=[*kept, entry])
        fresh = zoo / "manifest.json.new"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        fresh.replace(zoo / "manifest.json")


@contextmanager
def _locked(zoo: Path) -> Iterator[None]:
    with (zoo / "manifest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def folder_sha256(folder: Path) -> str:
    """One digest over names, sizes and bytes of all files in `folder`."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0{data}\n".encode())
    return digest.hexdigest()
