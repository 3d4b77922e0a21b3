"""`qwenstack`: the entry point. Command groups load when they are used."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from qwenstack.cli.groups import LazyGroup

# Name, where it is, and its line in the overview: the overview imports none of them.
_COMMANDS = {
    "up": ("qwenstack.cli.up:up", "Serve a model behind a metered API, in one command."),
    "serve": ("qwenstack.cli.serve:serve", "Serve what qwenstack.toml deploys."),
    "admin": ("qwenstack.cli.admin:admin", "Workspaces, keys, plans, budgets and money."),
    "usage": ("qwenstack.cli.usage:usage", "What was consumed, and what it cost."),
    "invoice": ("qwenstack.cli.invoice:invoice", "A workspace's bill: table, JSON, CSV, PDF."),
    "ledger": ("qwenstack.cli.ledger:ledger", "Prove that the ledger holds."),
    "audit": ("qwenstack.cli.audit:audit", "Who did what, and that nobody rewrote it."),
    "hub": ("qwenstack.cli.hub:hub", "A hub that Hugging Face clients use unchanged."),
    "lineage": ("qwenstack.cli.lineage:lineage", "Whose child a model is, told from its weights."),
    "bench": ("qwenstack.cli.bench:bench", "Measure engines on this machine."),
    "catalog": ("qwenstack.cli.catalog:catalog", "The Qwen family on record, with sources."),
    "which": ("qwenstack.cli.which:which", "What a reference is, and which document governs it."),
    "policy": ("qwenstack.cli.policy:policy", "Check a policy file, and what it decides."),
    "compare": ("qwenstack.cli.compare:compare", "Candidates side by side on what decides."),
    "watch": ("qwenstack.cli.watch:watch", "What hubs publish, and what changed."),
    "dossier": (
        "qwenstack.cli.dossier:dossier",
        "The reference file for legal and procurement, from evidence.",
    ),
    "doctor": ("qwenstack.cli.doctor:doctor", "Check this machine and this installation."),
}


@click.group(
    cls=LazyGroup, places=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="qwenstack")
def qwenstack() -> None:
    """Open weights behind a metered, priced and limited API, as software you own.

    \b
    Examples:
      qwenstack up                    serve the default Qwen model; prints a key and a curl line
      qwenstack up --model my.gguf    serve another model
      qwenstack usage                 what was consumed, and what it cost
      qwenstack invoice --pdf out.pdf

    Shell completion: eval "$(_QWENSTACK_COMPLETE=bash_source qwenstack)" (or zsh_source,
    fish_source).
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an expected failure prints one clear line and exits with 1."""
    try:
        qwenstack.main(args=arguments and list(arguments), standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        from qwenstack.cli.failures import EXPECTED, describe

        if not isinstance(error, EXPECTED):
            raise
        click.echo(f"qwenstack: {describe(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
