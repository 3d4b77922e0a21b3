"""What QwenStack costs in front of its own engine: tokens a second, bare against through it.

    python -m benchmarks.engine_hop MODEL.gguf            # 1, 8 and 32 clients, about 5 minutes
    python -m benchmarks.engine_hop MODEL.gguf --quick    # 1 and 8 clients, one round

Both sides run the same llama.cpp wheel with the same slots, context and threads, both are up the
whole time, and they take turns (A B, B A, …), so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import aiohttp
import msgspec

from benchmarks.gateway.load import Endpoint
from benchmarks.gateway.processes import Child, StartFailed, end_on_signals, free_port, wait_ready

LOAD_TIMEOUT_S = 120
ANSWER_TIMEOUT_S = 300
CONTEXT_TOKENS_PER_SLOT = 512
AIM = 0.98
_CONFIGURATION = """
[server]
port = {port}
[log]
level = "warning"
[[deployments]]
name = "bench"
[deployments.engine]
kind = "llamacpp"
model = "{model}"
parallel = {parallel}
context_tokens = {context}
threads = {threads}
embeds = false
"""
_THINGS = ["rivers", "bridges", "trains", "markets", "islands", "gardens", "windows", "harbours"]


class Shape(msgspec.Struct, frozen=True):
    """How the engine runs, the same on both sides."""

    model: Path
    parallel: int
    threads: int

    @property
    def context_tokens(self) -> int:
        """Over all slots."""
        return self.parallel * CONTEXT_TOKENS_PER_SLOT


class Turn(msgspec.Struct, frozen=True):
    """One measurement of one side."""

    side: str
    clients: int
    round: int
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Completion tokens a second, over all clients."""
        return self.tokens / self.seconds


def start_bare(shape: Shape, folder: Path) -> tuple[Child, Endpoint]:
    """The llama.cpp server in a process of its own."""
    port = free_port()
    argv = [sys.executable, "-m", "benchmarks.bare_llamacpp", str(shape.model), str(port)]
    argv += [str(shape.parallel), str(shape.context_tokens), str(shape.threads)]
    child = Child(argv, log=folder / "bare.log", cpus=_cpus())
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1")
    wait_ready(child, lambda: _serves(endpoint), LOAD_TIMEOUT_S)
    return child, endpoint


def start_qwenstack(shape: Shape, folder: Path) -> tuple[Child, Endpoint]:
    """`qwenstack serve` with the same model embedded; billing on."""
    port = free_port()
    home = folder / "home"
    home.mkdir()
    text = _CONFIGURATION.format(
        port=port,
        model=shape.model,
        parallel=shape.parallel,
        context=shape.context_tokens,
        threads=shape.threads,
    )
    (home / "qwenstack.toml").write_text(text)
    program = Path(sys.executable).parent / "qwenstack"
    env = {"QWENSTACK_HOME": str(home)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(program), *arguments],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed(f"qwenstack {' '.join(arguments[:3])}: {done.stderr[-300:]}")
        return done.stdout

    run("admin", "workspaces", "create", "bench")
    run("admin", "top-up", "bench", "1000000")
    made = run("admin", "keys", "create", "--workspace", "bench", "--name", "bench", "--json")
    key = json.loads(made)["api_key"]
    child = Child([program, "serve"], log=folder / "qwenstack.log", cpus=_cpus(), env=env)
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", {"Authorization": f"Bearer {key}"})
    wait_ready(child, lambda: _serves(endpoint), LOAD_TIMEOUT_S)
    return child, endpoint


async def take_turn(endpoint: Endpoint, clients: int, max_tokens: int) -> tuple[int, float]:
    """Let `clients` stream one answer each at the same time; (completion tokens, seconds)."""
    limit = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=limit, headers=dict(endpoint.headers)) as session:
        begun = time.perf_counter()
        tokens = await asyncio.gather(
            *(_one(session, endpoint, number, max_tokens) for number in range(clients))
        )
        return sum(tokens), time.perf_counter() - begun


async def _one(
    session: aiohttp.ClientSession, endpoint: Endpoint, number: int, max_tokens: int
) -> int:
    thing = _THINGS[number % len(_THINGS)]
    question = f"Write a long story, number {number}, about old {thing}."
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    tokens = 0
    async with session.post(f"{endpoint.base_url}/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise StartFailed(f"status {answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if line.startswith(b"data: {") and b'"usage":{' in line.replace(b" ", b""):
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    if not tokens:
        raise StartFailed("an answer ended without its usage")
    return int(tokens)


def render(turns: Sequence[Turn], shape: Shape) -> str:
    """The table: medians, and the ratio of each pair of neighbours."""
    lines = [
        "## In front of the embedded engine",
        "",
        f"Tokens a second of {shape.model.name}, {shape.parallel} slots, {shape.threads} threads: "
        "the llama.cpp server alone, and through QwenStack. Medians; ratio of neighbouring turns "
        "with lowest and highest.",
        "",
        "| clients | llama.cpp alone | through QwenStack | ratio | aim |",
        "|---:|---:|---:|---:|---:|",
    ]
    for clients in sorted({turn.clients for turn in turns}):
        rates = {
            side: [t.rate for t in turns if (t.side, t.clients) == (side, clients)]
            for side in ("bare", "qwenstack")
        }
        bare = f"{median(rates['bare']):.1f}"
        if not rates["qwenstack"]:
            lines.append(f"| {clients} | {bare} | not measured | – | {AIM:.0%} |")
            continue
        pairs = [
            ours / theirs for ours, theirs in zip(rates["qwenstack"], rates["bare"], strict=True)
        ]
        ours = f"{median(rates['qwenstack']):.1f}"
        spread = f"{median(pairs):.1%} ({min(pairs):.1%}–{max(pairs):.1%})"
        lines.append(f"| {clients} | {bare} | {ours} | {spread} | {AIM:.0%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description="Tokens a second, bare and through QwenStack.")
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--quick", action="store_true", help="1 and 8 clients, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="write the turns there as JSON")
    options = parser.parse_args(arguments)
    end_on_signals()
    counts = (1, 8) if options.quick else (1, 8, 32)
    shape = Shape(options.model.resolve(), max(counts), len(_cpus()))
    folder = Path(tempfile.mkdtemp(prefix="qwenstack-hop-"))
    try:
        turns = _measure(shape, folder, counts, 1 if options.quick else options.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.results:
        options.results.write_bytes(msgspec.json.format(msgspec.json.encode(turns), indent=1))
    print(render(turns, shape))
    return 0


def _measure(shape: Shape, folder: Path, counts: Sequence[int], rounds: int) -> list[Turn]:
    children: list[Child] = []
    sides: dict[str, Endpoint] = {}
    turns: list[Turn] = []
    try:
        for name, start in (("bare", start_bare), ("qwenstack", start_qwenstack)):
            try:
                child, sides[name] = start(shape, folder)
                children.append(child)
                asyncio.run(take_turn(sides[name], 1, 8))
            except (StartFailed, aiohttp.ClientError) as error:
                if name == "bare":
                    raise
                sides.pop(name, None)
                print(f"{name}: not measured: {error}", file=sys.stderr)
        for number in range(rounds):
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            for clients in counts:
                for name in order:
                    tokens, seconds = asyncio.run(
                        take_turn(sides[name], clients, 96 if clients == 1 else 48)
                    )
                    turns.append(Turn(name, clients, number, tokens, seconds))
                    print(
                        f"  round {number} {name:10} {clients:3} clients: "
                        f"{tokens / seconds:7.1f} tokens/s",
                        file=sys.stderr,
                    )
    finally:
        for child in children:
            child.stop()
    return turns


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _serves(endpoint: Endpoint) -> bool:
    request = urllib.request.Request(f"{endpoint.base_url}/models", headers=dict(endpoint.headers))
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(main())
