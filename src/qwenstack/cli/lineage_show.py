"""`qwenstack lineage REF`: one model's parent."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from qwenstack.cli.context import home_option, json_option
from qwenstack.cli.hub_context import database_option, objects_option
from qwenstack.cli.lineage_hub import lineage_index
from qwenstack.cli.tables import show_table
from qwenstack.hub.lineage.library import folder_library, own_name
from qwenstack.hub.lineage.model import Model, open_path
from qwenstack.hub.lineage.trace import Answer, LayerEvidence, trace

_LAYERS_SHOWN = 12


@click.command()
@click.argument("reference")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Only the models below this folder; without: the releases of this machine's hub.",
)
@database_option
@objects_option
@home_option
@json_option
def show(
    reference: str,
    against: Path | None,
    database: str | None,
    objects: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Say whose child REFERENCE is: a folder, a .gguf or .safetensors file, or a release.

    \b
    Examples:
      qwenstack lineage ./my-model --against ./bases
      qwenstack lineage model.gguf --against ./bases --json
      qwenstack lineage acme/helper
    """
    path = Path(reference)
    if against is not None:
        answer = _among(_opened(path, reference, against, database, objects, home), against)
    else:
        with lineage_index(home, database, objects) as index:
            model = open_path(path, name=reference) if path.exists() else index.open(reference)
            answer = index.ask(model)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
        return
    _print(reference, answer)


def _opened(
    path: Path,
    reference: str,
    against: Path,
    database: str | None,
    objects: str | None,
    home: Path | None,
) -> Model:
    """The model, under the name that it has among the candidates where it is one of them.

    One from outside keeps its whole path, which no candidate is called.
    """
    if not path.exists():
        with lineage_index(home, database, objects) as index:
            return index.open(reference)
    return open_path(path, name=own_name(against, path) or str(path.resolve()))


def _among(model: Model, against: Path) -> Answer:
    return trace(model, folder_library(against))


def _print(reference: str, answer: Answer) -> None:
    console = Console()
    sure = f"{answer.confidence:.1%} sure"
    if answer.verdict == "derived":
        whose = " and ".join(answer.parents)
        console.print(
            f"[bold]{reference}[/bold]: {answer.relation} of [bold]{whose}[/bold], {sure}"
        )
    elif answer.verdict == "independent":
        console.print(f"[bold]{reference}[/bold] comes from none of the candidates, {sure}")
    else:
        console.print(f"[bold]{reference}[/bold]: the evidence does not decide")
    for evidence in answer.evidence:
        if evidence.layers:
            show_table(_table(evidence.layers))
            continue
        value = "" if evidence.value is None else f" {evidence.value:.4g}"
        console.print(
            f"  {evidence.about}:{value} {evidence.detail}", highlight=False, markup=False
        )
    if answer.descendants:
        console.print(
            f"  descendants: {', '.join(answer.descendants[:20])}", highlight=False, markup=False
        )


def _table(layers: list[LayerEvidence]) -> Table:
    roles = sorted({role for layer in layers for role in layer.cosine})
    table = Table("layer", "from", *roles, title="cosine of each matrix with the parent's")
    for layer in layers[:_LAYERS_SHOWN]:
        cells = [f"{layer.cosine[role]:.4f}" if role in layer.cosine else "" for role in roles]
        table.add_row(str(layer.layer), str(layer.parent_layer), *cells)
    if len(layers) > _LAYERS_SHOWN:
        table.caption = f"and {len(layers) - _LAYERS_SHOWN} more layers: see --json"
    return table
