"""Build the zoo: families of really trained small models and everything made from them.

    python -m benchmarks.lineage.zoo FOLDER                 # all families, about an hour
    python -m benchmarks.lineage.zoo FOLDER --families q3-1,q3-2

Interrupted, it goes on where it stopped. Two processes may build different families at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.lineage import corpus, manifest, quantise, relations, training, weights
from benchmarks.lineage.attacks import ATTACKS, EXACT
from benchmarks.lineage.families import ARCHITECTURES, CODE, FAMILIES, PROSE, Family
from benchmarks.lineage.manifest import Entry, Format, Relation

BASE_STEPS = 400
BASE_RATE = 3e-3


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What building one model left to say about it."""

    steps: int = 0
    data: str = ""
    losses: tuple[float | None, float | None] = (None, None)
    dtype: str = "BF16"
    form: Format = "safetensors"
    function_error: float | None = None
    note: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How to make one model of a family. Parents are names within the family."""

    name: str
    relation: Relation
    parents: tuple[str, ...]
    build: Callable[[Path, int], Made]
    also: tuple[Relation, ...] = ()
    attacks: tuple[str, ...] = ()
    takes_weights: bool = True


class Builder:
    """Makes the models of one family in `zoo`; each method builds one kind into a folder."""

    def __init__(self, zoo: Path, family: Family) -> None:
        self._zoo = zoo
        self._family = family
        self._config = ARCHITECTURES[family.architecture]
        self._vocabulary = int(self._config["vocab_size"])

    def folder(self, name: str) -> Path:
        return self._zoo / "models" / self._family.name / name

    def _tokens(self, data: str) -> corpus.Tokens:
        return corpus.tokens(self._zoo / "corpus", data, self._vocabulary)

    def _read(self, name: str) -> tuple[weights.Config, weights.Tensors]:
        folder = self.folder(name)
        return weights.read_config(folder), weights.read_tensors(folder)

    def base(self, out: Path, seed: int) -> Made:
        data = self._family.data
        model = training.fresh(self._config, self._family.init_seed)
        done = training.train(
            model,
            self._tokens(data),
            steps=BASE_STEPS,
            rate=BASE_RATE,
            seed=seed,
            size=training.BASE_BATCH,
        )
        training.save(model, out)
        write_tokenizer(self._zoo / "corpus", self._vocabulary, 0, out)
        return _made(done, data)

    def tune(self, source: str, data: str, steps: int, rate: float, dtype: str = "BF16") -> Any:
        def build(out: Path, seed: int) -> Made:
            model = training.load(self.folder(source))
            done = training.train(model, self._tokens(data), steps=steps, rate=rate, seed=seed)
            training.save(model, out, dtype)
            weights.copy_tokenizer(self.folder(source), out)
            return _made(done, data, dtype=dtype)

        return build

    def adapter(self, source: str, data: str, steps: int, rank: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            model = training.load(self.folder(source))
            parts = ["q_proj", "k_proj", "v_proj", "o_proj"]
            if not self._config.get("num_experts"):
                parts += ["gate_proj", "up_proj", "down_proj"]
            model = training.lora(model, rank, seed, parts)
            done = training.train(model, self._tokens(data), steps=steps, rate=2e-3, seed=seed)
            model.peft_config["default"].base_model_name_or_path = f"{self._family.name}/{source}"
            model.save_pretrained(out)
            weights.copy_tokenizer(self.folder(source), out)
            return _made(done, data, dtype="F32", form="peft")

        return build

    def merged_adapter(self, source: str, data: str, steps: int, rank: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            model = training.load(self.folder(source))
            parts = ["q_proj", "v_proj", "o_proj"]
            model = training.lora(model, rank, seed, parts)
            done = training.train(model, self._tokens(data), steps=steps, rate=2e-3, seed=seed)
            training.save(model.merge_and_unload(), out)
            weights.copy_tokenizer(self.folder(source), out)
            return _made(done, data, note=f"LoRA of rank {rank}, merged")

        return build

    def reinforce(self, source: str) -> Any:
        def build(out: Path, seed: int) -> Made:
            model = training.load(self.folder(source))
            tokens = self._tokens(PROSE)
            done = training.reinforce(model, tokens, steps=8, rate=3e-5, seed=seed)
            training.save(model, out)
            weights.copy_tokenizer(self.folder(source), out)
            return _made(done, PROSE, note="policy gradient; losses are negative rewards")

        return build

    def distil(self, source: str, steps: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            teacher = training.load(self.folder(source)).eval()
            model = training.fresh(self._config, seed)
            tokens = self._tokens(PROSE)
            done = training.train(
                model, tokens, steps=steps, rate=BASE_RATE, seed=seed, teacher=teacher
            )
            training.save(model, out)
            weights.copy_tokenizer(self.folder(source), out)
            return _made(done, PROSE, note="fresh student of the teacher's shape; loss is KL")

        return build

    def merge(self, kind: str, first: str, second: str) -> Any:
        def build(out: Path, seed: int) -> Made:
            config, a = self._read(first)
            _, b = self._read(second)
            share = round(0.3 + 0.4 * np.random.default_rng(seed).random(), 2)
            if kind == "ties":
                merged = relations.merge_ties(self._read("base")[1], [a, b], 0.5)
            elif kind == "slerp":
                merged = relations.merge_slerp(a, b, share)
            else:
                merged = relations.merge_linear(a, b, share)
            self._write(out, first, config, merged)
            return Made(note=f"{kind}, share of the second {share}" if kind != "ties" else kind)

        return build

    def _write(
        self, out: Path, source: str, config: weights.Config, tensors: weights.Tensors,
        dtype: str = "BF16", shards: int = 1,
    ) -> None:  # fmt: skip
        weights.write_folder(
            out, config, tensors, dtype=dtype, shards=shards, tokenizer_from=self.folder(source)
        )

    def _heal(self, out: Path, steps: int, seed: int, **about: Any) -> Made:
        """Train the model in `out` a little, as after surgery, and store it again."""
        if steps == 0:
            return Made(**about)
        model = training.load(out)
        done = training.train(model, self._tokens(PROSE), steps=steps, rate=5e-4, seed=seed)
        (out / "model.safetensors").unlink()
        training.save(model, out)
        return _made(done, PROSE, **about)

    def prune(self, source: str, share: float) -> Any:
        def build(out: Path, seed: int) -> Made:
            del seed
            config, tensors = self._read(source)
            self._write(out, source, config, relations.prune_magnitude(tensors, share))
            return Made(note=f"smallest {share:.0%} of each matrix set to zero")

        return build

    def prune_structure(self, source: str, heal: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            config, tensors = relations.prune_structure(*self._read(source), 0.25)
            self._write(out, source, config, tensors)
            return self._heal(out, heal, seed, note="a key-value group and 1/4 of FFN dropped")

        return build

    def depth(self, source: str, layers: Sequence[int], heal: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            config, tensors = relations.change_depth(*self._read(source), layers)
            self._write(out, source, config, tensors)
            return self._heal(out, heal, seed, note=f"layers {list(layers)}")

        return build

    def expand(self, source: str, more: int, heal: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            random = np.random.default_rng(seed)
            config, tensors = relations.expand_vocabulary(*self._read(source), more, random)
            self._write(out, source, config, tensors)
            made = self._heal(out, heal, seed, note=f"{more} more tokens")
            write_tokenizer(self._zoo / "corpus", self._vocabulary, more, out)
            return made

        return build

    def recast(self, source: str, dtype: str, shards: int) -> Any:
        def build(out: Path, seed: int) -> Made:
            del seed
            config, tensors = self._read(source)
            self._write(out, source, config, tensors, dtype, shards)
            return Made(dtype=dtype, note=f"{shards} shards")

        return build

    def gguf(self, source: str, kind: str) -> Any:
        def build(out: Path, seed: int) -> Made:
            del seed
            config, tensors = self._read(source)
            quantise.write_gguf(out, config, tensors, kind, self.folder(source))
            return Made(dtype=kind, form="gguf")

        return build

    def int4(self, source: str, form: Format) -> Any:
        def build(out: Path, seed: int) -> Made:
            del seed
            config, tensors = self._read(source)
            quantise.write_int4(out, config, tensors, form, self.folder(source))
            return Made(dtype="INT4", form=form)

        return build

    def attack(self, source: str, kind: str) -> Any:
        def build(out: Path, seed: int) -> Made:
            config, tensors = self._read(source)
            config, tensors = ATTACKS[kind](config, tensors, np.random.default_rng(seed))
            self._write(out, source, config, tensors)
            error = None
            if kind in EXACT:
                # What the symmetry costs by itself, before the rounding to bfloat16.
                check = out / "check"
                self._write(check, source, config, tensors, "F32")
                tokens = self._tokens(PROSE)
                before = training.logits(self.folder(source), tokens)
                after = training.logits(check, tokens)
                error = float(np.abs(after - before).max() / before.std())
                shutil.rmtree(check)
            return Made(function_error=error)

        return build


def _made(done: training.Trained, data: str, **about: Any) -> Made:
    losses = (round(done.loss_first, 4), round(done.loss_last, 4))
    return Made(steps=done.steps, data=data, losses=losses, **about)


def write_tokenizer(source: Path, vocabulary: int, more: int, out: Path) -> None:
    """The family's tokenizer, with `more` added tokens, as Transformers stores it."""
    tokenizer = json.loads((source / f"tokenizer-{vocabulary}.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": vocabulary + index, "content": f"<|extra_{index}|>", "special": True} | flags
        for index in range(more)
    ]
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "model_max_length": 512,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2))


def recipes(builder: Builder, family: Family) -> list[Recipe]:
    """All models of a family, parents before children."""
    number = family.seed % 1000
    odd = number % 2 == 1
    layers = int(ARCHITECTURES[family.architecture]["num_hidden_layers"])
    b = builder
    first: Format = "gptq" if odd else "awq"
    second: Format = "awq" if odd else "gptq"
    dropped = [index for index in range(layers) if index != layers // 2]
    doubled = [*range(layers - 1), *range(1, layers)]

    def one(name: str, relation: Relation, source: str, build: Any, *also: Relation,
            attacks: tuple[str, ...] = (), takes_weights: bool = True) -> Recipe:  # fmt: skip
        return Recipe(
            name=name, relation=relation, parents=(source,), build=build, also=also,
            attacks=attacks, takes_weights=takes_weights,
        )  # fmt: skip

    def attacked(source: str, kind: str, *also: Relation) -> Recipe:
        return one(
            f"{source}-{kind.replace('_', '-')}", "same_weights", source,
            b.attack(source, kind), *also, attacks=(kind,),
        )  # fmt: skip

    core = [
        Recipe(name="base", relation="base", parents=(), build=b.base),
        one("ft-code", "fine_tune", "base", b.tune("base", "python", 150, 1e-4)),
        one("ft-german", "fine_tune", "base", b.tune("base", "german", 150, 4e-4)),
        one("cpt", "continued_pretraining", "base",
            b.tune("base", CODE if family.data == PROSE else PROSE, 200, 1.5e-3)),
        one("base-q8", "quantised", "base", b.gguf("base", "Q8_0")),
        one("base-recast", "same_weights", "base", b.recast("base", "F16" if odd else "F32", 3)),
        attacked("base", "rename"),
        attacked("ft-code", "permute_units"),
    ]  # fmt: skip
    if not family.full:
        return core
    wide = family.architecture == "qwen3-256x3"
    return [
        *core,
        one("lora", "adapter", "base", b.adapter("base", "french", 60, 8)),
        one("lora-merged", "adapter", "base",
            b.merged_adapter("base", "licence", 60, 8), "fine_tune"),
        Recipe(name="merge-linear" if odd else "merge-slerp", relation="merge",
               parents=("ft-code", "ft-german"),
               build=b.merge("linear" if odd else "slerp", "ft-code", "ft-german")),
        Recipe(name="merge-ties", relation="merge", parents=("ft-code", "ft-german"),
               build=b.merge("ties", "ft-code", "ft-german")),
        one("ft-code-q4_0", "quantised", "ft-code", b.gguf("ft-code", "Q4_0")),
        one("base-q4", "quantised", "base", b.gguf("base", "Q4_K" if wide else "Q4_0")),
        one("base-f16", "same_weights", "base", b.gguf("base", "F16"), "quantised"),
        one(f"base-{first}", "quantised", "base", b.int4("base", first)),
        one(f"ft-german-{second}", "quantised", "ft-german", b.int4("ft-german", second)),
        one("pruned", "pruned", "base", b.prune("base", 0.5)),
        one("ft-code-pruned", "pruned", "ft-code", b.prune("ft-code", 0.3)),
        one("slim", "pruned", "base", b.prune_structure("base", 30 if odd else 0)),
        one("shallow", "depth_changed", "base", b.depth("base", dropped, 0 if odd else 30)),
        one("deep", "depth_changed", "base", b.depth("base", doubled, 30 if odd else 0)),
        one("wordy", "expanded_vocabulary", "base", b.expand("base", 64, 30)),
        one("rl", "fine_tune", "base", b.reinforce("base")),
        one("student", "distilled", "base", b.distil("base", 120), takes_weights=False),
        one("ft-code-perl", "fine_tune", "ft-code", b.tune("ft-code", "perl", 60, 2e-4)),
        one("chain-lora", "adapter", "ft-code-perl",
            b.merged_adapter("ft-code-perl", "manual", 50, 8), "fine_tune"),
        one("chain-q4", "quantised", "chain-lora", b.gguf("chain-lora", "Q4_0")),
        one("cpt-ft", "fine_tune", "cpt", b.tune("cpt", "manual", 50, 2e-4, "F16")),
        attacked("base", "rename_opaque"),
        attacked("cpt", "permute_residual"),
        attacked("ft-german", "rotate_residual"),
        attacked("ft-code", "rescale"),
        attacked("base", "noise", "fine_tune"),
        attacked("base", "mixed", "fine_tune"),
        attacked("chain-lora", "mixed", "fine_tune"),
    ]  # fmt: skip


def make(zoo: Path, family: Family, recipe: Recipe, corpus_sha256: str) -> Entry:
    """Build one model in a folder of its own, then put it in place and into the manifest."""
    builder_folder = zoo / "models" / family.name
    out = builder_folder / f".{recipe.name}.new"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    names = [r.name for r in recipes(Builder(zoo, family), family)]
    seed = family.seed * 100 + names.index(recipe.name)
    start = time.process_time()
    made = recipe.build(out, seed)
    spent = time.process_time() - start
    final = builder_folder / recipe.name
    shutil.rmtree(final, ignore_errors=True)
    out.rename(final)
    known = manifest.load(zoo).by_id()
    parents = [f"{family.name}/{name}" for name in recipe.parents]
    tensors = weights.read_tensors(final)
    drift = None
    if parents and made.form == "safetensors" and recipe.takes_weights and not recipe.attacks:
        drift = weights.drift(tensors, weights.read_tensors(zoo / known[parents[0]].path))
    entry = Entry(
        id=f"{family.name}/{recipe.name}",
        path=str(final.relative_to(zoo)),
        family=family.name,
        architecture=family.architecture,
        split=family.split,
        relation=recipe.relation,
        accept=[recipe.relation, *recipe.also],
        parents=parents,
        weight_parents=parents if recipe.takes_weights else [],
        root=f"{family.name}/base" if recipe.takes_weights else f"{family.name}/{recipe.name}",
        depth=1 + max((known[parent].depth for parent in parents), default=-1),
        attacks=list(recipe.attacks),
        format=made.form,
        dtype=made.dtype,
        seed=seed,
        init_seed=family.init_seed if recipe.takes_weights else seed,
        data=made.data,
        steps=made.steps,
        loss_first=made.losses[0],
        loss_last=made.losses[1],
        params=weights.count(tensors) if made.form == "safetensors" else 0,
        drift=None if drift is None else round(drift, 5),
        function_error=made.function_error,
        cpu_s=round(spent, 2),
        sha256=manifest.folder_sha256(final),
        note=made.note
        + (f"; initial weights of {family.shares_init_with}" * bool(family.shares_init_with)),
    )
    manifest.add(zoo, entry, corpus_sha256)
    return entry


def main() -> None:
    """Build what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("folder", type=Path, help="where the zoo is or shall be")
    parser.add_argument("--families", default="", help="names joined by commas; all by default")
    options = parser.parse_args()
    zoo: Path = options.folder.resolve()
    chosen = set(options.families.split(",")) - {""}
    if unknown := chosen - {family.name for family in FAMILIES}:
        parser.error(f"--families: no family called {', '.join(sorted(unknown))}")
    training.calm()
    zoo.mkdir(parents=True, exist_ok=True)
    corpus_sha256 = corpus.prepare(zoo / "corpus")
    known = manifest.load(zoo).by_id()
    missing = [
        (family, recipe)
        for family in FAMILIES
        if not chosen or family.name in chosen
        for recipe in recipes(Builder(zoo, family), family)
        if f"{family.name}/{recipe.name}" not in known
    ]
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("models", total=len(missing))
        for family, recipe in missing:
            progress.update(task, description=f"{family.name}/{recipe.name}")
            entry = make(zoo, family, recipe, corpus_sha256)
            progress.advance(task)
            if not console.is_terminal:
                print(f"{entry.id} {entry.cpu_s} s, loss {entry.loss_last}, drift {entry.drift}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
