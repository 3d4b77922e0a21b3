"""What a pull request changes: its files against those where it began, as a diff and conflicts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

import msgspec
from sqlalchemy import Connection

from qwenstack.hub.registry.commits import common_ancestor
from qwenstack.hub.registry.manifests import Entry, Manifest, read_manifest
from qwenstack.hub.registry.revisions import find_commit

DIFF_FILES_MAX = 200
DIFF_FILE_BYTES_MAX = 256 * 1024
DIFF_CHARACTERS_MAX = 1024 * 1024
# Comparing takes time with the square of the lines, at worst.
DIFF_FILE_LINES_MAX = 5_000
DIFF_LINES_MAX = 20_000

ReadEntry = Callable[[Entry], bytes]


class Change(msgspec.Struct, frozen=True):
    """A file before and after; None where it is not there."""

    path: str
    before: Entry | None
    after: Entry | None


class Changes(msgspec.Struct, frozen=True):
    """What a pull request changes, and the paths that the target changed too, differently."""

    files: tuple[Change, ...]
    conflicts: tuple[str, ...]


def read_changes(connection: Connection, repo_id: str, source: str, target: str) -> Changes:
    """Compare two refs (full names or commit ids) from where they parted.

    Raises RevisionNotFound.
    """
    theirs = find_commit(connection, repo_id, source)
    ours = find_commit(connection, repo_id, target)
    base = common_ancestor(connection, repo_id, ours.oid, theirs.oid)
    origin = () if base is None else read_manifest(connection, base.manifest)
    return compare(
        origin,
        read_manifest(connection, ours.manifest),
        read_manifest(connection, theirs.manifest),
    )


def compare(base: Manifest, ours: Manifest, theirs: Manifest) -> Changes:
    """What `theirs` changed of `base`, and where `ours` changed the same file differently."""
    old = {entry.path: entry for entry in base}
    mine = {entry.path: entry for entry in ours}
    other = {entry.path: entry for entry in theirs}
    files, conflicts = [], []
    for path in sorted(old.keys() | other.keys()):
        before, after, now = old.get(path), other.get(path), mine.get(path)
        if before == after:
            continue
        files.append(Change(path, before, after))
        if now not in (before, after):
            conflicts.append(path)
    return Changes(tuple(files), tuple(conflicts))


def diff_text(changes: Changes, read: ReadEntry) -> str:
    """A diff in Git's form, bounded; of a large file it shows the pointer, as Git does."""
    pieces: list[str] = []
    total = compared = 0
    for change in changes.files[:DIFF_FILES_MAX]:
        old, new = _lines(change.before, read), _lines(change.after, read)
        compared += len(old or ()) + len(new or ())
        for line in _file_diff(change, old, new):
            pieces.append(line)
            total += len(line)
        if total > DIFF_CHARACTERS_MAX or compared > DIFF_LINES_MAX:
            pieces.append("# The rest of this diff is too long to show.\n")
            break
    if len(changes.files) > DIFF_FILES_MAX:
        pieces.append(f"# {len(changes.files) - DIFF_FILES_MAX} more files changed.\n")
    return "".join(pieces)


def _file_diff(change: Change, old: list[str] | None, new: list[str] | None) -> Iterator[str]:
    before = change.before.git_oid[:7] if change.before else "0" * 7
    after = change.after.git_oid[:7] if change.after else "0" * 7
    yield f"diff --git a/{change.path} b/{change.path}\n"
    if change.before is None:
        yield "new file mode 100644\n"
    elif change.after is None:
        yield "deleted file mode 100644\n"
    yield f"index {before}..{after}\n"
    if old is None or new is None:
        # Git's words for what it does not compare; here a long text, too.
        yield f"Binary files a/{change.path} and b/{change.path} differ\n"
        return
    for line in difflib.unified_diff(
        old,
        new,
        f"a/{change.path}" if change.before else "/dev/null",
        f"b/{change.path}" if change.after else "/dev/null",
    ):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(entry: Entry | None, read: ReadEntry) -> list[str] | None:
    """The file's lines; None for what is no text or too long to compare."""
    if entry is None:
        return []
    if entry.lfs:
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\n"
            f"size {entry.size}\n"
        )
        return pointer.splitlines(keepends=True)
    if entry.size > DIFF_FILE_BYTES_MAX:
        return None
    try:
        text = read(entry).decode()
    except UnicodeDecodeError:
        return None
    lines = text.splitlines(keepends=True)
    return None if "\0" in text or len(lines) > DIFF_FILE_LINES_MAX else lines
