"""Uploads in parts, taken into the store part by part while the next ones come.

That only begins early what has to be done once all parts are there: they stay on the disk until
the whole is in the store. After a restart, or when too many uploads are under way, the end of the
upload takes what is missing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Lock

from sqlalchemy.exc import DBAPIError

from qwenstack.hub.registry.uploads import Upload, part_is_there, part_path, read_pieces
from qwenstack.hub.store.contents import Arrival, Content, ContentStore, Expected, StoreError

_LOG = logging.getLogger(__name__)
# Each holds a pack in the making and some megabytes of the file.
_AHEAD_MAX = 4


class _Ahead:
    """An upload's content so far: all parts before `part`."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.part = 1
        self.closed = False
        self.lock = Lock()

    def close(self) -> None:
        """Let go of what was not kept; the lock is held."""
        self.closed = True
        self.arrival.close()


class PartsAhead:
    """The uploads that are taken in early; safe to share among threads. Every method blocks."""

    def __init__(self, store: ContentStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._lock = Lock()
        self._known: dict[str, _Ahead] = {}

    def go_on(self, upload: Upload) -> None:
        """Take in the parts that follow those taken so far, as far as they are there."""
        try:
            ahead = self._find(upload)
        except (OSError, StoreError, DBAPIError) as error:
            _LOG.warning("upload %s is taken in at its end: %s", upload.id, error)
            return
        # Who holds the lock goes on to this part as well, or the end of the upload does.
        if ahead is None or not ahead.lock.acquire(blocking=False):
            return
        try:
            if not ahead.closed:
                self._take(upload, ahead)
        except (OSError, StoreError, DBAPIError) as error:
            _LOG.warning("upload %s is taken in at its end: %s", upload.id, error)
            self._forget(upload)
            ahead.close()
        finally:
            ahead.lock.release()

    def finish(self, upload: Upload) -> Content:
        """All parts are there: keep the whole. Raises ContentMismatch, StoreError, OSError."""
        ahead = self._forget(upload)
        while ahead is None or not ahead.lock.acquire() or ahead.closed:
            if ahead is not None:  # given up, or what was under way has failed
                ahead.lock.release()
            ahead = self._begin(upload)
        try:
            self._take(upload, ahead)
            return ahead.arrival.keep()
        finally:
            ahead.close()
            ahead.lock.release()

    def _forget(self, upload: Upload) -> _Ahead | None:
        with self._lock:
            return self._known.pop(upload.id, None)

    def _find(self, upload: Upload) -> _Ahead | None:
        given_up = None
        try:
            with self._lock:
                ahead = self._known.pop(upload.id, None)
                if ahead is None and len(self._known) >= _AHEAD_MAX:
                    # The one that stood still longest, if it does now.
                    oldest = next(iter(self._known))
                    if self._known[oldest].lock.locked():
                        return None
                    given_up = self._known.pop(oldest)
                self._known[upload.id] = ahead = ahead or self._begin(upload)
        finally:
            if given_up is not None:
                with given_up.lock:
                    given_up.close()
        return ahead

    def _begin(self, upload: Upload) -> _Ahead:
        return _Ahead(self._store.receive(Expected(upload.sha256, upload.size)))

    def _take(self, upload: Upload, ahead: _Ahead) -> None:
        while ahead.part <= upload.parts and part_is_there(self._folder, upload, ahead.part):
            for piece in read_pieces(part_path(self._folder, upload, ahead.part)):
                ahead.arrival.feed(piece)
            ahead.part += 1
