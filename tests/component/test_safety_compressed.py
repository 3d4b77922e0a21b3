"""The scan of lz4 and zstd streams: what is in them is seen, and unpacking is bounded.

zstd is read where Python has it (3.14) or `backports.zstd` is installed; else it is quarantined.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import tarfile
from collections.abc import Callable

import lz4.frame  # type: ignore[import-untyped]
import pytest

from qwenstack.hub.safety.findings import Scan
from qwenstack.hub.safety.scanner import scan
from qwenstack.hub.safety.streams import ZSTD

Compress = Callable[[bytes], bytes]
COMPRESSIONS = [
    pytest.param(lz4.frame.compress, "lz4", id="lz4"),
    pytest.param(
        getattr(ZSTD, "compress", None),
        "zst",
        id="zstd",
        marks=pytest.mark.skipif(ZSTD is None, reason="nothing here reads zstd"),
    ),
]
WORDS = b'{"text": "hello"}\n' * 10_000


class Command:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def scanned(path: str, content: bytes) -> Scan:
    return scan(path, len(content), lambda: io.BytesIO(content))


def rules(found: Scan) -> set[str]:
    return {finding.rule for finding in found.findings}


def tarred(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(("compress", "ending"), COMPRESSIONS)
def test_honest_streams_are_clean(compress: Compress, ending: str) -> None:
    for name, content in (("data.jsonl", WORDS), ("data.tar", tarred(a=b"x" * 5000))):
        assert scanned(f"{name}.{ending}", compress(content)) == Scan("clean", ())
    # Several streams count as one.
    assert scanned(f"d.jsonl.{ending}", compress(WORDS) + compress(WORDS)) == Scan("clean", ())


@pytest.mark.parametrize(("compress", "ending"), COMPRESSIONS)
def test_what_is_inside_is_seen_whatever_the_name(compress: Compress, ending: str) -> None:
    bad = pickle.dumps(Command())
    for name in (f"x.bin.{ending}", "weights.bin", "notes.txt"):
        assert "pickle-dangerous" in rules(scanned(name, compress(bad)))
    assert "pickle-dangerous" in rules(scanned(f"x.tar.{ending}", compress(tarred(inner=bad))))
    assert "native-code" in rules(scanned(f"x.{ending}", compress(b"\x7fELF" + bytes(100))))
    assert "archive-path" in rules(
        scanned(f"x.tar.{ending}", compress(tarred(**{"../../etc/passwd": b"x"})))
    )
    nested = compress(compress(bad))
    assert scanned(f"x.{ending}", nested).verdict != "clean"
    # Inside an archive, too.
    assert "pickle-dangerous" in rules(scanned("x.tar", tarred(inner=compress(bad))))


@pytest.mark.parametrize(("compress", "ending"), COMPRESSIONS)
def test_a_bomb_is_refused_and_memory_stays_flat(compress: Compress, ending: str) -> None:
    bomb = compress(bytes(300_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rules(scanned(f"x.{ending}", bomb)) == {"archive-bomb"}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 100 * 1024  # kilobytes


@pytest.mark.parametrize(("compress", "ending"), COMPRESSIONS)
def test_damaged_and_endless_streams_end_the_scan(compress: Compress, ending: str) -> None:
    whole = compress(os.urandom(50_000))
    assert rules(scanned(f"x.{ending}", whole[:30_000])) == {"archive-damaged"}
    assert scanned(f"x.{ending}", whole[:8] + os.urandom(1000)).verdict != "clean"
    assert rules(scanned(f"x.{ending}", compress(b"") * 100_000)) == {"archive-limits"}
    for cut in range(0, len(whole), 5000):
        damaged = bytearray(whole)
        damaged[cut] ^= 0x55
        scanned(f"x.{ending}", bytes(damaged))


def test_what_is_not_read_is_quarantined() -> None:
    skippable = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    legacy = b"\x02\x21\x4c\x18" + bytes(20)
    for start in (skippable + lz4.frame.compress(pickle.dumps(Command())), legacy):
        assert rules(scanned("data.lz4", start)) == {"compressed-opaque"}
    if ZSTD is None:
        assert rules(scanned("d.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(40))) == {
            "compressed-opaque"
        }


@pytest.mark.skipif(ZSTD is None, reason="nothing here reads zstd")
def test_a_zstd_window_that_no_reader_takes_by_default_is_not_taken() -> None:
    parameter = ZSTD.CompressionParameter
    options = {parameter.window_log: 30, parameter.enable_long_distance_matching: 1}
    stream = ZSTD.ZstdCompressor(options=options)
    packed = stream.compress(os.urandom(1 << 20)) + stream.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rules(scanned("x.zst", packed)) == {"archive-damaged"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
