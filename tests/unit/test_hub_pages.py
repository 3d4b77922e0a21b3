"""What the pages are made of: markdown from strangers, trees, diffs, merges, addresses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.hub.family import GENERATIONS_MAX, Branch, Member, Parent, forest, tree_with, walk
from qwenstack.hub.http.markdown import render
from qwenstack.hub.http.pages.charts import bars, letter
from qwenstack.hub.http.pages.family_svg import DRAWN_MAX, draw
from qwenstack.hub.http.pages.run_it import recipes
from qwenstack.hub.http.pages.shell import local_path
from qwenstack.hub.pull_requests import Changes, compare, diff_text
from qwenstack.hub.registry.manifests import Entry, make_manifest
from qwenstack.hub.registry.repos import Repo

_ALLOWED = re.compile(r"(https?://|mailto:|#|/acme/m/resolve/c/)", re.IGNORECASE)
PIECES = st.sampled_from(
    (
        *("<script>", "</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "![]("),
        *(
            "javascript:alert(1)",
            "[a](",
            ")",
            "<a href='",
            "'>",
            '"',
            "<",
            ">",
            "`",
            "```\n",
            "\n\n",
        ),
        *("https://e.example/x.png", "//e.example", "data:text/html,x", "<iframe src=", "/logout"),
        *(
            "<style>",
            "<math>",
            "<!--",
            "-->",
            "|a|b|\n|-|-|\n",
            "<div style=x onclick=y>",
            "&#x6a;",
        ),
        *(
            "<form action=/logout>",
            "<base href=//e>",
            "<link rel=stylesheet href=//e>",
            "<p",
            "../",
        ),
        *("\\", " ", "\0", "hello"),
    )
)


class _Found(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=14).map("".join))
def test_no_markdown_makes_an_element_that_acts_or_loads_from_elsewhere(text: str) -> None:
    found = _Found()
    found.feed(render(text, files_at="/acme/m/resolve/c"))
    for tag, attributes in found.elements:
        assert tag not in {
            "script",
            "style",
            "iframe",
            "form",
            "input",
            "base",
            "link",
            "svg",
            "math",
        }
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"style", "srcset", "id", "name"}
            if name == "href":
                assert _ALLOWED.match(value or ""), value
            if name == "src":
                assert (value or "").startswith("/acme/m/resolve/c/"), value


def test_a_card_keeps_what_it_may_say() -> None:
    shown = render(
        "# T\n\n|a|b|\n|-|-|\n|1|2|\n\n~~x~~ **y** [l](docs/a.md) ![i](img.png) ![o](https://e.example/o.png)\n"
        "\n```python\nprint(1)\n```\n<details><summary>more</summary>text</details>",
        files_at="/acme/m/resolve/c",
    )
    assert "<table>" in shown and "<s>x</s>" in shown and 'class="language-python"' in shown
    assert (
        'href="/acme/m/resolve/c/docs/a.md"' in shown and 'src="/acme/m/resolve/c/img.png"' in shown
    )
    assert '<a href="https://e.example/o.png"' in shown and "<details>" in shown


@pytest.mark.parametrize("up", ["..", "%2e%2e", ".%2E", "a/%2e./.."])
def test_a_card_leads_nowhere_above_its_own_files(up: str) -> None:
    shown = render(f"[l]({up}/settings) ![i]({up}/b.png)", files_at="/acme/m/resolve/c")
    assert "href=" not in shown and "src=" not in shown


@pytest.mark.parametrize(
    "text", ["> " * 5000 + "x", "[" * 20000, "![" * 200000, "*" * 20000 + "a", "<div>" * 100000]
)
def test_markdown_made_to_be_slow_ends(text: str) -> None:
    assert "<script" not in render(text + "<script>")


@pytest.mark.parametrize(
    ("path", "goes_to"),
    [
        ("/acme/m?x=1#files", "/acme/m?x=1#files"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nSet-Cookie: x", "/"),
        ("", "/"),
    ],
)
def test_a_redirect_stays_on_the_hub(path: str, goes_to: str) -> None:
    assert local_path(path) == goes_to


def model(name: str, *parents: str, downloads: int = 0) -> Member:
    links = tuple(Parent(name=each, relation="finetune", source="card") for each in parents)
    return Member(name=name, parents=links, downloads=downloads)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 12), max_size=2)), max_size=10)
)
def test_every_model_has_one_place_whatever_the_cards_claim(
    claims: list[tuple[int, list[int]]],
) -> None:
    members = {f"m/{name}": model(f"m/{name}", *(f"m/{p}" for p in of)) for name, of in claims}
    trees = forest(members.values())
    placed = [branch.member.name for tree in trees for branch in walk(tree)]
    assert len(placed) == len(set(placed)) and set(members) <= set(placed)
    for tree in trees:
        assert tree.generation == 0 and tree.derivatives == len(list(walk(tree))) - 1
        for branch in walk(tree):
            assert all(child.generation == branch.generation + 1 for child in branch.children)


def test_a_long_chain_and_a_wide_family_are_drawn_within_bounds() -> None:
    chain = forest([model(f"m/{at}", f"m/{at - 1}") for at in range(1, 3000)])
    assert sum(1 + tree.derivatives for tree in chain) == 3000
    assert max(branch.generation for tree in chain for branch in walk(tree)) < GENERATIONS_MAX
    assert msgspec.json.decode(msgspec.json.encode(chain), type=list[Branch]) == chain
    drawing = str(draw(chain, marked="m/5", alone=True))
    assert drawing.count("<rect") == DRAWN_MAX and "2600 more models" in drawing
    one = tree_with(chain, "M/2999")
    assert isinstance(one, Branch) and tree_with(chain, "m/none") is None


def test_names_in_drawings_are_escaped() -> None:
    hostile = "a/<script>&\"'"
    drawing = str(draw(forest([model(hostile, "b/<img>")]), alone=True))
    assert "<script>" not in drawing and "<img>" not in drawing
    assert "<script>" not in str(bars([("<script>", 1)], name='"><script>')) + letter("<")


def entry(path: str, content: str, *, lfs: bool = False) -> Entry:
    return Entry(path, len(content), content, content.ljust(40, "0"), lfs, "")


def test_a_pull_request_shows_changes_and_names_conflicts() -> None:
    base = make_manifest(
        [entry("a", "1"), entry("b", "1"), entry("c", "1"), entry("w", "1", lfs=True)]
    )
    ours = make_manifest(
        [entry("a", "2"), entry("b", "1"), entry("c", "3"), entry("w", "1", lfs=True)]
    )
    theirs = make_manifest(
        [entry("a", "3"), entry("c", "3"), entry("d", "1"), entry("w", "2", lfs=True)]
    )
    changes = compare(base, ours, theirs)
    assert [each.path for each in changes.files] == ["a", "b", "c", "d", "w"]
    assert changes.conflicts == ("a",)
    diff = diff_text(changes, lambda each: f"line {each.sha256}\n".encode())
    assert "-line 1\n+line 3\n" in diff and "deleted file mode" in diff and "new file mode" in diff
    assert "+oid sha256:2\n" in diff
    binary = diff_text(Changes(changes.files[:1], ()), lambda _each: b"\0\xff")
    assert "Binary files" in binary
    endless = diff_text(Changes(changes.files[:1], ()), lambda each: b"a\n" * 6000)
    assert "Binary files" in endless


@pytest.mark.parametrize(
    ("paths", "tools"),
    [
        (["config.json", "model.safetensors"], ["transformers", "vLLM", "hf"]),
        (["m-Q4_K_M.gguf"], ["llama.cpp", "qwenstack", "hf"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["peft", "hf"]),
        (["README.md"], ["hf"]),
    ],
)
def test_a_release_says_how_to_run_what_it_has(paths: list[str], tools: list[str]) -> None:
    repo = Repo(
        id="r",
        kind="model",
        name="acme/m",
        private=False,
        gated="",
        created_by="a",
        created_us=0,
        updated_us=0,
        downloads=0,
        likes=0,
        summary="{}",
    )
    files = make_manifest([entry(path, "x") for path in paths])
    found = recipes(repo, files, "http://hub:1", closed=True)
    assert [each.tool for each in found] == tools
    assert all(
        "HF_ENDPOINT=http://hub:1" in each.text and "HF_TOKEN" in each.text for each in found
    )
    if "m-Q4_K_M.gguf" in paths:
        assert "acme/m:Q4_K_M" in found[0].text
