"""What a commit does to a tree, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from qwenstack.hub.errors import EntryNotFound, TooLarge
from qwenstack.hub.registry.manifests import (
    Entry,
    Manifest,
    entries_below,
    find_entry,
    make_manifest,
)
from qwenstack.hub.registry.paths import check_path, check_tree, shown


class Add(msgspec.Struct, frozen=True, tag=True):
    """Puts a file at its path, over whatever file is there."""

    entry: Entry


class Copy(msgspec.Struct, frozen=True, tag=True):
    """Puts a file or folder of the repo at `path`, as in `revision` (None: as it is by now)."""

    source: str
    revision: str | None
    path: str


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Removes a file, or where a folder has that name all that is in it."""

    path: str


class DeleteFolder(msgspec.Struct, frozen=True, tag=True):
    """Removes all files under a folder."""

    path: str


Operation = Add | Copy | Delete | DeleteFolder
# A folder copied into itself doubles: a few lines could ask for more files than there is memory.
COPIED_FILES_MAX = 100_000
ReadRevision = Callable[[str], Manifest]


def apply(
    manifest: Manifest, operations: Sequence[Operation], read_revision: ReadRevision
) -> Manifest:
    """The tree after the operations, one after the other.

    Raises EntryNotFound for a deletion or a copy of what isn't there, BadRequest when the result is
    no tree that every system can hold.
    """
    files = {entry.path: entry for entry in manifest}
    if any(isinstance(each, Add) for each in _run(files, operations, read_revision)):
        check_tree(files)
    return make_manifest(files.values())


def settle(
    manifest: Manifest, operations: Sequence[Operation], read_revision: ReadRevision
) -> list[Operation]:
    """The operations with each copy as the files that it puts, so that it shows what is new.

    Raises as `apply` does.
    """
    return _run({entry.path: entry for entry in manifest}, operations, read_revision)


def _run(
    files: dict[str, Entry], operations: Sequence[Operation], read_revision: ReadRevision
) -> list[Operation]:
    """Let `files` be what the operations make of them; the operations without copies."""
    settled: list[Operation] = []
    copied = 0
    for operation in operations:
        match operation:
            case Add(entry):
                files[check_path(entry.path)] = entry
            case Copy(source, revision, path):
                origin = (
                    make_manifest(files.values()) if revision is None else read_revision(revision)
                )
                entries = _copied(origin, source, path)
                copied += len(entries)
                if copied > COPIED_FILES_MAX:
                    raise TooLarge(f"A commit's copies put at most {COPIED_FILES_MAX} files.")
                for entry in entries:
                    files[check_path(entry.path)] = entry
                settled += [Add(entry) for entry in entries]
                continue
            case Delete(path):
                if files.pop(path, None) is None:
                    _delete_folder(files, path, "file")
            case DeleteFolder(path):
                _delete_folder(files, path, "folder")
        settled.append(operation)
    return settled


def _delete_folder(files: dict[str, Entry], path: str, kind: str) -> None:
    prefix = path.rstrip("/") + "/"
    doomed = [each for each in files if each.startswith(prefix)]
    if not doomed:
        raise EntryNotFound(f"There is no {kind} {shown(path)} to delete.")
    for each in doomed:
        del files[each]


def _copied(origin: Manifest, source: str, path: str) -> list[Entry]:
    found = find_entry(origin, source)
    if found is not None:
        return [msgspec.structs.replace(found, path=path)]
    folder = source.rstrip("/")
    below = entries_below(origin, folder) if folder else ()
    if not below:
        raise EntryNotFound(f"There is no file {shown(source)} to copy.")
    target = path.rstrip("/")
    return [
        msgspec.structs.replace(entry, path=target + entry.path[len(folder) :]) for entry in below
    ]
