"""What an output may be constrained to: schemas checked before an engine sees them.

A constrained decoder given a schema that nothing satisfies, or one whose grammar explodes, does not
say so: llama.cpp took 24 GB and answered nobody for `minItems` above `maxItems` (measured 2026-11).
So bounds that contradict each other and sizes that no honest schema has are refused here. Nothing
is silently dropped: what llguidance does not implement it refuses itself, by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from qwenstack.engines.interface import EngineRejected

DEPTH_MAX: Final = 32
NODES_MAX: Final = 2_000
ENUM_MAX: Final = 1_000
ENUM_CHARACTERS_MAX: Final = 20_000
REPEAT_MAX: Final = 2_000
PATTERN_CHARACTERS_MAX: Final = 500
TEXT_CHARACTERS_MAX: Final = 100_000
_NUMBER_MAX: Final = 1e15
_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_SCHEMA_KEYS: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_SCHEMA_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_REPEATS: Final = (
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
    ("minProperties", "maxProperties"),
)
# A quantified group that is itself quantified: (a+)+ and its kin.
_NESTED_QUANTIFIER: Final = re.compile(r"\([^()]*[+*}][^()]*\)[+*{]")
_LARGE_QUANTIFIER: Final = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


def check_schema(schema: object, where: str = "schema") -> None:
    """Raise EngineRejected for a JSON Schema that cannot or should not be decoded against."""
    if not isinstance(schema, dict):
        raise _rejected(where, f"a JSON Schema is an object, not {_shown(schema)}")
    nodes = 0
    pending: list[tuple[object, str, int]] = [(schema, where, 0)]
    while pending:
        node, path, depth = pending.pop()
        nodes += 1
        if depth > DEPTH_MAX:
            raise _rejected(path, f"it is nested deeper than {DEPTH_MAX}; flatten it")
        if nodes > NODES_MAX:
            raise _rejected(where, f"it has more than {NODES_MAX} parts; make it smaller")
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise _rejected(path, f"a JSON Schema is an object, not {_shown(node)}")
        _check_node(node, path)
        pending += [(child, place, depth + 1) for child, place in _children(node, path)]
    _check_references(schema, where)


def _children(node: dict[str, Any], path: str) -> Iterator[tuple[object, str]]:
    for key in _SCHEMA_KEYS:
        if key in node:
            yield node[key], f"{path}.{key}"
    for key in _SCHEMA_LISTS:
        members = node.get(key) or []
        if not isinstance(members, list):
            raise _rejected(f"{path}.{key}", "it must be a list of schemas")
        yield from ((child, f"{path}.{key}[{index}]") for index, child in enumerate(members))
    for key in _SCHEMA_MAPS:
        members = node.get(key) or {}
        if not isinstance(members, dict):
            raise _rejected(f"{path}.{key}", "it must map names to schemas")
        yield from ((child, f"{path}.{key}.{name[:60]}") for name, child in members.items())


def _check_node(node: dict[str, Any], path: str) -> None:
    types = node.get("type") or []
    for kind in types if isinstance(types, list) else [types]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise _rejected(f"{path}.type", f"{_shown(kind)} is no JSON type")
    for low, high in _REPEATS:
        _check_repeats(node, low, high, path)
    _check_range(node, path)
    _check_enumeration(node, path)
    _check_required(node, path)
    pattern = node.get("pattern")
    if pattern is not None:
        _check_pattern(pattern, f"{path}.pattern")
    patterns = node.get("patternProperties")
    for pattern in patterns if isinstance(patterns, dict) else ():
        _check_pattern(pattern, f"{path}.patternProperties")


def _check_repeats(node: dict[str, Any], low: str, high: str, path: str) -> None:
    counts: dict[str, int] = {}
    for key in (low, high):
        value = node.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _rejected(f"{path}.{key}", f"{_shown(value)} is no count")
        counts[key] = value
    if counts.get(low, 0) > counts.get(high, math.inf):
        raise _rejected(
            path, f"{low} {counts[low]} is above {high} {counts[high]}: nothing satisfies it"
        )
    for key, value in counts.items():
        if value > REPEAT_MAX:
            raise _rejected(f"{path}.{key}", f"{value} is above {REPEAT_MAX}; lower it")


def _check_range(node: dict[str, Any], path: str) -> None:
    bounds: dict[str, float] = {}
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        value = node.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _rejected(f"{path}.{key}", f"{_shown(value)} is no number")
        if not abs(value) < _NUMBER_MAX:
            raise _rejected(f"{path}.{key}", f"{_shown(value)} is out of range")
        bounds[key] = value
    low = max(bounds.get("minimum", -math.inf), bounds.get("exclusiveMinimum", -math.inf))
    high = min(bounds.get("maximum", math.inf), bounds.get("exclusiveMaximum", math.inf))
    open_ended = low in (bounds.get("exclusiveMinimum"),) or high in (
        bounds.get("exclusiveMaximum"),
    )
    if low > high or (low == high and open_ended):
        raise _rejected(path, f"no number lies between {low} and {high}")
    step = bounds.get("multipleOf")
    if step is not None and step <= 0:
        raise _rejected(f"{path}.multipleOf", f"{step} is not above 0")
    if node.get("type") == "integer" and step is None:
        step = 1
    if step and math.isfinite(low) and math.isfinite(high):
        first = math.ceil(low / step) * step
        if first > high or (open_ended and not _some_multiple(low, high, step, bounds)):
            raise _rejected(path, f"no multiple of {step} lies between {low} and {high}")


def _some_multiple(low: float, high: float, step: float, bounds: dict[str, float]) -> bool:
    for count in range(3):
        value = math.ceil(low / step) * step + count * step
        above = value > low or low != bounds.get("exclusiveMinimum")
        below = value < high or (value == high and high != bounds.get("exclusiveMaximum"))
        if above and below:
            return True
    return False


def _check_enumeration(node: dict[str, Any], path: str) -> None:
    values = node.get("enum")
    if values is None:
        return
    if not isinstance(values, list) or not values:
        raise _rejected(f"{path}.enum", "it must be a list with at least one value")
    if len(values) > ENUM_MAX or len(json.dumps(values)) > ENUM_CHARACTERS_MAX:
        raise _rejected(
            f"{path}.enum",
            f"it has {len(values)} values; at most {ENUM_MAX} and {ENUM_CHARACTERS_MAX} characters",
        )


def _check_required(node: dict[str, Any], path: str) -> None:
    required = node.get("required") or []
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _rejected(f"{path}.required", "it must be a list of names")
    properties = node.get("properties", {})
    for name in required:
        if isinstance(properties, dict) and properties.get(name) is False:
            raise _rejected(f"{path}.properties.{name[:60]}", "it is required and forbidden")
        closed = node.get("additionalProperties") is False and "patternProperties" not in node
        if closed and isinstance(properties, dict) and name not in properties:
            raise _rejected(
                f"{path}.required", f"{name[:60]!r} is required and additionalProperties forbids it"
            )
    most = node.get("maxProperties")
    if isinstance(most, int) and len(set(required)) > most:
        raise _rejected(path, f"{len(required)} properties are required and {most} allowed")


def _check_pattern(pattern: object, path: str) -> None:
    if not isinstance(pattern, str):
        raise _rejected(path, f"{_shown(pattern)} is no regular expression")
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise _rejected(path, f"it is longer than {PATTERN_CHARACTERS_MAX} characters")
    if _NESTED_QUANTIFIER.search(pattern):
        raise _rejected(path, "it repeats a repetition, which explodes; write it without")
    for match in _LARGE_QUANTIFIER.finditer(pattern):
        if any(number and int(number[:9]) > REPEAT_MAX for number in match.groups()):
            raise _rejected(path, f"it repeats more than {REPEAT_MAX} times")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _rejected(path, f"it is no regular expression: {error}") from error


def _check_references(schema: dict[str, Any], where: str) -> None:
    """Each `$ref` must lead somewhere inside, and not only to other references for ever."""
    text = json.dumps(schema, default=repr)
    if len(text) > TEXT_CHARACTERS_MAX:
        raise _rejected(where, f"it is longer than {TEXT_CHARACTERS_MAX} characters")
    pending: list[object] = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                _follow(schema, node["$ref"], where)
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def _follow(schema: dict[str, Any], reference: str, where: str) -> None:
    for _ in range(DEPTH_MAX):
        if reference != "#" and not reference.startswith("#/"):
            raise _rejected(where, f"$ref {reference[:60]!r} leads outside; use #/$defs/…")
        node: Any = schema
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or name not in node:
                raise _rejected(where, f"$ref {reference[:60]!r} leads nowhere")
            node = node[name]
        if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
            return
        reference = node["$ref"]
    raise _rejected(where, f"$ref {reference[:60]!r} leads in a circle")


def _rejected(path: str, what: str) -> EngineRejected:
    return EngineRejected(f"{path[:200]}: {what}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
