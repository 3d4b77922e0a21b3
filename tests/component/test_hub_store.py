"""The store on a real folder and database: identity, deduplication, damage, sweeping, kills."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.store.contents import (
    Content,
    ContentCorrupt,
    ContentMismatch,
    ContentMissing,
    ContentStore,
    Expected,
    StoreError,
)
from qwenstack.hub.store.merkle import chunk_hash, file_hash, range_hash, to_text, xorb_hash
from qwenstack.hub.store.objects import FolderObjects
from qwenstack.hub.store.packs import PackIndex, PackTable, PackWriter
from qwenstack.hub.store.receiving import ArrivingXorb, receive_shard
from qwenstack.hub.store.repacking import READERS_US
from qwenstack.hub.store.shard import ShardError, ShardFile, ShardSegment, write_shard
from qwenstack.hub.store.writing import STRETCH_CHUNKS_MIN
from qwenstack.hub.store.xorb import XorbError, write_xorb
from qwenstack.storage.database import open_database
from qwenstack.storage.hub_tables import contents, packs, segments
from tests.migrated import lay_database

FUTURE_US = 2**62


def open_store(folder: Path, url: str | None = None) -> ContentStore:
    return ContentStore(open_database(url or lay_database(folder / "hub.db")), folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    store = open_store(tmp_path)
    yield store
    store.database.dispose()


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def pieces(data: bytes, size: int = 300_000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def expected(data: bytes) -> Expected:
    return Expected(hashlib.sha256(data).hexdigest(), len(data))


def get(store: ContentStore, content: Content, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(store.read(content.sha256, start, end))


def stored_bytes(store: ContentStore) -> int:
    return sum(each.bytes for each in store.objects.list())


def pack_files(folder: Path) -> list[Path]:
    return sorted((folder / "packs").glob("pack_*"))


def rows(store: ContentStore) -> tuple[int, int, int]:
    with store.database.connect() as connection:
        counts = [
            connection.scalar(select(func.count()).select_from(each))
            for each in (contents, segments, packs)
        ]
    return counts[0] or 0, counts[1] or 0, counts[2] or 0


# --- identity ---------------------------------------------------------------------------------


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_what_was_put_is_what_is_read(store: ContentStore, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 8192, 131_072, 500_000]) | st.integers(0, 800_000))
    original = random_bytes(size, data.draw(st.integers(0, 3)))
    content = store.put(pieces(original, data.draw(st.integers(1000, 10**6))))
    assert content.sha256 == hashlib.sha256(original).hexdigest()
    assert content.git_oid == hashlib.sha1(b"blob %d\0" % size + original).hexdigest()
    assert get(store, content) == original
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size + 10))
    assert get(store, content, start, end) == original[start:end]
    sent = store.segments(content.sha256, start, end)
    assert (
        b"".join(each.path.read_bytes()[each.offset : each.offset + each.bytes] for each in sent)
        == (original[start:end])
    )
    with store.open(content.sha256) as file:
        file.seek(start)
        assert file.read(end - start) == original[start:end]
        file.seek(-min(7, size), io.SEEK_END)
        assert file.read() == original[-min(7, size) :] if size else True
    store.verify(content.sha256)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 300_000)), max_size=12))
def test_a_reader_that_jumps_and_reads_on_gets_what_a_file_would_give(
    store: ContentStore, steps: list[tuple[int, int]]
) -> None:
    original = random_bytes(800_000)
    content = store.put([original])
    plain = io.BytesIO(original)
    with store.open(content.sha256) as file:
        for place, size in steps:
            if place % 3:  # else it reads on
                assert file.seek(place) == plain.seek(place)
            assert file.read(size) == plain.read(size)
            assert file.tell() == plain.tell()


def test_the_store_works_the_same_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    store = open_store(tmp_path, postgres_url)
    data = random_bytes(3_000_000)
    first = store.put(pieces(data), expect=expected(data))
    changed = data[:1_000_000] + b"!" + data[1_000_000:]
    second = store.put(pieces(changed))
    assert (get(store, first), get(store, second)) == (data, changed)
    assert stored_bytes(store) < 3_500_000
    assert list(store.check()) == []
    assert store.sweep([second.sha256], older_than_us=FUTURE_US).contents == 1
    assert get(store, second) == changed
    assert store.sweep([], older_than_us=FUTURE_US).packs == 2
    assert rows(store) == (0, 0, 0)
    store.database.dispose()


def test_other_bytes_than_announced_are_refused_and_nothing_shows(store: ContentStore) -> None:
    data = random_bytes(400_000)
    for wrong in (
        Expected("0" * 64, len(data)),
        Expected(expected(data).sha256, len(data) + 1),
        Expected(expected(data).sha256, len(data) - 1),
    ):
        with pytest.raises(ContentMismatch, match="announced"):
            store.put(pieces(data), expect=wrong)
    assert rows(store)[0] == 0
    store.put(pieces(data), expect=expected(data))
    with pytest.raises(ContentMismatch, match="other bytes"):
        store.put(pieces(data[:-1] + b"x"), expect=expected(data))


def test_putting_the_same_again_stores_nothing(store: ContentStore) -> None:
    data = random_bytes(1_000_000)
    first = store.put(pieces(data))
    before = stored_bytes(store)
    assert store.put(pieces(data)) == first
    assert store.put(pieces(data), expect=expected(data)) == first
    assert stored_bytes(store) == before
    assert rows(store)[0] == 1


def test_the_small_files_of_a_commit_share_a_pack(store: ContentStore, tmp_path: Path) -> None:
    files = [b"one", b"", random_bytes(20_000), b"two" * 100, b"one"]
    stored = store.put_all(files)
    assert [get(store, each) for each in stored] == files
    assert len(pack_files(tmp_path)) == 1


def test_eight_uploads_at_once_of_overlapping_bytes_all_come_out_whole(
    store: ContentStore,
) -> None:
    common = random_bytes(1_500_000)
    originals = [common + random_bytes(300_000, seed + 1) for seed in range(8)]
    results: dict[int, Content] = {}

    def upload(number: int) -> None:
        results[number] = store.put(pieces(originals[number]))

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: get(store, each) for number, each in results.items()} == dict(
        enumerate(originals)
    )
    assert list(store.check()) == []


# --- deduplication ----------------------------------------------------------------------------


def test_a_base_and_ten_fine_tunes_take_little_more_than_what_they_changed(
    store: ContentStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen tensors of 1 MB; each fine-tune changes two of them entirely."""
    header, tensors = b"x" * 2000, [random_bytes(1_000_000, seed) for seed in range(16)]
    whole, changed = [header + b"".join(tensors)], 0
    for tune in range(10):
        own = list(tensors)
        for which in (tune, tune + 5):
            own[which] = random_bytes(1_000_000, 100 + 10 * tune + which)
            changed += 1_000_000
        whole.append(b"y" * 2000 + b"".join(own))
    stored = [store.put(pieces(each)) for each in whole]
    assert all(get(store, each) == data for each, data in zip(stored, whole, strict=True))
    needed, plain, kept = len(whole[0]) + changed, sum(map(len, whole)), stored_bytes(store)
    with capsys.disabled():
        print(f"\nwhole files {plain:,}, changed {needed:,}, stored {kept:,} bytes")
    assert kept < needed * 1.15
    assert max(len(store.segments(each.sha256)) for each in stored) <= 8


def test_ten_thousand_equal_chunks_are_stored_once(store: ContentStore) -> None:
    zeros = bytes(20_000_000)
    content = store.put(pieces(zeros))
    assert stored_bytes(store) <= 2 * 131_072
    assert get(store, content) == zeros


def test_a_short_known_stretch_between_new_bytes_is_written_again(store: ContentStore) -> None:
    common = random_bytes(2_000_000)
    store.put(pieces(common))
    short = common[900_000:1_150_000]  # one or two whole chunks of it are known
    content = store.put(pieces(random_bytes(500_000, 1) + short + random_bytes(500_000, 2)))
    assert len(store.segments(content.sha256)) == 1
    assert STRETCH_CHUNKS_MIN == 4


# --- damage -----------------------------------------------------------------------------------


def damage(path: Path, place: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        octet = file.read(1)
        file.seek(place)
        file.write(bytes([octet[0] ^ 1]))


def test_a_flipped_bit_is_found_wherever_it_is_read_and_named(
    store: ContentStore, tmp_path: Path
) -> None:
    data = random_bytes(2_000_000)
    content, other = store.put(pieces(data)), store.put([random_bytes(5000, 9)])
    (path,) = (each for each in pack_files(tmp_path) if each.stat().st_size == len(data))
    damage(path, 1_234_567)
    with store.database.connect() as connection:
        name = connection.scalar(select(packs.c.hash).where(packs.c.object == path.name))
    assert name is not None
    for read in (
        lambda: get(store, content),
        lambda: get(store, content, 1_234_567, 1_234_568),
        lambda: store.open(content.sha256).read(),
        lambda: store.verify(content.sha256),
    ):
        with pytest.raises(ContentCorrupt, match=f"(?s){name}.*{content.sha256}"):
            read()
    assert get(store, content, 0, 1_000_000) == data[:1_000_000]
    assert get(store, other) == random_bytes(5000, 9)
    (fault,) = store.check()
    assert (fault.kind, fault.pack, fault.contents) == ("corrupt-pack", name, (content.sha256,))
    assert not fault.harmless


def test_a_short_and_a_missing_pack_are_found(store: ContentStore, tmp_path: Path) -> None:
    short, gone = store.put([random_bytes(300_000, 1)]), store.put([random_bytes(400_000, 2)])
    for path in pack_files(tmp_path):
        if path.stat().st_size == 300_000:
            path.chmod(0o644)
            os.truncate(path, 299_999)
        else:
            path.unlink()
    faults = {fault.kind: fault for fault in store.check()}
    assert faults.keys() == {"short-pack", "missing-pack"}
    assert faults["short-pack"].contents == (short.sha256,)
    assert faults["missing-pack"].contents == (gone.sha256,)
    with pytest.raises(ContentCorrupt, match="missing"):
        store.segments(gone.sha256)
    with pytest.raises(ContentCorrupt, match="missing"):
        get(store, gone)
    with pytest.raises(ContentCorrupt, match="ends before"):
        get(store, short)


def test_segments_that_are_wrong_are_found(store: ContentStore, tmp_path: Path) -> None:
    mixed = store.put([random_bytes(900_000, 1)])
    lost = store.put([random_bytes(5_000, 2)])
    short = store.put([random_bytes(6_000, 3)])
    with sqlite3.connect(tmp_path / "hub.db") as rows_of_ours:
        own = (lost.sha256, mixed.sha256, short.sha256)
        update = "UPDATE hub_segments SET"
        rows_of_ours.execute(f"{update} pack = 'gone' WHERE sha256 = ?", own[:1])
        rows_of_ours.execute("UPDATE hub_contents SET git_oid = 'x' WHERE sha256 = ?", own[1:2])
        rows_of_ours.execute(f"{update} bytes = bytes - 1 WHERE sha256 = ?", own[2:])
    found = {fault.contents[0]: fault.kind for fault in store.check() if not fault.harmless}
    assert found == {
        lost.sha256: "dangling-segment",
        mixed.sha256: "wrong-content",
        short.sha256: "wrong-content",
    }


def test_what_is_not_there_is_said_to_be_missing(store: ContentStore) -> None:
    assert store.find("0" * 64) is None
    for read in (store.segments, store.open, store.verify, lambda sha: list(store.read(sha))):
        with pytest.raises(ContentMissing, match="holds no content"):
            read("0" * 64)


# --- sweeping ---------------------------------------------------------------------------------


def test_a_sweep_takes_the_dead_and_leaves_the_living_and_the_new(
    store: ContentStore, tmp_path: Path
) -> None:
    live, dead = random_bytes(500_000, 1), random_bytes(600_000, 2)
    kept, gone = store.put([live]), store.put([dead])
    (tmp_path / "packs" / ".new-left").write_bytes(b"half a pack")
    orphan = tmp_path / "packs" / "pack_orphan"
    orphan.write_bytes(b"a pack without a row")
    os.utime(orphan, (time.time() - 1800,) * 2)
    between = now_us()
    assert store.sweep([kept.sha256], older_than_us=between - 3600 * 10**6).contents == 0
    time.sleep(0.01)
    fresh = store.put([random_bytes(100, 3)])
    swept = store.sweep([kept.sha256], older_than_us=between)
    assert (swept.contents, swept.packs) == (1, 2)
    assert swept.bytes == 600_000 + 20
    assert store.find(gone.sha256) is None
    assert get(store, kept) == live
    assert store.find(fresh.sha256) == fresh
    assert list(store.check()) == []
    assert not list((tmp_path / "packs").glob(".new-*"))


def test_what_is_held_is_not_swept(store: ContentStore) -> None:
    content = store.put([b"held"])
    later = now_us() + 1000
    time.sleep(0.01)
    assert store.hold([content.sha256, "0" * 64]) == {content.sha256}
    assert store.sweep([], older_than_us=later).contents == 0


def test_a_pack_that_an_upload_is_reusing_is_not_swept(store: ContentStore) -> None:
    data = random_bytes(2_000_000)
    old = store.put(pieces(data))
    with store.database.begin() as connection:  # as if it had lain there for long
        connection.execute(update(packs).values(used_us=1))
        connection.execute(update(contents).values(used_us=1))
    swept = []

    def upload() -> Iterator[bytes]:
        yield from pieces(data)
        yield data[:1_000_000]  # enough that the first bytes were looked up by now
        swept.append(store.sweep([], older_than_us=now_us() - 10**9))
        yield b"end"

    content = store.put(upload())
    assert swept[0].contents == 1
    assert store.find(old.sha256) is None
    assert swept[0].packs == 0
    assert get(store, content) == data + data[:1_000_000] + b"end"
    assert list(store.check()) == []


def test_a_sweep_without_grace_leaves_an_object_whose_row_is_about_to_come(
    store: ContentStore,
) -> None:
    writer = PackWriter(store.objects)
    writer.append(chunk_hash(b"x" * 9000), b"x" * 9000)
    index = writer.close()
    store.sweep([], older_than_us=now_us())
    assert store.packs.path(store.packs.register(index)).read_bytes() == b"x" * 9000


def test_uploads_beside_sweeps_of_the_same_bytes_always_end_whole(
    tmp_path: Path, postgres_url: str
) -> None:
    """On PostgreSQL, where rows are deleted and inserted at the same time."""
    store = open_store(tmp_path, postgres_url)
    data, ended, troubles = random_bytes(300_000), threading.Event(), []

    def sweep() -> None:
        while not ended.is_set():
            with store.database.begin() as connection:  # as if all had lain there for long
                connection.execute(update(contents).values(used_us=1))
                connection.execute(update(packs).values(used_us=1))
            store.sweep([], older_than_us=now_us() - 10 * 10**6)

    def upload() -> None:
        for _ in range(30):
            try:
                store.put([data], expect=expected(data))
            except StoreError as error:
                troubles.append(str(error))
            except BaseException as error:
                troubles.append(repr(error))
                raise

    sweeper = threading.Thread(target=sweep)
    uploaders = [threading.Thread(target=upload) for _ in range(2)]
    for thread in (sweeper, *uploaders):
        thread.start()
    for thread in uploaders:
        thread.join()
    ended.set()
    sweeper.join()
    # What is made to look old may go before its content's rows come: that is said, not hidden.
    assert [each for each in troubles if "swept" not in each] == []
    content = store.put([data])
    assert get(store, content) == data
    assert [fault for fault in store.check() if not fault.harmless] == []
    store.database.dispose()


def test_an_equal_pack_stored_after_a_sweep_elsewhere_is_found(tmp_path: Path) -> None:
    """Two processes: one remembers a pack that the other sweeps and stores again."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    data = random_bytes(300_000)
    content = one.put([data])
    assert get(one, content) == data
    two.sweep([], older_than_us=FUTURE_US)
    assert two.put([data]) == content
    assert get(one, content) == data
    two.sweep([], older_than_us=FUTURE_US)
    assert one.put([data]) == content
    assert get(two, content) == data
    assert list(one.check()) == []


def test_what_breaks_off_leaves_nothing_but_what_another_upload_counts_on(
    store: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenstack.hub.store.packs.PACK_BYTES_MAX", 4_000_000)
    data = random_bytes(9_000_000)  # two packs and the beginning of a third
    arrival = store.receive(expected(data))
    arrival.feed(data)
    deadline = time.monotonic() + 60
    while rows(store)[2] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pack_files(tmp_path)) == 2
    other = data[:1_000_000]
    with store.intake() as intake:
        intake.take([other], expected(other))  # finds its chunks in the first pack
        arrival.close()
        assert len(pack_files(tmp_path)) == 1
        (content,) = intake.commit()
    assert get(store, content) == other
    assert list(store.check()) == []
    assert rows(store)[0] == 1


def test_what_was_put_wrong_leaves_no_pack(store: ContentStore, tmp_path: Path) -> None:
    data = random_bytes(70 * 1024 * 1024)
    with pytest.raises(ContentMismatch):
        store.put(pieces(data), expect=Expected("0" * 64, len(data)))
    assert list((tmp_path / "packs").iterdir()) == []
    assert rows(store) == (0, 0, 0)


# --- repacking ----------------------------------------------------------------------------------


def mostly_dead(store: ContentStore, tmp_path: Path) -> tuple[list[bytes], list[Content], int]:
    """Eight files in one pack, of which two are to live; and an instant after it all."""
    files = [random_bytes(900_000, seed) for seed in range(8)]
    stored = store.put_all(files)
    assert len(pack_files(tmp_path)) == 1
    return [files[1], files[5]], [stored[1], stored[5]], now_us() + 1


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_pack_that_is_mostly_dead_gives_its_room_back_once_readers_are_done(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if where == "postgresql" else None
    store = open_store(tmp_path, url)
    data, living, later_us = mostly_dead(store, tmp_path)
    live = [each.sha256 for each in living]
    foretold = store.forecast(live, older_than_us=later_us)
    assert rows(store) == (8, 8, 1)  # nothing was done
    assert store.sweep(live, older_than_us=later_us) == foretold.swept
    told = store.segments(live[1])
    reading_on = store.open(live[1])
    assert reading_on.read(10) == data[1][:10]
    repacked = store.repack(older_than_us=later_us)
    assert repacked == foretold.repacked
    assert (repacked.packs, repacked.needed_bytes, repacked.bytes) == (1, 1_800_000, 7_200_000)
    # Who was told of the old pack reads on, and who asks now is told of the new one.
    assert reading_on.read() == data[1][10:]
    (old,), (new,) = told, store.segments(live[1])
    assert old.path != new.path
    assert old.path.read_bytes()[old.offset : old.offset + old.bytes] == data[1]
    assert new.path.read_bytes()[new.offset : new.offset + new.bytes] == data[1]
    reading_on.close()
    for content, original in zip(living, data, strict=True):
        store.verify(content.sha256)
        assert store.put([original]) == content
    assert list(store.check()) == []
    assert store.repack(older_than_us=later_us).packs == 0
    assert store.sweep(live, older_than_us=later_us).packs == 0
    gone = store.sweep(live, older_than_us=later_us + READERS_US + 1)
    assert (gone.packs, gone.bytes) == (1, 7_200_000)
    assert stored_bytes(store) == 1_800_000
    assert [get(store, each) for each in living] == data
    assert list(store.check()) == []
    store.database.dispose()


def test_a_pack_used_lately_or_mostly_needed_is_not_repacked(
    store: ContentStore, tmp_path: Path
) -> None:
    _, living, later_us = mostly_dead(store, tmp_path)
    store.sweep([each.sha256 for each in living], older_than_us=later_us)
    assert store.repack(older_than_us=later_us - 120_000_000).packs == 0
    other = store.put_all([random_bytes(400_000, 20), random_bytes(300_000, 21)])
    store.sweep([living[0].sha256, other[0].sha256], older_than_us=now_us() + 1)
    assert store.repack(older_than_us=now_us() + 1).needed_bytes == 900_000
    assert get(store, other[0]) == random_bytes(400_000, 20)


def test_an_upload_that_comes_to_use_a_pack_while_it_is_repacked_ends_whole(
    store: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, living, later_us = mostly_dead(store, tmp_path)
    dead = random_bytes(900_000, 2)
    store.sweep([each.sha256 for each in living], older_than_us=later_us)
    copied = PackTable.register

    def meanwhile(table: PackTable, index: PackIndex) -> PackIndex:
        monkeypatch.setattr(PackTable, "register", copied)
        with store.database.begin() as connection:
            connection.execute(update(packs).values(used_us=1))
        content = store.put([dead])  # its chunks are still in the old pack
        assert rows(store)[2] == 1
        assert get(store, content) == dead
        return table.register(index)

    monkeypatch.setattr(PackTable, "register", meanwhile)
    assert store.repack(older_than_us=later_us).packs == 0
    assert len(pack_files(tmp_path)) == 1
    assert get(store, store.put([dead])) == dead
    assert [get(store, each) for each in living] == data
    assert list(store.check()) == []


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_lives_comes_through_repacking(store: ContentStore, data: st.DataObject) -> None:
    blocks = [random_bytes(300_000, seed) for seed in range(6)]
    shapes = st.lists(st.sampled_from(blocks), min_size=1, max_size=6).map(b"".join)
    files = data.draw(st.lists(shapes, min_size=1, max_size=6))
    stored = store.put_all(files)
    keep = data.draw(st.sets(st.integers(0, len(files) - 1)))
    live = [stored[each].sha256 for each in keep]
    store.sweep(live, older_than_us=now_us() + 1)
    store.repack(older_than_us=now_us() + 1)
    store.sweep(live, older_than_us=now_us() + 2 * READERS_US)
    for each in keep:
        assert get(store, stored[each]) == files[each]
        store.verify(stored[each].sha256)
    assert list(store.check()) == []
    assert stored_bytes(store) <= 2 * sum(len(files[each]) for each in keep)
    store.sweep([], older_than_us=FUTURE_US)


def test_a_damaged_pack_is_left_for_fsck_and_the_others_are_repacked(
    store: ContentStore, tmp_path: Path
) -> None:
    _, living, _ = mostly_dead(store, tmp_path)
    (bad,) = pack_files(tmp_path)
    others = store.put_all([random_bytes(900_000, 30 + seed) for seed in range(3)])
    live = [living[0].sha256, others[0].sha256]
    store.sweep(live, older_than_us=now_us() + 1)
    (segment,) = store.segments(living[0].sha256)
    bad.chmod(0o600)
    with bad.open("r+b") as file:
        file.seek(segment.offset + 100)
        file.write(b"damage")
    assert store.repack(older_than_us=now_us() + 1).packs == 1
    assert get(store, others[0]) == random_bytes(900_000, 30)
    assert {fault.kind for fault in store.check()} == {"corrupt-pack"}
    assert len(pack_files(tmp_path)) == 3


REPACKER = """
import sys, numpy
from pathlib import Path
from qwenstack.core.instants import now_us
from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.repacking import READERS_US
from qwenstack.storage.database import open_database
store = ContentStore(open_database(f"sqlite:///{sys.argv[1]}/hub.db"), Path(sys.argv[1]))
kept = sys.argv[3:]
print("ready", flush=True)
for seed in range(int(sys.argv[2]), 10_000):
    files = [numpy.random.default_rng(10 * seed + each).bytes(400_000) for each in range(5)]
    kept.append(store.put_all(files)[seed % 5].sha256)
    print(kept[-1], flush=True)
    store.sweep(kept, older_than_us=now_us() + 1)
    store.repack(older_than_us=now_us() + 1)
    if seed % 3 == 0:
        store.sweep(kept, older_than_us=now_us() + 2 * READERS_US)
"""


def test_kill_9_in_repacking_loses_nothing_that_lives(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    kept: list[str] = []
    for turn in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", REPACKER, str(tmp_path), str(100 * turn), *kept],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1 + 0.19 * turn)
        child.send_signal(signal.SIGKILL)
        kept += [
            line.strip()
            for line in child.stdout.read().splitlines(keepends=True)
            if line[-1:] == "\n"
        ]
        child.wait()
        assert [fault for fault in store.check() if not fault.harmless] == []
        assert store.find_many(kept).keys() == set(kept)
    assert len(kept) > 3
    store.sweep(kept, older_than_us=now_us() + 1)
    store.repack(older_than_us=now_us() + 1)
    store.sweep(kept, older_than_us=FUTURE_US)
    assert list(store.check()) == []
    assert stored_bytes(store) == 400_000 * len(kept)
    store.database.dispose()


# --- trouble ----------------------------------------------------------------------------------

CHILD = """
import sys, numpy
from pathlib import Path
from qwenstack.core.instants import now_us
from qwenstack.hub.store.contents import ContentStore
from qwenstack.storage.database import open_database
store = ContentStore(open_database(f"sqlite:///{sys.argv[1]}/hub.db"), Path(sys.argv[1]))
print("ready", flush=True)
for seed in range(int(sys.argv[2]), 10_000):
    content = store.put([numpy.random.default_rng(seed).bytes(3_000_000)])
    print(content.sha256, flush=True)
    if seed % 3 == 0:
        store.sweep([], older_than_us=now_us())
"""


def test_kill_9_in_uploads_and_sweeps_leaves_only_whole_contents(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for turn in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(100 * turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.17 * turn)
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
        child.wait()
        assert [fault for fault in store.check() if not fault.harmless] == []
    store.sweep([], older_than_us=FUTURE_US)
    assert list(store.check()) == []
    assert pack_files(tmp_path) == []
    assert rows(store) == (0, 0, 0)
    store.database.dispose()


def test_a_full_disk_refuses_an_upload_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: the write fails half-way."""
    script = """
import resource, signal, sys, numpy
from pathlib import Path
from qwenstack.hub.store.contents import ContentStore
from qwenstack.storage.database import open_database
store = ContentStore(open_database(f"sqlite:///{sys.argv[1]}/hub.db"), Path(sys.argv[1]))
kept = store.put([b"kept"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
data = numpy.random.default_rng(0).bytes(5_000_000)
try:
    store.put([data])
except OSError as error:
    print("refused", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(list(store.check())), store.find(kept.sha256) == kept)
print(store.put([data]).size)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == ["refused 27", "0 True", "5000000"]
    assert not list((tmp_path / "packs").glob(".new-*"))


class SlowObjects(FolderObjects):
    """Makes a pack durable when it is told to, or not at all."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ready, self.failing, self.kept = threading.Event(), False, 0

    def keep(self, name: str, spooled: Path) -> None:
        assert self.ready.wait(60)
        self.kept += 1
        if self.failing and self.kept == 2:
            raise OSError(errno.EIO, "the disk is broken")
        super().keep(name, spooled)


@pytest.fixture
def slow(
    store: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ContentStore, SlowObjects]:
    monkeypatch.setattr("qwenstack.hub.store.packs.PACK_BYTES_MAX", 3_000_000)
    objects = SlowObjects(tmp_path / "packs")
    return ContentStore(store.database, tmp_path, objects), objects


def test_a_pack_fills_while_the_one_before_is_made_durable_and_shows_only_then(
    slow: tuple[ContentStore, SlowObjects],
) -> None:
    store, objects = slow
    again = random_bytes(2_000_000)
    data = again + random_bytes(2_000_000, 1) + again  # at the end from the pack that is not closed
    with closing(store.receive(expected(data))) as arrival:
        for piece in pieces(data):
            arrival.feed(piece)
        assert rows(store) == (0, 0, 0)
        objects.ready.set()
        content = arrival.keep()
    assert get(store, content) == data
    assert rows(store)[2] == 2
    assert stored_bytes(store) < 4_500_000
    assert list(store.check()) == []


def test_a_pack_that_cannot_be_made_durable_fails_its_upload_and_leaves_nothing(
    slow: tuple[ContentStore, SlowObjects], tmp_path: Path
) -> None:
    store, objects = slow
    objects.ready.set()
    objects.failing = True
    data = random_bytes(20_000_000)
    with pytest.raises(OSError, match="the disk is broken"):
        store.put(pieces(data), expect=expected(data))
    assert objects.kept == 2  # nothing was made durable after it
    assert list((tmp_path / "packs").iterdir()) == []
    assert rows(store) == (0, 0, 0)
    assert get(store, store.put(pieces(data), expect=expected(data))) == data


# --- what Xet clients send --------------------------------------------------------------------


def xorb_of(data: bytes, size: int = 60_000) -> tuple[str, list[bytes], bytes]:
    chunks = list(pieces(data, size))
    leaves = [(chunk_hash(chunk), len(chunk)) for chunk in chunks]
    return to_text(xorb_hash(leaves)), chunks, write_xorb(chunks)


def shard_file(data: bytes, **changed: object) -> ShardFile:
    name, chunks, _ = xorb_of(data)
    hashes = [chunk_hash(chunk) for chunk in chunks]
    segment = ShardSegment(name, 0, len(chunks), len(data), range_hash(hashes))
    own = {key: value for key, value in changed.items() if key in ShardSegment._fields}
    segment = segment._replace(**own)  # type: ignore[arg-type]
    leaves = [(digest, len(chunk)) for digest, chunk in zip(hashes, chunks, strict=True)]
    hash_text = str(changed.get("hash", to_text(file_hash(leaves))))
    sha256 = changed.get("sha256", hashlib.sha256(data).hexdigest())
    return ShardFile(hash_text, (segment,), sha256)  # type: ignore[arg-type]


def receive_xorb(store: ContentStore, name: str, body: bytes) -> bool:
    with closing(ArrivingXorb(store, name)) as arrival:
        for piece in pieces(body, 50_000):
            arrival.feed([piece])
        return arrival.keep() > 0


def test_a_xorb_under_another_name_is_refused(store: ContentStore, tmp_path: Path) -> None:
    name, _, body = xorb_of(random_bytes(200_000))
    with pytest.raises(XorbError, match="hashes to"):
        receive_xorb(store, "0" * 64, body)
    assert list((tmp_path / "packs").iterdir()) == []
    assert receive_xorb(store, name, body)
    assert not receive_xorb(store, name, body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"xorb": "0" * 64}, "is not here"),
        ({"end": 9}, "needs chunk 8"),
        ({"size": 5}, "claims 5 bytes"),
        ({"proof": bytes(32)}, "proves no knowledge"),
        ({"hash": "0" * 64}, "does not hash to its name"),
        ({"sha256": "0" * 64}, "is announced with SHA-256"),
    ],
)
def test_a_lying_shard_makes_nothing_visible(
    store: ContentStore, change: dict[str, object], reason: str
) -> None:
    data, honest = random_bytes(200_000), random_bytes(100_000, 1)
    for each in (data, honest):
        name, _, body = xorb_of(each)
        receive_xorb(store, name, body)
    shard = write_shard([shard_file(honest), shard_file(data, **change)])
    with pytest.raises(ShardError, match=reason):
        receive_shard(store, shard, bytes_max=10**9)
    assert rows(store)[0] == 0
    stored = receive_shard(
        store, write_shard([shard_file(honest), shard_file(data)]), bytes_max=10**9
    )
    assert [get(store, each) for each in stored] == [honest, data]
    with pytest.raises(ShardError, match="are allowed"):
        receive_shard(store, write_shard([shard_file(data)]), bytes_max=1000)


def test_a_known_file_announced_with_another_sha256_is_refused(store: ContentStore) -> None:
    data = random_bytes(100_000)
    name, _, body = xorb_of(data)
    receive_xorb(store, name, body)
    receive_shard(store, write_shard([shard_file(data)]), bytes_max=10**9)
    with pytest.raises(ShardError, match="is announced with SHA-256"):
        receive_shard(store, write_shard([shard_file(data, sha256="0" * 64)]), bytes_max=10**9)
