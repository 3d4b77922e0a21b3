"""`qwenstack dossier write`: gather, compose, render, sign."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwenstack.catalog.load import load
from qwenstack.catalog.which import Answer, which
from qwenstack.cli.context import home_option, json_option, resolve_home
from qwenstack.cli.tables import show_table
from qwenstack.core.evidence import Evidence
from qwenstack.dossier.compose import compose
from qwenstack.dossier.document import Document
from qwenstack.dossier.gather.catalogue import from_answer
from qwenstack.dossier.gather.decisions import from_decisions
from qwenstack.dossier.gather.evaluation import from_lm_eval
from qwenstack.dossier.gather.studio import StudioError, from_studio
from qwenstack.dossier.render import render_all
from qwenstack.dossier.seal import SIGNATURE_NAME, document_json, load_key, sign

KEY_NAME = "dossier.pem"


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--hub",
    "in_hub",
    is_flag=True,
    help="REF is a repo of this machine's hub: read its files, too.",
)
@click.option("--revision", default="main", show_default=True, help="With --hub.")
@click.option(
    "--model-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) that the release's model.sig must hold against.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of models among which the weights' parent is looked for.",
)
@click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Policy file; exits with 1 where it denies.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--deployment", help="A model name that a running studio serves.")
@click.option("--studio", envvar="QWENSTACK_STUDIO", help="Its base URL (QWENSTACK_STUDIO).")
@click.option(
    "--decisions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of what people decided: sign-offs, owners, processing.",
)
@click.option(
    "--evaluation",
    "evaluations",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A results file of lm-eval; may be given again.",
)
@click.option(
    "--key",
    "key_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Ed25519 key in PEM; default: one in the home folder, made when first needed.",
)
@home_option
@json_option
def write(
    reference: str,
    in_hub: bool,
    revision: str,
    model_key: Path | None,
    against: Path | None,
    policy: Path | None,
    out: Path | None,
    deployment: str | None,
    studio: str | None,
    decisions: Path | None,
    evaluations: tuple[Path, ...],
    key_path: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Write the dossier of REF: HTML, PDF, Markdown, JSON, CycloneDX and SPDX, signed.

    REF is anything that `qwenstack which` takes; of a folder or file, and with --hub of a repo, the
    bytes are read, hashed and scanned. For --deployment, the admin key is read from
    QWENSTACK_ADMIN_KEY. With --json the document is printed, and written only with --out.

    \b
    Examples:
      qwenstack dossier Qwen/Qwen3-8B
      qwenstack dossier acme/my-model --hub --model-key signer.pub
      qwenstack dossier ./my-model --decisions decisions.toml --evaluation results.json
      qwenstack dossier qwen-plus --json
    """
    answer = which(reference)
    of_files: list[Evidence] = []
    if in_hub or Path(reference).exists():
        answer, of_files = _from_files(answer, revision, model_key, home, in_hub=in_hub)
    evidence = [*from_answer(answer, load()), *of_files]
    if against is not None:
        evidence += _from_weights(reference, against, evidence)
    elif in_hub:
        evidence += _from_index(reference, evidence, home)
    evidence += _gather(reference, deployment, studio, decisions, evaluations)
    denied = policy is not None and _decide(policy, answer, evidence)
    document = compose(reference, evidence, deployment=deployment)
    if as_json:
        click.echo(document_json(document), nl=False)
        if out is None:
            sys.exit(1 if denied else 0)
    folder = out or Path(f"{_file_name(reference)}.dossier")
    key = load_key(key_path or resolve_home(home) / KEY_NAME)
    files = render_all(document)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / SIGNATURE_NAME).write_bytes(sign(files, key))
    if not as_json:
        _summary(document, folder)
    sys.exit(1 if denied else 0)


def _decide(policy: Path, answer: Answer, evidence: list[Evidence]) -> bool:
    """Add what the policy decides; whether it denies."""
    from qwenstack.dossier.gather.policy import from_policy

    regions = [str(each.value) for each in evidence if each.claim == "deployment.region"]
    decided = from_policy(policy, answer, region=next(iter(regions), None), today=_today())
    evidence += decided
    return decided[0].value == "deny"


def _from_weights(reference: str, against: Path, evidence: list[Evidence]) -> list[Evidence]:
    from qwenstack.dossier.gather.lineage import from_lineage
    from qwenstack.hub.lineage.library import folder_library
    from qwenstack.hub.lineage.model import open_path
    from qwenstack.hub.lineage.trace import trace

    path = Path(reference)
    if not path.exists():
        raise click.UsageError("--against needs REF to be a folder or file (hub pull fetches one)")
    with Console(stderr=True).status("looking for the parent among the candidates"):
        answer = trace(open_path(path, name=reference), folder_library(against))
    return from_lineage(
        reference,
        answer,
        _declared(evidence),
        against=against.name,
        observed_at=_today().isoformat(),
    )


def _from_index(reference: str, evidence: list[Evidence], home: Path | None) -> list[Evidence]:
    """What the hub's lineage index says, where the release is in it; else a gap stays."""
    from qwenstack.cli.lineage_hub import lineage_index
    from qwenstack.dossier.gather.lineage import from_lineage

    digests = (each.value for each in evidence if each.claim == "weights.release-digest")
    with lineage_index(home, None, None) as index:
        answer = index.noted(reference, str(next(digests, "")))
    if answer is None:
        return []
    declared = _declared(evidence)
    observed_at = _today().isoformat()
    return from_lineage(reference, answer, declared, against="the hub", observed_at=observed_at)


def _declared(evidence: list[Evidence]) -> list[str]:
    declared: list[str] = []
    for each in evidence:
        if each.claim in ("card.base-model", "identity.base"):
            declared += each.value if isinstance(each.value, tuple) else [str(each.value)]
    return declared


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _gather(
    reference: str,
    deployment: str | None,
    studio: str | None,
    decisions: Path | None,
    evaluations: tuple[Path, ...],
) -> list[Evidence]:
    evidence: list[Evidence] = []
    if deployment is not None:
        key = os.environ.get("QWENSTACK_ADMIN_KEY", "")
        if studio is None or not key:
            raise StudioError(
                "--deployment asks a running studio: give --studio URL and set QWENSTACK_ADMIN_KEY"
            )
        evidence += from_studio(studio, key, deployment, reference)
    for path in evaluations:
        evidence += from_lm_eval(path, reference)
    if decisions is not None:
        evidence += from_decisions(decisions, reference)
    return evidence


def _from_files(
    answer: Answer, revision: str, model_key: Path | None, home: Path | None, *, in_hub: bool
) -> tuple[Answer, list[Evidence]]:
    """What the files say; and the answer, with what they add where the name said too little."""
    from qwenstack.cli.hub_files import files_of
    from qwenstack.dossier.gather.identity import by_files
    from qwenstack.dossier.gather.release import Release, from_release

    reference = answer.reference
    with (
        files_of(reference, "model", revision, None, home, in_hub=in_hub) as found,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        unhashed = sum(entry.size for entry in found.files if not entry.sha256)
        task = bar.add_task("reading the release", total=unhashed or None)
        commit = found.commit.oid if found.commit else None
        if found.commit is not None:
            answer = by_files(reference, answer, found.files, found.open_file)
        return answer, from_release(
            Release(
                subject=reference,
                source=f"{found.name} at {commit[:12]} in the hub" if commit else found.name,
                files=found.files,
                open_file=found.open_file,
                revisions=found.history(),
                commit=commit,
            ),
            observed_at=_today().isoformat(),
            public_key=model_key,
            hashed=lambda done: bar.advance(task, done),
        )


def _file_name(reference: str) -> str:
    name = "".join(each if each.isalnum() or each in "._-" else "-" for each in reference[-80:])
    return name.strip(".-") or "reference"


def _summary(document: Document, folder: Path) -> None:
    table = Table("section", "shown", "gaps", "conflicts", title=document.reference)
    for section in document.sections:
        counts = [
            sum(row.standing in kinds for row in section.rows)
            for kinds in (("shown", "partly"), ("gap",), ("conflict",))
        ]
        table.add_row(section.title, *(str(count or "") for count in counts))
    show_table(table)
    click.echo(f"Written to {folder}: open {folder / 'dossier.html'}.")
