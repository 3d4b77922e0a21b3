"""The families of the zoo: architectures, seeds, data and the split.

Within an architecture all families share tokenizer, shapes, data and recipe; only the seeds
differ. That makes the class that matters most: a stranger of the same architecture. Families
with `shares_init_with` start from the same initial weights as another one and see other text;
they are strangers by training and cousins by initialisation, and are reported by themselves.
"""

from __future__ import annotations

import msgspec

from benchmarks.lineage.manifest import Split
from benchmarks.lineage.weights import Config

PROSE = "manual+python+licence+perl"
CODE = "c+library+changes"


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One base model and all that is made from it. `full` families get every recipe."""

    name: str
    architecture: str
    seed: int
    split: Split
    data: str = PROSE
    shares_init_with: str = ""
    init_seed: int = 0
    full: bool = True


def _config(kind: str, hidden: int, layers: int, heads: int, kv: int, ffn: int, vocabulary: int,
            tied: bool, **more: object) -> Config:  # fmt: skip
    config: Config = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    return config | more


ARCHITECTURES: dict[str, Config] = {
    "qwen3-128x4": _config("qwen3", 128, 4, 4, 2, 320, 2048, True, head_dim=32),
    "qwen2-96x4": _config("qwen2", 96, 4, 6, 2, 256, 2048, True),
    "llama-96x6": _config("llama", 96, 6, 6, 6, 256, 4096, False, head_dim=16),
    "qwen3moe-64x4": _config(
        "qwen3_moe", 64, 4, 4, 2, 128, 2048, True, head_dim=16, moe_intermediate_size=64,
        num_experts=8, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
        norm_topk_prob=True,
    ),
    "qwen2-64x8": _config("qwen2", 64, 8, 4, 2, 192, 4096, True),
    "qwen3-256x3": _config("qwen3", 256, 3, 4, 2, 512, 2048, False, head_dim=64),
}  # fmt: skip


def _family(number: int, architecture: str, short: str, split: Split, **more: object) -> Family:
    seed = 1000 + number
    about = {"init_seed": seed, **more}
    return msgspec.convert(
        {"name": f"{short}-{number}", "architecture": architecture, "seed": seed, "split": split}
        | about,
        Family,
    )


# In the order of building: calibration first, then every architecture's first strangers.
FAMILIES: tuple[Family, ...] = (
    _family(1, "qwen3-128x4", "q3", "calibration"),
    _family(2, "qwen3-128x4", "q3", "calibration"),
    _family(3, "qwen2-96x4", "q2", "calibration"),
    _family(4, "llama-96x6", "ll", "calibration"),
    _family(5, "qwen3-128x4", "q3", "test"),
    _family(6, "qwen3-128x4", "q3", "test"),
    _family(7, "qwen2-96x4", "q2", "test"),
    _family(8, "llama-96x6", "ll", "test"),
    _family(9, "qwen3moe-64x4", "moe", "calibration"),
    _family(10, "qwen2-96x4", "q2", "test"),
    _family(11, "llama-96x6", "ll", "test"),
    _family(12, "qwen3moe-64x4", "moe", "test"),
    _family(13, "qwen3-256x3", "q3w", "calibration"),
    _family(14, "qwen3-256x3", "q3w", "test"),
    _family(15, "qwen3-256x3", "q3w", "test"),
    _family(16, "qwen3moe-64x4", "moe", "test"),
    _family(17, "qwen2-64x8", "q2d", "calibration"),
    _family(18, "qwen2-64x8", "q2d", "test"),
    _family(19, "qwen2-64x8", "q2d", "test"),
    _family(20, "qwen3-128x4", "q3", "test"),
    _family(21, "qwen2-96x4", "q2", "test", data=CODE, full=False),
    _family(
        22, "qwen2-96x4", "q2", "calibration", data=CODE, shares_init_with="q2-3",
        init_seed=1003, full=False,
    ),
    _family(
        23, "qwen3-128x4", "q3", "test", data=CODE, shares_init_with="q3-5", init_seed=1005,
        full=False,
    ),
    _family(
        24, "llama-96x6", "ll", "test", data=CODE, shares_init_with="ll-8", init_seed=1008,
        full=False,
    ),
    # Built after the method was frozen.
    _family(25, "llama-96x6", "ll", "test"),
    _family(26, "llama-96x6", "ll", "test"),
    _family(27, "qwen2-96x4", "q2", "test"),
    _family(28, "qwen2-96x4", "q2", "test"),
)  # fmt: skip
