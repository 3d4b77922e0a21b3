"""Load the catalogue, and find records in it by what people write."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec

from qwenstack.catalog import cache
from qwenstack.catalog.model import (
    ApiHost,
    ApiTerms,
    Architecture,
    Derivative,
    Generation,
    HostedModel,
    Lag,
    LookAlike,
    NegativeCase,
    OllamaTag,
    Organisation,
    Records,
    Release,
    Repo,
    Source,
)

DATA = Path(__file__).parent / "data"
"""The files that come with the package."""


class Catalogue(Records, frozen=True, kw_only=True, dict=True):
    """The records, and indexes over them by lower-cased name, built when first used."""

    def find_source(self, key: str) -> Source | None:
        """The source that a fact cites."""
        return self._sources.get(key)

    def find_release(self, release_id: str) -> Release | None:
        """The release of this id."""
        return self._releases.get(release_id.casefold())

    def find_repo(self, hub_id: str) -> tuple[Release, Repo] | None:
        """The release that a hub id of the makers' own organisation belongs to."""
        return self._repos.get(hub_id.casefold())

    def find_derivative(self, hub_id: str) -> Derivative | None:
        """The community's weights of this hub id."""
        return self._derivatives.get(hub_id.casefold())

    def find_hosted(self, name: str) -> HostedModel | None:
        """The model of this API name, alias or snapshot."""
        return self._hosted.get(name.casefold())

    def find_ollama(self, tag: str) -> OllamaTag | None:
        """The Ollama tag; a bare name or `name:latest` is its default tag."""
        folded = tag.casefold().removesuffix(":latest")
        return self._ollama.get(folded) or self._ollama_defaults.get(folded)

    def find_host(self, host: str) -> ApiHost | None:
        """The record of a host name: exact, else the longest `*.suffix` that fits."""
        folded = host.casefold().rstrip(".")
        if (found := self._hosts.get(folded)) is not None:
            return found
        labels = folded.split(".")
        for at in range(1, len(labels)):
            if (found := self._hosts.get("*." + ".".join(labels[at:]))) is not None:
                return found
        return next((each for each in self._regional if each.region_in(folded)), None)

    def find_operator(self, prefix: str) -> Organisation | None:
        """The operator that client libraries call for names with this prefix."""
        return self._operators.get(prefix)

    def find_negative(self, name: str) -> NegativeCase | None:
        """What is known of a name that is no release: with or without the `Qwen/` before it."""
        folded = name.casefold()
        return self._negatives.get(folded) or self._negatives.get(folded.removeprefix("qwen/"))

    def find_lookalikes(self, name: str) -> tuple[LookAlike, ...]:
        """The records that name `name` among names taken for each other."""
        return self._lookalikes.get(name.casefold(), ())

    def find_organisation(self, name: str) -> Organisation | None:
        """An organisation by id or by a name that it publishes under on hubs."""
        return self._organisations.get(name.casefold())

    def find_generation(self, generation_id: str) -> Generation | None:
        """The generation of this id."""
        return next((each for each in self.generations if each.id == generation_id), None)

    def find_architecture(self, architecture_id: str) -> Architecture | None:
        """The architecture of this id."""
        return next((each for each in self.architectures if each.id == architecture_id), None)

    def find_terms(self, terms_id: str) -> ApiTerms | None:
        """The API terms of this id."""
        return next((each for each in self.terms if each.id == terms_id), None)

    def snapshots(self, main: str) -> tuple[HostedModel, ...]:
        """The snapshots and aliases of a hosted line."""
        return tuple(each for each in self.hosted if each.main == main)

    def hosted_counterparts(self, release_id: str) -> tuple[HostedModel, ...]:
        """Hosted names that a source says, or contradicting sources claim, to be this release."""
        return tuple(
            each
            for each in self.hosted
            if release_id
            in (
                each.open_counterpart.value,
                *(claim.value for claim in each.open_counterpart.otherwise),
            )
        )

    def lags_of(self, release_id: str) -> tuple[Lag, ...]:
        """The lags recorded for a release."""
        return tuple(each for each in self.lags if each.release == release_id)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Every name that resolves to something, as it is written."""
        return (
            *(repo.id for each in self.releases for repo in each.repos),
            *(each.id for each in self.hosted),
            *(each.id for each in self.derivatives),
            *(each.id for each in self.ollama),
            *(each.id for each in self.releases),
        )

    @functools.cached_property
    def _sources(self) -> dict[str, Source]:
        return {each.key: each for each in self.sources}

    @functools.cached_property
    def _releases(self) -> dict[str, Release]:
        return {each.id.casefold(): each for each in self.releases}

    @functools.cached_property
    def _repos(self) -> dict[str, tuple[Release, Repo]]:
        return {
            repo.id.casefold(): (release, repo)
            for release in self.releases
            for repo in release.repos
        }

    @functools.cached_property
    def _derivatives(self) -> dict[str, Derivative]:
        return {each.id.casefold(): each for each in self.derivatives}

    @functools.cached_property
    def _hosted(self) -> dict[str, HostedModel]:
        return {each.id.casefold(): each for each in self.hosted}

    @functools.cached_property
    def _ollama(self) -> dict[str, OllamaTag]:
        return {each.id.casefold(): each for each in self.ollama}

    @functools.cached_property
    def _ollama_defaults(self) -> dict[str, OllamaTag]:
        return {each.id.casefold().partition(":")[0]: each for each in self.ollama if each.default}

    @functools.cached_property
    def _hosts(self) -> dict[str, ApiHost]:
        return {each.id.casefold(): each for each in self.hosts}

    @functools.cached_property
    def _regional(self) -> tuple[ApiHost, ...]:
        return tuple(each for each in self.hosts if "{region}" in each.id)

    @functools.cached_property
    def _operators(self) -> dict[str, Organisation]:
        return {prefix: each for each in self.organisations for prefix in each.client_prefixes}

    @functools.cached_property
    def _negatives(self) -> dict[str, NegativeCase]:
        return {each.id.casefold(): each for each in self.negatives}

    @functools.cached_property
    def _lookalikes(self) -> dict[str, tuple[LookAlike, ...]]:
        index: dict[str, tuple[LookAlike, ...]] = {}
        for each in self.lookalikes:
            for name in each.names:
                index[name.casefold()] = (*index.get(name.casefold(), ()), each)
        return index

    @functools.cached_property
    def _organisations(self) -> dict[str, Organisation]:
        return {
            name.casefold(): each
            for each in self.organisations
            for name in (each.id, *each.hub_names)
        }


@functools.cache
def load() -> Catalogue:
    """The catalogue that comes with the package; from its compiled copy where there is one."""
    return load_folder(DATA)


def load_folder(folder: Path, *, use_cache: bool = True) -> Catalogue:
    """The catalogue in `folder`; raises CatalogueError with every problem that its files have."""
    if not use_cache:
        return _compile(folder)
    path = cache.cache_path(folder)
    key = cache.key_of(folder)
    found = cache.read(path, key, Catalogue)
    if found is None:
        found = _compile(folder)
        cache.write(path, key, found)
    return found


def _compile(folder: Path) -> Catalogue:
    # Only who has no compiled copy pays for these imports.
    from qwenstack.catalog.compile import compile_folder

    return Catalogue(**msgspec.structs.asdict(compile_folder(folder)))
