"""Markdown from strangers as HTML that can do nothing: no script, no style, nothing loaded.

Two walls: the renderer takes no raw HTML apart from what the sanitiser keeps, and the sanitiser
keeps only the elements below. Images come from this hub alone; others become links, so that
opening a page tells no third party about it.
"""

from __future__ import annotations

import functools
import re
from html import escape
from urllib.parse import unquote, urlsplit

import nh3
from markdown_it import MarkdownIt

TEXT_CHARACTERS_MAX = 256 * 1024
# Renderer and sanitiser take time with the square of these: past them a text is shown as it is.
_MARKS_MAX = {"<": 10_000, "[": 20_000}
_KEPT_MAX = 64
_NESTING_MAX = 30

_TAGS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "blockquote", "pre", "code", "kbd"),
    *("em", "strong", "del", "s", "sub", "sup", "u", "ul", "ol", "li", "dl", "dt", "dd", "a"),
    *("table", "thead", "tbody", "tr", "th", "td", "img", "div", "span", "details", "summary"),
}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "th": {"align", "colspan", "rowspan"},
    "td": {"align", "colspan", "rowspan"},
    "ol": {"start"},
    "code": {"class"},
    "p": {"align"},
    "div": {"align"},
    "details": {"open"},
}
# Words with their content gone, not only their tags.
_GONE = {"script", "style", "title", "textarea", "noscript", "template", "iframe", "object", "svg"}
_LANGUAGE = re.compile(r"language-[a-z0-9+#-]{1,30}")
_IMAGE = re.compile(r"<img\b[^>]*>")
_IMAGE_ATTRIBUTE = re.compile(r'\b(src|alt)="([^"]*)"')


@functools.lru_cache(maxsize=_KEPT_MAX)
def render(text: str, *, files_at: str | None = None) -> str:
    """The text as safe HTML. `files_at` is the path that relative links and images start from."""
    text = text[:TEXT_CHARACTERS_MAX]
    if any(text.count(mark) > most for mark, most in _MARKS_MAX.items()):
        return f"<pre>{escape(text)}</pre>"
    raw = _renderer().render(text)

    def attribute(element: str, name: str, value: str) -> str | None:
        if name == "class":
            return value if _LANGUAGE.fullmatch(value) else None
        if name in ("href", "src"):
            return _address(value, files_at, image=element == "img")
        return value

    clean = nh3.clean(
        raw,
        tags=_TAGS,
        clean_content_tags=_GONE,
        attributes=_ATTRIBUTES,
        attribute_filter=attribute,
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer ugc",
    )
    return _IMAGE.sub(_foreign_image, clean)


@functools.cache
def _renderer() -> MarkdownIt:
    return MarkdownIt(
        "commonmark", {"html": True, "linkify": False, "maxNesting": _NESTING_MAX}
    ).enable(["table", "strikethrough"])


def _address(value: str, files_at: str | None, *, image: bool) -> str | None:
    """Where a link may lead: out, into the page, or to a file of this repo; else None."""
    value = value.strip()
    try:
        parts = urlsplit(value)
    except ValueError:
        return None
    if parts.scheme or parts.netloc or value.startswith(("//", "\\", "/\\")):
        return value if parts.scheme in ("http", "https", "mailto") else None
    if value.startswith("#"):
        return None if image else value
    if value.startswith("/") or files_at is None:
        # A path of the hub itself would let a card reach its actions.
        return None
    # Browsers take `%2e` for a dot when they look for the way up.
    if "\\" in value or any(part == ".." for part in unquote(parts.path).split("/")):
        return None
    return f"{files_at}/{value.removeprefix('./')}"


def _foreign_image(found: re.Match[str]) -> str:
    """An image of this hub as it is, one from elsewhere as a link to it, one from nowhere as text.

    What comes in is the sanitiser's output, so its quoting is known.
    """
    attributes = dict(_IMAGE_ATTRIBUTE.findall(found[0]))
    source, words = attributes.get("src", ""), attributes.get("alt", "") or "image"
    if source.startswith("/") and not source.startswith("//"):
        return found[0]
    if not source:
        return words
    if '"' in source or "<" in source:
        return escape(words)
    return f'<a href="{source}" rel="nofollow noopener noreferrer ugc">{words}</a>'
