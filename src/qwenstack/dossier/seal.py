"""Signing a dossier, and checking one: the signature, and that the document follows from it all.

A dossier folder holds `dossier.json` (the document with its evidence), the same document rendered,
and `dossier.sig.json`: an Ed25519 signature (RFC 8032) over the SHA-256 of each of those files.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qwenstack.dossier.compose import compose
from qwenstack.dossier.document import FORMAT, Document

DOCUMENT_NAME: Final = "dossier.json"
SIGNATURE_NAME: Final = "dossier.sig.json"
_DOCUMENT_BYTES_MAX: Final = 64 * 1024 * 1024
_OTHERS_SHOWN_MAX: Final = 20
_CONTEXT: Final = b"qwenstack dossier v1\n"


class DossierError(Exception):
    """A dossier that cannot be read, or a key that is none; the message says which and why."""


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `dossier.sig.json` holds: file names with their SHA-256, signed in sorted order."""

    algorithm: str = "Ed25519"
    public_key: str
    files: dict[str, str]
    signature: str


def document_json(document: Document) -> bytes:
    """The document's own file: sorted keys, so that the same document is the same bytes."""
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def read_document(folder: Path) -> Document:
    """The document in a dossier folder; raises DossierError."""
    path = folder / DOCUMENT_NAME
    try:
        if path.stat().st_size > _DOCUMENT_BYTES_MAX:
            raise DossierError(f"{path} is larger than any dossier")
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise DossierError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DossierError(f"{path} is no dossier: {error}") from error
    if document.format != FORMAT:
        raise DossierError(f"{path} has format {document.format}; this program knows {FORMAT}")
    return document


def load_key(path: Path) -> Ed25519PrivateKey:
    """The signing key at `path`; made, readable by its owner only, where there is none."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        return _new_key(path)
    except (ValueError, TypeError) as error:
        raise DossierError(f"{path} holds no unencrypted private key in PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DossierError(f"{path} holds a key of another kind; Ed25519 is needed")
    return key


def _new_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return key


def public_text(key: Ed25519PublicKey) -> str:
    """A public key as it is shown and compared: its 32 bytes in base64."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def sign(files: Mapping[str, bytes], key: Ed25519PrivateKey) -> bytes:
    """The signature file over `files`; Ed25519 is deterministic, so the same makes the same."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    signature = Signature(
        public_key=public_text(key.public_key()),
        files=digests,
        signature=base64.b64encode(key.sign(_signed(digests))).decode(),
    )
    return msgspec.json.format(msgspec.json.encode(signature, order="sorted"), indent=2) + b"\n"


def problems(folder: Path, *, public_key: str | None = None) -> list[str]:
    """What does not hold of a dossier folder: empty where all does. Raises DossierError.

    `public_key` (base64) is whose signature is asked for; without it any key's will do, which
    proves that nothing changed since it was signed, not by whom.
    """
    document = read_document(folder)
    found = _signature_problems(folder, public_key)
    again = compose(document.reference, document.evidence, deployment=document.deployment)
    if document_json(again) != document_json(document):
        found.append("the document does not follow from its evidence")
    return found


def signer(folder: Path) -> str | None:
    """The public key (base64) that a folder's signature names; None where there is none."""
    try:
        data = (folder / SIGNATURE_NAME).read_bytes()
        return msgspec.json.decode(data, type=Signature).public_key
    except (OSError, msgspec.MsgspecError):
        return None


def _signature_problems(folder: Path, public_key: str | None) -> list[str]:
    try:
        data = (folder / SIGNATURE_NAME).read_bytes()
        signature = msgspec.json.decode(data, type=Signature)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.public_key))
        key.verify(base64.b64decode(signature.signature), _signed(signature.files))
    except FileNotFoundError:
        return ["the dossier is not signed"]
    except InvalidSignature:
        return ["the signature does not hold"]
    except (msgspec.MsgspecError, ValueError) as error:
        return [f"{SIGNATURE_NAME} is no signature: {error}"]
    if public_key is not None and public_key != signature.public_key:
        return [f"it was signed with another key: {signature.public_key}"]
    found = []
    if DOCUMENT_NAME not in signature.files:
        found.append(f"{DOCUMENT_NAME} is not among the signed files")
    for name, digest in sorted(signature.files.items()):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            found.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            found.append(f"{name} was changed")
    # A file beside the signed ones would be read as one of them.
    others = {path.name for path in folder.iterdir()} - {SIGNATURE_NAME, *signature.files}
    found += [f"{name[:100]!a} is not signed" for name in sorted(others)[:_OTHERS_SHOWN_MAX]]
    return found


def _signed(digests: Mapping[str, str]) -> bytes:
    return _CONTEXT + "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()
