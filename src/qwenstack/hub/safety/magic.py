"""What a file is by its first bytes, whatever it is called; and what its name makes loaders do."""

from __future__ import annotations

import re
from typing import Final, Literal

from qwenstack.hub.safety.streams import ZSTD

HEAD_BYTES: Final = 64 * 1024
"""How much of a file's beginning `recognise` wants."""

Kind = Literal[
    "pickle", "zip", "tar", "gzip", "bzip2", "xz", "zlib", "lz4", "zstd",
    "opaque-archive", "opaque-compression",
    "numpy", "hdf5", "native", "marshal", "script", "gguf",
]  # fmt: skip

_STARTS: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"\x7fELF", "native"),
    (b"\xfe\xed\xfa\xce", "native"),  # Mach-O, 32 and 64 bits, either order, and universal
    (b"\xfe\xed\xfa\xcf", "native"),
    (b"\xce\xfa\xed\xfe", "native"),
    (b"\xcf\xfa\xed\xfe", "native"),
    (b"\xca\xfe\xba\xbe", "native"),  # also Java's classes
    (b"\xca\xfe\xba\xbf", "native"),
    (b"\0asm", "native"),
    (b"dex\n03", "native"),
    (b"MZqFpD", "native"),  # Actually Portable Executables: llamafile
    (b"!<arch>\n", "native"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PK\x07\x08", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "opaque-archive"),
    (b"Rar!\x1a\x07", "opaque-archive"),
    (b"MSCF\0\0\0\0", "opaque-archive"),
    (b"\x28\xb5\x2f\xfd", "opaque-compression" if ZSTD is None else "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "opaque-compression"),  # lz4 before it had frames
    # What readers of lz4 and zstd skip, whatever it holds.
    *((bytes([0x50 + n]) + b"\x2a\x4d\x18", "opaque-compression") for n in range(16)),
    (b"\x93NUMPY", "numpy"),
    (b"GGUF", "gguf"),
    (b"#!", "script"),
)
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_HDF5_PLACES: Final = (0, *(512 << n for n in range(7)))

# The versions of Python 3's bytecode (importlib._bootstrap_external lists them), with room ahead.
_BYTECODE_VERSIONS: Final = range(3000, 4000)

_STUB_BYTES_MAX: Final = 16 * 1024 * 1024  # of the DOS program before a Windows one

_PICKLE_NAME: Final = re.compile(
    r"\.(pkl|pickle|pt|pth|pt2|ckpt|joblib|dill|mar)$"
    r"|(^|/)(pytorch_model|adapter_model|diffusion_pytorch_model|training_args|optimizer|scheduler"
    r"|rng_state|random_states|consolidated)[^/]*\.bin$"
)
_NATIVE_NAME: Final = re.compile(
    r"\.(exe|dll|so|so\.[0-9.]+|dylib|pyd|msi|scr|com|sys|jar|class|apk|deb|rpm|dmg|llamafile"
    r"|wasm|lnk|hta|cpl|node)$"
)
_MARSHAL_NAME: Final = re.compile(r"\.py[co]$")
_SCRIPT_NAME: Final = re.compile(r"\.(sh|bash|bat|cmd|ps1|psm1|vbs|vbe|wsf|jse|command|pl|rb)$")
_PYTHON_NAME: Final = re.compile(r"\.(py|pyw|pyx|pth\.py|whl|egg)$")


def recognise(head: bytes) -> Kind | None:
    """What the file that begins with `head` is; None for what is none of the above."""
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if _is_portable_executable(head):
        return "native"
    if _is_bytecode(head):
        return "marshal"
    # HDF5 allows a block of the writer's own before it.
    if any(head.startswith(_HDF5, at) for at in _HDF5_PLACES):
        return "hdf5"
    if is_tar_header(head[:512]):
        return "tar"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if head[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        return "zlib"
    return None


def rule_of_name(path: str) -> str | None:
    """The rule that the name alone falls under: what loaders or people do with such a file."""
    name = path.lower()
    for pattern, rule in (
        (_PICKLE_NAME, "pickle-name"),
        (_NATIVE_NAME, "native-code"),
        (_MARSHAL_NAME, "marshal"),
        (_SCRIPT_NAME, "script"),
        (_PYTHON_NAME, "python-code"),
    ):
        if pattern.search(name):
            return rule
    return "saved-model" if name.rpartition("/")[2] == "saved_model.pb" else None


def is_tar_header(block: bytes) -> bool:
    """Whether these 512 bytes are a tar member's header: its checksum holds."""
    if len(block) < 512:
        return False
    stated = block[148:156].strip(b" \0")
    if not stated or not set(stated) <= set(b"01234567"):
        return False
    summed = block[:148] + b" " * 8 + block[156:512]
    # Old writers summed the bytes as signed ones.
    signed = sum(summed) - 256 * sum(byte > 127 for byte in summed)
    return int(stated, 8) in (sum(summed), signed)


def zip_directories(tail: bytes, file_bytes: int) -> list[int]:
    """Where readers that look at a file's end for a zip archive would look for its directory.

    `tail` are the last bytes of the file, 65 557 or all. An archive begins its directory there with
    `PK\x01\x02`; anything else is chance.
    """
    places: list[int] = []
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and len(places) < 64:
        # The 64-bit record, where there is one, and its locator stand right before.
        for start, size_at, offset_at, width in ((at, 12, 16, 4), (at - 76, 40, 48, 8)):
            if start < 0 or (width == 8 and not tail.startswith(b"PK\x06\x06", start)):
                continue
            before = file_bytes - len(tail) + start
            size, offset = (
                int.from_bytes(tail[start + n : start + n + width], "little")
                for n in (size_at, offset_at)
            )
            # Some readers go by the size, some by the offset.
            places += [place for place in (before - size, offset) if 0 <= place < before]
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return places


def _is_portable_executable(head: bytes) -> bool:
    if not head.startswith(b"MZ") or len(head) < 64:
        return False
    at = int.from_bytes(head[60:64], "little")
    if at >= len(head) - 4:
        return at < _STUB_BYTES_MAX
    return head[at : at + 2] in (b"PE", b"NE", b"LE")


def _is_bytecode(head: bytes) -> bool:
    """A .pyc file, or a code object as marshal writes it."""
    if head[2:4] == b"\r\n" and int.from_bytes(head[:2], "little") in _BYTECODE_VERSIONS:
        return True
    if len(head) < 21 or head[0] not in (0x63, 0xE3) or not any(head[1:21]):
        return False
    # Counts of arguments (three kinds), the stack's depth, and flags.
    numbers = [int.from_bytes(head[1 + 4 * n : 5 + 4 * n], "little") for n in range(5)]
    return max(numbers[:3]) < 256 and numbers[3] < 65_536 and numbers[4] < 2**26 and numbers[3] > 0
