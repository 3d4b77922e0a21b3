"""The files of a tree that may hold a reference: bounded, and never outside the tree.

Symbolic links are not followed, so there are no loops and no way out. `.gitignore` files are
heeded as git does (each rules below its own folder), and version control's own folders are left
out. Folders are read one after another with an explicit stack: depth costs no recursion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from qwenstack.catalog.scan.ignore import IgnoreRules

FILES_MAX: Final = 5_000_000
DEPTH_MAX: Final = 200
_IGNORE_BYTES_MAX: Final = 256 * 1024
_NEVER: Final = frozenset({".git", ".hg", ".svn", ".jj", "__pycache__", "node_modules"})


class WalkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a tree is looked at. `hidden` takes in names that begin with a dot."""

    files_max: int = FILES_MAX
    depth_max: int = DEPTH_MAX
    heed_gitignore: bool = True
    hidden: bool = True


class Trouble(msgspec.Struct, frozen=True):
    """A place that was not looked at, and why."""

    path: str
    reason: str


class _Folder(NamedTuple):
    path: str
    depth: int
    rules: tuple[tuple[str, IgnoreRules], ...]


def walk(root: str, limits: WalkLimits, troubles: list[Trouble]) -> Iterator[list[str]]:
    """Yield the paths of each folder's regular files, a folder at a time, in a fixed order.

    What can't be read, is too deep or too much goes to `troubles`; the walk goes on, or ends at
    `files_max`.
    """
    seen = 0
    stack = [_Folder(root.rstrip("/") or "/", 0, ())]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder.path) as entries:
                found = list(entries)
        except OSError as error:
            troubles.append(Trouble(folder.path, error.strerror or "cannot be read"))
            continue
        rules = folder.rules
        if limits.heed_gitignore and any(each.name == ".gitignore" for each in found):
            rules = _with_rules(folder, rules)
        files: list[str] = []
        below: list[_Folder] = []
        for entry in found:
            name = entry.name
            try:
                is_folder = not entry.is_file(follow_symlinks=False)
                if is_folder and not entry.is_dir(follow_symlinks=False):
                    continue
            except OSError as error:
                troubles.append(Trouble(entry.path, error.strerror or "cannot be read"))
                continue
            if (not limits.hidden and name[0] == ".") or (is_folder and name in _NEVER):
                continue
            if rules and _ignored(entry.path, name, is_folder, rules):
                continue
            if not is_folder:
                files.append(entry.path)
            elif folder.depth >= limits.depth_max:
                troubles.append(Trouble(entry.path, f"deeper than {limits.depth_max} folders"))
            else:
                below.append(_Folder(entry.path, folder.depth + 1, rules))
        below.sort(key=lambda each: each.path, reverse=True)
        stack.extend(below)
        seen += len(files)
        if seen > limits.files_max:
            troubles.append(Trouble(folder.path, f"stopped after {limits.files_max} files"))
            files.sort()
            yield files[: len(files) - (seen - limits.files_max)]
            return
        files.sort()
        yield files


_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def _with_rules(
    folder: _Folder, rules: tuple[tuple[str, IgnoreRules], ...]
) -> tuple[tuple[str, IgnoreRules], ...]:
    try:
        path = folder.path + "/.gitignore"
        # A pipe of that name would be waited for.
        descriptor = os.open(path, _FLAGS)
        try:
            text = os.read(descriptor, _IGNORE_BYTES_MAX).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
    except OSError:
        return rules
    own = IgnoreRules(text)
    return (*rules, (folder.path + "/", own)) if own else rules


def _ignored(
    path: str, name: str, is_folder: bool, rules: tuple[tuple[str, IgnoreRules], ...]
) -> bool:
    for prefix, own in reversed(rules):
        verdict = own.verdict(path[len(prefix) :], name, is_folder)
        if verdict is not None:
            return verdict
    return False
