"""`qwenstack compare`: candidates side by side, and cost against quality as a picture."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import psutil
from rich.table import Table

from qwenstack.catalog.compare import Candidate, Measured, candidate, draw
from qwenstack.catalog.load import load
from qwenstack.catalog.which import which
from qwenstack.cli.context import json_option, print_json
from qwenstack.cli.tables import show_table

_MEASURED_BYTES_MAX = 4 * 1024 * 1024


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--memory", type=float, help="GiB that a model may take; default: this machine's.")
@click.option("--context", default=8192, show_default=True, help="Tokens of the sequence to hold.")
@click.option(
    "--measured",
    "measured_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='JSON: {"REF": {"quality": 0.61, "task": "mmlu", "tokens_per_s": 42.0}}.',
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw price against measured quality: .svg, .png or .pdf.",
)
@json_option
def compare(
    references: tuple[str, ...],
    memory: float | None,
    context: int,
    measured_file: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Set candidates side by side on what decides.

    Each REF is anything that `qwenstack which` takes. Prices are what somebody states, not a quote;
    quality and speed are shown where --measured says what was measured.

    \b
    Examples:
      qwenstack compare Qwen/Qwen3-8B Qwen/Qwen2.5-3B-Instruct qwen-plus
      qwenstack compare Qwen/Qwen3-14B qwen-flash --memory 24 --measured runs.json --plot q.svg
    """
    measured = _read_measured(measured_file) if measured_file else {}
    gib = memory if memory is not None else psutil.virtual_memory().total / 2**30
    catalogue = load()
    found = [
        candidate(which(each), catalogue, context_tokens=context, memory_gib=gib, measured=measured)
        for each in references
    ]
    if plot is not None:
        if not draw(found, plot):
            raise click.UsageError(
                "nothing to draw: no candidate has both a price and a measured quality (--measured)"
            )
        click.echo(f"Wrote {plot}.", err=True)
    if as_json:
        print_json({"memory_gib": round(gib, 1), "context_tokens": context, "candidates": found})
    else:
        show_table(_table(found, gib, context))


def _read_measured(path: Path) -> dict[str, Measured]:
    if path.stat().st_size > _MEASURED_BYTES_MAX:
        raise click.BadParameter(f"{path} is larger than {_MEASURED_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Measured])
    except msgspec.MsgspecError as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--measured") from error


def _table(found: list[Candidate], gib: float, context: int) -> Table:
    table = Table("", *(each.reference for each in found), title="Candidates")
    rows: list[tuple[str, list[str]]] = [
        ("layer", [each.layer for each in found]),
        ("release", [each.release or "unknown" for each in found]),
        ("operator", [each.operator for each in found]),
        ("governed by", [f"{each.document} ({each.governed_by})" for each in found]),
        ("obligations", [", ".join(dict.fromkeys(each.obligations)) or "-" for each in found]),
        ("modality", [", ".join(each.modality) or "unknown" for each in found]),
        ("parameters", [_size(each) for each in found]),
        ("context", [_count(each.context_tokens) for each in found]),
        *(
            (f"memory {precision}", [_memory(each, precision) for each in found])
            for precision in ("bf16", "q8_0", "q4_k_m")
        ),
        ("price in / out", [_price(each) for each in found]),
        ("state", [each.state or "-" for each in found]),
        ("quality", [_quality(each) for each in found]),
        ("tokens/s", [_number(each.measured.tokens_per_s) for each in found]),
    ]
    for label, cells in rows:
        table.add_row(label, *cells)
    table.caption = (
        f"Memory: weights and {context} tokens of cache, against {gib:.1f} GiB; "
        "prices per million tokens."
    )
    return table


def _size(each: Candidate) -> str:
    if each.parameters is None:
        return "unknown"
    active = each.active_parameters
    return f"{each.parameters / 1e9:.2f}B" + (f", {active / 1e9:.2f}B active" if active else "")


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}".replace(",", " ")


def _memory(each: Candidate, precision: str) -> str:
    if precision not in each.memory_gib:
        return "-" if each.layer == "studio" else "unknown"
    fits = each.fits.get(precision)
    verdict = "" if fits is None else " fits" if fits else " too large"
    return f"{each.memory_gib[precision]:.1f} GiB{verdict}"


def _price(each: Candidate) -> str:
    if each.price_input is None:
        return "-"
    return f"{each.price_input} / {each.price_output} {each.price_currency}"


def _quality(each: Candidate) -> str:
    return f"{_number(each.measured.quality)} {each.measured.task}".strip()


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
