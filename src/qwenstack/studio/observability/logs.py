"""The log: one line a record, JSON or text, and one line for each request that ended."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, TypedDict

import msgspec
from sqlalchemy.exc import DBAPIError

from qwenstack.core.instants import now_us, to_us
from qwenstack.core.refusals import Refusal
from qwenstack.core.safe_text import printable
from qwenstack.engines.interface import EngineRejected
from qwenstack.studio.charge import Charge
from qwenstack.studio.settings import LogSettings
from qwenstack.studio.ticket import Ticket

_log = logging.getLogger("qwenstack.requests")

# What the standard library itself puts on a record; everything else came through `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_CHAIN_MAX = 8
_FRAMES_MAX = 30
_encoder = msgspec.json.Encoder(enc_hook=str)


class RequestLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that ended, as the message of its log record; its text is `request` and its fields.

    A type of its own, since every request writes one: it takes a third of the time of `extra`.
    """

    request_id: str
    workspace: str
    key: str
    surface: str
    model: str
    batch_id: str | None = None
    outcome: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    amount_micro: int | None = None
    currency: str | None = None
    first_token_ms: int | None = None
    duration_ms: int

    def __str__(self) -> str:
        shown = ["request"]
        for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(self), strict=True):
            if value is not None:
                shown.append(f"{name}={value}")
        return " ".join(shown)


def configure_logging(settings: LogSettings, stream: IO[str] | None = None) -> None:
    """Send every log record to `stream` (standard error), as the settings say.

    Calling it again replaces what the call before set up. The level holds for our own records;
    libraries speak from warning up, whatever it is, since their chatter could hold requests.
    """
    # Nobody shows them, and each record looks them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("qwenstack").setLevel(settings.level.upper())


class _Handler(logging.StreamHandler[IO[str]]):
    """Ours: so that a second configuration finds and replaces it."""


class JsonLines(logging.Formatter):
    """A JSON object a line: `time` (UTC), `level`, `logger`, `message`, and all of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        if isinstance(record.msg, RequestLine):
            # Level and logger are our own words, which need no escape.
            return (
                f'{{"time":"{_time(record)}","level":"{record.levelname.lower()}",'
                f'"logger":"{record.name}","message":"request",'
                f"{_encoder.encode(record.msg)[1:].decode()}"
            )
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            fields["traceback"] = traceback_without_text(record.exc_info[1])
        return _encoder.encode(fields).decode()


class TextLines(logging.Formatter):
    """Time, level, message and `name=value` of all of `extra`; foreign text cannot break a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and a traceback below where there is one."""
        extras = ""
        if not isinstance(record.msg, RequestLine):
            extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = printable(
            f"{_time(record)} {record.levelname.lower()} {record.getMessage()}{extras}"
        )
        if record.exc_info:
            line += "\n" + traceback_without_text(record.exc_info[1])
        return line


def traceback_without_text(error: BaseException | None) -> str:
    """Where an error and those behind it came from, and what they are, the first one first.

    An exception's words may quote a request, or the values of an SQL statement, so that they are
    left out; only those of the operating system and of a database's driver are shown.
    """
    shown: list[str] = []
    while error is not None and len(shown) < _CHAIN_MAX:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if isinstance(error, (OSError, DBAPIError)):
            words = str(error.orig if isinstance(error, DBAPIError) else error)
            # PostgreSQL's further lines show the row.
            kind += f": {printable(words.partition(chr(10))[0])}"
        shown.append("".join(traceback.format_tb(error.__traceback__, -_FRAMES_MAX)) + kind)
        behind = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or behind
    return "\n".join(reversed(shown))


def _time(record: logging.LogRecord) -> str:
    seconds, fraction = divmod(record.created, 1)
    return f"{_second(int(seconds))}.{int(fraction * 1000):03d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and value is not None
    }


class RequestLog:
    """An observer that logs a line for each request that ended or was refused."""

    def settled(self, ticket: Ticket, charge: Charge) -> None:
        """A bill: what was used, what it costs, how long it took."""
        if not _log.isEnabledFor(logging.INFO):
            return
        usage, line = charge.usage, ticket.line
        _write(
            RequestLine(
                request_id=charge.request_id,
                workspace=charge.workspace_id,
                key=ticket.caller.key.prefix,
                surface=charge.surface,
                model=charge.model,
                batch_id=line.batch_id if line else None,
                outcome=charge.outcome,
                prompt_tokens=usage.prompt,
                completion_tokens=usage.completion,
                cached_tokens=usage.cached + usage.cached_explicit,
                reasoning_tokens=usage.reasoning,
                amount_micro=charge.amount_micro,
                currency=charge.currency,
                first_token_ms=charge.first_token_ms,
                duration_ms=(to_us(charge.finished_at) - ticket.started_us) // 1000,
            )
        )

    def voided(self, ticket: Ticket) -> None:
        """A request without a bill."""
        if not _log.isEnabledFor(logging.INFO):
            return
        duration_ms = (now_us() - ticket.started_us) // 1000
        _write(RequestLine(**_who(ticket), outcome="voided", duration_ms=duration_ms))

    def unmetered(self, ticket: Ticket) -> None:
        """A warning: text was given away."""
        _log.warning("a stream broke off uncounted and is not billed", extra=_who(ticket))

    def engine_failed(self, ticket: Ticket, error: Exception) -> None:
        """A warning with the error's class, and its words where they cannot be the caller's."""
        # A rejection repeats the engine's words on the request, which may quote the prompt.
        reason = None if isinstance(error, EngineRejected) else str(error)
        _log.warning(
            "the engine failed",
            extra={**_who(ticket), "error": type(error).__name__, "reason": reason},
        )

    def refused(self, surface: str, refusal: Refusal, request_id: str) -> None:
        """The kind alone: a refusal's words may quote the request."""
        _log.info(
            "refused",
            extra={"request_id": request_id, "surface": surface, "kind": refusal.kind.value},
        )


def _write(line: RequestLine) -> None:
    # Not through `info`, which looks for the caller's file and line, and nobody shows those.
    _log.handle(logging.LogRecord(_log.name, logging.INFO, "", 0, line, (), None))


class _Who(TypedDict):
    request_id: str
    workspace: str
    key: str
    surface: str
    model: str
    batch_id: str | None


def _who(ticket: Ticket) -> _Who:
    line = ticket.line
    return {
        "request_id": ticket.request_id,
        "workspace": ticket.caller.workspace.id,
        "key": ticket.caller.key.prefix,
        "surface": ticket.surface,
        "model": ticket.deployment.name,
        "batch_id": line.batch_id if line else None,
    }
