"""From rows to typed values."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from sqlalchemy import Row

_T = TypeVar("_T", bound=msgspec.Struct)


def read_row(row: Row[Any], kind: type[_T], **instead: object) -> _T:
    """A `kind` (a msgspec Struct) from the columns of its fields' names.

    `instead` replaces a column's value, for one that is stored encoded. Raises ValidationError for
    a row that does not fit, which only a foreign writer can have made.
    """
    columns = row._mapping
    names = [field.name for field in msgspec.structs.fields(kind)]
    return msgspec.convert(
        {name: instead[name] if name in instead else columns[name] for name in names}, kind
    )
