"""The child process that holds llama.cpp: `python -m qwenstack.engines.llamacpp_child`.

`child.py` starts it and says how the two talk. It serves llama.cpp's own HTTP API on a loopback
port of the kernel's choice, to whoever has the key.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Final

import msgspec

from qwenstack.engines.child_side import (
    be_the_first_to_go,
    die_with_parent,
    report,
    take_standard_output,
)

_THREADS_BESIDE_CLIENTS: Final = 8


class LlamaCppConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The line of input. `context_tokens` is for one slot; `threads` 0 leaves it to llama.cpp.

    `clients_max` is how many connections are served at once: each holds a thread of the server,
    so that those beyond it wait.
    """

    model: str
    api_key: str
    parallel: int
    context_tokens: int
    threads: int = 0
    embedding: bool = False
    prompt_cache_mib: int = 0
    clients_max: int = 64
    batch_tokens: int = 512
    pooling: str = ""


def main() -> None:
    """Serve until standard input ends."""
    reports = take_standard_output()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    die_with_parent()
    configuration = msgspec.json.decode(line, type=LlamaCppConfiguration)
    missing = missing_cpu_feature()
    if missing is not None:
        report(reports, {"failed": missing})
        return
    be_the_first_to_go()
    try:
        port, server = _serve(configuration)
    except (RuntimeError, ValueError) as error:
        report(reports, {"failed": str(error)})
        os._exit(1)
    report(reports, {"ready": port})
    sys.stdin.buffer.read()
    del server
    # No destructors: they wait for running generations, and nobody is left to read those.
    os._exit(0)


def missing_cpu_feature(
    cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()
) -> str | None:
    """What this processor lacks of what the wheel of xllamacpp was compiled for, in words.

    Its x86 code uses AVX2 without asking, so the process would die of SIGILL.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return None
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None  # not Linux, where there is no such file
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if flags is None or {"avx2", "fma", "f16c"} <= set(flags):
        return None
    return (
        "this processor has no AVX2, which the llama.cpp wheel needs; use a remote engine, or a "
        "machine with AVX2 (x86 from 2013 on, or any arm64)"
    )


def _serve(configuration: LlamaCppConfiguration) -> tuple[int, object]:
    """Load the model and listen; returns the port and what keeps the server alive."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = configuration.model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [configuration.api_key]
    params.n_threads_http = configuration.clients_max + _THREADS_BESIDE_CLIENTS
    params.ui = False
    params.endpoint_slots = True
    params.endpoint_props = False
    params.n_parallel = configuration.parallel
    params.n_ctx = configuration.parallel * configuration.context_tokens
    params.n_batch = params.n_ubatch = configuration.batch_tokens
    params.cache_ram_mib = configuration.prompt_cache_mib
    params.fit_params = False
    params.verbosity = 1
    if configuration.threads:
        params.cpuparams.n_threads = configuration.threads
        params.cpuparams_batch.n_threads = configuration.threads
    if configuration.embedding:
        params.embedding = True
        # An input must fit in one batch: it is pooled over all its tokens at once.
        params.n_batch = params.n_ubatch = configuration.context_tokens
        if configuration.pooling:
            kind = f"LLAMA_POOLING_TYPE_{configuration.pooling.upper()}"
            params.pooling_type = getattr(xllamacpp.llama_pooling_type, kind)
    server = xllamacpp.Server(params)
    return int(server.listening_address.rsplit(":", 1)[1]), server


if __name__ == "__main__":
    main()
