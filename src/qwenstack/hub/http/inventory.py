"""What there is: repos of an account with what they take, tags, headers of sharded weights."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web
from sqlalchemy import Connection, func, select

from qwenstack.hub.accounts.directory import find_account
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.errors import BadRequest, EntryNotFound, Forbidden, TooLarge, Unauthorized
from qwenstack.hub.formats.reading import read_up_to
from qwenstack.hub.formats.safetensors import SafetensorsError, read_index
from qwenstack.hub.http.access import MODEL_FILES, identify, open_repo
from qwenstack.hub.http.bodies import json_response
from qwenstack.hub.http.instants import wire_instant
from qwenstack.hub.http.paging import cursor_of, limit_of, next_link
from qwenstack.hub.hub import Hub
from qwenstack.hub.listing import read_summary
from qwenstack.hub.registry.manifests import Entry, Manifest, find_entry
from qwenstack.hub.registry.paths import shown
from qwenstack.hub.registry.repos import Kind, Repo, in_namespace
from qwenstack.hub.registry.revisions import MAIN, read_files
from qwenstack.storage.database import reading
from qwenstack.storage.hub_tables import contents, repo_contents, repos
from qwenstack.storage.rows import read_row

_PAGE_MAX = 1000
_REPOS_READ_MAX = 10_000
_INDEX_BYTES_MAX = 32 * 1024 * 1024
_HEADERS_BYTES_MAX = 64 * 1024 * 1024
_SHARDS_MAX = 2000
_PREFIXES = ("license", "language", "region", "dataset", "base_model")


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Inventory(hub)
    return [
        web.get("/api/settings/repositories", handlers.repositories),
        web.get(
            "/api/organizations/{organisation:[^/]+}/settings/repositories", handlers.repositories
        ),
        web.get("/api/{kind:models|datasets}-tags-by-type", handlers.tags),
        web.get(f"/api/models{MODEL_FILES}/safetensors-metadata/{{path:.+}}", handlers.headers),
    ]


class _Inventory:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def repositories(self, request: web.Request) -> web.Response:
        """The repos of the caller, or of an organisation that they are in, and their bytes."""
        identity = await identify(self._hub, request)
        if identity.account is None:
            raise Unauthorized("Listing an account's repos needs its token; make one.")
        name = request.match_info.get("organisation")
        inside = name is None or identity.operator or name.lower() in identity.organisations
        if not inside:
            raise Forbidden(f"{identity.name} is no member of {str(name)[:96]}.")
        limit = limit_of(request, default=_PAGE_MAX, most=_PAGE_MAX)
        after = cursor_of(request, str) or ""

        def read() -> list[tuple[Repo, int]]:
            with reading(self._hub.database) as connection:
                key = identity.account or ""
                if name is not None:
                    key = find_account(connection, name, "organisation").key
                found = select(repos).where(in_namespace(key), repos.c.key > after)
                rows = connection.execute(found.order_by(repos.c.key).limit(limit)).all()
                listed = [read_row(row, Repo) for row in rows]
                return [(repo, _published_bytes(connection, repo.id)) for repo in listed]

        found = await asyncio.to_thread(read)
        headers = None
        if len(found) == limit:
            last = found[-1][0]
            headers = next_link(self._hub, request, f"{last.kind}:{last.name.lower()}")
        total = sum(size for _, size in found)
        answer = [
            {
                "id": repo.name,
                "type": repo.kind,
                "updatedAt": wire_instant(repo.updated_us),
                "visibility": "private" if repo.private else "public",
                "storage": size,
                "storagePercent": size / total if total else 0,
            }
            for repo, size in found
            if may(identity, repo, "see").allowed
        ]
        return json_response(answer, headers=headers)

    async def tags(self, request: web.Request) -> web.Response:
        """The tags that the repos have which the caller may see, by what they are about."""
        identity = await identify(self._hub, request)
        kind: Kind = "dataset" if request.match_info["kind"] == "datasets" else "model"

        def read() -> dict[str, dict[str, dict[str, str]]]:
            with reading(self._hub.database) as connection:
                return _tags(connection, identity, kind)

        found = await asyncio.to_thread(read)
        return json_response(
            {about: [tags[name] for name in sorted(tags)] for about, tags in sorted(found.items())}
        )

    async def headers(self, request: web.Request) -> web.Response:
        """The headers of all shards that an index on main names."""
        repo, _ = await open_repo(self._hub, request, "read")
        path = request.match_info["path"]
        return json_response(await asyncio.to_thread(self._headers, repo, path))

    def _headers(self, repo: Repo, path: str) -> dict[str, object]:
        with reading(self._hub.database) as connection:
            commit, files = read_files(connection, repo.id, MAIN)
        entry = _entry(files, path, commit.oid)
        if entry.size > _INDEX_BYTES_MAX:
            raise TooLarge(f"{shown(path)} has {entry.size} bytes, too many for an index.")
        document = b"".join(self._hub.store.read(entry.sha256))
        try:
            shards = read_index(document).shards
            if len(shards) > _SHARDS_MAX:
                raise TooLarge(f"{shown(path)} names {len(shards)} shards, over {_SHARDS_MAX}.")
            folder = path.rpartition("/")[0]
            headers, left = {}, _HEADERS_BYTES_MAX
            for shard in shards:
                whole = f"{folder}/{shard}" if folder else shard
                header = self._header(_entry(files, whole, commit.oid), left)
                headers[shard] = msgspec.Raw(header)
                left -= len(header)
        except (SafetensorsError, msgspec.DecodeError) as error:
            raise BadRequest(f"{shown(path)} of {repo.name}: {error}.") from error
        metadata = msgspec.json.decode(document, type=dict[str, msgspec.Raw]).get("metadata")
        return {"index": {"metadata": metadata}, "headers": headers}

    def _header(self, entry: Entry, bytes_max: int) -> bytes:
        """The JSON of a file's header. Its push was checked whole, which takes too long here."""
        with self._hub.open_file(entry) as file:
            size = int.from_bytes(read_up_to(file, 8), "little")
            if size > bytes_max:
                raise TooLarge(f"The headers have more than {_HEADERS_BYTES_MAX} bytes.")
            header = read_up_to(file, size)
        # Whatever the index names: what goes into the answer is an object, and whole.
        msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        return header


def _entry(files: Manifest, path: str, oid: str) -> Entry:
    entry = find_entry(files, path)
    if entry is None:
        raise EntryNotFound(f"There is no file {shown(path)}.", headers={"X-Repo-Commit": oid})
    return entry


def _published_bytes(connection: Connection, repo_id: str) -> int:
    held = select(repo_contents.c.sha256).where(
        repo_contents.c.repo_id == repo_id, repo_contents.c.published
    )
    total = select(func.sum(contents.c.size)).where(contents.c.sha256.in_(held))
    return int(connection.scalar(total) or 0)


def _tags(
    connection: Connection, identity: Identity, kind: Kind
) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}

    def note(about: str, name: str) -> None:
        label = name.removeprefix(f"{about}:")
        found.setdefault(about, {})[name] = {"id": name, "label": label, "type": about}

    query = select(repos).where(repos.c.kind == kind).order_by(repos.c.updated_us.desc())
    for row in connection.execute(query.limit(_REPOS_READ_MAX)):
        if not may(identity, read_row(row, Repo), "see").allowed:
            continue
        summary = read_summary(row.summary)
        named = {"pipeline_tag": summary.pipeline_tag, "library": summary.library_name}
        for about, value in named.items():
            if value:
                note(about, value)
        for tag in summary.tags:
            about = tag.partition(":")[0]
            if about in _PREFIXES and tag != about:
                note(about, tag)
            elif tag not in named.values():
                note("other", tag)
    return found
