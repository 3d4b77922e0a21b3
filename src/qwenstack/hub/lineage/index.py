"""The index of a hub's lineage: a fingerprint and an answer for every release, kept up to date.

The database is what counts (`hub_fingerprints`, and the lineage in a repo's summary); the code
matrix beside it is a cache. Each release is one transaction, so that a run that is killed goes on
where it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection, Engine, select

from qwenstack.core.instants import now_us
from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.facts import compute, read_facts
from qwenstack.hub.lineage.audit import Finding, Standing, audit
from qwenstack.hub.lineage.codes import CodeMatrix
from qwenstack.hub.lineage.fingerprint import VERSION, Fingerprint, fingerprint
from qwenstack.hub.lineage.library import Library
from qwenstack.hub.lineage.model import Model
from qwenstack.hub.lineage.releases import (
    OpenFile,
    Release,
    main_releases,
    newest_manifest,
    opener,
)
from qwenstack.hub.lineage.tensors import UnreadableModel
from qwenstack.hub.lineage.trace import AFFINITY_MIN, Answer, trace
from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.hub.store.rows import insert_new
from qwenstack.hub.summaries import Lineage, note_lineage, noted_lineage
from qwenstack.storage.hub_tables import fingerprints

_NEAR: Final = 64
_DOCUMENT_BYTES_MAX: Final = 1 << 22
_KEYS_AT_ONCE: Final = 500

Progress = Callable[[int, int], None]


class Indexed(msgspec.Struct, frozen=True):
    """What an update did: releases fingerprinted, traced, and those that could not be read."""

    releases: int
    fingerprinted: int
    traced: int
    unreadable: dict[str, str]


def write_print(connection: Connection, key: str, print_: Fingerprint) -> None:
    """Keep a fingerprint under a key of 64 hex digits, a release's digest mostly."""
    document = zlib.compress(msgspec.msgpack.encode(print_), 6)
    row = {"manifest": key, "version": VERSION, "document": document, "computed_us": now_us()}
    insert_new(connection, fingerprints, [row])


def read_prints(connection: Connection, keys: list[str]) -> dict[str, Fingerprint]:
    """The fingerprints that are there, by key."""
    found: dict[str, Fingerprint] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        query = select(fingerprints.c.manifest, fingerprints.c.document).where(
            fingerprints.c.version == VERSION,
            fingerprints.c.manifest.in_(keys[start : start + _KEYS_AT_ONCE]),
        )
        for key, document in connection.execute(query):
            found[key] = _decode(document)
    return found


def _decode(document: bytes) -> Fingerprint:
    inflate = zlib.decompressobj()
    data = inflate.decompress(document, _DOCUMENT_BYTES_MAX)
    return msgspec.msgpack.decode(data, type=Fingerprint)


class HubIndex:
    """The lineage index of one hub: its database, its files, and the folder of the matrix."""

    def __init__(self, database: Engine, open_file: OpenFile, folder: Path) -> None:
        self._database = database
        self._open_file = open_file
        self._codes = CodeMatrix(folder)

    def update(self, progress: Progress = lambda done, total: None) -> Indexed:
        """Fingerprint and trace what is new; returns what was done."""
        with self._database.connect() as connection:
            releases = main_releases(connection)
            known = read_prints(connection, [release.manifest for release in releases])
        open_model = opener(releases, self._database.connect, self._open_file)
        unreadable: dict[str, str] = {}
        added: dict[str, Fingerprint] = {}
        for number, release in enumerate(releases):
            progress(number, 2 * len(releases))
            if release.manifest in known:
                continue
            try:
                model = open_model(release.name)
                if model.adapter is not None:
                    continue
                print_ = fingerprint(model)
            except (UnreadableModel, OSError) as error:
                unreadable[release.name] = str(error)
                continue
            with self._database.begin() as connection:
                write_print(connection, release.manifest, print_)
            known[release.manifest] = added[release.manifest] = print_
        self._fill_codes(known)
        touched = self._touched(added)
        fresh = [release for release in releases if release.name not in unreadable]
        traced = 0
        for number, release in enumerate(fresh):
            progress(len(releases) + number, len(releases) + len(fresh))
            if noted_lineage(release.summary) is not None and release.manifest not in touched:
                continue
            self._note(release, self.ask(open_model(release.name), releases))
            traced += 1
        return Indexed(len(releases), len(added), traced, unreadable)

    def open(self, name: str) -> Model:
        """A release of the hub by its repo's name; raises RepoNotFound, UnreadableModel."""
        with self._database.connect() as connection:
            releases = main_releases(connection)
        wanted = [release for release in releases if release.name.lower() == name.lower()]
        if not wanted:
            raise RepoNotFound(f"There is no file or folder {name}, and no model of this hub.")
        return opener(wanted, self._database.connect, self._open_file)(wanted[0].name)

    def audit(self) -> tuple[list[Finding], list[str]]:
        """What cards and licences say against the weights, and the releases not traced yet."""
        standings: dict[str, Standing] = {}
        missing: list[str] = []
        with self._database.connect() as connection:
            for release in main_releases(connection):
                noted = noted_lineage(release.summary)
                files = read_manifest(connection, release.manifest)
                facts = read_facts(connection, release.manifest)
                if facts is None:
                    facts = compute(files, self._open_file)
                if noted is None:
                    missing.append(release.name)
                said = noted or Lineage(None, "unrelated", 0.0, "insufficient")
                bases = [base.name for base in facts.base_models]
                standings[release.name] = Standing(
                    name=release.name,
                    declared=tuple(bases),
                    parent=said.parent,
                    relation=said.relation,
                    confidence=said.confidence,
                    verdict=said.verdict,
                    licence=facts.licence,
                )
        known = {name.lower() for name in standings}
        for name, standing in standings.items():
            here = frozenset(base for base in standing.declared if base.lower() in known)
            standings[name] = msgspec.structs.replace(standing, here=here)
        return audit(standings), missing

    def ask(self, model: Model, releases: list[Release] | None = None) -> Answer:
        """Trace a model, perhaps one of the releases, among the releases of the hub."""
        if releases is None:
            with self._database.connect() as connection:
                releases = main_releases(connection)
        by_key: dict[str, list[Release]] = {}
        for release in releases:
            by_key.setdefault(release.manifest, []).append(release)
        near = list(self._near(model, by_key))
        with self._database.connect() as connection:
            prints = read_prints(connection, [release.manifest for release in near])
        named = {
            release.name: prints[release.manifest] for release in near if release.manifest in prints
        }
        open_model = opener(near, self._database.connect, self._open_file)
        dates = {release.name: release.created_us for release in releases}
        return trace(model, Library(list(named), open_model, named, dates))

    def noted(self, name: str, manifest: str) -> Answer | None:
        """What `update` found of a release, by its repo's name and its digest; None where it was
        not traced, or another one was. No layers are kept.
        """
        with self._database.connect() as connection:
            releases = main_releases(connection)
        for release in releases:
            if release.name.lower() != name.lower() or release.manifest != manifest:
                continue
            said = noted_lineage(release.summary)
            if said is not None:
                parents = [said.parent] if said.parent else []
                return msgspec.convert(
                    {**msgspec.structs.asdict(said), "evidence": [], "parents": parents}, Answer
                )
        return None

    def _near(self, model: Model, by_key: dict[str, list[Release]]) -> Iterator[Release]:
        """The releases that are worth comparing: all of a small hub, else the index's answer."""
        if len(by_key) <= _NEAR or model.adapter is not None:
            for same in by_key.values():
                yield from same
            return
        try:
            print_ = fingerprint(model)
        except UnreadableModel:
            return
        for key, _ in self._codes.nearest(print_, 4 * _NEAR):
            yield from by_key.get(key.hex(), [])

    def _touched(self, added: dict[str, Fingerprint]) -> set[str]:
        """Releases whose answer a new release may change: all that are like it."""
        return {
            key.hex()
            for print_ in added.values()
            for key, alike in self._codes.nearest(print_, 4 * _NEAR)
            if alike >= AFFINITY_MIN
        }

    def _fill_codes(self, known: dict[str, Fingerprint]) -> None:
        there = self._codes.keys()
        new = {bytes.fromhex(key): print_ for key, print_ in known.items()}
        self._codes.append((key, print_) for key, print_ in new.items() if key not in there)

    def _note(self, release: Release, answer: Answer) -> None:
        said = Lineage(answer.parent, answer.relation, answer.confidence, answer.verdict)
        with self._database.begin() as connection:
            # Nobody pushes meanwhile; and what was pushed since is another release.
            if newest_manifest(connection, release.repo_id) == release.manifest:
                note_lineage(connection, release.repo_id, said)
