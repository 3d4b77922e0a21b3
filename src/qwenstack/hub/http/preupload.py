"""Before an upload: which files go as large ones, which are left out; whether a card parses."""

from __future__ import annotations

import asyncio
import base64
import binascii

import msgspec
from aiohttp import web

from qwenstack.hub.accounts.identity import Identity
from qwenstack.hub.errors import BadRequest, TooLarge
from qwenstack.hub.http.access import API_REPO, identify, open_repo, upload_action
from qwenstack.hub.http.bodies import json_response, read_json
from qwenstack.hub.hub import Hub
from qwenstack.hub.quotas import check_upload
from qwenstack.hub.registry.attributes import (
    DEFAULT_ATTRIBUTES,
    Rule,
    ignore_rules,
    lfs_rules,
    matches,
)
from qwenstack.hub.registry.manifests import Manifest, find_entry
from qwenstack.hub.registry.paths import check_path, shown
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import read_files
from qwenstack.storage.database import reading

_FILES_MAX = 1000
_RULES_BYTES_MAX = 64 * 1024


class NewFile(msgspec.Struct):
    """A file to come; `sample` is base64 of its first 512 bytes."""

    path: str
    size: int
    sample: str = ""


class Preupload(msgspec.Struct, rename="camel"):
    """What the client asks. The two contents stand for files that it will upload as well."""

    files: list[NewFile]
    git_attributes: str | None = None
    git_ignore: str | None = None


class Card(msgspec.Struct, rename="camel"):
    """What `validate-yaml` gets: a card and the kind of its repo."""

    content: str
    repo_type: str = "model"


def routes(hub: Hub) -> list[web.RouteDef]:
    """The routes of this module."""
    handlers = _Preupload(hub)
    return [
        web.post(API_REPO + "/preupload/{rev:.+}", handlers.preupload),
        web.post("/api/validate-yaml", handlers.validate),
    ]


class _Preupload:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def preupload(self, request: web.Request) -> web.Response:
        repo, identity = await open_repo(self._hub, request, upload_action(request))
        wire = await read_json(request, Preupload)
        if len(wire.files) > _FILES_MAX:
            raise TooLarge(f"At most {_FILES_MAX} files are asked for at once.")
        revision = request.match_info["rev"]
        files = await asyncio.to_thread(self._decide, repo, identity, revision, wire)
        return json_response({"files": files})

    def _decide(
        self, repo: Repo, identity: Identity, revision: str, wire: Preupload
    ) -> list[dict[str, object]]:
        hub = self._hub
        with reading(hub.database) as connection:
            _, there = read_files(connection, repo.id, revision)
        attributes = wire.git_attributes
        if attributes is None:
            attributes = self._text(there, ".gitattributes") or DEFAULT_ATTRIBUTES.decode()
        ignore = wire.git_ignore
        if ignore is None:
            ignore = self._text(there, ".gitignore")
        large, ignored = lfs_rules(attributes), ignore_rules(ignore)
        answer = []
        # What is as long as a file that is there may be that file, and needs no room.
        sizes, new_bytes = {entry.size for entry in there}, 0
        for file in wire.files:
            check_path(file.path)
            lfs = self._is_large(file, large)
            new_bytes += file.size if lfs and file.size not in sizes else 0
            item: dict[str, object] = {
                "path": file.path,
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": matches(ignored, file.path),
            }
            entry = find_entry(there, file.path)
            if entry is not None:
                item["oid"] = entry.sha256 if entry.lfs else entry.git_oid
            answer.append(item)
        self._check_room(repo, identity, new_bytes)
        return answer

    def _check_room(self, repo: Repo, identity: Identity, size: int) -> None:
        """Refuse here what the upload would refuse: of that a Xet client shows no words."""
        hub = self._hub
        guest = not hub.authority.decide(identity, repo, "write").allowed
        with reading(hub.database) as connection:
            check_upload(
                connection,
                account=identity.account or "",
                namespace=repo.namespace,
                guest=guest,
                size=size,
            )

    def _is_large(self, file: NewFile, rules: list[Rule]) -> bool:
        settings = self._hub.settings
        if not 0 <= file.size <= settings.file_bytes_max:
            raise TooLarge(
                f"{shown(file.path)} has {file.size} bytes; this hub takes files of up to "
                f"{settings.file_bytes_max}."
            )
        try:
            sample = base64.b64decode(file.sample, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"The sample of {shown(file.path)} is not base64.") from error
        if file.size == 0:
            return False
        return file.size >= settings.lfs_bytes_min or matches(rules, file.path) or b"\0" in sample

    def _text(self, files: Manifest, path: str) -> str:
        """A small text file of the revision, empty where there is none."""
        entry = find_entry(files, path)
        if entry is None or entry.size > _RULES_BYTES_MAX:
            return ""
        return b"".join(self._hub.store.read(entry.sha256)).decode(errors="replace")

    async def validate(self, request: web.Request) -> web.Response:
        await identify(self._hub, request)
        wire = await read_json(request, Card)
        errors, warnings = await asyncio.to_thread(self._hub.check_card, wire.content)
        body = {
            "errors": [{"message": each} for each in errors],
            "warnings": [{"message": each} for each in warnings],
        }
        if not errors:
            return json_response(body)
        raise BadRequest("The card's metadata is not well formed.", fields=body)  # type: ignore[arg-type]
