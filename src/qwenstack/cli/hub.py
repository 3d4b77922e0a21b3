"""`qwenstack hub`: the group. Its commands stand in `hub_*.py` and load when they are used."""

from __future__ import annotations

import click

from qwenstack.cli.groups import LazyGroup

# Name, where it is, and its line in the overview: the overview imports none of them.
_COMMANDS = {
    "serve": ("qwenstack.cli.hub_serve:serve", "Serve the hub; HF_ENDPOINT is all clients need."),
    "users": ("qwenstack.cli.hub_people:users", "People and organisations, and their roles."),
    "tokens": ("qwenstack.cli.hub_people:tokens", "Access tokens: make, list, revoke."),
    "quota": ("qwenstack.cli.hub_quota:quota", "What an account keeps, and what it may."),
    "audit": ("qwenstack.cli.hub_people:audit", "Who administered the hub, hash-chained."),
    "push": ("qwenstack.cli.hub_transfer:push", "Publish a folder as a repo."),
    "pull": ("qwenstack.cli.hub_transfer:pull", "Fetch a repo into a folder."),
    "mirror": ("qwenstack.cli.hub_mirror:mirror_command", "Copy a repo from another hub."),
    "origins": ("qwenstack.cli.hub_mirror:origins", "Where copies came from, and their licence."),
    "scan": ("qwenstack.cli.hub_safety:scan", "What files could do to whoever loads them."),
    "quarantine": ("qwenstack.cli.hub_safety:quarantine", "What waits for an operator's look."),
    "sign": ("qwenstack.cli.hub_safety:sign", "Sign a folder or a repo (OpenSSF model signing)."),
    "verify": ("qwenstack.cli.hub_safety:verify", "Name the first file that is not as signed."),
    "facts": ("qwenstack.cli.hub_safety:facts", "What weights hold, and which claims that bears."),
    "stats": ("qwenstack.cli.hub_stats:stats", "How often a repo was downloaded, by day."),
    "tree": ("qwenstack.cli.hub_stats:tree", "The family tree of the hub's models."),
    "fsck": ("qwenstack.cli.hub_store:fsck", "Read all that the hub stores; say what is damaged."),
    "gc": ("qwenstack.cli.hub_store:gc", "Remove bytes that nothing needs any more."),
    "export": ("qwenstack.cli.hub_store:export_command", "Write repos into one signed file."),
    "import": ("qwenstack.cli.hub_store:import_command", "Take such a file in."),
}


@click.group(cls=LazyGroup, places=_COMMANDS)
def hub() -> None:
    """A hub of models and datasets that Hugging Face clients use unchanged.

    \b
    Examples:
      qwenstack hub serve
      qwenstack hub users add alice
      qwenstack hub tokens create alice --role write
      qwenstack hub push ./my-model alice/my-model
    """
