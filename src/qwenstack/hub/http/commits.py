"""Pushes on the wire: an NDJSON body of a header and operations becomes one commit.

Small files come in the body and go into the store as they come; large ones were uploaded before
and are named by their hash. Nothing shows until the branch moves, in one transaction.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
from base64 import b64decode
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from qwenstack.core.instants import now_us
from qwenstack.hub import discussions
from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.errors import (
    BadRequest,
    Conflict,
    Refused,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
)
from qwenstack.hub.http.access import API_REPO, base_url, open_repo, upload_action
from qwenstack.hub.http.announce import announce
from qwenstack.hub.http.bodies import decode_json, flag, json_response, pieces
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_waiting, within_quota
from qwenstack.hub.registry.commits import Message, Pushed, check_message, push
from qwenstack.hub.registry.git_objects import blob_oid, lfs_pointer
from qwenstack.hub.registry.manifests import Entry, Manifest, manifest_bytes
from qwenstack.hub.registry.operations import (
    Add,
    Copy,
    Delete,
    DeleteFolder,
    Operation,
    settle,
)
from qwenstack.hub.registry.paths import check_path, shown
from qwenstack.hub.registry.possession import held
from qwenstack.hub.registry.refs import create_ref, find_ref, pull_ref
from qwenstack.hub.registry.repos import Repo, read_repo
from qwenstack.hub.registry.revisions import HEADS, PULLS, read_files
from qwenstack.hub.registry.waiting import keep_waiting
from qwenstack.storage.database import reading

_BATCH_BYTES = 32 * 1024 * 1024
_LINE_OVERHEAD = 64 * 1024


class _Line(msgspec.Struct):
    key: str
    value: msgspec.Raw


class _Header(msgspec.Struct, rename="camel"):
    summary: str
    description: str = ""
    parent_commit: str | None = None


class _File(msgspec.Struct):
    path: str
    content: str
    encoding: str = "utf-8"


class _LfsFile(msgspec.Struct):
    path: str
    oid: str
    algo: str = "sha256"
    size: int | None = None


class _Path(msgspec.Struct):
    path: str


class _CopyFile(msgspec.Struct, rename="camel"):
    path: str
    src_path: str
    src_revision: str | None = None


class Draft(msgspec.Struct):
    """A push as it came: what stands in the store already, and what is still to be looked up."""

    header: _Header
    operations: list[Operation | _LfsFile]


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    return [web.post(API_REPO + "/commit/{rev:.+}", _Commits(hub).commit)]


class _Commits:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def commit(self, request: web.Request) -> web.Response:
        revision = request.match_info["rev"]
        create_pr = flag(request, "create_pr")
        to_pull = revision.startswith(PULLS)
        repo, identity = await open_repo(self._hub, request, upload_action(request))
        if to_pull:
            await asyncio.to_thread(self._check_author, repo, identity, revision)
        draft = await self._read(request, repo, identity)
        pushed, number = await asyncio.to_thread(
            self._push, repo, identity, revision, draft, create_pr=create_pr
        )
        if pushed.changed:
            await announce(self._hub, repo, _full_ref(revision, number), pushed.commit.oid)
        prefix = "/datasets" if repo.kind == "dataset" else ""
        url = f"{base_url(self._hub, request)}{prefix}/{repo.name}"
        answer: dict[str, object] = {
            "success": True,
            "commitOid": pushed.commit.oid,
            "commitUrl": f"{url}/commit/{pushed.commit.oid}",
            "hookOutput": "",
        }
        if number is not None:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        return json_response(answer)

    def _check_author(self, repo: Repo, identity: Identity, ref: str) -> None:
        """A pull request's branch is for who opened it and for who may push anyway."""
        digits = ref.removeprefix(PULLS)
        if not digits.isdecimal() or len(digits) > 9:
            raise RevisionNotFound(f"There is no pull request {shown(ref)}.")
        with reading(self._hub.database) as connection:
            discussion = discussions.find_discussion(connection, repo.id, int(digits))
        if not discussion.is_pull_request or discussion.status in ("merged", "closed"):
            raise Conflict(f"The pull request {digits} takes no more commits.")
        if discussion.author.lower() != identity.account:
            self._hub.authority.check(identity, repo, "write")

    async def _read(self, request: web.Request, repo: Repo, identity: Identity) -> Draft:
        """The body, with its small files put into the store."""
        settings = self._hub.settings
        header: _Header | None = None
        operations: list[Operation | _LfsFile] = []
        batch: list[tuple[int, _File, bytes]] = []
        batch_bytes = 0
        async for text in self._lines(request):
            line = decode_json(text, _Line)
            if len(operations) >= settings.commit_files_max:
                raise TooLarge(f"A commit has at most {settings.commit_files_max} operations.")
            if line.key == "header":
                header = decode_json(bytes(line.value), _Header)
                check_message(header.summary, header.description)
            elif line.key == "file":
                file = decode_json(bytes(line.value), _File)
                content = _content(file)
                batch.append((len(operations), file, content))
                # Its place is taken; the entry follows with the batch.
                operations.append(Delete(check_path(file.path)))
                batch_bytes += len(content)
                if batch_bytes >= _BATCH_BYTES:
                    await asyncio.to_thread(self._store, repo, identity, batch, operations)
                    batch, batch_bytes = [], 0
            else:
                operations.append(_operation(line))
        if header is None:
            raise BadRequest("The commit has no header line with its summary.")
        if batch:
            await asyncio.to_thread(self._store, repo, identity, batch, operations)
        return Draft(header, operations)

    def _store(
        self,
        repo: Repo,
        identity: Identity,
        batch: list[tuple[int, _File, bytes]],
        operations: list[Operation | _LfsFile],
    ) -> None:
        """Put small files into the store; until a branch has them they count as the caller's."""
        hub, account = self._hub, identity.account or ""
        guest = not hub.authority.decide(identity, repo, "write").allowed
        with reading(hub.database) as connection:
            size = sum(len(content) for _, _, content in batch)
            check_waiting(connection, account, size, guest=guest)
        contents = hub.store.put_all([content for _, _, content in batch])
        with hub.database.begin() as connection:
            sizes = {content.sha256: content.size for content in contents}
            keep_waiting(connection, account, sizes, guest=guest)
        for (place, file, _), content in zip(batch, contents, strict=True):
            operations[place] = Add(
                Entry(
                    file.path,
                    content.size,
                    content.sha256,
                    content.git_oid,
                    False,
                    content.xet_hash,
                )
            )

    async def _lines(self, request: web.Request) -> AsyncIterator[bytes]:
        settings = self._hub.settings
        # Base64 makes three bytes four.
        line_max = settings.lfs_bytes_min * 4 // 3 + _LINE_OVERHEAD
        rest = bytearray()
        body = pieces(request, bytes_max=settings.commit_bytes_max, idle_s=settings.idle_s)
        async for piece in body:
            start = len(rest)
            rest += piece
            while (end := rest.find(b"\n", start)) >= 0:
                line = bytes(rest[:end]).strip()
                del rest[: end + 1]
                start = 0
                if line:
                    yield line
            if len(rest) > line_max:
                raise TooLarge(
                    f"A file of more than {settings.lfs_bytes_min} bytes is uploaded as a large "
                    "file (Xet or LFS), not in the commit."
                )
        if rest.strip():
            yield bytes(rest)

    def _push(
        self, repo: Repo, identity: Identity, revision: str, draft: Draft, *, create_pr: bool
    ) -> tuple[Pushed, int | None]:
        hub = self._hub
        operations = self._settle(repo, revision, self._resolve(repo, draft.operations))
        self._inspect(operations)
        header = draft.header
        title = header.summary.strip() or "Upload files"
        message = Message(title, header.description, identity.name)
        at_us = now_us()
        number = None
        with hub.database.begin() as connection:
            try:
                read_repo(connection, repo.id)
            except LookupError as error:
                raise RepoNotFound("The repo was deleted in the meantime.") from error
            ref = _full_ref(revision, None)
            if create_pr:
                number = _open_pull_request(connection, repo, identity, revision, header, at_us)
                ref = _full_ref(revision, number)
            with within_quota(connection, repo.namespace):
                pushed = push(
                    connection,
                    repo.id,
                    ref,
                    operations,
                    message,
                    at_us=at_us,
                    parent=header.parent_commit,
                )
            if pushed.changed and ref.startswith(PULLS):
                # The list of a large repo's files is itself large, and each push writes another.
                guest = not may(identity, repo, "write").allowed
                size = manifest_bytes(connection, pushed.commit.manifest)
                check_waiting(connection, identity.account or "", size, guest=guest)
                sizes = {pushed.commit.manifest: size}
                keep_waiting(connection, identity.account or "", sizes, guest=guest)
        return pushed, number

    def _resolve(self, repo: Repo, operations: list[Operation | _LfsFile]) -> list[Operation]:
        """Look up the large files; raises BadRequest for one that was not uploaded to this repo."""
        hub = self._hub
        wanted = [each.oid for each in operations if isinstance(each, _LfsFile)]
        known = {}
        if wanted:
            hub.store.hold(wanted)
            with reading(hub.database) as connection:
                known = held(connection, repo.id, wanted)
        resolved: list[Operation] = []
        for each in operations:
            if not isinstance(each, _LfsFile):
                resolved.append(each)
                continue
            row = known.get(each.oid)
            if row is None:
                raise BadRequest(
                    f"{shown(each.path)} names the content {each.oid}, which was not uploaded to "
                    "this repo; upload it first."
                )
            if each.size not in (None, row.size):
                raise BadRequest(
                    f"{shown(each.path)} names a content of {row.size} bytes as one of {each.size}."
                )
            pointer = blob_oid(lfs_pointer(row.sha256, row.size))
            resolved.append(
                Add(Entry(each.path, row.size, row.sha256, pointer, True, row.xet_hash))
            )
        return resolved

    def _settle(self, repo: Repo, revision: str, operations: list[Operation]) -> list[Operation]:
        """The operations with copies as additions: a new name may make a file another thing."""
        if not any(isinstance(each, Copy) for each in operations):
            return operations
        with reading(self._hub.database) as connection:

            @functools.cache
            def read(name: str) -> Manifest:
                return read_files(connection, repo.id, name)[1]

            return settle(read(_full_ref(revision, None)), operations, read)

    def _inspect(self, operations: list[Operation]) -> None:
        added = [each.entry for each in operations if isinstance(each, Add)]
        problems = [
            problem
            for inspector in self._hub.inspectors
            for problem in inspector.inspect(added, self._hub.open_file)
        ]
        if problems:
            raise Refused(
                "The hub does not publish these files. " + " ".join(problems)[:4000],
                fields={"problems": problems[:100]},
            )


def _open_pull_request(
    connection: Connection,
    repo: Repo,
    identity: Identity,
    revision: str,
    header: _Header,
    at_us: int,
) -> int:
    """Its number; its branch begins at what the target has now."""
    target = _full_ref(revision, None)
    base = find_ref(connection, repo.id, target) if target.startswith(HEADS) else None
    if base is None:
        raise RevisionNotFound(f"Invalid rev id: {shown(revision)} is no branch of this repo.")
    discussion = discussions.open_discussion(
        connection,
        repo_id=repo.id,
        author=identity.account or "",
        title=header.summary,
        description=header.description,
        target=target,
    )
    create_ref(connection, repo.id, pull_ref(discussion.number), base.commit_oid, at_us=at_us)
    return discussion.number


def _full_ref(revision: str, number: int | None) -> str:
    if number is not None:
        return f"{PULLS}{number}"
    return revision if revision.startswith("refs/") else HEADS + revision


def _content(file: _File) -> bytes:
    try:
        if file.encoding == "base64":
            return b64decode(file.content, validate=True)
        if file.encoding == "utf-8":
            return file.content.encode()
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"The content of {shown(file.path)} is not {file.encoding}.") from error
    raise BadRequest(f"'encoding' of {shown(file.path)} is 'base64' or 'utf-8'.")


def _operation(line: _Line) -> Operation | _LfsFile:
    value = bytes(line.value)
    match line.key:
        case "lfsFile":
            file = decode_json(value, _LfsFile)
            check_path(file.path)
            if file.algo != "sha256" or not _is_sha256(file.oid):
                raise BadRequest(f"'oid' of {shown(file.path)} is no SHA-256 in hexadecimal.")
            return file
        case "copyFile":
            copy = decode_json(value, _CopyFile)
            return Copy(copy.src_path, copy.src_revision, check_path(copy.path))
        case "deletedFile":
            return Delete(decode_json(value, _Path).path)
        case "deletedFolder":
            return DeleteFolder(decode_json(value, _Path).path)
        case "deletedEntry":
            path = decode_json(value, _Path).path
            return DeleteFolder(path) if path.endswith("/") else Delete(path)
    raise BadRequest(
        f"{line.key[:60]!a} is no operation; known are file, lfsFile, copyFile, deletedFile, "
        "deletedFolder."
    )


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(each in "0123456789abcdef" for each in text)
