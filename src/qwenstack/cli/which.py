"""`qwenstack which`: what a reference is, who operates it, and which document governs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from qwenstack.catalog.policy import Decision, Policy
    from qwenstack.catalog.scan.find import Report
    from qwenstack.catalog.which import Answer

# `which` is to start fast: what only some calls need is imported where it is needed.

_DENIED = 1


class _Unusable(click.ClickException):
    """Nothing was decided: the policy file can't be used, or the scan did not end."""

    exit_code = 2


@click.command()
@click.argument("references", nargs=-1, metavar="[REF]...")
@click.option(
    "--against-config",
    "configs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A configuration file whose server and model names decide who resolves REF.",
)
@click.option(
    "--scan",
    "root",
    type=click.Path(exists=True, path_type=Path),
    help="Find every model reference in this tree (or file) instead.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    help="Decide by this policy file; exit code 1 if anything is denied.",
)
@click.option("--strict", is_flag=True, help="With --policy: what is warned of counts as denied.")
@click.option(
    "--sarif", type=click.Path(path_type=Path), help="With --scan: write SARIF 2.1.0 to this file."
)
@click.option(
    "--jobs",
    type=click.IntRange(0, 64),
    default=0,
    help="With --scan: processes; 0 for as many as help.",
)
@click.option("--no-ignore", is_flag=True, help="With --scan: look at what .gitignore leaves out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def which(
    references: tuple[str, ...],
    configs: tuple[Path, ...],
    root: Path | None,
    policy_file: Path | None,
    strict: bool,
    sarif: Path | None,
    jobs: int,
    no_ignore: bool,
    as_json: bool,
) -> None:
    """Say what REF is: its layer, its exact release, who operates it, and what governs its use.

    REF is a hub id or address, an API's model name or base URL, an Ollama tag, a GGUF or
    safetensors file or a folder (only headers are read), a command line, a snippet of
    configuration, or a SHA-256. A single - reads from standard input. Nothing is fetched.

    \b
    Exit codes: 0 answered, and nothing denied; 1 the policy denies; 2 wrong usage or policy file.

    \b
    Examples:
      qwenstack which Qwen/Qwen2.5-3B-Instruct
      qwenstack which qwen-plus qwen3:8b --json
      qwenstack which "vllm serve Qwen/Qwen3-8B --port 8000"
      qwenstack which --scan . --policy policy.toml --sarif which.sarif
    """
    policy = _load(policy_file) if policy_file else None
    if root is not None:
        if references:
            raise click.UsageError("give either references or --scan, not both")
        _scan(root, policy, strict, sarif, jobs, no_ignore, as_json)
        return
    if not references:
        raise click.UsageError("give a reference, or --scan PATH (see qwenstack which --help)")
    answers = [_answer(each, configs) for each in references]
    decisions = [_decide(policy, each) for each in answers] if policy else []
    if as_json:
        _print_json(answers, decisions)
    else:
        from qwenstack.cli.which_panel import print_answer

        for number, answer in enumerate(answers):
            print_answer(answer, decisions[number] if decisions else None)
    _leave(decisions, strict)


def _answer(reference: str, configs: tuple[Path, ...]) -> Answer:
    from qwenstack.catalog.which.decide import which as resolve

    if reference == "-":
        reference = sys.stdin.read(1_100_000)
    if configs:
        from qwenstack.catalog.which.snippet import beside

        texts = [path.open(encoding="utf-8", errors="replace").read(1_000_000) for path in configs]
        return beside(reference, "\n".join(texts))
    return resolve(reference)


def _load(path: Path) -> Policy:
    from qwenstack.catalog.policy import PolicyError, load_policy

    try:
        return load_policy(path)
    except PolicyError as error:
        raise _Unusable(str(error)) from error


def _decide(policy: Policy, answer: Answer) -> Decision:
    from datetime import UTC, datetime

    from qwenstack.catalog.policy import evaluate

    return evaluate(policy, answer, datetime.now(UTC).date())


def _leave(decisions: list[Decision], strict: bool) -> None:
    refused = ("deny", "warn") if strict else ("deny",)
    if any(each.decision.value in refused for each in decisions):
        sys.exit(_DENIED)


def _print_json(answers: list[Answer], decisions: list[Decision]) -> None:
    found: list[object] = []
    for number, answer in enumerate(answers):
        plain = msgspec.to_builtins(answer)
        if decisions:
            plain["policy"] = msgspec.to_builtins(decisions[number])
        found.append(plain)
    value = found[0] if len(found) == 1 else found
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _scan(
    root: Path,
    policy: Policy | None,
    strict: bool,
    sarif: Path | None,
    jobs: int,
    no_ignore: bool,
    as_json: bool,
) -> None:
    from concurrent.futures import BrokenExecutor

    from qwenstack.catalog.scan.find import scan
    from qwenstack.catalog.scan.walk import WalkLimits
    from qwenstack.cli.which_panel import Counting, print_report

    try:
        with Counting(sys.stderr) as counting:
            report = scan(
                root,
                limits=WalkLimits(heed_gitignore=not no_ignore),
                jobs=jobs,
                seen=counting.files,
            )
    except BrokenExecutor as error:
        raise _Unusable("a process of the scan was killed; try --jobs 1") from error
    decisions = [_decide(policy, each.answer) for each in report.findings] if policy else []
    if sarif is not None:
        _write_sarif(sarif, report, decisions)
    if as_json:
        plain = msgspec.to_builtins(report)
        for number, decision in enumerate(decisions):
            plain["findings"][number]["policy"] = msgspec.to_builtins(decision)
        click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
    else:
        print_report(report, decisions)
    _leave(decisions, strict)


def _write_sarif(path: Path, report: Report, decisions: list[Decision]) -> None:
    from importlib.metadata import version

    from qwenstack.catalog.scan.sarif import sarif

    log = sarif(report, version("qwenstack"), decisions or None)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(log), indent=1))
