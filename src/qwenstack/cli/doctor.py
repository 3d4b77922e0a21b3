"""`qwenstack doctor`: is this machine fit, and is this installation whole?"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import psutil
from rich.table import Table

from qwenstack.cli.context import (
    home_option,
    json_option,
    model_cache,
    print_json,
    read_settings,
    resolve_home,
)
from qwenstack.cli.failures import EXPECTED, describe
from qwenstack.cli.tables import show_table
from qwenstack.engines.llamacpp_child import missing_cpu_feature
from qwenstack.storage import audit_log
from qwenstack.storage.database import shown
from qwenstack.studio.installation import database_url, prepare
from qwenstack.studio.ledger.verify import verify_ledger
from qwenstack.studio.price_book import load_shelf
from qwenstack.studio.settings import Settings

_GIB = 2**30
_MEMORY_MIN_GIB = 2
_DISK_MIN_GIB = 2


class Finding(msgspec.Struct, frozen=True):
    """One check: what was found, and what to do where it is not `ok`."""

    check: str
    ok: bool
    found: str


@click.command()
@home_option
@json_option
def doctor(home: Path | None, as_json: bool) -> None:
    """Check the machine, the settings, the database, the ledger and the prices.

    Exits with 1 where something is wrong.
    """
    folder = resolve_home(home)
    findings = [_python(), _processor(), _memory(), _disk(folder)]
    settings = Settings()
    try:
        settings = read_settings(folder)
        findings.append(Finding("settings", True, f"{len(settings.deployments)} deployments"))
    except EXPECTED as error:
        findings.append(Finding("settings", False, describe(error)))
    findings += [
        _tried("prices", lambda: _prices(settings)),
        _tried("model", lambda: _model(folder)),
        *_database(settings, folder),
    ]
    if as_json:
        print_json(findings)
    else:
        table = Table("check", "", "found")
        for each in findings:
            table.add_row(each.check, "ok" if each.ok else "[bold red]no[/]", each.found)
        show_table(table)
    sys.exit(0 if all(each.ok for each in findings) else 1)


def _python() -> Finding:
    version = platform.python_version()
    return Finding("python", (3, 11) <= sys.version_info[:2] <= (3, 14), version)


def _processor() -> Finding:
    missing = missing_cpu_feature()
    return Finding("processor", missing is None, missing or f"{psutil.cpu_count()} cores")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    return Finding("memory", memory.available >= _MEMORY_MIN_GIB * _GIB, text)


def _disk(home: Path) -> Finding:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Finding("disk", free >= _DISK_MIN_GIB * _GIB, f"{free / _GIB:.1f} GiB free for {home}")


def _prices(settings: Settings) -> str:
    folders = (Path(folder).expanduser() for folder in settings.prices.folders)
    return ", ".join(load_shelf(*folders).references())


def _model(home: Path) -> str:
    found = sorted(model_cache(home).glob("*.gguf"))
    return ", ".join(path.name for path in found) or "none yet; `qwenstack up` gets the default"


def _database(settings: Settings, home: Path) -> list[Finding]:
    try:
        database = prepare(settings, home)
    except EXPECTED as error:
        return [Finding("database", False, describe(error))]
    try:
        with database.begin() as connection:
            problems = verify_ledger(connection)
            lines, broken = audit_log.verify(connection)
    finally:
        database.dispose()
    return [
        Finding("database", True, shown(database_url(settings, home))),
        Finding("ledger", not problems, problems[0] if problems else "every entry sums to zero"),
        Finding(
            "audit log",
            broken is None,
            f"{lines} lines" if broken is None else f"line {broken.sequence}: {broken.reason}",
        ),
    ]


def _tried(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except EXPECTED as error:
        return Finding(check, False, describe(error))
