"""Evidence from measured results: the file that lm-eval writes, read as it is."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.core.evidence import Evidence, instant

_BYTES_MAX: Final = 64 * 1024 * 1024


class EvaluationError(Exception):
    """A results file that cannot be read; the message says which and why."""


class _Results(msgspec.Struct, frozen=True):
    results: dict[str, dict[str, float | str | None]]
    shots: dict[str, int | None] = msgspec.field(name="n-shot", default_factory=dict)
    date: float | None = None
    git_hash: str | None = None
    lm_eval_version: str | None = None


def from_lm_eval(path: Path, subject: str) -> list[Evidence]:
    """Each task's metrics, `task.metric.5-shot`; standard errors stand in the note.

    `results["task"]["metric,filter"]` is lm-eval's own layout (lm_eval 0.4, docs/interface.md).
    """
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise EvaluationError(f"{path} is larger than {_BYTES_MAX} bytes")
        data = path.read_bytes()
        run = msgspec.json.decode(data, type=_Results)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise EvaluationError(f"{path} is no results file of lm-eval: {error}") from error
    seconds = path.stat().st_mtime if run.date is None else run.date
    try:
        at = instant(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    except (ValueError, OverflowError, OSError) as error:
        raise EvaluationError(f"{path}: date {seconds} is none") from error
    version = run.lm_eval_version or run.git_hash or "unknown version"
    found = []
    for task, metrics in sorted(run.results.items()):
        shown = run.shots.get(task)
        shots = "" if shown is None else f".{shown}-shot"
        for name, value in sorted(metrics.items()):
            metric, _, filtered = name.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            deviation = metrics.get(f"{metric}_stderr,{filtered}")
            spread = ""
            if isinstance(deviation, float):
                spread = f"standard error {deviation:.4g}; "
            found.append(
                Evidence(
                    subject=subject,
                    claim=f"evaluation.measured.{task}.{metric}{shots}",
                    value=round(value, 6),
                    source=f"{path.name}, lm-eval {version}",
                    method="measured",
                    observed_at=at,
                    digest=hashlib.sha256(data).hexdigest(),
                    note=f"{spread}filter {filtered or 'none'}",
                )
            )
    return found
