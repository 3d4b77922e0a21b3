"""Bundles from one hub to another, through the command line; and bundles that somebody touched."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import update

from qwenstack.cli.hub_store import export_command, fsck, gc, import_command
from qwenstack.core.instants import now_us
from qwenstack.hub.accounts.directory import create_account
from qwenstack.hub.accounts.identity import Identity, UsedToken
from qwenstack.hub.accounts.rights import may
from qwenstack.hub.bundles import (
    BundledOrigin,
    BundledRegistry,
    bundle_repos,
    restore_repos,
)
from qwenstack.hub.hub import Hub, open_hub
from qwenstack.hub.origins import Origin, list_origins, newest_origin, write_origin
from qwenstack.hub.registry.commits import Message, push, start
from qwenstack.hub.registry.manifests import Entry, Manifest, make_manifest
from qwenstack.hub.registry.operations import Add
from qwenstack.hub.registry.refs import create_ref, list_refs
from qwenstack.hub.registry.repos import (
    change_settings,
    create_repo,
    find_repo,
    move_repo,
    write_summary,
)
from qwenstack.hub.registry.revisions import HEADS, MAIN, read_files
from qwenstack.hub.store.kinds import BundleError
from qwenstack.storage import audit_log
from qwenstack.storage.hub_tables import repos
from tests.migrated import lay_database

BASE = np.random.default_rng(0).bytes(3_000_000)


def make_hub(home: Path) -> Hub:
    lay_database(home / "hub" / "hub.db")
    hub = open_hub(home / "hub")
    with hub.database.begin() as connection:
        create_account(connection, name="acme", kind="organisation")
    return hub


def entry(hub: Hub, path: str, data: bytes) -> Entry:
    content = hub.store.put([data])
    return Entry(path, content.size, content.sha256, content.git_oid, True, content.xet_hash)


def publish(hub: Hub, name: str, *versions: dict[str, bytes]) -> list[str]:
    """A repo whose history are these versions of its files; the commits' ids."""
    oids = []
    for number, files in enumerate(versions):
        entries = make_manifest(entry(hub, path, data) for path, data in files.items())
        message = Message(f"version {number}", "", "acme")
        with hub.database.begin() as connection:
            repo = find_repo(connection, "model", name)
            if repo is None:
                repo = create_repo(
                    connection, "model", name, private=True, created_by="acme", at_us=now_us()
                )
                start(connection, repo.id, HEADS + MAIN, (), message, at_us=now_us())
            operations = [Add(each) for each in entries]
            at_us = now_us()
            pushed = push(connection, repo.id, HEADS + MAIN, operations, message, at_us=at_us)
            oids.append(pushed.commit.oid)
    return oids


def run(command: Any, *arguments: str | Path, home: Path) -> Any:
    result = CliRunner().invoke(
        command, [*map(str, arguments), "--home", str(home), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def files_of(hub: Hub, name: str, revision: str = "main") -> tuple[str, Manifest]:
    with hub.database.connect() as connection:
        repo = find_repo(connection, "model", name)
        assert repo is not None
        commit, files = read_files(connection, repo.id, revision)
        return commit.oid, files


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A home that has repos, an empty one, and the bundle's file."""
    return tmp_path / "from", tmp_path / "to", tmp_path / "models.bundle"


def test_repos_cross_with_their_history_and_an_update_brings_only_what_is_new(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    tuned = BASE[:1_000_000] + bytes(50_000) + BASE[1_000_000:]
    publish(ours, "acme/base", {"w.bin": BASE, "README.md": b"one"}, {"README.md": b"two"})
    publish(ours, "acme/tuned", {"w.bin": tuned})
    tip = files_of(ours, "acme/base")[0]
    with ours.database.begin() as connection:
        repo = find_repo(connection, "model", "acme/base")
        assert repo is not None
        create_ref(connection, repo.id, "refs/tags/v1", tip, at_us=1)
    told = run(export_command, file, "acme/base", "acme/tuned", home=source)
    assert told["bytes"] > 6_000_000
    assert file.stat().st_size < 3_600_000  # the bundle has each chunk once
    again = file.with_name("again")
    run(export_command, again, "--all", home=source)
    assert again.read_bytes() == file.read_bytes()
    with tarfile.open(file) as tar:
        assert tar.getnames()[:3] == ["bundle.json", "signature.json", "registry.json"]

    restored = run(import_command, file, "--trust", told["fingerprint"], home=target)["repos"]
    assert [(each["name"], each["created"]) for each in restored] == [
        ("acme/base", True),
        ("acme/tuned", True),
    ]
    for name in ("acme/base", "acme/tuned"):
        assert files_of(theirs, name) == files_of(ours, name)
        for each in files_of(theirs, name)[1]:
            assert b"".join(theirs.store.read(each.sha256)) == b"".join(
                ours.store.read(each.sha256)
            )
    assert files_of(theirs, "acme/base", "v1") == files_of(ours, "acme/base", "v1")
    assert run(fsck, home=target) == {"clean": True, "faults": []}

    publish(ours, "acme/base", {"more.bin": BASE[::-1]})
    run(export_command, file, "acme/base", home=source)
    (moved,) = run(import_command, file, "--trust", told["fingerprint"], home=target)["repos"]
    assert (moved["created"], moved["commits"], moved["refs"]) == (False, 1, ["refs/heads/main"])
    assert files_of(theirs, "acme/base") == files_of(ours, "acme/base")
    (same,) = run(import_command, file, "--trust", told["fingerprint"], home=target)["repos"]
    assert (same["commits"], same["refs"]) == (0, [])
    assert run(gc, "--older-than", "0s", home=target)["contents"] == 0
    assert run(fsck, home=target)["clean"]
    ours.close()
    theirs.close()


def refuse(file: Path, home: Path, trust: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        run(import_command, file, "--trust", trust, home=home)
    opened = open_hub(home / "hub")
    with opened.database.connect() as connection:
        for table in ("hub_repos", "hub_contents", "hub_segments", "hub_commits"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
    opened.close()


def test_a_bundle_that_was_touched_is_refused_and_leaves_nothing(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    theirs.close()
    publish(ours, "acme/base", {"w.bin": BASE[:300_000]})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        members = {each.name: each for each in tar.getmembers()}
    pack = next(name for name in members if "/" in name and not name.endswith(".index"))
    refuse(file, target, "SHA256:" + "0" * 64, "not trusted")
    for name, reason in (
        ("bundle.json", "signature"),
        ("signature.json", "signature|no signature"),
        ("registry.json", "not what was signed"),
        (pack + ".index", "not what was signed"),
        (pack, "not what was signed"),
    ):
        place = members[name].offset_data + 20
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refuse(file, target, trust, reason)
    for size in (0, 100, 600, len(whole) // 2, len(whole) - 1024, len(whole) - 1):
        file.write_bytes(whole[:size])
        refuse(file, target, trust, r"truncated|end is missing|no member")
    file.write_bytes(whole + b"more")
    refuse(file, target, trust, "follows")
    ours.close()


def test_a_member_under_another_name_is_refused(homes: tuple[Path, Path, Path]) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    theirs.close()
    publish(ours, "acme/base", {"w.bin": BASE[:300_000]})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        third = tar.getmembers()[2]
    for name, kind in (
        ("../../etc/passwd", tarfile.REGTYPE),
        ("/registry.json", tarfile.REGTYPE),
        ("registry.json", tarfile.SYMTYPE),
        ("registry.json", tarfile.DIRTYPE),
    ):
        hostile = tarfile.TarInfo(name)
        hostile.type, hostile.size, hostile.linkname = kind, third.size, "/etc/passwd"
        header = hostile.tobuf(tarfile.USTAR_FORMAT)
        file.write_bytes(whole[: third.offset] + header + whole[third.offset + 512 :])
        refuse(file, target, trust, "where registry.json should be is")
    assert not (target.parent / "etc").exists()
    ours.close()


def test_a_branch_that_went_another_way_is_not_overwritten(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    publish(ours, "acme/base", {"a": b"ours"})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    publish(theirs, "acme/base", {"a": b"theirs"})
    before = files_of(theirs, "acme/base")
    with pytest.raises(BundleError, match="history does not have"):
        run(import_command, file, "--trust", trust, home=target)
    assert files_of(theirs, "acme/base") == before
    assert theirs.store.find(files_of(ours, "acme/base")[1][0].sha256) is None
    ours.close()
    theirs.close()


def test_an_import_needs_an_owner_and_says_how_to_make_one(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours = make_hub(source)
    publish(ours, "acme/base", {"a": b"ours"})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    refuse(file, target, trust, "hub users add acme")
    ours.close()


def test_a_key_of_ones_own_signs_and_its_public_half_is_trusted(
    homes: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    publish(ours, "acme/base", {"a": b"ours"})
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    run(export_command, file, "acme/base", "--key", private, home=source)
    run(import_command, file, "--trust", public, home=target)
    assert files_of(theirs, "acme/base") == files_of(ours, "acme/base")
    assert not (source / "hub" / "bundle-key.pem").exists()
    ours.close()
    theirs.close()


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_files_that_a_push_would_be_refused_for_do_not_come_in_by_bundle(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    theirs.close()
    publish(ours, "acme/base", {"model.pkl": pickle.dumps(Harmful())})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    refuse(file, target, trust, r"files are refused: model\.pkl")
    ours.close()


def test_fsck_names_a_file_that_a_commit_has_and_the_store_has_not(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    publish(hub, "acme/base", {"a": b"gone"})
    sha256 = files_of(hub, "acme/base")[1][0].sha256
    hub.store.sweep([], older_than_us=2**62)
    result = CliRunner().invoke(fsck, ["--home", str(tmp_path), "--json"])
    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert (fault["kind"], fault["contents"]) == ("missing-content", [sha256])
    hub.close()


def test_gc_says_beforehand_what_it_does_and_then_does_that(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    publish(hub, "acme/base", {"a": BASE})
    alone = hub.store.put([np.random.default_rng(1).bytes(500_000)])
    hub.store.put_all([np.random.default_rng(2 + each).bytes(400_000) for each in range(4)])
    content = files_of(hub, "acme/base")[1][0]

    def told(*more: str) -> Any:
        given = ["--older-than", "0s", "--home", str(tmp_path), "--json", *more]
        result = CliRunner().invoke(gc, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    foretold = told("--dry-run")
    assert (foretold["contents"], foretold["packs"], foretold["bytes"]) == (5, 2, 2_100_000)
    assert hub.store.find(alone.sha256) is not None
    assert told() == {**foretold, "dry_run": False}
    assert hub.store.find(alone.sha256) is None
    assert b"".join(hub.store.read(content.sha256)) == BASE
    assert told()["contents"] == 0
    hub.close()


def test_fsck_ends_with_1_and_names_what_is_damaged(tmp_path: Path) -> None:
    hub = make_hub(tmp_path)
    content = hub.store.put([BASE])
    (pack,) = (tmp_path / "hub" / "packs").iterdir()
    pack.chmod(0o644)
    pack.write_bytes(BASE[:-1] + b"!")
    result = CliRunner().invoke(fsck, ["--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "corrupt-pack" in result.output
    assert content.sha256 in result.output
    hub.close()


def test_an_update_closes_what_was_closed_since_and_shows_what_it_brought(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    publish(ours, "acme/base", {"a": b"one"})
    trust = run(export_command, file, "acme/base", home=source)["fingerprint"]
    run(import_command, file, "--trust", trust, home=target)
    with theirs.database.begin() as connection:
        there = find_repo(connection, "model", "acme/base")
        assert there is not None
        change_settings(connection, there, private=False, gated="")
    publish(ours, "acme/base", {"a": b"two"})
    with ours.database.begin() as connection:
        here = find_repo(connection, "model", "acme/base")
        assert here is not None
        change_settings(connection, here, private=None, gated="manual")
        write_summary(connection, here.id, '{"tags": ["license:mit"]}')
    run(export_command, file, "acme/base", home=source)
    run(import_command, file, "--trust", trust, home=target)
    with theirs.database.begin() as connection:
        there = find_repo(connection, "model", "acme/base")
        assert there is not None
        assert (there.private, there.gated) == (True, "manual")
        assert there.summary == '{"tags": ["license:mit"]}'
        move_repo(connection, there, "acme/other")
    with pytest.raises(BundleError, match="moved here to acme/other"):
        run(import_command, file, "--trust", trust, home=target)
    ours.close()
    theirs.close()


def test_where_copies_came_from_crosses_with_them_and_the_log_says_who_signed(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    (oid,) = publish(ours, "acme/copied", {"w.bin": BASE[:100_000]})
    publish(ours, "acme/own", {"w.bin": BASE[:1000]})
    with ours.database.begin() as connection:
        repo = find_repo(connection, "model", "acme/copied")
        assert repo is not None
        origin = Origin(
            repo_id=repo.id,
            commit_oid=oid,
            endpoint="https://hub.example.com",
            upstream_name="Acme/Copied",
            upstream_commit=oid,
            licence="apache-2.0",
            licence_sha256="a" * 64,
            copied_us=1_700_000_000_000_000,
        )
        write_origin(connection, origin)
    told = run(export_command, file, "--all", home=source)
    run(import_command, file, "--trust", told["fingerprint"], home=target)
    with theirs.database.begin() as connection:
        (found,) = list_origins(connection)
        count, broken = audit_log.verify(connection)
        last = audit_log.read_lines(connection, after=count - 2, limit=2)
    assert found.repo == "acme/copied"
    assert msgspec.structs.replace(found.origin, repo_id=repo.id) == origin
    assert broken is None
    assert [(each.action, each.subject) for each in last] == [
        ("hub.repo.import", "acme/copied"),
        ("hub.repo.import", "acme/own"),
    ]
    assert told["fingerprint"] in last[0].detail
    # Once more, and onwards to a third hub: the first word on a commit stays.
    again = file.with_name("again")
    told = run(export_command, again, "--all", home=target)
    run(import_command, again, "--trust", told["fingerprint"], home=source)
    with ours.database.begin() as connection:
        assert [each.origin for each in list_origins(connection)] == [origin]
        own = find_repo(connection, "model", "acme/own")
        assert own is not None
    # Nor does a bundle make a copy of what was made here: it would follow another hub from then on.
    with theirs.database.begin() as connection:
        repo = find_repo(connection, "model", "acme/own")
        assert repo is not None
        (tip,) = (ref.commit_oid for ref in list_refs(connection, repo.id))
        write_origin(connection, msgspec.structs.replace(origin, repo_id=repo.id, commit_oid=tip))
    turned = file.with_name("turned")
    told = run(export_command, turned, "acme/own", home=target)
    run(import_command, turned, "--trust", told["fingerprint"], home=source)
    with ours.database.begin() as connection:
        assert newest_origin(connection, own.id) is None


def test_a_bundle_that_says_nonsense_of_an_origin_is_refused(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, _ = homes
    ours, theirs = make_hub(source), make_hub(target)
    (oid,) = publish(ours, "acme/copied", {"w.bin": BASE[:1000]})
    with ours.database.begin() as connection:
        repo = find_repo(connection, "model", "acme/copied")
        assert repo is not None
        said = BundledOrigin(
            commit_oid=oid,
            endpoint="https://hub.example.com",
            upstream_name="acme/copied",
            upstream_commit=oid,
            licence=None,
            licence_sha256=None,
            copied_us=2**60,
        )
        document, needed = bundle_repos(connection, [repo])
    registry = msgspec.json.decode(document, type=BundledRegistry)
    for wrong in (
        {"endpoint": "javascript:alert(1)"},
        {"upstream_name": "../etc"},
        {"upstream_commit": "main"},
        {"copied_us": -1},
        {},
    ):
        one = msgspec.structs.replace(said, **wrong)
        turned = msgspec.structs.replace(registry.repos[0], origins=(one,))
        document = msgspec.json.encode(msgspec.structs.replace(registry, repos=(turned,)))
        with theirs.database.begin() as connection:
            if wrong:
                with pytest.raises(BundleError, match="where acme/copied is from"):
                    restore_repos(connection, document, frozenset(needed))
                connection.rollback()
                continue
            restore_repos(connection, document, frozenset(needed))
            assert list_origins(connection)[0].origin.copied_us <= now_us()


def test_whoever_made_a_repo_elsewhere_has_no_right_to_it_here(
    homes: tuple[Path, Path, Path],
) -> None:
    source, target, file = homes
    ours, theirs = make_hub(source), make_hub(target)
    publish(ours, "acme/base", {"w.bin": BASE[:1000]})
    with ours.database.begin() as connection:
        connection.execute(update(repos).values(created_by="mallory"))
    told = run(export_command, file, "--all", home=source)
    run(import_command, file, "--trust", told["fingerprint"], home=target)
    with theirs.database.begin() as connection:
        repo = find_repo(connection, "model", "acme/base")
    assert repo is not None
    token = UsedToken(id="t", name="t", role="write")
    mallory = Identity(
        account="mallory", name="mallory", organisations={"acme": "contributor"}, token=token
    )
    assert not may(mallory, repo, "write").allowed
