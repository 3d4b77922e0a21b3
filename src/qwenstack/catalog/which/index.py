"""Ways into the catalogue that only `which` needs: names without an organisation, and typos."""

from __future__ import annotations

import functools
import re
from typing import Final

from qwenstack.catalog.load import Catalogue, load
from qwenstack.catalog.model import Derivative, Generation, Organisation, Release, Repo
from qwenstack.catalog.which.spelling import fold, nearest
from qwenstack.core.layers import Layer

_SIGNS: Final = re.compile(r"[^0-9a-z]+")
_UNDERSCORED: Final = re.compile(r"(?<=\d)_(?=\d)")
_SUGGESTIONS_MAX: Final = 5


class Index:
    """A catalogue with more look-ups, each built when first used. Nothing in it changes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    @functools.cached_property
    def repo_names(self) -> dict[str, tuple[Release, Repo]]:
        """Repos by their name without the organisation, folded.

        Also as texts write those that hold an underscore for a point: `Qwen-1.8B-Chat`.
        """
        names = {}
        for release in self.catalogue.releases:
            for repo in release.repos:
                name = repo.id.rpartition("/")[2]
                names[fold(name)] = (release, repo)
                if "_" in name:
                    names.setdefault(fold(_UNDERSCORED.sub(".", name)), (release, repo))
        return names

    @functools.cached_property
    def release_names(self) -> dict[str, Release]:
        """Releases by id and by name, folded."""
        names = {fold(each.name): each for each in self.catalogue.releases}
        return names | {fold(each.id): each for each in self.catalogue.releases}

    @functools.cached_property
    def derivative_names(self) -> dict[str, Derivative]:
        """Other organisations' models by their name without the organisation, folded."""
        return {fold(each.id.rpartition("/")[2]): each for each in self.catalogue.derivatives}

    @functools.cached_property
    def generation_names(self) -> dict[str, Generation]:
        """Generations by id and by the names they go by, folded."""
        names = {
            fold(name): each
            for each in self.catalogue.generations
            for name in (*each.also, each.name)
        }
        return names | {fold(each.id): each for each in self.catalogue.generations}

    @functools.cached_property
    def organisation_names(self) -> dict[str, Organisation]:
        """Organisations by id, name, and the names they publish models or code under, folded."""
        return {
            fold(name): each
            for each in self.catalogue.organisations
            for name in (
                *each.code_names,
                each.name,
                each.name.partition(" (")[0],
                each.name.removesuffix(" Holding Limited"),
                each.id,
                *each.hub_names,
            )
        }

    @functools.cached_property
    def makers(self) -> frozenset[str]:
        """The names on hubs under which the makers publish their open weights, folded."""
        return frozenset(
            name.casefold()
            for each in self.catalogue.organisations
            if each.layer in (Layer.WEIGHTS, Layer.RESEARCH)
            for name in each.hub_names
        )

    @functools.cached_property
    def ollama_families(self) -> frozenset[str]:
        """The part before the colon of every Ollama tag."""
        return frozenset(each.id.partition(":")[0].casefold() for each in self.catalogue.ollama)

    @functools.cached_property
    def ollama_of(self) -> dict[str, tuple[str, ...]]:
        """The Ollama tags of each release."""
        found: dict[str, tuple[str, ...]] = {
            each.id: each.ollama for each in self.catalogue.releases if each.ollama
        }
        for tag in self.catalogue.ollama:
            if tag.id not in found.get(tag.release, ()):
                found[tag.release] = (*found.get(tag.release, ()), tag.id)
        return found

    def suggest(self, name: str) -> tuple[str, ...]:
        """Names of the catalogue that `name` may be a misspelling of, as the catalogue writes them.

        A name with an organisation is compared with repos, one without with everything else.
        """
        folded = fold(name)
        near = [
            other
            for length in range(len(folded) - 2, len(folded) + 3)
            for other in self._by_length.get(length, ())
        ]
        close = nearest(folded, near, most=_SUGGESTIONS_MAX) or self._solid.get(
            _SIGNS.sub("", folded), []
        )
        return tuple(dict.fromkeys(self._spelled[each] for each in close))[:_SUGGESTIONS_MAX]

    @functools.cached_property
    def _spelled(self) -> dict[str, str]:
        names: dict[str, str] = {}
        known = self.catalogue
        for repo_id in (repo.id for each in known.releases for repo in each.repos):
            names.setdefault(fold(repo_id), repo_id)
        for record in (*known.hosted, *known.derivatives, *known.ollama):
            names.setdefault(fold(record.id), record.id)
        for release, repo in self.repo_names.values():
            names.setdefault(fold(release.name), release.name)
            names.setdefault(fold(repo.id.rpartition("/")[2]), repo.id)
        return names

    @functools.cached_property
    def _by_length(self) -> dict[int, list[str]]:
        lengths: dict[int, list[str]] = {}
        for name in self._spelled:
            lengths.setdefault(len(name), []).append(name)
        return lengths

    @functools.cached_property
    def _solid(self) -> dict[str, list[str]]:
        """Names by their letters and digits alone: finds `qwen 3 8b` and `Qwen3_8B`."""
        solid: dict[str, list[str]] = {}
        for name in self._spelled:
            solid.setdefault(_SIGNS.sub("", name), []).append(name)
        return solid


@functools.cache
def index() -> Index:
    """The index of the catalogue that comes with the program."""
    return Index(load())
