"""Signatures over all files of a model, in the OpenSSF model-signing format, made and held to here.

A signature is a Sigstore bundle around an in-toto statement that lists each file with its digest.
The library `model-signing` makes and checks the signature; which files there are and what they hash
to is found here, so that a release of the hub is signed from its manifest without reading a byte,
and a check stops at the first file that is not what was signed. Keys and certificates need no
network. Sigstore's keyless signatures do (its trust root and log): those are told apart and left
to the library's own program.

    SigningError
    └── SignatureInvalid    the signature is not this key's, or no signature at all
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import blake3
import msgspec

if TYPE_CHECKING:
    from model_signing.manifest import Manifest as SignedManifest

SIGNATURE_NAME: Final = "model.sig"
"""What a signature is called, beside the files that it covers."""

_SIGNATURE_BYTES_MAX: Final = 64 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_FILES_MAX: Final = 100_000
# Git's own files, and what the Hub's client keeps beside a download, are no part of a model.
_IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore", ".cache/huggingface")

Told = Callable[[int, int], None]
"""Called with the bytes hashed and the bytes in all."""


class SigningError(Exception):
    """A key, a folder or a signature that can't be used; the message says which and why."""


class SignatureInvalid(SigningError):
    """The signature is not by this key or chain, or is none."""


class Key(msgspec.Struct, frozen=True):
    """An elliptic-curve private key (P-256, P-384 or P-521) in a PEM file."""

    path: Path
    password: str | None = None


class KeyWithCertificate(msgspec.Struct, frozen=True):
    """A private key, the certificate for it, and those between that and a root, in PEM files."""

    key: Path
    certificate: Path
    chain: tuple[Path, ...] = ()


class PublicKey(msgspec.Struct, frozen=True):
    """The public key to hold a signature to."""

    path: Path


class TrustedRoots(msgspec.Struct, frozen=True):
    """The roots to which a signature's certificate must lead. Whether it has expired isn't asked.

    That is the library's rule: the chain is checked as of the certificate's first day.
    """

    paths: tuple[Path, ...]


class ReleaseFile(Protocol):
    """A file of a release, as its manifest has it."""

    @property
    def path(self) -> str:
        """Where the release holds it."""
        ...

    @property
    def sha256(self) -> str:
        """Its content."""
        ...


class Difference(msgspec.Struct, frozen=True):
    """The first file, by path, that is not what was signed, or not what the release has."""

    path: str
    kind: Literal["differs", "missing", "extra", "link"]

    def describe(self, *, release: str | None = None) -> str:
        """In words: against a signature, or against `release`, by name."""
        words = {
            "differs": "is not what was signed",
            "missing": "was signed and is missing",
            "extra": "is there and was not signed",
            "link": "is a symbolic link, which a signature does not cover",
        }
        if release is not None:
            words |= {
                "differs": f"is not what {release} has",
                "missing": f"is in {release} and is missing",
                "extra": f"is there and not in {release}",
            }
        return f"{self.path} {words[self.kind]}"


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A valid signature's word on the files: it holds where there is no `difference`.

    `name` is what the signer called the model, `files` how many were signed, and `root_digest` the
    SHA-256 over all of their digests in order, by which the statement names the model.
    """

    name: str
    files: int
    root_digest: str
    difference: Difference | None

    @property
    def holds(self) -> bool:
        """Whether everything is as it was signed."""
        return self.difference is None


def sign_folder(
    folder: Path,
    signature: Path,
    signer: Key | KeyWithCertificate,
    *,
    ignore: Iterable[str] = (),
    told: Told | None = None,
) -> int:
    """Sign the files below `folder`, all but the signature itself and `ignore`; how many they are.

    Raises SigningError, OSError.
    """
    ignored = (*_IGNORED, *ignore, *_within(folder, signature))
    files = _list(folder, ignored)
    link = next((path for path in files if (folder / path).is_symlink()), None)
    if link is not None:
        raise SigningError(f"{link} is a symbolic link; put the file itself there")
    progress = _Progress(told, sum((folder / path).stat().st_size for path in files))
    digests = {path: _hash(folder / path, "sha256", progress=progress) for path in files}
    _sign(folder.resolve().name, digests, ignored, signature, signer)
    return len(digests)


def sign_release(
    name: str, files: Iterable[ReleaseFile], signature: Path, signer: Key | KeyWithCertificate
) -> int:
    """Sign a release by its manifest, whose SHA-256s the store vouches for; how many files it has.

    The signature goes into `signature`; added to the release as `model.sig` it covers all else.
    Raises SigningError, OSError.
    """
    ignored = (*_IGNORED, SIGNATURE_NAME)
    digests = {
        file.path: bytes.fromhex(file.sha256)
        for file in files
        if not _is_ignored(file.path, ignored)
    }
    _sign(name, digests, ignored, signature, signer)
    return len(digests)


def verify_folder(
    folder: Path,
    signature: Path,
    verifier: PublicKey | TrustedRoots,
    *,
    ignore: Iterable[str] = (),
    told: Told | None = None,
) -> Verified:
    """Check `signature`, then hold the files below `folder` to it, in the order of their paths.

    Stops at the first that differs, is missing, or is there unsigned. Raises SignatureInvalid where
    the signature itself is not valid, SigningError, OSError.
    """
    signed = _Signed(_checked(signature, verifier))
    ignored = (*_IGNORED, *signed.ignored, *ignore, *_within(folder, signature))
    return signed.verified(_first_difference(folder, signed, ignored, told))


def verify_release(
    files: Iterable[ReleaseFile], signature: Path, verifier: PublicKey | TrustedRoots
) -> Verified:
    """Hold a release's manifest to a signature, without reading its files.

    Raises SignatureInvalid, and SigningError for a signature over another digest than SHA-256.
    """
    signed = _Signed(_checked(signature, verifier))
    if signed.algorithm != "sha256" or signed.shards:
        raise SigningError(
            "the signature is not over whole files' SHA-256; pull and verify a folder"
        )
    ignored = (*_IGNORED, *signed.ignored, SIGNATURE_NAME)
    held = {file.path: file.sha256 for file in files if not _is_ignored(file.path, ignored)}
    return signed.verified(_compare(signed.whole, held))


def compare_folder(
    folder: Path, files: Iterable[ReleaseFile], *, told: Told | None = None
) -> Difference | None:
    """The first file below `folder` that is not as in the release; None where all are.

    Raises SigningError, OSError.
    """
    expected = {file.path: bytes.fromhex(file.sha256) for file in files}
    ignored = [name for name in _IGNORED if name not in expected]
    present = set(_list(folder, ignored))
    progress = _Progress(told, _bytes_of(folder, present & expected.keys()))
    for path in sorted(expected.keys() | present):
        if path not in present:
            return Difference(path, "missing")
        if path not in expected:
            return Difference(path, "extra")
        if _hash(folder / path, "sha256", progress=progress) != expected[path]:
            return Difference(path, "differs")
    return None


class _Signed:
    """What a valid signature says: the digests of files, or of their shards, by path."""

    def __init__(self, manifest: SignedManifest) -> None:
        described = manifest.serialization_type
        self._name = manifest.model_name
        self.ignored = tuple(str(path) for path in described.get("ignore_paths", ()))
        self.whole: dict[str, str] = {}
        self.shards: dict[str, list[tuple[int, int, str]]] = {}
        self.algorithm = str(described["hash_type"])
        root = hashlib.sha256()
        for resource in manifest.resource_descriptors():
            root.update(resource.digest.digest_value)
            digest = resource.digest.digest_hex
            if described["method"] == "files":
                self.whole[resource.identifier] = digest
            else:
                path, start, end = resource.identifier.rsplit(":", 2)
                self.shards.setdefault(path, []).append((int(start), int(end), digest))
        self._root_digest = root.hexdigest()

    @property
    def paths(self) -> set[str]:
        """The files that were signed."""
        return self.whole.keys() | self.shards.keys()

    def verified(self, difference: Difference | None) -> Verified:
        """The answer."""
        return Verified(
            name=self._name,
            files=len(self.paths),
            root_digest=self._root_digest,
            difference=difference,
        )

    def holds(self, path: str, file: Path, progress: _Progress) -> bool:
        """Whether the file at `file` is what was signed as `path`."""
        if path in self.whole:
            return _hash(file, self.algorithm, progress=progress).hex() == self.whole[path]
        end_of_all = 0
        for start, end, digest in sorted(self.shards[path]):
            end_of_all = max(end_of_all, end)
            if _hash(file, self.algorithm, start, end, progress).hex() != digest:
                return False
        return file.stat().st_size == end_of_all


def _first_difference(
    folder: Path, signed: _Signed, ignored: tuple[str, ...], told: Told | None
) -> Difference | None:
    present = set(_list(folder, ignored))
    progress = _Progress(told, _bytes_of(folder, present & signed.paths))
    for path in sorted(present | signed.paths):
        if path not in present:
            return Difference(path, "missing")
        if path not in signed.paths:
            return Difference(path, "extra")
        if (folder / path).is_symlink():
            return Difference(path, "link")
        if not signed.holds(path, folder / path, progress):
            return Difference(path, "differs")
    return None


def _compare(signed: Mapping[str, str], held: Mapping[str, str]) -> Difference | None:
    for path in sorted(signed.keys() | held.keys()):
        if path not in held:
            return Difference(path, "missing")
        if path not in signed:
            return Difference(path, "extra")
        if signed[path] != held[path]:
            return Difference(path, "differs")
    return None


class _Stated:
    """Stands for the library's hashing where the digests are known."""

    def __init__(self, manifest: SignedManifest) -> None:
        self._manifest = manifest

    def hash(self, _folder: object) -> SignedManifest:
        """The manifest that was stated."""
        return self._manifest


def _sign(
    name: str,
    digests: Mapping[str, bytes],
    ignored: Iterable[str],
    signature: Path,
    signer: Key | KeyWithCertificate,
) -> None:
    if not digests:
        raise SigningError("there are no files to sign")
    from model_signing import manifest
    from model_signing._hashing import hashing
    from model_signing.signing import Config

    described = manifest.SerializationType.from_args(
        {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": list(dict.fromkeys(ignored)),
        }
    )
    items = [
        manifest.FileManifestItem(path=PurePosixPath(path), digest=hashing.Digest("sha256", digest))
        for path, digest in digests.items()
    ]
    # The library's own classes say little of their types.
    stated: Any = _Stated(manifest.Manifest(name, items, described))
    config: Any = Config()  # type: ignore[no-untyped-call]
    config.set_hashing_config(stated)
    try:
        if isinstance(signer, Key):
            password: Any = signer.password.encode() if signer.password else None
            config.use_elliptic_key_signer(private_key=signer.path, password=password)
        else:
            config.use_certificate_signer(
                private_key=signer.key,
                signing_certificate=signer.certificate,
                certificate_chain=signer.chain,
            )
    except (ValueError, TypeError, AttributeError) as error:
        raise SigningError(
            f"the key can't be used: {error}. It must be a PEM file of an elliptic-curve key "
            "(openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256)"
        ) from error
    _write(signature, lambda path: config.sign(Path(name), path))


def _write(signature: Path, write: Callable[[Path], None]) -> None:
    """Put the signature in its place whole."""
    descriptor, temporary = tempfile.mkstemp(dir=signature.parent, prefix=".new-")
    os.close(descriptor)
    try:
        write(Path(temporary))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(signature)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checked(signature: Path, verifier: PublicKey | TrustedRoots) -> SignedManifest:
    """What the signature says, if it is valid. Raises SignatureInvalid, SigningError, OSError."""
    if signature.stat().st_size > _SIGNATURE_BYTES_MAX:
        raise SignatureInvalid(f"{signature} is over {_SIGNATURE_BYTES_MAX} bytes: no signature")
    _refuse_keyless(signature)
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing.sign_sigstore_pb import Signature
    from model_signing.verifying import Config
    from OpenSSL.crypto import X509StoreContextError

    config: Any = Config()  # type: ignore[no-untyped-call]
    try:
        if isinstance(verifier, PublicKey):
            config.use_elliptic_key_verifier(public_key=verifier.path)
        else:
            config.use_certificate_verifier(certificate_chain=verifier.paths)
    except (ValueError, TypeError, AttributeError) as error:
        raise SigningError(f"the key or certificate can't be used: {error}") from error
    try:
        # The library warns on standard output, which is the caller's.
        with contextlib.redirect_stdout(sys.stderr):
            signed: SignedManifest = config._verifier.verify(Signature.read(signature))
            return signed
    except InvalidSignature as error:
        raise SignatureInvalid(f"{signature} is not signed by this key") from error
    except X509StoreContextError as error:
        raise SignatureInvalid(f"{signature}: its certificate isn't trusted: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SignatureInvalid(f"{signature} is no valid signature for this: {error}") from error


class _Material(msgspec.Struct):
    certificate: object = None
    tlogEntries: list[object] = []  # noqa: N815 (the format's own name)


class _Bundle(msgspec.Struct):
    verificationMaterial: _Material  # noqa: N815


def _refuse_keyless(signature: Path) -> None:
    try:
        bundle = msgspec.json.decode(signature.read_bytes(), type=_Bundle)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SignatureInvalid(f"{signature} is no signature bundle: {error}") from error
    if bundle.verificationMaterial.certificate is not None:
        raise SigningError(
            f"{signature} is a keyless Sigstore signature, which can only be checked over the "
            f"network: model_signing verify sigstore FOLDER --signature {signature} --identity … "
            "--identity_provider …"
        )


class _Progress:
    """Counts bytes for whoever watches."""

    def __init__(self, told: Told | None, total: int) -> None:
        self._told = told
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        if self._told is not None:
            self._told(self._done, self._total)


def _bytes_of(folder: Path, paths: Iterable[str]) -> int:
    return sum((folder / path).stat().st_size for path in paths if (folder / path).is_file())


def _hash(
    path: Path,
    algorithm: str,
    start: int = 0,
    end: int | None = None,
    progress: _Progress | None = None,
) -> bytes:
    makers: dict[str, Callable[[], Any]] = {
        "sha256": hashlib.sha256, "blake2b": hashlib.blake2b, "blake3": blake3.blake3
    }  # fmt: skip
    name = algorithm.partition("-")[0]
    if name not in makers:
        raise SigningError(f"the signature uses {algorithm}; known are {', '.join(makers)}")
    hasher = makers[name]()
    left = None if end is None else end - start
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES)):
            hasher.update(piece)
            left = None if left is None else left - len(piece)
            if progress is not None:
                progress.add(len(piece))
    digest: bytes = hasher.digest()
    return digest


def _list(folder: Path, ignored: Iterable[str]) -> list[str]:
    """The files below the folder as paths with slashes, sorted; links are listed, not followed."""
    if not folder.is_dir():
        raise SigningError(f"{folder} is no folder")
    ignored = tuple(ignored)
    paths: list[str] = []
    for path in _walk(folder, folder, ignored):
        paths.append(path)
        if len(paths) > _FILES_MAX:
            raise SigningError(f"{folder} holds over {_FILES_MAX} files")
    return sorted(paths)


def _walk(root: Path, folder: Path, ignored: tuple[str, ...]) -> Iterator[str]:
    for entry in os.scandir(folder):
        path = Path(entry.path).relative_to(root).as_posix()
        if _is_ignored(path, ignored):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path), ignored)
        else:
            yield path


def _is_ignored(path: str, ignored: Iterable[str]) -> bool:
    return any(path == name or path.startswith(name + "/") for name in ignored)


def _within(folder: Path, signature: Path) -> tuple[str, ...]:
    """The signature's own path in the folder, where it lies there."""
    inside = signature.resolve()
    root = folder.resolve()
    return (inside.relative_to(root).as_posix(),) if inside.is_relative_to(root) else ()
