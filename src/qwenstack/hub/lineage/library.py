"""The models that a question is asked against: opened when needed, each fingerprinted once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from qwenstack.hub.lineage.compare import Comparison, Sampled, check_sizes
from qwenstack.hub.lineage.fingerprint import (
    Fingerprint,
    fingerprint,
    layer_similarities,
    token_similarity,
)
from qwenstack.hub.lineage.model import Model, open_path
from qwenstack.hub.lineage.tensors import UnreadableModel

_OPEN_MAX: Final = 64
_FOLDERS_MAX: Final = 100_000
_DEEP_MAX: Final = 4
_WEIGHTS: Final = (".safetensors", ".gguf")

Affinity = npt.NDArray[np.float64]


class Library:
    """Candidates by name. What cannot be read is kept in `unreadable` with the reason.

    `published` says when each appeared, in any unit, where that is known.
    """

    def __init__(
        self,
        names: list[str],
        open_model: Callable[[str], Model],
        prints: Mapping[str, Fingerprint] | None = None,
        published: Mapping[str, int] | None = None,
    ) -> None:
        self.names = names
        self.published: Mapping[str, int] = published or {}
        self.unreadable: dict[str, str] = {}
        self.compared: dict[tuple[str, str], Comparison] = {}
        self.told: dict[tuple[str, str, str], tuple[float | None, bool | None]] = {}
        self._open = open_model
        self._prints: dict[str, Fingerprint] = dict(prints or {})
        self._sampled: OrderedDict[str, Sampled] = OrderedDict()
        self._sized: set[str] = set()

    def print_of(self, name: str) -> Fingerprint | None:
        """A candidate's fingerprint, None where it has none (an adapter, a damaged file)."""
        if name not in self._prints and name not in self.unreadable:
            self.sampled(name)
        return self._prints.get(name)

    def sampled(self, name: str) -> Sampled | None:
        """A candidate, open; the last few stay so."""
        if name in self._sampled:
            self._sampled.move_to_end(name)
            return self._sampled[name]
        if name in self.unreadable:
            return None
        try:
            model = self._open(name)
            if model.adapter is not None:
                self.unreadable[name] = "an adapter holds no base weights"
                return None
            found = Sampled(model, self._prints.get(name) or fingerprint(model))
        except (UnreadableModel, OSError) as error:
            self.unreadable[name] = str(error)
            return None
        self._prints[name] = found.print
        self._sampled[name] = found
        if len(self._sampled) > _OPEN_MAX:
            self._sampled.popitem(last=False)
        return found

    def comparable(self, name: str) -> Sampled | None:
        """A candidate, open, whose numbers are fit to be compared."""
        found = self.sampled(name)
        if found is None or name in self._sized:
            return found
        try:
            check_sizes(found)
        except (UnreadableModel, OSError) as error:
            self.unreadable[name] = str(error)
            self._sampled.pop(name, None)
            return None
        self._sized.add(name)
        return found

    def nearest(self, print_: Fingerprint, *, without: str, count: int) -> list[tuple[str, float]]:
        """The candidates of greatest affinity, best first."""
        found = [
            (name, affinity(print_, other))
            for name in self.names
            if name != without and (other := self.print_of(name)) is not None
        ]
        return sorted(found, key=lambda item: -item[1])[:count]


def affinity(one: Fingerprint, other: Fingerprint) -> float:
    """How alike two fingerprints are: the better of token and layer geometry, -1 to 1."""
    tokens = token_similarity(one, other)
    layers = layer_similarities(one, other)
    values = [tokens] if np.isfinite(tokens) else []
    if layers.size and np.isfinite(layers).any():
        best = np.nan_to_num(layers, nan=-1.0).max(axis=1)
        values.append(float(np.median(best)))
    return max(values, default=-1.0)


def folder_library(folder: Path) -> Library:
    """All models below a folder: each folder with weight files, and each file beside others."""
    paths = dict(find_models(folder))
    return Library(list(paths), lambda name: _open_as(paths[name], name))


def own_name(folder: Path, path: Path) -> str | None:
    """What `path`, a model's folder or file, is called among the models below `folder`."""
    wanted = path.resolve()
    also = wanted.parent if wanted.suffix == ".safetensors" else wanted
    found = ((name, place.resolve()) for name, place in find_models(folder))
    return next((name for name, place in found if place in (wanted, also)), None)


def _open_as(path: Path, name: str) -> Model:
    return open_path(path, name=name)


def find_models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names relative to `folder` and paths of the models in it, in order of name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    seen = 0
    stack = [(folder, 0)]
    while stack:
        place, depth = stack.pop()
        inside = sorted(place.iterdir(), reverse=True)
        seen += 1
        if seen > _FOLDERS_MAX:
            raise UnreadableModel(f"{folder} holds over {_FOLDERS_MAX} folders")
        files = [path for path in inside if path.is_file() and path.suffix in _WEIGHTS]
        shards = [path for path in files if path.suffix == ".safetensors"]
        if shards:
            yield _name(folder, place), place
        for path in reversed(files):
            if path.suffix == ".gguf":
                alone = not shards and len(files) == 1 and place != folder
                yield _name(folder, place if alone else path), path
        if depth < _DEEP_MAX:
            stack += [
                (path, depth + 1)
                for path in inside
                if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
            ]


def _name(folder: Path, path: Path) -> str:
    relative = path.relative_to(folder).as_posix()
    return relative if relative != "." else folder.resolve().name
