"""`qwenstack dossier`: the group; `dossier REF` writes one."""

from __future__ import annotations

import click

from qwenstack.cli.groups import LazyGroup

_COMMANDS = {
    "write": ("qwenstack.cli.dossier_write:write", "Write the dossier of a reference."),
    "diff": ("qwenstack.cli.dossier_check:diff", "What changed, and what must be reviewed again."),
    "verify": ("qwenstack.cli.dossier_check:verify", "Check signature, digests and conclusions."),
}


@click.group(cls=LazyGroup, places=_COMMANDS, default="write")
def dossier() -> None:
    """The reference file for legal and procurement: each line rests on recorded evidence.

    \b
    Examples:
      qwenstack dossier Qwen/Qwen3-8B
      qwenstack dossier ./my-model --out my-model.dossier --decisions decisions.toml
      qwenstack dossier diff old.dossier new.dossier
      qwenstack dossier verify my-model.dossier
    """
