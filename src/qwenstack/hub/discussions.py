"""Discussions and pull requests: a numbered thread of events on a repo.

A pull request is a discussion whose changes are the commits of `refs/pr/N`. Events are only
appended; of a comment every version is kept until it is hidden, and a hidden one's text is gone.
"""

from __future__ import annotations

import secrets
import time
from typing import Literal

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from qwenstack.core.instants import now_us
from qwenstack.hub.errors import BadRequest, Conflict, NotFound, TooMany
from qwenstack.hub.quotas import QuotaExceeded
from qwenstack.storage.hub_tables import discussion_events, discussions, repos
from qwenstack.storage.rows import read_row

Status = Literal["open", "closed", "merged", "draft"]

TITLE_CHARACTERS_MIN, TITLE_CHARACTERS_MAX = 3, 200
COMMENT_CHARACTERS_MAX = 65_536
EVENTS_MAX = 5_000
# Of one author in one repo: each pull request costs the repo a ref.
OPEN_MAX = 500
EDITS_MAX = 100
# Of one author on the whole hub, every version of every comment counted.
WORDS_BYTES_MAX = 256 * 1024 * 1024
PAGE = 50


class Discussion(msgspec.Struct, frozen=True, kw_only=True):
    """A thread. `target` is the full ref that a pull request is to be merged into."""

    repo_id: str
    number: int
    title: str
    status: Status
    is_pull_request: bool
    target: str | None
    author: str
    created_us: int


class Version(msgspec.Struct, frozen=True):
    """A comment's text as it was at one time."""

    raw: str
    author: str
    at_us: int


class Comment(msgspec.Struct, frozen=True, tag="comment"):
    """A comment; the last version is what is shown."""

    versions: tuple[Version, ...]
    hidden_by: str | None = None


class StatusChange(msgspec.Struct, frozen=True, tag="status-change"):
    """Opened again, closed or merged. `commit_oid` is the commit that a merge made."""

    status: Status
    commit_oid: str | None = None


class TitleChange(msgspec.Struct, frozen=True, tag="title-change"):
    """Renamed."""

    old: str
    new: str


class CommitAdded(msgspec.Struct, frozen=True, tag="commit"):
    """A commit came to the pull request's ref."""

    oid: str
    subject: str


Happening = Comment | StatusChange | TitleChange | CommitAdded


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in a discussion; `id` is hexadecimal and sorts by time."""

    id: str
    author: str
    at_us: int
    happening: Happening


class Page(msgspec.Struct, frozen=True):
    """Some discussions, the newest first, of `count`; `start` is the first one's place."""

    count: int
    start: int
    discussions: tuple[Discussion, ...]


def open_discussion(
    connection: Connection,
    *,
    repo_id: str,
    author: str,
    title: str,
    description: str,
    target: str | None = None,
    draft: bool = False,
) -> Discussion:
    """Begin a discussion, or with a `target` ref a pull request; its ref is the caller's to make.

    Raises BadRequest for an unusable title or description, TooMany for one author's flood.
    """
    title, description = check_title(title), check_comment(description)
    # Two that open at once must not take the same number.
    connection.execute(select(repos.c.id).where(repos.c.id == repo_id).with_for_update())
    unfinished = connection.scalar(
        select(func.count())
        .select_from(discussions)
        .where(
            discussions.c.repo_id == repo_id,
            discussions.c.author == author,
            discussions.c.status.in_(("open", "draft")),
        )
    )
    if (unfinished or 0) >= OPEN_MAX:
        raise TooMany(f"You have {OPEN_MAX} open discussions in this repo; close some first.")
    last = connection.scalar(
        select(func.max(discussions.c.number)).where(discussions.c.repo_id == repo_id)
    )
    discussion = Discussion(
        repo_id=repo_id,
        number=(last or 0) + 1,
        title=title,
        status="draft" if draft else "open",
        is_pull_request=target is not None,
        target=target,
        author=author,
        created_us=now_us(),
    )
    connection.execute(insert(discussions).values(**msgspec.structs.asdict(discussion)))
    if description:
        add_comment(connection, discussion, author=author, text=description)
    return discussion


def list_discussions(
    connection: Connection,
    repo_id: str,
    *,
    pull_requests: bool | None = None,
    closed: bool | None = None,
    author: str | None = None,
    page: int = 0,
) -> Page:
    """A page of a repo's discussions. `closed`: closed or merged ones, None for all."""
    table = discussions
    statement = select(table).where(table.c.repo_id == repo_id)
    if pull_requests is not None:
        statement = statement.where(table.c.is_pull_request.is_(pull_requests))
    if closed is not None:
        over = table.c.status.in_(("closed", "merged"))
        statement = statement.where(over if closed else ~over)
    if author is not None:
        statement = statement.where(table.c.author == author.lower())
    count = connection.scalar(select(func.count()).select_from(statement.subquery())) or 0
    start = page * PAGE
    rows = connection.execute(statement.order_by(table.c.number.desc()).offset(start).limit(PAGE))
    return Page(count, start, tuple(read_row(row, Discussion) for row in rows))


def find_discussion(connection: Connection, repo_id: str, number: int) -> Discussion:
    """The discussion of this number; raises NotFound."""
    row = connection.execute(
        select(discussions).where(
            discussions.c.repo_id == repo_id, discussions.c.number == min(number, 2**31 - 1)
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no discussion {number} in this repo.")
    return read_row(row, Discussion)


def read_events(connection: Connection, discussion: Discussion) -> list[Event]:
    """What happened, in order."""
    table = discussion_events
    rows = connection.execute(
        select(table)
        .where(table.c.repo_id == discussion.repo_id, table.c.number == discussion.number)
        .order_by(table.c.at_us, table.c.id)
        .limit(EVENTS_MAX)
    )
    return [_event(row) for row in rows]


def add_comment(connection: Connection, discussion: Discussion, *, author: str, text: str) -> Event:
    """Say something; raises BadRequest for an empty or overlong comment, Conflict for the limit."""
    text = check_comment(text)
    if not text:
        raise BadRequest("comment is empty; write something")
    _check_room(connection, author)
    at_us = now_us()
    comment = Comment(versions=(Version(text, author, at_us),))
    return _append(connection, discussion, author, comment, at_us)


def edit_comment(
    connection: Connection, discussion: Discussion, event_id: str, *, author: str, text: str
) -> Event:
    """Replace a comment's text, keeping the earlier ones; raises HubError."""
    event, comment = find_comment(connection, discussion, event_id)
    text = check_comment(text)
    if not text:
        raise BadRequest("content is empty; hide the comment instead")
    if comment.hidden_by is not None:
        raise Conflict("The comment is hidden; a hidden comment cannot be edited.")
    if len(comment.versions) > EDITS_MAX:
        raise Conflict(f"The comment was edited {EDITS_MAX} times, the most that is kept.")
    _check_room(connection, author)
    versions = (*comment.versions, Version(text, author, now_us()))
    return _replace(connection, discussion, event, Comment(versions=versions))


def hide_comment(
    connection: Connection, discussion: Discussion, event_id: str, *, by: str
) -> Event:
    """Remove a comment's text, in every version, for good; raises NotFound."""
    event, comment = find_comment(connection, discussion, event_id)
    emptied = tuple(Version("", each.author, each.at_us) for each in comment.versions[:1])
    return _replace(connection, discussion, event, Comment(emptied, hidden_by=by))


def _check_room(connection: Connection, author: str) -> None:
    """Raises QuotaExceeded for an author who has written more than is kept of one."""
    written = func.sum(func.length(discussion_events.c.document))
    query = select(written).where(discussion_events.c.author == author)
    if (connection.scalar(query) or 0) >= WORDS_BYTES_MAX:
        raise QuotaExceeded(
            f"{author} has written {WORDS_BYTES_MAX} bytes in discussions, the most that this hub "
            "keeps of one account; hide some comments first."
        )


def find_comment(
    connection: Connection, discussion: Discussion, event_id: str
) -> tuple[Event, Comment]:
    """The comment with this id in this discussion; raises NotFound."""
    table = discussion_events
    row = connection.execute(
        select(table).where(
            table.c.repo_id == discussion.repo_id,
            table.c.number == discussion.number,
            table.c.id == event_id.lower(),
        )
    ).one_or_none()
    event = None if row is None else _event(row)
    if event is None or not isinstance(event.happening, Comment):
        raise NotFound(f"There is no comment {event_id[:48]!r} in discussion {discussion.number}.")
    return event, event.happening


def rename(connection: Connection, discussion: Discussion, *, author: str, title: str) -> Event:
    """Give the discussion another title; raises BadRequest."""
    title = check_title(title)
    _set(connection, discussion, title=title)
    return _append(connection, discussion, author, TitleChange(discussion.title, title))


def change_status(
    connection: Connection, discussion: Discussion, *, author: str, status: str
) -> Event:
    """Close or open; raises BadRequest for another word, Conflict where nothing would change."""
    if status not in ("open", "closed"):
        raise BadRequest(f"status {status[:40]!r} must be open or closed")
    if discussion.status == "merged":
        raise Conflict(f"Pull request {discussion.number} is merged; open a new one.")
    if discussion.status == status:
        raise Conflict(f"Discussion {discussion.number} is {status} already.")
    changed = msgspec.convert(status, Status)
    _set(connection, discussion, status=changed)
    return _append(connection, discussion, author, StatusChange(changed))


def record_merge(
    connection: Connection, discussion: Discussion, *, author: str, commit_oid: str
) -> Event:
    """Note that a pull request was merged as `commit_oid`."""
    _set(connection, discussion, status="merged")
    return _append(connection, discussion, author, StatusChange("merged", commit_oid))


def record_commit(
    connection: Connection, discussion: Discussion, *, author: str, oid: str, subject: str
) -> Event:
    """Note that a commit came to a pull request's ref."""
    return _append(connection, discussion, author, CommitAdded(oid, subject))


def merge_commit(events: list[Event]) -> str | None:
    """The commit that merged the pull request, of its events."""
    for event in reversed(events):
        if isinstance(event.happening, StatusChange) and event.happening.status == "merged":
            return event.happening.commit_oid
    return None


def rename_author(connection: Connection, old: str, new: str) -> None:
    """Let the account `new` have said what `old` did (keys)."""
    threads, table = discussions, discussion_events
    connection.execute(update(threads).where(threads.c.author == old).values(author=new))
    connection.execute(update(table).where(table.c.author == old).values(author=new))
    named = table.c.document.contains(msgspec.json.encode(old).decode(), autoescape=True)
    for row in connection.execute(select(table).where(table.c.kind == "comment", named)).all():
        comment = _event(row).happening
        if not isinstance(comment, Comment):
            continue
        renamed = Comment(
            tuple(
                Version(each.raw, new if each.author == old else each.author, each.at_us)
                for each in comment.versions
            ),
            new if comment.hidden_by == old else comment.hidden_by,
        )
        one = (table.c.repo_id == row.repo_id, table.c.number == row.number, table.c.id == row.id)
        document = msgspec.json.encode(renamed).decode()
        connection.execute(update(table).where(*one).values(document=document))


def check_title(title: str) -> str:
    """The title in one line; raises BadRequest for one too short or too long."""
    title = " ".join(title.split())
    if not TITLE_CHARACTERS_MIN <= len(title) <= TITLE_CHARACTERS_MAX or not title.isprintable():
        raise BadRequest(
            f"title {title[:40]!r} must have {TITLE_CHARACTERS_MIN} to {TITLE_CHARACTERS_MAX} "
            "printable characters"
        )
    return title


def check_comment(text: str) -> str:
    """A comment without outer space; raises BadRequest for one too long."""
    text = text.strip()
    if len(text) > COMMENT_CHARACTERS_MAX or "\0" in text:
        raise BadRequest(
            f"a comment has at most {COMMENT_CHARACTERS_MAX} characters and no NUL; this one has "
            f"{len(text)}"
        )
    return text


def _set(connection: Connection, discussion: Discussion, **values: str) -> None:
    connection.execute(
        update(discussions)
        .where(
            discussions.c.repo_id == discussion.repo_id,
            discussions.c.number == discussion.number,
        )
        .values(**values)
    )


def _append(
    connection: Connection,
    discussion: Discussion,
    author: str,
    happening: Happening,
    at_us: int | None = None,
) -> Event:
    table = discussion_events
    count = connection.scalar(
        select(func.count())
        .select_from(table)
        .where(table.c.repo_id == discussion.repo_id, table.c.number == discussion.number)
    )
    if (count or 0) >= EVENTS_MAX:
        raise Conflict(f"Discussion {discussion.number} has {EVENTS_MAX} events, the most kept.")
    event = Event(id=_event_id(), author=author, at_us=at_us or now_us(), happening=happening)
    connection.execute(
        insert(table).values(
            repo_id=discussion.repo_id,
            number=discussion.number,
            id=event.id,
            kind=_kind(happening),
            author=author,
            at_us=event.at_us,
            document=msgspec.json.encode(happening).decode(),
        )
    )
    return event


def _replace(
    connection: Connection, discussion: Discussion, event: Event, comment: Comment
) -> Event:
    table = discussion_events
    connection.execute(
        update(table)
        .where(
            table.c.repo_id == discussion.repo_id,
            table.c.number == discussion.number,
            table.c.id == event.id,
        )
        .values(document=msgspec.json.encode(comment).decode())
    )
    return msgspec.structs.replace(event, happening=comment)


def _event(row: Row[tuple[object, ...]]) -> Event:
    return Event(
        id=row.id,
        author=row.author,
        at_us=row.at_us,
        happening=msgspec.json.decode(row.document, type=Happening),
    )


def _kind(happening: Happening) -> str:
    return str(happening.__struct_config__.tag)


def _event_id() -> str:
    """24 hexadecimal digits: the client writes ids in lower case, and sorts nothing itself."""
    return f"{time.time_ns():016x}"[-16:] + secrets.token_hex(4)
