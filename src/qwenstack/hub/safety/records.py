"""Scans kept by content: equal bytes of the same kind are scanned once for each scanner version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Final, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, select

from qwenstack.core.instants import now_us
from qwenstack.hub.safety.findings import Finding, Scan
from qwenstack.hub.safety.policy import Policy, default_policy
from qwenstack.hub.safety.scanner import SCANNER, file_kind, scan
from qwenstack.storage.database import reading, replace_in
from qwenstack.storage.hub_tables import scans

_REFUSALS_SHOWN_MAX: Final = 20
_HELD_MAX: Final = 1_000
_BATCH: Final = 500
_RELEASED: Final = "released"
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


def read_scans(
    connection: Connection, files: Iterable[HubFile], policy: Policy | None = None
) -> dict[str, Scan]:
    """What this scanner found in these files, by path; a file that it hasn't seen is left out.

    The findings are stored; the verdict on them is by `policy`, the default rules without one.
    """
    rules = policy or default_policy()
    listed = list(files)
    found: dict[str, Scan] = {}
    for start in range(0, len(listed), _BATCH):
        batch = listed[start : start + _BATCH]
        query = select(scans.c.sha256, scans.c.scanner, scans.c.findings).where(
            scans.c.sha256.in_({file.sha256 for file in batch})
        )
        stored = {(row.sha256, row.scanner): row.findings for row in connection.execute(query)}
        for file in batch:
            document = stored.get((file.sha256, scanner_of(file.path)))
            if document is not None:
                found[file.path] = rules.judge(_findings.decode(document))
    return found


def write_scans(connection: Connection, found: Iterable[tuple[HubFile, Scan]]) -> None:
    """Keep scans; those of the same version are replaced."""
    rows = {
        (file.sha256, scanner_of(file.path)): {
            "sha256": file.sha256,
            "scanner": scanner_of(file.path),
            "verdict": each.verdict,
            "findings": msgspec.json.encode(each.findings).decode(),
            "scanned_us": now_us(),
        }
        for file, each in found
    }
    replace_in(connection, scans, list(rows.values()))


class Held(msgspec.Struct, frozen=True):
    """A content in quarantine: what was found in it, and since when."""

    sha256: str
    findings: tuple[Finding, ...]
    scanned_us: int


def quarantine(connection: Connection, policy: Policy | None = None) -> list[Held]:
    """The contents that wait for an operator, newest first; at most 1 000."""
    rules = policy or default_policy()
    released = select(scans.c.sha256).where(scans.c.scanner == _RELEASED)
    query = (
        select(scans)
        .where(scans.c.scanner.startswith(f"{SCANNER}:", autoescape=True))
        .where(scans.c.verdict != "clean", scans.c.sha256.not_in(released))
        .order_by(scans.c.scanned_us.desc())
    )
    held: list[Held] = []
    for row in connection.execute(query):
        found = rules.judge(_findings.decode(row.findings))
        if rules.action_on(found) == "quarantine":
            held.append(Held(row.sha256, found.findings, row.scanned_us))
        if len(held) == _HELD_MAX:
            break
    return held


def release(connection: Connection, sha256: str, policy: Policy | None = None) -> bool:
    """Let a content out of quarantine: the next push of it is taken. False if none is held so.

    What a rule refuses stays refused, released or not.
    """
    if all(held.sha256 != sha256 for held in quarantine(connection, policy)):
        return False
    row = {"sha256": sha256, "scanner": _RELEASED, "verdict": "clean", "findings": "[]"}
    replace_in(connection, scans, [{**row, "scanned_us": now_us()}])
    return True


def _released(connection: Connection, files: Sequence[HubFile]) -> set[str]:
    query = select(scans.c.sha256).where(
        scans.c.sha256.in_({file.sha256 for file in files}), scans.c.scanner == _RELEASED
    )
    return set(connection.scalars(query))


class SafetyInspector:
    """Scans the files of a commit before the branch moves; fits the hub's port for inspectors.

    A file in quarantine keeps the commit back as a refused one does; its bytes stay in the store,
    and once an operator has released them the same push is taken.
    """

    def __init__(self, database: Engine, policy: Policy | None = None) -> None:
        self._database = database
        self._policy = policy or default_policy()

    def inspect(self, entries: Sequence[_F], open_file: Callable[[_F], BinaryIO]) -> Sequence[str]:
        """Why these files must not be published: a sentence each, empty when they may.

        Blocking: reads the beginning of each file, and starts children for templates and pickles.
        """
        refusals: list[str] = []
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            with reading(self._database) as connection:
                known = read_scans(connection, batch, self._policy)
                released = _released(connection, batch)
            new: list[tuple[_F, Scan]] = []
            for entry in batch:
                found = known.get(entry.path)
                if found is None:
                    found = self._scan(entry, open_file)
                    new.append((entry, found))
                refusals += self._refusals(entry, found, entry.sha256 in released)
            with self._database.begin() as connection:
                write_scans(connection, new)
            if len(refusals) >= _REFUSALS_SHOWN_MAX:
                break
        return refusals[:_REFUSALS_SHOWN_MAX]

    def _scan(self, entry: _F, open_file: Callable[[_F], BinaryIO]) -> Scan:
        return scan(entry.path, entry.size, lambda: open_file(entry), policy=self._policy)

    def _refusals(self, entry: _F, found: Scan, is_released: bool) -> Iterator[str]:
        for finding in found.findings:
            action = self._policy.action(finding)
            words = self._policy.told(entry.path, finding)
            if action == "refuse":
                yield words
            elif action == "quarantine" and not is_released:
                yield (
                    f"{words}. It is in quarantine: an operator may let it out with "
                    f"`qwenstack hub quarantine --release {entry.sha256}`"
                )
