"""How `which` looks in a terminal: a panel for an answer, a table for a scan."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from qwenstack.catalog.policy import Decision
    from qwenstack.catalog.scan.find import Report
    from qwenstack.catalog.which import Answer

_LABEL_COLUMNS = 19
_SECONDS_BEFORE_COUNTING = 2.0
_DUTIES_SHOWN_MAX = 12
_SAID_ABOVE = ("base", "licence", "licence as stated")
_COLOURS = {
    "weights": "green", "studio": "cyan", "community": "magenta", "research": "blue",
    "corporate": "blue", "unknown": "yellow", "allow": "green", "warn": "yellow", "deny": "red",
}  # fmt: skip


def print_answer(answer: Answer, decision: Decision | None, indent: str = "") -> None:
    """Print an answer, each line with its source and the date on which that was checked."""
    layer = click.style(answer.layer, fg=_COLOURS.get(answer.layer), bold=True)
    click.echo(f"{indent}{click.style(answer.reference, bold=True)}")
    rows = [
        ("layer", f"{layer}  {_dim(answer.status.value)}"),
        ("is", f"{answer.release or 'unknown'}  {_dim(answer.kind)}"),
        ("why", answer.why),
        ("publisher", answer.publisher),
        ("operator", answer.operator),
        ("governed by", _document(answer)),
    ]
    if answer.base:
        rows.append(("base", answer.base))
    if answer.region:
        rows.append(("region", answer.region))
    for label, text in rows:
        _row(label, text, indent)
    for line in answer.lines:
        if line.label in _SAID_ABOVE and line.value in (answer.base, answer.governing_document.id):
            continue
        source = f"{line.source}, {line.checked}" if line.checked else line.source
        _row(line.label, f"{line.value}  {_dim(f'{line.status.value}: {source}')}", indent)
    _obligations(answer, indent)
    for text in answer.conflicts:
        _row(click.style("conflict", fg="yellow"), text, indent)
    for text in answer.problems:
        _row(click.style("note", fg="yellow"), text, indent)
    for number, like in enumerate(answer.lookalikes):
        text = f"{like.reference} ({like.layer}): {like.reason}"
        _row("not to confuse" if number == 0 else "", text, indent)
    if answer.suggestions:
        _row("did you mean", ", ".join(answer.suggestions), indent)
    for part in answer.parts:
        click.echo()
        print_answer(part, None, indent + "  ")
    if decision is not None:
        for reason in decision.reasons:
            outcome = click.style(reason.outcome.value, fg=_COLOURS[reason.outcome.value])
            _row("policy", f"{outcome}  {reason.rule.value}: {reason.text}", indent)
    click.echo()


def _obligations(answer: Answer, indent: str) -> None:
    """Each duty with its clause; the text they were read in once, where it is the same."""
    said = ""
    for number, duty in enumerate(answer.obligations[:_DUTIES_SHOWN_MAX]):
        clause = f" ({duty.clause})" if duty.clause else ""
        source = f"{duty.source}, {duty.checked}"
        shown = "" if source == said else f"  {_dim(source)}"
        said = source
        _row(
            "obligations" if number == 0 else "", f"{duty.kind}: {duty.text}{clause}{shown}", indent
        )


def print_report(report: Report, decisions: list[Decision]) -> None:
    """Print a scan: a line for each place, and what was not looked at."""
    lines: list[str] = []
    for number, finding in enumerate(report.findings):
        place, answer = finding.place, finding.answer
        head = f"{place.path}:{place.line}:{place.column}"
        layer = click.style(answer.layer, fg=_COLOURS.get(answer.layer))
        document = answer.governing_document
        text = f"{head}: {place.reference}  {layer}  {document.kind.value} {document.id}"
        if decisions:
            outcome = decisions[number].decision.value
            text += "  " + click.style(outcome, fg=_COLOURS[outcome])
            reasons = [
                each.text
                for each in decisions[number].reasons
                if each.outcome.value == outcome and outcome != "allow"
            ]
            text += f"  {'; '.join(reasons)}" if reasons else ""
        elif answer.conflicts:
            text += f"  ({answer.conflicts[0]})"
        elif answer.suggestions and answer.layer == "unknown":
            text += f"  (did you mean {answer.suggestions[0]}?)"
        lines.append(text)
    if lines:
        click.echo("\n".join(lines))
    for trouble in report.troubles[:20]:
        click.echo(f"{trouble.path}: not looked at: {trouble.reason}", err=True)
    if len(report.troubles) > 20:
        click.echo(f"and {len(report.troubles) - 20} more places not looked at", err=True)
    if report.truncated:
        click.echo(f"stopped at {len(report.findings):,} references: narrow the tree", err=True)
    names = len({each.place.reference for each in report.findings})
    files = len({each.place.path for each in report.findings})
    click.echo(
        f"{len(report.findings):,} references to {names:,} models in {files:,} of "
        f"{report.files:,} files",
        err=True,
    )


class Counting:
    """The number of files done, on a terminal, once a scan takes longer than two seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shows = stream.isatty()
        self._start = time.monotonic()
        self._drawn = False

    def __enter__(self) -> Counting:
        return self

    def files(self, done: int) -> None:
        """`done` files have been searched."""
        if self._shows and time.monotonic() - self._start > _SECONDS_BEFORE_COUNTING:
            self._drawn = True
            self._stream.write(f"\r{done:,} files searched")
            self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _document(answer: Answer) -> str:
    document = answer.governing_document
    if document.kind.value == "unknown":
        return "unknown"
    checked = f", {document.checked}" if document.checked else ""
    return f"{document.kind.value} {document.id}  {_dim(f'{document.source}{checked}')}"


def _row(label: str, text: str, indent: str) -> None:
    start = f"{indent}  {label}" + " " * max(1, _LABEL_COLUMNS - len(click.unstyle(label)))
    lines = list(_wrapped(text, _columns() - len(indent) - _LABEL_COLUMNS - 2))
    click.echo(start + ("\n" + " " * (len(indent) + _LABEL_COLUMNS + 2)).join(lines))


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Break at spaces, by what is seen: colour codes have no width."""
    line, seen = "", 0
    for word in text.split(" "):
        length = len(click.unstyle(word))
        if line and seen + 1 + length > width:
            yield line
            line, seen = word, length
        else:
            line, seen = (f"{line} {word}", seen + 1 + length) if line else (word, length)
    yield line


def _columns() -> int:
    import shutil

    return max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))


def _dim(text: str) -> str:
    return click.style(text, dim=True) if sys.stdout.isatty() else f"[{text}]"
