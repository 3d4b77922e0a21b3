"""A revision in the wire's own fields: what its card declares and its files show.

The same document answers `model_info`, stands in `hub_repos.summary` for lists and filters, and is
what the pages and the family tree read. Tags are made as clients expect them: `license:…`,
`base_model:finetune:…`, `dataset:…`, the language codes, the formats of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec

from qwenstack.hub import cards
from qwenstack.hub.cards import Card
from qwenstack.hub.hub import CommitListener, Describe, Hub
from qwenstack.hub.registry.manifests import Entry, Manifest, find_entry
from qwenstack.hub.registry.repos import Repo, write_summary
from qwenstack.hub.registry.revisions import HEADS, MAIN, Commit, read_files

# A card that is longer is shown by none of the lists.
_CARD_BYTES_MAX = 1024 * 1024
_CONFIG_BYTES_MAX = 1024 * 1024
_TAGS_MAX = 200
_TAG_CHARACTERS_MAX = 200
_DATASET_FIELDS = (
    *("task_categories", "task_ids", "language", "multilinguality", "size_categories"),
    *("annotations_creators", "language_creators", "source_datasets"),
)

ReadEntry = Callable[[Entry], bytes]


class ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What clients are shown of config.json."""

    architectures: list[str] | None = None
    model_type: str | None = None
    quantization_config: dict[str, object] | None = None


class BaseModels(msgspec.Struct, frozen=True):
    """The parents that the card names."""

    relation: str | None
    models: list[dict[str, str]]


def describe_files(kind: str, files: Manifest, read: ReadEntry) -> dict[str, object]:
    """The fields of a release; a card or config that cannot be read gives none."""
    card = read_card(files, read)
    found: dict[str, object] = {"cardData": card.metadata}
    if kind == "dataset":
        found["tags"] = _bounded(_dataset_tags(card))
        if isinstance(description := card.metadata.get("pretty_name"), str):
            found["description"] = description
        return found
    config = read_config(files, read)
    library = card.library_name or _library(files, config)
    found["tags"] = _bounded(_model_tags(card, files, config, library))
    if library is not None:
        found["library_name"] = library
    task = card.pipeline_tag or _task(config)
    if task is not None:
        found["pipeline_tag"] = task
    if config is not None:
        found["config"] = msgspec.to_builtins(config)
    if card.base_model:
        named = [{"id": name} for name in card.base_model]
        found["baseModels"] = msgspec.to_builtins(BaseModels(card.base_model_relation, named))
    return found


def read_card(files: Manifest, read: ReadEntry) -> Card:
    """The card of a release; an empty one where there is none."""
    entry = find_entry(files, "README.md")
    if entry is None or entry.size > _CARD_BYTES_MAX:
        return Card()
    return cards.parse(read(entry))[0]


def read_config(files: Manifest, read: ReadEntry) -> ModelConfig | None:
    """The part of config.json that is shown; None where there is none of that form."""
    entry = find_entry(files, "config.json")
    if entry is None or entry.size > _CONFIG_BYTES_MAX:
        return None
    try:
        return msgspec.json.decode(read(entry), type=ModelConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def declared_licence(card: bytes) -> str | None:
    """The licence that a card's bytes declare, by the name that says most."""
    parsed = cards.parse(card)[0]
    return parsed.license_name if parsed.license == "other" else parsed.license


def describer(hub: Hub) -> Describe:
    """The hub's `describe`."""

    def describe(repo: Repo, _commit: Commit, files: Manifest) -> bytes:
        return msgspec.json.encode(describe_files(repo.kind, files, reader(hub)))

    return describe


def summary_listener(hub: Hub) -> CommitListener:
    """Keeps `hub_repos.summary` at what the main branch says."""

    def listen(repo: Repo, ref: str, _oid: str) -> None:
        if ref != HEADS + MAIN or hub.describe is None:
            return
        with hub.database.connect().execution_options(read_only=True) as connection:
            commit, files = read_files(connection, repo.id, HEADS + MAIN)
        document = hub.describe(repo, commit, files).decode()
        with hub.database.begin() as connection:
            write_summary(connection, repo.id, document)

    return listen


def reader(hub: Hub) -> ReadEntry:
    """Reads small files of a release whole."""
    return lambda entry: b"".join(hub.store.read(entry.sha256))


def _model_tags(
    card: Card, files: Manifest, config: ModelConfig | None, library: str | None
) -> list[str | None]:
    paths = [entry.path for entry in files]
    relation = card.base_model_relation
    return [
        library,
        "safetensors" if any(path.endswith(".safetensors") for path in paths) else None,
        "gguf" if any(path.endswith(".gguf") for path in paths) else None,
        "onnx" if any(path.endswith(".onnx") for path in paths) else None,
        config.model_type if config is not None else None,
        card.pipeline_tag or _task(config),
        *card.tags,
        *card.language,
        *(f"dataset:{name}" for name in card.datasets),
        *(f"base_model:{name}" for name in card.base_model),
        *(f"base_model:{relation}:{name}" for name in card.base_model if relation),
        *_licence_tags(card),
    ]


def _dataset_tags(card: Card) -> list[str | None]:
    found: list[str | None] = []
    for field in _DATASET_FIELDS:
        value = card.metadata.get(field)
        values = value if isinstance(value, list) else [value]
        found += [f"{field}:{each}" for each in values if isinstance(each, str)]
    return [*found, *_licence_tags(card), *card.tags]


def _licence_tags(card: Card) -> list[str]:
    return [f"license:{card.license}"] if card.license else []


def _bounded(tags: list[str | None]) -> list[str]:
    """Each tag once, in the order of the first, bounded in number and length."""
    unique = dict.fromkeys(each for each in tags if each and len(each) <= _TAG_CHARACTERS_MAX)
    return list(islice(unique, _TAGS_MAX))


def _library(files: Manifest, config: ModelConfig | None) -> str | None:
    if find_entry(files, "adapter_config.json") is not None:
        return "peft"
    if config is not None and config.model_type:
        return "transformers"
    if any(entry.path.endswith(".gguf") for entry in files):
        return "gguf"
    return None


def _task(config: ModelConfig | None) -> str | None:
    """What an architecture's name says it is for, where it does."""
    for name in (config.architectures or []) if config is not None else []:
        for ending, task in _TASKS:
            if name.endswith(ending):
                return task
    return None


_TASKS = (
    ("ForCausalLM", "text-generation"),
    ("ForConditionalGeneration", "image-text-to-text"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
)
