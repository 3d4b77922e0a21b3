"""Snippets: Python, YAML, TOML, JSON, `.env`, Compose. They are read as text and never evaluated.

The references in a snippet are found by their form (`mentions.py`), so no alias of a YAML file is
expanded and no code runs. A base URL decides who operates the models named beside it.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from qwenstack.catalog.model import Status
from qwenstack.catalog.which import endpoint, provider
from qwenstack.catalog.which.answer import UNKNOWN, Answer
from qwenstack.catalog.which.compose import compose, weaker
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.mentions import Mention, find, setting_of
from qwenstack.catalog.which.reading import Kind, Reading, Setting
from qwenstack.core.layers import Layer

_PARTS_MAX: Final = 32
_URL: Final = re.compile(r"(?:https?|wss?)://[\w.\[\]:-]+(?:/[\w./-]*)?")
_VALUE: Final = re.compile(
    r"(?:^|[\s,{(\"'])(?:model|model_id|model_name|MODEL\w*|\w+_MODEL|engine|deployment)[\"']?\s*[:=]\s*"
    r"[\"']?([\w@][\w.@:/+-]{1,200})"
)
_JOIN: Final = r"[\"']?\s*[:=,]?\s*[\[{(]?\s*[\"']?"
_LABEL: Final = re.compile(
    r"(?:served[-_]model[-_]name|\balias|output[-_]dir|local[-_]dir|save[-_]path|hub[-_]model[-_]id)"
    + _JOIN + "$"
)  # fmt: skip
_LITELLM_LABEL: Final = re.compile(r"\bmodel_name" + _JOIN + "$")
_BESIDE: Final = re.compile(
    r"(?:\btokenizer\w*|(?:\bspeculative|\bdraft)[-_\w]*(?:" + _JOIN + r"model)?)" + _JOIN + "$"
)
_LOADED: Final = re.compile(
    r"\bmodel(?:[-_](?:path|id|name[-_]or[-_]path))?[\"']?\s*[:=,\s]\s*[\"'\[]*[\w./~$]"
)
_BEFORE_CHARACTERS: Final = 60


def read(text: str, index: Index, setting: Setting, *, name: str = "") -> Answer | None:
    """The answer for a text that names models; None where it names none."""
    from qwenstack.catalog.which.decide import shorten, unknown

    if text.lstrip().startswith("---") and "base_model" in text:
        from qwenstack.catalog.which.folder import of_card

        card = of_card(text, index)
        if card is not None:
            return compose(shorten(name or text), card, (), index)
    mentions = [each for each in _distinct(text, index) if not _is_label(text, each)]
    servers = _servers(text, index)
    # An address in a text is where its models are asked for, and not one of them.
    named = [each for each in mentions if not any(s.subject in each.text for s in servers)]
    answers = [_part(each, servers, index) for each in named[:_PARTS_MAX]]
    parts = [each for each in answers if each.kind != Kind.API_URL.value]
    shown = shorten(name or text)
    if not parts:
        if servers:
            answer = compose(shown, servers[0], servers[1:], index)
            return msgspec.structs.replace(answer, kind=Kind.SNIPPET.value)
        return (
            unknown(shown, "", index, "a text that names no model that we know") if name else None
        )
    return _together(shown, parts)


def _distinct(text: str, index: Index) -> list[Mention]:
    found: dict[str, Mention] = {}
    for match in _VALUE.finditer(text):
        value = match[1].rstrip(".:/-+@")
        if _model_like(value, index):
            found.setdefault(value, Mention(value, match.start(1), Setting.ANY))
    for mention in find(text, index):
        found.setdefault(mention.text, mention)
    inside: set[str] = set()
    reach = -1
    # The longest of those that begin at one place first: what ends before its end lies in it.
    for each in sorted(found.values(), key=lambda each: (each.start, -len(each.text))):
        end = each.start + len(each.text)
        if end <= reach:
            inside.add(each.text)
        reach = max(reach, end)
    return [each for each in found.values() if each.text not in inside]


def _is_label(text: str, mention: Mention) -> bool:
    """Whether the name only labels what is served or written, or is loaded beside the model."""
    before = text[max(0, mention.start - _BEFORE_CHARACTERS) : mention.start]
    if _LABEL.search(before):
        return True
    if _LITELLM_LABEL.search(before) and "litellm_params" in text:
        return True
    beside = _BESIDE.search(before)
    if beside is None:
        return False
    start = mention.start - len(beside[0])
    return bool(_LOADED.search(text[:start]) or _LOADED.search(text[mention.start :]))


def _model_like(value: str, index: Index) -> bool:
    bare = value.rpartition("/")[2].casefold()
    return (
        any(word in bare for word in ("qwen", "qwq", "qvq"))
        or index.catalogue.find_hosted(value) is not None
        or index.catalogue.find_derivative(value) is not None
        or index.catalogue.find_ollama(value) is not None
    )


def _servers(text: str, index: Index) -> list[Reading]:
    found: dict[str, Reading] = {}
    for match in _URL.finditer(text[: 1 << 20]):
        for reading in endpoint.read(match[0], index):
            found.setdefault(reading.subject, reading)
    return list(found.values())


def _part(mention: Mention, servers: list[Reading], index: Index) -> Answer:
    from qwenstack.catalog.which.decide import look_alike, which

    if answer := look_alike(mention.text, index, mention.setting):
        return answer
    setting = mention.setting
    server = servers[0] if len(servers) == 1 else None
    if server is not None and server.layer is Layer.STUDIO:
        vendor = index.catalogue.find_hosted(mention.text)
        theirs = server.operator or (server.host.operator if server.host else "")
        if vendor is None or vendor.operator != theirs:
            reading = provider.served(mention.text, theirs, server.host, server.region)
            return compose(mention.text, reading, (), index)
        setting = Setting.API
    answer = which(mention.text, catalogue=index, setting=setting, files=False)
    if server is None:
        return answer
    if server.layer is not Layer.STUDIO:
        return _at_own_server(answer, server)
    whole = compose(mention.text, server, (), index)
    return msgspec.structs.replace(
        answer,
        region=whole.region,
        governing_document=whole.governing_document,
        status=weaker(answer.status, whole.governing_document),
    )


def _at_own_server(answer: Answer, server: Reading) -> Answer:
    """A model named beside the address of a server of one's own, or of nobody we know."""
    if answer.layer == Layer.STUDIO.value:
        # A name of the vendor's API, asked of another server: it is whatever that server loaded.
        return msgspec.structs.replace(
            answer,
            layer=UNKNOWN,
            release=None,
            operator=server.operator or UNKNOWN,
            publisher=UNKNOWN,
            governing_document=type(answer.governing_document)(),
            obligations=(),
            status=Status.UNKNOWN,
            why=f"a name asked of {server.subject}: what that server loaded under it is not said",
        )
    if not server.operator:
        return msgspec.structs.replace(
            answer,
            operator=UNKNOWN,
            problems=(*answer.problems, f"served at {server.subject}, whose operator is not known"),
        )
    return msgspec.structs.replace(answer, operator=server.operator)


def _together(shown: str, parts: list[Answer]) -> Answer:
    first = parts[0]
    if len(parts) == 1:
        return msgspec.structs.replace(
            first,
            reference=shown,
            kind=Kind.SNIPPET.value,
            why=f"names {first.reference}: {first.why}",
        )
    layers = {each.layer for each in parts}
    documents = {(each.governing_document.kind, each.governing_document.id) for each in parts}
    operators = {each.operator for each in parts}
    same_document = len(documents) == 1
    return Answer(
        reference=shown,
        kind=Kind.SNIPPET.value,
        layer=first.layer if len(layers) == 1 else UNKNOWN,
        release=None,
        operator=first.operator if len(operators) == 1 else UNKNOWN,
        governing_document=first.governing_document
        if same_document
        else type(first.governing_document)(),
        obligations=first.obligations if same_document else (),
        status=Status.UNKNOWN,
        why=f"names {len(parts)} models: each has its own answer",
        parts=tuple(parts),
    )


def beside(reference: str, text: str, index: Index | None = None) -> Answer:
    """The answer for `reference` as whoever uses the configuration `text` would resolve it.

    The server that the configuration names decides who operates the model, and its clients whether
    a bare name is the API's, Ollama's, or that of weights.
    """
    from qwenstack.catalog.which.index import index as default

    found = index or default()
    return _part(Mention(reference, 0, setting_of(text)), _servers(text, found), found)
