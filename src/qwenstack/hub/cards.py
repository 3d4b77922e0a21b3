"""Model cards: the metadata at the top of README.md, parsed as what a stranger wrote, and checked.

The metadata is YAML between two lines `---` (Hugging Face, "Model Cards"). It is read event by
event: no alias is followed, no tag makes an object, no key counts twice, and size, depth and
number of values are bounded. What is checked is the hub's metadata schema; each finding says on
which line, what, and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

import msgspec
import yaml

from qwenstack.core.licences import declared

CARD_BYTES_MAX: Final = 8 * 1024 * 1024
_METADATA_BYTES_MAX: Final = 256 * 1024
_VALUES_MAX: Final = 20_000
_DEPTH_MAX: Final = 16
_FINDINGS_MAX: Final = 100
_SHOWN: Final = 80

_OPENING: Final = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)")
_CLOSING: Final = re.compile(r"^---[ \t]*\r?$", re.MULTILINE)
_REPO_ID: Final = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code|other")
_YAML_1_1_BOOLEANS: Final = re.compile(r"(yes|no|on|off|y|n)", re.IGNORECASE)
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")

RELATIONS: Final = ("finetune", "adapter", "merge", "quantized")
"""What `base_model_relation` may say."""

PIPELINE_TAGS: Final = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio
    automatic-speech-recognition depth-estimation document-question-answering feature-extraction
    fill-mask graph-ml image-classification image-feature-extraction image-segmentation
    image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation multiple-choice
    object-detection other question-answering reinforcement-learning robotics
    sentence-similarity summarization table-question-answering table-to-text
    tabular-classification tabular-regression tabular-to-text text-classification
    text-generation text-ranking text-retrieval text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video text2text-generation time-series-forecasting
    token-classification translation unconditional-image-generation video-classification
    video-text-to-text video-to-video visual-document-retrieval visual-question-answering
    voice-activity-detection zero-shot-classification zero-shot-image-classification
    zero-shot-object-detection
    """.split()  # noqa: SIM905
)
"""The tasks that the hub's pages know."""

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


class Finding(msgspec.Struct, frozen=True):
    """Something about a card. `line` counts from 1; a card with an error is not published."""

    level: Literal["error", "warning"]
    line: int
    field: str
    message: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A card's metadata as far as it is well-formed, and its text.

    `metadata` holds all of it, in the order of the file; the fields are what the schema names.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    base_model_relation: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    library_name: str | None = None
    datasets: tuple[str, ...] = ()
    metadata: dict[str, Value] = {}
    body: str = ""


def validate(text: str, kind: str = "model") -> list[Finding]:
    """What is wrong with the card `text` of a repo of this kind (model, dataset, space)."""
    return parse(text, kind)[1]


def parse(content: bytes | str, kind: str = "model") -> tuple[Card, list[Finding]]:
    """The card and what is wrong with it. Never fails: what can't be read is left out and said."""
    findings = _Notes()
    text = _decoded(content, findings)
    if text is None:
        return Card(), findings.all
    metadata_text, first_line, body = _split(text, findings)
    if metadata_text is None:
        return Card(body=body), findings.all
    if not metadata_text.strip():
        findings.warning(first_line, "", "the metadata is empty; add a line `license: …`")
        return Card(body=body), findings.all
    lines: dict[str, int] = {}
    metadata = _Composer(metadata_text, first_line, lines, findings).compose()
    checker = _Checker(metadata, lines, first_line, findings)
    card = checker.card(kind, body)
    return card, findings.all


class _Notes:
    """Collects findings up to a bound."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def error(self, line: int, field: str, message: str) -> None:
        self._add(Finding("error", line, field, message))

    def warning(self, line: int, field: str, message: str) -> None:
        self._add(Finding("warning", line, field, message))

    def _add(self, finding: Finding) -> None:
        if len(self.all) < _FINDINGS_MAX:
            self.all.append(finding)


def _decoded(content: bytes | str, findings: _Notes) -> str | None:
    if len(content) > CARD_BYTES_MAX:
        findings.error(1, "", f"the card is over {CARD_BYTES_MAX} bytes; move parts to other files")
        return None
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        findings.error(
            line, "", f"the card is no UTF-8 text at byte {error.start}; save it as UTF-8"
        )
        return None


def _split(text: str, findings: _Notes) -> tuple[str | None, int, str]:
    """The metadata, the line on which they begin, and what follows them."""
    if text.startswith("\ufeff"):
        findings.warning(1, "", "a byte order mark stands before the metadata; save without it")
        text = text[1:]
    opening = _OPENING.match(text)
    if opening is None:
        findings.warning(
            1, "", "the card has no metadata; begin it with --- and a line `license: …`, then ---"
        )
        return None, 1, text
    line = text.count("\n", 0, opening.end()) + 1
    closing = _CLOSING.search(text, opening.end())
    if closing is None:
        findings.error(line, "", "the metadata has no end; close it with a line ---")
        return None, line, text
    metadata = text[opening.end() : closing.start()]
    if len(metadata.encode("utf-8", "replace")) > _METADATA_BYTES_MAX:
        findings.error(line, "", f"the metadata is over {_METADATA_BYTES_MAX} bytes; shorten it")
        return None, line, text[closing.end() :]
    return metadata, line, text[closing.end() :]


class _Stop(Exception):
    """The metadata can't be read on."""


class _Composer:
    """Builds plain values from YAML's events, and nothing else."""

    def __init__(self, text: str, first_line: int, lines: dict[str, int], notes: _Notes) -> None:
        self._text = text
        self._first_line = first_line
        self._lines = lines
        self._notes = notes
        self._values = 0

    def compose(self) -> dict[str, Value]:
        """The metadata; what comes after an error is left out."""
        top: dict[str, Value] = {}
        try:
            events = yaml.parse(self._text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            self._document(iter(events), top)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = self._first_line + (mark.line if mark else 0)
            at_tab = mark is not None and self._characters_at(mark).lstrip(" ").startswith("\t")
            tab = " (indent with spaces, not with tabs)" if at_tab else ""
            self._notes.error(line, "", f"the metadata is no YAML: {error.problem}{tab}")
        except yaml.YAMLError as error:
            words = str(error).splitlines()[0]
            self._notes.error(self._first_line, "", f"the metadata is no YAML: {words}")
        except _Stop:
            pass
        return top

    def _document(self, events: Iterator[yaml.Event], top: dict[str, Value]) -> None:
        for event in events:
            if isinstance(event, yaml.MappingStartEvent):
                self._mapping(event, events, 1, top, "")
            elif isinstance(event, yaml.NodeEvent):
                raise self._error(event, "", "the metadata is no list of `name: value` lines")

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int, at: str) -> Value:
        self._values += 1
        if self._values > _VALUES_MAX:
            raise self._error(event, at, f"the metadata has over {_VALUES_MAX} values; shorten it")
        if depth > _DEPTH_MAX:
            raise self._error(event, at, f"the metadata nests over {_DEPTH_MAX} deep; flatten it")
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, at, f"*{event.anchor} is an alias; write the value out")
        tag = getattr(event, "tag", None)
        if tag and not (
            isinstance(event, yaml.ScalarEvent) and tag in ("!", "tag:yaml.org,2002:str")
        ):
            raise self._error(
                event, at, f"the tag {tag[:_SHOWN]!r} is not taken; write a plain value"
            )
        if isinstance(event, yaml.ScalarEvent):
            # Only a plain one may be something else than text.
            return self._scalar(event, at) if event.implicit[0] else str(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Value] = []
            for inner in events:
                if isinstance(inner, yaml.SequenceEndEvent):
                    break
                items.append(self._value(inner, events, depth + 1, at))
            return items
        mapping: dict[str, Value] = {}
        self._mapping(event, events, depth, mapping, at)
        return mapping

    def _mapping(
        self,
        start: yaml.Event,
        events: Iterator[yaml.Event],
        depth: int,
        into: dict[str, Value],
        at: str,
    ) -> None:
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                return
            if not isinstance(event, yaml.ScalarEvent) or event.value == "<<":
                raise self._error(event, at, "a name here must be plain text")
            key = str(event.value)
            path = f"{at}.{key[:_SHOWN]}" if at else key[:_SHOWN]
            if key in into:
                self._error(event, path, f"{path} comes twice; keep one")
            value = self._value(next(events), events, depth + 1, path)
            if key not in into:
                into[key] = value
                self._lines.setdefault(path, self._line(event))

    def _scalar(self, event: yaml.ScalarEvent, at: str) -> Value:
        """By YAML 1.2's core schema, as the hub's pages read it."""
        text = str(event.value)
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text.lower() == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _YAML_1_1_BOOLEANS.fullmatch(text):
            self._notes.warning(
                self._line(event), at, f"{text} is true or false to older readers; write '{text}'"
            )
        return text

    def _characters_at(self, mark: yaml.Mark) -> str:
        lines = self._text.splitlines()
        return lines[mark.line][mark.column :] if mark.line < len(lines) else ""

    def _line(self, event: yaml.Event) -> int:
        return self._first_line + (event.start_mark.line if event.start_mark else 0)

    def _error(self, event: yaml.Event, at: str, message: str) -> _Stop:
        self._notes.error(self._line(event), at, message)
        return _Stop()


class _Checker:
    """Holds the metadata to the hub's schema."""

    def __init__(
        self, metadata: dict[str, Value], lines: dict[str, int], first_line: int, notes: _Notes
    ) -> None:
        self._metadata = metadata
        self._lines = lines
        self._first_line = first_line
        self._notes = notes

    def card(self, kind: str, body: str) -> Card:
        """The card; fields that don't fit are left out and noted."""
        card = Card(
            license=self._licence_id(),
            license_name=self._text("license_name"),
            license_link=self._text("license_link"),
            base_model=self._texts("base_model"),
            base_model_relation=self._text("base_model_relation"),
            language=self._texts("language"),
            tags=self._texts("tags"),
            pipeline_tag=self._text("pipeline_tag"),
            library_name=self._text("library_name"),
            datasets=self._texts("datasets"),
            metadata=self._metadata,
            body=body,
        )
        self._check_licence(card)
        self._check_names(card)
        for language in card.language:
            if not _LANGUAGE.fullmatch(language):
                self._warn(
                    "language", f"{language[:_SHOWN]!r} is no ISO 639 code, such as en or zh"
                )
        if kind == "model":
            self._check_model(card)
        return card

    def _check_licence(self, card: Card) -> None:
        if card.license is None:
            if "license" not in self._metadata:
                self._warn(
                    "license", "no licence is declared; add `license: apache-2.0` or another"
                )
            return
        if declared(card.license, card.license_name) is not None:
            return
        if card.license == "other" and card.license_name is None:
            self._warn(
                "license", "`license: other` says nothing; add license_name and license_link"
            )
        elif card.license == "other":
            self._warn("license_name", f"{_quoted(card.license_name)} is not known here")
        else:
            self._warn(
                "license", f"{_quoted(card.license)} is not known here; use its SPDX id, or "
                "`license: other` with license_name and license_link",
            )  # fmt: skip

    def _check_names(self, card: Card) -> None:
        for field, names in (("base_model", card.base_model), ("datasets", card.datasets)):
            for name in names:
                if not _REPO_ID.fullmatch(name) or ".." in name:
                    self._warn(field, f"{_quoted(name)} is no repo id; write namespace/name")

    def _check_model(self, card: Card) -> None:
        relation = card.base_model_relation
        if relation is not None and relation not in RELATIONS:
            self._fail(
                "base_model_relation", f"{_quoted(relation)} is none of {', '.join(RELATIONS)}"
            )
        if relation is not None and not card.base_model:
            self._warn("base_model_relation", "it relates to nothing; add base_model")
        if card.pipeline_tag is not None and card.pipeline_tag not in PIPELINE_TAGS:
            self._warn("pipeline_tag", f"{_quoted(card.pipeline_tag)} is no task that is known")
        if "model-index" in self._metadata:
            self._check_index(self._metadata["model-index"])

    def _check_index(self, index: Value) -> None:
        """Results of evaluations: a list of models with tasks, datasets and metrics."""
        field = "model-index"
        for model in _list(index):
            if not isinstance(model, dict) or not isinstance(model.get("name"), str):
                self._fail(field, "each entry needs a name, a text")
                continue
            results = model.get("results")
            if not isinstance(results, list):
                self._fail(field, "each entry needs results, a list")
            for result in _list(results):
                self._check_result(result if isinstance(result, dict) else {})
        if not isinstance(index, list):
            self._fail(field, "it must be a list of entries with name and results")

    def _check_result(self, result: dict[str, Value]) -> None:
        for part, needed in (("task", ("type",)), ("dataset", ("type", "name"))):
            value = result.get(part)
            for name in needed:
                if not isinstance(value, dict) or not isinstance(value.get(name), str):
                    self._fail("model-index", f"a result needs {part}.{name}, a text")
        metrics = result.get("metrics")
        for metric in _list(metrics) or [None]:
            if (
                not isinstance(metric, dict)
                or not metric.get("type")
                or metric.get("value") is None
            ):
                self._fail("model-index", "a result needs metrics, each with type and value")

    def _licence_id(self) -> str | None:
        value = self._metadata.get("license")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list):
            self._warn("license", "several licences are listed; say which holds for the weights")
            return next((item for item in value if isinstance(item, str)), None)
        return self._as_text("license", value)

    def _text(self, field: str) -> str | None:
        return self._as_text(field, self._metadata.get(field))

    def _as_text(self, field: str, value: Value) -> str | None:
        if isinstance(value, str) or value is None:
            return value or None
        self._fail(field, f"it must be a text, not {_kind(value)}")
        return None

    def _texts(self, field: str) -> tuple[str, ...]:
        value = self._metadata.get(field)
        items = [item for item in _list(value) if item is not None]
        wrong = [item for item in items if not isinstance(item, str)]
        if isinstance(value, dict) or wrong:
            shown = _kind(wrong[0] if wrong else value)
            self._fail(field, f"it must be a text or a list of texts, not {shown}")
        return tuple(item for item in items if isinstance(item, str))

    def _line(self, field: str) -> int:
        return self._lines.get(field, self._first_line)

    def _fail(self, field: str, message: str) -> None:
        self._notes.error(self._line(field), field, f"{field}: {message}")

    def _warn(self, field: str, message: str) -> None:
        self._notes.warning(self._line(field), field, f"{field}: {message}")


def _list(value: Value) -> list[Value]:
    if isinstance(value, list):
        return value
    return [] if value is None or isinstance(value, dict) else [value]


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "true or false (put it in quotes)"
    if isinstance(value, int | float):
        return f"the number {value} (put it in quotes)"
    return "a list" if isinstance(value, list) else "a mapping"


def _quoted(text: str | None) -> str:
    return repr((text or "")[:_SHOWN])


def check_card(text: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of a card, a sentence each: the hub's `check_card`."""
    found = validate(text)
    errors, warnings = (
        [f"line {f.line}: {f.message}" for f in found if f.level == level]
        for level in ("error", "warning")
    )
    return errors, warnings
