"""Uploads: a multipart form whose one file goes to disk as it arrives, never whole into memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from qwenstack.core.refusals import Refusal, invalid

_FIELD_BYTES_MAX = 4096
_PARTS_MAX = 16


class Form:
    """The fields of a form, and its file in a temporary file that closes with it."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `read_form`

    def pieces(self, piece_bytes: int = 1024 * 1024) -> Iterator[bytes]:
        """The file from its start, piece by piece."""
        self.file.seek(0)
        while piece := self.file.read(piece_bytes):
            yield piece


@contextlib.asynccontextmanager
async def read_form(content_type: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[Form]:
    """Read a whole form; raises Refusal for what is none. The file part is named `file`."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise invalid("The request must be multipart/form-data with a field 'file'.", "file")
    form = Form()
    try:
        reader = _Reader(form)
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        try:
            async for piece in pieces:
                parser.write(piece)
            parser.finalize()
        except MultipartParseError as error:
            raise invalid(f"The form cannot be read: {str(error)[:200]}.") from error
        if not reader.ended:
            raise invalid("The form breaks off before its end.")
        yield form
    finally:
        form.file.close()


class _Reader:
    """Collects what the parser reports, within bounds."""

    def __init__(self, form: Form) -> None:
        self.ended = False
        self._form = form
        self._header_name = b""
        self._header_value = b""
        self._name = ""
        self._is_file = False
        self._value = bytearray()
        self._parts = 0

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_part,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise invalid(f"The form has more than {_PARTS_MAX} parts.")
        self._name, self._is_file, self._value = "", False, bytearray()
        self._header_name = self._header_value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check(len(self._header_name))

    def _header_part(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check(len(self._header_value))

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            if filename is not None and self._name == "file":
                self._is_file = True
                self._form.filename = filename.decode("utf-8", "replace")[:200]
        self._header_name = self._header_value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._form.file.write(data[start:end])
            return
        self._value += data[start:end]
        self._check(len(self._value))

    def _part_end(self) -> None:
        if not self._is_file:
            self._form.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True

    def _check(self, size: int) -> None:
        if size > _FIELD_BYTES_MAX:
            raise _too_long()


def _too_long() -> Refusal:
    return invalid(f"A field of the form is longer than {_FIELD_BYTES_MAX} bytes.")
