"""What a recogniser says: this reference may be such a thing, and so sure am I of it."""

from __future__ import annotations

import enum

import msgspec

from qwenstack.catalog.model import (
    ApiHost,
    Derivative,
    Generation,
    HostedModel,
    NegativeCase,
    OllamaTag,
    Organisation,
    Release,
    Repo,
    Status,
)
from qwenstack.core.layers import Layer


class Kind(enum.Enum):
    """The form in which a model is referred to."""

    HUB_ID = "hub-id"
    HUB_URL = "hub-url"
    HOSTED_MODEL = "hosted-model"
    API_URL = "api-url"
    SITE = "site"
    OLLAMA_TAG = "ollama-tag"
    MODELSCOPE_ID = "modelscope-id"
    COMMAND = "command"
    IMAGE = "container-image"
    GGUF_FILE = "gguf-file"
    SAFETENSORS_FILE = "safetensors-file"
    MODEL_FOLDER = "model-folder"
    ADAPTER = "adapter"
    SNIPPET = "snippet"
    DIGEST = "digest"
    ORGANISATION = "organisation"
    RELEASE_NAME = "release-name"
    GENERATION = "generation"
    FILE_NAME = "file-name"
    LOOK_ALIKE = "look-alike"
    """Written in other scripts, or with what does not show, so that it looks like a name."""
    UNKNOWN = "unknown"


class Setting(enum.Enum):
    """Who is going to resolve a name, by what stands around it."""

    ANY = "any"
    API = "api"
    """The vendor's API: a DashScope host, key or client."""
    OLLAMA = "ollama"
    WEIGHTS = "weights"
    """A program that loads weights: transformers, vLLM, llama.cpp, a hub client."""


class Sureness(enum.IntEnum):
    """How sure a recogniser is that its reading is what was meant."""

    POSSIBLE = 1
    """The form allows it; nothing else speaks for it."""
    SHAPED = 2
    """The form is of this kind, but the thing is not in the catalogue."""
    LISTED = 3
    """The catalogue lists this name under this kind, in another spelling or form."""
    EXACT = 4
    """The catalogue lists exactly this, or the reference says itself what it is."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One way to understand a reference.

    Exactly one of the records is set where the catalogue knows the thing; none where only the form
    was recognised. `operator` overrides the operator that the record would give.
    """

    kind: Kind
    sure: Sureness
    why: str
    subject: str
    """The name as this reading understands it: the hub id, the tag, the host."""
    layer: Layer | None = None
    release: Release | None = None
    repo: Repo | None = None
    hosted: HostedModel | None = None
    host: ApiHost | None = None
    tag: OllamaTag | None = None
    derivative: Derivative | None = None
    negative: NegativeCase | None = None
    organisation: Organisation | None = None
    generation: Generation | None = None
    operator: str = ""
    region: str = ""
    """Where it runs, as its name tells."""
    base: str = ""
    """What it says that it was made from."""
    claims: tuple[tuple[str, str], ...] = ()
    """What a file says of itself: label and value; statements, not proofs."""
    stated_licence: str = ""
    status: Status | None = None
    """Overrides the record's status, where the identification is weaker than the record."""
    candidates: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
