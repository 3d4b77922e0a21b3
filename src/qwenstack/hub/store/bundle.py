"""Bundles: contents and what they are published as, in one signed file, for a hub without a wire.

A bundle is a plain tar of these members, in this order and no other: `bundle.json` (what follows,
with its hashes), `signature.json` (Ed25519 over the first), `registry.json` (what the contents are
published as), and for each pack `packs/HASH.index` and `packs/HASH`, whose name is the hash of its
chunks. Only the chunks that the contents need are in it, each once. The same contents give the same
bytes. Nothing of it is ever written under a name that the file chooses.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from qwenstack.hub.store.contents import ContentStore
from qwenstack.hub.store.gearhash import CHUNK_BYTES_MAX
from qwenstack.hub.store.kinds import (
    BundleError,
    Content,
    ContentCorrupt,
    Progress,
    StoreError,
    untold,
)
from qwenstack.hub.store.merkle import Leaf, chunk_hash, to_text, xorb_hash
from qwenstack.hub.store.packs import (
    PACK_BYTES_MAX,
    PACK_CHUNKS_MAX,
    PackIndex,
    PackWriter,
    decode_leaves,
    encode_leaves,
)
from qwenstack.hub.store.reading import describe, layout_of, open_layout, pack_chunks, read_layout
from qwenstack.hub.store.writing import Run, add_content

FORMAT = "qwenstack-bundle-1"
_MANIFEST, _SIGNATURE, _REGISTRY = "bundle.json", "signature.json", "registry.json"
_DOCUMENT_BYTES_MAX = 512 * 1024 * 1024
_SIGNATURE_BYTES_MAX = 4096
_BLOCK = 512

OpenContent = Callable[[str], BinaryIO]
"""A content of the bundle by its SHA-256."""

T = TypeVar("T")


class BundlePack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A pack of the bundle: its hash, bytes and chunks."""

    hash: str
    bytes: int
    chunks: int


class BundleContent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A content and its runs: the number of a pack, the first chunk, the one after the last."""

    content: Content
    runs: tuple[tuple[int, int, int], ...]


class BundleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a bundle holds, in the order in which it follows."""

    format: str
    registry_bytes: int
    registry_sha256: str
    packs: tuple[BundlePack, ...]
    contents: tuple[BundleContent, ...]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: str
    key: str
    signature: str


class Exported(NamedTuple):
    """What an export wrote."""

    contents: int
    bytes: int
    stored_bytes: int


def fingerprint(key: Ed25519PublicKey) -> str:
    """A public key, as people compare it."""
    return "SHA256:" + hashlib.sha256(key.public_bytes_raw()).hexdigest()


# --- export -----------------------------------------------------------------------------------


def export_bundle(
    store: ContentStore,
    sha256s: Iterable[str],
    registry: bytes,
    *,
    key: Ed25519PrivateKey,
    out: BinaryIO,
    progress: Progress = untold,
) -> Exported:
    """Write the contents and the registry's document to `out`.

    Raises ContentMissing, ContentCorrupt when the store is not sound, OSError.
    """
    plan = _Plan(store, sorted(set(sha256s)))
    manifest = BundleManifest(
        FORMAT,
        len(registry),
        hashlib.sha256(registry).hexdigest(),
        tuple(
            BundlePack(each.hash, sum(size for _, size in each.leaves), len(each.leaves))
            for each in plan.packs
        ),
        plan.contents,
    )
    document = msgspec.json.encode(manifest)
    signature = _Signature(
        "ed25519",
        key.public_key().public_bytes_raw().hex(),
        key.sign(_signed(document)).hex(),
    )
    _write_member(out, _MANIFEST, document)
    _write_member(out, _SIGNATURE, msgspec.json.encode(signature))
    _write_member(out, _REGISTRY, registry)
    done, total = 0, sum(pack.bytes for pack in manifest.packs)
    for planned, entry in zip(plan.packs, manifest.packs, strict=True):
        _write_member(out, f"packs/{entry.hash}.index", encode_leaves(planned.leaves))
        out.write(_header(f"packs/{entry.hash}", entry.bytes))
        for first, end in planned.runs:
            for _, data in pack_chunks(store.packs, Run(planned.source, first, end)):
                out.write(data)
                done += len(data)
            progress(done, total)
        out.write(_padding(entry.bytes))
    out.write(bytes(2 * _BLOCK))
    return Exported(len(plan.contents), sum(each.content.size for each in plan.contents), total)


class _PlannedPack(NamedTuple):
    source: PackIndex
    runs: list[tuple[int, int]]
    leaves: list[Leaf]
    hash: str


class _Plan:
    """Which chunks of which packs go into a bundle, and where they are in it."""

    def __init__(self, store: ContentStore, sha256s: Sequence[str]) -> None:
        layouts = [read_layout(store.database, each) for each in sha256s]
        needed: dict[str, list[tuple[int, int]]] = {}
        for layout in layouts:
            for row in layout.rows:
                needed.setdefault(row.pack, []).append((row.first, row.end))
        self.packs: list[_PlannedPack] = []
        places: dict[str, tuple[int, dict[int, int]]] = {}
        numbers: dict[str, int] = {}
        for name in sorted(needed):
            source = store.packs.read([name]).get(name)
            if source is None:
                raise ContentCorrupt(f"pack {name} is missing; run `qwenstack hub fsck`")
            runs = _union(needed[name])
            leaves = [leaf for first, end in runs for leaf in source.leaves(first, end)]
            digest = to_text(xorb_hash(leaves))
            if digest not in numbers:
                numbers[digest] = len(self.packs)
                self.packs.append(_PlannedPack(source, runs, leaves, digest))
            moved: dict[int, int] = {}
            offset = 0
            for first, end in runs:
                moved.update((place, place - first + offset) for place in range(first, end))
                offset += end - first
            places[name] = numbers[digest], moved
        self.contents = tuple(
            BundleContent(
                layout.content,
                tuple(
                    (places[row.pack][0], start, start + row.end - row.first)
                    for row in layout.rows
                    for start in (places[row.pack][1][row.first],)
                ),
            )
            for layout in layouts
        )


def _union(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, end in sorted(runs):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((first, end))
    return joined


# --- import -----------------------------------------------------------------------------------


def import_bundle(
    store: ContentStore,
    file: BinaryIO,
    *,
    trusted: Callable[[Ed25519PublicKey], bool],
    inspect: Callable[[bytes, OpenContent], None],
    restore: Callable[[Connection, bytes, frozenset[str]], T],
    progress: Progress = untold,
) -> T:
    """Take a bundle in: all of it in one transaction, or nothing.

    `inspect` looks into the contents before, given the registry's document; `restore` writes the
    registry's rows in that transaction, given the document and which contents the bundle has.
    Raises BundleError, StoreError, OSError, and what the two raise.
    """
    members = _Members(file)
    manifest = _read_manifest(members, trusted)
    registry = members.read(_REGISTRY, manifest.registry_bytes, manifest.registry_bytes)
    if hashlib.sha256(registry).hexdigest() != manifest.registry_sha256:
        raise BundleError(f"{_REGISTRY} is not what was signed")
    done, total = 0, sum(pack.bytes for pack in manifest.packs)
    indexes: list[PackIndex] = []
    for pack in manifest.packs:
        indexes.append(_import_pack(store, members, pack))
        done += pack.bytes
        progress(done, total)
    members.end()
    described = [_check_content(store, each, indexes) for each in manifest.contents]
    layouts = {content.sha256: layout_of(content, runs) for content, runs in described}
    inspect(registry, lambda sha256: open_layout(store.packs, layouts[sha256]))
    try:
        with store.database.begin() as connection:
            for content, runs in described:
                add_content(connection, content, runs)
            sha256s = frozenset(content.sha256 for content, _ in described)
            return restore(connection, registry, sha256s)
    except IntegrityError as error:
        raise StoreError(f"the bundle's rows do not fit: {error.orig}; import it again") from error


def _read_manifest(
    members: _Members, trusted: Callable[[Ed25519PublicKey], bool]
) -> BundleManifest:
    document = members.read(_MANIFEST, 1, _DOCUMENT_BYTES_MAX)
    try:
        signature = msgspec.json.decode(
            members.read(_SIGNATURE, 1, _SIGNATURE_BYTES_MAX), type=_Signature
        )
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.signature), _signed(document))
    except InvalidSignature as error:
        raise BundleError(f"the signature of {_MANIFEST} does not hold") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{_SIGNATURE} is no signature: {error}") from error
    if signature.algorithm != "ed25519":
        raise BundleError(f"{_SIGNATURE} is of another algorithm than ed25519")
    if not trusted(key):
        raise BundleError(
            f"the bundle is signed by {fingerprint(key)}, which is not trusted here; if that is "
            "whom you expect, name it with --trust"
        )
    try:
        manifest = msgspec.json.decode(document, type=BundleManifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{_MANIFEST} is not understood: {error}") from error
    if manifest.format != FORMAT:
        raise BundleError(f"{_MANIFEST} is of the format {manifest.format[:40]!a}, not {FORMAT}")
    if not 0 <= manifest.registry_bytes <= _DOCUMENT_BYTES_MAX:
        raise BundleError(f"{_REGISTRY} claims {manifest.registry_bytes} bytes")
    for pack in manifest.packs:
        if not (0 < pack.bytes <= PACK_BYTES_MAX and 0 < pack.chunks <= PACK_CHUNKS_MAX):
            raise BundleError(f"pack {pack.hash[:80]!a} claims an impossible size")
    return manifest


def _import_pack(store: ContentStore, members: _Members, pack: BundlePack) -> PackIndex:
    index_bytes = 36 * pack.chunks
    leaves = decode_leaves(members.read(f"packs/{pack.hash}.index", index_bytes, index_bytes))
    if to_text(xorb_hash(leaves)) != pack.hash:
        raise BundleError(f"packs/{pack.hash}.index is not what was signed")
    sizes = [size for _, size in leaves]
    if sum(sizes) != pack.bytes or max(sizes) > CHUNK_BYTES_MAX:
        raise BundleError(f"packs/{pack.hash}.index claims other sizes than the pack's")
    there = bool(store.packs.use([pack.hash]))
    writer = None if there else PackWriter(store.objects)
    try:
        for place, data in enumerate(members.stream(f"packs/{pack.hash}", sizes)):
            if chunk_hash(data) != leaves[place][0]:
                raise BundleError(f"chunk {place} of packs/{pack.hash} is not what was signed")
            if writer is not None:
                writer.append(leaves[place][0], data)
        if writer is not None:
            return store.packs.register(writer.close())
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return store.packs.read([pack.hash])[pack.hash]


def _check_content(
    store: ContentStore, entry: BundleContent, indexes: Sequence[PackIndex]
) -> tuple[Content, list[Run]]:
    content = entry.content
    runs: list[Run] = []
    for number, first, end in entry.runs:
        if not (0 <= number < len(indexes) and 0 <= first < end <= len(indexes[number])):
            raise BundleError(f"content {content.sha256[:64]!a} lies outside the bundle's packs")
        runs.append(Run(indexes[number], first, end))
    chunks = (
        ((run.pack.hashes[position], len(data)), data)
        for run in runs
        for position, data in pack_chunks(store.packs, run)
    )
    found = describe(chunks, content)
    if found != content:
        raise BundleError(f"content {content.sha256[:64]!a} hashes to {found.sha256}")
    return content, runs


# --- tar --------------------------------------------------------------------------------------


class _Members:
    """The members of a tar, of which each must be the one that is expected next."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, name: str, bytes_min: int, bytes_max: int) -> bytes:
        """A member, whole."""
        size = self._header(name, bytes_min, bytes_max)
        data = self._exactly(size, name)
        self._skip_padding(size, name)
        return data

    def stream(self, name: str, sizes: Sequence[int]) -> Iterator[bytes]:
        """A member, in pieces of these sizes."""
        total = sum(sizes)
        self._header(name, total, total)
        for size in sizes:
            yield self._exactly(size, name)
        self._skip_padding(total, name)

    def end(self) -> None:
        """Nothing may follow."""
        if self._file.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
            raise BundleError("something follows the bundle's last member, or its end is missing")

    def _header(self, name: str, bytes_min: int, bytes_max: int) -> int:
        block = self._exactly(_BLOCK, name)
        try:
            member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise BundleError(f"where {name} should be is no member: {error}") from error
        if member.name != name or not member.isreg():
            raise BundleError(f"where {name} should be is {member.name[:80]!a}")
        if not bytes_min <= member.size <= bytes_max:
            raise BundleError(f"{name} claims {member.size} bytes")
        return member.size

    def _skip_padding(self, size: int, name: str) -> None:
        if self._exactly(-size % _BLOCK, name).strip(b"\0"):
            raise BundleError(f"the padding after {name} is not empty")

    def _exactly(self, size: int, name: str) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise BundleError(f"the bundle is truncated: it ends in {name}")
        return data


def _write_member(out: BinaryIO, name: str, data: bytes) -> None:
    out.write(_header(name, len(data)))
    out.write(data)
    out.write(_padding(len(data)))


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _signed(document: bytes) -> bytes:
    return FORMAT.encode() + b"\0" + hashlib.sha256(document).digest()
