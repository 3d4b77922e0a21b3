"""The scanner against a corpus of hostile files, honest files, and files of absurd size."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import resource
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from qwenstack.hub.safety.confined import ConfinedError, Limits, run_confined
from qwenstack.hub.safety.findings import Scan
from qwenstack.hub.safety.policy import PolicyError, default_policy, load_policy, policy_in
from qwenstack.hub.safety.records import SafetyInspector, quarantine, read_scans, release
from qwenstack.hub.safety.scanner import scan
from qwenstack.hub.safety.templates import TemplateAnswer, TemplateRequest
from qwenstack.storage.database import open_database
from tests.hostile_files import COMMAND, SOUND_TENSORS, hostile_files, member, tarred, zipped
from tests.migrated import new_database
from tests.unit.test_gguf import gguf

HOSTILE = hostile_files()


def scanned(path: str, content: bytes) -> Scan:
    return scan(path, len(content), lambda: io.BytesIO(content))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_caught_by_its_rule(name: str) -> None:
    made = HOSTILE[name]()
    found = scanned(made.path, made.content)
    assert made.rule in {finding.rule for finding in found.findings}
    assert default_policy().action_on(found) == made.action


QWEN_TEMPLATE = """{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- "# Tools\\n\\nYou may call one or more functions to assist with the user query." }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if message.role == "user" and not (message.content.startswith('<tool_response>')) %}
{%- set ns.last = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if '</think>' in message.content %}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
{%- else %}{%- set content = message.content %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""


def numpy_file(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HONEST = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\nIt says (cos) and import os.\n",
    "model.safetensors": SOUND_TENSORS,
    "model.gguf": gguf(),
    "config.json": b'{"model_type": "qwen3", "_attn_implementation": "flash_attention_2"}',
    "tokenizer_config.json": json.dumps({"chat_template": QWEN_TEMPLATE}).encode(),
    "chat_template.jinja": QWEN_TEMPLATE.encode(),
    "vision.jinja": b"""{% for content in messages[0].content %}
{%- if content.type == 'image' or 'image' in content %}{{ loop.index }}: \\
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif content.type == 'text' %}{{ content.text }}{% endif %}{% endfor %}""",
    "generation.jinja": b"{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "vocab.txt": b"console\nworld\n(Run)\ncat\ndog\nRat\n",
    "merges.txt": b"#version: 0.2\n\xc4\xa0 t\n",
    "data.jsonl.gz": gzip.compress(b'{"text": "hello"}\n' * 10_000),
    "data.zip": zipped({"a/b.txt": b"x" * 1000, "c.json": b"{}"}),
    "data.tar": tarred((member("a.txt"), b"x"), (member("d", tarfile.DIRTYPE), b"")),
    "data.tar.gz": tarred((member("a.txt"), b"x" * 5000), mode="w:gz"),
    "a.npz": zipped({"a.npy": numpy_file(np.zeros((2, 2), np.float32))}),
    "a.npy": numpy_file(np.zeros(3, np.dtype([("x", "<f4"), ("y", "<i8")]))),
    "empty": b"",
    "one.bin": b"x",
    "zeros.bin": bytes(100_000),
    "noise.bin": np.random.default_rng(1).bytes(200_000),
    "model.safetensors.index.json": b'{"weight_map": {"a": "model.safetensors"}}',
}


@pytest.mark.parametrize("path", HONEST)
def test_an_honest_file_is_clean(path: str) -> None:
    assert scanned(path, HONEST[path]) == Scan("clean", ())


def test_what_a_pickle_imports_is_named_and_nothing_is_run(tmp_path: Path) -> None:
    class Marker:
        def __reduce__(self) -> tuple[object, tuple[Path, str]]:
            return Path.write_text, (tmp_path / "ran", "x")

    found = scanned("x.bin", pickle.dumps(Marker()))
    assert "pathlib" in found.findings[0].message
    assert "posix.system" in scanned("x", pickle.dumps(COMMAND)).findings[0].message
    assert not (tmp_path / "ran").exists()


class Sparse(io.RawIOBase):
    """A file of any size that holds a few bytes at its start; counts what is read of it."""

    def __init__(self, start: bytes, size: int) -> None:
        self.start, self.size, self.at, self.taken = start, size, 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self.size - self.at))
        piece = self.start[self.at : self.at + count]
        buffer[:count] = piece + bytes(count - len(piece))
        self.at += count
        self.taken += count
        return count


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("m.safetensors", struct.pack("<Q", 2**63)),
        ("m.safetensors", struct.pack("<Q", 90_000_000) + b"x"),
        ("m.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1)),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62)),
        ("config.json", b"{"),
        ("chat_template.jinja", b"{"),
        ("x.zip", b"PK\x03\x04"),
        ("m.h5", b"\x89HDF\r\n\x1a\n"),
        ("x.tar", tarred((member("a"), b"x"))[:1024]),
    ],
)
def test_of_a_file_of_10_gb_only_a_little_is_read(path: str, start: bytes) -> None:
    file = Sparse(start, 10_000_000_000)
    found = scan(path, file.size, lambda: file)  # type: ignore[arg-type, return-value]
    assert found.verdict != "clean" or path == "x.tar"
    assert file.taken < 17 * 1024 * 1024


def test_memory_stays_flat_over_the_whole_corpus(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = tmp_path / "huge.tar"
    info = member("a")
    info.size = 3_000_000_000
    huge.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with huge.open("r+b") as file:
        file.truncate(3_000_001_024)
    assert scan("huge.tar", huge.stat().st_size, lambda: huge.open("rb")).verdict == "clean"
    bomb = gzip.compress(bytes(200_000_000), 1)
    assert scanned("bomb.gz", bomb).verdict == "refused"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 300 * 1024  # kilobytes, the bomb's own bytes in this test included


def rules(found: Scan) -> set[str]:
    return {finding.rule for finding in found.findings}


def test_work_without_end_in_a_small_file_is_given_up() -> None:
    empties = gzip.compress(b"") * 100_000
    assert rules(scanned("x.gz", empties)) == {"archive-limits"}
    quiet = zlib.compressobj(wbits=31)
    blocks = (
        b"".join(quiet.flush(zlib.Z_SYNC_FLUSH) for _ in range(2)) + b"\0\0\0\xff\xff" * 4_000_000
    )
    assert rules(scanned("x.gz", blocks)) == {"archive-limits"}
    many = tarred(*[(member(f"{n}"), pickle.dumps(COMMAND)) for n in range(30)])
    found = scanned("x.tar", many)
    assert rules(found) == {"pickle", "pickle-dangerous"}
    assert len(found.findings) == 30


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["x", "x.zip", "x.tar", "m.gguf", "config.json"]))
def test_no_bytes_crash_it(noise: bytes, path: str) -> None:
    scanned(path, noise)
    for start in (b"PK\x03\x04", b"\x1f\x8b\x08\0", b"GGUF\x03\0\0\0", b"\x93NUMPY\x01\0"):
        scanned(path, start + noise)


ARCHIVES = [HONEST[name] for name in ("data.zip", "data.tar", "data.tar.gz", "data.jsonl.gz")]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damaged_archive_crashes_it(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    scanned("x", bytes(content[: data.draw(st.integers(1, len(content)))]))


def test_a_child_that_takes_too_much_is_ended() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ConfinedError, match="1 s"):
        run_confined(
            "qwenstack.hub.safety.template_child",
            TemplateRequest({"": loops}, render=True),
            TemplateAnswer,
            Limits(seconds=1),
        )


class File(msgspec.Struct, frozen=True):
    path: str
    size: int
    sha256: str


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgresql":
        engine = open_database(request.getfixturevalue("postgres_url"))
    else:
        engine = new_database(tmp_path / "hub.db")
    yield engine
    engine.dispose()


def test_a_commit_with_a_refused_file_is_told_why_and_each_content_is_scanned_once(
    database: Engine,
) -> None:
    contents = {
        "model.bin": pickle.dumps(COMMAND),
        "m.h5": b"\x89HDF\r\n\x1a\n" + bytes(10),
        "code.py": b"import os",
        "README.md": b"# hi",
    }
    files = [File(p, len(c), hashlib.sha256(c).hexdigest()) for p, c in contents.items()]
    opened: list[str] = []

    def open_file(file: File) -> BinaryIO:
        opened.append(file.path)
        return io.BytesIO(contents[file.path])

    inspector = SafetyInspector(database)
    refusal, held = inspector.inspect(files, open_file)
    assert refusal.startswith("model.bin: it is a pickle; it imports what runs commands")
    assert "convert" in refusal or "don't load it" in refusal
    assert "m.h5: it is an HDF5 file [hdf5]" in held
    assert inspector.inspect(files, open_file) == [refusal, held]
    assert opened == list(contents)
    # The same bytes under a name that makes loaders unpickle them are scanned as that.
    renamed = File("x.pt", files[3].size, files[3].sha256)
    contents["x.pt"] = contents["README.md"]
    assert "[pickle-name]" in inspector.inspect([renamed], open_file)[0]
    with database.connect() as connection:
        shown = read_scans(connection, files)
        assert (shown["README.md"], shown["code.py"].verdict) == (Scan("clean", ()), "suspicious")


def test_what_an_operator_lets_out_of_quarantine_is_taken_and_what_is_refused_is_not(
    database: Engine,
) -> None:
    contents = {"m.h5": b"\x89HDF\r\n\x1a\n" + bytes(10), "x": pickle.dumps([1])}
    held, refused = (
        File(path, len(raw), hashlib.sha256(raw).hexdigest()) for path, raw in contents.items()
    )
    inspector = SafetyInspector(database)

    def open_file(file: File) -> BinaryIO:
        return io.BytesIO(contents[file.path])

    assert "--release " + held.sha256 in inspector.inspect([held], open_file)[0]
    assert inspector.inspect([refused], open_file)
    with database.begin() as connection:
        assert [each.sha256 for each in quarantine(connection)] == [held.sha256]
        assert release(connection, held.sha256)
        assert not release(connection, refused.sha256)
        assert quarantine(connection) == []
    assert inspector.inspect([held], open_file) == []
    assert inspector.inspect([refused], open_file)


def test_an_operator_changes_single_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    assert policy_in(tmp_path) == default_policy()
    path.write_text('[actions]\nsuspicious = "quarantine"\n[rules.pickle]\naction = "quarantine"\n')
    policy = policy_in(tmp_path)
    found = scanned("x", pickle.dumps([1]))
    assert (default_policy().action_on(found), policy.action_on(found)) == ("refuse", "quarantine")
    assert policy.action_on(scanned("x.py", b"")) == "quarantine"
    for wrong, words in (("[rules.nothing]", "nothing"), ("[rules.pickle]\nverdict = 'x'", "x")):
        path.write_text(wrong)
        with pytest.raises(PolicyError, match=words):
            load_policy(path)
