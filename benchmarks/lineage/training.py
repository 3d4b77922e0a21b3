"""Real training on CPU with PyTorch and Transformers: from scratch, further, LoRA, distilled.

Every function reads a folder and writes a folder, so that what is trained is what was stored
(a base saved as bfloat16 is fine-tuned from its rounded weights, as everybody does).
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoConfig,
    AutoModelForCausalLM,
)

from benchmarks.lineage import weights
from benchmarks.lineage.corpus import Tokens
from benchmarks.lineage.weights import Config, Tensors

# Windows a step: bases see twice as many as what is made from them.
BASE_BATCH = 8
BATCH = 4
SEQUENCE = 64
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Trained(msgspec.Struct, frozen=True):
    """What a training run reports: mean loss over its first and last steps, CPU seconds."""

    steps: int
    loss_first: float
    loss_last: float
    cpu_s: float


def load(folder: Path) -> Any:
    """The model of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def fresh(config: Config, seed: int) -> Any:
    """A model of `config` with weights drawn from `seed`."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def save(model: Any, folder: Path, dtype: str = "BF16") -> None:
    """Write the model as `save_pretrained` does, cast to `dtype`."""
    model.to(_DTYPES[dtype]).save_pretrained(folder)
    model.to(torch.float32)


def batch(tokens: Tokens, random: np.random.Generator, size: int = BATCH) -> Any:
    """One batch of windows out of the text."""
    starts = random.integers(0, len(tokens) - SEQUENCE - 1, size)
    windows = np.stack([tokens[start : start + SEQUENCE] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


def train(
    model: Any,
    tokens: Tokens,
    *,
    steps: int,
    rate: float,
    seed: int,
    teacher: Any = None,
    size: int = BATCH,
) -> Trained:
    """Next-token training with AdamW, warm-up and cosine decay; with `teacher`, on its logits."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.train()
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    losses: list[float] = []
    start = time.process_time()
    warm = max(1, min(40, steps // 10))
    for step in range(steps):
        share = min(1.0, (step + 1) / warm)
        decay = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share * decay
        ids = batch(tokens, random, size)
        if teacher is None:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        else:
            with torch.no_grad():
                aim = teacher(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            own = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            loss = (aim.exp() * (aim - own)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    ends = max(1, min(20, steps // 5))
    spent = time.process_time() - start
    return Trained(steps, float(np.mean(losses[:ends])), float(np.mean(losses[-ends:])), spent)


def reinforce(model: Any, tokens: Tokens, *, steps: int, rate: float, seed: int) -> Trained:
    """Policy gradient on the model's own samples; the reward is the share of even token ids.

    A stand-in for reinforcement learning after training: few, small updates everywhere.
    The losses reported are negative mean rewards.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    start = time.process_time()
    rewards: list[float] = []
    for _ in range(steps):
        ids = batch(tokens, random, 8)[:, :16]
        model.eval()
        with torch.no_grad():
            for _ in range(12):
                logits = model(input_ids=ids, use_cache=False).logits[:, -1]
                ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        reward = (ids[:, 16:] % 2 == 0).float().mean(1)
        model.train()
        log = model(input_ids=ids, use_cache=False).logits[:, 15:-1].log_softmax(-1)
        chosen = log.gather(-1, ids[:, 16:, None])[..., 0].sum(1)
        loss = -((reward - reward.mean()) * chosen).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(-float(reward.mean()))
    spent = time.process_time() - start
    return Trained(steps, rewards[0], rewards[-1], spent)


def lora(model: Any, rank: int, seed: int, targets: list[str]) -> Any:
    """`model` with LoRA matrices on `targets`; only they train."""
    from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def logits(folder: Path, tokens: Tokens) -> Any:
    """Logits of the stored model over two fixed windows, as an array."""
    model = load(folder).eval()
    ids = torch.from_numpy(tokens[: 2 * SEQUENCE].reshape(2, SEQUENCE).astype(np.int64))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.numpy()


def hidden(
    config: Config, tensors: Tensors, windows: npt.NDArray[np.int64], layer: int
) -> npt.NDArray[np.float32]:
    """The hidden state after `layer` at the last token of each window, one row a window."""
    with tempfile.TemporaryDirectory() as folder:
        weights.write_folder(Path(folder), config, tensors, dtype="F32")
        model = load(Path(folder)).eval()
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(windows), use_cache=False, output_hidden_states=True)
    return np.asarray(out.hidden_states[layer][:, -1].numpy(), dtype=np.float32)


def calm() -> None:
    """One thread, few words: the machine is shared."""
    torch.set_num_threads(1)
    from transformers.utils import logging  # type: ignore[import-not-found]

    logging.set_verbosity_error()
    logging.disable_progress_bar()
