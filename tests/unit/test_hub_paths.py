"""File names, Git's patterns and ids, and what the operations of a commit do to a tree."""

from __future__ import annotations

import subprocess
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.hub.errors import BadRequest, Conflict, EntryNotFound
from qwenstack.hub.http.byte_ranges import read_range
from qwenstack.hub.http.resolve import disposition
from qwenstack.hub.registry.attributes import (
    DEFAULT_ATTRIBUTES,
    ignore_rules,
    lfs_rules,
    matches,
)
from qwenstack.hub.registry.commits import three_way
from qwenstack.hub.registry.git_objects import blob_oid, tree_oids
from qwenstack.hub.registry.manifests import (
    Entry,
    Manifest,
    entries_below,
    find_entry,
    make_manifest,
    release_digest,
)
from qwenstack.hub.registry.operations import Add, Copy, Delete, DeleteFolder, apply
from qwenstack.hub.registry.paths import check_tree, fold, path_problem

NAMES = st.sampled_from(["a", "b", "c", "sub", "x.txt", "d0"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def entry(path: str, content: str = "x") -> Entry:
    oid = blob_oid(content.encode())
    return Entry(path, len(content), oid.ljust(64, "0"), oid, False, "")


def tree(*paths: str) -> Manifest:
    return make_manifest(entry(path, path) for path in paths)


def nothing(_: str) -> Manifest:
    return ()


@given(st.text(max_size=40))
def test_a_path_that_is_taken_stays_below_the_folder_it_is_joined_to(path: str) -> None:
    if path_problem(path) is not None:
        return
    parts = PurePosixPath("/root", path).parts
    assert parts[:2] == ("/", "root")
    assert ".." not in parts
    assert "/".join(parts[2:]) == path
    folded = unicodedata.normalize("NFKC", path)
    assert folded.count("/") == path.count("/")
    assert not any(each in folded for each in "\\\0\n\r")


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "a/b/c.txt",
        "日本語/モデル.gguf",
        ".gitattributes",
        ".gitignore",
        ".github/workflows/ci.yml",
        "console.log",
        "com10.txt",
        "with space.txt",
        "50%.txt",
        "12:30:00.json",
        "é/è",
        "git~x",
    ],
)
def test_ordinary_names_are_taken(path: str) -> None:
    assert path_problem(path) is None


@given(PATHS, PATHS)
def test_two_paths_make_a_tree_unless_one_is_in_the_way_of_the_other(one: str, other: str) -> None:
    in_the_way = one != other and (one.startswith(other + "/") or other.startswith(one + "/"))
    if in_the_way:
        with pytest.raises(BadRequest):
            check_tree({one, other})
    else:
        check_tree({one, other})


@given(st.text(alphabet="aAéÉßẞſKkİıŉ", max_size=6))
def test_folding_is_stable_and_forgets_case_and_form(name: str) -> None:
    assert fold(fold(name)) == fold(name)
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, name)) == fold(name)


@given(st.lists(PATHS, unique=True, max_size=12), PATHS)
def test_lookups_in_a_manifest_find_what_a_scan_finds(paths: list[str], wanted: str) -> None:
    manifest = tree(*paths)
    found = find_entry(manifest, wanted)
    assert (None if found is None else found.path) == (wanted if wanted in paths else None)
    below = [each.path for each in entries_below(manifest, wanted)]
    assert below == sorted(path for path in paths if path.startswith(wanted + "/"))


def test_a_releases_digest_is_of_its_sorted_lines_alone() -> None:
    manifest = tree("b", "a")
    again = make_manifest(reversed(manifest))
    assert release_digest(manifest) == release_digest(again)
    assert release_digest(manifest) != release_digest(tree("a", "c"))


def test_operations_are_applied_in_their_order() -> None:
    before = tree("old/a", "old/b", "keep")
    after = apply(
        before,
        [
            DeleteFolder("old/"),
            Add(entry("new", "1")),
            Add(entry("new", "2")),
            Copy("new", None, "copy"),
            Delete("keep"),
        ],
        nothing,
    )
    assert [each.path for each in after] == ["copy", "new"]
    assert after[0].sha256 == after[1].sha256 == entry("", "2").sha256


def test_a_deletion_that_names_a_folder_takes_all_that_is_in_it() -> None:
    after = apply(tree("sub/a", "sub/b/c", "subway"), [Delete("sub")], nothing)
    assert [each.path for each in after] == ["subway"]


def test_a_folder_is_copied_whole_also_from_another_revision() -> None:
    after = apply((), [Copy("old/", "v1", "new")], lambda _: tree("old/a", "old/b/c", "older"))
    assert [each.path for each in after] == ["new/a", "new/b/c"]


@pytest.mark.parametrize(
    "operation", [Delete("none"), DeleteFolder("none"), Copy("none", None, "x")]
)
def test_what_is_not_there_is_neither_deleted_nor_copied(operation: object) -> None:
    with pytest.raises(EntryNotFound, match="There is no"):
        apply(tree("sub/a"), [operation], nothing)  # type: ignore[list-item]


def test_a_merge_keeps_both_sides_and_refuses_what_both_changed() -> None:
    base = tree("a", "b", "c")
    ours = apply(base, [Add(entry("a", "ours")), Delete("c")], nothing)
    theirs = apply(base, [Add(entry("b", "theirs")), Delete("c"), Add(entry("d"))], nothing)
    merged = {each.path: each.sha256 for each in three_way(base, ours, theirs)}
    assert merged == {
        "a": entry("", "ours").sha256,
        "b": entry("", "theirs").sha256,
        "d": entry("").sha256,
    }
    clash = apply(base, [Add(entry("a", "theirs"))], nothing)
    with pytest.raises(Conflict, match="'a'"):
        three_way(base, ours, clash)


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_ids_are_those_that_git_gives_the_same_files(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    paths = ["a", "b/c", "b.txt", "b/d/e", "b-x", "ü/z"]
    for path in paths:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)
    _git(tmp_path, "add", ".")
    oids = tree_oids(tree(*paths))
    root = _git(tmp_path, "write-tree")
    assert oids[""] == root
    assert oids["b/d"] == _git(tmp_path, "rev-parse", f"{root}:b/d")


def test_patterns_say_what_git_says(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    attributes = (
        DEFAULT_ATTRIBUTES.decode()
        + "saved_model/**/* filter=lfs\n*tfevents* filter=lfs\nnot.bin -filter\n"
        + "/top.x filter=lfs\n[ab]?.y filter=lfs\nd*e*f.z filter=lfs\ndata/** filter=lfs\n"
    )
    ignore = "*.log\nbuild/\n/top\n!keep.log\na/**/z\n[!a-c]x\n\\!odd\ndoc/*.txt\n"
    (tmp_path / ".gitattributes").write_text(attributes)
    (tmp_path / ".gitignore").write_text(ignore)
    paths = [
        *("a.bin", "x/y/a.safetensors", "a.txt", "saved_model/a", "saved_model/a/b"),
        *("q/saved_model/b", "xtfeventsy", "not.bin", "q/not.bin", "top.x", "q/top.x", "aq.y"),
        *("cq.y", "d1e2f.z", "def.z", "dxf.z", "data/q", "data", "x.log", "build", "build/x"),
        *("q/build/x/y", "top", "q/top", "top/y", "keep.log", "q/keep.log", "a/z", "a/b/c/z"),
        *("bx", "dx", "q/dx", "!odd", "doc/a.txt", "doc/b/a.txt", "q/doc/a.txt"),
    ]
    large, ignored = lfs_rules(attributes), ignore_rules(ignore)
    for path in paths:
        said = _git(tmp_path, "check-attr", "filter", "--", path).endswith(": lfs")
        assert matches(large, path) == said, path
        done = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "-q", "--no-index", "--", path]
        )
        assert matches(ignored, path) == (done.returncode == 0), path


@given(st.text(alphabet="ab*?[]!\\/", max_size=30), st.text(alphabet="ab/", max_size=60))
def test_no_pattern_is_slow_or_an_error(pattern: str, path: str) -> None:
    matches(ignore_rules(pattern), path)
    matches(lfs_rules(f"{pattern or 'x'} filter=lfs"), path)


def test_many_stars_cost_no_more_than_their_number() -> None:
    rules = ignore_rules("*a" * 200 + "b")
    assert not matches(rules, "a" * 250)


@given(st.text(max_size=60), st.integers(0, 10**6))
def test_a_range_lies_in_the_file_or_is_none(text: str, size: int) -> None:
    span = read_range({"Range": f"bytes={text}"}, '"x"', size)
    assert span is None or (0 <= span.start <= span.end <= size)
    if span is not None and not span.partial:
        assert (span.start, span.end) == (0, size)


@given(st.text(max_size=60))
def test_no_name_breaks_out_of_its_header(name: str) -> None:
    value = disposition(name)
    assert value.isascii()
    assert value.isprintable()
    assert value.count('"') == 2
