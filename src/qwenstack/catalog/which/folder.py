"""Folders with a model: config.json, adapter_config.json, the card, the licence's text.

Also the client's cache of a hub (`models--Qwen--Qwen3-8B/snapshots/<revision>`), whose path says
from which repo the files came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qwenstack.catalog.model import Release, Status
from qwenstack.catalog.which import hub
from qwenstack.catalog.which.bounded import (
    TEXT_BYTES_MAX,
    Unreadable,
    number_of,
    read_bytes,
    read_json,
    text_of,
)
from qwenstack.catalog.which.claims import Claims, judge
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Kind, Reading, Sureness
from qwenstack.catalog.which.shape import Shape
from qwenstack.core import licences

_CACHE: Final = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_LICENCE_NAMES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "license")
_FRONT_MATTER: Final = re.compile(rb"\A\s*---\r?\n(.*?)\r?\n---\s*?(?:\r?\n|\Z)", re.S)
_CARD_LINES_MAX: Final = 400
_ADAPTERS: Final = ("adapter_config.json",)


def read(path: Path, index: Index) -> Iterator[Reading]:
    """The folder at `path`; nothing where no file in it describes a model."""
    claims = Claims()
    cached = _cached(path)
    found = add_files(path, claims)
    if cached:
        reading = next(hub.read_id(cached, index), None)
        if reading is not None:
            yield _from_cache(reading, claims, index)
            return
    if not found:
        return
    kind = Kind.ADAPTER if claims.adapter else Kind.MODEL_FOLDER
    yield judge(claims, kind=kind, subject=path.name, index=index)


def add_files(path: Path, claims: Claims) -> bool:
    """Add what the files in `path` say; whether any describes a model. Problems go to `claims`."""
    found = False
    for name, add in (
        ("config.json", _add_config),
        ("adapter_config.json", _add_adapter),
        ("README.md", _add_card),
    ):
        file = path / name
        if not file.is_file():
            continue
        try:
            found = add(file, claims) or found
        except (Unreadable, OSError) as error:
            found = True
            claims.problems.append(str(error))
    _add_licence(path, claims)
    return found


def _add_config(path: Path, claims: Claims) -> bool:
    config = read_json(path)
    inner = config.get("text_config") or config.get("llm_config") or {}
    text = {**config, **inner} if isinstance(inner, dict) else config
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        claims.say("architectures", ", ".join(text_of(each) for each in architectures[:4]))
    claims.loaded_from = text_of(config.get("_name_or_path"))
    if claims.loaded_from in (".", "./"):
        claims.loaded_from = ""
    claims.say("_name_or_path", claims.loaded_from)
    claims.shape = Shape(
        model_type=text_of(config.get("model_type")),
        hidden=number_of(text.get("hidden_size")),
        layers=number_of(text.get("num_hidden_layers")),
        heads=number_of(text.get("num_attention_heads")),
        kv_heads=number_of(text.get("num_key_value_heads")),
        intermediate=number_of(text.get("intermediate_size")),
        expert_intermediate=number_of(text.get("moe_intermediate_size")),
        experts=number_of(text.get("num_experts")) or number_of(text.get("num_local_experts")),
        vocabulary=number_of(text.get("vocab_size")),
    )
    return bool(claims.shape.model_type or claims.shape.hidden)


def _add_adapter(path: Path, claims: Claims) -> bool:
    config = read_json(path)
    claims.adapter = True
    base = text_of(config.get("base_model_name_or_path"))
    claims.say("peft_type", text_of(config.get("peft_type")))
    claims.say("base_model_name_or_path", base)
    if base:
        claims.made_from.insert(0, base)
    else:
        claims.problems.append(f"{path.name}: names no base model (base_model_name_or_path)")
    return True


def _add_card(path: Path, claims: Claims) -> bool:
    return _card(read_bytes(path, TEXT_BYTES_MAX), path.name, claims)


def of_card(text: str, index: Index) -> Reading | None:
    """The reading of a card's text: somebody's model, and not the base that it names."""
    claims = Claims()
    if not _card(text.encode("utf-8", "replace")[:TEXT_BYTES_MAX], "the card", claims):
        return None
    if not claims.made_from:
        return None
    return judge(claims, kind=Kind.SNIPPET, subject="a model card", index=index)


def _card(data: bytes, name_of: str, claims: Claims) -> bool:
    """The card's front matter: licence, base model, publisher. Only what is needed is parsed."""
    match = _FRONT_MATTER.match(data)
    if match is None:
        return False
    fields = front_matter(match[1].decode("utf-8", "replace"))
    named, name = fields.get("license", []), fields.get("license_name", [])
    if len(set(named)) > 1 or len(set(name)) > 1:
        claims.conflicts.append(f"{name_of}: the card names several licences: {', '.join(named)}")
        return True
    tag, other = (named or [""])[0], (name or [""])[0]
    both = licences.declared(tag), licences.declared(other)
    if all(both) and both[0] is not both[1]:
        claims.conflicts.append(
            f"{name_of}: the card contradicts itself: license {tag!r}, license_name {other!r}"
        )
    else:
        claims.licence_named = other if tag.casefold() in ("", "other") else tag
    claims.say("card: license", " / ".join(each for each in (tag, other) if each))
    for base in fields.get("base_model", [])[:4]:
        claims.made_from.append(base)
        claims.say("card: base_model", base)
    return bool(named or name or fields.get("base_model"))


def front_matter(text: str) -> dict[str, list[str]]:
    """Top-level scalars and lists of scalars of a YAML text. Not YAML: nothing in it expands.

    Anchors, aliases, tags and nesting are not looked at, so a hostile card costs its length.
    """
    fields: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines()[:_CARD_LINES_MAX]:
        if match := re.match(r"([A-Za-z_]{1,40}):\s*(.*)$", line[:500]):
            key, value = match[1], match[2].strip()
            items = value.strip("[]").split(",") if value.startswith("[") else [value]
            values = [each.strip().strip("\"'") for each in items]
            fields.setdefault(key, []).extend(
                each for each in values if each and each[0] not in "&*!|>{#"
            )
        elif key and (match := re.match(r"\s*-\s+(.+)$", line[:500])):
            value = match[1].strip().strip("\"'")
            if value and value[0] not in "&*!|>{[":
                fields[key].append(value)
    return fields


def _add_licence(path: Path, claims: Claims) -> None:
    for name in _LICENCE_NAMES:
        file = path / name
        if not file.is_file():
            continue
        try:
            text = read_bytes(file).decode("utf-8", "replace")
        except (Unreadable, OSError) as error:
            claims.problems.append(str(error))
            return
        found = licences.recognise(text)
        if found is not None:
            claims.licence_text = found.id
            claims.say(f"{name} file", f"{found.id}, recognised by its text")
        else:
            close = licences.closest(text)
            claims.problems.append(
                f"{name}: {close.describe() if close else 'a text that we do not know'}: read it, "
                f"for it governs, and not the card's {claims.licence_named or 'silence'}"
            )
            claims.licence_named = ""
        named = licences.declared(claims.licence_named)
        if found is not None and named is not None and named.id != found.id:
            claims.conflicts.append(
                f"the card names {named.id}, the file {name} is {found.id}: the file governs"
            )
        return


def _cached(path: Path) -> str:
    for part in reversed(path.absolute().parts[-4:]):
        if match := _CACHE.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    return ""


def _may_be(shape: Shape, release: Release, index: Index) -> bool:
    """Whether a configuration of this shape can be the release's, as far as that is known."""
    if not shape.hidden or not shape.layers:
        return True
    known = [each for each in index.catalogue.architectures if each.id == release.architecture]
    if any((each.hidden, each.layers) != (shape.hidden, shape.layers) for each in known):
        return False
    return shape.is_qwen or not (release.model_type.value or "").startswith("qwen")


def _from_cache(reading: Reading, claims: Claims, index: Index) -> Reading:
    import msgspec

    shape, release = claims.shape, reading.release
    if release is not None and not _may_be(shape, release, index):
        return Reading(
            kind=Kind.MODEL_FOLDER,
            sure=Sureness.EXACT,
            why=f"its path names {reading.subject}, its files are another model's",
            subject=reading.subject,
            status=Status.UNKNOWN,
            claims=tuple(claims.said),
            conflicts=(
                f"the path says {reading.subject}, config.json describes {shape.describe()}, which "
                f"is not the shape of {release.name}",
                *claims.conflicts,
            ),
            problems=tuple(claims.problems),
        )
    return msgspec.structs.replace(
        reading,
        kind=Kind.MODEL_FOLDER,
        sure=Sureness.EXACT,
        why="a client's cache: its path says that the files came from this repo; whether they are "
        f"its files is not checked ({reading.why})",
        status=Status.REPORTED if reading.release or reading.derivative else reading.status,
        claims=tuple(claims.said),
        stated_licence=claims.licence_text,
        conflicts=(*reading.conflicts, *claims.conflicts),
        problems=(*reading.problems, *claims.problems),
    )
