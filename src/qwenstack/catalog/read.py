"""Read the catalogue's TOML files into records, with errors that a person can act on.

A record is an array of tables named after its kind (`[[release]]`). Its `source`, `checked` and
`status` (or the file's `[defaults]`) hold for all its facts; a fact that was read elsewhere is a
table: `licence = {value = "Apache-2.0", source = "gpustack", status = "reported"}`. A fact that
is left out is unknown. A fact that two sources contradict names the other in `otherwise`. A
release's repos are ids as listed in `repos_source` (or the record's source), or tables.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from qwenstack.catalog.model import (
    ApiHost,
    ApiTerms,
    Architecture,
    Claim,
    Derivative,
    Fact,
    Generation,
    HostedModel,
    Lag,
    LookAlike,
    NegativeCase,
    OllamaTag,
    Organisation,
    PriceReference,
    Record,
    Release,
    Repo,
    Source,
)

KINDS: dict[str, type[Record] | type[Source]] = {
    "source": Source,
    "organisation": Organisation,
    "generation": Generation,
    "architecture": Architecture,
    "release": Release,
    "hosted": HostedModel,
    "terms": ApiTerms,
    "host": ApiHost,
    "derivative": Derivative,
    "negative": NegativeCase,
    "lookalike": LookAlike,
    "ollama": OllamaTag,
    "lag": Lag,
}
"""Name of a table in the files, and the record that it makes."""

_FILE_BYTES_MAX = 2 * 1024 * 1024
_RECORDS_MAX = 20_000
_PROVENANCE = ("source", "checked", "status")
_SNAPSHOT_INHERITS = ("operator", "modality", "context", "title", "state", *_PROVENANCE)

_QUANTISATIONS = re.compile(
    r"-(FP8|AWQ|GPTQ-Int4|GPTQ-Int8|GGUF|MLX-4bit|MLX-6bit|MLX-8bit|MLX-bf16|MLX|Int4|Int8)$"
)
_TAG_QUANTISATIONS = re.compile(
    r"(?:^|-)((?:q\d\w*|fp16|bf16|fp8|int[48]|nvfp4|mxfp[48]|mlx)[a-z0-9_-]*)$", re.IGNORECASE
)
_TUNINGS = re.compile(
    r"-(Base|Instruct|Chat|Thinking|Captioner|CustomVoice|VoiceDesign|Preview)"
    r"(?:-(?:2507|1M))?$"
)


class CatalogueError(ValueError):
    """The catalogue's files can't be used; the message has a line for each problem."""


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and where: `place` is file, line and record."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Placed(msgspec.Struct, frozen=True):
    """A record and where it stands."""

    kind: str
    record: Record | Source
    place: str


def read_folder(folder: Path) -> tuple[list[Placed], list[Problem]]:
    """Every record of the `*.toml` files in `folder`, and what is wrong with the others."""
    placed: list[Placed] = []
    problems: list[Problem] = []
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise CatalogueError(f"{folder}: no *.toml files; a catalogue is a folder of them")
    for path in paths:
        if (size := path.stat().st_size) > _FILE_BYTES_MAX:
            problems.append(Problem(path.name, f"{size} bytes, more than {_FILE_BYTES_MAX}"))
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            problems.append(Problem(path.name, f"not UTF-8 text: {error}"))
            continue
        read_text(text, path.name, placed, problems)
    return placed, problems


def read_text(text: str, name: str, placed: list[Placed], problems: list[Problem]) -> None:
    """Read one file's text; appends its records and its problems."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(Problem(name, f"not valid TOML: {error}"))
        return
    defaults = document.pop("defaults", {})
    if not isinstance(defaults, dict) or set(defaults) - set(_PROVENANCE):
        problems.append(Problem(name, f"[defaults] may hold {', '.join(_PROVENANCE)} only"))
        return
    for kind, tables in document.items():
        if kind not in KINDS:
            hint = _did_you_mean(kind, KINDS)
            problems.append(Problem(name, f"[[{kind}]] is no kind of record{hint}"))
        elif not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            problems.append(Problem(name, f"{kind} must be written [[{kind}]]"))
        elif len(tables) > _RECORDS_MAX:
            problems.append(Problem(name, f"more than {_RECORDS_MAX} [[{kind}]]"))
        else:
            _read_tables(text, name, kind, tables, defaults, placed, problems)


def _read_tables(
    text: str,
    name: str,
    kind: str,
    tables: list[dict[str, object]],
    defaults: Mapping[str, object],
    placed: list[Placed],
    problems: list[Problem],
) -> None:
    lines = _first_lines(text, kind)
    for number, table in enumerate(tables):
        start = lines[number] if number < len(lines) else 0
        label = table.get("key" if kind == "source" else "id")
        for raw in _expanded(kind, {**defaults, **table}):
            place = f"{name}:{start}: {kind} {raw.get('id', label)!r}"
            found = _record(kind, raw)
            if isinstance(found, str):
                problems.append(Problem(_at_field(text, name, start, found, place), found))
            else:
                placed.append(Placed(kind, found, place))


def _expanded(kind: str, table: dict[str, object]) -> Iterator[dict[str, object]]:
    """The table, and what it lists in short: a hosted line's snapshots, an Ollama tag's others."""
    if kind == "hosted":
        yield from _with_snapshots(table, table.pop("snapshots", []))
    elif kind == "ollama":
        yield from _with_tags(table, table.pop("tags", []))
    else:
        yield table


def _with_tags(table: dict[str, object], tags: object) -> Iterator[dict[str, object]]:
    """Tags of one thing: all that is said of the first holds for the others but `default`."""
    if not isinstance(tags, list) or not all(isinstance(each, str) for each in tags):
        yield {**table, "tags": tags}
        return
    shared = {name: value for name, value in table.items() if name != "default"}
    library, _, first = str(table.get("id", "")).partition(":")
    for tag in (first, *tags):
        found = _TAG_QUANTISATIONS.search(tag)
        own = {} if table.get("quantisation") or not found else {"quantisation": found[1].lower()}
        yield {**(table if tag is first else shared), "id": f"{library}:{tag}", **own}


def _with_snapshots(table: dict[str, object], snapshots: object) -> Iterator[dict[str, object]]:
    """A hosted line and its snapshots, which take from it what they don't say themselves."""
    yield table
    if not isinstance(snapshots, list):
        yield {**table, "snapshots": snapshots}
        return
    inherited = {name: table[name] for name in _SNAPSHOT_INHERITS if name in table}
    for each in snapshots:
        own = {"id": each} if isinstance(each, str) else each
        if not isinstance(own, dict):
            own = {"id": own}
        ending = str(own.get("id", "")).rpartition("-")[2]
        default_kind = "alias" if ending == "latest" else "snapshot"
        yield {"kind": default_kind, **inherited, "main": table.get("id", ""), **own}


def _record(kind: str, raw: dict[str, object]) -> Record | Source | str:
    """The record that `raw` says, or what is wrong with it: `field: …`."""
    struct = KINDS[kind]
    fields = _fields(struct)
    for field in raw:
        if field not in fields and not (kind == "release" and field == "repos_source"):
            return f"{field}: no such field{_did_you_mean(field, fields)}"
    if struct is Source:
        return _convert(raw, struct)
    for field in ("id", *_PROVENANCE):
        if not raw.get(field):
            return f"{field}: missing or empty; every record needs it (or [defaults] of the file)"
    if raw["status"] == "unknown" and kind != "negative":
        return "status: a record is verified or reported; mark single facts as unknown"
    whole: dict[str, object] = dict(raw)
    for field, is_fact in fields.items():
        if is_fact:
            fact = _fact(field, raw)
            if isinstance(fact, str):
                return fact
            whole[field] = fact
    if kind == "release":
        repos = _repos(raw)
        if isinstance(repos, str):
            return repos
        whole["repos"] = repos
        whole.pop("repos_source", None)
    if kind == "hosted":
        whole["prices"] = [
            {"source": raw["source"], "checked": raw["checked"], **price}
            if isinstance(price, dict)
            else price
            for price in _list(raw.get("prices", []))
        ]
    return _convert(whole, struct)


def _fact(field: str, raw: Mapping[str, object]) -> dict[str, object] | str:
    """The fact in `field` with the record's source, date and status where it has none itself."""
    provenance = {name: raw[name] for name in _PROVENANCE}
    written = raw.get(field)
    if written is None:
        return {**provenance, "value": None, "status": "unknown"}
    if not isinstance(written, dict):
        return {**provenance, "value": written}
    known = _fields(Fact)
    for name in written:
        if name not in known:
            return f"{field}: {name} is no part of a fact{_did_you_mean(name, known)}"
    fact = {**provenance, **written}
    if fact.get("value") is None:
        fact["value"] = None
        if written.get("status") != "unknown":
            return f'{field}: no value; write one, or status = "unknown"'
    elif fact["status"] == "unknown":
        return f'{field}: has a value and status "unknown"; remove one of them'
    others = _list(fact.get("otherwise", []))
    if not all(isinstance(each, dict) for each in others):
        return f"{field}: otherwise is a list of tables {{value, source}}"
    fact["otherwise"] = [{"checked": fact["checked"], **each} for each in others]  # type: ignore[dict-item]
    return fact


def _repos(raw: Mapping[str, object]) -> list[dict[str, object]] | str:
    """The release's repos; tuning and quantisation from the name where they are not written."""
    repos: list[dict[str, object]] = []
    listed_in = raw.get("repos_source", raw["source"])
    for each in _list(raw.get("repos", [])):
        own = {"id": each} if isinstance(each, str) else each
        if not isinstance(own, dict) or not isinstance(own.get("id"), str):
            return "repos: each is a hub id, or a table with one as id"
        unknown = next((name for name in own if name not in _fields(Repo)), None)
        if unknown is not None:
            return f"repos: {unknown} is no part of a repo"
        name = str(own["id"])
        repo = {
            "source": listed_in,
            "checked": raw["checked"],
            "tuning": tuning_of(name),
            "quantisation": quantisation_of(name),
            **own,
        }
        if "licence" in own:
            fact = _fact("licence", {**raw, **own})
            if isinstance(fact, str):
                return f"repos: {name}: {fact}"
            repo["licence"] = fact
        repos.append(repo)
    return repos


def quantisation_of(repo_id: str) -> str:
    """How a repo's weights are stored, by its name: `fp8`, `gptq-int4`, or empty if unsaid."""
    found = _QUANTISATIONS.search(repo_id)
    return found[1].lower() if found else ""


def tuning_of(repo_id: str) -> str:
    """What a repo's weights were tuned to, by its name: `instruct`, `base`, or empty if unsaid."""
    found = _TUNINGS.search(_QUANTISATIONS.sub("", repo_id))
    return found[1].lower() if found else ""


def _convert(raw: object, struct: type[Record] | type[Source]) -> Record | Source | str:
    try:
        return msgspec.convert(raw, struct)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`").split(".")[0].split("[")[0] if path else ""
        value = raw.get(field) if isinstance(raw, dict) else None
        if isinstance(value, dict) and "value" in value:
            value = value["value"]
        shown = f" (it is {value!r})" if value is not None else ""
        return f"{field}: {message}{shown}" if field else message


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


@functools.cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, bool]:
    """The fields of a struct, and which of them are facts."""
    return {
        field.name: typing.get_origin(field.type) is Fact
        for field in msgspec.structs.fields(struct)
    }


def facts_of(record: msgspec.Struct) -> Iterator[tuple[str, Fact[object]]]:
    """The facts of a record, by field; a repo's own licence as `repos.<id>.licence`."""
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if isinstance(value, Fact):
            yield field, value
        elif isinstance(value, tuple):
            for each in value:
                if isinstance(each, Repo) and each.licence is not None:
                    yield f"repos.{each.id}.licence", typing.cast("Fact[object]", each.licence)


def citations(record: msgspec.Struct) -> Iterator[tuple[str, str]]:
    """Every source key that a record cites, with the field that cites it."""
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if field == "source" and isinstance(value, str):
            yield field, value
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Fact | Claim | Repo | PriceReference):
                for inner, key in citations(each):
                    yield field if inner == "source" else f"{field}.{inner}", key


def _did_you_mean(name: str, among: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, among, n=1)
    known = ", ".join(sorted(among))
    return f"; did you mean {close[0]}?" if close else f"; known: {known}"


def _first_lines(text: str, kind: str) -> list[int]:
    """The line on which each `[[kind]]` stands, counted from 1."""
    pattern = re.compile(rf"^\s*\[\[\s*{kind}\s*\]\]")
    return [at for at, line in enumerate(text.splitlines(), 1) if pattern.match(line)]


def _at_field(text: str, name: str, start: int, problem: str, place: str) -> str:
    """`place`, with the line of the field that the problem is about where it can be found."""
    field = problem.partition(":")[0]
    lines = text.splitlines()
    for at in range(start, len(lines)):
        if lines[at].startswith("[["):
            break
        if re.match(rf"\s*{re.escape(field)}\s*=", lines[at]):
            return place.replace(f"{name}:{start}:", f"{name}:{at + 1}:", 1)
    return place
