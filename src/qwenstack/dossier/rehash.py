"""Whether weights are still those that a dossier speaks of: every file hashed again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from qwenstack.dossier.document import Document

_FILE: Final = "weights.file."
_PIECE_BYTES: Final = 4 * 1024 * 1024


def recorded_files(document: Document) -> dict[str, str]:
    """The files on which the dossier rests: path in the release, and SHA-256."""
    return {
        each.claim.removeprefix(_FILE): each.digest
        for each in document.evidence
        if each.claim.startswith(_FILE) and each.digest
    }


def recorded_commit(document: Document) -> str | None:
    """The hub's commit that the dossier read, if it read one."""
    return next((str(e.value) for e in document.evidence if e.claim == "weights.commit"), None)


def first_difference(
    recorded: Mapping[str, str],
    present: Iterable[str],
    open_file: Callable[[str], BinaryIO],
    *,
    hashed: Callable[[int], None] = lambda _: None,
) -> str | None:
    """The first file that is not as recorded, and how; None where all are. Raises OSError.

    `present` are the files that are there; `hashed` is told the bytes that are done.
    """
    there = set()
    for name in present:
        if name not in recorded:
            return f"{name!a} is not in the dossier"
        there.add(name)
    for name, digest in sorted(recorded.items()):
        if name not in there:
            return f"{name!a} is missing"
        found = _sha256(name, open_file, hashed)
        if found != digest:
            return f"{name!a} differs: SHA-256 {digest} is recorded, {found} found"
    return None


def _sha256(name: str, open_file: Callable[[str], BinaryIO], hashed: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with open_file(name) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            hashed(len(piece))
    return digest.hexdigest()


def names_below(root: Path) -> Iterator[str]:
    """The files below a folder, one by one, as a dossier names them; links are not followed.

    Whoever stops at the first unexpected one never walks a tree that is not the release.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(each for each in folders if each != ".git")
        for name in sorted(files):
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix()
