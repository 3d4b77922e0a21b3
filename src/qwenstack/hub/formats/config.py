"""What a model's config.json says of its shape, under the many names that releases use."""

from __future__ import annotations

from typing import Final

import msgspec

CONFIG_BYTES_MAX: Final = 8 * 1024 * 1024
# Where a multimodal model keeps its language part.
_TEXT_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config")

Json = dict[str, object]


class ConfigError(ValueError):
    """A config.json that can't be read; the message says why."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, as far as it is there and of the right type. Widths are in elements."""

    model_type: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    context_tokens: int | None = None
    tied_embeddings: bool | None = None
    attention_bias: bool | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    expert_intermediate_size: int | None = None
    shared_intermediate_size: int | None = None
    every_layer_sparse: bool = True
    quantisation: str | None = None
    quantisation_bits: int | None = None
    multimodal: bool = False


def read_config(document: bytes) -> ModelConfig:
    """Read config.json; raises ConfigError for what is no JSON object of bearable size."""
    config = _object(document, "config.json")
    part = next((value for key in _TEXT_PARTS if isinstance(value := config.get(key), dict)), None)
    inner: Json = {**config, **part} if part is not None else config
    quantised = config.get("quantization_config", inner.get("quantization_config"))
    quantisation: Json = quantised if isinstance(quantised, dict) else {}
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    sparse_step = _integer(inner, "decoder_sparse_step")
    return ModelConfig(
        model_type=_text(config, "model_type"),
        architecture=first if isinstance(first, str) else None,
        dtype=_text(inner, "dtype") or _text(inner, "torch_dtype"),
        vocab_size=_integer(inner, "vocab_size"),
        hidden_size=_integer(inner, "hidden_size"),
        layers=_integer(inner, "num_hidden_layers"),
        heads=_integer(inner, "num_attention_heads"),
        kv_heads=_integer(inner, "num_key_value_heads"),
        head_dim=_integer(inner, "head_dim"),
        intermediate_size=_integer(inner, "intermediate_size"),
        context_tokens=_integer(inner, "max_position_embeddings"),
        tied_embeddings=_boolean(inner, "tie_word_embeddings"),
        attention_bias=_boolean(inner, "attention_bias"),
        experts=_integer(inner, "num_experts", "num_local_experts", "n_routed_experts"),
        experts_per_token=_integer(inner, "num_experts_per_tok", "num_experts_per_token"),
        expert_intermediate_size=_integer(inner, "moe_intermediate_size"),
        shared_intermediate_size=_integer(inner, "shared_expert_intermediate_size"),
        every_layer_sparse=not inner.get("mlp_only_layers") and sparse_step in (None, 1),
        quantisation=_text(quantisation, "quant_method"),
        quantisation_bits=_bits(quantisation),
        multimodal=part is not None or isinstance(config.get("vision_config"), dict),
    )


class AdapterConfig(msgspec.Struct, frozen=True):
    """What adapter_config.json says: the kind of adapter and what it was trained on."""

    kind: str | None
    base_model: str | None
    rank: int | None


def read_adapter_config(document: bytes) -> AdapterConfig:
    """Read PEFT's adapter_config.json; raises ConfigError."""
    config = _object(document, "adapter_config.json")
    return AdapterConfig(
        _text(config, "peft_type"), _text(config, "base_model_name_or_path"), _integer(config, "r")
    )


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What tokenizer_config.json says: the longest input, and whether it has a chat template."""

    context_tokens: int | None
    chat_template: bool


def read_tokenizer_config(document: bytes) -> TokenizerConfig:
    """Read tokenizer_config.json; raises ConfigError."""
    config = _object(document, "tokenizer_config.json")
    longest = _integer(config, "model_max_length")
    # transformers writes 10^30 for "not known".
    known = longest if longest is not None and longest < 2**40 else None
    return TokenizerConfig(known, bool(config.get("chat_template")))


def _object(document: bytes, name: str) -> Json:
    if len(document) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{name} is over {CONFIG_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(document, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ConfigError(f"{name} is no JSON object: {error}") from error


def _bits(quantisation: Json) -> int | None:
    bits = _integer(quantisation, "bits", "num_bits")
    if bits is None and quantisation.get("load_in_4bit") is True:
        return 4
    if bits is None and quantisation.get("load_in_8bit") is True:
        return 8
    groups = quantisation.get("config_groups")
    for group in list(groups.values())[:1] if isinstance(groups, dict) else []:
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = _integer(weights, "num_bits") if isinstance(weights, dict) else None
    return bits


def _text(config: Json, key: str) -> str | None:
    value = config.get(key)
    return value[:200] if isinstance(value, str) and value else None


def _integer(config: Json, *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
    return None


def _boolean(config: Json, key: str) -> bool | None:
    value = config.get(key)
    return value if isinstance(value, bool) else None
