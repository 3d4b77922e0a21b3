"""What the catalogue says, as types: facts with their source, and the records made of them.

A record is immutable. Whatever can be right or wrong in it is a `Fact`: the value, where it was
read, when that was checked, and how sure we are. What nobody has found out is a fact, too: its
value is None and its status `unknown`.
"""

from __future__ import annotations

import datetime
import enum
import re
from typing import Generic, TypeVar

import msgspec

from qwenstack.core.layers import Layer

T = TypeVar("T")


class Status(enum.Enum):
    """How sure a fact is."""

    VERIFIED = "verified"
    """Read in a primary source: the vendor's repository, page, paper or model repo."""
    REPORTED = "reported"
    """Read in somebody else's account of it."""
    UNKNOWN = "unknown"
    """Looked for and not found, or not looked for; the value is None."""


class Modality(enum.Enum):
    """What a model takes or does; a release has one or more."""

    TEXT = "text"
    CODE = "code"
    MATHS = "maths"
    REASONING = "reasoning"
    VISION = "vision"
    VIDEO = "video"
    AUDIO = "audio"
    SPEECH = "speech"
    OMNI = "omni"
    IMAGE_OUTPUT = "image-output"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    GUARD = "guard"
    REWARD = "reward"
    TRANSLATION = "translation"
    ACTION = "action"


class HostedKind(enum.Enum):
    """What a name on an API stands for."""

    ALIAS = "alias"
    """A name that is repointed without notice to the caller (`…-latest`)."""
    MAIN = "main"
    """The line's plain name; repointed too, later and with notice."""
    SNAPSHOT = "snapshot"
    """A dated name that is not repointed; it can be withdrawn."""
    OPEN = "open"
    """Open weights served under their own name; still an API under API terms."""


class HostedState(enum.Enum):
    """Whether a hosted name answers."""

    LIVE = "live"
    RETIRING = "retiring"
    GONE = "gone"
    ANNOUNCED = "announced"


class SourceKind(enum.Enum):
    """Whose word a source is."""

    VENDOR = "vendor"
    """The makers' own repository, blog, documentation or paper."""
    MODEL_REPO = "model-repo"
    """The model's own repo on a hub: its card, tag or files."""
    OPERATOR = "operator"
    """Another organisation about its own product."""
    THIRD_PARTY = "third-party"
    """Anybody else: tools' model lists, price files, issue threads."""
    DERIVED = "derived"
    """Computed by us from other sources; the title says how."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where something was read. `key` is what facts cite; `locator` finds it again."""

    key: str
    title: str
    kind: SourceKind
    locator: str
    checked: datetime.date
    note: str = ""

    @property
    def primary(self) -> bool:
        """Whether this is the word of who made the thing."""
        return self.kind in (SourceKind.VENDOR, SourceKind.MODEL_REPO, SourceKind.OPERATOR)


class Claim(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What another source says instead."""

    value: T
    source: str
    checked: datetime.date
    note: str = ""


class Fact(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A value and why we believe it. `source` is a key of the catalogue's sources.

    `otherwise` holds what other sources say where they contradict; a fact with claims there is
    in conflict, and whoever shows it shows them.
    """

    value: T | None
    source: str
    checked: datetime.date
    status: Status
    note: str = ""
    otherwise: tuple[Claim[T], ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    @property
    def in_conflict(self) -> bool:
        """Whether another source says something else."""
        return bool(self.otherwise)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What every record carries: its own source, date and status, which its facts default to."""

    id: str
    source: str
    checked: datetime.date
    status: Status
    note: str = ""


class Organisation(Record, frozen=True, kw_only=True):
    """An owner or publisher. `hub_names` are the names it publishes under on hubs."""

    name: str
    layer: Layer
    owns: tuple[str, ...] = ()
    publishes: tuple[str, ...] = ()
    parent: str = ""
    hub_names: tuple[str, ...] = ()
    code_names: tuple[str, ...] = ()
    client_prefixes: tuple[str, ...] = ()
    """What client libraries write before a model's name to call this operator."""
    legal_entity: Fact[str]
    filings: tuple[str, ...] = ()


class Generation(Record, frozen=True, kw_only=True):
    """A generation or a line of it: Qwen3, Qwen2.5-Coder. `family` groups lines: `qwen2.5`."""

    name: str
    family: str
    announced: Fact[datetime.date]
    open_weights: Fact[bool]
    follows: str = ""
    paper: str = ""
    also: tuple[str, ...] = ()
    """Other names that the makers or people call it by."""


class Repo(msgspec.Struct, frozen=True, kw_only=True):
    """A model repo of a release on a hub.

    `tuning` is what training left it at (`base`, `instruct`, `chat`, `thinking`, … or empty where
    the name does not say), `quantisation` how its weights are stored (`fp8`, `awq`, `gptq-int4`,
    `gguf`, …, empty for the original precision). Both are read off the vendor's own naming.
    """

    id: str
    tuning: str = ""
    quantisation: str = ""
    licence: Fact[str] | None = None
    """Only where this repo's licence differs from the release's, or is known apart from it."""
    source: str
    checked: datetime.date
    note: str = ""


class Release(Record, frozen=True, kw_only=True):
    """Open weights of one size: its repos on hubs, in every tuning and precision."""

    name: str
    generation: str
    modality: tuple[Modality, ...]
    repos: tuple[Repo, ...]
    released: Fact[datetime.date]
    parameters: Fact[int]
    """All weights, as counted or as published; `note` says which."""
    active_parameters: Fact[int]
    """Weights used for a token, for a mixture of experts; unknown for a dense model."""
    size_label: str = ""
    """The size as the vendor writes it: `8B`, `30B-A3B`."""
    context: Fact[int]
    """Native context length in tokens."""
    context_extended: Fact[int]
    """Longest documented length with RoPE scaling, in tokens."""
    licence: Fact[str]
    """Id of a licence in core/licences.toml."""
    licence_digest: Fact[str]
    """SHA-256 of the licence file in the repo."""
    architecture: str = ""
    """Id of the Architecture of its language part."""
    model_type: Fact[str]
    """`model_type` in the repo's config.json."""
    base: Fact[str]
    """What it was trained from, where that is said: the id of a release, or of one of its repos."""
    ollama: tuple[str, ...] = ()
    """Ollama tags that are this size of this release."""

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """The repos' ids, in the order of the file."""
        return tuple(repo.id for repo in self.repos)


class Architecture(Record, frozen=True, kw_only=True):
    """The shape of a decoder, as its config.json has it; catalog/architecture.py counts it.

    `tied` is whether the output matrix is the embedding (or is left out, in embedding models);
    `shared_intermediate` is the width of the shared expert.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int = 0
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_used: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    model_type: str = ""
    """`model_type` with which transformers can instantiate it; empty where it can't."""
    parameters: Fact[int]
    """The published or counted total, to check the formula against."""
    parameters_rounded: bool = False
    """Whether `parameters` is a rounded figure, good to a hundredth."""


class PriceReference(msgspec.Struct, frozen=True, kw_only=True):
    """A price as somebody states it, in a currency per million tokens; not a rate to bill with."""

    scope: str
    currency: str
    input: str
    output: str
    source: str
    checked: datetime.date
    note: str = ""


class HostedModel(Record, frozen=True, kw_only=True):
    """A name that an API answers to. `id` is that name, `main` the line it is a snapshot of."""

    kind: HostedKind
    operator: str
    main: str = ""
    title: str = ""
    modality: tuple[Modality, ...] = ()
    context: Fact[int]
    state: Fact[HostedState]
    available: Fact[datetime.date]
    retirement_noticed: Fact[datetime.date]
    """The date that a notice gave for the end."""
    retired: Fact[datetime.date]
    """The date on which it ended."""
    replaced_by: str = ""
    open_counterpart: Fact[str]
    """Id of the release with the same weights. Unknown is the rule: the vendor seldom says."""
    no_open_weights: bool = False
    """Whether a source says (or a search found) that nothing open exists under this name."""
    prices: tuple[PriceReference, ...] = ()

    @property
    def layer(self) -> Layer:
        """Always the studio: a name on an API is under the API's terms."""
        return Layer.STUDIO


class ApiTerms(Record, frozen=True, kw_only=True):
    """The document that governs the use of an API."""

    title: str
    operator: str
    locator: str
    covers: str = ""


_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+){1,2}-?\d")


class ApiHost(Record, frozen=True, kw_only=True):
    """A host name that serves models. `id` is the host, or `*.suffix` for a family of them.

    `{region}` in it stands for the region that the name tells.
    """

    operator: str = ""
    """Id of an organisation; empty where it is not known or whoever runs it."""
    region: Fact[str]
    scope: str = ""
    terms: Fact[str]
    """Id of the ApiTerms."""
    base_paths: tuple[str, ...] = ()
    kind: str = "api"
    """`api`, `hub` (serves weights), `registry` (Ollama's), `site` (for people) or `local`."""
    serves: str = ""

    def region_in(self, host: str) -> str:
        """The region that `host` tells, if `id` says where it stands; else empty."""
        before, placeholder, after = self.id.partition("{region}")
        region = host.removeprefix(before).removesuffix(after)
        fits = placeholder and host == f"{before}{region}{after}"
        return region if fits and _REGION.fullmatch(region) else ""


class Derivative(Record, frozen=True, kw_only=True):
    """Weights that somebody else made from a release. `id` is the hub id."""

    organisation: str
    base: Fact[str]
    """Hub id of what it says (or is said) it was made from."""
    base_release: str = ""
    """Id of the Qwen release at the root, where that is known."""
    licence: Fact[str]
    """As its makers state it."""
    conflict: str = ""
    """Why the stated licence does not fit the base's, where it does not."""
    same_weights: bool = False
    """Whether it is the base, copied or converted: who passes that on can't change its licence."""
    modality: tuple[Modality, ...] = ()


class NegativeKind(enum.Enum):
    """Why a name resolves to no weights."""

    DOES_NOT_EXIST = "does-not-exist"
    HOSTED_ONLY = "hosted-only"
    ANNOUNCED_ONLY = "announced-only"
    PLACEHOLDER = "placeholder"


class NegativeCase(Record, frozen=True, kw_only=True):
    """A name that people use and that is no release. `id` is the name as written."""

    kind: NegativeKind
    instead: tuple[str, ...] = ()
    """Ids of what may be meant: releases or hosted names."""


class LookAlike(Record, frozen=True, kw_only=True):
    """Names that are taken for each other, as people write them; `id` names the set."""

    names: tuple[str, ...]
    reason: str


class OllamaTag(Record, frozen=True, kw_only=True):
    """A name in Ollama's library; `id` is `name:tag`, and the bare name stands for its default."""

    release: str
    """Id of the release, or of the derivative for `derivative = true`."""
    derivative: bool = False
    tuning: str = ""
    quantisation: str = ""
    size_bytes: Fact[int]
    licence_digest: Fact[str]
    """SHA-256 of the licence layer that the tag carries, whole or a prefix."""
    licence_carried: Fact[str]
    """Id of the licence that this layer is; `conflict` says where upstream's differs."""
    conflict: str = ""
    default: bool = False
    """Whether the bare name means this tag."""
    cloud: bool = False
    """Whether it runs at Ollama's, not here."""


class Lag(Record, frozen=True, kw_only=True):
    """Between the hosted and the open date of what is said to be one thing."""

    release: str
    hosted: str = ""
    """Id of the hosted name; empty where it is served by somebody else, as the note says."""
    open_date: Fact[datetime.date]
    hosted_date: Fact[datetime.date]

    @property
    def days(self) -> int | None:
        """Hosted minus open, in days: negative where the API was first; None where unknown."""
        if self.open_date.value is None or self.hosted_date.value is None:
            return None
        return (self.hosted_date.value - self.open_date.value).days


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """All that the files say, and `digest`: SHA-256 over their bytes in the order of names."""

    digest: str
    sources: tuple[Source, ...] = ()
    organisations: tuple[Organisation, ...] = ()
    generations: tuple[Generation, ...] = ()
    architectures: tuple[Architecture, ...] = ()
    releases: tuple[Release, ...] = ()
    hosted: tuple[HostedModel, ...] = ()
    terms: tuple[ApiTerms, ...] = ()
    hosts: tuple[ApiHost, ...] = ()
    derivatives: tuple[Derivative, ...] = ()
    negatives: tuple[NegativeCase, ...] = ()
    lookalikes: tuple[LookAlike, ...] = ()
    ollama: tuple[OllamaTag, ...] = ()
    lags: tuple[Lag, ...] = ()
