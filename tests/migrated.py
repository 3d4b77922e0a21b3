"""A new database whose tables are up to date: migrated once a run, and copied from then on."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from sqlalchemy import Engine

from qwenstack.storage.database import open_database


def lay_database(path: Path) -> str:
    """Put a SQLite database at `path` where there is none yet; its URL."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_empty())
    return f"sqlite:///{path}"


def new_database(path: Path) -> Engine:
    """The same, opened as the product opens it."""
    return open_database(lay_database(path))


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory(prefix="qwenstack-migrated-") as folder:
        path = Path(folder) / "empty.db"
        # The last connection that ends leaves all in the one file.
        open_database(f"sqlite:///{path}").dispose()
        return path.read_bytes()
