"""The same questions over real weights: the default Qwen model and what is made of it here.

    python -m benchmarks.lineage.real WORK --qwen MODEL.gguf --stranger SMOLLM2.gguf

WORK gets, from the GGUF file given (Qwen2.5-Coder-0.5B-Instruct, Q4_K_M): its values as
bfloat16 safetensors, requantisations to Q8_0, Q4_0 and packed int4, a LoRA adapter, a merged
LoRA, a full fine-tune (a few steps on the CPU), that fine-tune quantised, and the fine-tune in
disguise. About 8 GB of disk, 6 GB of memory, half an hour of one core. What exists is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np

from benchmarks.lineage import measures, quantise, reading, training, weights
from benchmarks.lineage.attacks import mixed
from benchmarks.lineage.report import RealAnswer
from benchmarks.lineage.weights import Config, Tensors

STEPS = 10
RATE = 2e-5


def config_of(file: Path) -> Config:
    """The config that a GGUF file's metadata amounts to."""
    reader = gguf.GGUFReader(str(file))
    fields = reader.fields

    def value(key: str) -> Any:
        return fields[f"{kind}.{key}"].contents()

    kind = str(fields["general.architecture"].contents())
    return {
        "model_type": kind,
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "intermediate_size": value("feed_forward_length"),
        "vocab_size": len(fields["tokenizer.ggml.tokens"].contents()),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
        "max_position_embeddings": value("context_length"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }


def text_tokens(file: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Python's own source in the tokens of the GGUF file's vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-not-found]

    fields = gguf.GGUFReader(str(file)).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    pairs = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = Path(argparse.__file__).read_text()
    return np.array(tokenizer.encode(text).ids, dtype=np.int64)


def signed_steps(
    model: Any, tokens: np.ndarray[Any, np.dtype[np.int64]], steps: int
) -> list[float]:
    """Full fine-tuning by signs of the gradient: Adam's step size without Adam's memory."""
    import torch  # type: ignore[import-not-found]

    losses = []
    for step in range(steps):
        start = step * 48 % (len(tokens) - 48)
        ids = torch.from_numpy(tokens[start : start + 48])[None]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= RATE * weight.grad.sign()
                    weight.grad = None
        losses.append(float(loss.detach()))
    return losses


class Maker:
    """Makes what is missing in the work folder."""

    def __init__(self, work: Path, qwen: Path) -> None:
        self._work = work
        self._qwen = qwen
        self._config = config_of(qwen)
        work.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, build: Callable[[Path], None]) -> Path:
        """The folder `name`, built when it is not there."""
        folder = self._work / name
        if not folder.exists():
            start = time.perf_counter()
            fresh = self._work / f".{name}.new"
            fresh.mkdir(exist_ok=True)
            build(fresh)
            fresh.rename(folder)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        return folder

    def _tensors(self, folder: Path) -> Tensors:
        return weights.read_tensors(folder)

    def bf16(self, out: Path) -> None:
        tensors = reading.from_gguf(self._qwen, self._config)
        weights.write_folder(out, self._config, tensors)

    def requantised(self, source: Path, kind: str) -> Callable[[Path], None]:
        def build(out: Path) -> None:
            tensors = self._tensors(source)
            if kind == "gptq":
                quantise.write_int4(out, self._config, tensors, kind, source)
            else:
                quantise.write_gguf(out, self._config, tensors, kind, None)

        return build

    def lora(self, source: Path, merged: bool) -> Callable[[Path], None]:
        def build(out: Path) -> None:
            import torch

            parts = ["q_proj", "v_proj"] if merged else ["q_proj", "k_proj", "v_proj", "o_proj"]
            model = training.lora(training.load(source), 8, 5 + merged, parts)
            tokens = text_tokens(self._qwen)[2000 * merged :]
            moving = [weight for weight in model.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW(moving, lr=1e-3)
            for step in range(STEPS):
                ids = torch.from_numpy(tokens[step * 48 : step * 48 + 48])[None]
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if merged:
                training.save(model.merge_and_unload(), out)
            else:
                model.save_pretrained(out)

        return build

    def tuned(self, source: Path) -> Callable[[Path], None]:
        def build(out: Path) -> None:
            model = training.load(source)
            losses = signed_steps(model, text_tokens(self._qwen), STEPS)
            print(f"full fine-tune: loss {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
            training.save(model, out)

        return build

    def disguised(self, source: Path) -> Callable[[Path], None]:
        def build(out: Path) -> None:
            tensors = self._tensors(source)
            config, hidden = mixed(self._config, tensors, np.random.default_rng(11))
            weights.write_folder(out, config, hidden)

        return build


def ask(
    candidates: dict[str, Path], questions: list[tuple[str, Path, list[str], str]]
) -> list[RealAnswer]:
    """Put each question against all candidates but itself."""
    from benchmarks.lineage.product import prediction
    from qwenstack.hub.lineage.library import Library
    from qwenstack.hub.lineage.model import open_path
    from qwenstack.hub.lineage.trace import trace

    library = Library([], lambda name: open_path(candidates[name], name=name))
    answers = []
    for name, path, truth, relation in questions:
        library.names = [other for other in candidates if other != name]
        start = time.perf_counter()
        answer = trace(open_path(path, name=name), library)
        said = prediction(name, answer, time.perf_counter() - start)
        right = said.parent in truth if truth else said.verdict != "derived"
        answers.append(RealAnswer(name, truth, relation, said, right))
        print(
            f"{name}: {said.parent} {said.relation} {said.confidence:.3f} {said.verdict}",
            flush=True,
        )
    return answers


def main() -> None:
    """Make the models, ask, and write `WORK/real.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--qwen", type=Path, required=True)
    parser.add_argument("--stranger", type=Path, required=True)
    options = parser.parse_args()
    training.calm()
    maker = Maker(options.work, options.qwen)
    bf16 = maker.once("bf16", maker.bf16)
    made = {
        "q8_0": maker.once("q8_0", maker.requantised(bf16, "Q8_0")),
        "q4_0": maker.once("q4_0", maker.requantised(bf16, "Q4_0")),
        "int4": maker.once("int4", maker.requantised(bf16, "gptq")),
        "lora": maker.once("lora", maker.lora(bf16, False)),
        "lora-merged": maker.once("lora-merged", maker.lora(bf16, True)),
        "full": maker.once("full", maker.tuned(bf16)),
    }
    made["full-q8_0"] = maker.once("full-q8_0", maker.requantised(made["full"], "Q8_0"))
    made["full-mixed"] = maker.once("full-mixed", maker.disguised(made["full"]))
    original = [str(options.qwen.name), "bf16"]
    candidates = {
        options.qwen.name: options.qwen, "bf16": bf16, "full": made["full"],
        options.stranger.name: options.stranger,
    }  # fmt: skip
    # The released file and its values as bfloat16 are the same weights: either is right.
    questions = [
        ("q8_0", made["q8_0"], original, "quantised"),
        ("q4_0", made["q4_0"], original, "quantised"),
        ("int4", made["int4"], original, "quantised"),
        ("lora", made["lora"], original, "adapter"),
        ("lora-merged", made["lora-merged"], original, "adapter"),
        ("full-q8_0", made["full-q8_0"], ["full"], "quantised"),
        ("full-mixed", made["full-mixed"], ["full"], "same_weights"),
        (options.stranger.name, options.stranger, [], "base"),
    ]
    answers = ask(candidates, questions)
    without = {name: path for name, path in candidates.items() if name != "full"}
    answers += ask(without, [("full", made["full"], original, "fine_tune")])
    (options.work / "real.json").write_bytes(msgspec.json.encode(answers))
    right = measures.share(sum(answer.right for answer in answers), len(answers))
    print(f"{right.hits} of {right.total} parents right")


if __name__ == "__main__":
    main()
