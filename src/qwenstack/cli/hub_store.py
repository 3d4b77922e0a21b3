"""`qwenstack hub fsck|gc|export|import`: the hub's bytes, seen by who runs it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from sqlalchemy import Connection, select

from qwenstack.cli.context import actor, home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_folder, objects_option
from qwenstack.cli.instants import parse_duration_s
from qwenstack.core.instants import now_us
from qwenstack.hub.bundles import Restored, bundle_repos, inspect_repos, restore_repos
from qwenstack.hub.registry.live import drop_unused_manifests, live_contents
from qwenstack.hub.registry.repos import Kind, Repo, find_repo, read_repo
from qwenstack.hub.registry.waiting import forget_removed
from qwenstack.hub.safety.records import SafetyInspector
from qwenstack.hub.store.bundle import export_bundle, fingerprint, import_bundle
from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.kinds import BundleError, Fault, Forecast
from qwenstack.hub.store.objects import open_objects
from qwenstack.storage.audit_log import record
from qwenstack.storage.database import open_database, reading
from qwenstack.storage.hub_tables import repos

_KEY_NAME = "bundle-key.pem"
_FINGERPRINT = "SHA256:"


@contextmanager
def _open_store(
    home: Path | None, database: str | None, objects: str | None
) -> Iterator[ContentStore]:
    folder = hub_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(database or f"sqlite:///{folder / 'hub.db'}")
    try:
        yield ContentStore(engine, folder, open_objects(objects, folder))
    finally:
        engine.dispose()


@contextmanager
def _bar(words: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(words), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command()
@database_option
@objects_option
@home_option
@json_option
def fsck(database: str | None, objects: str | None, home: Path | None, as_json: bool) -> None:
    """Read all that the hub stores and say what is damaged.

    Ends with 1 when something is. What an unfinished upload left is told and does no harm.

    \b
    Examples:
      qwenstack hub fsck
      qwenstack hub fsck --json
    """
    with _open_store(home, database, objects) as store, _bar("reading", as_json) as progress:
        faults = [*store.check(progress), *_missing_contents(store)]
    for fault in () if as_json else faults:
        note = " (harmless)" if fault.harmless else ""
        click.echo(f"{fault.kind}{note}: {fault.detail}")
        for sha256 in fault.contents:
            click.echo(f"  concerns content {sha256}")
    harmful = sum(not fault.harmless for fault in faults)
    if as_json:
        print_json({"clean": not harmful, "faults": faults})
    elif not harmful:
        click.echo("clean")
    if harmful:
        raise SystemExit(1)


def _missing_contents(store: ContentStore) -> list[Fault]:
    """Files that some commit has and the store has not."""
    with reading(store.database) as connection:
        live = set(live_contents(connection))
    return [
        Fault("missing-content", f"content {sha256} of some commit is missing", None, (sha256,))
        for sha256 in sorted(live - store.find_many(live).keys())
    ]


@click.command()
@click.option(
    "--older-than",
    default="22d",
    show_default=True,
    help="Only what was not used since. Xet clients remember what they uploaded for 21 days.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@database_option
@objects_option
@home_option
@json_option
def gc(
    older_than: str,
    dry_run: bool,
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Remove bytes that no commit has and no upload needs.

    Packs of which at most half is needed are copied together; the old ones go at a later run, when
    downloads that began before have ended. Safe while the hub serves.

    \b
    Examples:
      qwenstack hub gc --dry-run
      qwenstack hub gc
      qwenstack hub gc --older-than 60d --json
    """
    limit_us = now_us() - parse_duration_s(older_than) * 1_000_000
    with _open_store(home, database, objects) as store:
        with reading(store.database) as connection:
            live = frozenset(live_contents(connection))
        if dry_run:
            _tell_gc(store.forecast(live, older_than_us=limit_us), as_json, dry_run=True)
            return
        swept = store.sweep(live, older_than_us=limit_us)
        with _bar("copying", as_json) as progress:
            repacked = store.repack(older_than_us=limit_us, progress=progress)
        with store.database.begin() as connection:
            drop_unused_manifests(connection)
            forget_removed(connection)
    _tell_gc(Forecast(swept, repacked), as_json, dry_run=False)


def _tell_gc(found: Forecast, as_json: bool, *, dry_run: bool) -> None:
    swept, repacked = found.swept, found.repacked
    if as_json:
        print_json({**msgspec.structs.asdict(swept), "repacked": repacked, "dry_run": dry_run})
        return
    removed, copied = ("would remove", "would copy") if dry_run else ("removed", "copied")
    click.echo(
        f"{removed} {swept.contents:,} contents and {swept.packs:,} packs: {swept.bytes:,} bytes"
    )
    if repacked.packs:
        click.echo(
            f"{copied} {repacked.needed_bytes:,} bytes out of {repacked.packs:,} packs that are "
            f"mostly unneeded; their {repacked.bytes:,} bytes go at a run a day later or after"
        )


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("names", metavar="[REPO]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All repos of the hub.")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Ed25519 private key (PEM) to sign with. Default: the hub's own, made when first needed.",
)
@database_option
@objects_option
@home_option
@json_option
def export_command(
    file: Path,
    names: tuple[str, ...],
    everything: bool,
    key: Path | None,
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Write repos with their whole history into one signed file.

    Write `datasets/NAME` for a dataset. The other side checks the signature: give it the
    fingerprint that is printed here by another way than the file.

    \b
    Examples:
      qwenstack hub export models.bundle acme/base acme/chat
      qwenstack hub export everything.bundle --all --key signing.pem
    """
    if everything == bool(names):
        raise click.UsageError("name the repos to export, or give --all")
    signing = _read_private(key) if key is not None else _own_key(hub_folder(home) / _KEY_NAME)
    with _open_store(home, database, objects) as store:
        with reading(store.database) as connection:
            chosen = _every_repo(connection) if everything else _named(connection, names)
            document, needed = bundle_repos(connection, chosen)
        with _bar("exporting", as_json) as progress, _whole_file(file) as out:
            written = export_bundle(
                store, needed, document, key=signing, out=out, progress=progress
            )
        signer = fingerprint(signing.public_key())
        with store.database.begin() as connection:
            for repo in chosen:
                detail = {"kind": repo.kind, "signer": signer}
                record(connection, actor(), "hub.repo.export", repo.name, detail)
    answer = {
        "file": str(file),
        "repos": [f"{repo.kind}:{repo.name}" for repo in chosen],
        "contents": written.contents,
        "bytes": written.bytes,
        "stored_bytes": written.stored_bytes,
        "fingerprint": signer,
    }
    if as_json:
        print_json(answer)
        return
    click.echo(f"{len(chosen)} repos, {written.contents:,} files: {written.bytes:,} bytes")
    click.echo(f"in {file}: {written.stored_bytes:,} bytes, each chunk once")
    click.echo(f"signed by {answer['fingerprint']}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--trust",
    "trusted",
    multiple=True,
    required=True,
    metavar="KEY",
    help="Who may have signed it: a fingerprint SHA256:…, or a file with a public key (PEM).",
)
@database_option
@objects_option
@home_option
@json_option
def import_command(
    file: Path,
    trusted: tuple[str, ...],
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Take in what `hub export` wrote: all of it, or nothing.

    \b
    Examples:
      qwenstack hub import models.bundle --trust signer.pem
    """
    accepted = {_trusted_fingerprint(each) for each in trusted}
    signers: list[str] = []

    def is_trusted(key: Ed25519PublicKey) -> bool:
        signers.append(fingerprint(key))
        return signers[-1] in accepted

    def restore(connection: Connection, document: bytes, present: frozenset[str]) -> list[Restored]:
        done = restore_repos(connection, document, present)
        for each in done:
            detail = {"kind": each.kind, "signer": signers[-1], "commits": each.commits}
            record(connection, actor(), "hub.repo.import", each.name, detail)
        return done

    with (
        _open_store(home, database, objects) as store,
        file.open("rb") as opened,
        _bar("importing", as_json) as progress,
    ):
        restored = import_bundle(
            store,
            opened,
            trusted=is_trusted,
            inspect=lambda document, open_content: inspect_repos(
                document, open_content, [SafetyInspector(store.database)]
            ),
            restore=restore,
            progress=progress,
        )
    if as_json:
        print_json({"file": str(file), "repos": restored})
        return
    for each in restored:
        what = "new" if each.created else f"{each.commits} new commits"
        click.echo(f"{each.kind} {each.name}: {what}, {len(each.refs)} branches and tags moved")


def _named(connection: Connection, names: tuple[str, ...]) -> list[Repo]:
    found: dict[str, Repo] = {}
    for name in names:
        kind: Kind = "dataset" if name.startswith("datasets/") else "model"
        repo = find_repo(connection, kind, name.removeprefix("datasets/").removeprefix("models/"))
        if repo is None:
            raise click.UsageError(
                f"the hub has no {kind} {name!r}; write NAMESPACE/NAME, datasets/NAMESPACE/NAME "
                "for a dataset"
            )
        found[repo.id] = repo
    return list(found.values())


def _every_repo(connection: Connection) -> list[Repo]:
    return [read_repo(connection, each) for each in connection.scalars(select(repos.c.id)).all()]


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path} holds no unencrypted private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} holds another kind of key than Ed25519")
    return key


def _own_key(path: Path) -> Ed25519PrivateKey:
    """The hub's own signing key, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_private(path)
    key = Ed25519PrivateKey.generate()
    form = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(descriptor, "wb") as out:
        out.write(key.private_bytes(*form))
        out.flush()
        os.fsync(out.fileno())
    return key


def _trusted_fingerprint(text: str) -> str:
    if text.startswith(_FINGERPRINT):
        return text
    try:
        key = serialization.load_pem_public_key(Path(text).read_bytes())
    except ValueError as error:
        raise BundleError(f"{text} holds no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{text} holds another kind of key than Ed25519")
    return fingerprint(key)
