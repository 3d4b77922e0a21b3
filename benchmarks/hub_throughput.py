"""One large file through the hub and through its peers: down and up, in turns, on one machine.

    python -m benchmarks.hub_throughput                          # 1 GiB, five rounds
    python -m benchmarks.hub_throughput --mib 64 --rounds 3 --folder /dev/shm
    python -m benchmarks.hub_throughput --giftless ENV/bin/python --json

Peers: nginx (Debian's package) gives the same bytes and takes them by PUT. Giftless, a Git LFS
server from PyPI, takes them by the LFS protocol where `--giftless` names the Python of an
environment with giftless 0.6, gunicorn, pyjwt below 2.10 and what giftless imports without saying
so (flask, flask-classful, flask-marshmallow, marshmallow below 4, marshmallow-enum, webargs,
figcan, pyyaml, python-dateutil, python-dotenv, cryptography, cachetools, importlib-metadata,
typing-extensions). Each server is one process, or one worker, with its files in the same folder.

Two more stand beside the uploads. OpenSSL's SHA-256 of the file: whoever checks what came cannot be
faster. And a server that throws away what it is sent (`sink`): with Xet, what it takes is the
client's own cutting and hashing.

Clients are the same on both sides: curl; git-lfs, from a repository that has the file; and
huggingface_hub, in a process of its own, timed without its start. "LFS" is a client that asks,
sends in one request and verifies, and does nothing else. Every upload round has a new random file
and a hub that is empty, so that nothing is there already.

Prints a Markdown table of medians. "CPU" is processor time per GiB, of the servers and of the
hub's client: of that, a busy machine takes nothing away.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from huggingface_hub import HfApi

from benchmarks.hub_peers import FILE, REPO, Source, giftless, git_lfs_push, nginx, sink
from tests.hub import RunningHub, running_hub

GIB = 1024**3
_PIECE = 1024 * 1024
_CURL = ("curl", "--silent", "--fail", "--output", "/dev/null", "--write-out", "%{size_download}")
_LFS = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}
DOWNLOAD = """
import json, os, time
from huggingface_hub import hf_hub_download
started = time.perf_counter()
token = os.environ["HF_TOKEN"] or False
path = hf_hub_download(os.environ["REPO"], os.environ["FILE"], token=token)
print(json.dumps({"seconds": time.perf_counter() - started, "bytes": os.path.getsize(path)}))
"""
UPLOAD = """
import json, os, time
from huggingface_hub import HfApi
api, path = HfApi(), os.environ["FILE_HERE"]
api.create_repo(os.environ["REPO"], exist_ok=True)
started = time.perf_counter()
api.upload_file(path_or_fileobj=path, path_in_repo=os.environ["FILE"], repo_id=os.environ["REPO"])
print(json.dumps({"seconds": time.perf_counter() - started, "bytes": os.path.getsize(path)}))
"""


@dataclass(frozen=True)
class Taken:
    """What one transfer took: seconds of the clock, of the server's processor, of the client's."""

    seconds: float
    processor_s: float
    client_s: float


@dataclass(frozen=True)
class Row:
    """A way to move the file, the hub's medians and its peer's."""

    what: str
    peer: str
    hub_mb_s: float
    peer_mb_s: float
    ratio: float
    hub_processor_s_gib: float
    peer_processor_s_gib: float
    client_processor_s_gib: float


def random_file(path: Path, size: int) -> Source:
    """New bytes that nothing compresses or has stored before."""
    random, digest = np.random.default_rng(), hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, 16 * _PIECE):
            piece = random.bytes(min(16 * _PIECE, size - start))
            digest.update(piece)
            file.write(piece)
    return Source(path, size, digest.hexdigest())


def processor_s(pid: int) -> float:
    """Seconds of processor time of a process, of its children and of those that have ended."""
    total, ticks = 0, os.sysconf("SC_CLK_TCK")
    todo = [pid]
    while todo:
        process = todo.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(each) for each in fields[11:15])
            for task in Path(f"/proc/{process}/task").iterdir():
                todo += [int(each) for each in (task / "children").read_text().split()]
    return total / ticks


def measured(pid: int, work: Callable[[], float | None]) -> Taken:
    """The time of one transfer: what it says itself, or that of the clock around it."""
    spent, own, started = processor_s(pid), sum(os.times()[:4]), time.perf_counter()
    seconds = work()
    elapsed = time.perf_counter() - started
    return Taken(
        elapsed if seconds is None else seconds,
        processor_s(pid) - spent,
        sum(os.times()[:4]) - own,
    )


def curl(url: str, size: int, token: str = "") -> None:
    """Read a file and throw it away."""
    headers = ["--header", f"Authorization: Bearer {token}"] if token else []
    got = subprocess.run([*_CURL, *headers, url], check=True, capture_output=True, text=True).stdout
    if int(got) != size:
        raise SystemExit(f"{url} gave {got} bytes of {size}")


def client(
    script: str, endpoint: str, folder: Path, *, xet: bool, token: str, **more: str
) -> float:
    """Run huggingface_hub with an empty cache; the seconds it took without its start."""
    home = Path(tempfile.mkdtemp(dir=folder))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "" if xet else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "REPO": REPO,
        "FILE": FILE,
        **more,
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(home)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def put(url: str, source: Source, headers: dict[str, str] | None = None) -> None:
    """Send a file in one request."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=600, blocksize=_PIECE)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    with source.path.open("rb") as file, contextlib.closing(connection):
        sent = {"Content-Length": str(source.size), **(headers or {})}
        # A server that has answered and hung up before the end: its answer says why.
        with contextlib.suppress(BrokenPipeError):
            connection.request("PUT", target, body=file, headers=sent)
        answer = connection.getresponse()
        said = answer.read()
    if answer.status not in (200, 201, 204):
        raise SystemExit(f"PUT {url}: {answer.status} {said[:300]!r}")


class Action(msgspec.Struct):
    """Where to send a content, or to have it verified."""

    href: str
    header: dict[str, str] = {}


class Actions(msgspec.Struct):
    """What there is to do for a content."""

    upload: Action
    verify: Action


class Answered(msgspec.Struct):
    """A content in the answer of the batch API; no actions where it is there already."""

    actions: Actions | None = None


class Batch(msgspec.Struct):
    """The answer of the batch API."""

    objects: list[Answered]


def lfs(batch_url: str, source: Source, headers: dict[str, str]) -> None:
    """Ask, send and verify, as the Git LFS documents say (batch API, basic transfer)."""
    wanted = {"oid": source.sha256, "size": source.size}
    question = {"operation": "upload", "transfers": ["basic"], "objects": [wanted]}
    said = post(batch_url, question, _LFS | headers)
    actions = msgspec.json.decode(said, type=Batch).objects[0].actions
    if actions is None:
        raise SystemExit(f"{batch_url} has the file already, or refuses it: {said[:300]!r}")
    put(actions.upload.href, source, actions.upload.header)
    post(actions.verify.href, wanted, _LFS | headers | actions.verify.header)


def post(url: str, body: object, headers: dict[str, str]) -> bytes:
    """The answer to a JSON question."""
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=600) as answer:
        content: bytes = answer.read()
    return content


def pid_of(hub: RunningHub) -> int:
    """Of the hub's process."""
    assert hub.process is not None
    return hub.process.pid


Works = dict[tuple[str, str], tuple[int, Callable[[], float | None]]]


def downloads(hub: RunningHub, peer: tuple[str, int], source: Source, folder: Path) -> Works:
    """The ways down, of the hub and of nginx."""
    url, pid = peer
    path = f"/{REPO}/resolve/main/{FILE}"

    def hf(endpoint: str, token: str, *, xet: bool) -> Callable[[], float]:
        return lambda: client(DOWNLOAD, endpoint, folder, xet=xet, token=token)

    ours = pid_of(hub)
    plain, whole = "download, curl", "download, hf_hub_download"
    return {
        (plain, "hub"): (ours, lambda: curl(hub.url + path, source.size, hub.token)),
        (plain, "nginx"): (pid, lambda: curl(url + path, source.size)),
        (whole, "hub"): (ours, hf(hub.url, hub.token, xet=False)),
        (whole, "nginx"): (pid, hf(url, "", xet=False)),
        (f"{whole} by Xet", "hub"): (ours, hf(hub.url, hub.token, xet=True)),
    }


def uploads(
    hubs: Sequence[RunningHub],
    peer: tuple[str, int],
    nowhere: tuple[str, int],
    other: tuple[str, int] | None,
    source: Source,
    folder: Path,
) -> Works:
    """The ways up: each to a hub that has nothing, and to the peers."""
    (url, pid), (by_lfs, by_client, by_xet, by_git) = peer, hubs

    def hf(endpoint: str, token: str, *, xet: bool) -> Callable[[], float]:
        here = str(source.path)
        return lambda: client(UPLOAD, endpoint, folder, xet=xet, token=token, FILE_HERE=here)

    def ask() -> None:
        sent = {"Authorization": f"Bearer {by_lfs.token}"}
        lfs(f"{by_lfs.url}/{REPO}.git/info/lfs/objects/batch", source, sent)

    def push() -> float:
        return git_lfs_push(f"{by_git.url}/{REPO}.git/info/lfs", source, folder, by_git.token)

    def sha256() -> None:
        with source.path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    for hub in (by_lfs, by_git):
        HfApi(endpoint=hub.url, token=hub.token).create_repo(REPO)
    by_parts = hf(by_client.url, by_client.token, xet=False)
    works: Works = {
        ("upload, LFS", "hub"): (pid_of(by_lfs), ask),
        ("upload, PUT", "nginx"): (pid, lambda: put(f"{url}/put/{source.sha256}", source)),
        ("upload, git lfs push", "hub"): (pid_of(by_git), push),
        ("upload, upload_file by LFS", "hub"): (pid_of(by_client), by_parts),
        ("upload, upload_file by Xet", "hub"): (
            pid_of(by_xet),
            hf(by_xet.url, by_xet.token, xet=True),
        ),
        ("upload, upload_file by Xet", "sink"): (nowhere[1], hf(nowhere[0], "none", xet=True)),
        ("checking, SHA-256 alone", "OpenSSL"): (os.getpid(), sha256),
    }
    if other is not None:
        base, process_id = other
        works["upload, LFS", "Giftless"] = (
            process_id,
            lambda: lfs(f"{base}/one/objects/batch", source, {}),
        )
        works["upload, git lfs push", "Giftless"] = (
            process_id,
            lambda: git_lfs_push(f"{base}/two", source, folder),
        )
    return works


Times = dict[tuple[str, str], list[Taken]]


def in_turns(works: Works, times: Times, turn: int) -> None:
    """Run each once, the other way round in every second round."""
    for key in list(works)[:: -1 if turn % 2 else 1]:
        pid, work = works[key]
        times.setdefault(key, []).append(measured(pid, work))
        print(f"{key[0]} · {key[1]}: {times[key][-1].seconds:.2f} s", file=sys.stderr, flush=True)


def measure(size: int, rounds: int, folder: Path, giftless_python: str | None) -> Times:
    """All transfers in all rounds."""
    times: Times = {}
    source = random_file(folder / "down.bin", size)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(nginx(folder / "nginx", source))
        nowhere = stack.enter_context(sink(folder))
        other = None
        if giftless_python is not None:
            other = stack.enter_context(giftless(giftless_python, folder / "giftless"))
        with running_hub(folder / "hub") as hub:
            here = str(source.path)
            client(UPLOAD, hub.url, folder, xet=False, token=hub.token, FILE_HERE=here)
            works = downloads(hub, peer, source, folder)
            for turn in range(rounds):
                in_turns(works, times, turn)
        shutil.rmtree(folder / "hub")
        for turn in range(rounds):
            fresh = random_file(folder / "up.bin", size)
            with contextlib.ExitStack() as hubs:
                homes = [folder / f"hub-{turn}-{number}" for number in range(4)]
                empty = [hubs.enter_context(running_hub(home)) for home in homes]
                in_turns(uploads(empty, peer, nowhere, other, fresh, folder), times, turn)
            for stored in (
                *homes,
                folder / "nginx" / "www" / "put",
                folder / "giftless" / "objects",
            ):
                shutil.rmtree(stored, ignore_errors=True)
    return times


PAIRS = (
    ("download, curl", "download, curl", "nginx"),
    ("download, hf_hub_download", "download, hf_hub_download", "nginx"),
    ("download, hf_hub_download by Xet", "download, hf_hub_download", "nginx"),
    ("upload, LFS", "upload, LFS", "Giftless"),
    ("upload, git lfs push", "upload, git lfs push", "Giftless"),
    ("upload, LFS", "checking, SHA-256 alone", "OpenSSL"),
    ("upload, LFS", "upload, PUT", "nginx"),
    ("upload, upload_file by LFS", "upload, PUT", "nginx"),
    ("upload, upload_file by Xet", "upload, PUT", "nginx"),
    ("upload, upload_file by Xet", "upload, upload_file by Xet", "sink"),
)


def rows(times: Times, size: int) -> list[Row]:
    """Medians side by side."""
    made = []
    for what, theirs, peer in PAIRS:
        if (theirs, peer) not in times:
            continue
        ours, others = times[what, "hub"], times[theirs, peer]
        seconds = [statistics.median(each.seconds for each in side) for side in (ours, others)]
        spent = [statistics.median(each.processor_s for each in side) for side in (ours, others)]
        made.append(
            Row(
                what=what,
                peer=peer if what == theirs else f"{peer}, {theirs.partition(', ')[2]}",
                hub_mb_s=round(size / 1e6 / seconds[0], 1),
                peer_mb_s=round(size / 1e6 / seconds[1], 1),
                ratio=round(seconds[1] / seconds[0], 3),
                hub_processor_s_gib=round(spent[0] * GIB / size, 2),
                peer_processor_s_gib=round(spent[1] * GIB / size, 2),
                client_processor_s_gib=round(
                    statistics.median(each.client_s for each in ours) * GIB / size, 2
                ),
            )
        )
    return made


def table(made: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| | hub, MB/s | peer | MB/s | hub/peer | hub's CPU, s/GiB | peer's | client's |"]
    lines.append("|---|--:|---|--:|--:|--:|--:|--:|")
    for row in made:
        lines.append(
            f"| {row.what} | {row.hub_mb_s} | {row.peer} | {row.peer_mb_s} | {row.ratio:.0%} "
            f"| {row.hub_processor_s_gib} | {row.peer_processor_s_gib} "
            f"| {row.client_processor_s_gib} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="of every transfer (5)")
    parser.add_argument("--folder", type=Path, help="where the files lie: a disk, or /dev/shm")
    parser.add_argument(
        "--giftless", help="the Python of an environment with giftless and gunicorn"
    )
    parser.add_argument("--json", action="store_true", help="the table's rows and every time")
    given = parser.parse_args(arguments)
    if given.mib < 1 or given.rounds < 1:
        parser.error("--mib and --rounds are 1 or more")
    for program, package in (("nginx", "nginx"), ("curl", "curl"), ("git-lfs", "git-lfs")):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing: apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="throughput-", dir=given.folder) as scratch:
        (Path(scratch) / "nginx").mkdir()
        times = measure(given.mib * _PIECE, given.rounds, Path(scratch), given.giftless)
    made = rows(times, given.mib * _PIECE)
    if not given.json:
        print(table(made))
        return
    taken = [
        {"what": what, "who": who, "times": [asdict(each) for each in series]}
        for (what, who), series in times.items()
    ]
    sizes = {"mib": given.mib, "rounds": given.rounds, "load": os.getloadavg()[0]}
    print(json.dumps({**sizes, "rows": [asdict(row) for row in made], "taken": taken}, indent=1))


if __name__ == "__main__":
    main()
