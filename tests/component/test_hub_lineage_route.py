"""A model's lineage over HTTP: what was computed, and only to whom it may be known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from qwenstack.hub.registry.repos import find_repo
from qwenstack.hub.summaries import Lineage, note_lineage
from qwenstack.storage.database import open_database
from tests.hub import RunningHub, running_hub
from tests.hub_http import call

CARD = "---\nlicense: apache-2.0\nbase_model: acme/claimed\n---\n# M\n"
FOUND = {
    "acme/child": Lineage("acme/base", "fine-tune", 0.98, "derived"),
    "acme/base": Lineage(None, "unrelated", 0.92, "independent"),
    "acme/of-hidden": Lineage("acme/hidden", "quantization", 0.99, "derived"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    folder: Path = tmp_path_factory.mktemp("lineage")
    with running_hub(folder) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for name in ("acme/base", "acme/child", "acme/hidden", "acme/of-hidden", "acme/untold"):
            api.create_repo(name, private=name == "acme/hidden")
            card = CommitOperationAdd("README.md", CARD.encode())
            api.create_commit(name, [card], commit_message="card")
        engine = open_database(f"sqlite:///{folder / 'hub.db'}")
        with engine.begin() as connection:
            for name, lineage in FOUND.items():
                repo = find_repo(connection, "model", name)
                assert repo is not None
                note_lineage(connection, repo.id, lineage)
        engine.dispose()
        yield hub


def test_the_route_gives_what_was_computed_and_the_line(hub: RunningHub) -> None:
    status, _, said = call(hub, "GET", "/api/models/acme/child/lineage")
    assert status == 200
    assert said["id"] == "acme/child"
    assert said["lineage"] == {
        "parent": "acme/base", "relation": "fine-tune", "confidence": 0.98, "verdict": "derived",
    }  # fmt: skip
    assert (said["ancestors"][0]["name"], said["ancestors"][0]["source"]) == (
        "acme/base",
        "weights",
    )
    _, _, base = call(hub, "GET", "/api/models/acme/base/lineage")
    assert base["lineage"]["verdict"] == "independent"
    assert base["derivatives"] == ["acme/child"]


def test_what_nobody_computed_is_null_and_the_cards_claim_says_that_it_is_one(
    hub: RunningHub,
) -> None:
    _, _, said = call(hub, "GET", "/api/models/acme/untold/lineage")
    assert said["lineage"] is None
    assert [each["source"] for each in said["ancestors"]] == ["card"]


def test_a_hidden_repo_shows_neither_its_lineage_nor_that_it_is_a_parent(hub: RunningHub) -> None:
    status, _, _ = call(hub, "GET", "/api/models/acme/hidden/lineage", token="")
    absent, _, _ = call(hub, "GET", "/api/models/acme/nobody/lineage", token="")
    assert status == absent
    assert status in (401, 404)
    _, _, owner = call(hub, "GET", "/api/models/acme/of-hidden/lineage")
    assert owner["lineage"]["parent"] == "acme/hidden"
    _, _, guest = call(hub, "GET", "/api/models/acme/of-hidden/lineage", token="")
    assert "acme/hidden" not in str(guest)
    assert guest.get("lineage") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme/child", "from the weights, 98 % sure"),
        ("acme/base", "they come from no other model of this hub"),
        ("acme/untold", "Parent from the weights: not computed"),
    ],
)
def test_the_page_says_what_the_weights_say_or_that_nobody_asked_them(
    hub: RunningHub, name: str, words: str
) -> None:
    status, _, page = call(hub, "GET", f"/{name}", token="")
    assert status == 200
    assert words in page.decode()
