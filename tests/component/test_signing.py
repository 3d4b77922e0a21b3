"""Signing models: what we sign the official program verifies, and the other way round."""

from __future__ import annotations

import datetime
import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qwenstack.hub.signing import (
    Difference,
    Key,
    KeyWithCertificate,
    PublicKey,
    SignatureInvalid,
    SigningError,
    TrustedRoots,
    compare_folder,
    sign_folder,
    sign_release,
    verify_folder,
    verify_release,
)


class File(msgspec.Struct, frozen=True):
    path: str
    sha256: str


class Pair(msgspec.Struct, frozen=True):
    private: Path
    public: Path


def write_key(folder: Path, name: str, curve: ec.EllipticCurve) -> Pair:
    key = ec.generate_private_key(curve)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return Pair(private, public)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return write_key(tmp_path, "key", ec.SECP256R1())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "sub/tokenizer.json", "z.txt"):
        (folder / name).write_bytes(name.encode() * 100)
    (folder / ".gitattributes").write_text("* text")
    return folder


def official(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def files_of(folder: Path) -> list[File]:
    return [
        File(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def test_the_official_program_verifies_what_we_sign(model: Path, pair: Pair) -> None:
    signature = model / "model.sig"
    assert sign_folder(model, signature, Key(pair.private)) == 4
    check = ("verify", "key", model, "--signature", signature, "--public_key", pair.public)
    done = official(*check)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["files", "shards"])
def test_we_verify_what_the_official_program_signs(model: Path, pair: Pair, how: str) -> None:
    signature = model / "model.sig"
    if how == "files":
        made = official(
            "sign", "key", model, "--signature", signature, "--private_key", pair.private
        )
        assert made.returncode == 0, made.stderr
    else:
        from model_signing import hashing, signing

        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=pair.private)
        config.set_hashing_config(
            hashing.Config()  # type: ignore[no-untyped-call]
            .use_shard_serialization(shard_size=300)
            .set_ignored_paths(paths=["model.sig"])
        )
        config.sign(model, signature)
    found = verify_folder(model, signature, PublicKey(pair.public))
    assert (found.holds, found.files, found.name) == (True, 4, "model")
    with (model / "sub/tokenizer.json").open("r+b") as file:
        file.seek(400)
        file.write(b"X")
    found = verify_folder(model, signature, PublicKey(pair.public))
    assert found.difference == Difference("sub/tokenizer.json", "differs")


def test_a_release_is_signed_from_its_manifest_and_its_folder_verifies(
    model: Path, pair: Pair, tmp_path: Path
) -> None:
    signature = tmp_path / "out.sig"
    files = files_of(model)
    assert sign_release("me/model", files, signature, Key(pair.private)) == 4
    assert verify_release(files, signature, PublicKey(pair.public)).holds
    (model / "model.sig").write_bytes(signature.read_bytes())
    assert verify_folder(model, model / "model.sig", PublicKey(pair.public)).holds
    check = official(
        "verify", "key", model, "--signature", model / "model.sig", "--public_key", pair.public
    )
    assert check.returncode == 0, check.stderr
    changed = [*files[:-1], File("z.txt", "0" * 64)]
    found = verify_release(changed, signature, PublicKey(pair.public))
    assert found.difference == Difference("z.txt", "differs")


def change(model: Path, kind: str) -> None:
    if kind == "differs":
        (model / "model.safetensors").write_bytes(b"x")
    elif kind == "missing":
        (model / "model.safetensors").unlink()
    elif kind == "extra":
        (model / "added.py").write_text("print()")
    else:
        (model / "model.safetensors").rename(model.parent / "elsewhere")
        (model / "model.safetensors").symlink_to(model.parent / "elsewhere")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("differs", "model.safetensors"),
        ("missing", "model.safetensors"),
        ("extra", "added.py"),
        ("link", "model.safetensors"),
    ],
)
def test_the_first_file_that_is_not_as_signed_is_named(
    model: Path, pair: Pair, kind: str, path: str
) -> None:
    signature = model.parent / "model.sig"
    sign_folder(model, signature, Key(pair.private))
    (model / "z.txt").write_text("a later one differs too")
    change(model, kind)
    found = verify_folder(model, signature, PublicKey(pair.public))
    assert found.difference is not None
    assert (found.difference.path, found.difference.kind) == (path, kind)


def test_a_folder_is_held_to_a_release_without_a_signature(model: Path) -> None:
    files = files_of(model)
    assert compare_folder(model, files) is None
    change(model, "extra")
    assert compare_folder(model, files) == Difference("added.py", "extra")


def certificate(folder: Path, *, for_signing: bool = True) -> tuple[KeyWithCertificate, Path]:
    """A root, an intermediate and a signer's certificate."""
    now = datetime.datetime.now(datetime.UTC)
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
    paths: list[Path] = []
    for level, name in enumerate(("root", "intermediate", "signer")):
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer_name, issuer_key = issuer or (subject, key)
        last = level == 2
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2 - level / 2))
            .not_valid_after(now + datetime.timedelta(days=5))
            .add_extension(x509.BasicConstraints(ca=not last, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=last and for_signing, content_commitment=last,
                    key_encipherment=False, data_encipherment=False, key_agreement=False,
                    key_cert_sign=not last, crl_sign=not last, encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(issuer_key, hashes.SHA384())
        )  # fmt: skip
        paths.append(folder / f"{name}.crt")
        paths[-1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        issuer = (subject, key)
    assert issuer is not None
    private = folder / "signer.pem"
    private.write_bytes(
        issuer[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return KeyWithCertificate(private, paths[2], (paths[1],)), paths[0]


def test_a_certificate_leads_to_its_root_and_to_no_other(model: Path, tmp_path: Path) -> None:
    signer, root = certificate(tmp_path)
    signature = model / "model.sig"
    sign_folder(model, signature, signer)
    assert verify_folder(model, signature, TrustedRoots((root,))).holds
    check = official(
        "verify", "certificate", model, "--signature", signature, "--certificate_chain", root
    )
    assert check.returncode == 0, check.stderr
    (tmp_path / "other").mkdir()
    _, stranger = certificate(tmp_path / "other")
    with pytest.raises(SignatureInvalid, match="isn't trusted"):
        verify_folder(model, signature, TrustedRoots((stranger,)))


def test_a_certificate_that_is_not_for_signing_is_refused(model: Path, tmp_path: Path) -> None:
    signer, root = certificate(tmp_path, for_signing=False)
    sign_folder(model, model / "model.sig", signer)
    with pytest.raises(SignatureInvalid, match="cannot be used for signing"):
        verify_folder(model, model / "model.sig", TrustedRoots((root,)))


def test_another_key_and_a_forged_statement_are_refused(
    model: Path, pair: Pair, tmp_path: Path
) -> None:
    signature = tmp_path / "model.sig"
    sign_folder(model, signature, Key(pair.private))
    other = write_key(tmp_path, "other", ec.SECP521R1())
    with pytest.raises(SignatureInvalid):
        verify_folder(model, signature, PublicKey(other.public))
    bundle = msgspec.json.decode(signature.read_bytes())
    payload = bytearray(bundle["dsseEnvelope"]["payload"].encode())
    payload[200] ^= 1
    bundle["dsseEnvelope"]["payload"] = payload.decode()
    signature.write_bytes(msgspec.json.encode(bundle))
    with pytest.raises(SignatureInvalid):
        verify_folder(model, signature, PublicKey(pair.public))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"verificationMaterial":{}}']
)
def test_what_is_no_signature_is_said_to_be_none(
    model: Path, pair: Pair, tmp_path: Path, content: bytes
) -> None:
    signature = tmp_path / "model.sig"
    signature.write_bytes(content)
    with pytest.raises(SignatureInvalid):
        verify_folder(model, signature, PublicKey(pair.public))


def test_a_keyless_signature_says_that_it_needs_the_network(
    model: Path, pair: Pair, tmp_path: Path
) -> None:
    signature = tmp_path / "model.sig"
    signature.write_text('{"verificationMaterial":{"certificate":{"rawBytes":""}}}')
    with pytest.raises(SigningError, match="network"):
        verify_folder(model, signature, PublicKey(pair.public))


def test_keys_that_do_not_fit_are_refused_with_the_way_out(model: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no key")
    with pytest.raises(SigningError, match="openssl"):
        sign_folder(model, tmp_path / "model.sig", Key(wrong))
    assert not (tmp_path / "model.sig").exists()
    curve = write_key(tmp_path, "k1", ec.SECP256K1())
    with pytest.raises(SigningError, match="secp256k1"):
        sign_folder(model, tmp_path / "model.sig", Key(curve.private))
    (model / "link").symlink_to(curve.public)
    with pytest.raises(SigningError, match="symbolic link"):
        sign_folder(model, tmp_path / "model.sig", Key(curve.private))
