"""Scanning one file: by its name, its first and last bytes, and the format that these make it.

A scan reads a bounded part of the file, whatever the file claims, and never loads anything from
it. What the formats' own checks and the walks through archives find comes together here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import IO, BinaryIO, Final, cast

from qwenstack.engines.gguf import GgufError
from qwenstack.hub.formats import gguf, safetensors
from qwenstack.hub.formats.reading import Readable, read_up_to
from qwenstack.hub.safety import pickles
from qwenstack.hub.safety.archives import Member, walk_tar, walk_zip
from qwenstack.hub.safety.budget import BOMB_BYTES_MIN, DEPTH_MAX, RATIO_MAX, Budget, LimitReached
from qwenstack.hub.safety.configs import check_config, config_kind
from qwenstack.hub.safety.findings import Findings, Scan
from qwenstack.hub.safety.magic import (
    HEAD_BYTES,
    Kind,
    is_tar_header,
    recognise,
    rule_of_name,
    zip_directories,
)
from qwenstack.hub.safety.policy import Policy, default_policy
from qwenstack.hub.safety.streams import (
    BombFound,
    Compression,
    Seekable,
    StreamDamaged,
    Unpacked,
    buffered,
)
from qwenstack.hub.safety.templates import check_templates

SCANNER: Final = "2"
"""The version of the rules and checks; a file scanned by an older one is scanned again."""

_CONFIG_BYTES_MAX: Final = 8 * 1024 * 1024
_INDEX_BYTES_MAX: Final = 32 * 1024 * 1024
_KERAS_BYTES_MAX: Final = 16 * 1024 * 1024
_NESTED_BYTES_MAX: Final = 256 * 1024 * 1024
_TAIL_BYTES: Final = 65_557
_TORCH_MEMBER: Final = re.compile(r"(^|/)(data|constants|version|bytecode)\.pkl$")
_KERAS_LAMBDA: Final = re.compile(rb'"class_name"\s*:\s*"(?:[A-Za-z_.]*>)?(Lambda|TFSMLayer)"')
_ESCAPED_LETTER: Final = re.compile(rb"\\u00([2-7][0-9a-fA-F])")
_NUMPY_OBJECT: Final = re.compile(rb"['\"][|<>=]?O[0-9]*['\"]")
_PACKED: Final[dict[Kind, Compression]] = {
    "gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "zlib": "zlib", "lz4": "lz4", "zstd": "zstd"
}  # fmt: skip
_SAID: Final[dict[Kind, tuple[str, str]]] = {
    "native": ("native-code", "it is a program or a library"),
    "marshal": ("marshal", "it is compiled Python"),
    "script": ("script", "it is a script that names its interpreter"),
    "opaque-archive": ("archive-opaque", "it is an archive in a format that isn't looked into"),
    "opaque-compression": ("compressed-opaque", "it is compressed in a way that isn't undone here"),
}
_SAID_OF_NAME: Final = {
    "pickle-name": "its name is that of a pickle",
    "native-code": "its name is that of a program or a library",
    "marshal": "its name is that of compiled Python",
    "script": "its name is that of a script",
    "python-code": "it is Python code",
    "saved-model": "it is a TensorFlow graph",
}


def file_kind(path: str) -> str:
    """What the name makes of a file's content: equal bytes may be scanned as different things."""
    name = path.lower()
    if name.endswith(".safetensors"):
        return "safetensors"
    if name.endswith(".safetensors.index.json"):
        return "shard-index"
    if name.endswith(".gguf"):
        return "gguf"
    if name.endswith((".jinja", ".jinja2", ".j2")):
        return "template"
    return config_kind(name) or rule_of_name(name) or "any"


def scan(
    path: str,
    file_bytes: int,
    open_file: Callable[[], BinaryIO],
    *,
    policy: Policy | None = None,
) -> Scan:
    """Scan the file that the release holds as `path`; `open_file` gives a seekable reader of it.

    The verdict is by `policy`, the default rules without one. Raises OSError where reading fails.
    """
    found = Findings()
    with buffered(open_file()) as file:
        try:
            _scan_file(path, file_bytes, file, Budget(), found, depth=0)
        except LimitReached as error:
            found.add("archive-limits", f"the scan ended at {error}")
    return (policy or default_policy()).judge(found.all)


def _scan_file(
    path: str, file_bytes: int, file: BinaryIO, budget: Budget, found: Findings, depth: int
) -> None:
    """One seekable file: the pushed one, or an archive in an archive."""
    kind = file_kind(path)
    head = read_up_to(file, HEAD_BYTES)
    magic = recognise(head)
    _check_name(path, found, "" if depth == 0 else path)
    if kind == "safetensors":
        _check_safetensors(file, file_bytes, found)
    elif kind == "gguf" or magic == "gguf":
        _check_gguf(file, file_bytes, found)
    elif kind == "shard-index":
        _check_index(_document(file, file_bytes, _INDEX_BYTES_MAX, found), found)
    elif kind == "template":
        _check_template(_document(file, file_bytes, _CONFIG_BYTES_MAX, found), found)
    elif kind.startswith("config"):
        check_config(path, _document(file, file_bytes, _CONFIG_BYTES_MAX, found), found)
    _check_head(head, budget, found, "" if depth == 0 else path)
    if magic != "zip" and _ends_as_zip(file, file_bytes):
        found.add("polyglot", "a zip archive hides behind what the file begins as")
        magic = "zip"
    file.seek(0)
    if magic == "zip":
        walk_zip(file, file_bytes, budget, found, _Visitor(budget, found, depth).see)
    elif magic == "tar":
        walk_tar(Seekable(file, file_bytes), budget, found, _Visitor(budget, found, depth).see)
    elif magic in _PACKED:
        _check_packed(path, file, _PACKED[magic], budget, found, depth)
    elif magic == "hdf5":
        _check_keras(file, found, path if depth else "")


class _Visitor:
    """Looks at the members of one archive."""

    def __init__(self, budget: Budget, found: Findings, depth: int) -> None:
        self._budget = budget
        self._found = found
        self._depth = depth
        self._is_torch = False

    def see(self, member: Member, open_member: Callable[[], Readable]) -> None:
        stream = open_member()
        head = read_up_to(stream, HEAD_BYTES)
        self._budget.spend_bytes(len(head))
        magic = recognise(head)
        if _TORCH_MEMBER.search(member.path) and not self._is_torch:
            self._is_torch = True
            self._found.add("torch-archive", "it is a PyTorch archive", member.path)
        _check_name(member.path, self._found, member.path)
        _check_head(head, self._budget, self._found, member.path)
        if member.path.rpartition("/")[2] in ("config.json", "metadata.json"):
            self._check_keras(head, stream, member)
        if magic in ("zip", "tar", "hdf5", *_PACKED):
            self._nested(member, head, stream, magic)

    def _check_keras(self, head: bytes, stream: Readable, member: Member) -> None:
        document = head + read_up_to(stream, min(member.size, _KERAS_BYTES_MAX))
        self._budget.spend_bytes(len(document))
        if match := _KERAS_LAMBDA.search(_unescaped(document)):
            self._found.add("keras-code", f"it has a layer {match[1].decode()}", member.path)

    def _nested(self, member: Member, head: bytes, stream: Readable, magic: str | None) -> None:
        if magic == "hdf5":
            self._found.add("hdf5", "it holds an HDF5 file", member.path)
            return
        if self._depth + 1 >= DEPTH_MAX:
            self._found.add("archive-limits", f"archives nest over {DEPTH_MAX} deep", member.path)
            return
        if member.size > _NESTED_BYTES_MAX:
            self._found.add("archive-limits", f"an archive of {member.size} bytes", member.path)
            return
        with tempfile.SpooledTemporaryFile(max_size=BOMB_BYTES_MIN) as spooled:
            size = self._copy(head, stream, spooled)
            if size is None:
                self._found.add("archive-bomb", "it holds more than it states", member.path)
                return
            spooled.seek(0)
            inner = cast(BinaryIO, spooled)
            _scan_file(member.path, size, inner, self._budget, self._found, self._depth + 1)

    def _copy(self, head: bytes, stream: Readable, to: IO[bytes]) -> int | None:
        to.write(head)
        size = len(head)
        while piece := read_up_to(stream, 1024 * 1024):
            self._budget.spend_bytes(len(piece))
            size += len(piece)
            if size > _NESTED_BYTES_MAX:
                return None
            to.write(piece)
        return size


def _check_name(path: str, found: Findings, place: str) -> None:
    rule = rule_of_name(path)
    if rule is not None:
        found.add(rule, _SAID_OF_NAME[rule], place)


def _check_head(head: bytes, budget: Budget, found: Findings, place: str) -> None:
    """What the first bytes alone tell."""
    magic = recognise(head)
    if magic in _SAID:
        rule, words = _SAID[magic]
        found.add(rule, words, place)
    elif magic == "numpy" and _holds_objects(head):
        found.add("numpy-objects", "it is an array of Python objects", place)
    elif magic in (None, "zlib") and pickles.looks_like_pickle(head):
        if not budget.may_start_child():
            found.add("pickle", "it is a pickle, as others here that were taken apart", place)
            return
        contents = pickles.contents(head)
        rule = "pickle-dangerous" if contents.dangerous else "pickle"
        found.add(rule, f"it is a pickle; {pickles.describe(contents)}", place)


def _holds_objects(head: bytes) -> bool:
    """Whether an .npy header names the object dtype, or is too long for any honest one."""
    wide = head[6:7] != b"\x01"
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    return length > len(head) or _NUMPY_OBJECT.search(head, 8, 12 + length) is not None


def _check_packed(
    path: str, file: BinaryIO, kind: Compression, budget: Budget, found: Findings, depth: int
) -> None:
    """A compressed stream: what begins inside, and how much of it there is."""
    inner = path.rpartition(".")[0] or path
    place = inner if depth == 0 else f"{path} unpacked"
    stream = Unpacked(file, kind, budget)
    try:
        head = read_up_to(stream, HEAD_BYTES)
        if is_tar_header(head[:512]):
            file.seek(0)
            walk_tar(
                Unpacked(file, kind, budget), budget, found, _Visitor(budget, found, depth).see
            )
            return
        _check_head(head, budget, found, place)
        if recognise(head) in ("zip", "tar", *_PACKED):
            found.add(
                "archive-limits", "an archive in a compressed stream is not looked into", place
            )
        for _ in range(8 * BOMB_BYTES_MIN // HEAD_BYTES):
            if not stream.read(HEAD_BYTES):
                break
    except BombFound as error:
        found.add("archive-bomb", f"{error}, over {RATIO_MAX} times")
    except StreamDamaged as error:
        # Two bytes are little evidence: what does not unpack is no zlib stream.
        if kind != "zlib":
            found.add("archive-damaged", f"it can't be unpacked as {kind}: {error}")


def _check_keras(file: BinaryIO, found: Findings, place: str) -> None:
    document = read_up_to(file, _KERAS_BYTES_MAX)
    if match := _KERAS_LAMBDA.search(_unescaped(document)):
        found.add("keras-code", f"it has a layer {match[1].decode()}", place)
    else:
        found.add("hdf5", "it is an HDF5 file", place)


def _unescaped(document: bytes) -> bytes:
    """JSON with the letters that were written as \\u00xx put back."""
    return _ESCAPED_LETTER.sub(lambda match: bytes([int(match[1], 16)]), document)


def _check_safetensors(file: BinaryIO, file_bytes: int, found: Findings) -> None:
    file.seek(0)
    try:
        safetensors.read_header(file, file_bytes)
    except safetensors.SafetensorsError as error:
        found.add("safetensors", str(error))


def _check_gguf(file: BinaryIO, file_bytes: int, found: Findings) -> None:
    file.seek(0)
    try:
        layout = gguf.check(file, file_bytes)
    except GgufError as error:
        found.add("gguf", str(error))
        return
    templates = {f"tokenizer.chat_template {k}".strip(): v for k, v in layout.templates.items()}
    check_templates(templates, found)


def _check_index(document: bytes | None, found: Findings) -> None:
    if document is not None:
        try:
            safetensors.read_index(document)
        except safetensors.SafetensorsError as error:
            found.add("shard-index", str(error))


def _check_template(document: bytes | None, found: Findings) -> None:
    if document is None:
        return
    try:
        check_templates({"": document.decode()}, found)
    except UnicodeDecodeError as error:
        found.add("template-syntax", f"it is no UTF-8 text: {error}")


def _document(file: BinaryIO, file_bytes: int, bytes_max: int, found: Findings) -> bytes | None:
    """The whole file, where it is no larger than such a file ever is."""
    if file_bytes > bytes_max:
        found.add("unscanned", f"it has {file_bytes} bytes, too many for a file of this name")
        return None
    file.seek(0)
    return read_up_to(file, file_bytes)


def _ends_as_zip(file: BinaryIO, file_bytes: int) -> bool:
    tail_bytes = min(file_bytes, _TAIL_BYTES)
    file.seek(file_bytes - tail_bytes)
    for place in zip_directories(read_up_to(file, tail_bytes), file_bytes):
        file.seek(place)
        if read_up_to(file, 4) == b"PK\x01\x02":
            return True
    return False
