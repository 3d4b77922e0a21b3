"""`qwenstack bench`: measure on this machine, and keep what is best."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec
import tomlkit
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qwenstack.cli.bars import BuildingBars
from qwenstack.cli.context import (
    home_option,
    json_option,
    model_cache,
    print_json,
    resolve_home,
)
from qwenstack.engines.bench import Measurement, measure
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.models import LocalModel, obtain
from qwenstack.studio.settings import CONFIGURATION_NAME

_CONCURRENCIES = (1, 4, 8)
_PARALLELS = (1, 4, 8)
_CONTEXT_TOKENS = 2048


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An engine with so many slots, and its figures at each concurrency."""

    engine: str
    parallel: int
    measurements: tuple[Measurement, ...]

    @property
    def best_tokens_per_s(self) -> float:
        """Its throughput where it is highest."""
        return max(each.tokens_per_s for each in self.measurements)


@click.group()
def bench() -> None:
    """Measure engines on this machine."""


@bench.command()
@click.option("--model", help="A GGUF file; default: the default model.")
@click.option("--tokens", default=48, show_default=True, help="Tokens of each stream.")
@click.option("--write", is_flag=True, help="Write the best choice to qwenstack.toml.")
@home_option
@json_option
def engine(model: str | None, tokens: int, write: bool, home: Path | None, as_json: bool) -> None:
    """Measure the embedded engine with 1, 4 and 8 slots at 1, 4 and 8 clients.

    \b
    Examples:
      qwenstack bench engine
      qwenstack bench engine --model my.gguf --write
    """
    folder = resolve_home(home)
    with BuildingBars() as bars:
        local = obtain(model, model_cache(folder), bars.obtaining)
    trials = asyncio.run(_trials(local, tokens))
    best = max(trials, key=lambda trial: trial.best_tokens_per_s)
    if write:
        _write_choice(folder, model, best)
    if as_json:
        print_json({"model": local.name, "trials": trials, "best": best})
        return
    table = Table("engine", "slots", "clients", "tokens/s", "first token", title=local.name)
    for trial in trials:
        for each in trial.measurements:
            table.add_row(
                trial.engine,
                str(trial.parallel),
                str(each.concurrency),
                f"{each.tokens_per_s:.1f}",
                f"{each.first_token_ms:.0f} ms",
            )
    Console().print(table)
    click.echo(
        f"Best: {best.engine} with {best.parallel} slots, {best.best_tokens_per_s:.1f} tok/s."
    )
    if write:
        click.echo(f"Written to {folder / CONFIGURATION_NAME}.")


async def _trials(model: LocalModel, tokens: int) -> list[Trial]:
    trials = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rounds = len(_PARALLELS) * len(_CONCURRENCIES) * 2
        task = progress.add_task("measuring", total=rounds)
        for parallel in _PARALLELS:
            options = LlamaCppOptions(parallel=parallel, context_tokens=_CONTEXT_TOKENS)
            running = LlamaCpp(model.path, digest=model.digest, region="local", settings=options)
            await running.start()
            try:
                measured = [
                    await measure(
                        running,
                        concurrency,
                        tokens=tokens,
                        on_round=lambda: progress.advance(task),
                    )
                    for concurrency in _CONCURRENCIES
                ]
            finally:
                await running.close()
            trials.append(
                Trial(engine="llama.cpp", parallel=parallel, measurements=tuple(measured))
            )
    return trials


def _write_choice(home: Path, model: str | None, best: Trial) -> None:
    """Set the slots of the first embedded deployment, or add one; the rest of the file stays."""
    path = home / CONFIGURATION_NAME
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else None
    document = document or tomlkit.document()
    deployments = document.setdefault("deployments", tomlkit.aot())
    for deployment in deployments:
        if deployment.get("engine", {}).get("kind") == "llamacpp":
            deployment["engine"]["parallel"] = best.parallel
            break
    else:
        engine_table = {"kind": "llamacpp", "model": model or "", "parallel": best.parallel}
        deployments.append(tomlkit.item({"engine": engine_table}))
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
