"""A revision in the wire's own fields: what its card declares and its files show.

The same document answers `model_info`, stands in `hub_repos.summary` for lists and filters, and is
what the family tree reads. Tags are made as clients expect them: `license:…`,
`base_model:finetune:…`, `dataset:…`, the language codes, the formats of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec
from sqlalchemy import Connection, select

from qwenstack.hub import cards
from qwenstack.hub.cards import Card
from qwenstack.hub.facts import Facts, compute, read_facts, write_facts
from qwenstack.hub.hub import CommitListener, Describe, Hub
from qwenstack.hub.registry.manifests import Entry, Manifest, find_entry
from qwenstack.hub.registry.repos import Kind, Repo, find_repo, write_summary
from qwenstack.hub.registry.revisions import HEADS, MAIN, Commit, read_files
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import repos

# A card that is longer is shown by none of the lists.
_CARD_BYTES_MAX = 1024 * 1024
_TAGS_MAX = 200
_TAG_CHARACTERS_MAX = 200
_DATASET_FIELDS = (
    *("task_categories", "task_ids", "language", "multilinguality", "size_categories"),
    *("annotations_creators", "language_creators", "source_datasets"),
)
# What an architecture's name says it is for, where it does.
_TASKS = (
    ("ForCausalLM", "text-generation"),
    ("ForConditionalGeneration", "image-text-to-text"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
)

ReadEntry = Callable[[Entry], bytes]


def describe_files(kind: Kind, files: Manifest, card: Card, facts: Facts) -> dict[str, object]:
    """The wire's fields of a release."""
    found: dict[str, object] = {"cardData": card.metadata}
    if kind == "dataset":
        found["tags"] = _bounded(_dataset_tags(card))
        return found
    library, task = _library(files, facts), facts.pipeline_tag or _task(facts)
    found["tags"] = _bounded(_model_tags(card, files, facts, library, task))
    optional: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": task,
        "config": _config(facts),
        "safetensors": _safetensors(facts),
        "gguf": _gguf(facts),
        "baseModels": _base_models(facts),
    }
    return found | {name: value for name, value in optional.items() if value}


def read_card(files: Manifest, read: ReadEntry) -> Card:
    """The card of a release; an empty one where there is none."""
    entry = find_entry(files, "README.md")
    if entry is None or entry.size > _CARD_BYTES_MAX:
        return Card()
    return cards.parse(read(entry))[0]


def describer(hub: Hub) -> Describe:
    """The hub's `describe`."""

    def describe(repo: Repo, commit: Commit, files: Manifest) -> bytes:
        facts = facts_of(hub, repo.kind, commit.manifest, files)
        card = read_card(files, reader(hub))
        return msgspec.json.encode(describe_files(repo.kind, files, card, facts))

    return describe


def facts_of(hub: Hub, kind: Kind, manifest: str, files: Manifest) -> Facts:
    """The facts of a release: as they are kept, else computed now and kept."""
    with reading(hub.database) as connection:
        facts = read_facts(connection, manifest)
        if facts is not None:
            return facts
        facts = compute(files, hub.open_file, kind=kind, exists=_published(connection))
    with hub.database.begin() as connection:
        write_facts(connection, manifest, facts)
    return facts


def summary_listener(hub: Hub) -> CommitListener:
    """Keeps `hub_repos.summary` at what the main branch says, and facts of each commit."""

    def listen(repo: Repo, ref: str, oid: str) -> None:
        with reading(hub.database) as connection:
            commit, files = read_files(connection, repo.id, oid)
        describe = describer(hub) if hub.describe is None else hub.describe
        document = describe(repo, commit, files).decode()
        if ref != HEADS + MAIN:
            return
        with hub.database.begin() as connection:
            write_summary(connection, repo.id, document)

    return listen


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the weights say of a model's parent, as `lineage --json` does."""

    parent: str | None
    relation: str
    confidence: float
    verdict: str


class _Noted(msgspec.Struct, frozen=True):
    lineage: Lineage | None = None


def noted_lineage(summary: str) -> Lineage | None:
    """The lineage that a repo's summary holds, None where none was computed."""
    return msgspec.json.decode(summary or "{}", type=_Noted).lineage


def note_lineage(connection: Connection, repo_id: str, lineage: Lineage) -> None:
    """Let the pages and the tree show a lineage; the next push to main forgets it again."""
    document = connection.scalar(
        select(repos.c.summary).where(repos.c.id == repo_id).with_for_update()
    )
    summary = msgspec.json.decode(document or "{}", type=dict[str, object])
    summary["lineage"] = msgspec.to_builtins(lineage)
    write_summary(connection, repo_id, msgspec.json.encode(summary).decode())


def reader(hub: Hub) -> ReadEntry:
    """Reads small files of a release whole."""
    return lambda entry: b"".join(hub.store.read(entry.sha256))


def _published(connection: Connection) -> Callable[[str], bool | None]:
    """Whether a model is here for all to see; of others nothing is said, not even to facts."""

    def exists(name: str) -> bool | None:
        repo = find_repo(connection, "model", name)
        return True if repo is not None and not repo.private else None

    return exists


def _config(facts: Facts) -> dict[str, object]:
    found: dict[str, object] = {}
    if facts.architecture is not None and facts.architecture.source.startswith("config.json"):
        found["architectures"] = [facts.architecture.value]
    if facts.model_type is not None:
        found["model_type"] = facts.model_type.value
    return found


def _safetensors(facts: Facts) -> dict[str, object] | None:
    if facts.weights not in ("safetensors", "both") or facts.parameters is None:
        return None
    return {"parameters": facts.elements, "total": facts.parameters.value}


def _gguf(facts: Facts) -> dict[str, object] | None:
    if facts.weights != "gguf" or facts.parameters is None:
        return None
    found: dict[str, object] = {"total": facts.parameters.value}
    if facts.architecture is not None:
        found["architecture"] = facts.architecture.value
    if facts.context_tokens is not None:
        found["context_length"] = facts.context_tokens.value
    return found


def _base_models(facts: Facts) -> dict[str, object] | None:
    if not facts.base_models:
        return None
    return {
        "relation": facts.relation.value if facts.relation is not None else None,
        "models": [{"id": each.name} for each in facts.base_models],
    }


def _model_tags(
    card: Card, files: Manifest, facts: Facts, library: str | None, task: str | None
) -> list[str | None]:
    relation = facts.relation.value if facts.relation is not None else None
    parents = [each.name for each in facts.base_models]
    return [
        library,
        "safetensors" if facts.weights in ("safetensors", "both") else None,
        "gguf" if facts.weights in ("gguf", "both") else None,
        "onnx" if any(entry.path.endswith(".onnx") for entry in files) else None,
        facts.model_type.value if facts.model_type is not None else None,
        task,
        *facts.tags,
        *facts.languages,
        *(f"dataset:{name}" for name in card.datasets),
        *(f"base_model:{name}" for name in parents),
        *(f"base_model:{relation}:{name}" for name in parents if relation),
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


def _library(files: Manifest, facts: Facts) -> str | None:
    if facts.library is not None:
        return facts.library
    if find_entry(files, "adapter_config.json") is not None:
        return "peft"
    if facts.model_type is not None:
        return "transformers"
    return "gguf" if facts.weights == "gguf" else None


def _task(facts: Facts) -> str | None:
    if facts.architecture is None:
        return None
    for ending, task in _TASKS:
        if facts.architecture.value.endswith(ending):
            return task
    return None
