"""Which JSON Schemas OpenVINO GenAI really holds an answer to.

Its decoder (xgrammar) leaves out without a word what it does not know. Tried with schemas that a
model would break if it could (openvino-genai 2026.4.1, 2026-11), it dropped: `multipleOf`,
`uniqueItems`, `not`, `if`, `contains`, `dependentRequired`, `allOf`, `oneOf`'s exclusiveness, what
stands beside `$ref` or `anyOf`, a length beside a `pattern`, every keyword where there is no
`type`, and a required name that `properties` does not hold. So only what held is admitted, and the
rest refused by name.

White space between JSON's parts cannot be bounded there: a small model pushed against its schema
may write blanks up to its token limit, which its finish reason then says.
"""

from __future__ import annotations

import re
from typing import Any, Final

from qwenstack.engines.constraints import check_schema
from qwenstack.engines.interface import EngineRejected

_HELD: Final = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "minProperties",
        "items", "prefixItems", "minItems", "maxItems", "enum", "const", "anyOf", "$ref",
        "$defs", "definitions", "minLength", "maxLength", "pattern", "format",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    }
)  # fmt: skip
_ANNOTATIONS: Final = frozenset(
    {
        "$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated",
        "readOnly", "writeOnly",
    }
)  # fmt: skip
# What its regular expressions lack. The pipeline would notice while it schedules, and where another
# request is part of that step it does not recover: the child would have to be started again.
_NO_REGULAR_PART: Final = re.compile(r"(?<!\\)\(\?(?!:)|\\[1-9bBkAZ]")
_FORMATS: Final = frozenset({"date", "uuid"})
_ALONE: Final = ("$ref", "anyOf", "enum", "const")
_BESIDE: Final = frozenset({"$defs", "definitions"}) | _ANNOTATIONS


def check_held(schema: dict[str, Any], where: str) -> None:
    """Raise EngineRejected for a schema that `check_schema` refuses or that would not hold."""
    check_schema(schema, where)
    pending: list[tuple[Any, str]] = [(schema, where)]
    while pending:
        node, path = pending.pop()
        if not isinstance(node, dict):
            continue  # true or false
        _check_keywords(node, path)
        _check_required(node, path)
        for key in ("items", "additionalProperties"):
            if key in node:
                pending.append((node[key], f"{path}.{key}"))
        for key in ("anyOf", "prefixItems"):
            pending += [(each, f"{path}.{key}[{n}]") for n, each in enumerate(node.get(key) or ())]
        for key in ("properties", "$defs", "definitions"):
            members: dict[str, Any] = node.get(key) or {}
            pending += [(each, f"{path}.{key}.{name[:60]}") for name, each in members.items()]


def _check_keywords(node: dict[str, Any], path: str) -> None:
    for key in node:
        if key not in _HELD and key not in _ANNOTATIONS:
            raise _refused(path, f"{key[:60]!r} would not be held to; leave it out")
    for key in _ALONE:
        beside = set(node) - _BESIDE - {key}
        if key in ("enum", "const"):
            beside.discard("type")  # it says nothing new there
        if key in node and beside:
            raise _refused(path, f"{min(beside)!r} would not be held to beside {key!r}")
    if "type" not in node and set(node) - _BESIDE - set(_ALONE):
        raise _refused(path, "nothing would be held to without a 'type'; add it")
    lengths = bool({"minLength", "maxLength"} & set(node))
    if "pattern" in node and (lengths or "format" in node):
        raise _refused(path, "a length or a format would not be held to beside 'pattern'")
    pattern = node.get("pattern", "")
    if isinstance(pattern, str) and (lacking := _NO_REGULAR_PART.search(pattern)):
        raise _refused(path, f"'pattern' cannot be held to: {lacking[0]!r} is not known here")
    form = node.get("format", "date")
    if not isinstance(form, str) or form not in _FORMATS or ("format" in node and lengths):
        known = " or ".join(sorted(_FORMATS))
        raise _refused(path, f"'format' can only be {known} here, and without lengths")


def _check_required(node: dict[str, Any], path: str) -> None:
    properties = node.get("properties") or {}
    for name in node.get("required") or ():
        if name not in properties:
            raise _refused(
                path, f"{name[:60]!r} is required but not among the properties; add it there"
            )


def _refused(path: str, what: str) -> EngineRejected:
    return EngineRejected(f"{path[:200]}: {what} (OpenVINO).")
