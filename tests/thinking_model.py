"""A tiny Qwen3 that thinks: its weights are written, not trained, so that its words are certain.

Attention and feed-forward layers are zero, so that each token alone decides the next one. Tokens
have unit vectors of their own as embeddings, and the output row of a token is the vector of the one
that it follows. The tokenizer is Qwen's byte-level one with Qwen3's special tokens, the template is
Qwen3's in what matters: `enable_thinking`, tools, and a think block that it can open itself.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

import numpy as np

THOUGHT: Final = ("First", " I", " look", " at", " the", " map", " of", " France")
ANSWER: Final = ("It", " is", " Paris")
CALL: Final = '\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
TEMPLATE: Final = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

OPENED{% endif %}{% endif %}"""
_CONTROL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_WIDTH: Final = 512
_CONTEXT: Final = 4096


def write_thinking_model(path: Path, *, opens: bool = False, calls: bool = False) -> None:
    """Write the GGUF. `opens`: the template opens the think block; `calls`: it calls a tool."""
    import gguf

    words = [*_bytes(), "\n\n", *THOUGHT, *ANSWER, CALL]
    tokens = [_spelt(word) for word in words] + [*_CONTROL, *_TAGS]
    kinds = [gguf.TokenType.NORMAL] * len(words)
    kinds += [gguf.TokenType.CONTROL] * len(_CONTROL)
    kinds += [gguf.TokenType.USER_DEFINED] * len(_TAGS)
    number = {word: place for place, word in enumerate([*words, *_CONTROL, *_TAGS])}
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("thinker")
    writer.add_block_count(1)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{_spelt(chr(10))} {_spelt(chr(10))}"])
    writer.add_eos_token_id(number["<|im_end|>"])
    writer.add_pad_token_id(number["<|endoftext|>"])
    writer.add_bos_token_id(number["<|endoftext|>"])
    writer.add_add_bos_token(False)
    opened = "{% else %}<think>\n" if opens else ""
    writer.add_chat_template(TEMPLATE.replace("OPENED", opened))
    embedding = np.eye(len(tokens), _WIDTH, dtype=np.float32)
    output = np.zeros((len(tokens), _WIDTH), dtype=np.float32)
    for before, after in _successors(opens=opens, calls=calls):
        output[number[after], number[before]] = 1.0
    for name, tensor in {"token_embd.weight": embedding, "output.weight": output}.items():
        writer.add_tensor(name, tensor)
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, dtype=np.float32))
    for name, shape in _BLOCK.items():
        values = np.ones if name.endswith("norm") else np.zeros
        writer.add_tensor(f"blk.0.{name}.weight", values(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_BLOCK: Final[dict[str, tuple[int, ...]]] = {
    "attn_norm": (_WIDTH,),
    "attn_q": (64, _WIDTH),
    "attn_k": (64, _WIDTH),
    "attn_v": (64, _WIDTH),
    "attn_output": (_WIDTH, 64),
    "attn_q_norm": (32,),
    "attn_k_norm": (32,),
    "ffn_norm": (_WIDTH,),
    "ffn_gate": (32, _WIDTH),
    "ffn_up": (32, _WIDTH),
    "ffn_down": (_WIDTH, 32),
}


def _successors(*, opens: bool, calls: bool) -> list[tuple[str, str]]:
    """Each token and the one that follows it: a thought, then an answer or a call."""
    thought = ["\n", *THOUGHT] if opens else ["\n", "<think>", *THOUGHT]
    rest = ["<tool_call>", CALL, "</tool_call>"] if calls else list(ANSWER)
    chain = [*thought, "</think>", "\n\n", *rest, "<|im_end|>"]
    return list(itertools.pairwise(chain))


def _bytes() -> list[str]:
    return [chr(byte) for byte in range(256)]


def _spelt(word: str) -> str:
    """A token as GPT-2's byte-level vocabulary spells it."""
    if len(word) == 1:
        return _SPELLING[ord(word)]
    return "".join(_SPELLING[byte] for byte in word.encode())


def _spelling() -> list[str]:
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


_SPELLING: Final = _spelling()
