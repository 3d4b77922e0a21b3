"""`qwenstack policy`: check a policy file, and see what it decides and why."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from qwenstack.catalog.policy import Policy


class _Unusable(click.ClickException):
    """The policy file can't be used: nothing was decided."""

    exit_code = 2


@click.group()
def policy() -> None:
    """Check a policy file, and see what it decides.

    \b
    Examples:
      qwenstack policy check policy.toml
      qwenstack policy explain policy.toml Qwen/Qwen2.5-3B-Instruct qwen-plus
    """


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> None:
    """Say whether FILE can be used, and which of its exceptions need a review.

    Exit codes: 0 it can be used; 1 an exception has ended, or runs for over a year; 2 it can't be
    used.

    \b
    Examples:
      qwenstack policy check policy.toml
    """
    from qwenstack.catalog.policy import too_long

    found = _load(file)
    due = too_long(found, datetime.now(UTC).date())
    if as_json:
        click.echo(msgspec.json.encode({"file": str(file), "policy": found, "review": due}))
    else:
        click.echo(f"{file}: can be used; {len(found.exception)} exceptions")
        for text in due:
            click.echo(f"review: {text}")
    if due:
        sys.exit(1)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--region", help="Where the deployment runs, for the region rule.")
@click.option("--certificate", help="What the deployment passed, for the certificate rule.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    file: Path,
    references: tuple[str, ...],
    region: str | None,
    certificate: str | None,
    as_json: bool,
) -> None:
    """Say what FILE decides for each REF, rule by rule.

    Exit codes: 0 nothing is denied; 1 something is; 2 FILE can't be used.

    \b
    Examples:
      qwenstack policy explain policy.toml Qwen/Qwen3-8B
      qwenstack policy explain policy.toml qwen3-8b --region eu-central-1 --certificate standard
    """
    from qwenstack.catalog.policy import Deployed, Outcome, evaluate
    from qwenstack.catalog.which.decide import which

    rules = _load(file)
    today = datetime.now(UTC).date()
    deployed = Deployed(region=region, certificate=certificate)
    decisions = [evaluate(rules, which(each), today, deployed) for each in references]
    if as_json:
        click.echo(
            msgspec.json.encode(
                [
                    {"reference": reference, "policy": decision}
                    for reference, decision in zip(references, decisions, strict=True)
                ]
            )
        )
    else:
        for reference, decision in zip(references, decisions, strict=True):
            click.echo(f"{reference}: {decision.decision.value}")
            for reason in decision.reasons:
                click.echo(f"  {reason.outcome.value:5}  {reason.rule.value}: {reason.text}")
    if any(each.decision is Outcome.DENY for each in decisions):
        sys.exit(1)


def _load(path: Path) -> Policy:
    from qwenstack.catalog.policy import PolicyError, load_policy

    try:
        return load_policy(path)
    except PolicyError as error:
        raise _Unusable(str(error)) from error
