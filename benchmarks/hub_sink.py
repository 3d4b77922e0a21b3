"""A server that takes uploads as a hub does and throws them away: what is left is the client's.

    python -m benchmarks.hub_sink PORT

It answers `upload_file` of huggingface_hub, by Xet, as far as that needs answers. Nothing is kept,
hashed or looked at, so that no server can have that client done sooner.
"""

from __future__ import annotations

import sys
import time

from aiohttp import web

_COMMIT = "0" * 40


async def _throw_away(request: web.Request) -> None:
    while await request.content.readany():
        pass


async def _created(request: web.Request) -> web.Response:
    name = str((await request.json())["name"])
    return web.json_response({"url": f"http://{request.host}/acme/{name}", "id": name})


async def _preupload(request: web.Request) -> web.Response:
    files = (await request.json())["files"]
    return web.json_response(
        {
            "files": [
                {"path": each["path"], "uploadMode": "lfs", "shouldIgnore": False, "oid": None}
                for each in files
            ]
        }
    )


async def _batch(request: web.Request) -> web.Response:
    objects = (await request.json())["objects"]
    return web.json_response({"transfer": "xet", "objects": objects})


async def _token(request: web.Request) -> web.Response:
    url, expires_s = f"http://{request.host}/xet", int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": "none",
        "X-Xet-Token-Expiration": str(expires_s),
    }
    body = {"casUrl": url, "accessToken": "none", "exp": expires_s}
    return web.json_response(body, headers=headers)


async def _xorb(request: web.Request) -> web.Response:
    await _throw_away(request)
    return web.json_response({"was_inserted": True})


async def _shard(request: web.Request) -> web.Response:
    await _throw_away(request)
    return web.json_response({"result": 1})


async def _commit(request: web.Request) -> web.Response:
    await _throw_away(request)
    url = f"http://{request.host}/acme/x/commit/{_COMMIT}"
    return web.json_response({"success": True, "commitOid": _COMMIT, "commitUrl": url})


async def _nothing(request: web.Request) -> web.Response:
    await _throw_away(request)
    return web.Response(status=404)


def make_app() -> web.Application:
    """The server."""
    app = web.Application(client_max_size=0)
    model = "/api/models/{namespace}/{name}"
    app.add_routes(
        [
            web.post("/api/repos/create", _created),
            web.post(model + "/preupload/{rev:.+}", _preupload),
            web.post("/{namespace}/{name}/info/lfs/objects/batch", _batch),
            web.get(model + "/xet-write-token/{rev:.+}", _token),
            web.post("/xet/{v1:v1/xorbs|xorb}/default/{hash}", _xorb),
            web.post("/xet/{v1:v1/shards|shard}", _shard),
            web.post(model + "/commit/{rev:.+}", _commit),
            web.route("*", "/{rest:.*}", _nothing),
        ]
    )
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
