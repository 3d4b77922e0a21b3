"""What changed between two editions of the catalogue: pure, over the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from qwenstack.catalog.model import Records

_GROUPS = tuple(name for name in Records.__struct_fields__ if name != "digest")
_NOISE = frozenset({"checked"})
"""A later look at the same fact is no change of the fact."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference. `field` is empty where the whole record came or went.

    `before` and `after` are the values as JSON has them; None where there is none.
    """

    kind: str
    id: str
    what: str
    """`added`, `removed` or `changed`."""
    field: str = ""
    before: object = None
    after: object = None


def changes(old: Records, new: Records) -> list[Change]:
    """What must be read again: by kind and id in the order of the editions."""
    found: list[Change] = []
    for group in _GROUPS:
        kind = group.removesuffix("s") if group != "terms" else group
        before, after = _by_id(old, group), _by_id(new, group)
        for name in (*before, *(each for each in after if each not in before)):
            if name not in after:
                found.append(Change(kind=kind, id=name, what="removed"))
            elif name not in before:
                found.append(Change(kind=kind, id=name, what="added"))
            else:
                found += (
                    Change(kind=kind, id=name, what="changed", field=field, before=was, after=now)
                    for field, was, now in _fields(before[name], after[name])
                )
    return found


def _by_id(records: Records, group: str) -> dict[str, Mapping[str, object]]:
    return {
        str(each.get("key") or each["id"]): each
        for each in msgspec.to_builtins(getattr(records, group))
    }


def _fields(
    old: Mapping[str, object], new: Mapping[str, object], above: str = ""
) -> Iterator[tuple[str, object, object]]:
    """The leaves that differ, with their dotted path; lists are compared whole."""
    for name in (*old, *(each for each in new if each not in old)):
        was, now = old.get(name), new.get(name)
        if name in _NOISE or was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _fields(was, now, f"{above}{name}.")
        elif _without_noise(was) != _without_noise(now):
            yield f"{above}{name}", was, now


def _without_noise(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_noise(each) for name, each in value.items() if name not in _NOISE}
    if isinstance(value, list):
        return [_without_noise(each) for each in value]
    return value
