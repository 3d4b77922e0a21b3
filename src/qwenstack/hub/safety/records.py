"""Scans kept by content: equal bytes of the same kind are scanned once for each scanner version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, select

from qwenstack.core.instants import now_us
from qwenstack.hub.safety.findings import Finding, Scan
from qwenstack.hub.safety.policy import Policy, default_policy
from qwenstack.hub.safety.scanner import SCANNER, file_kind, scan
from qwenstack.storage.database import replace_in
from qwenstack.storage.hub_tables import scans

_REFUSALS_SHOWN_MAX: Final = 20
_findings = msgspec.json.Decoder(tuple[Finding, ...])


class HubFile(Protocol):
    """A file of a release, as far as a scan needs it."""

    @property
    def path(self) -> str:
        """Where the release holds it."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def sha256(self) -> str:
        """Its content."""
        ...


_F = TypeVar("_F", bound=HubFile)


def scanner_of(path: str) -> str:
    """The key of a scan: the version, and what the file's name makes of its content."""
    return f"{SCANNER}:{file_kind(path)}"


def read_scan(
    connection: Connection, path: str, sha256: str, policy: Policy | None = None
) -> Scan | None:
    """What this scanner found in the content when it was scanned under such a name, or None.

    The findings are stored; the verdict on them is by `policy`, the default rules without one.
    """
    query = select(scans.c.findings).where(
        scans.c.sha256 == sha256, scans.c.scanner == scanner_of(path)
    )
    document: str | None = connection.scalar(query)
    if document is None:
        return None
    return (policy or default_policy()).judge(_findings.decode(document))


def write_scan(connection: Connection, path: str, sha256: str, found: Scan) -> None:
    """Keep a scan; one of the same version is replaced."""
    row = {
        "sha256": sha256,
        "scanner": scanner_of(path),
        "verdict": found.verdict,
        "findings": msgspec.json.encode(found.findings).decode(),
        "scanned_us": now_us(),
    }
    replace_in(connection, scans, [row])


def held_back(
    connection: Connection, path: str, sha256: str, policy: Policy | None = None
) -> tuple[str, ...]:
    """Why this file is not to be served, a sentence each; empty when it is.

    That is a file in quarantine, or one that today's rules would refuse.
    """
    rules = policy or default_policy()
    found = read_scan(connection, path, sha256, rules)
    if found is None or rules.action_on(found) == "publish":
        return ()
    return tuple(rules.told(path, f) for f in found.findings if rules.action(f) != "publish")


class SafetyInspector:
    """Scans the files of a commit before the branch moves; fits the hub's port for inspectors."""

    def __init__(self, database: Engine, policy: Policy | None = None) -> None:
        self._database = database
        self._policy = policy or default_policy()

    def inspect(self, entries: Sequence[_F], open_file: Callable[[_F], BinaryIO]) -> Sequence[str]:
        """Why these files must not be published: a sentence each, empty when they may.

        Blocking: reads the beginning of each file, and starts children for templates and pickles.
        """
        refusals: list[str] = []
        for entry in entries:
            found = self._scan(entry, open_file)
            refusals += [
                self._policy.told(entry.path, finding)
                for finding in found.findings
                if self._policy.action(finding) == "refuse"
            ]
            if len(refusals) >= _REFUSALS_SHOWN_MAX:
                break
        return refusals[:_REFUSALS_SHOWN_MAX]

    def _scan(self, entry: _F, open_file: Callable[[_F], BinaryIO]) -> Scan:
        with self._database.connect().execution_options(read_only=True) as connection:
            known = read_scan(connection, entry.path, entry.sha256, self._policy)
        if known is not None:
            return known
        found = scan(entry.path, entry.size, lambda: open_file(entry), policy=self._policy)
        with self._database.begin() as connection:
            write_scan(connection, entry.path, entry.sha256, found)
        return found
