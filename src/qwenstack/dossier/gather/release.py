"""Evidence from a release's bytes: digests, facts, scan, signature, card and licence history."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from qwenstack.core.evidence import Evidence, Method, Value
from qwenstack.dossier.gather.card import CARD_BYTES_MAX, from_card
from qwenstack.dossier.gather.claimed import (
    RESULTS_BYTES_MAX,
    from_card_results,
    from_results_file,
    results_files,
)
from qwenstack.hub.facts import Facts, compute
from qwenstack.hub.licence_history import LicenceRevision, licence_history
from qwenstack.hub.registry.manifests import Entry, release_digest
from qwenstack.hub.safety.findings import Scan
from qwenstack.hub.safety.policy import Policy, default_policy
from qwenstack.hub.safety.scanner import scan
from qwenstack.hub.signing import (
    SIGNATURE_NAME,
    PublicKey,
    SignatureInvalid,
    SigningError,
    verify_release,
)

_PIECE_BYTES: Final = 4 * 1024 * 1024
_FINDINGS_MAX: Final = 50
_RESULTS_FILES_MAX: Final = 200
_GRAVITY: Final = ("clean", "suspicious", "refused")


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A release at hand: its files, how to open one, and what its licence was before.

    `source` says in words where it lies. Entries without a SHA-256 are hashed.
    """

    subject: str
    source: str
    files: Sequence[Entry]
    open_file: Callable[[Entry], BinaryIO]
    revisions: Sequence[LicenceRevision] = ()
    commit: str | None = None


def from_release(
    release: Release,
    *,
    observed_at: str,
    public_key: Path | None = None,
    hashed: Callable[[int], None] = lambda _: None,
) -> list[Evidence]:
    """Everything that the bytes say. `hashed` is told the bytes that are done; raises OSError.

    With `public_key` (PEM) the release's `model.sig` is held against it; without one a signature
    that is there counts as not checked.
    """
    files = tuple(_with_digest(each, release.open_file, hashed) for each in release.files)
    speak = _Speaker(release, release_digest(files), observed_at)
    facts = compute(files, release.open_file)
    return [
        *_bytes(speak, files, release),
        *_facts(speak, facts),
        *_scan(speak, files, release.open_file),
        *_signature(speak, files, release.open_file, public_key),
        *_card(files, release, observed_at),
        *_history(speak, release),
    ]


class _Speaker:
    def __init__(self, release: Release, digest: str, observed_at: str) -> None:
        self._release = release
        self.digest = digest
        self._observed_at = observed_at

    def say(
        self,
        claim: str,
        value: Value,
        *,
        source: str = "",
        method: Method = "computed",
        digest: str | None = None,
        note: str = "",
    ) -> Evidence:
        where = self._release.source
        return Evidence(
            subject=self._release.subject,
            claim=claim,
            value=value,
            source=f"{source} of {where}" if source else where,
            method=method,
            observed_at=self._observed_at,
            digest=digest or self.digest,
            note=note,
        )


def _with_digest(
    entry: Entry, open_file: Callable[[Entry], BinaryIO], hashed: Callable[[int], None]
) -> Entry:
    if entry.sha256:
        return entry
    digest = hashlib.sha256()
    with open_file(entry) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            hashed(len(piece))
    return msgspec.structs.replace(entry, sha256=digest.hexdigest())


def _bytes(speak: _Speaker, files: Sequence[Entry], release: Release) -> Iterator[Evidence]:
    yield speak.say("weights.release-digest", speak.digest)
    size = sum(entry.size for entry in files)
    yield speak.say("weights.files", f"{len(files)} files, {size} bytes")
    if release.commit:
        yield speak.say("weights.commit", release.commit, method="read")
    for entry in files:
        yield speak.say(f"weights.file.{entry.path}", f"{entry.size} bytes", digest=entry.sha256)


def _facts(speak: _Speaker, facts: Facts) -> Iterator[Evidence]:
    for claim, found in (
        ("weights.architecture", facts.architecture),
        ("weights.parameters", facts.parameters),
        ("weights.active-parameters", facts.active_parameters),
        ("weights.quantisation", facts.quantisation),
        ("weights.context", facts.context_tokens),
        ("weights.vocabulary", facts.vocabulary),
        ("weights.chat-template", facts.chat_template),
    ):
        if found is not None:
            yield speak.say(claim, found.value, source=found.source)
    if facts.elements:
        types = tuple(f"{name}: {count}" for name, count in sorted(facts.elements.items()))
        yield speak.say("weights.tensor-types", types, source="tensor headers")
    licence = facts.licence
    if licence.declared:
        shown = f"{licence.declared} / {licence.declared_name}" if licence.declared_name else ""
        yield speak.say("card.licence", shown or licence.declared, method="declared")
    if licence.sha256:
        note = f"recognised as {licence.file_id}" if licence.file_id else "not a text that is known"
        yield speak.say(
            "governing.text-digest", licence.sha256, source=licence.file or "", note=note
        )
    if licence.file_id and licence.declared_id and licence.file_id != licence.declared_id:
        yield speak.say(
            "identity.conflict.licence",
            f"the card declares {licence.declared_id}, the file {licence.file} is "
            f"{licence.file_id}",
        )
    if facts.base_models:
        names = tuple(each.name for each in facts.base_models)
        yield speak.say("card.base-model", names, method="declared")
    for number, held in enumerate(facts.claims, 1):
        if held.verdict == "contradict":
            yield speak.say(
                f"card.contradicted.{number}",
                f"{held.what}: {held.claimed_in} says {held.claimed}, {held.found_in} shows "
                f"{held.found}",
            )
    for number, fault in enumerate(facts.faults, 1):
        yield speak.say(f"weights.fault.{number}", fault)


def _scan(
    speak: _Speaker, files: Sequence[Entry], open_file: Callable[[Entry], BinaryIO]
) -> Iterator[Evidence]:
    policy = default_policy()
    scans = [(entry, _scanned(entry, open_file, policy)) for entry in files]
    worst = max((found.verdict for _, found in scans), key=_GRAVITY.index, default="clean")
    yield speak.say("weights.scan", worst, note=f"{len(files)} files, nothing was loaded")
    said = [(entry, finding) for entry, found in scans for finding in found.findings]
    for number, (entry, finding) in enumerate(said[:_FINDINGS_MAX], 1):
        place = f" ({finding.place})" if finding.place else ""
        yield speak.say(
            f"weights.scan-finding.{number}", f"{entry.path}{place}: {finding.message}",
            digest=entry.sha256,
        )  # fmt: skip


def _scanned(entry: Entry, open_file: Callable[[Entry], BinaryIO], policy: Policy) -> Scan:
    return scan(entry.path, entry.size, lambda: open_file(entry), policy=policy)


def _signature(
    speak: _Speaker,
    files: Sequence[Entry],
    open_file: Callable[[Entry], BinaryIO],
    public_key: Path | None,
) -> Iterator[Evidence]:
    signature = next((entry for entry in files if entry.path == SIGNATURE_NAME), None)
    if signature is None or public_key is None:
        if signature is not None:
            yield speak.say("weights.signature-file", "present, not checked: no key was given")
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder, open_file(signature) as file:
        path = Path(folder) / SIGNATURE_NAME
        path.write_bytes(file.read(_PIECE_BYTES))
        try:
            verified = verify_release(files, path, PublicKey(public_key))
        except (SignatureInvalid, SigningError) as error:
            yield speak.say("weights.signature", f"invalid: {error}", digest=signature.sha256)
            return
    found = "valid" if verified.difference is None else verified.difference.describe()
    yield speak.say(
        "weights.signature",
        found,
        digest=signature.sha256,
        note=f"OpenSSF model signing, {verified.files} files, key {public_key.name}",
    )


def _card(files: Sequence[Entry], release: Release, observed_at: str) -> Iterator[Evidence]:
    """What the card says, and which results it and the files beside it claim."""
    by_path = {entry.path: entry for entry in files}
    if card := by_path.get("README.md"):
        with release.open_file(card) as file:
            text = file.read(CARD_BYTES_MAX).decode("utf-8", "replace")
        source = f"README.md of {release.source}"
        yield from from_card(release.subject, text, source=source, observed_at=observed_at)
        yield from from_card_results(release.subject, text, source=source, observed_at=observed_at)
    for path in sorted(results_files(list(by_path)))[:_RESULTS_FILES_MAX]:
        with release.open_file(by_path[path]) as file:
            text = file.read(RESULTS_BYTES_MAX).decode("utf-8", "replace")
        yield from from_results_file(
            release.subject, path, text, source=release.source, observed_at=observed_at
        )


def _history(speak: _Speaker, release: Release) -> Iterator[Evidence]:
    if not release.revisions:
        return
    changes = licence_history(release.revisions)
    yield speak.say(
        "licence-history.revisions",
        f"{len(release.revisions)} revisions, {max(len(changes) - 1, 0)} changes since the first",
    )
    for number, change in enumerate(changes[1:], 1):
        yield speak.say(
            f"licence-history.change.{number}",
            change.words,
            source=f"commit {change.commit[:12]}",
            note=change.diff[:2000],
        )
