"""Hub ids and hub addresses: `Qwen/Qwen3-8B`, `https://huggingface.co/Qwen/Qwen3-8B/tree/main`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from qwenstack.catalog.model import Generation, HostedKind, Status
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.spelling import distance, fold, foreign_letters, plain
from qwenstack.core.layers import Layer

_ID: Final = re.compile(r"([\w.-]{1,96})/([\w.-]{1,128})(?:@([\w./-]{1,64}))?")
# llama.cpp's `-hf` form, also Docker's and RamaLama's: `org/name-GGUF:Q4_K_M`. Without GGUF in the
# name, such a thing is more often a user's upload to Ollama.
_QUANTISED_ID: Final = re.compile(
    r"([\w.-]{1,96}/[\w.-]*gguf[\w.-]*):(?:(?:ud-)?i?q\d\w*|tq\d_\d|b?f16|f32|fp16|mxfp4\w*|latest)",
    re.IGNORECASE,
)
_HUB_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})
_MODELSCOPE_HOSTS: Final = frozenset(
    {"modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai"}
)
_CODE_HOSTS: Final = frozenset({"github.com", "www.github.com", "gitee.com"})
_NOT_MODELS: Final = frozenset(
    {"datasets", "spaces", "papers", "docs", "blog", "collections", "api"}
)

# How operators end the names of what they serve, in a hub id's form: Together's `-Turbo`, `-tput`.
_OPERATORS_OWN: Final = re.compile(r"-(?:turbo|lite|reference|(?:fp8-)?tput|tee)$", re.IGNORECASE)
_SCHEMES: Final = {
    "hf": "huggingface.co/",
    "huggingface": "huggingface.co/",
    "modelscope": "modelscope.cn/models/",
    "ms": "modelscope.cn/models/",
}

FOLDERS: Final = frozenset(
    {
        "src", "lib", "docs", "doc", "test", "tests", "examples", "example", "scripts", "script",
        "config", "configs", "conf", "models", "model", "data", "dataset", "datasets", "assets",
        "tools", "recipes", "benchmarks", "output", "outputs", "checkpoints", "ckpt", "ckpts",
        "pretrained", "weights", "tmp", "var", "home", "root", "mnt", "opt", "usr", "app", "apps",
        "packages", "modules", "projects", "plugins", "templates", "train", "eval", "results",
        "logs", "cache", "images", "figures", "static", "resource", "resources", "hf", "components",
    }
)  # fmt: skip
"""What the first part of a path is called, more often than an organisation is."""


def read_id(text: str, index: Index, kind: Kind = Kind.HUB_ID) -> Iterator[Reading]:
    """`organisation/name`, with or without `@revision`, or `:quantisation` of a GGUF repo."""
    if (quantised := _QUANTISED_ID.fullmatch(text)) is not None:
        text = quantised[1]
    match = _ID.fullmatch(text)
    if match is None or match[2].casefold().endswith((".gguf", ".safetensors")):
        return
    subject = f"{match[1]}/{match[2]}"
    listed = _listed(subject, index, kind)
    if listed is not None:
        yield listed
        return
    if match[1].casefold() in FOLDERS or not match[1].strip("."):
        yield Reading(
            kind=Kind.FILE_NAME,
            sure=Sureness.SHAPED,
            why="looks like a path where nothing lies: what a folder of this name holds is unknown",
            subject=subject,
        )
        return
    latin = plain(subject)
    if latin != subject:
        yield Reading(
            kind=kind,
            sure=Sureness.SHAPED,
            why=f"written with letters that only look Latin: {foreign_letters(subject)}",
            subject=subject,
            conflicts=(f"looks like {latin}, and is another name",),
        )
        return
    yield _unlisted(subject, match[1], index, kind)


def read_url(text: str, index: Index) -> Iterator[Reading]:
    """The address of a model on a hub, or of a code repository of the research group."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES:
        text = _SCHEMES[scheme] + rest
    match = re.match(r"(?:https?://)?([^/\s?#]+)/([^\s?#]*)", text)
    if match is None:
        return
    host = match[1].casefold()
    parts = [part for part in match[2].split("/") if part]
    if parts[:3] == ["api", "v1", "models"] or parts[:2] == ["api", "models"]:
        # What a client asks the hub for: the address of the repo, `models/` before it or not.
        parts = parts[parts.index("models") + (host in _HUB_HOSTS) :]
    if host in _MODELSCOPE_HOSTS and len(parts) >= 3 and parts[0] == "models":
        yield from read_id("/".join(parts[1:3]), index, Kind.MODELSCOPE_ID)
    elif host in _MODELSCOPE_HOSTS and len(parts) == 2 and parts[0] == "organization":
        yield from _publisher(parts[1], index)
    elif (
        host in _MODELSCOPE_HOSTS
        and len(parts) == 2
        and ("://" not in text or parts[1].endswith(".git"))
    ):
        # `modelscope.cn/org/name:Q4_K_M` is how Ollama writes it; `….git`, the address to clone.
        name = parts[1].partition(":")[0].removesuffix(".git")
        yield from read_id(f"{parts[0]}/{name}", index, Kind.MODELSCOPE_ID)
    elif host in _HUB_HOSTS:
        if len(parts) == 1 and "://" in text:
            yield from _publisher(parts[0], index)
        elif len(parts) >= 2 and parts[0] not in _NOT_MODELS:
            # `hf.co/org/name:Q4_K_M` is how Ollama writes it; `hf://org/name@main/file`, fsspec.
            name = re.split(r"[:@]", parts[1])[0].removesuffix(".git")
            yield from read_id(f"{parts[0]}/{name}", index, Kind.HUB_URL)
    elif host in _CODE_HOSTS and parts:
        yield from _code(parts, index)


def _listed(subject: str, index: Index, kind: Kind) -> Reading | None:
    found = index.catalogue.find_repo(subject)
    if found is not None:
        release, repo = found
        exact = repo.id == subject
        return Reading(
            kind=kind,
            sure=Sureness.EXACT if exact else Sureness.LISTED,
            why="the catalogue lists this repo"
            if exact
            else f"the catalogue lists this repo as {repo.id}",
            subject=repo.id,
            layer=Layer.WEIGHTS,
            release=release,
            repo=repo,
        )
    derivative = index.catalogue.find_derivative(subject)
    if derivative is not None:
        return Reading(
            kind=kind,
            sure=Sureness.EXACT if derivative.id == subject else Sureness.LISTED,
            why="the catalogue lists this repo as another organisation's",
            subject=derivative.id,
            layer=Layer.COMMUNITY,
            derivative=derivative,
        )
    return None


def _unlisted(subject: str, owner: str, index: Index, kind: Kind) -> Reading:
    publisher = index.catalogue.find_organisation(owner)
    served = _OPERATORS_OWN.search(subject)
    if served and publisher is not None and owner.casefold() in index.makers:
        return Reading(
            kind=kind,
            sure=Sureness.SHAPED,
            why=f"the catalogue lists no such repo, and operators end names so ({served[0]}) for "
            "what they serve",
            subject=subject,
        )
    hosted = index.catalogue.find_hosted(fold(subject.partition("/")[2]))
    if (
        hosted is not None
        and hosted.kind is not HostedKind.OPEN
        and owner.casefold() in index.makers
    ):
        return Reading(
            kind=kind,
            sure=Sureness.SHAPED,
            why=f"the catalogue lists no such repo: {hosted.id} is a name of the vendor's API, for "
            "which no open weights are on record",
            subject=subject,
        )
    closed = _closed_generation(subject.partition("/")[2], index)
    if closed is not None and owner.casefold() in index.makers:
        return Reading(
            kind=kind,
            sure=Sureness.SHAPED,
            why=f"the catalogue lists no such repo: no open weights of {closed.name} are on record",
            subject=subject,
        )
    if publisher is not None and owner.casefold() in index.makers:
        return Reading(
            kind=kind,
            sure=Sureness.SHAPED,
            why=f"{owner} is a name that {publisher.name} publishes under, but the catalogue lists "
            "no such repo",
            subject=subject,
            layer=Layer.WEIGHTS,
            organisation=publisher,
        )
    group = index.organisation_names.get(fold(owner))
    if group is not None and owner in group.code_names:
        return Reading(
            kind=Kind.ORGANISATION,
            sure=Sureness.SHAPED,
            why=f"{owner} is where {group.name} publishes code, and no name it gives out weights "
            "under: a LICENSE there is the code's",
            subject=subject,
            layer=group.layer,
            organisation=group,
            status=Status.UNKNOWN,
        )
    near = next(
        (name for name in sorted(index.makers) if 0 < distance(owner.casefold(), name, 1) <= 1),
        None,
    )
    conflicts = (
        (f"{owner!r} looks like {near!r}, and is another publisher",) if near is not None else ()
    )
    return Reading(
        kind=kind,
        sure=Sureness.SHAPED,
        why=f"{owner} is not a name that the Qwen team publishes under; what the model was made "
        "from is not known: a name is no proof",
        subject=subject,
        layer=Layer.COMMUNITY,
        organisation=publisher,
        conflicts=conflicts,
    )


def _closed_generation(name: str, index: Index) -> Generation | None:
    """The generation that `name` is of by its beginning, where no weights of it are open."""
    words = fold(name).split("-")
    beginnings = ("-".join(words[:count]) for count in range(len(words), 0, -1))
    found = next(
        (index.generation_names[b] for b in beginnings if b in index.generation_names), None
    )
    return found if found is not None and found.open_weights.value is False else None


def _publisher(name: str, index: Index) -> Iterator[Reading]:
    organisation = index.catalogue.find_organisation(name)
    if organisation is not None:
        yield Reading(
            kind=Kind.ORGANISATION,
            sure=Sureness.EXACT,
            why="the page of a publisher, not of a model",
            subject=organisation.name,
            layer=organisation.layer,
            organisation=organisation,
        )


def _code(parts: list[str], index: Index) -> Iterator[Reading]:
    organisation = index.organisation_names.get(fold(parts[0]))
    if organisation is not None:
        yield Reading(
            kind=Kind.ORGANISATION,
            sure=Sureness.EXACT,
            why="a code repository: its LICENSE is the code's, and says nothing about any weights",
            subject="/".join(parts[:2]),
            layer=Layer.RESEARCH,
            organisation=organisation,
        )
