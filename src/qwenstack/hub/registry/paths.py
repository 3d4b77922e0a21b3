"""Which file names a release may have: those that every system can check out side by side.

Refused are names that leave the folder, that some system treats as something else (devices, `.git`,
streams), that do not show what they are (control and invisible characters, look-alikes of the
separator), and two names of one tree that a case- or form-insensitive file system would merge.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from qwenstack.hub.errors import BadRequest

PATH_BYTES_MAX = 1024
NAME_BYTES_MAX = 255
DEPTH_MAX = 64

# Control, format (bidirectional overrides, zero-width), surrogate, line and paragraph separator.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Look like `/` or `\` and are not made equal to them by NFKC (Unicode confusables, UTS 39).
_SEPARATOR_LIKE = frozenset("⁄∕⧸⟋∖⧵⧹⟍╱╲")
_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])( *\..*)?", re.IGNORECASE
)
# What Git keeps its own data in, also under its short name on Windows.
_GIT = re.compile(r"\.git|git~[0-9]+", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")


def check_path(path: str) -> str:
    """The path, if a release may have it. Raises BadRequest that names it and the rule."""
    problem = path_problem(path)
    if problem is not None:
        raise BadRequest(f"The path {shown(path)} {problem}.")
    return path


def path_problem(path: str) -> str | None:
    """What is wrong with `path`, to be read after it; None when nothing is."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not path:
        return "is empty"
    if length > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute; write it from the repo's root"
    names = path.split("/")
    if len(names) > DEPTH_MAX:
        return f"has more than {DEPTH_MAX} levels"
    for name in names:
        problem = _name_problem(name)
        if problem is None and not name.isascii():
            folded = unicodedata.normalize("NFKC", name)
            problem = _name_problem(folded) or ("holds a separator" if "/" in folded else None)
        if problem is not None:
            return problem
    return None


def fold(path: str) -> str:
    """What two names share that a case- or form-insensitive file system holds to be one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def check_tree(paths: Iterable[str]) -> None:
    """Raises BadRequest when two of the paths cannot lie in one folder side by side."""
    spelled: dict[str, str] = {}
    files: dict[str, str] = {}
    for path in paths:
        folded = fold(path)
        if folded in files:
            raise BadRequest(
                f"The paths {shown(files[folded])} and {shown(path)} differ only in "
                "case or Unicode form; rename one."
            )
        files[folded] = path
        end = path.find("/")
        while end >= 0:
            folder = path[:end]
            if (first := spelled.setdefault(fold(folder), folder)) != folder:
                raise BadRequest(
                    f"The folders {shown(first)} and {shown(folder)} differ only in "
                    "case or Unicode form; rename one."
                )
            end = path.find("/", end + 1)
    for folded, folder in spelled.items():
        if folded in files:
            raise BadRequest(f"The path {shown(folder)} would be both a file and a folder.")


def shown(path: str) -> str:
    """A path for a message: quoted, bounded, nothing hidden in it."""
    return ascii(path if len(path) <= 120 else path[:117] + "...")


def _name_problem(name: str) -> str | None:
    if not name:
        return "has an empty part"
    if name in (".", ".."):
        return "has '.' or '..' as a part"
    if "\\" in name:
        return "holds a backslash; parts are separated by '/'"
    if name[-1] in ". ":
        return "has a part that ends in a dot or a space, which Windows drops"
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"has a part longer than {NAME_BYTES_MAX} bytes"
    if _GIT.fullmatch(name):
        return "has '.git' as a part"
    if _DEVICE.fullmatch(name):
        return "has a part that is a device on Windows"
    for each in name:
        if each in _SEPARATOR_LIKE:
            return f"holds U+{ord(each):04X}, which looks like a separator"
        if unicodedata.category(each) in _HIDDEN:
            return f"holds U+{ord(each):04X}, which does not show"
    return None
