"""What Xet clients send: xorbs become packs, shards become contents. Nothing is believed.

A xorb's hash is computed from its chunks. A shard's files are only taken when every segment lies in
a pack that is there, the sender proves to know the chunks, the file's Xet hash follows from them,
and the SHA-256, computed from the bytes, is the one announced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.kinds import Content
from qwenstack.hub.store.merkle import Leaf, chunk_hash, file_hash, range_hash, to_text, xorb_hash
from qwenstack.hub.store.packs import PackWriter
from qwenstack.hub.store.reading import pack_chunks
from qwenstack.hub.store.shard import ShardError, ShardFile, read_shard
from qwenstack.hub.store.writing import Run, add_content, run_bytes
from qwenstack.hub.store.xorb import XorbError, XorbReader
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents


class ArrivingXorb:
    """A xorb that comes piece by piece, to be the pack `name`, its hash.

    Nothing shows before `keep`; without it nothing stays.
    """

    def __init__(self, store: ContentStore, name: str) -> None:
        self._store = store
        self._name = name
        self._reader = XorbReader()
        self._known = bool(store.packs.use([name]))
        self._writer: PackWriter | None = None

    def feed(self, pieces: Iterable[bytes]) -> None:
        """The next bytes. Raises XorbError, OSError."""
        if self._known:
            return
        if self._writer is None:
            self._writer = PackWriter(self._store.objects)
        for chunk in self._reader.feed(pieces):
            self._writer.append(chunk_hash(chunk), chunk)
        self._writer.flush()

    def keep(self) -> int:
        """All came; the bytes of the pack, 0 when it was there. Raises XorbError, OSError."""
        if self._known:
            return 0
        self._reader.finish()
        assert self._writer is not None  # a xorb without a byte is refused before
        found = to_text(xorb_hash(self._writer.leaves))
        if found != self._name:
            raise XorbError(f"the xorb hashes to {found}, not to {self._name}")
        index = self._store.packs.register(self._writer.close())
        self._writer = None
        return index.bytes

    def close(self) -> None:
        """Let go of what was not kept."""
        if self._writer is not None:
            self._writer.discard()


def receive_shard(store: ContentStore, body: bytes, *, bytes_max: int) -> list[Content]:
    """Make the shard's files contents, all of them or none; in the shard's order.

    `bytes_max` bounds what all its files have together: so much is hashed.

    Raises ShardError for what is not as the sender says, ContentCorrupt, OSError.
    """
    files = read_shard(body)
    total = sum(segment.size for file in files for segment in file.segments)
    if total > bytes_max:
        raise ShardError(f"the shard's files have {total} bytes, {bytes_max} are allowed")
    checked = [_check_file(store, file) for file in files]
    described = [
        (_describe(store, file, runs), runs) for file, runs in zip(files, checked, strict=True)
    ]
    try:
        with store.database.begin() as connection:
            for content, runs in described:
                add_content(connection, content, runs)
    except IntegrityError as error:
        raise ShardError("a xorb that the shard refers to was removed; upload once more") from error
    return [content for content, _ in described]


def _check_file(store: ContentStore, file: ShardFile) -> list[Run]:
    """The file's runs, when all that its sender says of its chunks is so."""
    wanted = {segment.xorb for segment in file.segments}
    present = store.packs.use(wanted) if wanted else set()
    runs: list[Run] = []
    leaves: list[Leaf] = []
    for segment in file.segments:
        index = store.packs.read([segment.xorb]).get(segment.xorb)
        if index is None or segment.xorb not in present:
            raise ShardError(
                f"file {file.hash} needs xorb {segment.xorb}, which is not here: it was never "
                "uploaded, or removed since; empty the client's cache (HF_HOME/xet) and upload "
                "once more"
            )
        if segment.end > len(index):
            raise ShardError(
                f"file {file.hash} needs chunk {segment.end - 1} of xorb {segment.xorb}, which has "
                f"{len(index)}"
            )
        run = index.leaves(segment.first, segment.end)
        if sum(size for _, size in run) != segment.size:
            raise ShardError(
                f"file {file.hash} claims {segment.size} bytes for chunks {segment.first} to "
                f"{segment.end} of xorb {segment.xorb}; they have other"
            )
        if range_hash(digest for digest, _ in run) != segment.proof:
            raise ShardError(
                f"file {file.hash} proves no knowledge of chunks {segment.first} to {segment.end} "
                f"of xorb {segment.xorb}"
            )
        runs.append(Run(index, segment.first, segment.end))
        leaves += run
    if to_text(file_hash(leaves)) != file.hash:
        raise ShardError(f"file {file.hash} does not hash to its name")
    return runs


def _describe(store: ContentStore, file: ShardFile, runs: list[Run]) -> Content:
    """The content that the runs are, its hashes from the bytes unless it is known already."""
    known = select(contents).where(contents.c.xet_hash == file.hash)
    with reading(store.database) as connection:
        row = connection.execute(known).first()
    if row is not None:
        content = Content(row.sha256, row.size, row.xet_hash, row.git_oid)
    else:
        content = _hashed(store, file, runs)
    if file.sha256 is not None and file.sha256 != content.sha256:
        raise ShardError(
            f"file {file.hash} is announced with SHA-256 {file.sha256} and has {content.sha256}"
        )
    return content


def _hashed(store: ContentStore, file: ShardFile, runs: list[Run]) -> Content:
    """The content by its bytes. The chunks' own hashes were checked when their packs came: they are
    again only where the SHA-256 is not as announced, to tell damage from a lie.
    """
    size = sum(run.pack.starts[run.end] - run.pack.starts[run.first] for run in runs)
    sha256 = hashlib.sha256()
    if file.sha256 is not None:
        for piece in run_bytes(store.packs, runs):
            sha256.update(piece)
        if sha256.hexdigest() == file.sha256:
            return Content(file.sha256, size, file.hash, "")
    sha256 = hashlib.sha256()
    for run in runs:
        for _, data in pack_chunks(store.packs, run):
            sha256.update(data)
    return Content(sha256.hexdigest(), size, file.hash, "")
