"""The rule of who may do what, over every combination that matters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.hub.accounts.authority import refuse, session_cookie, session_token
from qwenstack.hub.accounts.identity import TOKEN_ROLES, Identity, Role, Scope, TokenRole, UsedToken
from qwenstack.hub.accounts.rights import Action, may, may_create, may_manage
from qwenstack.hub.accounts.tokens import TOKEN_FORM, draw_secret, parse_scope
from qwenstack.hub.errors import BadRequest, Forbidden, GatedRepo, RepoNotFound, Unauthorized
from qwenstack.hub.registry.repos import Repo

NAMES = ("alice", "bob", "acme")
ACTIONS: tuple[Action, ...] = ("see", "read", "discuss", "write", "admin")
names = st.sampled_from(NAMES)

scopes = st.lists(
    st.builds(
        Scope,
        name=st.one_of(names, names.map(lambda each: f"{each}/model")),
        right=st.sampled_from(("read", "discuss", "write", "admin")),
        kind=st.sampled_from((None, "model", "dataset")),
    ),
    max_size=3,
).map(tuple)


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    account = draw(st.one_of(st.none(), st.sampled_from(("alice", "bob"))))
    if account is None:
        return Identity(guest_sees_public=draw(st.booleans()))
    role: TokenRole = draw(st.sampled_from(TOKEN_ROLES))
    return Identity(
        account=account,
        name=account.title(),
        operator=draw(st.booleans()),
        organisations=draw(
            st.dictionaries(
                st.just("acme"), st.sampled_from(("read", "contributor", "write", "admin"))
            )
        ),
        token=UsedToken(
            id="tok_1",
            name="t",
            role=role,
            scopes=draw(scopes) if role == "fineGrained" else (),
        ),
    )


@st.composite
def repos(draw: st.DrawFn) -> Repo:
    return Repo(
        id="repo_1",
        kind=draw(st.sampled_from(("model", "dataset"))),
        name=draw(names).title() + "/Model",
        private=draw(st.booleans()),
        gated=draw(st.sampled_from(("", "auto", "manual"))),
        created_by=draw(st.sampled_from(("alice", "bob"))),
        created_us=0,
        updated_us=0,
        downloads=0,
        likes=0,
        summary="{}",
    )


def belongs(identity: Identity, repo: Repo) -> bool:
    """Said differently from the code: who has anything to do with the repo at all."""
    if identity.account is None:
        return False
    return identity.operator or repo.namespace.lower() in (
        identity.account,
        *identity.organisations,
    )


@given(identities(), repos(), st.sampled_from(ACTIONS), st.booleans())
def test_no_combination_lets_a_stranger_learn_of_a_private_repo(
    identity: Identity, repo: Repo, action: Action, accepted: bool
) -> None:
    if not repo.private or belongs(identity, repo):
        return
    decision = may(identity, repo, action, accepted=accepted)
    assert not decision.allowed and decision.as_not_found
    with pytest.raises(RepoNotFound):
        refuse(decision)


@given(identities(), repos(), st.sampled_from(("discuss", "write", "admin")), st.booleans())
def test_no_combination_lets_a_read_token_or_nobody_change_anything(
    identity: Identity, repo: Repo, action: Action, accepted: bool
) -> None:
    if identity.token is None or identity.token.role == "read":
        assert not may(identity, repo, action, accepted=accepted).allowed


@given(identities(), repos(), st.sampled_from(ACTIONS), st.booleans())
def test_a_fine_grained_token_never_reaches_beyond_its_scopes(
    identity: Identity, repo: Repo, action: Action, accepted: bool
) -> None:
    token = identity.token
    if token is None or token.role != "fineGrained":
        return
    if not may(identity, repo, action, accepted=accepted).allowed:
        return
    covering = [each for each in token.scopes if each.covers(repo.kind, repo.name)]
    public = not repo.private and not (repo.gated and action == "read")
    if action in ("see", "read") and public:
        return
    assert covering
    order = ("see", "read", "discuss", "write", "admin")
    assert max(order.index(each.right) for each in covering) >= order.index(action)


@given(identities(), repos(), st.sampled_from(ACTIONS), st.booleans())
def test_a_fine_grained_token_may_nothing_that_a_write_token_of_its_account_may_not(
    identity: Identity, repo: Repo, action: Action, accepted: bool
) -> None:
    if identity.account is None:
        return
    whole = Identity(
        account=identity.account,
        name=identity.name,
        operator=identity.operator,
        organisations=identity.organisations,
        token=UsedToken(id="tok_2", name="w", role="write"),
    )
    if may(identity, repo, action, accepted=accepted).allowed:
        assert may(whole, repo, action, accepted=accepted).allowed


@given(identities(), repos(), st.sampled_from(ACTIONS))
def test_the_files_of_a_gated_repo_are_read_by_no_stranger_before_acceptance(
    identity: Identity, repo: Repo, action: Action
) -> None:
    if not repo.gated or belongs(identity, repo) or action == "see":
        return
    decision = may(identity, repo, action)
    assert not decision.allowed
    if not repo.private and identity.account is not None:
        with pytest.raises(GatedRepo):
            refuse(decision)


@given(identities(), repos())
def test_whoever_may_more_may_less(identity: Identity, repo: Repo) -> None:
    allowed = [may(identity, repo, action).allowed for action in ACTIONS]
    assert allowed == sorted(allowed, reverse=True)


@given(identities(), names)
def test_only_members_owners_and_operators_make_repos(identity: Identity, namespace: str) -> None:
    decision = may_create(identity, namespace)
    if decision.allowed:
        assert identity.token is not None and identity.token.role != "read"
        assert (
            identity.operator
            or identity.account == namespace
            or identity.organisations.get(namespace) in ("contributor", "write", "admin")
        )
    elif identity.account is None:
        with pytest.raises(Unauthorized):
            refuse(decision)
    else:
        with pytest.raises(Forbidden):
            refuse(decision)


@pytest.mark.parametrize(
    ("role", "own", "expected"),
    [
        ("read", False, "discuss"),
        ("contributor", False, "discuss"),
        ("contributor", True, "admin"),
        ("write", False, "admin"),
        ("admin", False, "admin"),
    ],
)
def test_each_role_reaches_exactly_as_far_as_it_says(
    role: Role, own: bool, expected: Action
) -> None:
    identity = Identity(
        account="alice",
        name="Alice",
        organisations={"acme": role},
        token=UsedToken(id="t", name="t", role="write"),
    )
    repo = Repo(
        id="r",
        kind="model",
        name="Acme/m",
        private=True,
        gated="manual",
        created_by="alice" if own else "bob",
        created_us=0,
        updated_us=0,
        downloads=0,
        likes=0,
        summary="{}",
    )
    reached = [action for action in ACTIONS if may(identity, repo, action).allowed]
    assert reached[-1] == expected
    assert may_manage(identity, "Acme").allowed is (role == "admin")


def test_a_closed_hub_shows_a_guest_nothing_and_an_open_one_only_what_is_public() -> None:
    repo = Repo(
        id="r",
        kind="model",
        name="acme/m",
        private=False,
        gated="",
        created_by="bob",
        created_us=0,
        updated_us=0,
        downloads=0,
        likes=0,
        summary="{}",
    )
    assert may(Identity(), repo, "see").as_not_found
    guest = Identity(guest_sees_public=True)
    assert may(guest, repo, "read").allowed
    with pytest.raises(Unauthorized):
        refuse(may(guest, repo, "write"))


def test_a_drawn_token_has_the_form_that_clients_keep() -> None:
    secrets = {draw_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(TOKEN_FORM.fullmatch(each) and len(each) >= 37 for each in secrets)


@pytest.mark.parametrize("text", ["acme", "acme=own", "=read", "a/b/c=read", "acme=", ""])
def test_a_scope_that_says_nothing_clear_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(BadRequest, match="NAMESPACE=RIGHT"):
        parse_scope(text)


def test_scopes_name_namespaces_repos_and_kinds() -> None:
    assert parse_scope("Acme=read") == Scope(name="acme", right="read")
    scope = parse_scope("datasets/acme/Set=write")
    assert scope.covers("dataset", "acme/set") and not scope.covers("model", "acme/set")


def test_a_session_is_worth_nothing_when_forged_or_over() -> None:
    secret, later = b"s" * 32, 2**62
    good = session_cookie("tok_1", later, secret)
    assert session_token(good, secret) == "tok_1"
    assert session_token(good.replace("tok_1", "tok_2"), secret) is None
    assert session_token(good, b"t" * 32) is None
    assert session_token(session_cookie("tok_1", 1, secret), secret) is None
    assert session_token("", secret) is None and session_token("." * 300, secret) is None
    assert session_token("é.1.ü", secret) is None
