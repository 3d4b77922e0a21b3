"""Server-sent events, split out of network reads: bytes in, complete `data:` payloads out.

The format is the one of the WHATWG HTML standard, section 9.2.6 "Interpreting an event stream",
with one leniency: an event that the end of the stream cuts off before its blank line can be asked
for with `flush`, since some servers close right after `data: [DONE]`.
"""

from __future__ import annotations

from qwenstack.engines.interface import EngineProtocolError

DEFAULT_MAX_EVENT_BYTES = 4 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventSplitter:
    """Splits one event stream. Holds at most `max_event_bytes` of an unfinished event.

    >>> splitter = EventSplitter()
    >>> splitter.feed(b'data: {"a":1}\\n\\ndata: {"a"')
    [b'{"a":1}']
    >>> splitter.feed(b': 2}\\n\\n')
    [b'{"a": 2}']
    """

    __slots__ = ("_at_start", "_max_event_bytes", "_skip_line_feed", "_tail")

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        if max_event_bytes < 1:
            raise ValueError(f"max_event_bytes is {max_event_bytes}; it must be at least 1")
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()
        self._skip_line_feed = False
        self._at_start = True

    def feed(self, read: bytes) -> list[bytes]:
        """Take one network read; return the payloads of the events that it completed, in order.

        Raises EngineProtocolError when an event is larger than the limit.
        """
        if self._skip_line_feed or b"\r" in read:
            read = self._normalise(read)
        tail = self._tail
        if tail:
            # A boundary may lie across the seam, so the search starts one byte before it. It never
            # looks at older bytes again: a large event in small reads stays linear.
            seam = len(tail) - 1
            tail += read
            end = tail.rfind(b"\n\n", seam)
            if end < 0:
                self._check_size(len(tail))
                return []
            block = bytes(tail[: end + 2])
            del tail[: end + 2]
        else:
            end = read.rfind(b"\n\n")
            if end < 0:
                tail += read
                self._check_size(len(tail))
                return []
            end += 2
            if end == len(read):
                block = read
            else:
                block = read[:end]
                tail += read[end:]
        self._check_size(len(tail))
        return self._payloads(block)

    def flush(self) -> list[bytes]:
        """The payload of an event that the end of the stream left without its blank line."""
        if not self._tail:
            return []
        block = bytes(self._tail) + b"\n\n"
        self._tail.clear()
        return self._payloads(block)

    def _payloads(self, block: bytes) -> list[bytes]:
        """Split a block of whole events, each ended by a blank line."""
        if block.startswith(b"data: "):
            # What nearly every engine sends: one `data: ` line an event and nothing else. JSON
            # holds no raw line feed inside a string, so this cut never falls into a payload; that
            # the count of line feeds agrees shows that there are no other lines.
            payloads = block[6:-2].split(b"\n\ndata: ")
            if block.count(b"\n") == 2 * len(payloads):
                self._at_start = False
                if len(block) > self._max_event_bytes:
                    for payload in payloads:
                        self._check_size(len(payload) + 8)
                return payloads
        return self._payloads_by_line(block)

    def _payloads_by_line(self, block: bytes) -> list[bytes]:
        """The same by the letter of the standard: comments, other fields, several data lines."""
        if self._at_start:
            self._at_start = False
            block = block.removeprefix(_BYTE_ORDER_MARK)
        payloads: list[bytes] = []
        data: list[bytes] = []
        size = 0
        for line in block.split(b"\n"):
            size += len(line) + 1
            if not line:
                if data:
                    payloads.append(b"\n".join(data))
                    data = []
                size = 0
                continue
            self._check_size(size)
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
        return payloads

    def _normalise(self, read: bytes) -> bytes:
        """Make every line end a single line feed, also where CR and LF come in two reads."""
        if self._skip_line_feed:
            if not read:
                return read
            self._skip_line_feed = False
            if read.startswith(b"\n"):
                read = read[1:]
        if read.endswith(b"\r"):
            self._skip_line_feed = True
        return read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _check_size(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise EngineProtocolError(
                f"the engine sent an event of more than {self._max_event_bytes} bytes"
            )
