"""Counting a model's parameters from its tensors' shapes, and from what its configuration implies.

A quantised file stores several weights in an element and keeps scales beside them; those scales,
and tables such as rotary frequencies, are no parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from qwenstack.engines.gguf import GgufLayout
from qwenstack.hub.formats.config import ModelConfig
from qwenstack.hub.formats.safetensors import Tensor

_AUXILIARY: Final = re.compile(
    r"(^|\.)(qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format"
    r"|inv_freq|position_ids|masked_bias|(weight|input|output|k|v|q)_(scale|zero_point)(_inv|_2)?"
    r"|weight_(shape|g_idx|global_scale)|input_global_scale)$"
    r"|\.quant_state\.|_scales$"
)
_PACKED: Final = re.compile(r"(^|\.)(qweight|weight_packed)$")
_BLOCKS: Final = re.compile(r"_blocks$")  # MXFP4: two weights a byte
_EXPERT: Final = re.compile(r"\.experts\.(?:(\d+)\.)?")
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING: Final = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
_HEAD: Final = re.compile(r"(^|\.)lm_head\.(weight|qweight|weight_packed)$")


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What the tensors hold. `parameters` are weights, `expert_parameters` those of routed experts.

    `elements` are the stored numbers by dtype, scales and all, as the hub's API lists them. The
    embedding's rows and width are None where no tensor is named like one.
    """

    parameters: int
    expert_parameters: int
    experts: int
    elements: dict[str, int]
    layers: int
    vocabulary: int | None
    hidden_size: int | None
    has_head: bool
    family: str | None

    def active(self, experts_per_token: int | None) -> int | None:
        """The parameters that take part in one token, for a mixture of experts."""
        if not self.experts or not experts_per_token or experts_per_token > self.experts:
            return None
        idle = self.expert_parameters * (self.experts - experts_per_token) // self.experts
        return self.parameters - idle


def count_safetensors(tensors: Iterable[Tensor], config: ModelConfig | None) -> Count:
    """Count the tensors of all shards together."""
    bits = (config.quantisation_bits if config else None) or 4
    is_bnb = config is not None and config.quantisation == "bitsandbytes" and bits == 4
    elements: Counter[str] = Counter()
    parameters = expert_parameters = experts = layers = 0
    embedding: Tensor | None = None
    names: set[str] = set()
    for tensor in tensors:
        elements[tensor.dtype] += tensor.elements
        names.add(tensor.name)
        if match := _LAYER.search(tensor.name):
            layers = max(layers, min(int(match[1][:6]), 99_999) + 1)
        if _AUXILIARY.search(tensor.name):
            continue
        weights = _weights(tensor, bits, is_bnb)
        parameters += weights
        if match := _EXPERT.search(tensor.name):
            expert_parameters += weights
            fused = tensor.shape[0] if len(tensor.shape) >= 3 else 0
            experts = max(experts, int(match[1][:6]) + 1 if match[1] else fused)
        if _EMBEDDING.search(tensor.name) and len(tensor.shape) == 2:
            embedding = tensor
    return Count(
        parameters=parameters,
        expert_parameters=expert_parameters,
        experts=experts,
        elements=dict(elements.most_common()),
        layers=layers,
        vocabulary=embedding.shape[0] if embedding else None,
        hidden_size=embedding.shape[1] if embedding else None,
        has_head=any(_HEAD.search(name) for name in names),
        family=_family(names, experts),
    )


def count_gguf(layouts: Iterable[GgufLayout]) -> Count:
    """Count the tensors of a GGUF, or of all shards of one."""
    elements: Counter[str] = Counter()
    parameters = expert_parameters = experts = layers = 0
    vocabulary = hidden = None
    has_head = False
    for layout in layouts:
        for tensor in layout.tensors:
            elements[tensor.type_name] += tensor.weights
            if tensor.name.startswith("rope_freqs"):
                continue
            parameters += tensor.weights
            if match := re.match(r"blk\.(\d+)\.", tensor.name):
                layers = max(layers, min(int(match[1][:6]), 99_999) + 1)
            if "_exps." in tensor.name:
                expert_parameters += tensor.weights
                experts = max(experts, tensor.shape[-1] if len(tensor.shape) == 3 else 0)
            if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
                hidden, vocabulary = tensor.shape
            has_head = has_head or tensor.name == "output.weight"
    return Count(
        parameters=parameters,
        expert_parameters=expert_parameters,
        experts=experts,
        elements=dict(elements.most_common()),
        layers=layers,
        vocabulary=vocabulary,
        hidden_size=hidden,
        has_head=has_head,
        family=None,
    )


def _weights(tensor: Tensor, bits: int, is_bnb: bool) -> int:
    if _PACKED.search(tensor.name) and tensor.dtype in ("I32", "U32"):
        return tensor.elements * 32 // bits
    if tensor.dtype == "U8" and (_BLOCKS.search(tensor.name) or is_bnb):
        return tensor.elements * 2
    return tensor.elements


def _family(names: set[str], experts: int) -> str | None:
    """What the names of one attention block show: which of the architectures it can be."""
    block = next((name for name in names if name.endswith(".self_attn.q_proj.weight")), None)
    if block is None:
        return None
    prefix = block.removesuffix("q_proj.weight")
    layer = prefix.removesuffix("self_attn.")
    if f"{layer}pre_feedforward_layernorm.weight" in names:
        return None
    has_norm = f"{prefix}q_norm.weight" in names
    has_bias = f"{prefix}q_proj.bias" in names
    if has_norm and has_bias:
        return None
    kind = "qwen3" if has_norm else "qwen2" if has_bias else "llama"
    return f"{kind}_moe" if experts and kind != "llama" else kind


def expected_parameters(config: ModelConfig) -> int | None:
    """The parameters that the configuration implies, for the dense and sparse Qwen and Llama forms.

    None for another architecture, or where a number is missing. The head is counted where the
    embeddings are not tied.
    """
    c = config
    kind = c.model_type
    if kind not in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "llama", "mistral"):
        return None
    if c.multimodal or not c.every_layer_sparse:
        return None
    h, layers, n, v, f = c.hidden_size, c.layers, c.heads, c.vocab_size, c.intermediate_size
    if not (h and layers and n and v and f):
        return None
    kv = c.kv_heads or n
    d = c.head_dim or (128 if kind.startswith("qwen3") else h // n)
    attention = 2 * h * n * d + 2 * h * kv * d
    if kind.startswith("qwen2"):
        attention += (n + 2 * kv) * d
    elif kind.startswith("qwen3"):
        attention += 2 * d
    if c.attention_bias:
        attention += (n + 2 * kv) * d + h
    mlp = 3 * h * f
    if kind.endswith("_moe"):
        if not (c.experts and c.expert_intermediate_size):
            return None
        mlp = c.experts * 3 * h * c.expert_intermediate_size + c.experts * h
        if kind == "qwen2_moe":
            if not c.shared_intermediate_size:
                return None
            mlp += 3 * h * c.shared_intermediate_size + h
    embeddings = v * h * (1 if c.tied_embeddings else 2)
    return embeddings + layers * (attention + mlp + 2 * h) + h
