"""`qwenstack dossier verify` and `diff`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from qwenstack.cli.context import home_option, json_option, print_json
from qwenstack.cli.hub_files import files_of
from qwenstack.dossier.changes import compare
from qwenstack.dossier.compose import shown
from qwenstack.dossier.document import Document
from qwenstack.dossier.rehash import (
    first_difference,
    names_below,
    recorded_commit,
    recorded_files,
)
from qwenstack.dossier.seal import problems, read_document, signer
from qwenstack.hub.errors import RepoNotFound, RevisionNotFound

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--public-key", help="Whose signature it must be (base64).")
@click.option(
    "--weights",
    type=click.Path(exists=True, path_type=Path),
    help="Where the weights lie now; default: where the dossier found them, or this hub.",
)
@click.option("--no-weights", is_flag=True, help="Don't hash the weights again.")
@home_option
@json_option
def verify(
    folder: Path,
    public_key: str | None,
    weights: Path | None,
    no_weights: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Check a dossier folder; exits with 1 where something does not hold.

    The weights that it speaks of are hashed again where they can be reached: the file or folder
    that was its reference, or the commit in this machine's hub. Where they can't, that is said.

    \b
    Examples:
      qwenstack dossier verify my-model.dossier
      qwenstack dossier verify my-model.dossier --weights /mnt/models/my-model
      qwenstack dossier verify my-model.dossier --no-weights
    """
    found = problems(folder, public_key=public_key)
    document = read_document(folder)
    outcome = "not checked: --no-weights" if no_weights else _weights(document, weights, home)
    if outcome.startswith(_DIFFER):
        found.append(outcome)
    if as_json:
        print_json(
            {
                "holds": not found,
                "problems": found,
                "public_key": signer(folder),
                "weights": outcome,
            }
        )
    elif found:
        for problem in found:
            click.echo(problem)
    else:
        click.echo("The dossier holds: signature, files, and every conclusion from its evidence.")
        click.echo(f"Signed with {signer(folder)}; --public-key asks for a certain one.")
        click.echo(f"Weights: {outcome}.")
    sys.exit(1 if found else 0)


_DIFFER = "the weights differ: "


def _weights(document: Document, weights: Path | None, home: Path | None) -> str:
    """How the weights stand to the dossier, in words; those of a difference begin alike."""
    recorded = recorded_files(document)
    if not recorded:
        return "not checked: the dossier rests on no files"
    path, revision = weights or Path(document.reference), recorded_commit(document)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("hashing the weights", total=None)

        def hashed(done: int) -> None:
            bar.advance(task, done)

        # A folder of a repo's name is not what was read of the repo.
        if weights is not None or (revision is None and path.exists()):
            root = path if path.is_dir() else path.parent
            names = names_below(root) if path.is_dir() else iter((path.name,))
            bar.update(task, total=_size(root, recorded))
            different = first_difference(
                recorded, names, lambda name: (root / name).open("rb"), hashed=hashed
            )
        else:
            if revision is None:
                return f"not checked: nothing lies at {path} (--weights says where they are)"
            try:
                with files_of(
                    document.reference, "model", revision, None, home, in_hub=True
                ) as there:
                    entries = {entry.path: entry for entry in there.files}
                    bar.update(task, total=sum(entry.size for entry in there.files))
                    different = first_difference(
                        recorded,
                        entries,
                        lambda name: there.open_file(entries[name]),
                        hashed=hashed,
                    )
            except (RepoNotFound, RevisionNotFound) as error:
                return f"not checked: {error}"
    if different is not None:
        return f"{_DIFFER}{different}"
    return f"{len(recorded)} files hash to what the dossier records"


def _size(root: Path, recorded: Iterable[str]) -> int:
    return sum(each.stat().st_size for name in recorded if (each := root / name).is_file())


@click.command()
@click.argument("old", type=_FOLDER)
@click.argument("new", type=_FOLDER)
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """What changed from OLD to NEW; exits with 1 where something must be reviewed again.

    \b
    Examples:
      qwenstack dossier diff 2026-10.dossier 2026-11.dossier
    """
    found = compare(read_document(old), read_document(new))
    if as_json:
        print_json(found)
    else:
        for change in found.changes:
            before = "nothing" if change.before is None else shown(change.before)
            after = "nothing" if change.after is None else shown(change.after)
            click.echo(f"{change.kind:8} {change.claim}: {before} → {after}")
        click.echo(f"To review again: {', '.join(found.review) or 'nothing'}.")
        for role in found.void_sign_offs:
            click.echo(f"The sign-off of {role} is older than what changed.")
    sys.exit(1 if found.review else 0)
