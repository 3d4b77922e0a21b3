"""The store over S3-compatible objects: a real server on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwenstack.hub.store.contents import ContentCorrupt, ContentStore, StoreError
from qwenstack.hub.store.objects import open_objects
from qwenstack.hub.store.s3 import S3Objects
from tests.migrated import new_database

pytest.importorskip("obstore", reason="no S3 client: the wheel obstore is missing")
FUTURE_US = 2**62


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server: moto's, from the environment of the tests or of its own (QWENSTACK_MOTO)."""
    program = os.environ.get("QWENSTACK_MOTO") or shutil.which(
        "moto_server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    if program is None:
        pytest.skip("no S3 server: the wheel moto[server] is missing (QWENSTACK_MOTO names one)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        except OSError:
            time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    bucket = "b" + os.urandom(6).hex()
    request = urllib.request.Request(f"{server}/{bucket}", method="PUT")
    with urllib.request.urlopen(request):
        pass
    return f"s3://{bucket}/hub/packs?endpoint={server}"


def open_store(url: str, folder: Path) -> ContentStore:
    database = new_database(folder / "hub.db")
    return ContentStore(database, folder, open_objects(url, folder))


def test_contents_live_in_the_bucket_and_come_back_with_an_empty_cache(
    url: str, tmp_path: Path
) -> None:
    store = open_store(url, tmp_path)
    data = np.random.default_rng(0).bytes(3_000_000)
    first, second = store.put([data]), store.put([data[:1_500_000] + b"!" + data[1_500_000:]])
    assert sum(each.bytes for each in store.objects.list()) < 3_500_000
    shutil.rmtree(tmp_path / "packs-cache")
    (tmp_path / "packs-cache").mkdir()
    assert b"".join(store.read(first.sha256)) == data
    segments = store.segments(second.sha256, 1_000_000, 2_000_000)
    sent = b"".join(
        each.path.read_bytes()[each.offset : each.offset + each.bytes] for each in segments
    )
    assert sent == (data[:1_500_000] + b"!" + data[1_500_000:])[1_000_000:2_000_000]
    assert list(store.check()) == []
    assert store.sweep([second.sha256], older_than_us=FUTURE_US).contents == 1
    store.verify(second.sha256)
    store.sweep([], older_than_us=FUTURE_US)
    assert list(store.objects.list()) == []
    store.database.dispose()


def test_a_pack_that_the_bucket_lost_is_named(url: str, tmp_path: Path) -> None:
    store = open_store(url, tmp_path)
    content = store.put([b"lost"])
    (there,) = store.objects.list()
    store.objects.delete(there.name)
    (fault,) = store.check()
    assert (fault.kind, fault.contents) == ("missing-pack", (content.sha256,))
    with pytest.raises(ContentCorrupt, match="missing"):
        list(store.read(content.sha256))
    store.database.dispose()


def test_a_bucket_that_is_not_there_refuses_the_upload(url: str, tmp_path: Path) -> None:
    store = open_store(url.replace("/hub/packs", "-none/hub/packs"), tmp_path)
    with pytest.raises(OSError, match="cannot store"):
        store.put([b"bytes"])
    assert store.find("0" * 64) is None
    assert not list((tmp_path / "packs-cache").iterdir())
    store.database.dispose()


def test_the_cache_keeps_its_size(url: str, tmp_path: Path) -> None:
    objects = open_objects(url, tmp_path)
    assert isinstance(objects, S3Objects)
    small = S3Objects(objects._store, tmp_path / "small", 100_000)
    store = ContentStore(new_database(tmp_path / "hub.db"), tmp_path, small)
    stored = [store.put([np.random.default_rng(seed).bytes(60_000)]) for seed in range(4)]
    cached = sorted((tmp_path / "small").iterdir())
    assert len(cached) == 4  # each was used just now
    long_ago = time.time() - 3600
    for path in cached:
        os.utime(path, (long_ago, long_ago))
    cached[0].unlink()
    store.verify(stored[0].sha256)
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= 100_000
    assert b"".join(store.read(stored[3].sha256)) == np.random.default_rng(3).bytes(60_000)
    store.database.dispose()


def test_a_url_of_another_kind_is_refused_with_the_right_form(tmp_path: Path) -> None:
    for bad in ("gs://bucket", "s3://", "s3://bucket?secret=x", "/folder"):
        with pytest.raises(StoreError, match="s3://BUCKET"):
            open_objects(bad, tmp_path)
