"""From a folder of data files to checked records."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Any

from qwenstack.catalog.check import check
from qwenstack.catalog.model import Records
from qwenstack.catalog.read import CatalogueError, Placed, Problem, read_folder

_PLURALS = {
    "source": "sources",
    "organisation": "organisations",
    "generation": "generations",
    "architecture": "architectures",
    "release": "releases",
    "hosted": "hosted",
    "terms": "terms",
    "host": "hosts",
    "derivative": "derivatives",
    "negative": "negatives",
    "lookalike": "lookalikes",
    "ollama": "ollama",
    "lag": "lags",
}
_PROBLEMS_SHOWN_MAX = 20


def compile_folder(folder: Path, today: datetime.date | None = None) -> Records:
    """Read and check the files in `folder`; raises CatalogueError that names every problem.

    `today` is the day after which no date may lie (default: today, UTC).
    """
    placed, problems = read_folder(folder)
    if not problems:
        problems = check(placed, today or datetime.datetime.now(datetime.UTC).date())
    if problems:
        raise CatalogueError(_describe(problems))
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.toml")):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return Records(digest=digest.hexdigest(), **_grouped(placed))


def _grouped(placed: list[Placed]) -> dict[str, Any]:
    return {
        plural: tuple(each.record for each in placed if each.kind == kind)
        for kind, plural in _PLURALS.items()
    }


def _describe(problems: list[Problem]) -> str:
    shown = [str(each) for each in problems[:_PROBLEMS_SHOWN_MAX]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more problems")
    return "\n".join(shown)
