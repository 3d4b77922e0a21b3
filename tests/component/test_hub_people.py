"""Accounts, tokens, gates, likes, downloads, discussions and lists, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, Engine, insert, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub import discussions, downloads, gates, likes, listing
from qwenstack.hub.accounts import directory, tokens
from qwenstack.hub.accounts.authority import Accounts, session_cookie
from qwenstack.hub.accounts.first_start import ensure_operator
from qwenstack.hub.accounts.identity import Identity, Scope
from qwenstack.hub.downloads import Downloads
from qwenstack.hub.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GatedRepo,
    NotFound,
    RepoNotFound,
    TooMany,
    Unauthorized,
)
from qwenstack.hub.family import Member, member_of, read_family, shown_to
from qwenstack.hub.listing import Place, Question
from qwenstack.hub.quotas import QuotaExceeded
from qwenstack.hub.recorded import read_kin
from qwenstack.hub.registry.repos import (
    Kind,
    Repo,
    change_settings,
    create_repo,
    read_repo,
    write_summary,
)
from qwenstack.hub.summaries import Lineage, note_lineage
from qwenstack.storage import hub_tables
from qwenstack.storage.database import open_database
from tests.migrated import new_database

SECRET = b"s" * 32


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = new_database(tmp_path / "hub.db")
    with engine.begin() as connection:
        for name in ("Alice", "Bob", "Carol"):
            directory.create_account(connection, name=name)
        directory.create_account(connection, name="Acme", kind="organisation")
        directory.set_role(connection, "acme", "alice", "admin")
    yield engine
    engine.dispose()


def publish(
    database: Engine,
    name: str,
    *,
    kind: Kind = "model",
    private: bool = False,
    summary: dict[str, object] | None = None,
) -> Repo:
    with database.begin() as connection:
        repo = create_repo(
            connection, kind, name, private=private, created_by="Alice", at_us=now_us()
        )
        write_summary(connection, repo.id, msgspec.json.encode(summary or {}).decode())
        return read_repo(connection, repo.id)


def token_of(database: Engine, account: str, **more: object) -> str:
    with database.begin() as connection:
        made = tokens.create_token(
            connection,
            account=account,
            name="tests",
            **{"role": "write", **more},  # type: ignore[arg-type]
        )
    return made.secret


def test_a_token_is_kept_as_a_digest_and_stops_when_revoked_or_over(database: Engine) -> None:
    accounts = Accounts(database, SECRET)
    secret = token_of(database, "alice")
    identity = accounts.identify(secret)
    assert (identity.account, identity.organisations) == ("alice", {"acme": "admin"})
    with database.begin() as connection:
        (kept,) = tokens.list_tokens(connection, "alice")
        assert secret not in str(connection.execute(select(hub_tables.tokens)).all())
        assert kept.last_used_us is not None
        tokens.revoke_token(connection, kept.id)
    with pytest.raises(Unauthorized):
        accounts.identify(secret)
    brief = token_of(database, "bob", expires_us=now_us() + 60_000_000)
    assert accounts.identify(brief).account == "bob"
    with database.begin() as connection:
        connection.execute(update(hub_tables.tokens).values(expires_us=now_us() - 1))
    with pytest.raises(Unauthorized):
        accounts.identify(brief)
    for nonsense in ("", "hf_", "hf_" + "a" * 34, "x" * 400, "hf_" + "é" * 34):
        with pytest.raises(Unauthorized):
            accounts.identify(nonsense)


def test_a_session_ends_with_its_token(database: Engine) -> None:
    accounts = Accounts(database, SECRET)
    secret = token_of(database, "alice")
    token = accounts.identify(secret).token
    assert token is not None
    cookie = session_cookie(token.id, now_us() + 60_000_000, SECRET)
    assert accounts.identify(None, cookie).account == "alice"
    with database.begin() as connection:
        tokens.revoke_token(connection, token.id)
    assert accounts.identify(None, cookie).account is None
    assert accounts.identify(None, "forged").account is None


def test_only_the_first_start_makes_an_operator(database: Engine) -> None:
    with database.begin() as connection:
        made = ensure_operator(connection)
        assert made is not None
        assert ensure_operator(connection) is None
    assert Accounts(database, SECRET).identify(made.secret).rules


def test_an_organisation_keeps_an_admin(database: Engine) -> None:
    with database.begin() as connection:
        with pytest.raises(Conflict, match="only admin"):
            directory.remove_member(connection, "acme", "alice")
        with pytest.raises(Conflict, match="only admin"):
            directory.set_role(connection, "acme", "alice", "read")
        directory.set_role(connection, "acme", "bob", "admin")
        directory.remove_member(connection, "acme", "alice")
        assert [each.account.key for each in directory.members(connection, "acme")] == ["bob"]


@pytest.mark.parametrize("name", ["api", "a/b", "", "-a", "a..b", "models", "x" * 97, "é", "a.git"])
def test_names_that_would_not_survive_in_a_path_are_refused(database: Engine, name: str) -> None:
    with database.begin() as connection, pytest.raises(BadRequest, match="name"):
        directory.create_account(connection, name=name)


def test_names_differ_by_more_than_case(database: Engine) -> None:
    with database.begin() as connection, pytest.raises(Conflict):
        directory.create_account(connection, name="ALICE")


def test_a_gate_opens_to_whoever_was_accepted_and_shuts_again(database: Engine) -> None:
    accounts = Accounts(database, SECRET, anonymous_read=True)
    bob = accounts.identify(token_of(database, "bob"))
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        with pytest.raises(BadRequest, match="not gated"):
            gates.ask(connection, repo, "bob")
        change_settings(connection, repo, private=None, gated="manual")
        repo = read_repo(connection, repo.id)
        accounts.check(bob, repo, "see")
        assert gates.ask(connection, repo, "bob").status == "pending"
    with pytest.raises(GatedRepo):
        accounts.check(bob, repo, "read")
    with database.begin() as connection:
        gates.decide(connection, repo, "Bob", "accepted", by="alice")
        with pytest.raises(NotFound, match="already"):
            gates.decide(connection, repo, "Bob", "accepted", by="alice")
    accounts.check(bob, repo, "read")
    with database.begin() as connection:
        gates.decide(connection, repo, "Bob", "rejected", by="alice", reason="no")
        # Asking again changes nothing.
        assert gates.ask(connection, repo, "bob").status == "rejected"
        with pytest.raises(NotFound):
            gates.decide(connection, repo, "carol", "accepted", by="alice")
    with pytest.raises(GatedRepo):
        accounts.check(bob, repo, "read")


def test_an_automatic_gate_accepts_and_keeps_the_name(database: Engine) -> None:
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        change_settings(connection, repo, private=None, gated="auto")
        repo = read_repo(connection, repo.id)
        assert gates.ask(connection, repo, "bob", {"company": "Bobco"}).status == "accepted"
        ((request, account),) = gates.list_requests(connection, repo, "accepted", after="", limit=9)
        assert (account.name, request.fields) == ("Bob", {"company": "Bobco"})


def test_who_is_let_in_unasked_has_asked_for_nothing_until_they_do(database: Engine) -> None:
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        change_settings(connection, repo, private=None, gated="manual")
        repo = read_repo(connection, repo.id)
        assert not gates.grant(connection, repo, "bob", by="alice").asked
        assert not gates.decide(connection, repo, "bob", "rejected", by="alice").asked
        assert not gates.grant(connection, repo, "bob", by="alice").asked
        later = gates.ask(connection, repo, "bob", {"company": "Bobco"})
        assert (later.asked, later.status, later.fields) == (True, "accepted", {"company": "Bobco"})
        assert gates.find_request(connection, repo, "bob") == later


def test_a_like_counts_once_and_can_be_taken_back(database: Engine) -> None:
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        for account in ("alice", "alice", "bob"):
            likes.like(connection, repo.id, account)
        assert read_repo(connection, repo.id).likes == 2
        likes.unlike(connection, repo.id, "bob")
        likes.unlike(connection, repo.id, "bob")
        assert read_repo(connection, repo.id).likes == 1


def test_a_download_counts_once_a_client_repo_and_day(database: Engine) -> None:
    model, other = publish(database, "acme/model"), publish(database, "acme/other")
    data = publish(database, "acme/data", kind="dataset")
    counter = Downloads(database, flush_s=0.01)
    for _ in range(3):
        counter(model, "config.json", None, "10.0.0.1 hf/2")
        counter(model, "model-00001-of-00002.safetensors", None, "10.0.0.1 hf/2")
    counter(model, "config.json", None, "10.0.0.2 hf/2")
    counter(model, "config.json", "bob", "10.0.0.2 hf/2")
    counter(model, "README.md", "carol", "x")
    counter(model, "sub/config.json", "carol", "x")
    counter(other, "q4.gguf", None, "10.0.0.1 hf/2")
    counter(data, "README.md", None, "10.0.0.1 hf/2")
    counter(data, "train.parquet", None, "10.0.0.1 hf/2")
    counter.close()
    with database.begin() as connection:
        totals = downloads.all_time(connection, [model.id, other.id, data.id])
        assert totals == {model.id: 3, other.id: 1, data.id: 1}
        assert read_repo(connection, model.id).downloads == 3
        assert downloads.days(connection, model.id, 7)[-1][1] == 3


def test_downloads_of_the_last_thirty_days_forget_older_ones(database: Engine) -> None:
    repo = publish(database, "acme/model")
    long_ago = (datetime.now(UTC).date() - timedelta(days=40)).isoformat()
    with database.begin() as connection:
        connection.execute(
            insert(hub_tables.downloads).values(repo_id=repo.id, day=long_ago, count=1000)
        )
    counter = Downloads(database, flush_s=0.01)
    counter(repo, "config.json", "bob", "")
    counter.close()
    with database.begin() as connection:
        assert read_repo(connection, repo.id).downloads == 1
        assert downloads.all_time(connection, [repo.id]) == {repo.id: 1001}


def test_counting_never_fails_its_caller_when_the_database_is_gone(tmp_path: Path) -> None:
    engine = new_database(tmp_path / "hub.db")
    repo = publish(engine, "acme/model")
    counter = Downloads(engine, flush_s=0.01)
    with engine.begin():
        threads = [
            threading.Thread(target=counter, args=(repo, "config.json", None, f"client {number}"))
            for number in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=5)
            assert not thread.is_alive(), "a count waits for the database"
    counter.close()
    with engine.begin() as connection:
        assert downloads.all_time(connection, [repo.id]) == {repo.id: 50}
    engine.dispose()


def test_discussions_are_numbered_without_gaps_by_writers_at_once(database: Engine) -> None:
    repo = publish(database, "acme/model")

    def begin(name: str) -> None:
        with database.begin() as connection:
            discussions.open_discussion(
                connection, repo_id=repo.id, author=name, title="A question", description="?"
            )

    threads = [threading.Thread(target=begin, args=(f"user{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.begin() as connection:
        found = discussions.list_discussions(connection, repo.id)
    assert [each.number for each in found.discussions] == list(range(8, 0, -1))


def test_one_author_cannot_flood_a_repo(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = publish(database, "acme/model")
    monkeypatch.setattr(discussions, "OPEN_MAX", 3)

    def begin(connection: Connection, author: str) -> discussions.Discussion:
        return discussions.open_discussion(
            connection, repo_id=repo.id, author=author, title="Hello", description="!"
        )

    with database.begin() as connection:
        first, _, _ = (begin(connection, "bob") for _ in range(3))
        with pytest.raises(TooMany, match="close some"):
            begin(connection, "bob")
        assert begin(connection, "carol").number == 4
        discussions.change_status(connection, first, author="bob", status="closed")
        assert begin(connection, "bob").number == 5


def test_a_hidden_comment_is_gone_from_the_database(database: Engine) -> None:
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        talk = discussions.open_discussion(
            connection, repo_id=repo.id, author="bob", title="Hello", description="a first secret"
        )
        (event,) = discussions.read_events(connection, talk)
        discussions.edit_comment(connection, talk, event.id, author="bob", text="another secret")
        discussions.hide_comment(connection, talk, event.id.upper(), by="alice")
        assert "secret" not in str(connection.execute(select(hub_tables.discussion_events)).all())
        with pytest.raises(Conflict):
            discussions.edit_comment(connection, talk, event.id, author="bob", text="again")


def test_a_discussion_refuses_what_no_client_should_send(database: Engine) -> None:
    repo = publish(database, "acme/model")
    with database.begin() as connection:
        talk = discussions.open_discussion(
            connection, repo_id=repo.id, author="bob", title="Hello", description=""
        )
        attempts: list[Callable[[], object]] = [
            lambda: discussions.rename(connection, talk, author="bob", title="ab"),
            lambda: discussions.rename(connection, talk, author="bob", title="x" * 201),
            lambda: discussions.change_status(connection, talk, author="bob", status="merged"),
            lambda: discussions.add_comment(connection, talk, author="bob", text=" "),
            lambda: discussions.add_comment(connection, talk, author="bob", text="x" * 65_537),
        ]
        for attempt in attempts:
            with pytest.raises(BadRequest):
                attempt()
        with pytest.raises(Conflict, match="already"):
            discussions.change_status(connection, talk, author="bob", status="open")
        with pytest.raises(NotFound):
            discussions.find_discussion(connection, repo.id, 2**40)


def names(found: listing.Listed) -> list[str]:
    return [repo.name for repo in found.repos]


def ask(
    database: Engine,
    identity: Identity,
    *,
    limit: int = 100,
    after: Place | None = None,
    **question: object,
) -> listing.Listed:
    asked = msgspec.convert({"kind": "model", **question}, Question)
    with database.connect().execution_options(read_only=True) as connection:
        return listing.list_repos(connection, identity, asked, limit=limit, after=after)


GUEST = Identity(guest_sees_public=True)


def test_a_list_shows_private_repos_to_their_own_people_only(database: Engine) -> None:
    publish(database, "acme/open")
    publish(database, "acme/secret", private=True)
    publish(database, "alice/secret", private=True)
    accounts = Accounts(database, SECRET)
    alice = accounts.identify(token_of(database, "alice"))
    bob = accounts.identify(token_of(database, "bob"))
    scoped = accounts.identify(
        token_of(
            database,
            "alice",
            role="fineGrained",
            scopes=(Scope(name="acme/secret", right="read"),),
        )
    )
    assert names(ask(database, GUEST)) == names(ask(database, bob)) == ["acme/open"]
    assert set(names(ask(database, alice))) == {"acme/open", "acme/secret", "alice/secret"}
    assert set(names(ask(database, scoped))) == {"acme/open", "acme/secret"}
    assert names(ask(database, bob, search=["secret"])) == []
    with pytest.raises(RepoNotFound), database.begin() as connection:
        accounts.find(connection, bob, "model", "acme/secret", "see")


def test_filters_hold_together(database: Engine) -> None:
    publish(
        database,
        "acme/small",
        summary={
            "tags": ["transformers", "safetensors", "license:apache-2.0", "en"],
            "pipeline_tag": "text-generation",
            "library_name": "transformers",
            "safetensors": {"total": 600_000_000, "parameters": {"BF16": 600_000_000}},
            "cardData": {"language": ["en", "zh"]},
        },
    )
    publish(
        database,
        "acme/large",
        summary={
            "tags": ["gguf", "license:other"],
            "gguf": {"total": 8_200_000_000},
            "cardData": {"language": "zh"},
        },
    )
    publish(database, "acme/100_odd", summary={"tags": [1, 2], "cardData": "no card"})

    def found(**question: object) -> set[str]:
        listed = ask(database, GUEST, **question)  # type: ignore[arg-type]
        return {name.removeprefix("acme/") for name in names(listed)}

    assert found(filters=["license:APACHE-2.0"]) == {"small"}
    assert found(filters=["transformers", "license:apache-2.0"]) == {"small"}
    assert found(filters=["transformers", "gguf"]) == set()
    assert found(pipeline_tag="text-generation") == {"small"}
    assert found(library=["Transformers"]) == {"small"}
    assert found(language=["zh"]) == {"small", "large"}
    assert found(apps=["llama.cpp"]) == {"large"} and found(apps=["nothing"]) == set()
    assert found(parameters_min=10**9) == {"large"}
    assert found(parameters_max=10**9) == {"small"}
    assert found(search=["ACME", "sma"]) == {"small"}
    assert found(search=["0_o"]) == {"100_odd"}
    assert found(search=["%"]) == set()
    assert found(author="ACME", gated=False) == {"small", "large", "100_odd"}
    assert found(gated=True) == found(author="acm") == found(served=True) == set()


@pytest.mark.parametrize("sort", ["lastModified", "createdAt", "downloads", "likes"])
@pytest.mark.parametrize("ascending", [False, True])
def test_pages_repeat_and_drop_nothing_when_repos_are_published_in_between(
    database: Engine, sort: str, ascending: bool
) -> None:
    before = [publish(database, f"acme/m{number}").name for number in range(9)]
    seen: list[str] = []
    place: Place | None = None
    for page in range(20):
        found = ask(database, GUEST, limit=2, after=place, sort=sort, ascending=ascending)
        seen += names(found)
        publish(database, f"acme/new{page}")
        place = found.next
        if place is None or len(set(before) & set(seen)) == len(before):
            break
    assert len(seen) == len(set(seen))
    assert set(before) <= set(seen)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("min:6B,max:128B", (6 * 10**9, 128 * 10**9)),
        ("min:0.6b", (600_000_000, None)),
        ("max:1.5T", (None, 1_500_000_000_000)),
        ("7B", (7 * 10**9, 7 * 10**9)),
    ],
)
def test_sizes_are_read_exactly(text: str, expected: tuple[int | None, int | None]) -> None:
    assert listing.parse_parameters(text) == expected


@pytest.mark.parametrize(
    "text", ["", "min:", "min:6X", "low:6B", "min:-6B", "1e9", "min:6B;max:7B"]
)
def test_sizes_that_say_nothing_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(BadRequest, match="min:6B"):
        listing.parse_parameters(text)


def test_making_a_repo_needs_the_right_and_a_namespace_that_exists(database: Engine) -> None:
    accounts = Accounts(database, SECRET)
    alice = accounts.identify(token_of(database, "alice"))
    assert accounts.check_namespace(alice, None) == "Alice"
    assert accounts.check_namespace(alice, "ACME") == "Acme"
    with pytest.raises(Forbidden):
        accounts.check_namespace(alice, "bob")
    with pytest.raises(Unauthorized):
        accounts.check_namespace(accounts.identify(None), "acme")
    scopes = (tokens.parse_scope("datasets/alice=write"),)
    secret = token_of(database, "alice", role="fineGrained", scopes=scopes)
    for_datasets = accounts.identify(secret)
    assert accounts.check_namespace(for_datasets, None, "dataset") == "Alice"
    with pytest.raises(Forbidden):
        accounts.check_namespace(for_datasets, None, "model")


def test_people_and_lists_hold_on_postgresql(postgres_url: str) -> None:
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        directory.create_account(connection, name="alice")
    repo = publish(engine, "alice/model", summary={"tags": ["gguf"]})
    accounts = Accounts(engine, SECRET, anonymous_read=True)
    assert accounts.identify(token_of(engine, "alice")).account == "alice"
    with engine.begin() as connection:
        likes.like(connection, repo.id, "alice")
        talk = discussions.open_discussion(
            connection, repo_id=repo.id, author="alice", title="Hello", description="there"
        )
        assert talk.number == 1 and len(discussions.read_events(connection, talk)) == 1
    counter = Downloads(engine, flush_s=0.01)
    counter(repo, "model.gguf", None, "someone")
    counter.close()
    for sort in ("lastModified", "downloads", "likes", "trendingScore"):
        found = ask(engine, GUEST, sort=sort, filters=["gguf"], search=["MODEL"])
        assert [(each.name, each.downloads, each.likes) for each in found.repos] == [
            ("alice/model", 1, 1)
        ]
        place = Place(10**18, "~")
        assert len(ask(engine, GUEST, sort=sort, after=place).repos) == 1
    engine.dispose()


def test_a_computed_lineage_goes_before_the_cards_claim(database: Engine) -> None:
    claimed = {"baseModels": {"relation": "finetune", "models": [{"id": "acme/claimed"}]}}
    repo = publish(database, "acme/child", summary=claimed | {"pipeline_tag": "text-generation"})
    publish(database, "acme/true")
    with database.begin() as connection:
        found = Lineage(parent="acme/true", relation="merge", confidence=0.97, verdict="derived")
        note_lineage(connection, repo.id, found)
        member = by_name(read_family(connection, GUEST))["acme/child"]
        assert [(each.name, each.source) for each in member.parents] == [
            ("acme/true", "weights"),
            ("acme/claimed", "card"),
        ]
        assert member.task == "text-generation" and member.parents[0].confidence == 0.97
        # A lineage that found no parent leaves the claim alone.
        note_lineage(connection, repo.id, Lineage(None, "unrelated", 0.9, "independent"))
        member = by_name(read_family(connection, GUEST))["acme/child"]
        assert [each.name for each in member.parents] == ["acme/claimed"]


def by_name(members: list[Member]) -> dict[str, Member]:
    return {member.name: member for member in members}


def test_a_computed_lineage_names_no_private_parent_to_strangers(database: Engine) -> None:
    accounts = Accounts(database, SECRET)
    alice = accounts.identify(token_of(database, "alice"))
    publish(database, "acme/secret", private=True)
    repo = publish(database, "acme/child")
    with database.begin() as connection:
        found = Lineage(parent="acme/secret", relation="finetune", confidence=1, verdict="derived")
        note_lineage(connection, repo.id, found)
        repo = read_repo(connection, repo.id)
        for viewer, parents in ((GUEST, []), (alice, ["acme/secret"])):
            members = by_name(read_family(connection, viewer))
            assert [each.name for each in members["acme/child"].parents] == parents
            (shown,) = shown_to(connection, viewer, [member_of(repo)])
            assert [each.name for each in shown.parents] == parents
            kin = read_kin(connection, viewer, repo)
            assert [each.name for each in kin.ancestors] == parents


def test_what_a_stranger_wrote_on_a_card_hides_no_fact(database: Engine) -> None:
    odd = {"license": ["a", "b"], "language": {"en": 1}, "base_model": 7}
    publish(
        database,
        "acme/odd",
        summary={"cardData": odd, "tags": ["gguf"], "gguf": {"total": 5_000_000_000}},
    )
    assert names(ask(database, GUEST, filters=["gguf"], parameters_min=10**9)) == ["acme/odd"]
    with database.begin() as connection:
        (member,) = read_family(connection, GUEST)
    assert member.parameters == 5_000_000_000 and member.licence is None


def test_an_author_fills_no_database_with_words(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with comments nor with versions of one; hiding them makes room again."""
    monkeypatch.setattr(discussions, "WORDS_BYTES_MAX", 20_000)
    repo = publish(database, "Acme/model")
    with database.begin() as connection:
        made = discussions.open_discussion(
            connection, repo_id=repo.id, author="bob", title="a flood", description=""
        )
        event = discussions.add_comment(connection, made, author="bob", text="x" * 15_000)
        discussions.edit_comment(connection, made, event.id, author="bob", text="y" * 15_000)
        with pytest.raises(QuotaExceeded, match="bob has written 20000 bytes"):
            discussions.add_comment(connection, made, author="bob", text="more")
        with pytest.raises(QuotaExceeded):
            discussions.edit_comment(connection, made, event.id, author="bob", text="more")
        discussions.add_comment(connection, made, author="carol", text="I may")
        discussions.hide_comment(connection, made, event.id, by="bob")
        discussions.add_comment(connection, made, author="bob", text="now I may")
