"""A hub with everything plugged in: what counts, what listens, what looks into files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwenstack.hub.cards import check_card
from qwenstack.hub.discussions import find_discussion, record_commit
from qwenstack.hub.downloads import Downloads
from qwenstack.hub.hub import CommitListener, Hub, HubSettings, open_hub
from qwenstack.hub.registry.repos import Repo
from qwenstack.hub.registry.revisions import PULLS, find_commit
from qwenstack.hub.safety.policy import policy_in
from qwenstack.hub.safety.records import SafetyInspector
from qwenstack.hub.summaries import describer, summary_listener


@contextmanager
def serving_hub(
    folder: Path,
    *,
    anonymous_read: bool = False,
    database_url: str | None = None,
    objects_url: str | None = None,
    settings: HubSettings | None = None,
) -> Iterator[Hub]:
    """The hub under `folder`, ready to serve; what it counted is written when it closes."""
    hub = open_hub(
        folder,
        anonymous_read=anonymous_read,
        database_url=database_url,
        objects_url=objects_url,
        settings=settings,
    )
    downloads = Downloads(hub.database)
    hub.download_counters.append(downloads)
    hub.inspectors.append(SafetyInspector(hub.database, policy_in(folder)))
    hub.check_card = check_card
    hub.describe = describer(hub)
    hub.commit_listeners += [summary_listener(hub), pull_request_listener(hub)]
    try:
        yield hub
    finally:
        downloads.close()
        hub.close()


def pull_request_listener(hub: Hub) -> CommitListener:
    """Notes each push to a pull request's ref among its events."""

    def listen(repo: Repo, ref: str, oid: str) -> None:
        digits = ref.removeprefix(PULLS)
        if not ref.startswith(PULLS) or not digits.isdecimal():
            return
        with hub.database.begin() as connection:
            commit = find_commit(connection, repo.id, oid)
            discussion = find_discussion(connection, repo.id, int(digits))
            record_commit(
                connection,
                discussion,
                author=commit.author.lower(),
                oid=oid,
                subject=commit.title,
            )

    return listen
