"""How many parameters a decoder has, from its configuration alone.

Counted are the embedding, the attention and feed-forward weights with their norms, the last norm
and the output matrix: a Qwen decoder from Qwen to Qwen3. Vision and audio towers, multi-token
prediction heads and linear-attention layers (Qwen3-Next, Qwen3.5 on) are not.
"""

from __future__ import annotations

import msgspec

from qwenstack.catalog.model import Architecture


class ParameterCount(msgspec.Struct, frozen=True):
    """`total` weights, and the `active` ones that a token meets (the same for a dense model)."""

    total: int
    active: int


def count(shape: Architecture) -> ParameterCount:
    """Count the parameters of `shape`; exact, in weights (not bytes)."""
    outside = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.hidden
    layer = _attention(shape) + 2 * shape.hidden
    if not shape.experts:
        dense = outside + shape.layers * (layer + 3 * shape.hidden * shape.intermediate)
        return ParameterCount(dense, dense)
    expert = 3 * shape.hidden * shape.expert_intermediate
    layer += shape.experts * shape.hidden
    if shape.shared_intermediate:
        layer += 3 * shape.hidden * shape.shared_intermediate + shape.hidden
    return ParameterCount(
        outside + shape.layers * (layer + shape.experts * expert),
        outside + shape.layers * (layer + shape.experts_used * expert),
    )


def _attention(shape: Architecture) -> int:
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = 2 * shape.hidden * query + 2 * shape.hidden * key_value
    if shape.qkv_bias:
        weights += query + 2 * key_value
    if shape.qk_norm:
        weights += 2 * shape.head_dim
    return weights


def configuration(shape: Architecture) -> dict[str, object]:
    """`shape` as the keyword arguments of the transformers configuration of its `model_type`."""
    arguments: dict[str, object] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    if shape.qk_norm:
        arguments |= {"head_dim": shape.head_dim, "attention_bias": False}
    if shape.experts:
        arguments |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_used,
            "moe_intermediate_size": shape.expert_intermediate,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if shape.shared_intermediate:
        arguments["shared_expert_intermediate_size"] = shape.shared_intermediate
    return arguments
