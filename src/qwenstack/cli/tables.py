"""Tables for a terminal of any width, and whole ones for whoever reads without a terminal."""

from __future__ import annotations

import os

from rich import box
from rich.console import Console
from rich.table import Table

# Wider than any table: a program that reads a line wants it whole.
_WIDE = 1000
# What people copy from a table.
_COPIED = ("id", "prefix")


def show_table(table: Table) -> None:
    """Print a table. Where the terminal is too narrow its cells go on in the next line: nothing is
    cut off, since what would be is a price or a name. Ids are the last to be broken.
    """
    table.box = box.SIMPLE_HEAD
    table.show_edge = False
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column.no_wrap or column.header in _COPIED
    console().print(table)


def console() -> Console:
    """As wide as the terminal (or as COLUMNS says), and wide enough for all where there is none."""
    found = Console()
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = _WIDE
    return found
