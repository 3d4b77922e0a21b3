"""`qwenstack catalog`: what exists, on which layer, under which terms, and who says so."""

from __future__ import annotations

import datetime
import difflib
import enum
from pathlib import Path

import click
import msgspec

from qwenstack.catalog.difference import Change, changes
from qwenstack.catalog.listing import CITATION_FIELDS, Filter, Line, facts, find, lines
from qwenstack.catalog.load import Catalogue, load, load_folder
from qwenstack.catalog.model import Fact, Modality, Record, Records, Repo, Source
from qwenstack.catalog.read import CatalogueError
from qwenstack.cli.catalog_serve import serve
from qwenstack.cli.context import json_option, print_json
from qwenstack.core.layers import Layer
from qwenstack.core.licences import Licence

_EXPORT_BYTES_MAX = 256 * 1024 * 1024


@click.group()
def catalog() -> None:
    """The Qwen family on record: releases, hosted names, derivatives, each fact with its source.

    \b
    Examples:
      qwenstack catalog ls --licence non-commercial
      qwenstack catalog show Qwen/Qwen2.5-3B-Instruct
      qwenstack catalog show qwen3-max
    """


catalog.add_command(serve)


@catalog.command("ls")
@click.option(
    "--layer",
    type=click.Choice(["weights", "studio", "community", "all"]),
    default="weights",
    show_default=True,
    help="Whose: weights, API names, derivatives.",
)
@click.option(
    "--modality",
    type=click.Choice([each.value for each in Modality]),
    help="What it takes or does.",
)
@click.option("--licence", default="", help="A licence id, a hub's name for it, or a category.")
@click.option("--generation", default="", help="A generation or its family: qwen3, qwen2.5-coder.")
@json_option
def list_(layer: str, modality: str | None, licence: str, generation: str, as_json: bool) -> None:
    """List releases, hosted names or derivatives; a `!` marks sources that contradict each other.

    \b
    Examples:
      qwenstack catalog ls
      qwenstack catalog ls --licence permissive --modality vision
      qwenstack catalog ls --layer studio --json
      qwenstack catalog ls --generation qwen2.5
    """
    wanted = Filter(
        layer=None if layer == "all" else Layer(layer),
        modality=Modality(modality) if modality else None,
        licence=licence,
        generation=generation,
    )
    found = [line for line in lines(load()) if wanted.takes(line)]
    if as_json:
        print_json(found)
        return
    for line in found:
        click.echo(_line(line))
    if not found:
        click.echo("nothing on record fits; leave an option out", err=True)


@catalog.command("show")
@click.argument("name", metavar="ID")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is on record for an id: every fact, how sure it is, and where it was read.

    \b
    Examples:
      qwenstack catalog show Qwen/Qwen3.8-Flash-Next
      qwenstack catalog show qwen2.5:72b
      qwenstack catalog show LicenseRef-scancode-qwen-2024 --json
    """
    catalogue = load()
    found = find(catalogue, name)
    if not found:
        raise click.ClickException(_not_found(catalogue, name))
    if as_json:
        print_json(
            [
                {"kind": kind, "record": record, "sources": _cited(catalogue, record)}
                for kind, record in found
            ]
        )
        return
    for number, (kind, record) in enumerate(found):
        if number:
            click.echo()
        _print_record(catalogue, kind, record)


@catalog.command("diff")
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
@json_option
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Say what changed between two editions: folders of data files, or exports (JSON).

    Exits with 1 where they differ. A fact that was only looked at again is no change.

    \b
    Examples:
      qwenstack catalog export > before.json
      qwenstack catalog diff before.json after.json
    """
    found = changes(_edition(old), _edition(new))
    if as_json:
        print_json(found)
    else:
        for change in found:
            click.echo(_change(change))
        click.echo(f"{len(found)} changes" if found else "no change", err=True)
    if found:
        raise click.exceptions.Exit(1)


@catalog.command("export")
def export() -> None:
    """Print the whole catalogue as JSON, for `diff` and for other programs.

    \b
    Examples:
      qwenstack catalog export > catalogue.json
    """
    print_json(load())


def _edition(path: Path) -> Records:
    if path.is_dir():
        return load_folder(path, use_cache=False)
    if (size := path.stat().st_size) > _EXPORT_BYTES_MAX:
        raise CatalogueError(f"{path}: {size} bytes, more than {_EXPORT_BYTES_MAX}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Records)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CatalogueError(
            f"{path}: no export of the catalogue: {error}; make one with "
            "`qwenstack catalog export`, or give a folder of data files"
        ) from error


def _line(line: Line) -> str:
    mark = "!" if line.conflict else " "
    date = line.date.isoformat() if line.date else "-"
    return (
        f"{mark} {line.id:<38} {line.size or '-':<11} {_context(line.context):>6}  {date:<10}  "
        f"{line.governed_by} [{line.status}]"
    )


def _context(tokens: int | None) -> str:
    if tokens is None:
        return "-"
    return f"{tokens / 1_000_000:.3g}M" if tokens >= 1_000_000 else f"{tokens // 1024}K"


def _change(change: Change) -> str:
    where = f"{change.kind} {change.id}"
    if change.what != "changed":
        return f"{change.what:<8} {where}"
    return f"changed  {where}: {change.field}: {change.before!r} -> {change.after!r}"


def _not_found(catalogue: Catalogue, name: str) -> str:
    names = {each.casefold(): each for each in catalogue.names}
    close = difflib.get_close_matches(name.casefold(), names, n=3)
    hint = f"; did you mean {', '.join(names[each] for each in close)}?" if close else ""
    return f"{name!r} is not on record{hint}"


def _cited(catalogue: Catalogue, record: msgspec.Struct) -> list[Source]:
    from qwenstack.catalog.read import citations

    if not isinstance(record, Record):
        return []
    keys = dict.fromkeys(key for _, key in citations(record))
    return [source for key in keys if (source := catalogue.find_source(key)) is not None]


def _print_record(catalogue: Catalogue, kind: str, record: msgspec.Struct) -> None:
    title = getattr(record, "id", None) or getattr(record, "key", "")
    click.echo(click.style(f"{kind} {title}", bold=True))
    known = dict(facts(record))
    missing = [field for field, fact in known.items() if not fact.known and not fact.note]
    for field in record.__struct_fields__:
        if field in ("id", "key", *missing):
            continue
        if field in CITATION_FIELDS[:3] and isinstance(record, Record):
            continue
        value = getattr(record, field)
        if field in known:
            _print_fact(field, known[field])
        else:
            _print_field(field, value)
    if missing:
        click.echo(f"  not on record      {', '.join(missing)}")
    if isinstance(record, Record):
        click.echo("  read in")
        for source in _cited(catalogue, record):
            click.echo(f"    {source.key:<24} {source.title} <{source.locator}>")


def _print_field(field: str, value: object) -> None:
    """A plain field; a list of records has a line for each."""
    if value in ("", (), None, False):
        return
    listed = isinstance(value, tuple) and isinstance(value[0], msgspec.Struct)
    for number, each in enumerate(value if listed and isinstance(value, tuple) else (value,)):
        click.echo(f"  {field if not number else '':<18} {_text(each)}")


def _print_fact(field: str, fact: Fact[object]) -> None:
    note = f"; {fact.note}" if fact.note else ""
    click.echo(f"  {field:<18} {_text(fact.value)}  [{fact.status.value}: {fact.source}{note}]")
    for claim in fact.otherwise:
        note = f"; {claim.note}" if claim.note else ""
        click.echo(f"  {'':<18} otherwise {_text(claim.value)}  [{claim.source}{note}]")


def _text(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:_}".replace("_", " ")
    if isinstance(value, tuple):
        return ", ".join(_text(each) for each in value)
    if isinstance(value, Repo):
        return value.id
    if isinstance(value, msgspec.Struct) and not isinstance(value, Licence):
        parts = (getattr(value, name) for name in value.__struct_fields__)
        return " ".join(_text(part) for part in parts if part not in ("", None))
    return str(value)
