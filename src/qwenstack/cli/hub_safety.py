"""`qwenstack hub scan`, `quarantine`, `sign`, `verify`, `facts`: what files could do and are."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from qwenstack.cli.bars import BuildingBars
from qwenstack.cli.context import home_option, json_option, print_json
from qwenstack.cli.hub_context import database_option, hub_connection, hub_folder
from qwenstack.cli.hub_files import ReleaseFiles, ReleaseOptions, release_options
from qwenstack.core.instants import from_us
from qwenstack.core.safe_text import printable
from qwenstack.engines.models import Progress
from qwenstack.hub import licence_history, signing
from qwenstack.hub.errors import NotFound
from qwenstack.hub.facts import Facts, compute
from qwenstack.hub.registry.manifests import Entry, find_entry
from qwenstack.hub.safety import records
from qwenstack.hub.safety.findings import Scan
from qwenstack.hub.safety.policy import Policy, load_policy, policy_in
from qwenstack.hub.safety.scanner import scan as scan_file

_CLAIMS_SHOWN = {"agree": "agrees", "contradict": "CONTRADICTED", "absent": "nothing to hold it to"}


@click.command()
@click.argument("reference")
@click.option(
    "--policy",
    "policy_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of rules instead of the hub's own rules.toml; docs/hub-safety.md has its form.",
)
@release_options
def scan(
    reference: str,
    policy_path: Path | None,
    where: ReleaseOptions,
    as_json: bool,
) -> None:
    """Scan a file, a folder or a repo for what could run, mislead or overflow; loads nothing.

    Exits with 1 when the hub would refuse or quarantine a file.

    \b
    Examples:
      qwenstack hub scan ./my-model
      qwenstack hub scan alice/my-model --revision v1 --json
    """
    policy = load_policy(policy_path) if policy_path else policy_in(hub_folder(where.home))
    scans: list[tuple[Entry, Scan]] = []
    with where.files_of(reference) as files:
        for entry in files.files:
            scans.append((entry, _scan(entry, files.open_file, policy)))
    worst = [policy.action_on(found) for _, found in scans]
    if as_json:
        print_json([_scan_json(entry, found, policy) for entry, found in scans])
    else:
        for entry, found in scans:
            for finding in found.findings:
                click.echo(
                    printable(f"{policy.action(finding)}: {policy.told(entry.path, finding)}")
                )
        click.echo(_summary(worst))
    sys.exit(0 if set(worst) <= {"publish"} else 1)


def _scan(entry: Entry, open_file: Callable[[Entry], BinaryIO], policy: Policy) -> Scan:
    return scan_file(entry.path, entry.size, lambda: open_file(entry), policy=policy)


def _scan_json(entry: Entry, found: Scan, policy: Policy) -> dict[str, object]:
    return {
        "path": entry.path,
        "verdict": found.verdict,
        "action": policy.action_on(found),
        "findings": [
            {**msgspec.structs.asdict(finding), "remedy": policy.rules[finding.rule].remedy}
            for finding in found.findings
        ],
    }


def _summary(actions: Sequence[str]) -> str:
    held = {name: actions.count(name) for name in ("refuse", "quarantine")}
    words = ", ".join(f"{count} to {name}" for name, count in held.items() if count)
    return f"{len(actions)} files scanned: {words or 'all may be published'}."


@click.command()
@click.option("--release", "sha256", help="Let the content with this SHA-256 out.")
@database_option
@home_option
@json_option
def quarantine(sha256: str | None, database: str | None, home: Path | None, as_json: bool) -> None:
    """List the contents that pushes were held back for, or let one out.

    The next push of a released content is taken. What a rule refuses stays refused.

    \b
    Examples:
      qwenstack hub quarantine
      qwenstack hub quarantine --release SHA256
    """
    policy = policy_in(hub_folder(home))
    with hub_connection(home, database) as connection:
        if sha256 is not None and not records.release(connection, sha256, policy):
            raise NotFound(f"No content {sha256} is in quarantine; `hub quarantine` lists them.")
        held = records.quarantine(connection, policy)
    if as_json:
        print_json({"released": sha256, "held": held} if sha256 else held)
        return
    if sha256 is not None:
        click.echo(f"Released {sha256}; push it again.")
    for each in held:
        for finding in each.findings:
            words = f"{each.sha256}  {from_us(each.scanned_us):%Y-%m-%d %H:%M}  {finding.message}"
            click.echo(printable(words))
    if not held and sha256 is None:
        click.echo("Nothing is in quarantine.")


@click.command()
@click.argument("reference")
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--chain",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A certificate between --certificate and the root. May be given several times.",
)
@click.option("--ask-password", is_flag=True, help="Ask for the key's password.")
@click.option(
    "--signature",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the signature goes. Default: model.sig, in a folder that is signed.",
)
@release_options
def sign(
    reference: str,
    key: Path,
    certificate: Path | None,
    chain: tuple[Path, ...],
    ask_password: bool,
    signature: Path | None,
    where: ReleaseOptions,
    as_json: bool,
) -> None:
    """Sign all files of a folder or of a repo of this hub, in the OpenSSF model-signing format.

    A repo is signed by the digests that the hub keeps, without reading its files.

    \b
    Examples:
      qwenstack hub sign ./my-model --key signer.pem
      qwenstack hub sign alice/my-model --key signer.pem --signature model.sig
      qwenstack hub sign ./my-model --key signer.pem --certificate signer.crt --chain ca.crt
    """
    if ask_password and certificate is not None:
        raise click.UsageError("a key with a certificate can't have a password; decrypt it first")
    password = click.prompt("Password", hide_input=True, err=True) if ask_password else None
    signer = (
        signing.Key(key, password)
        if certificate is None
        else signing.KeyWithCertificate(key, certificate, chain)
    )
    folder = Path(reference)
    if folder.is_dir():
        target = signature or folder / signing.SIGNATURE_NAME
        with BuildingBars() as bars:
            count = signing.sign_folder(folder, target, signer, told=_telling(bars))
    else:
        target = signature or Path(signing.SIGNATURE_NAME)
        with where.files_of(reference) as files:
            if files.commit is None:
                raise signing.SigningError(f"{reference} is a file; give its folder")
            count = signing.sign_release(files.name, files.files, target, signer)
    if as_json:
        print_json({"signature": str(target), "files": count})
    else:
        click.echo(f"Signed {count} files: {target}")


def _telling(bars: BuildingBars) -> signing.Told:
    return lambda done, total: bars.obtaining(Progress("hashing", done, total))


@click.command()
@click.argument("reference")
@click.option("--public-key", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--certificate",
    "roots",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A root that the signer's certificate must lead to. May be given several times.",
)
@click.option("--release", help="Hold the folder to this repo of the hub, without a signature.")
@click.option(
    "--signature",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The signature. Default: model.sig in the folder or the release.",
)
@release_options
def verify(
    reference: str,
    public_key: Path | None,
    roots: tuple[Path, ...],
    release: str | None,
    signature: Path | None,
    where: ReleaseOptions,
    as_json: bool,
) -> None:
    """Hold a folder or a repo to a signature, or a folder to a release; needs no network.

    Exits with 1 and names the first file that differs, is missing or was not signed.

    \b
    Examples:
      qwenstack hub verify ./my-model --public-key signer.pub
      qwenstack hub verify ./my-model --certificate root.crt
      qwenstack hub verify ./my-model --release alice/my-model
    """
    if (public_key is not None) + bool(roots) + (release is not None) != 1:
        raise click.UsageError("give one of --public-key, --certificate and --release")
    if release is not None:
        with (
            where.files_of(release) as files,
            BuildingBars() as bars,
        ):
            told = _telling(bars)
            difference = signing.compare_folder(Path(reference), files.files, told=told)
        _print_verdict(reference, difference, len(files.files), as_json, release=release)
        return
    verifier = signing.PublicKey(public_key) if public_key else signing.TrustedRoots(roots)
    folder = Path(reference)
    if folder.is_dir():
        target = signature or folder / signing.SIGNATURE_NAME
        with BuildingBars() as bars:
            found = signing.verify_folder(folder, target, verifier, told=_telling(bars))
    else:
        with (
            where.files_of(reference) as files,
            _signature_of(files, signature) as target,
        ):
            found = signing.verify_release(files.files, target, verifier)
    _print_verdict(reference, found.difference, found.files, as_json)


@contextmanager
def _signature_of(files: ReleaseFiles, given: Path | None) -> Iterator[Path]:
    """The signature that was given, else the release's own model.sig, as a file."""
    if given is not None:
        yield given
        return
    if files.commit is None:
        raise signing.SigningError("a file alone has no signature; give its folder")
    entry = find_entry(files.files, signing.SIGNATURE_NAME)
    if entry is None:
        raise signing.SigningError(
            f"{files.name} holds no {signing.SIGNATURE_NAME}; give one with --signature"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / signing.SIGNATURE_NAME
        with files.open_file(entry) as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        yield path


def _print_verdict(
    reference: str,
    difference: signing.Difference | None,
    files: int,
    as_json: bool,
    *,
    release: str | None = None,
) -> None:
    if as_json:
        print_json({"holds": difference is None, "files": files, "difference": difference})
    elif difference is None:
        click.echo(f"{reference} holds: {files} files.")
    else:
        click.echo(printable(f"{reference} does not hold: {difference.describe(release=release)}."))
    sys.exit(0 if difference is None else 1)


@click.command()
@click.argument("reference")
@click.option("--licence-history", "with_history", is_flag=True, help="Of a repo: each change.")
@release_options
def facts(
    reference: str,
    with_history: bool,
    where: ReleaseOptions,
    as_json: bool,
) -> None:
    """Show what a folder or a repo holds by its own headers, and which claims that bears out.

    \b
    Examples:
      qwenstack hub facts ./my-model
      qwenstack hub facts alice/my-model --licence-history --json
    """
    with where.files_of(reference) as files:
        found = compute(files.files, files.open_file, kind=where.kind)
        changes = licence_history.licence_history(files.history()) if with_history else []
    if as_json:
        print_json({"facts": found, "licence_history": changes} if with_history else found)
        return
    for line in _lines(found):
        click.echo(printable(line))
    for change in changes:
        for line in (
            f"licence, {change.commit[:10]} by {change.author}: {change.words}",
            *change.diff.splitlines(),
        ):
            click.echo(printable(line))


def _lines(found: Facts) -> Iterator[str]:
    """The facts for a terminal, a line each."""
    for label, fact in (
        ("architecture", found.architecture),
        ("parameters", found.parameters),
        ("active parameters", found.active_parameters),
        ("quantisation", found.quantisation),
        ("context", found.context_tokens),
        ("vocabulary", found.vocabulary),
        ("tied embeddings", found.tied_embeddings),
        ("chat template", found.chat_template),
        ("adapter", found.adapter),
        ("relation", found.relation),
    ):
        if fact is not None:
            value = fact.value
            shown = f"{value:,}" if type(value) is int else str(value)
            yield f"{label}: {shown}   ({fact.source})"
    if found.elements:
        yield "elements: " + ", ".join(f"{name} {n:,}" for name, n in found.elements.items())
    for base in found.base_models:
        yield f"base model: {base.name}   ({base.source})"
    licence = found.licence
    declared = licence.declared_id or licence.declared_name or licence.declared
    what = licence.file_id or licence.file_resembles or "not a text known here"
    file = f"{licence.file} is {what}"
    yield f"licence: {declared or 'none declared'}; {file if licence.file else 'no licence file'}"
    for claim in found.claims:
        held = f"{claim.claimed or 'nothing'} ({claim.claimed_in})"
        against = f"{claim.found or 'nothing'} ({claim.found_in})"
        yield f"claim, {claim.what}: {held} / {against}: {_CLAIMS_SHOWN[claim.verdict]}"
    for finding in found.card_findings:
        yield f"card, line {finding.line}: {finding.message}"
    for fault in found.faults:
        yield f"fault: {fault}"
