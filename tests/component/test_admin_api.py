"""The admin API over a real socket: closed by default, every act durable and audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenstack.studio.accounts import create_key
from tests.studio import RunningStudio, running_studio


async def admin_key(studio: RunningStudio) -> str:
    def make(connection: Any) -> str:
        _, drawn = create_key(
            connection, actor="test", workspace_id=None, name="root", scopes=("admin",)
        )
        return drawn.secret

    secret: str = await studio.act(make)
    return secret


async def call(
    studio: RunningStudio, key: str, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    answer = await studio.session.request(
        method,
        f"{studio.url}/admin/v1{path}",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
    )
    return answer.status, await answer.json()


async def test_a_tenant_is_made_funded_served_billed_and_ended(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        status, workspace = await call(studio, root, "POST", "/workspaces", {"name": "acme"})
        assert status == 200
        one = f"/workspaces/{workspace['id']}"
        status, entry = await call(studio, root, "POST", f"{one}/money", {"amount": "2.50"})
        assert (status, entry["balance_micro"]) == (200, 2_500_000)
        _, key = await call(studio, root, "POST", f"{one}/keys", {"name": "backend"})
        assert key["api_key"].startswith("sk-qs-")
        assert (await studio.chat(key["api_key"])).status == 200
        _, keys = await call(studio, root, "GET", f"{one}/keys")
        assert [each["api_key"] for each in keys] == [None]
        assert "digest" not in keys[0]
        _, usage = await call(studio, root, "GET", "/usage?by=key")
        assert usage[0]["group"] == key["id"]
        assert usage[0]["requests"] == 1
        status, _ = await call(studio, root, "PUT", f"{one}/suspended", {"suspended": True})
        assert status == 200
        assert (await studio.chat(key["api_key"])).status == 403
        await call(studio, root, "PUT", f"{one}/suspended", {"suspended": False})
        _, rotated = await call(
            studio, root, "POST", f"/keys/{key['id']}/rotate", {"overlap_s": 3600}
        )
        assert (await studio.chat(key["api_key"])).status == 200
        assert (await studio.chat(rotated["api_key"])).status == 200
        await call(studio, root, "DELETE", f"/keys/{rotated['id']}")
        assert (await studio.chat(rotated["api_key"])).status == 401
        assert (await call(studio, root, "GET", "/ledger"))[1]["holds"] is True
        audit = (await call(studio, root, "GET", "/audit"))[1]
        assert audit["holds"] is True
        assert audit["lines"] >= 7


async def test_rotating_revives_no_key_and_resets_no_budget(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        await studio.tenant()
        one = "/workspaces/acme"
        fields = {"name": "b", "expires_in_s": 1000}
        _, key = await call(studio, root, "POST", f"{one}/keys", fields)
        limits = {"limit": "0.00001", "key": key["id"], "period": "total"}
        assert (await call(studio, root, "POST", f"{one}/budgets", limits))[0] == 200
        studio.upstream.tokens = 100
        statuses = [(await studio.chat(key["api_key"], max_tokens=100)).status for _ in range(2)]
        assert statuses == [200, 403]
        _, made = await call(studio, root, "POST", f"/keys/{key['id']}/rotate", {"overlap_s": 0})
        assert (await studio.chat(made["api_key"], max_tokens=100)).status == 403
        assert made["expires_us"] is not None
        assert (await studio.chat(key["api_key"])).status == 401
        again = await call(studio, root, "POST", f"/keys/{key['id']}/rotate", {"overlap_s": 9})
        assert again[0] == 409
        assert (await studio.chat(key["api_key"])).status == 401


async def test_plans_and_budgets_take_effect_at_once(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        key = await studio.tenant()
        plan = {"id": "default", "per_model": {"requests_per_minute": 2}}
        assert (await call(studio, root, "PUT", "/plans/default", plan))[0] == 200
        statuses = [(await studio.chat(key)).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        status, budget = await call(
            studio, root, "POST", "/workspaces/acme/budgets", {"limit": "0", "period": "day"}
        )
        assert (status, budget["limit_micro"]) == (200, 0)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/workspaces", {"name": ""}, 400),
        ("POST", "/workspaces", {"name": "x", "nonsense": 1}, 400),
        ("POST", "/workspaces", {"name": "x", "currency": "usd"}, 400),
        ("POST", "/workspaces", {"name": "x", "plan": "none"}, 400),
        ("POST", "/workspaces", [], 400),
        ("GET", "/workspaces/nobody", None, 404),
        ("POST", "/workspaces/acme/money", {"amount": "-1"}, 400),
        ("POST", "/workspaces/acme/money", {"amount": "NaN"}, 400),
        ("POST", "/workspaces/acme/money", {"amount": "1e30"}, 400),
        ("POST", "/workspaces/acme/keys", {"name": "k", "scopes": ["admin"]}, 400),
        ("DELETE", "/keys/nothing", None, 404),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/plans", None, 405),
        ("GET", "/usage?by=nonsense", None, 400),
        ("GET", "/usage?end=9999-12-31T23:59:59-23:00", None, 400),
    ],
)
async def test_a_wrong_act_is_refused_and_leaves_no_trace(
    tmp_path: Path, method: str, path: str, body: object, status: int
) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        await studio.tenant()
        before = (await call(studio, root, "GET", "/audit"))[1]["lines"]
        got, answer = await call(studio, root, method, path, body)
        assert got == status
        assert answer["error"]["message"]
        assert (await call(studio, root, "GET", "/audit"))[1]["lines"] == before


async def test_admin_routes_are_closed_to_everyone_else(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        key = await studio.tenant()
        for secret, status in ((key, 403), ("sk-qs-wrong", 401), ("", 401)):
            for path in ("/workspaces", "/ledger", "/nowhere"):
                assert (await call(studio, secret, "GET", path))[0] == status
        root = await admin_key(studio)
        assert (await studio.chat(root)).status == 403, "an admin key runs models"


async def test_every_book_can_be_read_over_http(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        secret = await studio.tenant()
        assert (await studio.chat(secret)).status == 200
        one = "/workspaces/acme"
        status, quota = await call(
            studio,
            root,
            "POST",
            f"{one}/free-quota",
            {"model": "m", "tokens": 1000, "expires_in_s": 60},
        )
        assert (status, quota["granted_tokens"], quota["used_tokens"]) == (200, 1000, 0)
        await call(studio, root, "POST", f"{one}/budgets", {"limit": "5"})
        _, budgets = await call(studio, root, "GET", f"{one}/budgets")
        assert [each["budget"]["limit_micro"] for each in budgets] == [5_000_000]
        _, invoice = await call(studio, root, "GET", f"{one}/invoice")
        assert invoice["head"]["workspace_name"] == "acme"
        _, deployments = await call(studio, root, "GET", "/deployments")
        assert [each["name"] for each in deployments] == ["m"]
        _, made = await call(studio, root, "POST", "/keys", {"name": "second"})
        assert (await call(studio, made["api_key"], "GET", "/keys"))[0] == 200
        _, lines = await call(studio, root, "GET", "/audit/lines?limit=2")
        _, following = await call(
            studio, root, "GET", f"/audit/lines?after={lines[-1]['sequence']}"
        )
        assert following[0]["previous"] == lines[-1]["digest"]
        await call(studio, root, "POST", "/workspaces", {"name": "later"})
        _, first = await call(studio, root, "GET", "/workspaces?limit=1")
        after = first[0]["workspace"]["id"]
        _, second = await call(studio, root, "GET", f"/workspaces?after={after}")
        assert [each["workspace"]["name"] for each in first + second] == ["acme", "later"]


async def test_a_workspace_reads_its_own_usage_and_no_other(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        secret = await studio.tenant()
        assert (await studio.chat(secret)).status == 200
        await call(studio, root, "POST", "/workspaces", {"name": "other"})
        _, other = await call(studio, root, "POST", "/workspaces/other/keys", {"name": "k"})
        seen = {}
        for name, key in (("own", secret), ("other", other["api_key"])):
            answer = await studio.session.get(
                f"{studio.url}/v1/usage?by=key&key=self", headers={"Authorization": f"Bearer {key}"}
            )
            assert answer.status == 200
            seen[name] = await answer.json()
        assert [line["requests"] for line in seen["own"]] == [1]
        assert seen["other"] == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/workspaces/a%00b", None),
        ("POST", "/workspaces", {"name": "x", "region": "a\0b"}),
        ("POST", "/workspaces", {"name": "x", "plan": "a\0b"}),
        ("POST", "/workspaces/acme/money", {"amount": "1", "memo": "a\0b"}),
        ("POST", "/workspaces/acme/money", {"amount": "4611686018427"}),
        ("GET", "/usage?workspace=%00", None),
        ("GET", "/audit/lines?after=-1", None),
        ("GET", "/workspaces/acme/invoice?month=2026-13", None),
        ("GET", "/workspaces/acme/invoice?month=9999-12", None),
    ],
)
async def test_what_no_book_can_hold_is_refused(
    tmp_path: Path, method: str, path: str, body: object
) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        await studio.tenant()
        status, answer = await call(studio, root, method, path, body)
        assert status in (400, 404), answer
        assert answer["error"]["message"]


async def test_a_workspace_named_like_anothers_id_hides_nothing(tmp_path: Path) -> None:
    async with running_studio(tmp_path) as studio:
        root = await admin_key(studio)
        _, first = await call(studio, root, "POST", "/workspaces", {"name": "first"})
        await call(studio, root, "POST", "/workspaces", {"name": first["id"]})
        _, found = await call(studio, root, "GET", f"/workspaces/{first['id']}")
        assert found["workspace"]["name"] == "first"
