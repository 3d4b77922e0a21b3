"""What a release is, computed from its files and not taken from its card.

Each value says where it comes from. What the card and config.json claim is held against it, and
each claim is found to agree, to contradict, or to have nothing that bears it out. A release's
bytes never change, so its facts are computed once and kept by its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final, Literal, TypeVar

import msgspec
from sqlalchemy import Connection, select

from qwenstack.core.instants import now_us
from qwenstack.core.licences import closest, declared, recognise
from qwenstack.engines.gguf import GgufError, GgufLayout
from qwenstack.hub import cards
from qwenstack.hub.claims import Claim, body_claims, compare, config_claims
from qwenstack.hub.formats import config as configs
from qwenstack.hub.formats import gguf, safetensors
from qwenstack.hub.formats.config import AdapterConfig, ConfigError, ModelConfig, TokenizerConfig
from qwenstack.hub.formats.counting import Count, count_gguf, count_safetensors
from qwenstack.hub.formats.reading import read_up_to
from qwenstack.hub.safety.records import HubFile
from qwenstack.hub.safety.streams import buffered
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import facts as facts_table

VERSION: Final = 1
"""Of the facts' form and rules; what an older one computed is computed again."""

_WEIGHT_FILES_MAX: Final = 2_000
_TENSORS_MAX: Final = 2_000_000
_TEXT_BYTES_MAX: Final = 256 * 1024
_LICENCE_NAMES: Final = ("license", "licence", "copying", "license_agreement")
_FAULTS_MAX: Final = 100

_F = TypeVar("_F", bound=HubFile)


class Number(msgspec.Struct, frozen=True):
    """A number and where it comes from."""

    value: int
    source: str


class Words(msgspec.Struct, frozen=True):
    """A text and where it comes from."""

    value: str
    source: str


class Flag(msgspec.Struct, frozen=True):
    """A yes or no and where it comes from."""

    value: bool
    source: str


class LicenceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What licence the card declares and what the licence file is, each as known by its text.

    `declared_id` and `file_id` are ids of `core.licences`, None where it isn't known; a file that
    is close to a known text without being it says so in `file_resembles`. `text` is the file's,
    kept so that a later change shows as a difference; `sha256` is of its bytes.
    """

    declared: str | None = None
    declared_name: str | None = None
    declared_link: str | None = None
    declared_id: str | None = None
    file: str | None = None
    sha256: str | None = None
    file_id: str | None = None
    file_resembles: str | None = None
    text: str | None = None


class BaseModel(msgspec.Struct, frozen=True):
    """A parent that is declared, and where; `exists` is None where nobody could say."""

    name: str
    source: str
    exists: bool | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a release without its weights' values."""

    version: int = VERSION
    weights: Literal["safetensors", "gguf", "both", "none"] = "none"
    weight_bytes: int = 0
    architecture: Words | None = None
    model_type: Words | None = None
    parameters: Number | None = None
    active_parameters: Number | None = None
    experts: Number | None = None
    layers: Number | None = None
    elements: dict[str, int] = {}
    quantisation: Words | None = None
    context_tokens: Number | None = None
    vocabulary: Number | None = None
    tied_embeddings: Flag | None = None
    chat_template: Flag | None = None
    adapter: Words | None = None
    licence: LicenceFacts = LicenceFacts()
    base_models: tuple[BaseModel, ...] = ()
    relation: Words | None = None
    library: str | None = None
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    card_findings: tuple[cards.Finding, ...] = ()
    faults: tuple[str, ...] = ()


def compute(
    manifest: Sequence[_F],
    open_file: Callable[[_F], BinaryIO],
    *,
    kind: str = "model",
    exists: Callable[[str], bool | None] | None = None,
) -> Facts:
    """The facts of the release with these files; `exists` says whether a repo id is there.

    Reads headers, small documents and the licence. What can't be read is listed in `faults`.
    Raises OSError where a file can't be opened.
    """
    return _Release(manifest, open_file, exists or (lambda _name: None)).facts(kind)


def read_licence(manifest: Sequence[_F], open_file: Callable[[_F], BinaryIO]) -> LicenceFacts:
    """The licence of the release with these files: the card's and the licence file's alone."""
    return _Release(manifest, open_file, lambda _name: None).licence()


class _Release:
    """One computation: the files at hand, and what is wrong with them."""

    def __init__(
        self,
        manifest: Sequence[_F],
        open_file: Callable[[_F], BinaryIO],
        exists: Callable[[str], bool | None],
    ) -> None:
        self._files = {entry.path: entry for entry in manifest}
        self._open: Callable[[str], BinaryIO] = lambda path: buffered(open_file(self._files[path]))
        self._exists = exists
        self._faults: list[str] = []

    def facts(self, kind: str) -> Facts:
        card, card_findings = cards.parse(
            self._read("README.md", cards.CARD_BYTES_MAX) or b"", kind
        )
        config = self._document("config.json", configs.read_config)
        tokenizer = self._document("tokenizer_config.json", configs.read_tokenizer_config)
        adapter = self._document("adapter_config.json", configs.read_adapter_config)
        headers, layouts = self._safetensors(), self._gguf()
        count, counted_in = self._count(headers, layouts, config)
        licence = self._licence(card)
        context = _context(config, tokenizer, layouts)
        active = _active(count, config, layouts)
        relation = _relation(card, adapter, config, layouts, bool(headers))
        weights: dict[tuple[bool, bool], Literal["safetensors", "gguf", "both", "none"]] = {
            (True, True): "both", (True, False): "safetensors", (False, True): "gguf"
        }  # fmt: skip
        return Facts(
            weights=weights.get((bool(headers), bool(layouts)), "none"),
            weight_bytes=sum(self._files[path].size for path in (*headers, *layouts)),
            architecture=_architecture(config, layouts),
            model_type=_words(config.model_type if config else None, "config.json: model_type"),
            parameters=_number(count.parameters if count else None, counted_in),
            active_parameters=active,
            experts=_number((count.experts or None) if count else None, counted_in),
            layers=_number((count.layers or None) if count else None, counted_in),
            elements=count.elements if count else {},
            quantisation=_quantisation(config, layouts),
            context_tokens=context,
            vocabulary=_number(count.vocabulary if count else None, counted_in),
            tied_embeddings=_tied(count, counted_in),
            chat_template=self._chat_template(tokenizer, layouts),
            adapter=_words(adapter.kind if adapter else None, "adapter_config.json: peft_type"),
            licence=licence,
            base_models=self._base_models(card, adapter),
            relation=relation,
            library=card.library_name,
            pipeline_tag=card.pipeline_tag,
            tags=card.tags[:200],
            languages=card.language[:200],
            claims=tuple(
                claim
                for claim in self._claims(
                    card, config, adapter, count, layouts, licence, active, context
                )
                if claim is not None
            ),
            card_findings=tuple(card_findings),
            faults=tuple(self._faults[:_FAULTS_MAX]),
        )

    def licence(self) -> LicenceFacts:
        card, _ = cards.parse(self._read("README.md", cards.CARD_BYTES_MAX) or b"")
        return self._licence(card)

    def _claims(
        self,
        card: cards.Card,
        config: ModelConfig | None,
        adapter: AdapterConfig | None,
        count: Count | None,
        layouts: dict[str, GgufLayout],
        licence: LicenceFacts,
        active: Number | None,
        context: Number | None,
    ) -> Iterable[Claim | None]:
        known = licence.declared_id
        if licence.declared is not None or licence.file is not None:
            said = known or licence.declared_name or licence.declared
            yield compare("licence", said, "the card", licence.file_id, licence.file or "no file")
        for path in _one_gguf(layouts)[:1]:
            stated = layouts[path].values.get("general.license")
            if isinstance(stated, str) and known is not None:
                same = declared(stated, None)
                yield compare(
                    "licence", same.id if same else stated[:100], f"{path}: general.license",
                    known, "the card",
                )  # fmt: skip
        if config is not None and count is not None and adapter is None:
            yield from config_claims(config, count)
        context_tokens = context.value if context else None
        yield from body_claims(card, count, active.value if active else None, context_tokens)
        if adapter is not None and adapter.base_model is not None and card.base_model:
            found = adapter.base_model
            said = found if found in card.base_model else ", ".join(card.base_model)
            yield compare("base model", said, "the card", found, "adapter_config.json")
        declared_relation = card.base_model_relation
        shown = _shown_relation(adapter, config)
        if declared_relation is not None or shown is not None:
            yield compare(
                "relation", declared_relation, "the card: base_model_relation", shown, "the files"
            )

    def _safetensors(self) -> dict[str, safetensors.SafetensorsHeader]:
        headers: dict[str, safetensors.SafetensorsHeader] = {}
        tensors = 0
        for path in self._weight_files(".safetensors"):
            with self._open(path) as file:
                try:
                    header = safetensors.read_header(file, self._files[path].size)
                except safetensors.SafetensorsError as error:
                    self._faults.append(f"{path}: {error}")
                    continue
            tensors += len(header.tensors)
            if tensors > _TENSORS_MAX:
                self._faults.append(f"{path}: the release has over {_TENSORS_MAX} tensors")
                break
            headers[path] = header
        for path in sorted(self._files):
            if path.endswith(".safetensors.index.json"):
                self._check_index(path, headers)
        return headers

    def _check_index(self, path: str, headers: dict[str, safetensors.SafetensorsHeader]) -> None:
        folder = path[: path.rfind("/") + 1]
        beside = {
            shard.removeprefix(folder): header
            for shard, header in headers.items()
            if shard.startswith(folder)
        }
        try:
            index = safetensors.read_index(self._read(path, 32 * 1024 * 1024) or b"")
        except safetensors.SafetensorsError as error:
            self._faults.append(f"{path}: {error}")
            return
        self._faults += [f"{path}: {fault}" for fault in safetensors.compare_index(index, beside)]

    def _gguf(self) -> dict[str, GgufLayout]:
        layouts: dict[str, GgufLayout] = {}
        for path in self._weight_files(".gguf"):
            with self._open(path) as file:
                try:
                    layouts[path] = gguf.check(file, self._files[path].size)
                except GgufError as error:
                    self._faults.append(f"{path}: {error}")
        return layouts

    def _weight_files(self, ending: str) -> list[str]:
        paths = sorted(path for path in self._files if path.lower().endswith(ending))
        if len(paths) > _WEIGHT_FILES_MAX:
            self._faults.append(
                f"the release has {len(paths)} {ending} files; the rest is not read"
            )
        return paths[:_WEIGHT_FILES_MAX]

    def _count(
        self,
        headers: dict[str, safetensors.SafetensorsHeader],
        layouts: dict[str, GgufLayout],
        config: ModelConfig | None,
    ) -> tuple[Count | None, str]:
        """Of one model, where the release holds it several times over."""
        chosen = _one_model(headers)
        if chosen:
            tensors = (tensor for path in chosen for tensor in headers[path].tensors)
            return count_safetensors(tensors, config), f"{chosen[0]}, its header"
        whole = _one_gguf(layouts)
        if whole:
            return count_gguf(layouts[path] for path in whole), f"{whole[0]}, its header"
        return None, ""

    def _licence(self, card: cards.Card) -> LicenceFacts:
        path = self._licence_file(card.license_link)
        raw = self._read(path, _TEXT_BYTES_MAX) if path else None
        text = raw.decode("utf-8", "replace") if raw is not None else None
        known = declared(card.license, card.license_name)
        found = recognise(text) if text is not None else None
        close = closest(text) if text is not None and found is None else None
        return LicenceFacts(
            declared=card.license,
            declared_name=card.license_name,
            declared_link=card.license_link,
            declared_id=known.id if known else None,
            file=path,
            sha256=hashlib.sha256(raw).hexdigest() if raw is not None else None,
            file_id=found.id if found else None,
            file_resembles=close.describe() if close else None,
            text=text,
        )

    def _licence_file(self, link: str | None) -> str | None:
        if link is not None and link.removeprefix("./") in self._files:
            return link.removeprefix("./")
        named = [
            path
            for path in self._files
            if path.lower().removesuffix(".txt").removesuffix(".md") in _LICENCE_NAMES
        ]
        return min(named, default=None)

    def _base_models(
        self, card: cards.Card, adapter: AdapterConfig | None
    ) -> tuple[BaseModel, ...]:
        named = [(name, "the card: base_model") for name in card.base_model[:50]]
        if adapter is not None and adapter.base_model and adapter.base_model not in card.base_model:
            named.append((adapter.base_model, "adapter_config.json: base_model_name_or_path"))
        return tuple(BaseModel(name, source, self._exists(name)) for name, source in named)

    def _chat_template(
        self, tokenizer: TokenizerConfig | None, layouts: dict[str, GgufLayout]
    ) -> Flag | None:
        for path in ("chat_template.jinja", "chat_template.json"):
            if path in self._files:
                return Flag(True, path)
        if tokenizer is not None:
            return Flag(tokenizer.chat_template, "tokenizer_config.json: chat_template")
        for path, layout in layouts.items():
            return Flag(bool(layout.templates), f"{path}: tokenizer.chat_template")
        return None

    _D = TypeVar("_D")

    def _document(self, path: str, read: Callable[[bytes], _D]) -> _D | None:
        raw = self._read(path, configs.CONFIG_BYTES_MAX)
        if raw is None:
            return None
        try:
            return read(raw)
        except ConfigError as error:
            self._faults.append(str(error))
            return None

    def _read(self, path: str, bytes_max: int) -> bytes | None:
        """A small file whole; None where it isn't there, or is no small file."""
        entry = self._files.get(path)
        if entry is None:
            return None
        if entry.size > bytes_max:
            self._faults.append(f"{path} has {entry.size} bytes, over {bytes_max}: it is not read")
            return None
        with self._open(path) as file:
            return read_up_to(file, entry.size)


def _one_model(headers: dict[str, safetensors.SafetensorsHeader]) -> list[str]:
    """The files of one model: of the first folder, without a copy that is consolidated in one."""
    folders = sorted({path.rpartition("/")[0] for path in headers})
    if not folders:
        return []
    paths = [path for path in headers if path.rpartition("/")[0] == folders[0]]
    shards = [path for path in paths if "-of-" in path]
    return shards or [path for path in paths if "consolidated" not in path] or paths


def _one_gguf(layouts: dict[str, GgufLayout]) -> list[str]:
    """The shards of one split GGUF, or the first whole one; never a projector beside it."""
    models = [path for path in layouts if "mmproj" not in path.lower()] or list(layouts)
    for path in models:
        stem, found, _ = path.rpartition("-of-")
        if not found:
            return [path]
        first = stem.rpartition("-")[0]
        return [other for other in models if other.startswith(first + "-") and "-of-" in other]
    return []


def _active(
    count: Count | None, config: ModelConfig | None, layouts: dict[str, GgufLayout]
) -> Number | None:
    used = config.experts_per_token if config else None
    source = "config.json: num_experts_per_tok"
    for path, layout in layouts.items() if used is None else ():
        value = layout.values.get(f"{layout.architecture}.expert_used_count")
        if isinstance(value, int) and value > 0:
            used, source = value, f"{path}: expert_used_count"
            break
    active = count.active(used) if count else None
    return _number(active, f"the tensors' shapes and {source}")


def _context(
    config: ModelConfig | None, tokenizer: TokenizerConfig | None, layouts: dict[str, GgufLayout]
) -> Number | None:
    if config is not None and config.context_tokens is not None:
        return Number(config.context_tokens, "config.json: max_position_embeddings")
    for path, layout in layouts.items():
        value = layout.values.get(f"{layout.architecture}.context_length")
        if isinstance(value, int) and value > 0:
            return Number(value, f"{path}: context_length")
    if tokenizer is not None and tokenizer.context_tokens is not None:
        return Number(tokenizer.context_tokens, "tokenizer_config.json: model_max_length")
    return None


def _architecture(config: ModelConfig | None, layouts: dict[str, GgufLayout]) -> Words | None:
    if config is not None and config.architecture is not None:
        return Words(config.architecture, "config.json: architectures")
    for path, layout in layouts.items():
        if layout.architecture is not None:
            return Words(layout.architecture, f"{path}: general.architecture")
    return None


def _quantisation(config: ModelConfig | None, layouts: dict[str, GgufLayout]) -> Words | None:
    if config is not None and config.quantisation is not None:
        bits = f" {config.quantisation_bits} bits" if config.quantisation_bits else ""
        return Words(config.quantisation + bits, "config.json: quantization_config")
    for path in _one_gguf(layouts):
        if (named := layouts[path].quantisation) is not None:
            return Words(named, f"{path}: general.file_type")
    return None


def _tied(count: Count | None, source: str) -> Flag | None:
    if count is None or count.vocabulary is None:
        return None
    return Flag(not count.has_head, f"{source}: whether the head is stored")


def _shown_relation(adapter: AdapterConfig | None, config: ModelConfig | None) -> str | None:
    if adapter is not None:
        return "adapter"
    return "quantized" if config is not None and config.quantisation is not None else None


def _relation(
    card: cards.Card,
    adapter: AdapterConfig | None,
    config: ModelConfig | None,
    layouts: dict[str, GgufLayout],
    has_safetensors: bool,
) -> Words | None:
    """How it relates to its base, as declared; else as its files show; else as the hub infers."""
    if card.base_model_relation is not None:
        return Words(card.base_model_relation, "the card: base_model_relation")
    shown = _shown_relation(adapter, config)
    if shown is not None:
        return Words(shown, "the files")
    if not card.base_model:
        return None
    if layouts and not has_safetensors:
        return Words("quantized", "inferred: it holds GGUF files only")
    if len(card.base_model) > 1:
        return Words("merge", "inferred: several bases are declared")
    return Words("finetune", "inferred: a base is declared")


def _number(value: int | None, source: str) -> Number | None:
    return None if value is None else Number(value, source)


def _words(value: str | None, source: str) -> Words | None:
    return None if value is None else Words(value, source)


def read_facts(connection: Connection, manifest_digest: str) -> Facts | None:
    """The stored facts of a release, None where this version has not computed them yet."""
    query = select(facts_table.c.document).where(facts_table.c.manifest == manifest_digest)
    document: str | None = connection.scalar(query)
    if document is None:
        return None
    if msgspec.json.decode(document, type=_Version).version != VERSION:
        return None
    return msgspec.json.decode(document, type=Facts)


def write_facts(connection: Connection, manifest_digest: str, found: Facts) -> None:
    """Keep the facts of a release, instead of older ones."""
    row = {
        "manifest": manifest_digest,
        "document": msgspec.json.encode(found).decode(),
        "computed_us": now_us(),
    }
    replace_in(connection, facts_table, [row])


class _Version(msgspec.Struct):
    version: int = 0
