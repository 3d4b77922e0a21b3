"""Packs as S3-compatible objects, with a folder of the ones used last in front.

    s3://bucket/prefix?endpoint=http://127.0.0.1:9000

Credentials and region come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION`) or the machine's role. A pack is fetched whole, once, when something of it is read:
it is at most 64 MiB, and its neighbours in a file are read next. So what reads from files goes on
reading from files.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from qwenstack.hub.store.kinds import StoreError
from qwenstack.hub.store.objects import FolderObjects, Listed

_CACHE_BYTES_MAX = 32 * 1024**3
# A file of the cache stays at least so long after its last use: somebody may be about to open it.
_CACHE_KEEP_S = 120.0
# The client says that something is missing in either of these ways.
_MISSING = (NotFoundError, FileNotFoundError)
_FAILED = (BaseError, *_MISSING)
_CONNECT_S, _REQUEST_S = "10s", "120s"


def open_bucket(url: str, cache: Path) -> S3Objects:
    """The bucket that `url` names, with its cache in a folder. Raises StoreError for others."""
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    if parts.scheme != "s3" or not parts.netloc or options.keys() - {"endpoint"}:
        raise StoreError(f"objects {url!r}: write s3://BUCKET/PREFIX?endpoint=URL, or leave it out")
    endpoint = options.get("endpoint", [None])[0]
    store = S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        endpoint=endpoint,
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": _CONNECT_S,
            "timeout": _REQUEST_S,
        },
    )
    return S3Objects(store, cache, _CACHE_BYTES_MAX)


class S3Objects:
    """Objects of a bucket. Raises OSError when the service fails or cannot be reached."""

    def __init__(self, store: S3Store, cache: Path, cache_bytes_max: int) -> None:
        self._store = store
        self._cache = cache
        self._cache_bytes_max = cache_bytes_max
        cache.mkdir(parents=True, exist_ok=True)

    def spool(self) -> Path:
        """A new empty file in the cache's folder."""
        descriptor, path = tempfile.mkstemp(dir=self._cache, prefix=".new-")
        os.close(descriptor)
        return Path(path)

    def keep(self, name: str, spooled: Path) -> None:
        """Upload the file, look that it arrived whole, and leave it in the cache."""
        size = spooled.stat().st_size
        try:
            obstore.put(self._store, name, spooled)
            there = obstore.head(self._store, name)["size"]
        except _FAILED as error:
            raise OSError(f"cannot store pack {name}: {_first_line(error)}") from error
        if there != size:
            raise OSError(f"pack {name} arrived with {there} of its {size} bytes")
        spooled.replace(self._cache / name)
        self._evict()

    def local(self, name: str) -> Path:
        """The object in the cache, fetched when it isn't there; raises FileNotFoundError."""
        path = self._cache / name
        try:
            os.utime(path)
            return path
        except FileNotFoundError:
            pass
        fetched = self.spool()
        try:
            with fetched.open("wb") as out:
                for piece in obstore.get(self._store, name):
                    out.write(piece)
            fetched.replace(path)
        except _MISSING as error:
            fetched.unlink(missing_ok=True)
            raise FileNotFoundError(f"object {name} is missing") from error
        except _FAILED as error:
            fetched.unlink(missing_ok=True)
            raise OSError(f"cannot fetch pack {name}: {_first_line(error)}") from error
        except BaseException:
            fetched.unlink(missing_ok=True)
            raise
        self._evict()
        return path

    def list(self) -> Iterator[Listed]:
        """All objects below the prefix."""
        try:
            for page in obstore.list(self._store):
                for each in page:
                    modified_us = int(each["last_modified"].timestamp() * 1_000_000)
                    yield Listed(each["path"], each["size"], modified_us)
        except _FAILED as error:
            raise OSError(f"cannot list the packs: {_first_line(error)}") from error

    def delete(self, name: str) -> None:
        """Remove an object, here and there."""
        (self._cache / name).unlink(missing_ok=True)
        try:
            obstore.delete(self._store, name)
        except _MISSING:
            return
        except _FAILED as error:
            raise OSError(f"cannot remove pack {name}: {_first_line(error)}") from error

    def tidy(self, older_than_us: int) -> None:
        """Remove what a killed upload left in the cache's folder."""
        FolderObjects(self._cache).tidy(older_than_us)

    def _evict(self) -> None:
        """Remove the files used longest ago until the cache fits again."""
        found = []
        for path in self._cache.glob("pack_*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for used_s, size, path in sorted(found, key=lambda each: each[0]):
            if total <= self._cache_bytes_max or used_s > time.time() - _CACHE_KEEP_S:
                return
            path.unlink(missing_ok=True)
            total -= size


def _first_line(error: Exception) -> str:
    """What the client says, without the trace of its own that follows."""
    return str(error).partition("\n")[0][:500]
