"""The llama.cpp server alone, as the wheel has it: `python -m benchmarks.bare_llamacpp …`.

Arguments: GGUF path, port, parallel slots, context tokens over all slots, threads.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main(path: str, port: str, parallel: str, context: str, threads: str) -> None:
    """Serve until SIGTERM."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.port = int(port)
    parameters.n_parallel = int(parallel)
    parameters.n_ctx = int(context)
    parameters.cpuparams.n_threads = int(threads)
    parameters.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(parameters)
    print(f"listening at {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(*sys.argv[1:])
