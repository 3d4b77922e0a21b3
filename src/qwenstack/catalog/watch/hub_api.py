"""Reading a hub over the Hugging Face HTTP API: as much as a snapshot needs, within bounds."""

from __future__ import annotations

import datetime
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from qwenstack.catalog.watch.snapshot import FileState, RepoState, Snapshot, SnapshotFolder
from qwenstack.core.redirects import opener

TIMEOUT_S: Final = 30.0
REPOS_MAX: Final = 20_000
_PAGE: Final = 100
_PAGES_MAX: Final = REPOS_MAX // _PAGE
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_TEXT_BYTES_MAX: Final = 512 * 1024
_FILES_MAX: Final = 20_000
_LICENCE_FILE: Final = re.compile(r"(?:.*/)?(licen[cs]e|notice|copying)[^/]{0,40}", re.IGNORECASE)
_NEXT: Final = re.compile(r'<([^>]+)>\s*;\s*rel="next"')


class HubUnreadable(Exception):
    """The hub could not be read; the message says what was asked and what came."""


class _Missing(Exception):
    """A repo or file that is not there, or not for us."""


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str = ""
    size: int = 0


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    blobId: str | None = None  # noqa: N815 - the wire's name
    lfs: _Lfs | None = None


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    sha: str | None = None
    createdAt: str = ""  # noqa: N815
    lastModified: str = ""  # noqa: N815
    tags: list[str] = []
    cardData: dict[str, Any] | None = None  # noqa: N815
    pipeline_tag: str | None = None
    gated: bool | str = False
    downloads: int = 0
    likes: int = 0
    siblings: list[_Sibling] | None = None


def take_snapshot(
    endpoint: str,
    author: str,
    folder: SnapshotFolder,
    *,
    token: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Snapshot:
    """Read every model of `author` on `endpoint`; raises HubUnreadable where the list fails.

    A single repo that cannot be read is named in `partial`. `progress` is told how many are done.
    """
    hub = _Hub(endpoint, token)
    repos: list[RepoState] = []
    partial: list[str] = []
    for done, name in enumerate(hub.names(author), 1):
        try:
            repos.append(hub.repo(name, folder))
        except _Missing:
            continue  # withdrawn between the list and now
        except HubUnreadable:
            partial.append(name)
        progress(done)
    now = datetime.datetime.now(datetime.UTC)
    return Snapshot(
        endpoint=hub.endpoint,
        author=author,
        taken_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        repos=tuple(sorted(repos, key=lambda each: each.id)),
        partial=tuple(sorted(partial)),
    )


class _Hub:
    def __init__(self, endpoint: str, token: str | None) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise HubUnreadable(f"{endpoint!r} is no HTTP address; write https://host")
        self.endpoint = endpoint.rstrip("/")
        self._origin = (parts.scheme, parts.netloc)
        self._token = token

    def names(self, author: str) -> Iterator[str]:
        query = urllib.parse.urlencode({"author": author, "limit": _PAGE, "full": "true"})
        url: str | None = f"{self.endpoint}/api/models?{query}"
        for _ in range(_PAGES_MAX):
            if url is None:
                return
            try:
                data, headers = self._get(url, _ANSWER_BYTES_MAX)
            except _Missing as error:
                raise HubUnreadable(f"{url}: the hub has no such list") from error
            for model in self._decode(url, data, list[_Model]):
                yield model.id
            following = _NEXT.search(headers.get("Link", ""))
            url = self._same_origin(urllib.parse.urljoin(url, following[1])) if following else None

    def repo(self, name: str, folder: SnapshotFolder) -> RepoState:
        path = urllib.parse.quote(name, safe="/")
        url = f"{self.endpoint}/api/models/{path}?blobs=true"
        data, _ = self._get(url, _ANSWER_BYTES_MAX)
        model = self._decode(url, data, _Model)
        card = model.cardData or {}
        files = tuple(
            FileState(each.rfilename, _size(each), _oid(each))
            for each in (model.siblings or ())[:_FILES_MAX]
        )
        texts = {}
        for file in files:
            if _LICENCE_FILE.fullmatch(file.path) and file.size <= _TEXT_BYTES_MAX:
                try:
                    texts[file.path] = folder.save_text(
                        self._file(path, model.sha or "main", file.path)
                    )
                except _Missing:
                    continue  # gated: its digest is known, its words are not
        return RepoState(
            id=model.id,
            sha=model.sha or "",
            created=model.createdAt,
            modified=model.lastModified,
            licence=_text(card.get("license")) or _tag(model.tags, "license:"),
            licence_name=_text(card.get("license_name")),
            base_models=_texts(card.get("base_model")),
            pipeline_tag=model.pipeline_tag,
            gated=bool(model.gated),
            downloads=model.downloads,
            likes=model.likes,
            files=tuple(sorted(files, key=lambda each: each.path)),
            texts=texts,
        )

    def _file(self, repo: str, revision: str, path: str) -> bytes:
        quoted = urllib.parse.quote(path, safe="/")
        data, _ = self._get(
            f"{self.endpoint}/{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{quoted}",
            _TEXT_BYTES_MAX,
        )
        return data

    def _same_origin(self, url: str) -> str:
        """`url`, if it is the hub's own: a token must not be led elsewhere."""
        parts = urllib.parse.urlsplit(url)
        if (parts.scheme, parts.netloc) != self._origin:
            raise HubUnreadable(f"the hub's next page is on another host: {parts.netloc}")
        return url

    def _get(self, url: str, bytes_max: int) -> tuple[bytes, Any]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "qwenstack-watch"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - checked above
        try:
            with opener().open(request, timeout=TIMEOUT_S) as answer:
                data = answer.read(bytes_max + 1)
                if len(data) > bytes_max:
                    raise HubUnreadable(f"{url} answers with more than {bytes_max} bytes")
                return data, answer.headers
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404, 410):
                raise _Missing(url) from error
            raise HubUnreadable(f"{url} answers {error.code}") from error
        except (OSError, ValueError) as error:
            raise HubUnreadable(f"{url} cannot be read: {error}") from error

    def _decode(self, url: str, data: bytes, kind: Any) -> Any:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise HubUnreadable(f"{url} is not what a hub answers: {error}") from error


def _size(file: _Sibling) -> int:
    return file.lfs.size if file.lfs and file.lfs.size else file.size or 0


def _oid(file: _Sibling) -> str:
    return file.lfs.sha256 if file.lfs and file.lfs.sha256 else file.blobId or ""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if isinstance(each, str) and each)


def _tag(tags: list[str], prefix: str) -> str | None:
    return next((each.removeprefix(prefix) for each in tags if each.startswith(prefix)), None)
