"""`qwenstack lineage`: whose child a model is, told from its weights."""

from __future__ import annotations

import os

import click

from qwenstack.cli.groups import LazyGroup

# The matrices are small: on a busy machine the threads of numpy's BLAS cost more than they give.
# Read when numpy is first imported, which the commands below do.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_COMMANDS = {
    "show": ("qwenstack.cli.lineage_show:show", "The parent of a model, and how it was made."),
    "index": ("qwenstack.cli.lineage_hub:index", "Fingerprint and trace the hub's releases."),
    "audit": ("qwenstack.cli.lineage_hub:audit", "Cards and licences that the weights contradict."),
}


@click.group(cls=LazyGroup, places=_COMMANDS, default="show")
def lineage() -> None:
    """Tell from the weights, not from the card, whose child a model is.

    \b
    Examples:
      qwenstack lineage ./my-model --against ./bases    a folder among the models below another
      qwenstack lineage acme/helper --json              a release among all of this hub's
      qwenstack lineage index                           after pushes: fingerprint and trace
      qwenstack lineage audit                           what cards omit, and licence conflicts
    """
