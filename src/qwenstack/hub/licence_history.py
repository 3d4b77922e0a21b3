"""How a repo's licence changed from commit to commit: what was declared, and its text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import BinaryIO, Final

import msgspec
from sqlalchemy import Connection

from qwenstack.hub.facts import LicenceFacts, read_licence
from qwenstack.hub.registry.commits import history
from qwenstack.hub.registry.manifests import Entry, read_manifest
from qwenstack.hub.registry.revisions import Commit, read_commit

COMMITS_MAX: Final = 1_000
"""How far back a history is read."""

_LINES_MAX: Final = 4_000
_DIFF_LINES_MAX: Final = 2_000
_WEIGHTS: Final = (".safetensors", ".gguf", ".bin")


class LicenceRevision(msgspec.Struct, frozen=True):
    """The licence as it stood in one commit."""

    commit: str
    at_us: int
    author: str
    licence: LicenceFacts


class LicenceChange(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that changed the licence. `diff` is unified, empty where the text stayed the same.

    `before` is None for the first commit that has any licence, `words` say what changed in a line.
    """

    commit: str
    at_us: int
    author: str
    words: str
    before: LicenceFacts | None
    after: LicenceFacts
    diff: str


def read_revisions(
    connection: Connection, tip: Commit, open_file: Callable[[Entry], BinaryIO]
) -> list[LicenceRevision]:
    """The licence in `tip` and the commits before it, oldest first; at most COMMITS_MAX of them.

    Blocking: reads the card and the licence file of each distinct tree. Raises OSError.
    """
    known: dict[tuple[Entry, ...], LicenceFacts] = {}
    revisions: list[LicenceRevision] = []
    for oid in islice(history(connection, tip.repo_id, tip.oid), COMMITS_MAX):
        commit = read_commit(connection, tip.repo_id, oid)
        if commit is None:
            continue
        # A licence is in small files of the root; the weights change far more often.
        manifest = read_manifest(connection, commit.manifest)
        files = tuple(e for e in manifest if "/" not in e.path and not e.path.endswith(_WEIGHTS))
        licence = known.get(files)
        if licence is None:
            licence = known[files] = read_licence(files, open_file)
        revisions.append(LicenceRevision(commit.oid, commit.at_us, commit.author, licence))
    revisions.reverse()
    return revisions


def licence_history(revisions: Iterable[LicenceRevision]) -> list[LicenceChange]:
    """The changes among `revisions`, which are given oldest first; the first one sets the start."""
    changes: list[LicenceChange] = []
    before: LicenceFacts | None = None
    for revision in revisions:
        after = revision.licence
        if _same(before, after):
            continue
        changes.append(
            LicenceChange(
                commit=revision.commit,
                at_us=revision.at_us,
                author=revision.author,
                words=_words(before, after),
                before=before,
                after=after,
                diff=_difference(before, after),
            )
        )
        before = after
    return changes


def _same(before: LicenceFacts | None, after: LicenceFacts) -> bool:
    return (before or LicenceFacts()) == after


def _words(before: LicenceFacts | None, after: LicenceFacts) -> str:
    old = before or LicenceFacts()
    parts = []
    for what, was, is_ in (
        ("declared", _declared(old), _declared(after)),
        ("the file", old.file_id or old.file, after.file_id or after.file),
    ):
        if was != is_:
            parts.append(f"{what}: {was or 'none'} → {is_ or 'none'}")
    if not parts:
        parts.append("the text changed" if old.sha256 != after.sha256 else "the link changed")
    return "; ".join(parts)


def _declared(licence: LicenceFacts) -> str | None:
    if licence.declared == "other" and licence.declared_name is not None:
        return licence.declared_name
    return licence.declared


def _difference(before: LicenceFacts | None, after: LicenceFacts) -> str:
    old, new = (before.text if before else None) or "", after.text or ""
    if old == new:
        return ""
    old_lines, new_lines = old.splitlines(), new.splitlines()
    if max(len(old_lines), len(new_lines)) > _LINES_MAX:
        return f"the texts have over {_LINES_MAX} lines: compare the files"
    old_name = (before.file if before else None) or "/dev/null"
    lines = list(
        difflib.unified_diff(old_lines, new_lines, old_name, after.file or "/dev/null", lineterm="")
    )
    return "\n".join(lines[:_DIFF_LINES_MAX])
