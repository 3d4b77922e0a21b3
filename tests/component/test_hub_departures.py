"""Accounts that go or take another name: nothing is lost, and nobody becomes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from sqlalchemy import Connection, Engine, update

from qwenstack.hub.accounts import departures, directory, tokens
from qwenstack.hub.accounts.identity import Scope
from qwenstack.hub.errors import BadRequest, Conflict
from qwenstack.storage import audit_log
from qwenstack.storage.hub_tables import retired_names
from tests.hub import RunningHub, running_hub
from tests.hub_http import call


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RunningHub]:
    with running_hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def database(hub: RunningHub) -> Iterator[Engine]:
    opened = hub.open()
    yield opened.database
    opened.close()


@pytest.fixture
def bob(hub: RunningHub) -> HfApi:
    """Bob, who discusses, likes and opened a pull request on acme's repo, and has one himself."""
    alice, bob = (HfApi(endpoint=hub.url, token=each) for each in (hub.token, hub.other))
    alice.create_repo("acme/model")
    bob.create_repo("bob/own", private=True)
    discussion = bob.create_discussion("acme/model", title="a question", description="why?")
    bob.comment_discussion("acme/model", discussion.num, comment="because")
    addition = CommitOperationAdd("note", b"words")
    bob.create_commit("acme/model", [addition], commit_message="a note", create_pr=True)
    assert call(hub, "POST", "/api/models/acme/model/like", token=hub.other)[0] == 200
    return bob


def scoped_token(connection: Connection, name: str) -> str:
    scope = Scope(name=name, right="write")
    made = tokens.create_token(
        connection, account="bob", name="ci", role="fineGrained", scopes=(scope,)
    )
    return made.secret


def test_a_renamed_account_keeps_all_that_it_had(
    hub: RunningHub, database: Engine, bob: HfApi
) -> None:
    with database.begin() as connection:
        secret = scoped_token(connection, "bob/own")
        directory.set_role(connection, "acme", "bob", "contributor")
    bob.create_repo("acme/bobs")
    with database.begin() as connection:
        account, left = departures.rename_account(connection, "bob", "Robert")
    assert (account.name, left.repos) == ("Robert", ("Robert/own",))
    assert bob.whoami()["name"] == "Robert"
    assert bob.repo_info("bob/own").id == "Robert/own"  # the old name leads there
    for token in (hub.other, secret):
        HfApi(endpoint=hub.url, token=token).upload_file(
            path_or_fileobj=b"x", path_in_repo=token[:6], repo_id="Robert/own"
        )
    bob.upload_file(path_or_fileobj=b"x", path_in_repo="f", repo_id="acme/bobs")
    details = bob.get_discussion_details("acme/model", 1)
    assert {details.author, *(each.author for each in details.events)} == {"Robert"}
    bob.upload_file(
        path_or_fileobj=b"y", path_in_repo="g", repo_id="acme/model", revision="refs/pr/2"
    )
    likers = [each.username for each in bob.list_repo_likers("acme/model")]
    assert likers == ["Robert"]


def test_nobody_gets_a_name_that_was_given_up_until_it_rested(
    hub: RunningHub, database: Engine, bob: HfApi
) -> None:
    with database.begin() as connection:
        departures.rename_account(connection, "bob", "robert")
    with database.begin() as connection, pytest.raises(Conflict, match="given up lately"):
        directory.create_account(connection, name="Bob")
    with database.begin() as connection, pytest.raises(Conflict, match="given up lately"):
        departures.rename_account(connection, "alice", "bob")
    with database.begin() as connection:
        departures.rename_account(connection, "robert", "bob")  # who had it may go back
        departures.rename_account(connection, "bob", "robert")
        departures.rename_account(connection, "robert", "rob")  # over two names, too
        departures.rename_account(connection, "rob", "bob")
        departures.rename_account(connection, "bob", "robert")
    with database.connect() as connection, pytest.raises(Conflict, match="given up lately"):
        # Whoever gets a deleted account's name has no part in the names that it had before.
        departures.delete_account(connection, "robert", delete_repos=True)
        directory.create_account(connection, name="robert", reuse=True)
        departures.rename_account(connection, "robert", "bob")
    with database.begin() as connection:
        connection.execute(update(retired_names).values(free_us=1))
        directory.create_account(connection, name="bob")
        made = tokens.create_token(connection, account="bob", name="n", role="write").secret
    # The new bob is nobody's heir.
    stranger = HfApi(endpoint=hub.url, token=made)
    with pytest.raises(RepositoryNotFoundError):
        stranger.repo_info("robert/own")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.change_discussion_status("acme/model", 1, "closed")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.upload_file(
            path_or_fileobj=b"z", path_in_repo="h", repo_id="acme/model", revision="refs/pr/2"
        )


def test_what_a_deleted_account_said_stays_and_its_tokens_end(
    hub: RunningHub, database: Engine, bob: HfApi
) -> None:
    with database.begin() as connection, pytest.raises(Conflict, match="1 repos, bob/own"):
        departures.delete_account(connection, "bob")
    with database.begin() as connection, pytest.raises(BadRequest, match="its own repos"):
        departures.delete_account(connection, "bob", give_to="Bob")
    with database.begin() as connection:
        left = departures.delete_account(connection, "bob", give_to="acme")
    assert left.repos == ("acme/own",)
    assert call(hub, "GET", "/api/whoami-v2", token=hub.other)[0] == 401
    alice = HfApi(endpoint=hub.url, token=hub.token)
    assert alice.repo_info("acme/own").private
    details = alice.get_discussion_details("acme/model", 1)
    assert {each.author for each in details.events} == {"ghost"}
    assert alice.model_info("acme/model").likes == 0
    with database.begin() as connection:
        with pytest.raises(BadRequest, match="own paths"):
            directory.create_account(connection, name="ghost")
        directory.create_account(connection, name="bob", reuse=True)
        made = tokens.create_token(connection, account="bob", name="n", role="write").secret
        count, broken = audit_log.verify(connection)
        lines = audit_log.read_lines(connection, after=0, limit=count)
    assert broken is None
    assert {"hub.account.delete", "hub.repo.move"} <= {line.action for line in lines}
    assert '"reuse":true' in lines[-2].detail
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=made).repo_info("bob/own")


def test_an_organisation_that_goes_takes_its_repos_only_when_told_so(
    hub: RunningHub, database: Engine, bob: HfApi
) -> None:
    with database.begin() as connection, pytest.raises(Conflict, match="acme/model"):
        departures.delete_account(connection, "acme")
    with database.begin() as connection, pytest.raises(Conflict, match="the only admin of acme"):
        departures.delete_account(connection, "alice")
    with database.begin() as connection:
        departures.delete_account(connection, "acme", delete_repos=True)
    with pytest.raises(RepositoryNotFoundError):
        bob.repo_info("acme/model")
    with database.begin() as connection:
        departures.delete_account(connection, "alice", delete_repos=True)


def test_only_operators_rename_and_delete(hub: RunningHub, database: Engine) -> None:
    assert call(hub, "DELETE", "/api/admin/accounts/bob")[0] == 403
    rename = "/api/admin/accounts/bob/rename"
    assert call(hub, "POST", rename, json_body={"name": "x1"})[0] == 403
    with database.begin() as connection:
        directory.create_account(connection, name="root", operator=True)
        made = tokens.create_token(connection, account="root", name="n", role="write").secret
        with pytest.raises(Conflict, match="only operator"):
            departures.delete_account(connection, "root")
    status, _, answer = call(hub, "POST", rename, json_body={"name": "rob"}, token=made)
    assert (status, answer["name"]) == (200, "bob")
    status, _, answer = call(hub, "DELETE", "/api/admin/accounts/rob", token=made)
    assert (status, answer["repos"]) == (200, [])
