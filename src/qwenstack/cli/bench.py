"""`qwenstack bench`: measure on this machine, and keep what is best."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from qwenstack.cli.tables import show_table
from qwenstack.engines.bench import Measurement, measure
from qwenstack.engines.interface import EngineUnavailable
from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.models import LocalModel, obtain
from qwenstack.engines.openvino import OpenVino, OpenVinoOptions
from qwenstack.studio.settings import CONFIGURATION_NAME

_CONCURRENCIES = (1, 4, 8)
_PARALLELS = (1, 4, 8)
_CONTEXT_TOKENS = 2048
_ROUNDS = 2


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, by its kind in the configuration, with its slots and its figures."""

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
    """Measure the embedded engines with 1, 4 and 8 slots at 1, 4 and 8 clients.

    The best is the one that writes the most tokens a second in all. OpenVINO makes no embeddings:
    deploy llama.cpp beside it where they are needed.

    \b
    Examples:
      qwenstack bench engine
      qwenstack bench engine --model my.gguf --write
    """
    folder = resolve_home(home)
    with BuildingBars() as bars:
        local = obtain(model, model_cache(folder), bars.obtaining)
    trials = asyncio.run(_trials(local, model_cache(folder), tokens))
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
    show_table(table)
    click.echo(
        f"Best: {best.engine} with {best.parallel} slots, {best.best_tokens_per_s:.1f} tok/s."
    )
    if write:
        click.echo(f"Written to {folder / CONFIGURATION_NAME}.")


async def _trials(model: LocalModel, cache: Path, tokens: int) -> list[Trial]:
    trials = []
    builders = _builders(model, cache)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rounds = len(builders) * len(_PARALLELS) * len(_CONCURRENCIES) * _ROUNDS
        task = progress.add_task("measuring", total=rounds)
        for kind, build in builders.items():
            for parallel in _PARALLELS:
                try:
                    measured = await _measured(
                        build(parallel), tokens, lambda: progress.advance(task)
                    )
                except EngineUnavailable as error:
                    click.echo(f"{kind} is left out: {error}", err=True)
                    progress.advance(task, len(_PARALLELS) * len(_CONCURRENCIES) * _ROUNDS)
                    break
                trials.append(Trial(engine=kind, parallel=parallel, measurements=measured))
    return trials


def _builders(model: LocalModel, cache: Path) -> dict[str, Callable[[int], LlamaCpp | OpenVino]]:
    """By the kind as the configuration names it: what makes an engine with so many slots."""

    def llamacpp(parallel: int) -> LlamaCpp:
        options = LlamaCppOptions(parallel=parallel, context_tokens=_CONTEXT_TOKENS, embeds=False)
        return LlamaCpp(model.path, digest=model.digest, region="local", settings=options)

    def openvino(parallel: int) -> OpenVino:
        options = OpenVinoOptions(parallel=parallel, context_tokens=_CONTEXT_TOKENS)
        return OpenVino(
            model.path, digest=model.digest, region="local", recoded=cache, settings=options
        )

    return {"llamacpp": llamacpp, "openvino": openvino}


async def _measured(
    running: LlamaCpp | OpenVino, tokens: int, on_round: Callable[[], None]
) -> tuple[Measurement, ...]:
    await running.start()
    try:
        return tuple(
            [
                await measure(running, each, tokens=tokens, rounds=_ROUNDS, on_round=on_round)
                for each in _CONCURRENCIES
            ]
        )
    finally:
        await running.close()


def _write_choice(home: Path, model: str | None, best: Trial) -> None:
    """Set engine and slots of the first embedded deployment, or add one; the rest stays."""
    path = home / CONFIGURATION_NAME
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else None
    document = document or tomlkit.document()
    deployments = document.setdefault("deployments", tomlkit.aot())
    for deployment in deployments:
        engine_table = deployment.get("engine", {})
        if engine_table.get("kind") in ("llamacpp", "openvino"):
            engine_table["kind"], engine_table["parallel"] = best.engine, best.parallel
            if best.engine == "openvino":
                engine_table.pop("embeds", None)
            break
    else:
        engine_table = {"kind": best.engine, "model": model or "", "parallel": best.parallel}
        deployments.append(tomlkit.item({"engine": engine_table}))
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
