"""Progress bars on standard error for what takes long before serving begins."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qwenstack.engines.models import Progress as Obtaining

_WORDS = {
    "waiting": "waiting for another download",
    "downloading": "downloading the model",
    "hashing": "checking the model",
}
_LOADING_UNITS = 1000


class BuildingBars:
    """One bar a step. Without a terminal each step is announced in a line instead."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BuildingBars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away."""
        self._progress.stop()

    def obtaining(self, progress: Obtaining) -> None:
        """A model is downloaded or hashed."""
        self._show(_WORDS[progress.phase], progress.done, progress.total)

    def loading(self, share: float) -> None:
        """An engine reads its model."""
        self._show("loading the model", int(share * _LOADING_UNITS), _LOADING_UNITS)

    def starting(self, name: str) -> None:
        """A deployment is about to start."""
        if not self._terminal:
            print(f"starting {name}", file=sys.stderr, flush=True)

    def _show(self, words: str, done: int, total: int) -> None:
        task = self._tasks.get(words)
        if task is None:
            task = self._tasks[words] = self._progress.add_task(words, total=total or None)
            if not self._terminal:
                print(words, file=sys.stderr, flush=True)
        self._progress.update(task, completed=done, total=total or None)
