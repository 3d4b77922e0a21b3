"""The signals as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qwenstack.catalog.picture import picture
from qwenstack.catalog.watch.signals import Signals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZES = ("≤2B", "≤9B", "≤40B", "≤130B", ">130B", "unknown")
_COLOURS = ("#9ecae1", "#6baed6", "#3182bd", "#08519c", "#08306b", "#bdbdbd")


def draw(signals: Signals, path: Path) -> None:
    """Write the picture: SVG, PNG or PDF by the file's ending. The same signals, the same SVG."""
    with picture(path, 9, 10) as figure:
        axes = figure.subplots(3, 1)
        _cadence(axes[0], signals)
        _open_share(axes[1], signals)
        _lags(axes[2], signals)


def _cadence(axes: Axes, signals: Signals) -> None:
    names = [each.quarter for each in signals.quarters]
    bottom = [0] * len(names)
    for size, colour in zip(_SIZES, _COLOURS, strict=True):
        counts = [each.by_size.get(size, 0) for each in signals.quarters]
        axes.bar(names, counts, bottom=bottom, label=size, color=colour)
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    axes.set_title("Open releases a quarter, by total parameters", loc="left")
    axes.tick_params(axis="x", rotation=60)
    axes.legend(ncols=6, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _open_share(axes: Axes, signals: Signals) -> None:
    names = [each.generation for each in signals.openness]
    open_ = [each.open_releases for each in signals.openness]
    closed = [each.hosted_only for each in signals.openness]
    axes.barh(names, open_, color="#3182bd", label="open weights")
    axes.barh(names, closed, left=open_, color="#e6550d", label="hosted only")
    axes.invert_yaxis()
    axes.set_title("Open releases and hosted-only names, by family", loc="left")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _lags(axes: Axes, signals: Signals) -> None:
    known = [each for each in signals.lags if each.days is not None]
    names = [each.hosted or each.release for each in known]
    axes.barh(names, [each.days or 0 for each in known], color="#756bb1")
    axes.axvline(0, color="#333", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_title("Days from open weights to the hosted name (negative: hosted first)", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
