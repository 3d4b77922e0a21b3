"""Charts as SVG without styles or scripts of their own: classes that the sheet colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

_WIDTH, _HEIGHT, _FOOT = 340, 110, 18


def bars(days: Sequence[tuple[str, int]], *, name: str) -> Markup:
    """One bar a day, each with its date and count as its title; the first and last day named."""
    most = max((count for _, count in days), default=0)
    step = _WIDTH / max(len(days), 1)
    drawn = []
    for place, (day, count) in enumerate(days):
        height = (_HEIGHT - _FOOT - 18) * count / most if most else 0
        x, y = place * step, _HEIGHT - _FOOT - max(height, 1.5)
        drawn.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" '
            f'height="{max(height, 1.5):.1f}" rx="1.5"><title>{escape(day)}: {count}</title></rect>'
        )
    first, last = (days[0][0], days[-1][0]) if days else ("", "")
    total = sum(count for _, count in days)
    return Markup(  # noqa: S704 - every part is a number or escaped above
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(name)}: {total}">'
        f'<text class="tick" x="0" y="12">{_scale(most)}</text>'
        + "".join(drawn)
        + f'<text class="tick" x="0" y="{_HEIGHT - 6}">{escape(first)}</text>'
        f'<text class="tick end" x="{_WIDTH}" y="{_HEIGHT - 6}">{escape(last)}</text></svg>'
    )


def _scale(most: int) -> str:
    return f"{most:,} on the fullest day" if most else "none yet"


def letter(key: str) -> str:
    """An account's picture: its first letter on a colour of its name."""
    hue = sum(ord(each) * (place + 7) for place, each in enumerate(key)) % 360
    shown = escape(key[:1].upper() or "?")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">'
        f'<rect width="40" height="40" rx="8" fill="hsl({hue} 45% 45%)"/>'
        '<text x="20" y="27" text-anchor="middle" font-family="sans-serif" font-size="20" '
        f'fill="#fff">{shown}</text></svg>'
    )
