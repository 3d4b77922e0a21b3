"""A proxy on the loopback that breaks off answers in the middle, and notes every request's head."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit


class CuttingProxy:
    """Passes bytes on; the first `cuts` answers longer than `cut_after` bytes end there."""

    def __init__(self, target: str, *, cut_after: int, cuts: int) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._cut_after = cut_after
        self._cuts = cuts
        self.cuts_done = 0
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                # The requests of these tests have no bodies that look like a head.
                for head in data.decode("latin-1").split("\r\n\r\n"):
                    if "HTTP/1.1" in head.partition("\r\n")[0]:
                        self.requests.append(head)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        try:
            while data := server.recv(65536):
                passed += len(data)
                client.sendall(data)
                with self._lock:
                    cut = passed > self._cut_after and self.cuts_done < self._cuts
                    self.cuts_done += cut
                if cut:
                    break
        except OSError:
            pass
        for each in (client, server):
            # An orderly end, as of a server that goes away; a reset would lose what is on its way.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
