"""Query parameters, each read within its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from qwenstack.core.refusals import invalid

_FIELDS_MAX = 20


def read_query(query: bytes) -> dict[str, str]:
    """The first value of each parameter; raises Refusal for a query that is none."""
    try:
        fields = parse_qs(query.decode("ascii"), max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise invalid("The URL's query cannot be read.") from error
    return {name: values[0] for name, values in fields.items()}


def read_limit(query: Mapping[str, str], default: int, most: int) -> int:
    """`limit`; raises Refusal outside 1..most."""
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise invalid(f"'limit' is {text[:20]!r}; it must lie between 1 and {most}.", "limit")
    return int(text)
