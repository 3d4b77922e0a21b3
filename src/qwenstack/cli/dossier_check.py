"""`qwenstack dossier verify` and `diff`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qwenstack.cli.context import json_option, print_json
from qwenstack.dossier.changes import compare
from qwenstack.dossier.compose import shown
from qwenstack.dossier.seal import problems, read_document, signer

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--public-key", help="Whose signature it must be (base64).")
@json_option
def verify(folder: Path, public_key: str | None, as_json: bool) -> None:
    """Check a dossier folder; exits with 1 where something does not hold.

    \b
    Examples:
      qwenstack dossier verify my-model.dossier
    """
    found = problems(folder, public_key=public_key)
    if as_json:
        print_json({"holds": not found, "problems": found, "public_key": signer(folder)})
    elif found:
        for problem in found:
            click.echo(problem)
    else:
        click.echo("The dossier holds: signature, files, and every conclusion from its evidence.")
        click.echo(f"Signed with {signer(folder)}; --public-key asks for a certain one.")
    sys.exit(1 if found else 0)


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
