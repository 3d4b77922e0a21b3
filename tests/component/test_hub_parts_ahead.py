"""Uploads in parts that are taken in early: whatever the order, the whole is what was announced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwenstack.hub.http.parts_ahead import PartsAhead
from qwenstack.hub.registry.uploads import Upload, part_path
from qwenstack.hub.store.contents import ContentMismatch, ContentStore
from tests.migrated import new_database

PART_BYTES = 300_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    store = ContentStore(new_database(tmp_path / "hub.db"), tmp_path)
    yield store
    store.database.dispose()


def make(number: int) -> tuple[Upload, bytes]:
    data = np.random.default_rng(number).bytes(5 * PART_BYTES - 1000)
    upload = Upload(
        id=f"up_{number}",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        part_bytes=PART_BYTES,
        repo_id="repo",
        account="alice",
        guest=False,
        created_us=1,
    )
    return upload, data


def send(folder: Path, upload: Upload, data: bytes, number: int) -> None:
    path = part_path(folder, upload, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (2, 1, 5, 3, 4)])
def test_parts_in_any_order_make_the_whole(
    order: tuple[int, ...], store: ContentStore, tmp_path: Path
) -> None:
    ahead = PartsAhead(store, tmp_path / "uploads")
    upload, data = make(1)
    for number in order:
        send(tmp_path / "uploads", upload, data, number)
        ahead.go_on(upload)
    content = ahead.finish(upload)
    assert (content.sha256, content.size) == (upload.sha256, upload.size)
    assert b"".join(store.read(content.sha256)) == data
    assert list(store.check()) == []


def test_more_uploads_at_once_than_are_taken_in_early_all_end_whole(
    store: ContentStore, tmp_path: Path
) -> None:
    ahead = PartsAhead(store, tmp_path / "uploads")
    made = [make(number) for number in range(7)]

    def send_all(turn: int) -> None:
        upload, data = made[turn]
        for number in range(1, 6):
            send(tmp_path / "uploads", upload, data, number)
            ahead.go_on(upload)

    with ThreadPoolExecutor(7) as pool:
        list(pool.map(send_all, range(7)))
        contents = list(pool.map(lambda each: ahead.finish(each[0]), made))
    assert [b"".join(store.read(each.sha256)) for each in contents] == [data for _, data in made]
    assert list(store.check()) == []


def test_a_wrong_part_is_noticed_at_the_end_and_nothing_stays(
    store: ContentStore, tmp_path: Path
) -> None:
    ahead = PartsAhead(store, tmp_path / "uploads")
    upload, data = make(1)
    wrong = data[:PART_BYTES] + b"!" + data[PART_BYTES + 1 :]
    for number in range(1, 6):
        send(tmp_path / "uploads", upload, wrong, number)
        ahead.go_on(upload)
    with pytest.raises(ContentMismatch):
        ahead.finish(upload)
    assert store.find(upload.sha256) is None
    assert list(store.objects.list()) == []
    for number in range(1, 6):
        send(tmp_path / "uploads", upload, data, number)
    assert ahead.finish(upload).sha256 == upload.sha256
