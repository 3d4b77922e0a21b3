"""A family tree as an SVG: generations from left to right, a box a model, linked to its page."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from markupsafe import Markup

from qwenstack.hub.family import Branch, walk
from qwenstack.hub.http.pages.shell import _count

DRAWN_MAX = 400
_BOX, _BOX_HEIGHT, _GAP, _ROW = 250, 46, 60, 60
_NAME_CHARACTERS = 29

# For the file alone, which no sheet colours.
_STYLE = (
    "svg{font-family:system-ui,sans-serif;background:#fff}.box{fill:#f6f5fb;stroke:#6d5bd0}"
    ".away{stroke-dasharray:4 3;fill:#fff}.name{font-size:13px;font-weight:600;fill:#1c1a29}"
    ".note{font-size:11px;fill:#615d74}.edge{fill:none;stroke:#a79fd6;stroke-width:1.5}"
    ".claimed{stroke-dasharray:4 3}.marked{stroke-width:3}"
)


def draw(trees: list[Branch], *, marked: str | None = None, alone: bool = False) -> Markup:
    """The trees below each other, at most DRAWN_MAX models; `alone` makes a whole file of it.

    A solid edge was computed from the weights, a dashed one is what the card claims.
    """
    shown: list[Branch] = []
    for tree in trees:
        shown.extend(walk(tree))
    left_out = max(len(shown) - DRAWN_MAX, 0)
    shown = shown[:DRAWN_MAX]
    places = {id(branch): (branch.generation, row) for row, branch in enumerate(shown)}
    edges, boxes = [], []
    for branch in shown:
        boxes.append(_box(branch, places[id(branch)], marked))
        for child in branch.children:
            if id(child) in places:
                edges.append(_edge(places[id(branch)], places[id(child)], child))
    width = (max((branch.generation for branch in shown), default=0) + 1) * (_BOX + _GAP)
    height = max(len(shown), 1) * _ROW + (24 if left_out else 0)
    note = ""
    if left_out:
        note = f'<text class="note" x="8" y="{height - 8}">and {left_out} more models</text>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    if alone:
        head += f'width="{width}" height="{height}"><style>{_STYLE}</style>'
    else:
        head += f'class="family" width="{width}" height="{height}"><title>Family tree</title>'
    return Markup(head + "".join(edges) + "".join(boxes) + note + "</svg>")  # noqa: S704


def _box(branch: Branch, place: tuple[int, int], marked: str | None) -> str:
    member = branch.member
    x, y = _corner(place)
    kind = "box" if member.here else "box away"
    if marked is not None and member.name.lower() == marked.lower():
        kind += " marked"
    facts = [_count(member.parameters)] if member.parameters else []
    facts += [member.task] if member.task else []
    facts += [f"{_count(member.downloads)} downloads"] if member.here else ["not on this hub"]
    name = member.name
    short = name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…"
    drawn = (
        f"<title>{escape(name)}</title>"
        f'<rect class="{kind}" x="{x}" y="{y}" width="{_BOX}" height="{_BOX_HEIGHT}" rx="8"/>'
        f'<text class="name" x="{x + 10}" y="{y + 20}">{escape(short)}</text>'
        f'<text class="note" x="{x + 10}" y="{y + 36}">{escape(" · ".join(facts)[:40])}</text>'
    )
    if not member.here:
        return f"<g>{drawn}</g>"
    return f'<a href="/{quote(name)}">{drawn}</a>'


def _edge(parent: tuple[int, int], child: tuple[int, int], branch: Branch) -> str:
    (x, y), (to_x, to_y) = _corner(parent), _corner(child)
    y, to_y = y + _BOX_HEIGHT // 2, to_y + _BOX_HEIGHT // 2
    x += _BOX
    middle = to_x - _GAP // 2
    link = branch.member.parents[0] if branch.member.parents else None
    claimed = link is None or link.source == "card"
    said = "" if link is None else f"{link.relation} ({link.source})"
    return (
        f'<path class="edge{" claimed" if claimed else ""}" '
        f'd="M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}">'
        f"<title>{escape(said)}</title></path>"
    )


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    generation, row = place
    return 8 + generation * (_BOX + _GAP), 7 + row * _ROW
