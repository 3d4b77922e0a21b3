"""Install the peers, each into a folder of its own outside the project and outside git.

Only package registries are asked: PyPI, Debian, npm. Every step can be run again; what is there
already is kept. What cannot be had raises `Unavailable`, which the report prints.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = HERE.parent / "requirements-gateway.txt"
CACHE = Path(
    os.environ.get("QWENSTACK_BENCH_CACHE", Path.home() / ".cache" / "qwenstack-bench")
).expanduser()
_INSTALL_TIMEOUT_S = 600


class Unavailable(Exception):
    """A peer that cannot be installed or started on this machine, and why."""


def pin(name: str) -> str:
    """The requirement line for `name` in requirements-gateway.txt, comment cut off."""
    for line in PINS.read_text().splitlines():
        requirement = line.split(" #")[0].strip()
        if requirement.lower().replace("_", "-").startswith(name.lower()):
            return requirement
    raise KeyError(f"{name} has no line in {PINS.name}")


def pin_npm(name: str) -> str:
    """The npm package `name` with its version, from a `# npm:` line of the same file."""
    for line in PINS.read_text().splitlines():
        if line.startswith(f"# npm: {name}@"):
            return line.removeprefix("# npm: ").strip()
    raise KeyError(f"{name} has no '# npm:' line in {PINS.name}")


def venv(folder: str, *requirements: str) -> Path:
    """A virtual environment with `requirements`; returns its `bin` folder."""
    home = CACHE / folder
    stamp = home / "installed.txt"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return home / "bin"
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(home)])
    installer = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
    if uv := _uv():
        installer = [uv, "pip", "install", "-q", "--python", str(home / "bin" / "python")]
    _run([*installer, *requirements])
    stamp.write_text(wanted)
    return home / "bin"


def npm(folder: str, *packages: str, overrides: Mapping[str, str] | None = None) -> Path:
    """npm `packages` (name@version) without install scripts; returns the `node_modules` folder.

    `overrides` fixes versions of what they depend on, where the newest allowed ones break them.
    """
    if not shutil.which("npm") or not shutil.which("node"):
        raise Unavailable("node and npm are not installed (Debian: nodejs, npm)")
    home = CACHE / folder
    stamp = home / "installed.txt"
    wants = {name: version for name, _, version in (x.rpartition("@") for x in packages)}
    manifest = {"private": True, "dependencies": wants, "overrides": dict(overrides or {})}
    wanted = json.dumps(manifest)
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(wanted)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        _run(["npm", "install", *options], cwd=home)
        stamp.write_text(wanted)
    return home / "node_modules"


def debian(program: str, *packages: str) -> Path:
    """A program from Debian packages, unpacked without installing them; the system's own if any."""
    if found := shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Path(found)
    root = CACHE / "debian" / program
    target = next(root.rglob(f"*bin/{program}"), None) if root.exists() else None
    if target:
        return target
    if not shutil.which("apt-get"):
        raise Unavailable(f"{program} is not installed, and there is no apt-get to bring it")
    archive = root / "archive"
    archive.mkdir(parents=True, exist_ok=True)
    try:
        _run(["apt-get", "download", *packages], cwd=archive)
    except Unavailable:
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "download", *packages], cwd=archive)
    for package in archive.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    target = next(root.rglob(f"*bin/{program}"), None)
    if target is None:
        raise Unavailable(f"Debian's {', '.join(packages)} holds no {program}")
    return target


def compiled(source: Path) -> Path:
    """A C program of this folder, built when it is newer than its binary."""
    binary = CACHE / "native" / source.stem
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise Unavailable("no C compiler for the upstream and the load client (Debian: gcc)")
    binary.parent.mkdir(parents=True, exist_ok=True)
    _run([compiler, "-O2", "-Wall", "-o", str(binary), str(source)])
    return binary


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _run(argv: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(argv[:4])} took over {_INSTALL_TIMEOUT_S} s") from error
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise Unavailable(f"{' '.join(argv[:4])} failed: {reason}")
