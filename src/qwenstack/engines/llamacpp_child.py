"""The child process that holds llama.cpp: `python -m qwenstack.engines.llamacpp_child`.

`child.py` starts it and says how the two talk. It serves llama.cpp's own HTTP API on a loopback
port of the kernel's choice, to whoever has the key.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

_THREADS_BESIDE_CLIENTS: Final = 8
_PR_SET_PDEATHSIG: Final = 1


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
    reports = _take_standard_output()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    _die_with_parent()
    configuration = msgspec.json.decode(line, type=LlamaCppConfiguration)
    missing = missing_cpu_feature()
    if missing is not None:
        _report(reports, {"failed": missing})
        return
    _be_the_first_to_go()
    try:
        port, server = _serve(configuration)
    except (RuntimeError, ValueError) as error:
        _report(reports, {"failed": str(error)})
        os._exit(1)
    _report(reports, {"ready": port})
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


def _take_standard_output() -> int:
    """Keep standard output for reports; whatever else prints goes to standard error."""
    reports = os.dup(1)
    os.dup2(2, 1)
    return reports


def _report(reports: int, report: dict[str, object]) -> None:
    os.write(reports, msgspec.json.encode(report) + b"\n")


def _die_with_parent() -> None:
    """Have the kernel end this process when the other end of standard input closes.

    Loading holds the interpreter's lock, so no Python thread could watch. The parent sends nothing
    after the first line: the only thing that SIGIO can mean is the end.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if sys.platform == "linux":
        # A process that is stopped (SIGSTOP, a debugger, a freezer) acts on no SIGIO.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _be_the_first_to_go() -> None:
    """When memory runs out, the kernel shall end this process and not the ledger's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


if __name__ == "__main__":
    main()
