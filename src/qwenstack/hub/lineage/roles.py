"""Which tensor plays which role in a decoder: by the names in use, else by shapes.

Names are a convenience, not evidence: whoever renames a model's tensors changes nothing about
whose child it is. Where no name is understood, `infer` finds the token table and the residual
width from the shapes alone, and the rest stays `loose`, to be told apart by its values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from qwenstack.hub.lineage.tensors import Reordered, RowRange, Stacked, Stored, Tensor

# A matrix that reads the residual stream, or writes to it (`o`, `down`).
READERS: Final = ("q", "k", "v", "gate", "up")
WRITERS: Final = ("o", "down")
_LAYERS_MAX: Final = 1024

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h|blk|blocks|block)\.(\d{1,5})\.(.+)$")
_SUFFIXES: Final = [
    (re.compile(pattern), role)
    for pattern, role in [
        (r"(q_norm|attn_q_norm|q_layernorm)$", "q_norm"),
        (r"(k_norm|attn_k_norm|k_layernorm)$", "k_norm"),
        (r"(post_attention_layernorm|ffn_norm|ln_2|mlp_norm|norm2|post_attention_norm)$",
         "ffn_norm"),
        (r"(input_layernorm|attn_norm|attention_norm|ln_1|norm1)$", "attn_norm"),
        (r"(qkv_proj|attn_qkv|query_key_value|wqkv)$", "qkv"),
        (r"(q_proj|attn_q|wq|query|q_lin|q)$", "q"),
        (r"(k_proj|attn_k|wk|key|k_lin|k)$", "k"),
        (r"(v_proj|attn_v|wv|value|v_lin|v)$", "v"),
        (r"(o_proj|attn_output|wo|out_lin|out_proj|o)$", "o"),
        (r"(gate_up_proj|gate_up)$", "gate_up"),
        (r"(mlp\.gate|ffn_gate_inp|block_sparse_moe\.gate|router)$", "router"),
        (r"(gate_proj|ffn_gate|ffn_gate_exps|ffn_gate_shexp|w1|gate)$", "gate"),
        (r"(up_proj|ffn_up|ffn_up_exps|ffn_up_shexp|w3|up)$", "up"),
        (r"(down_proj|ffn_down|ffn_down_exps|ffn_down_shexp|w2|down)$", "down"),
    ]
]  # fmt: skip
_TOP: Final = [
    (re.compile(r"(embed_tokens|token_embd|tok_embeddings|wte|word_embeddings|embed)$"), "embed"),
    (re.compile(r"(lm_head|output|embed_out|unembed)$"), "head"),
    (re.compile(r"(^|\.)(norm|output_norm|final_layernorm|ln_f|final_norm)$"), "norm"),
]
_EXPERT: Final = re.compile(r"experts\.(\d{1,5})\.|\[(\d{1,5})\]$")


@dataclass(frozen=True)
class Roles:
    """A model's tensors by role. `layers[i]` maps `q`, `k`, …, `attn_norm`, `q_bias`, … ."""

    embed: Tensor | None
    head: Tensor | None
    norm: Tensor | None
    layers: tuple[dict[str, Tensor], ...]
    loose: tuple[Tensor, ...]

    @property
    def hidden(self) -> int:
        """Width of the residual stream; 0 where no token table was found."""
        return self.embed.shape[1] if self.embed is not None else 0

    def matrices(self) -> list[Tensor]:
        """All tensors of more than one row."""
        named = [tensor for layer in self.layers for tensor in layer.values()]
        every = [self.embed, self.head, *named, *self.loose]
        return [tensor for tensor in every if tensor is not None and tensor.shape[0] > 1]


@dataclass
class _Found:
    top: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[int, dict[str, list[tuple[int, Tensor]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    loose: list[Tensor] = field(default_factory=list)


def assign_roles(tensors: list[Tensor], metadata: dict[str, object]) -> Roles:
    """The roles of `tensors`; `metadata` is a GGUF file's, or empty."""
    found = _Found()
    for tensor in tensors:
        _place(found, tensor)
    numbers = sorted(number for number in found.layers if number < _LAYERS_MAX)
    layers = []
    for number in numbers:
        layer = _layer(found.layers[number])
        layers.append(_without_ggml_order(layer, metadata))
    if "embed" not in found.top:
        return infer(tensors)
    embed, head = found.top["embed"], found.top.get("head")
    if head is not None and head.shape[1] != embed.shape[1]:
        head = None
    fitting = tuple(_fitting(layer, embed.shape[1]) for layer in layers)
    return Roles(embed, head, found.top.get("norm"), fitting, tuple(found.loose))


def _fitting(layer: dict[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """The layer without matrices that do not fit its residual stream, whatever they are called."""
    return {
        role: tensor
        for role, tensor in layer.items()
        if (role not in READERS or tensor.shape[1] == hidden)
        and (role not in WRITERS or tensor.shape[0] == hidden)
    }


def _place(found: _Found, tensor: Tensor) -> None:
    name = tensor.name
    expert = _EXPERT.search(name)
    number = int(next(filter(None, expert.groups()), 0)) if expert else 0
    name = re.sub(r"\[\d+\]$", "", name)
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, kind = name, "weight"
    bias = "_bias" if kind == "bias" else ""
    inside = _LAYER.search(stem)
    if inside:
        for pattern, role in _SUFFIXES:
            if re.search(r"(^|[._])" + pattern.pattern, inside[2]):
                found.layers[int(inside[1])][role + bias].append((number, tensor))
                return
    else:
        for pattern, role in _TOP:
            if pattern.search(stem) and not bias:
                found.top.setdefault(role, tensor)
                return
    found.loose.append(tensor)


def _layer(roles: dict[str, list[tuple[int, Tensor]]]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for role, members in roles.items():
        parts = tuple(tensor for _, tensor in sorted(members, key=lambda item: item[0]))
        if len(parts) == 1:
            out[role] = parts[0]
        elif len({part.shape for part in parts}) == 1:
            out[role] = Stacked(f"{role} of {len(parts)} experts", parts, role == "down")
        else:  # experts beside a shared one of another width: the experts speak for the layer
            common = Counter(part.shape for part in parts).most_common(1)[0][0]
            chosen = tuple(part for part in parts if part.shape == common)
            out[role] = Stacked(f"{role} of {len(chosen)} experts", chosen, role == "down")
    _split_fused(out)
    return out


def _split_fused(layer: dict[str, Tensor]) -> None:
    if "gate_up" in layer:
        whole = layer.pop("gate_up")
        half = whole.shape[0] // 2
        layer["gate"] = RowRange(f"{whole.name}[gate]", whole, 0, half)
        layer["up"] = RowRange(f"{whole.name}[up]", whole, half, half)
    if "qkv" in layer and "o" in layer:
        whole = layer.pop("qkv")
        queries = layer["o"].shape[1]
        rest = (whole.shape[0] - queries) // 2
        if rest > 0:
            layer["q"] = RowRange(f"{whole.name}[q]", whole, 0, queries)
            layer["k"] = RowRange(f"{whole.name}[k]", whole, queries, rest)
            layer["v"] = RowRange(f"{whole.name}[v]", whole, queries + rest, rest)


def _without_ggml_order(layer: dict[str, Tensor], metadata: dict[str, object]) -> dict[str, Tensor]:
    """llama.cpp interleaves each head's two rotary halves for the llama architectures."""
    architecture = metadata.get("general.architecture")
    if architecture not in ("llama", "mistral", "minicpm", "granite"):
        return layer
    heads = metadata.get(f"{architecture}.attention.head_count")
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    for role, count in (("q", heads), ("k", kv_heads)):
        tensor = layer.get(role)
        if tensor is None or not isinstance(count, int) or count <= 0:
            continue
        if tensor.shape[0] % (2 * count):
            continue
        each = tensor.shape[0] // count
        order = np.arange(tensor.shape[0]).reshape(count, each // 2, 2)
        layer[role] = Reordered(tensor, order.transpose(0, 2, 1).reshape(-1))
    return layer


def infer(tensors: list[Tensor]) -> Roles:
    """Find the token table by shape: the tallest matrix whose width most other tensors share."""
    matrices = [tensor for tensor in tensors if tensor.shape[0] > 1]
    widths: Counter[int] = Counter()
    for tensor in tensors:
        widths.update({tensor.shape[1]} if tensor.shape[0] == 1 else set(tensor.shape))
    if not matrices or not widths:
        return Roles(None, None, None, (), tuple(tensors))
    hidden = widths.most_common(1)[0][0]
    tables = [tensor for tensor in matrices if tensor.shape[1] == hidden]
    if not tables:
        return Roles(None, None, None, (), tuple(tensors))
    tallest = max(tensor.shape[0] for tensor in tables)
    tables = [tensor for tensor in tables if tensor.shape[0] == tallest]
    rest = tuple(tensor for tensor in tensors if not any(tensor is table for table in tables[:2]))
    if len(tables) > 2:  # as many as there are layers: no token table among them
        return Roles(None, None, None, (), tuple(tensors))
    head = tables[1] if len(tables) > 1 else None
    return Roles(tables[0], head, None, (), rest)


def is_vector(tensor: Tensor) -> bool:
    """Whether it is one row: a norm's weights or a bias."""
    return isinstance(tensor, Stored) and tensor.is_vector
