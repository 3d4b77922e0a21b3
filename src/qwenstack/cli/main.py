"""`qwenstack`: the entry point. Command groups load when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

_COMMANDS = {
    "up": "qwenstack.cli.up:up",
    "serve": "qwenstack.cli.serve:serve",
    "admin": "qwenstack.cli.admin:admin",
    "usage": "qwenstack.cli.usage:usage",
    "invoice": "qwenstack.cli.invoice:invoice",
    "ledger": "qwenstack.cli.ledger:ledger",
    "audit": "qwenstack.cli.audit:audit",
    "bench": "qwenstack.cli.bench:bench",
    "doctor": "qwenstack.cli.doctor:doctor",
}


class _Lazy(click.Group):
    """A group whose commands are imported one by one, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        target = _COMMANDS.get(name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
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
    from qwenstack.cli.failures import EXPECTED, describe

    try:
        qwenstack.main(args=arguments and list(arguments), standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EXPECTED as error:
        click.echo(f"qwenstack: {describe(error)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
