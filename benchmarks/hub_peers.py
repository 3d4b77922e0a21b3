"""What the hub stands beside: nginx, Giftless, a server that keeps nothing; and git-lfs.

Each server is one process, or one worker, on a free port of the loopback, for the time of a block.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO, FILE = "acme/throughput", "weights.bin"
_START_S = 30.0


@dataclass(frozen=True)
class Source:
    """A file to send, and what the LFS protocol calls it."""

    path: Path
    size: int
    sha256: str


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def process(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[int]:
    """A server for the time of the block; its process id."""
    with log.open("ab") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
    try:
        until = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if running.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} does not start: {log.read_text()[-1500:]}")
            time.sleep(0.05)
        yield running.pid
    finally:
        running.terminate()
        running.wait(timeout=30)


def nginx_settings(folder: Path, port: int) -> str:
    """One worker that gives `www` as a hub gives a repo, and takes files under `/put/`."""
    user = "user root;" if os.geteuid() == 0 else ""
    return textwrap.dedent(f"""
        daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{ worker_connections 256; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; client_max_body_size 0;
          client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
          scgi_temp_path {folder}/scgi;
          server {{
            listen 127.0.0.1:{port}; root {folder}/www;
            location / {{ add_header X-Repo-Commit {"0" * 40}; }}
            location /put/ {{ dav_methods PUT; create_full_put_path on; }}
          }}
        }}
        """)


@contextlib.contextmanager
def nginx(folder: Path, source: Source) -> Iterator[tuple[str, int]]:
    """nginx with the file at the hub's own path; its address and process id."""
    at = folder / "www" / REPO / "resolve" / "main" / FILE
    at.parent.mkdir(parents=True)
    os.link(source.path, at)
    port, settings = free_port(), folder / "nginx.conf"
    settings.write_text(nginx_settings(folder, port))
    command = ["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(settings)]
    with process(command, port, folder / "nginx.log") as pid:
        yield f"http://127.0.0.1:{port}", pid


@contextlib.contextmanager
def giftless(python: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Giftless with one worker and its objects in files; the address of a namespace."""
    folder.mkdir()
    port, settings = free_port(), folder / "giftless.yaml"
    settings.write_text(
        textwrap.dedent(f"""
            AUTH_PROVIDERS: ["giftless.auth.allow_anon:read_write"]
            TRANSFER_ADAPTERS:
              basic:
                factory: giftless.transfer.basic_streaming:factory
                options:
                  storage_class: giftless.storage.local_storage:LocalStorage
                  storage_options: {{path: {folder}/objects}}
            """)
    )
    address = f"127.0.0.1:{port}"
    command = [python, "-m", "gunicorn", "--bind", address, "--workers", "1", "--timeout", "600"]
    command.append("giftless.wsgi_entrypoint:app")
    log = folder / "giftless.log"
    with process(command, port, log, GIFTLESS_CONFIG_FILE=str(settings)) as pid:
        yield f"http://{address}/acme", pid


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[tuple[str, int]]:
    """A server that takes uploads and throws them away; its address and process id."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.hub_sink", str(port)]
    with process(command, port, folder / "sink.log") as pid:
        yield f"http://127.0.0.1:{port}", pid


def git_lfs_push(url: str, source: Source, folder: Path, token: str = "") -> float:
    """Send the file with git-lfs, from a repository made for it; the seconds of the push."""
    repository = folder / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    at = repository / ".git" / "lfs" / "objects" / source.sha256[:2] / source.sha256[2:4]
    at.mkdir(parents=True)
    os.link(source.path, at / source.sha256)
    settings = {"lfs.url": url, "lfs.locksverify": "false", "remote.origin.url": url}
    if token:
        settings["http.extraheader"] = f"Authorization: Bearer {token}"
    for name, value in settings.items():
        subprocess.run(["git", "-C", str(repository), "config", name, value], check=True)
    command = ["git", "-C", str(repository), "lfs", "push", "--object-id", "origin", source.sha256]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    seconds = time.perf_counter() - started
    subprocess.run(["rm", "-rf", str(repository)], check=True)
    if done.returncode:
        raise SystemExit(f"git lfs push to {url}: {done.stderr[-1000:]}")
    return seconds
