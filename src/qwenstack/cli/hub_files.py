"""The files that a reference means: those of a file or folder, or of a release of this hub."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from qwenstack.cli.context import home_option, json_option
from qwenstack.cli.hub_context import database_option, hub_folder
from qwenstack.hub import licence_history
from qwenstack.hub.errors import RepoNotFound
from qwenstack.hub.registry.manifests import Entry, Manifest
from qwenstack.hub.registry.repos import Kind, find_repo
from qwenstack.hub.registry.revisions import Commit, read_files
from qwenstack.hub.store.contents import ContentStore
from qwenstack.storage.database import open_database, reading


class ReleaseFiles(msgspec.Struct):
    """The files of a folder, or of a release of this machine's hub."""

    name: str
    files: Manifest
    open_file: Callable[[Entry], BinaryIO]
    commit: Commit | None = None
    history: Callable[[], list[licence_history.LicenceRevision]] = list


class ReleaseOptions(msgspec.Struct, frozen=True):
    """Which release of which hub a repo's name means."""

    kind: Kind
    revision: str
    database: str | None
    home: Path | None

    def files_of(self, reference: str) -> AbstractContextManager[ReleaseFiles]:
        """What REFERENCE means: a file or folder that is there, else a repo."""
        return files_of(reference, self.kind, self.revision, self.database, self.home)


def release_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--revision`, `--kind`, `--database` and `--home` as one `where`, and `--json`."""

    @functools.wraps(command)
    def called(
        *, kind: Kind, revision: str, database: str | None, home: Path | None, **given: object
    ) -> None:
        command(where=ReleaseOptions(kind, revision, database, home), **given)

    kinds = click.Choice(["model", "dataset"])
    for option in (
        json_option,
        home_option,
        database_option,
        click.option("--kind", type=kinds, default="model"),
        click.option("--revision", default="main", show_default=True),
    ):
        called = option(called)
    return called


@contextmanager
def files_of(
    reference: str,
    kind: Kind,
    revision: str,
    database: str | None,
    home: Path | None,
    *,
    in_hub: bool = False,
) -> Iterator[ReleaseFiles]:
    """What REFERENCE means: a file or folder that is there, else a repo; `in_hub`, a repo alone."""
    path = Path(reference)
    if not in_hub and path.exists():
        yield of_path(path)
        return
    folder = hub_folder(home)
    if database is None and not (folder / "hub.db").exists():
        raise RepoNotFound(f"There is no file or folder {reference}, and no hub under {folder}.")
    engine = open_database(database or f"sqlite:///{folder / 'hub.db'}")
    try:
        store = ContentStore(engine, folder)

        def open_entry(entry: Entry) -> BinaryIO:
            return store.open(entry.sha256)

        with reading(engine) as connection:
            found = find_repo(connection, kind, reference)
            if found is None:
                raise RepoNotFound(f"There is no file or folder {reference}, and no {kind} either.")
            commit, manifest = read_files(connection, found.id, revision)

        def history() -> list[licence_history.LicenceRevision]:
            with reading(engine) as connection:
                return licence_history.read_revisions(connection, commit, open_entry)

        yield ReleaseFiles(found.name, manifest, open_entry, commit, history)
    finally:
        engine.dispose()


def of_path(path: Path) -> ReleaseFiles:
    """The files below a folder, or one file; links are listed and not followed."""
    root = path.parent if path.is_file() else path
    # Links are listed and not followed: what they lead to is not part of the folder.
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = tuple(
        Entry(each.relative_to(root).as_posix(), each.stat().st_size, "", "", False, "")
        for each in paths
        if ".git" not in each.relative_to(root).parts
    )
    return ReleaseFiles(path.resolve().name, files, lambda entry: (root / entry.path).open("rb"))
