"""The door for JSON request bodies: typed, bounded, and every failure a Refusal.

What it promises for any bytes at all: the decoder's value, or a `Refusal` that names the field, the
value found and what belongs there. Decisions, once for every surface:

* Invalid UTF-8, a byte order mark, lone surrogates, `NaN` and `Infinity` are malformed JSON.
* A number beyond the range of a double, or an integer of more than some 4 000 digits, is refused;
  any other integer parses, so that a range check can say what is wrong with it.
* Of a duplicated key the last value counts, as in the vendors' own parsers. Nothing downstream
  reads the body again, so no second parser can see the other value.
* The decoder bounds the nesting of the whole body; `check_free_form` bounds the parts that stay
  untyped (JSON Schemas) far tighter, before code that recurses over them.

The HTTP layer bounds the size.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from qwenstack.core.refusals import Refusal, invalid

T = TypeVar("T")

SHOWN_CHARACTERS = 80
FREE_FORM_DEPTH = 64
FREE_FORM_NODES = 20_000
_SHOWN_BODY_BYTES = 1 << 20
_KEY_OR_INDEX = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_UNKNOWN_FIELD = "Object contains unknown field `"
_MISSING_FIELD = "Object missing required field `"


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode `body`; raises Refusal (INVALID_REQUEST) and nothing else."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error), body) from error
    except UnicodeDecodeError as error:
        raise invalid(
            f"The request body is not valid UTF-8 ({error.reason}); send JSON encoded as UTF-8."
        ) from error
    except RecursionError as error:
        raise invalid("The request body is nested too deeply; flatten it.") from error
    except msgspec.DecodeError as error:
        if not body.strip():
            raise invalid("The request body is empty; send a JSON object.") from error
        raise invalid(f"The request body is not valid JSON: {error}.") from error


def check_free_form(
    value: object,
    param: str,
    *,
    depth: int = FREE_FORM_DEPTH,
    nodes: int = FREE_FORM_NODES,
) -> None:
    """Bound an untyped JSON value; raises Refusal naming `param` when it is too deep or large."""
    level, count = [value], 0
    for _ in range(depth):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        count += len(below)
        if count > nodes:
            raise invalid(f"'{param}' holds more than {nodes} values; make it smaller.", param)
        if not below:
            return
        level = below
    raise invalid(f"'{param}' is nested more than {depth} levels deep; flatten it.", param)


def show(value: object) -> str:
    """`value` as JSON for a message, cut to `SHOWN_CHARACTERS`."""
    if isinstance(value, str):
        value = value[: SHOWN_CHARACTERS + 1]
    try:
        text = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        text = repr(value)
    if len(text) > SHOWN_CHARACTERS:
        return text[:SHOWN_CHARACTERS] + "…"
    return text


def shorten(text: str) -> str:
    """`text` without quotes, cut to `SHOWN_CHARACTERS`: for names that a message must repeat."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _wrong_value(complaint: str, body: bytes) -> Refusal:
    what, separator, where = complaint.rpartition(" - at `")
    if not separator:
        what, where = complaint, ""
    path = where.rpartition("`$")[2] if "`$" in where else where.removeprefix("$")
    path = path.rstrip("`").removeprefix(".")
    if what.startswith(_UNKNOWN_FIELD):
        name = what[len(_UNKNOWN_FIELD) :].removesuffix("`")
        param = shorten(f"{path}.{name}" if path else name)
        return invalid(f"Unrecognized request argument supplied: {param}", param)
    if what.startswith(_MISSING_FIELD):
        name = what[len(_MISSING_FIELD) :].removesuffix("`")
        param = shorten(f"{path}.{name}" if path else name)
        return invalid(f"Missing required parameter: '{param}'.", param)
    param = shorten(path)
    what = shorten(what)
    if not path:
        return invalid(f"The request body is not as expected: {what}.")
    found, value = _value_at(body, path)
    shown = f" The value is {show(value)}." if found else ""
    return invalid(f"Invalid value for '{param}': {what}.{shown}", param)


def _value_at(body: bytes, path: str) -> tuple[bool, Any]:
    """The value that `path` (as msgspec writes it) leads to, where it can be found at no risk."""
    if len(body) > _SHOWN_BODY_BYTES or "[...]" in path:
        return False, None
    try:
        value: Any = msgspec.json.decode(body)
        for key, index in _KEY_OR_INDEX.findall(path):
            value = value[key] if key else value[int(index)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return False, None
    return True, value
