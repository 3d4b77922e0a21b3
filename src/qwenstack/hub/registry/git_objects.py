"""The ids that Git itself would give: of blobs, LFS pointers, trees and commits.

A hub that keeps no Git repository still answers with its ids: clients compare a file's with the
one they compute, and equal trees have equal ids anywhere.
"""

from __future__ import annotations

import hashlib

from qwenstack.hub.registry.manifests import Manifest


def blob_oid(content: bytes) -> str:
    """The id of a file of these bytes."""
    return _oid(b"blob", content)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small file that stands in Git for a large one (Git LFS specification, version 1)."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def pointer_size(size: int) -> int:
    """The bytes of a file's LFS pointer."""
    return len(lfs_pointer("0" * 64, size))


def tree_oids(manifest: Manifest) -> dict[str, str]:
    """The tree id of each folder, the root under the empty path."""
    folders: dict[str, list[tuple[str, bytes, str]]] = {"": []}
    for entry in manifest:
        folder, _, name = entry.path.rpartition("/")
        folders.setdefault(folder, []).append((name, b"100644", entry.git_oid))
        while folder:
            parent = folder.rpartition("/")[0]
            if parent in folders:
                break
            folders[parent] = []
            folder = parent
    oids: dict[str, str] = {}
    # The deepest first, so that a folder's own id is there when its parent's is made.
    for folder in sorted(folders, key=lambda each: each.count("/") if each else -1, reverse=True):
        oid = oids[folder] = _tree_oid(folders[folder])
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent].append((name, b"40000", oid))
    return oids


def commit_oid(
    *, tree: str, parents: tuple[str, ...], author: str, at_us: int, title: str, message: str
) -> str:
    """The id of a commit. The author's address is none: the hub gives nobody's away."""
    seconds, microseconds = divmod(at_us, 1_000_000)
    who = f"{author} <{author}@hub> {seconds} +0000"
    lines = [f"tree {tree}", *(f"parent {each}" for each in parents)]
    lines += [f"author {who}", f"committer {who}", f"instant-us {microseconds}"]
    text = "\n".join(lines) + f"\n\n{title}\n" + (f"\n{message}\n" if message else "")
    return _oid(b"commit", text.encode())


def _tree_oid(entries: list[tuple[str, bytes, str]]) -> str:
    rows = [(name.encode(), mode, oid) for name, mode, oid in entries]
    rows.sort(key=lambda row: row[0] + b"/" if row[1] == b"40000" else row[0])
    body = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for name, mode, oid in rows)
    return _oid(b"tree", body)


def _oid(kind: bytes, body: bytes) -> str:
    # Git's own ids are SHA-1: they name, they do not protect (SHA-256 does that here).
    digest = hashlib.sha1(kind + b" %d\0" % len(body), usedforsecurity=False)
    digest.update(body)
    return digest.hexdigest()
