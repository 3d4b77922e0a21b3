"""References that are paths: a weights file, a model's folder, a configuration, a script."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qwenstack.catalog.which.answer import Answer
from qwenstack.catalog.which.bounded import Unreadable, read_bytes
from qwenstack.catalog.which.compose import compose
from qwenstack.catalog.which.index import Index
from qwenstack.catalog.which.reading import Reading, Setting

_MAGIC: Final = b"GGUF"
_TEXT_BYTES_MAX: Final = 4 * 1024 * 1024


def read_path(path: Path, found: Index, problems: list[str]) -> Answer | None:
    """The answer for what lies at `path`; None where nothing does. A partial one where damaged."""
    from qwenstack.catalog.which.decide import shorten, unknown

    try:
        path = path.expanduser() if str(path).startswith("~") else path
    except RuntimeError:  # `~name`, and nobody here has that name
        return None
    try:
        if not path.exists():
            return None
        if path.is_dir():
            from qwenstack.catalog.which import folder

            readings = list(folder.read(path, found))
        elif not path.is_file():
            return unknown(shorten(str(path)), path.name, found, "neither a file nor a folder")
        else:
            readings, answer = _file(path, found)
            if answer is not None:
                return answer
    except (OSError, Unreadable) as error:
        problems.append(str(error))
        return unknown(shorten(str(path)), path.name, found, "the file could not be read")
    if not readings:
        return None if path.is_dir() else unknown(shorten(str(path)), path.name, found)
    return compose(shorten(str(path)), readings[0], readings[1:], found)


def _file(path: Path, found: Index) -> tuple[list[Reading], Answer | None]:
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == _MAGIC or path.suffix == ".gguf":
        from qwenstack.catalog.which import gguf_file
        from qwenstack.engines.gguf import GgufError

        try:
            return list(gguf_file.read(path, found)), None
        except GgufError as error:
            raise Unreadable(f"{path.name}: {error}") from error
    if path.suffix == ".safetensors":
        from qwenstack.catalog.which import safetensors_file

        return list(safetensors_file.read(path, found)), None
    if path.name in ("config.json", "adapter_config.json"):
        from qwenstack.catalog.which import folder

        return list(folder.read(path.parent, found)), None
    from qwenstack.catalog.which.snippet import read as read_snippet

    raw = read_bytes(path, _TEXT_BYTES_MAX)
    if b"\0" in raw[:8192]:
        raise Unreadable(f"{path.name}: neither a model file that we know nor text")
    return [], read_snippet(raw.decode("utf-8", "replace"), found, Setting.ANY, name=str(path))
