"""A proxy on the loopback that stands before an upstream hub and misbehaves when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit


class UpstreamProxy:
    """Passes bytes on, and notes the head of each request.

    `down` hangs up on who connects; `swap` is put in the place of bytes that pass; `hold_after`
    stops an answer after so many bytes until `release` is called.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._released = threading.Event()
        self.down = False
        self.swap: tuple[bytes, bytes] | None = None
        self.hold_after: int | None = None
        self.holding = threading.Event()
        self.heads: list[str] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._listener.close()

    def go_down(self) -> None:
        """End what is open, and take nothing more."""
        self.down = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def hold(self, after: int) -> None:
        """Stop the next answers after so many bytes; `holding` tells when one is."""
        self._released.clear()
        self.holding.clear()
        self.hold_after = after

    def release(self) -> None:
        """Let all pass again."""
        self.hold_after = None
        self._released.set()

    def asked(self, words: str) -> list[str]:
        """The heads that hold these words."""
        return [head for head in self.heads if words in head]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._open += [client, server]
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.heads.append(data.decode("latin-1").partition("\r\n\r\n")[0])
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self.swap is not None:
                    data = data.replace(*self.swap)
                client.sendall(data)
                passed += len(data)
                if self.hold_after is not None and passed > self.hold_after:
                    self.holding.set()
                    self._released.wait(60)
        for each in (client, server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
