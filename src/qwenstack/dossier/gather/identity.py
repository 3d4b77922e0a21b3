"""What a release of a hub is, told from its files: a repo's name says only what somebody wrote."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from qwenstack.catalog.which import Answer, which
from qwenstack.catalog.which.answer import UNKNOWN
from qwenstack.hub.registry.manifests import Entry, Manifest

_TEXT_BYTES_MAX: Final = 1 << 20
# A header is read from a copy of the file's beginning; a tokenizer in GGUF takes some megabytes.
_HEADER_BYTES_MAX: Final = 64 << 20
_WEIGHTS: Final = (".gguf", ".safetensors")
_WEIGHTS_MAX: Final = 4
_TEXTS_MAX: Final = 32

OpenFile = Callable[[Entry], BinaryIO]


def by_files(reference: str, named: Answer, files: Manifest, open_file: OpenFile) -> Answer:
    """The answer for `reference` where its name alone (`named`) did not say what it is.

    The digests of its weights come first, then what its card, configuration, licence and headers
    say; `named` where they say nothing either.
    """
    if _says(named):
        return named
    found = _by_digests(files) or _by_folder(files, open_file)
    if found is None:
        return named
    # Who publishes it, and so on which layer, a folder alone does not say: the repo's name does.
    told = {"reference": reference, "lookalikes": named.lookalikes, "suggestions": ()}
    if not found.identified:
        told |= {"layer": named.layer, "operator": named.operator}
    if found.publisher == UNKNOWN:
        told |= {"publisher": named.publisher}
    return msgspec.structs.replace(found, **told)


def _says(answer: Answer) -> bool:
    return answer.release is not None or answer.base not in (None, UNKNOWN)


def _by_digests(files: Manifest) -> Answer | None:
    for entry in _weights(files):
        found = which(f"sha256:{entry.sha256}", files=False)
        if _says(found):
            return found
    return None


def _by_folder(files: Manifest, open_file: OpenFile) -> Answer | None:
    """`which` of a folder with the small files and the headers of a release."""
    top = [entry for entry in files if "/" not in entry.path]
    texts = [each for each in top if each.size <= _TEXT_BYTES_MAX and _is_text(each.path)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "release"
        folder.mkdir()
        for entry in texts[:_TEXTS_MAX]:
            _copy(entry, open_file, folder / entry.path, _TEXT_BYTES_MAX)
        found = which(folder)
        if _says(found):
            return found
        for entry in _weights(tuple(top)):
            path = folder / entry.path
            _copy(entry, open_file, path, _HEADER_BYTES_MAX)
            with path.open("r+b") as file:
                file.truncate(entry.size)  # its size is part of what a header is held against
            found = which(path)
            if _says(found):
                return found
    return None


def _is_text(path: str) -> bool:
    if path.lower().endswith(_WEIGHTS):
        return False
    return path.endswith((".json", ".md", ".txt")) or path.upper().startswith(("LICEN", "NOTICE"))


def _weights(files: Manifest) -> list[Entry]:
    return [each for each in files if each.path.lower().endswith(_WEIGHTS)][:_WEIGHTS_MAX]


def _copy(entry: Entry, open_file: OpenFile, path: Path, bytes_max: int) -> None:
    with open_file(entry) as source, path.open("xb") as copy:
        left = min(entry.size, bytes_max)
        while left and (piece := source.read(min(left, 1 << 20))):
            copy.write(piece)
            left -= len(piece)
