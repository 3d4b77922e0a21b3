"""What changed between two snapshots. Pure, but for the texts that it is given a way to read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from qwenstack.catalog.watch.snapshot import FileState, RepoState, Snapshot

_DIFF_LINES_MAX: Final = 400
_WEIGHTS: Final = re.compile(r".*\.(safetensors|gguf|bin|pt|pth|onnx)", re.IGNORECASE)

Kind = Literal[
    "new-repo",
    "withdrawn",
    "licence-changed",
    "licence-text-changed",
    "weights-changed",
    "file-removed",
    "base-model-changed",
    "gate-changed",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one repo. `diff` holds the lines of a text that changed."""

    kind: Kind
    repo: str
    at: str
    before: str = ""
    after: str = ""
    path: str = ""
    diff: str = ""


def changes(old: Snapshot, new: Snapshot, text: Callable[[str], str]) -> list[Event]:
    """From `old` to `new`, repo by repo. What either could not read is no change.

    `text` gives a licence text by its SHA-256, empty where it is lost.
    """
    before = {repo.id: repo for repo in old.repos}
    after = {repo.id: repo for repo in new.repos}
    unknown = {*old.partial, *new.partial}
    events: list[Event] = []
    for name in sorted({*before, *after} - unknown):
        was, now = before.get(name), after.get(name)
        if was is None and now is not None:
            licence = _licence(now)
            events.append(Event(kind="new-repo", repo=name, at=new.taken_at, after=licence))
        elif now is None:
            events.append(Event(kind="withdrawn", repo=name, at=new.taken_at))
        elif was is not None:
            events += _within(was, now, new.taken_at, text)
    return events


def _within(was: RepoState, now: RepoState, at: str, text: Callable[[str], str]) -> list[Event]:
    def event(kind: Kind, **fields: str) -> Event:
        return Event(kind=kind, repo=now.id, at=at, **fields)

    events: list[Event] = []
    if _licence(was) != _licence(now):
        events.append(event("licence-changed", before=_licence(was), after=_licence(now)))
    for path in sorted({*was.texts, *now.texts}):
        old, new = was.texts.get(path, ""), now.texts.get(path, "")
        if old != new:
            events.append(
                event(
                    "licence-text-changed",
                    path=path,
                    before=old,
                    after=new,
                    diff=_diff(path, text(old) if old else "", text(new) if new else ""),
                )
            )
    if was.base_models != now.base_models:
        events.append(
            event(
                "base-model-changed",
                before=", ".join(was.base_models),
                after=", ".join(now.base_models),
            )
        )
    if was.gated != now.gated:
        events.append(event("gate-changed", before=_gate(was.gated), after=_gate(now.gated)))
    return events + _files(was, now, event)


def _files(was: RepoState, now: RepoState, event: Callable[..., Event]) -> list[Event]:
    before = {file.path: file for file in was.files}
    after = {file.path: file for file in now.files}
    events = []
    for path in sorted(before):
        old, new = before[path], after.get(path)
        if new is None:
            events.append(event("file-removed", path=path, before=_shown(old)))
        elif old.oid != new.oid and _WEIGHTS.fullmatch(path):
            events.append(
                event("weights-changed", path=path, before=_shown(old), after=_shown(new))
            )
    return events


def _licence(repo: RepoState) -> str:
    words = [each for each in (repo.licence, repo.licence_name) if each]
    return " / ".join(words) or "none declared"


def _gate(gated: bool) -> str:
    return "gated" if gated else "open"


def _shown(file: FileState) -> str:
    return f"{file.oid or 'no digest'} ({file.size} bytes)"


def _diff(path: str, old: str, new: str) -> str:
    lines = list(
        difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{path} before", f"{path} after", lineterm="", n=1
        )
    )
    if len(lines) > _DIFF_LINES_MAX:
        lines = [*lines[:_DIFF_LINES_MAX], f"… {len(lines) - _DIFF_LINES_MAX} more lines"]
    return "\n".join(lines)
