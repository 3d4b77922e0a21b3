"""`.gitattributes` and `.gitignore`, as far as an upload needs them: which files are large, which
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import msgspec

LINES_MAX = 500
LINE_CHARS_MAX = 500
PARTS_MAX = 64

# The formats that are never text: one line each in a new repo.
_LARGE = (
    *("7z", "arrow", "avro", "bin", "bz2", "ckpt", "ftz", "gguf", "gz", "h5", "joblib", "keras"),
    *("lz4", "mlmodel", "model", "msgpack", "npy", "npz", "onnx", "ot", "parquet", "pb", "pickle"),
    *("pkl", "pt", "pth", "rar", "safetensors", "tar", "tflite", "tgz", "wasm", "xz", "zip", "zst"),
)
_LFS = "filter=lfs diff=lfs merge=lfs -text"
DEFAULT_ATTRIBUTES = "".join(f"*.{each} {_LFS}\n" for each in _LARGE).encode()


class Glob(msgspec.Struct, frozen=True):
    """A name with stars: what stands between them, each of a fixed length.

    Looking for one piece after the other, leftmost first, is right for such a name and cannot be
    made slow, as one expression with many stars can.
    """

    pieces: tuple[tuple[re.Pattern[str], int], ...]

    def matches(self, name: str) -> bool:
        """Whether the whole name fits."""
        (first, start), *between = self.pieces
        if not between:
            return len(name) == start and first.match(name) is not None
        last, tail = between.pop()
        end = len(name) - tail
        if end < start or first.match(name) is None or last.match(name, end) is None:
            return False
        for piece, length in between:
            found = piece.search(name, start, end)
            if found is None:
                return False
            start = found.start() + length
        return True


class Rule(msgspec.Struct, frozen=True):
    """A line: whether it says yes or no to the paths that match; the last that matches counts.

    A part of the pattern is None for `**`. `below`: a folder that matches stands for all in it.
    """

    parts: tuple[Glob | None, ...]
    yes: bool
    below: bool
    folders_only: bool = False

    def matches(self, path: str) -> bool:
        """Whether the pattern fits the path, or where `below` says so a folder over it."""
        states = self._reachable({0})
        names = path.split("/")
        for place, name in enumerate(names):
            following = set()
            for state in states:
                if state == len(self.parts):
                    continue
                part = self.parts[state]
                if part is None:
                    following.add(state)
                elif part.matches(name):
                    following.add(state + 1)
            states = self._reachable(following)
            whole = place == len(names) - 1
            if len(self.parts) in states and (not self.folders_only if whole else self.below):
                return True
        return False

    def _reachable(self, states: set[int]) -> set[int]:
        closed = set(states)
        for state in range(len(self.parts)):
            if state in closed and self.parts[state] is None:
                closed.add(state + 1)
        return closed


def lfs_rules(attributes: str) -> list[Rule]:
    """The rules of a `.gitattributes` that switch Git LFS on or off."""
    rules = []
    for line in _lines(attributes):
        pattern, *values = line.split()
        on = "filter=lfs" in values
        if on or any(each.lstrip("-!").startswith("filter") for each in values):
            rules.append(Rule(_parts(pattern), yes=on, below=False))
    return rules


def ignore_rules(ignore: str) -> list[Rule]:
    """The rules of a `.gitignore`."""
    rules = []
    for line in _lines(ignore):
        pattern = line.rstrip()
        yes = not pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        if pattern.strip("/"):
            folders_only = pattern.endswith("/")
            rules.append(Rule(_parts(pattern), yes=yes, below=True, folders_only=folders_only))
    return rules


def matches(rules: Sequence[Rule], path: str) -> bool:
    """Whether the rules say yes to a file at `path`."""
    for rule in reversed(rules):
        if rule.matches(path):
            return rule.yes
    return False


def _lines(text: str) -> list[str]:
    lines = (each for each in text.splitlines() if each.strip() and not each.startswith("#"))
    return [each for each in islice(lines, LINES_MAX) if len(each) <= LINE_CHARS_MAX]


def _parts(pattern: str) -> tuple[Glob | None, ...]:
    """A pattern's parts; one without a slash inside fits at any depth (gitignore(5))."""
    names = pattern.strip("/").split("/")
    anchored = pattern.startswith("/") or len(names) > 1
    parts: list[Glob | None] = [] if anchored else [None]
    for name in names[:PARTS_MAX]:
        parts.append(None if name == "**" else _glob(name))
    if parts[-1] is None:
        parts.append(_glob("*"))  # `folder/**` is what lies in it, not the folder
    return tuple(parts)


def _glob(name: str) -> Glob:
    pieces: list[tuple[re.Pattern[str], int]] = []
    expression, length, place = "", 0, 0
    while place < len(name):
        each = name[place]
        place += 1
        if each == "*":
            pieces.append((re.compile(expression, re.DOTALL), length))
            expression, length = "", 0
            continue
        end = name.find("]", place + 1) if each == "[" else -1
        if end > 0:
            expression += _class(name[place:end])
            place = end + 1
        elif each == "?":
            expression += "."
        else:
            if each == "\\" and place < len(name):
                each = name[place]
                place += 1
            expression += re.escape(each)
        length += 1
    pieces.append((re.compile(expression, re.DOTALL), length))
    return Glob(tuple(pieces))


def _class(body: str) -> str:
    """`[abc]`, `[a-z]`, `[!x]`; one whose range runs backwards fits nothing."""
    negated = body[0] in "!^"
    inner = "".join(f"\\{each}" if each in "\\[]^&~|" else each for each in body[negated:])
    try:
        re.compile(f"[{inner}]")
    except re.error:
        return "(?!)."
    return f"[{'^' if negated else ''}{inner}]"
