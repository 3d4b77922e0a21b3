"""The client library's calls about people, against a real hub: whoami to merge, and the pages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, DiscussionComment, DiscussionStatusChange, HfApi
from huggingface_hub.community import DiscussionCommit, DiscussionTitleChange
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)

from tests.hub import ORGANISATION, RunningHub, running_hub

CARD = """---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
language: [en, zh]
tags: [chat]
---
# A model
"""
HOSTILE = """---
license: "<script>alert(1)</script>"
base_model: "evil/<img src=x onerror=alert(2)>"
---
# Hello <script>alert(3)</script>

<img src=x onerror=alert(4)> <svg onload=alert(5)> <iframe src="https://evil.example"></iframe>
<a href="javascript:alert(6)">a</a> [b](javascript:alert(7)) [c](data:text/html,<script>8</script>)
![beacon](https://evil.example/beacon.png) <style>body{display:none}</style>
<form action="/logout"><input name=x></form> <div style="position:fixed" onclick="alert(9)">d</div>
<a href="/logout">e</a> [f](//evil.example) <base href="https://evil.example/">
<math><mtext><script>alert(10)</script></mtext></math> <object data="x"></object>
&lt;script&gt;alert(11)&lt;/script&gt; <IMG SRC="jav&#x09;ascript:alert(12);">
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def alice(hub: RunningHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def bob(hub: RunningHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.other)


def publish(api: HfApi, repo: str, card: str = CARD, **files: bytes) -> None:
    api.create_repo(repo, exist_ok=True)
    operations = [CommitOperationAdd("README.md", card.encode())]
    operations += [
        CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()
    ]
    api.create_commit(repo, operations, commit_message="Publish")


def test_whoami_says_who_and_with_which_token(hub: RunningHub, alice: HfApi) -> None:
    me = alice.whoami()
    assert (me["type"], me["name"], me["auth"]["accessToken"]["role"]) == ("user", "alice", "write")
    assert [(each["name"], each["roleInOrg"]) for each in me["orgs"]] == [(ORGANISATION, "admin")]
    assert HfApi(endpoint=hub.url, token=hub.reader).whoami()["auth"]["accessToken"]["role"] == (
        "read"
    )
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_" + "a" * 34).whoami()


def test_the_command_logs_in_with_the_endpoint_alone(hub: RunningHub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path)
    del environment["HF_TOKEN"]
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf", "auth"]
    login = subprocess.run(
        [*hf, "login", "--token", hub.token], env=environment, capture_output=True, text=True
    )
    assert login.returncode == 0, login.stderr
    said = subprocess.run([*hf, "whoami"], env=environment, capture_output=True, text=True)
    assert "alice" in said.stdout and ORGANISATION in said.stdout, said.stdout + said.stderr


def test_people_and_organisations_are_described(alice: HfApi) -> None:
    overview = alice.get_organization_overview(ORGANISATION)
    assert (overview.name, overview.num_users) == (ORGANISATION, 1)
    assert [each.username for each in alice.list_organization_members(ORGANISATION)] == ["alice"]
    assert list(alice.list_organization_followers(ORGANISATION)) == []
    assert alice.get_user_overview("alice").orgs[0].name == ORGANISATION
    with pytest.raises(HfHubHTTPError) as failed:
        alice.get_user_overview("nobody")
    assert failed.value.response.status_code == 404


def test_a_private_repo_is_not_there_for_strangers(
    hub: RunningHub, alice: HfApi, bob: HfApi
) -> None:
    publish(alice, "alice/hidden")
    alice.update_repo_settings("alice/hidden", private=True)
    refused = []
    for api in (bob, HfApi(endpoint=hub.url, token=False)):
        for name in ("alice/hidden", "alice/missing"):
            for call in (api.model_info, api.list_repo_files, api.list_repo_refs, api.auth_check):
                with pytest.raises(RepositoryNotFoundError) as failed:
                    call(name)
                answer = failed.value.response
                # The words must not tell the two apart, nor must the headers.
                refused.append((answer.status_code, answer.text, answer.headers["X-Error-Message"]))
        assert "alice/hidden" not in [each.id for each in api.list_models()]
    assert len(set(refused)) == 1 and refused[0][0] == 404
    assert alice.model_info("alice/hidden").private


def test_a_read_token_reads_and_changes_nothing(hub: RunningHub, alice: HfApi) -> None:
    publish(alice, "alice/readable")
    reader = HfApi(endpoint=hub.url, token=hub.reader)
    assert reader.model_info("alice/readable").id == "alice/readable"
    attempts: list[Callable[[], object]] = [
        lambda: reader.create_repo("alice/new"),
        lambda: reader.upload_file(
            path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="alice/readable"
        ),
        lambda: reader.delete_repo("alice/readable"),
        lambda: reader.create_discussion("alice/readable", "A title", description="text"),
        lambda: reader.update_repo_settings("alice/readable", private=True),
        lambda: reader.create_tag("alice/readable", tag="v1"),
    ]
    for attempt in attempts:
        with pytest.raises(HfHubHTTPError) as failed:
            attempt()
        assert failed.value.response.status_code == 403


def test_a_gated_repo_tells_and_keeps(hub: RunningHub, alice: HfApi, bob: HfApi) -> None:
    name = f"{ORGANISATION}/gated"
    publish(alice, name, config__json=b"{}")
    alice.update_repo_settings(name, gated="manual")
    assert bob.model_info(name).gated == "manual"
    for api in (bob, HfApi(endpoint=hub.url, token=False)):
        with pytest.raises(GatedRepoError):
            api.hf_hub_download(name, "config.json")
        with pytest.raises(GatedRepoError):
            api.auth_check(name)
    post(hub, f"/api/models/{name}/ask-access", hub.other, {"fields": {"why": "curious"}})
    (request,) = alice.list_pending_access_requests(name)
    assert (request.username, request.status, request.fields) == (
        "bob",
        "pending",
        {"why": "curious"},
    )
    with pytest.raises(HfHubHTTPError) as failed:
        bob.accept_access_request(name, "bob")
    assert failed.value.response.status_code == 403
    alice.accept_access_request(name, request_id=request.request_id)
    assert [each.username for each in alice.list_accepted_access_requests(name)] == ["bob"]
    bob.auth_check(name)
    assert bob.file_exists(name, "config.json")
    alice.reject_access_request(name, "bob", rejection_reason="Changed our minds.")
    with pytest.raises(GatedRepoError):
        bob.auth_check(name)
    alice.cancel_access_request(name, "bob")
    assert list(alice.list_rejected_access_requests(name)) == []
    alice.grant_access(name, "bob")
    bob.auth_check(name)
    calls: list[Callable[[], object]] = [
        lambda: alice.grant_access(name, "bob"),
        lambda: alice.grant_access(name, "nobody"),
        lambda: alice.accept_access_request(name, "bob"),
    ]
    for call in calls:
        with pytest.raises(HfHubHTTPError) as failed:
            call()
        assert failed.value.response.status_code in (400, 404)


def test_likes_are_listed_both_ways(hub: RunningHub, alice: HfApi, bob: HfApi) -> None:
    publish(alice, "alice/liked")
    for token in (hub.token, hub.other):
        post(hub, "/api/models/alice/liked/like", token, {})
    assert {each.username for each in bob.list_repo_likers("alice/liked")} == {"alice", "bob"}
    assert bob.list_liked_repos("alice").models == ["alice/liked"]
    alice.unlike("alice/liked")
    assert alice.list_liked_repos().models == []
    assert bob.model_info("alice/liked").likes == 1


def test_a_discussion_runs_its_course(alice: HfApi, bob: HfApi) -> None:
    publish(alice, "alice/talk")
    opened = bob.create_discussion("alice/talk", "How much memory?", description="**Please**")
    assert (opened.num, opened.status, opened.author, opened.is_pull_request) == (
        1,
        "open",
        "bob",
        False,
    )
    (first,) = opened.events
    assert isinstance(first, DiscussionComment) and "<strong>Please</strong>" in first.rendered
    edited = bob.edit_discussion_comment("alice/talk", 1, first.id, "Please tell")
    assert edited.edited and edited.content == "Please tell" and edited.number_of_edits == 1
    answer = alice.comment_discussion("alice/talk", 1, "480 MB")
    renamed = bob.rename_discussion("alice/talk", 1, "How much memory does it take?")
    assert isinstance(renamed, DiscussionTitleChange) and renamed.old_title == "How much memory?"
    closed = alice.change_discussion_status("alice/talk", 1, "closed", comment="Answered.")
    assert isinstance(closed, DiscussionStatusChange) and closed.new_status == "closed"
    with pytest.warns(UserWarning, match="irreversible"):
        hidden = alice.hide_discussion_comment("alice/talk", 1, answer.id)
    assert hidden.hidden and "480" not in hidden.content
    details = alice.get_discussion_details("alice/talk", 1)
    assert [each.type for each in details.events] == [
        "comment",
        "comment",
        "title-change",
        "comment",
        "status-change",
    ]
    assert (details.title, details.status) == ("How much memory does it take?", "closed")
    with pytest.raises(HfHubHTTPError) as failed:
        bob.edit_discussion_comment("alice/talk", 1, details.events[3].id, "not mine")
    assert failed.value.response.status_code == 403
    for number in range(60):
        alice.create_discussion("alice/talk", f"Question {number}", description="?")
    listed = list(alice.get_repo_discussions("alice/talk"))
    assert [each.num for each in listed] == list(range(61, 0, -1))
    assert [each.num for each in alice.get_repo_discussions("alice/talk", author="bob")] == [1]
    assert len(list(alice.get_repo_discussions("alice/talk", discussion_status="closed"))) == 1


def test_a_pull_request_is_pushed_to_compared_and_merged(alice: HfApi, bob: HfApi) -> None:
    publish(alice, "alice/pulled")
    made = bob.create_pull_request("alice/pulled", "Add a config", description="For loading")
    assert (made.status, made.git_reference, made.target_branch) == (
        "draft",
        "refs/pr/1",
        "refs/heads/main",
    )
    bob.create_commit(
        "alice/pulled",
        [CommitOperationAdd("config.json", b'{"a": 1}\n')],
        commit_message="Add config.json",
        revision="refs/pr/1",
    )
    details = alice.get_discussion_details("alice/pulled", 1)
    assert isinstance(details.events[-1], DiscussionCommit)
    assert details.events[-1].summary == "Add config.json"
    assert (
        details.diff is not None and '+{"a": 1}' in details.diff and not details.conflicting_files
    )
    with pytest.raises(HfHubHTTPError, match="open"):
        alice.merge_pull_request("alice/pulled", 1)
    bob.change_discussion_status("alice/pulled", 1, "open")
    with pytest.raises(HfHubHTTPError) as failed:
        bob.merge_pull_request("alice/pulled", 1)
    assert failed.value.response.status_code == 403
    alice.merge_pull_request("alice/pulled", 1, comment="Thanks")
    merged = alice.get_discussion_details("alice/pulled", 1)
    assert merged.status == "merged"
    assert merged.merge_commit_oid == alice.model_info("alice/pulled").sha
    assert "config.json" in alice.list_repo_files("alice/pulled")
    assert merged.diff == details.diff


def test_a_pull_request_names_the_files_in_conflict(alice: HfApi, bob: HfApi) -> None:
    publish(alice, "alice/conflict")
    card = CommitOperationAdd("README.md", b"# theirs\n")
    url = bob.create_commit("alice/conflict", [card], commit_message="Theirs", create_pr=True)
    assert url.pr_num == 1
    publish(alice, "alice/conflict", card="# ours\n")
    details = alice.get_discussion_details("alice/conflict", 1)
    assert (details.status, details.conflicting_files) == ("open", ["README.md"])
    with pytest.raises(HfHubHTTPError, match=r"README\.md"):
        alice.merge_pull_request("alice/conflict", 1)
    assert alice.get_discussion_details("alice/conflict", 1).status == "open"


def test_lists_answer_as_the_client_asks(alice: HfApi) -> None:
    publish(alice, f"{ORGANISATION}/listed", config__json=b'{"model_type": "qwen3"}')
    parameters: dict[str, Any] = {
        "author": ORGANISATION,
        "search": "list",
        "filter": ["license:apache-2.0", "qwen3"],
        "pipeline_tag": "text-generation",
        "gated": False,
    }
    (found,) = alice.list_models(**parameters, full=True, cardData=True)
    assert found.id == f"{ORGANISATION}/listed" and found.card_data is not None
    assert found.card_data.license == "apache-2.0" and "zh" in (found.tags or [])
    assert found.siblings is not None and "config.json" in [
        each.rfilename for each in found.siblings
    ]
    assert found.sha == alice.model_info(found.id).sha
    (expanded,) = alice.list_models(**parameters, expand=["downloadsAllTime", "config", "sha"])
    assert expanded.downloads_all_time == 0 and expanded.config == {"model_type": "qwen3"}
    assert expanded.likes is None
    for sort in ("created_at", "downloads", "last_modified", "likes", "trending_score"):
        assert len(list(alice.list_models(sort=sort, limit=2))) == 2
    assert list(alice.list_models(**parameters | {"filter": "license:mit"})) == []
    assert list(alice.list_models(num_parameters="min:1B")) == []


def test_paging_follows_links_over_every_repo(hub: RunningHub, alice: HfApi) -> None:
    for number in range(7):
        alice.create_repo(f"alice/set{number}", repo_type="dataset")
    url: str | None = f"{hub.url}/api/datasets?limit=3"
    seen: list[str] = []
    while url is not None:
        with urllib.request.urlopen(url) as answer:
            seen += [each["id"] for each in json.load(answer)]
            link = answer.headers.get("Link")
        url = re.findall(r"<(.*?)>", link)[0] if link else None
    assert sorted(seen) == [f"alice/set{number}" for number in range(7)]
    assert len(list(alice.list_datasets(search="set"))) == 7
    for wrong in ("cursor=x", "limit=0", "limit=-1", "limit=x", "sort=x", "num_parameters=x"):
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(f"{hub.url}/api/datasets?{wrong}")
        assert failed.value.code == 400


def test_a_download_shows_in_the_statistics(hub: RunningHub, alice: HfApi, tmp_path: Path) -> None:
    publish(alice, "alice/counted", config__json=b"{}")
    for _ in range(2):
        alice.snapshot_download("alice/counted", local_dir=tmp_path / "a", force_download=True)
    hub.stop()
    hub.start()
    assert alice.model_info("alice/counted").downloads == 1


class _Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_hostile_card_runs_and_loads_nothing(hub: RunningHub, alice: HfApi) -> None:
    alice.create_repo("alice/hostile")
    operation = CommitOperationAdd("README.md", HOSTILE.encode())
    alice.create_commit("alice/hostile", [operation], commit_message="<script>alert(0)</script>")
    alice.create_discussion("alice/hostile", "<script>alert(1)</script>", description=HOSTILE)
    pages = ("", "/discussions/1", "/commits/main", "/commit/main")
    for path in (*(f"/alice/hostile{page}" for page in pages), "/alice", "/", "/tree"):
        with urllib.request.urlopen(hub.url + path) as answer:
            page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy
        elements = _Elements()
        elements.feed(page)
        for tag, attributes in elements.found:
            assert tag not in {"script", "iframe", "object", "base", "math", "style", "embed"}
            assert not any(name.startswith("on") or name == "style" for name in attributes), tag
            for name in ("src", "href", "action"):
                if name not in attributes:
                    continue
                value = (attributes[name] or "").strip().lower()
                assert not value.startswith(("javascript:", "data:", "//")), value
                if name == "src" or tag == "link":
                    assert value.startswith("/"), f"{path} loads {value}"
        card = page.partition('class="card"')[2].partition("</article>")[0]
        assert '"/logout"' not in card


def test_pages_show_a_session_what_it_may_see_and_take_no_foreign_form(
    hub: RunningHub, alice: HfApi
) -> None:
    publish(alice, "alice/inside")
    alice.update_repo_settings("alice/inside", private=True)
    assert status(hub, "/alice/inside") == 404
    assert status(hub, "/login", form=f"token={hub.token}&next=/alice/inside") == 403
    cookie = session(hub, hub.token)
    assert status(hub, "/alice/inside", cookie=cookie) == 200
    assert status(hub, "/alice/inside/resolve/main/README.md", cookie=cookie) == 200
    assert status(hub, "/alice/inside", cookie=session(hub, hub.other)) == 404
    own = {"Origin": hub.url}
    form = "title=From+a+page&comment=Hello"
    assert status(hub, "/alice/inside/discussions", cookie=cookie, form=form) == 403
    foreign = {"Origin": "https://evil.example"}
    assert status(hub, "/alice/inside/like", cookie=cookie, form="", headers=foreign) == 403
    assert status(hub, "/alice/inside/discussions", cookie=cookie, form=form, headers=own) == 200
    assert [each.title for each in alice.get_repo_discussions("alice/inside")] == ["From a page"]
    assert status(hub, "/alice/inside/like", cookie=cookie, form="", headers=own) == 200
    assert alice.model_info("alice/inside").likes == 1
    # A session reads; it is no token for the API.
    assert status(hub, "/api/models/alice/inside/like", cookie=cookie, form="", headers=own) != 200
    assert alice.model_info("alice/inside").likes == 1


def test_a_pull_request_and_a_request_for_access_are_decided_on_pages(
    hub: RunningHub, alice: HfApi, bob: HfApi
) -> None:
    name, own = "alice/decided", {"Origin": hub.url}
    publish(alice, name)
    card = CommitOperationAdd("README.md", CARD.replace("A model", "Better").encode())
    bob.create_commit(name, [card], commit_message="Better words", create_pr=True)
    owner, guest = session(hub, hub.token), session(hub, hub.other)
    page = f"/{name}/discussions/1"
    assert status(hub, f"{page}/merge", cookie=guest, form="", headers=own) == 403
    assert status(hub, f"{page}/closed", cookie=guest, form="", headers=own) == 200
    assert status(hub, f"{page}/merge", cookie=owner, form="", headers=own) == 409
    assert status(hub, f"{page}/open", cookie=owner, form="", headers=own) == 200
    assert status(hub, f"{page}/merge", cookie=owner, form="", headers=own) == 200
    assert alice.get_discussion_details(name, 1).status == "merged"
    assert alice.model_info(name).sha == alice.get_discussion_details(name, 1).merge_commit_oid
    alice.update_repo_settings(name, gated="manual")
    assert status(hub, f"/{name}/ask-access", cookie=guest, form="", headers=own) == 200
    assert status(hub, f"/{name}/access", cookie=guest) == 403
    assert status(hub, f"/{name}/access", cookie=owner) == 200
    accept = f"/{name}/access/accepted"
    assert status(hub, accept, cookie=guest, form="user=bob", headers=own) == 403
    assert status(hub, accept, cookie=owner, form="user=bob", headers=own) == 200
    bob.auth_check(name)


def test_the_family_tree_is_a_page_an_svg_and_json(hub: RunningHub, alice: HfApi) -> None:
    publish(alice, "alice/parent")
    child = CARD.replace("tags:", "base_model: alice/parent\nbase_model_relation: finetune\ntags:")
    publish(alice, "alice/child", card=child)
    counted = alice.model_info("alice/parent", expand=["childrenModelCount", "downloadsAllTime"])
    assert (counted.children_model_count, counted.downloads_all_time) == (1, 0)
    checked = alice.model_info("alice/child", securityStatus=True).security_repo_status
    assert checked is not None and checked["filesWithIssues"] == []
    with urllib.request.urlopen(f"{hub.url}/tree.json?model=alice/child") as answer:
        (tree,) = json.load(answer)["trees"]
    assert tree["member"]["name"] == "alice/parent"
    assert [each["member"]["name"] for each in tree["children"]] == ["alice/child"]
    assert tree["children"][0]["member"]["parents"][0]["source"] == "card"
    with urllib.request.urlopen(f"{hub.url}/tree.svg") as answer:
        drawing = answer.read().decode()
    assert drawing.startswith("<svg") and "alice/child" in drawing
    assert status(hub, "/tree?model=alice/child") == 200
    assert status(hub, "/tree?model=no/such") == 404


def test_the_addresses_that_a_push_answers_with_show_what_it_changed(
    hub: RunningHub, alice: HfApi
) -> None:
    publish(alice, "alice/pushed")
    made = alice.upload_file(
        path_or_fileobj=b'{"heads": 4}\n', path_in_repo="config.json", repo_id="alice/pushed"
    )
    page = read(made.commit_url)
    assert "{&#34;heads&#34;: 4}" in page and "1 file" in page and made.commit_message in page
    assert f"/alice/pushed/commit/{made.oid}" in read(f"{hub.url}/alice/pushed/commits/main")
    assert read(f"{hub.url}/alice/pushed/blob/main/config.json") == '{"heads": 4}\n'
    alice.update_repo_settings("alice/pushed", gated="manual")
    assert "heads" not in read(made.commit_url)
    assert status(hub, "/alice/pushed/blob/main/config.json") == 403
    assert status(hub, "/alice/pushed/commit/" + "0" * 40) == 404


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def post(hub: RunningHub, path: str, token: str, body: object) -> None:
    request = urllib.request.Request(
        hub.url + path,
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def status(
    hub: RunningHub,
    path: str,
    *,
    cookie: str | None = None,
    form: str | None = None,
    headers: dict[str, str] | None = None,
) -> int:
    request = urllib.request.Request(
        hub.url + path, data=None if form is None else form.encode(), headers=headers or {}
    )
    if cookie is not None:
        request.add_header("Cookie", cookie)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def session(hub: RunningHub, token: str) -> str:
    request = urllib.request.Request(
        hub.url + "/login", data=f"token={token}&next=/".encode(), headers={"Origin": hub.url}
    )

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: object) -> None:
            return None

    try:
        urllib.request.build_opener(Stay).open(request)
    except urllib.error.HTTPError as answer:
        cookie: str = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite" in cookie
        return cookie.partition(";")[0]
    raise AssertionError("the login did not lead on")
