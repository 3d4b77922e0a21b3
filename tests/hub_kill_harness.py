"""Kills the hub, or its client, with SIGKILL at random instants of uploads, and audits the hub.

    python -m tests.hub_kill_harness --kills 100 [--seed N]

The server is the real one in a process of its own; the client is huggingface_hub in another, by Xet
and by LFS in turn. After each kill no ref may show anything but a whole revision, the store must
hold together, and the same upload, started again, must complete with every byte in place.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from qwenstack.core.instants import now_us
from qwenstack.hub.hub import Hub
from qwenstack.hub.registry.live import live_contents
from qwenstack.hub.registry.manifests import read_manifest
from qwenstack.hub.registry.refs import list_refs
from qwenstack.hub.registry.repos import Repo, find_repo
from qwenstack.hub.registry.revisions import read_commit
from tests.hub import RunningHub

REPO = "acme/killed"
_CLIENT = """
import sys
from huggingface_hub import HfApi
api = HfApi()
print("begin", flush=True)
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2], commit_message=sys.argv[3])
"""
_CLIENT_S_MAX = 120.0


class Report(msgspec.Struct):
    """The outcome of a run. `problems` must be empty."""

    server_kills: int = 0
    client_kills: int = 0
    after_the_end: int = 0
    committed_before_the_kill: int = 0
    resumed: int = 0
    orphans_swept: int = 0
    problems: list[str] = msgspec.field(default_factory=list)


def run(home: Path, kills: int, seed: int) -> Report:
    """Kill `kills` times; the server and the client in turn, and by each transport in turn."""
    chance = random.Random(seed)
    report = Report()
    hub = RunningHub(home / "hub", part_bytes=256 * 1024)
    hub.start()
    try:
        _client_api(hub).create_repo(REPO)
        whole_s = [_timed(hub, home, transport, version=-1 - transport) for transport in (0, 1)]
        for number in range(kills):
            transport = _transport(number)
            folder = _folder(home, number)
            before = _shown(hub)
            wait_s = chance.uniform(0, whole_s[transport] * 1.05)
            _kill_once(hub, home, folder, number, wait_s, report)
            _audit(hub, folder, before, number, report)
            _again(hub, home, folder, number, transport, report)
        _sweep(hub, report)
    finally:
        hub.kill()
    return report


def _transport(number: int) -> int:
    """0 is Xet, 1 is LFS: in turn, and each with kills of the server and of the client."""
    return number % 2


def _kill_once(
    hub: RunningHub, home: Path, folder: Path, number: int, wait_s: float, report: Report
) -> None:
    client = _start_client(hub, home, folder, number, _transport(number))
    assert client.stdout is not None
    client.stdout.readline()
    time.sleep(wait_s)
    report.after_the_end += client.poll() is not None
    of_server = (number + number // 2) % 2 == 0
    if of_server:
        hub.kill()
    client.kill()
    client.wait()
    client.stdout.close()
    if of_server:
        hub.start()
    report.server_kills += of_server
    report.client_kills += not of_server


def _audit(
    hub: RunningHub, folder: Path, before: dict[str, str], number: int, report: Report
) -> None:
    after = _shown(hub)
    if after != before:
        report.committed_before_the_kill += 1
        _compare(after, before | _hashes(folder), f"kill {number}: shown after it", report)
    opened = hub.open()
    try:
        _check(opened, f"kill {number}", report)
    finally:
        opened.close()


def _again(
    hub: RunningHub, home: Path, folder: Path, number: int, transport: int, report: Report
) -> None:
    before = _shown(hub)
    client = _start_client(hub, home, folder, number, transport)
    _, errors = client.communicate(timeout=_CLIENT_S_MAX)
    if client.returncode != 0:
        report.problems.append(f"kill {number}: the next try failed: {errors[-600:]!r}")
        return
    report.resumed += 1
    _compare(_shown(hub), before | _hashes(folder), f"kill {number}: after the next try", report)


def _check(hub: Hub, name: str, report: Report) -> None:
    """All that refs reach is there, and no byte of the store is wrong."""
    with hub.database.connect().execution_options(read_only=True) as connection:
        live = set(live_contents(connection))
    missing = live - hub.store.find_many(live).keys()
    if missing:
        report.problems.append(f"{name}: {len(missing)} contents are missing")
    # What a killed upload left in the folder of packs is garbage, not damage.
    faults = [each for each in hub.store.check() if each.kind != "orphan-pack"]
    report.problems += [f"{name}: {each.kind}: {each.detail}" for each in faults]


def _sweep(hub: RunningHub, report: Report) -> None:
    """After a garbage collection nothing is left that belongs to nothing."""
    opened = hub.open()
    try:
        report.orphans_swept = sum(each.kind == "orphan-pack" for each in opened.store.check())
        with opened.database.connect().execution_options(read_only=True) as connection:
            live = set(live_contents(connection))
        opened.store.sweep(live, older_than_us=now_us() + 1)
        report.problems += [f"after gc: {each.detail}" for each in opened.store.check()]
        if opened.store.find_many(live).keys() != live:
            report.problems.append("after gc: contents are missing")
    finally:
        opened.close()


def _shown(hub: RunningHub) -> dict[str, str]:
    """The files of the main branch as (path, SHA-256); the same for every other ref is checked."""
    opened = hub.open()
    try:
        with opened.database.connect().execution_options(read_only=True) as connection:
            repo = find_repo(connection, "model", REPO)
            assert isinstance(repo, Repo)
            files = {}
            for ref in list_refs(connection, repo.id):
                commit = read_commit(connection, repo.id, ref.commit_oid)
                assert commit is not None, f"{ref.name} points nowhere"
                files = {
                    each.path: each.sha256 for each in read_manifest(connection, commit.manifest)
                }
            return files
    finally:
        opened.close()


def _compare(shown: dict[str, str], wanted: dict[str, str], name: str, report: Report) -> None:
    if shown != wanted:
        wrong = sorted(shown.items() ^ wanted.items())[:4]
        report.problems.append(f"{name}: not the whole revision: {wrong}")


def _folder(home: Path, number: int) -> Path:
    """A folder whose files partly equal those of the one before: something to deduplicate."""
    folder = home / f"upload-{number}"
    folder.mkdir()
    chance = random.Random(number)
    common = random.Random("common").randbytes(1_500_000)
    (folder / "large.dat").write_bytes(common + chance.randbytes(700_000))
    (folder / f"other-{number % 3}.dat").write_bytes(chance.randbytes(900_000))
    for place in range(12):
        (folder / f"small-{place}.txt").write_text(f"{number} {chance.random()}")
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def _start_client(
    hub: RunningHub, home: Path, folder: Path, number: int, transport: int
) -> subprocess.Popen[bytes]:
    environment = hub.environment(home) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if transport:
        environment["HF_HUB_DISABLE_XET"] = "1"
    return subprocess.Popen(
        [sys.executable, "-c", _CLIENT, REPO, str(folder), f"upload {number}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _timed(hub: RunningHub, home: Path, transport: int, version: int) -> float:
    """How long an upload takes that nobody kills, from the client's begin on, in seconds."""
    client = _start_client(hub, home, _folder(home, version), version, transport)
    assert client.stdout is not None
    client.stdout.readline()
    started = time.monotonic()
    _, errors = client.communicate(timeout=_CLIENT_S_MAX)
    if client.returncode != 0:
        raise RuntimeError(errors.decode()[-2000:])
    return time.monotonic() - started


def _client_api(hub: RunningHub):  # type: ignore[no-untyped-def]
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=hub.token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qwenstack-hub-kill-") as folder:
        report = run(Path(folder), options.kills, options.seed)
    print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    print(f"seed {options.seed}")
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
