"""Pictures of figures: made without a display, and an SVG the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches; written to `path` at the end: SVG, PNG or PDF by its ending."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "qwenstack", "font.size": 9, "axes.titlesize": 10})
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    try:
        yield figure
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata)
    finally:
        pyplot.close(figure)
