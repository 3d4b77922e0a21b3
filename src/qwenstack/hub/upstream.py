"""Another hub, read with the client library: what a revision holds, and its files' bytes.

What it raises is in this hub's own words: RepoNotFound and RevisionNotFound when the upstream says
so, GatedRepo and Forbidden when it wants a token or another one, UpstreamAway for all else.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, cast
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from qwenstack.hub.errors import (
    BadRequest,
    Forbidden,
    GatedRepo,
    HubError,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
)
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.repos import Gating, Kind
from qwenstack.hub.upstream_settings import TOKEN_VARIABLE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Progress = Callable[[int], None]
"""Called with each number of bytes that came; may raise to end the transfer."""

_OID: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# The client library takes larger files by Xet alone.
_HTTP_BYTES_MAX: Final = 50_000_000_000
# Of a list of files: a page has a thousand items on the hub that clients know.
_PAGES_MAX: Final = 1000
_PAGE_BYTES_MAX: Final = 64 * 1024 * 1024
_PAGE_S: Final = 60.0
# Folders are listed among the files.
_ITEMS_FACTOR: Final = 4


class UpstreamAway(HubError):
    """The other hub does not answer, or not as a hub does."""

    status = 502


class UpstreamFile(msgspec.Struct, frozen=True):
    """A file as the upstream states it: of a large one the SHA-256, of any other Git's blob id."""

    path: str
    size: int
    blob_id: str
    sha256: str | None

    @property
    def stated(self) -> str:
        """The digest that the bytes must have."""
        return f"git:{self.blob_id}" if self.sha256 is None else f"sha256:{self.sha256}"


class UpstreamRevision(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a repo at the upstream. `name` is the repo's there, which may have moved."""

    name: str
    oid: str
    private: bool
    gated: Gating


def check_endpoint(endpoint: str) -> str:
    """The address without a slash at its end. Raises BadRequest."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise BadRequest(f"{endpoint[:200]!a} is no hub's address; write https://HOST")
    return endpoint.rstrip("/")


class Upstream:
    """The hub at `endpoint`. `via` names who asks (RFC 9110, section 7.6.3): a hub that finds its
    own name there asks nobody further.
    """

    def __init__(self, endpoint: str, *, token: str | None = None, via: str | None = None) -> None:
        self.endpoint = check_endpoint(endpoint)
        self._token = token
        self._headers = {"Via": f"1.1 {via}"} if via else {}

    def look(self, kind: Kind, name: str, revision: str, *, timeout_s: float) -> UpstreamRevision:
        """What the upstream calls this revision now."""
        with self._answers(f"{kind} {name}"):
            info = self._api().repo_info(
                name, repo_type=kind, revision=revision, timeout=timeout_s, token=self._given()
            )
            oid, gated = str(info.sha), getattr(info, "gated", None)
            if not _OID.fullmatch(oid):
                raise ValueError(f"commit {oid[:80]!a}")
            return UpstreamRevision(
                name=str(info.id),
                oid=oid,
                private=bool(info.private),
                gated="" if not gated else "auto" if gated == "auto" else "manual",
            )

    def ref_kind(self, kind: Kind, name: str, revision: str) -> Literal["heads", "tags"] | None:
        """Whether the revision's name is a branch's or a tag's."""
        with self._answers(f"{kind} {name}"):
            refs = self._api().list_repo_refs(name, repo_type=kind, token=self._given())
            if any(each.name == revision for each in refs.branches):
                return "heads"
            return "tags" if any(each.name == revision for each in refs.tags) else None

    def files(self, kind: Kind, name: str, oid: str, *, files_max: int) -> list[UpstreamFile]:
        """The files of a commit. Raises TooLarge for more than `files_max`."""
        found: list[UpstreamFile] = []
        with self._answers(f"{kind} {name}"):
            for item in self._tree(kind, name, oid, items_max=_ITEMS_FACTOR * files_max):
                if item.type != "file":
                    continue
                if len(found) == files_max:
                    raise TooLarge(f"{name} has more than {files_max} files, the hub's limit.")
                found.append(_stated(item))
        return found

    def _tree(self, kind: Kind, name: str, oid: str, *, items_max: int) -> Iterator[_Item]:
        """What the upstream lists, page by page: as far as it goes, but no further than is sane.

        The token goes to the upstream alone, whatever host the address of a next page names.
        """
        url: str | None = f"{self.endpoint}/api/{kind}s/{quote(name)}/tree/{oid}?recursive=true"
        asked: set[str] = set()
        count = 0
        while url is not None:
            if url in asked or len(asked) == _PAGES_MAX:
                raise UpstreamAway(f"{self.endpoint} lists the files of {name} without an end.")
            asked.add(url)
            headers = self._api()._build_hf_headers(token=self._given())
            if _origin(url) != _origin(self.endpoint):
                headers = {key: it for key, it in headers.items() if key.lower() != "authorization"}
            items, url = _page(url, headers)
            count += len(items)
            if count > items_max:
                raise TooLarge(f"{name} has more than {items_max} files and folders.")
            yield from items

    def fetch(
        self, kind: Kind, name: str, oid: str, file: UpstreamFile, into: Path, progress: Progress
    ) -> None:
        """Write the file to `into`, on top of what an earlier try left there. Checks its length."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        if file.size > _HTTP_BYTES_MAX:
            self._fetch_by_xet(kind, name, oid, file, into)
            progress(file.size)
            return
        url = hf_hub_url(name, file.path, repo_type=kind, revision=oid, endpoint=self.endpoint)
        # A range of a compressed answer is none of the file.
        headers = self._api()._build_hf_headers(token=self._given())
        headers["Accept-Encoding"] = "identity"
        with into.open("ab") as opened:
            if opened.tell() > file.size:
                opened.truncate(0)
            start = opened.tell()
            progress(start)
            with self._answers(f"{shown(file.path)} of {name}"):
                http_get(
                    url,
                    cast(BinaryIO, _Watched(opened, file, progress)),
                    resume_size=start,
                    headers=headers,
                    expected_size=file.size,
                )
            opened.flush()
            if opened.tell() != file.size:
                raise UpstreamAway(f"{self.endpoint} sent {shown(file.path)} with another length.")

    def _fetch_by_xet(
        self, kind: Kind, name: str, oid: str, file: UpstreamFile, into: Path
    ) -> None:
        from huggingface_hub import hf_hub_download

        folder = into.with_name(into.name + ".xet")
        with self._answers(f"{shown(file.path)} of {name}"):
            fetched = hf_hub_download(
                name,
                file.path,
                repo_type=kind,
                revision=oid,
                local_dir=folder,
                endpoint=self.endpoint,
                token=self._given(),
                headers=self._headers,
            )
        Path(fetched).replace(into)
        shutil.rmtree(folder)

    def _given(self) -> str | bool:
        # False: not whatever token this machine's user has for some hub.
        return self._token or False

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(
            endpoint=self.endpoint,
            token=self._given(),
            library_name="qwenstack",
            headers=self._headers,
        )

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        """Turn the client library's exceptions into this hub's."""
        from httpx2 import HTTPError
        from huggingface_hub import errors

        at = self.endpoint
        try:
            yield
        except errors.GatedRepoError as error:
            raise GatedRepo(
                f"{what} is gated at {at}: accept its terms there, and give the hub a token that "
                f"may read it in {TOKEN_VARIABLE}."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise RevisionNotFound(f"{at} has no such revision of {what}.") from error
        except errors.RepositoryNotFoundError as error:
            raise RepoNotFound(
                f"{at} has no {what}, or none that this hub may see; for a private one, give it a "
                f"token that may read it in {TOKEN_VARIABLE}."
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise Forbidden(
                    f"{at} refuses {what}; {TOKEN_VARIABLE} must be a token that may read it."
                ) from error
            raise UpstreamAway(f"{at} answered {status} for {what}; try again later.") from error
        except (HTTPError, errors.OfflineModeIsEnabled) as error:
            raise UpstreamAway(f"{at} cannot be reached for {what}: {error}") from error
        except OSError as error:
            if error.errno is not None:  # this machine's own: its disk
                raise
            raise UpstreamAway(f"{at} broke off {what}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise UpstreamAway(f"{at} does not answer as a hub about {what}: {error!r}") from error


class _Watched:
    """A file that takes no more bytes than were announced, and tells how many came."""

    def __init__(self, opened: BinaryIO, file: UpstreamFile, progress: Progress) -> None:
        self._file = opened
        self._path = file.path
        self._left = file.size - opened.tell()
        self._progress = progress

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise UpstreamAway(f"The upstream sends more of {shown(self._path)} than it states.")
        self._progress(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def truncate(self) -> int:
        gone = self._file.seek(0, os.SEEK_END)
        self._left += gone
        self._progress(-gone)
        return self._file.truncate(0)


class _Large(msgspec.Struct):
    """What the upstream states of a large file."""

    oid: str
    size: int


class _Item(msgspec.Struct):
    """A line of the upstream's list of files."""

    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Large | None = None


def _page(url: str, headers: dict[str, str]) -> tuple[list[_Item], str | None]:
    """A page of a list, and the address of the next one. Raises ValueError for what is none."""
    from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff

    body = bytearray()
    with http_stream_backoff("GET", url, headers=headers, timeout=_PAGE_S) as response:
        hf_raise_for_status(response)
        for piece in response.iter_bytes():
            body += piece
            if len(body) > _PAGE_BYTES_MAX:
                raise ValueError(f"a page of more than {_PAGE_BYTES_MAX} bytes")
        following = response.links.get("next", {}).get("url")
        after = None if following is None else urljoin(str(response.url), following)
    return msgspec.json.decode(body, type=list[_Item]), after


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _stated(item: _Item) -> UpstreamFile:
    """A file of the list. Raises ValueError for what no hub states."""
    sha256 = None if item.lfs is None else item.lfs.oid
    size = item.size if item.lfs is None else item.lfs.size
    if size < 0:
        raise ValueError(f"file {item.path[:80]!a} of {size} bytes")
    stated = item.oid if sha256 is None else sha256
    if not (_OID if sha256 is None else _SHA256).fullmatch(stated):
        raise ValueError(f"digest {stated[:80]!a}")
    return UpstreamFile(item.path, size, item.oid, sha256)
