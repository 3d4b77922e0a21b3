"""Unmodified clients against the hub: HF_ENDPOINT and a token lead them here, nothing else.

Each script runs in a process of its own, so that the client reads its environment afresh, and says
what it saw as its last line, in JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import RunningHub, running_hub
from tests.hub_cutting_proxy import CuttingProxy

_TRANSPORTS = pytest.mark.parametrize("transport", ["xet", "lfs"])
_PRELUDE = """
import json, os, sys, tempfile
from pathlib import Path
from huggingface_hub import *
from huggingface_hub.errors import *
api, other = HfApi(), HfApi(token=os.environ["OTHER_TOKEN"])

def weights(size):
    # a safetensors file of random numbers
    header = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + os.urandom(size)

def refused(call, kind, status):
    try:
        call()
    except kind as error:
        assert error.response.status_code == status, error
        assert error.server_message, "the message did not arrive"
        return
    raise AssertionError(f"no {kind.__name__}")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def run(hub: RunningHub, folder: Path, script: str, *, url: str = "", **extra: str) -> Any:
    """Run a script as a client's process; what it printed last, decoded."""
    environment = {**hub.environment(folder), "OTHER_TOKEN": hub.other, **extra}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    environment["HF_ENDPOINT"] = url or hub.url
    python = extra.get("PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", _PRELUDE + textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:] + hub.log()[-2000:]
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def transport_variables(transport: str) -> dict[str, str]:
    return {"HF_HUB_DISABLE_XET": "1"} if transport == "lfs" else {}


@_TRANSPORTS
def test_what_is_uploaded_comes_back_byte_for_byte(
    hub: RunningHub, tmp_path: Path, transport: str
) -> None:
    script = """
    repo = os.environ["REPO"]
    assert api.create_repo(repo).repo_id == repo
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    refused(lambda: api.create_repo(repo), HfHubHTTPError, 409)
    folder = Path(tempfile.mkdtemp())
    (folder / "sub").mkdir()
    big = weights(3_000_000)
    files = {"config.json": b"{}", "sub/a b+%2f\\u00fc.txt": b"text", "empty.txt": b"",
             "model.safetensors": big, "sub/again.safetensors": big}
    for path, content in files.items():
        (folder / path).write_bytes(content)
    commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="all of it")
    assert api.model_info(repo).sha == commit.oid
    card = b"---\\nlicense: apache-2.0\\n---\\n# Card"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo)
    api.upload_file(path_or_fileobj=big[:-1], path_in_repo="x/y.npy", repo_id=repo)
    files |= {"README.md": card, "x/y.npy": big[:-1]}
    assert set(api.list_repo_files(repo)) == {*files, ".gitattributes"}
    path = Path(snapshot_download(repo))
    assert all((path / name).read_bytes() == content for name, content in files.items())
    local = Path(snapshot_download(repo, local_dir=tempfile.mkdtemp()))
    assert all((local / name).read_bytes() == content for name, content in files.items())
    siblings = api.model_info(repo, files_metadata=True).siblings
    sizes = {each.rfilename: each.size for each in siblings}
    assert all(sizes[name] == len(content) for name, content in files.items())
    tip = api.model_info(repo).sha
    same = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    assert same.oid == tip
    api.delete_repo(repo)
    api.delete_repo(repo, missing_ok=True)
    refused(lambda: api.delete_repo(repo), RepositoryNotFoundError, 404)
    assert not api.repo_exists(repo)
    """
    run(hub, tmp_path, script, REPO=f"acme/bytes-{transport}", **transport_variables(transport))


@_TRANSPORTS
def test_a_commit_adds_copies_and_deletes_at_once_and_locks_on_its_parent(
    hub: RunningHub, tmp_path: Path, transport: str
) -> None:
    script = """
    repo, second = os.environ["REPO"], os.environ["REPO"] + "-copy"
    api.create_repo(repo)
    tensors = weights(200_000)
    api.create_commit(repo, [CommitOperationAdd("w.safetensors", tensors),
        CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("old/a.txt", b"a"),
        CommitOperationAdd("old/b.txt", b"b"), CommitOperationAdd("c.txt", b"c")],
        commit_message="first")
    tip = api.model_info(repo).sha
    done = api.create_commit(repo, [CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("old/"), CommitOperationDelete("c.txt"),
        CommitOperationCopy("w.safetensors", "w2.safetensors"),
        CommitOperationCopy("config.json", "copy.json")],
        commit_message="mixed", commit_description="why", parent_commit=tip)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "w.safetensors", "w2.safetensors",
        "config.json", "copy.json", "new.txt"}
    late = lambda: api.create_commit(repo, [CommitOperationAdd("late.txt", b"1")],
        commit_message="late", parent_commit=tip)
    refused(late, HfHubHTTPError, 412)
    history = api.list_repo_commits(repo)
    assert [each.title for each in history] == ["mixed", "first", "initial commit"], history
    assert history[0].message == "why" and history[0].authors == ["alice"]
    api.create_repo(second)
    source = dict(src_repo_id=repo, src_repo_type="model")
    api.create_commit(second, [CommitOperationCopy("w.safetensors", "w.safetensors", **source),
        CommitOperationCopy("config.json", "c.json", **source)], commit_message="from another repo")
    assert Path(hf_hub_download(second, "w.safetensors")).read_bytes() == tensors
    """
    run(hub, tmp_path, script, REPO=f"acme/commit-{transport}", **transport_variables(transport))


def test_branches_tags_and_history_are_what_the_client_expects(
    hub: RunningHub, tmp_path: Path
) -> None:
    script = """
    repo = "acme/refs"
    api.create_repo(repo)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo)
    first = api.model_info(repo).sha
    api.create_branch(repo, branch="feature/x")
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    refused(lambda: api.create_branch(repo, branch="feature/x"), HfHubHTTPError, 409)
    api.create_tag(repo, tag="v1.0", tag_message="the first")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo, revision="feature/x")
    api.upload_file(path_or_fileobj=b"3", path_in_repo="b.txt", repo_id=repo)
    read = lambda revision: Path(hf_hub_download(repo, "a.txt", revision=revision)).read_bytes()
    seen = [read(each) for each in ("main", "feature/x", "v1.0", first[:9])]
    assert seen == [b"1", b"2", b"1", b"1"]
    assert not api.file_exists(repo, "b.txt", revision="v1.0") and api.file_exists(repo, "b.txt")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [each.name for each in refs.branches] == ["main", "feature/x"]
    assert [(each.name, each.target_commit) for each in refs.tags] == [("v1.0", first)]
    api.super_squash_history(repo, branch="feature/x", commit_message="one")
    assert [each.title for each in api.list_repo_commits(repo, revision="feature/x")] == ["one"]
    assert read("feature/x") == b"2"
    api.delete_branch(repo, branch="feature/x")
    api.delete_tag(repo, tag="v1.0")
    refused(lambda: api.delete_branch(repo, branch="feature/x"), RevisionNotFoundError, 404)
    refused(lambda: api.delete_branch(repo, branch="main"), HfHubHTTPError, 403)
    """
    run(hub, tmp_path, script)


def test_trees_and_paths_tell_files_folders_and_their_last_commits(
    hub: RunningHub, tmp_path: Path
) -> None:
    script = """
    repo = "acme/trees"
    api.create_repo(repo)
    for path, content, title in (("d/e/a.txt", b"a", "A"), ("d/b.bin", b"b\\0", "B")):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo,
                        commit_message=title)
    top = {each.path for each in api.list_repo_tree(repo)}
    assert top == {".gitattributes", "d"}, top
    everything = {each.path: each for each in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert set(everything) == {".gitattributes", "d", "d/e", "d/e/a.txt", "d/b.bin"}
    assert everything["d/e"].last_commit.title == "A" and everything["d"].last_commit.title == "B"
    import hashlib
    assert everything["d/b.bin"].lfs.sha256 == hashlib.sha256(b"b\\0").hexdigest()
    assert everything["d/e/a.txt"].blob_id == hashlib.sha1(b"blob 1\\0a").hexdigest()
    found = api.get_paths_info(repo, ["d/b.bin", "none", "d/e"], expand=True)
    assert [each.path for each in found] == ["d/b.bin", "d/e"]
    refused(lambda: list(api.list_repo_tree(repo, "none")), RemoteEntryNotFoundError, 404)
    """
    run(hub, tmp_path, script)


def test_the_file_system_lists_reads_seeks_writes_and_removes(
    hub: RunningHub, tmp_path: Path
) -> None:
    script = """
    repo = "acme/fs"
    api.create_repo(repo)
    big = weights(1_000_000)
    api.upload_file(path_or_fileobj=big, path_in_repo="w/model.safetensors", repo_id=repo)
    fs = HfFileSystem()
    assert fs.ls(repo, detail=False) == [repo + "/.gitattributes", repo + "/w"]
    assert fs.glob(repo + "/**/*.safetensors") == [repo + "/w/model.safetensors"]
    assert fs.read_bytes(repo + "/w/model.safetensors") == big
    with fs.open(repo + "/w/model.safetensors", block_size=4096) as file:
        file.seek(777_777)
        assert file.read(1000) == big[777_777:778_777]
    with fs.open(repo + "/notes/out.txt", "w") as file:
        file.write("hello")
    assert fs.read_text(repo + "/notes/out.txt") == "hello"
    assert fs.isdir(repo + "/notes") and not fs.exists(repo + "/none")
    assert fs.info(repo + "/w/model.safetensors")["size"] == len(big)
    fs.cp_file(repo + "/w/model.safetensors", repo + "/w/copy.safetensors")
    fs.rm(repo + "/notes/out.txt")
    assert sorted(fs.find(repo)) == [repo + "/.gitattributes", repo + "/w/copy.safetensors",
        repo + "/w/model.safetensors"]
    """
    run(hub, tmp_path, script)


def test_each_refusal_is_the_clients_own_exception(hub: RunningHub, tmp_path: Path) -> None:
    script = """
    repo = "acme/refusals"
    api.create_repo(repo)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    put = lambda who, path, **more: who.upload_file(
        path_or_fileobj=b"1", path_in_repo=path, repo_id=repo, **more)
    for call, kind, status in (
        (lambda: api.model_info("acme/none"), RepositoryNotFoundError, 404),
        (lambda: api.model_info("none"), RepositoryNotFoundError, 404),
        (lambda: api.model_info(repo, revision="none"), RevisionNotFoundError, 404),
        (lambda: hf_hub_download(repo, "none"), RemoteEntryNotFoundError, 404),
        (lambda: hf_hub_download("acme/none", "none"), RepositoryNotFoundError, 404),
        (lambda: hf_hub_download(repo, "none", revision="none"), RevisionNotFoundError, 404),
        (lambda: api.delete_file("none", repo), RemoteEntryNotFoundError, 404),
        (lambda: api.delete_folder("none", repo), RemoteEntryNotFoundError, 404),
        (lambda: put(api, "x", revision="none"), RevisionNotFoundError, 404),
        (lambda: put(other, "x"), HfHubHTTPError, 403),
        (lambda: put(HfApi(token="hf_" + "x" * 34), "x"), HfHubHTTPError, 401),
        (lambda: api.create_repo("bob/mine"), HfHubHTTPError, 403),
        (lambda: put(api, "CON.txt"), BadRequestError, 400),
        (lambda: put(api, "CONFIG.json"), BadRequestError, 400),
    ):
        refused(call, kind, status)
    try:
        put(api, "README.md")
        broken = b"---\\na: [\\n---\\n"
        api.upload_file(path_or_fileobj=broken, path_in_repo="README.md", repo_id=repo)
        raise AssertionError("a broken card was taken")
    except ValueError as error:
        assert "Invalid metadata" in str(error), error
    # Absence is remembered by the client: it needs the commit for that.
    assert try_to_load_from_cache(repo, "none") is _CACHED_NO_EXIST
    """
    run(hub, tmp_path, script)


def test_settings_close_open_gate_and_move_a_repo(hub: RunningHub, tmp_path: Path) -> None:
    script = """
    repo, moved = "acme/settings", "alice/moved"
    api.create_repo(repo, private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    refused(lambda: other.model_info(repo), RepositoryNotFoundError, 404)
    refused(lambda: HfApi(token=False).model_info(repo), RepositoryNotFoundError, 404)
    refused(lambda: other.hf_hub_download(repo, "config.json"), RepositoryNotFoundError, 404)
    api.update_repo_settings(repo, visibility="public", gated="auto")
    assert other.model_info(repo).gated == "auto" and not other.model_info(repo).private
    refused(lambda: other.auth_check(repo), GatedRepoError, 403)
    refused(lambda: other.hf_hub_download(repo, "config.json"), GatedRepoError, 403)
    api.auth_check(repo, write=True)
    api.update_repo_settings(repo, gated=False)
    other.hf_hub_download(repo, "config.json")
    api.move_repo(repo, moved)
    assert api.model_info(repo).id == moved == api.model_info(moved).id
    hf_hub_download(repo, "config.json", force_download=True)
    refused(lambda: other.delete_repo(moved), HfHubHTTPError, 403)
    """
    run(hub, tmp_path, script)


@_TRANSPORTS
def test_a_pull_request_is_pushed_to_read_and_merged(
    hub: RunningHub, tmp_path: Path, transport: str
) -> None:
    script = """
    repo = os.environ["REPO"]
    api.create_repo(repo)
    tensors = weights(300_000)
    add = [CommitOperationAdd("w.safetensors", tensors), CommitOperationAdd("a.txt", b"a")]
    asked = other.create_commit(repo, add, commit_message="Please take", create_pr=True)
    assert (asked.pr_num, asked.pr_revision) == (1, "refs/pr/1")
    more = os.urandom(100_000)
    other.upload_file(path_or_fileobj=more, path_in_repo="b.dat", repo_id=repo,
                      revision="refs/pr/1")
    assert {"w.safetensors", "b.dat"} <= set(api.list_repo_files(repo, revision="refs/pr/1"))
    assert "w.safetensors" not in api.list_repo_files(repo)
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [each.ref for each in refs.pull_requests] == ["refs/pr/1"]
    api.merge_pull_request(repo, 1)
    assert Path(hf_hub_download(repo, "w.safetensors")).read_bytes() == tensors
    assert {"a.txt", "b.dat"} <= set(api.list_repo_files(repo))
    """
    run(hub, tmp_path, script, REPO=f"acme/pull-{transport}", **transport_variables(transport))


def test_datasets_are_repos_like_models(hub: RunningHub, tmp_path: Path) -> None:
    script = """
    repo = "acme/rows"
    api.create_repo(repo, repo_type="dataset")
    api.create_repo(repo)
    put = dict(repo_id=repo, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"a,b\\n1,2\\n", path_in_repo="train.csv", **put)
    api.upload_file(path_or_fileobj=os.urandom(200_000), path_in_repo="x.npy", **put)
    assert set(api.list_repo_files(repo, repo_type="dataset")) == {
        ".gitattributes", "train.csv", "x.npy"}
    assert api.list_repo_files(repo) == [".gitattributes"]
    path = Path(snapshot_download(repo, repo_type="dataset"))
    assert (path / "train.csv").read_bytes() == b"a,b\\n1,2\\n"
    assert api.dataset_info(repo).id == repo
    api.delete_repo(repo, repo_type="dataset")
    assert api.repo_exists(repo)
    """
    run(hub, tmp_path, script)


def test_a_warm_snapshot_asks_once_and_a_cut_download_goes_on_where_it_stopped(
    hub: RunningHub, tmp_path: Path
) -> None:
    fill = """
    api.create_repo("acme/cut")
    api.upload_file(path_or_fileobj=bytes(range(256)) * 150_000, path_in_repo="w.dat",
                    repo_id="acme/cut")
    """
    run(hub, tmp_path, fill)
    read = """
    path = Path(snapshot_download("acme/cut"))
    assert (path / "w.dat").read_bytes() == bytes(range(256)) * 150_000
    """
    # The client writes 10 MiB at a time: what is cut before that begins anew.
    with CuttingProxy(hub.url, cut_after=12_000_000, cuts=2) as proxy:
        run(hub, tmp_path, read, url=proxy.url, HF_HUB_DISABLE_XET="1")
        ranges = [each for each in proxy.requests if "\r\nrange: bytes=" in each.lower()]
        assert proxy.cuts_done == 2
        assert len(ranges) == 2, "the client did not resume"
        proxy.requests.clear()
        run(hub, tmp_path, read, url=proxy.url, HF_HUB_DISABLE_XET="1")
        lines = [each.partition("\r\n")[0] for each in proxy.requests if "acme/cut" in each]
        assert lines == ["GET /api/models/acme/cut/revision/main HTTP/1.1"]


def test_the_hf_command_makes_fills_tags_reads_and_deletes(hub: RunningHub, tmp_path: Path) -> None:
    hf = str(Path(sysconfig.get_path("scripts")) / "hf")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "w.dat").write_bytes(os.urandom(100_000))

    def command(*words: str) -> str:
        done = subprocess.run(
            [hf, *words], env=hub.environment(tmp_path), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "alice" in command("auth", "whoami")
    command("repos", "create", "acme/command")
    command("upload", "acme/command", str(folder), ".", "--commit-message", "by command")
    command("repos", "tag", "create", "acme/command", "v1")
    target = tmp_path / "back"
    command("download", "acme/command", "--revision", "v1", "--local-dir", str(target))
    for name in ("config.json", "w.dat"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert "acme/command" in command("models", "ls", "--author", "acme", "--quiet")
    command("repos", "delete", "acme/command", "--yes")


def _python_with(*packages: str) -> str:
    """An interpreter that imports these; QWENSTACK_CLIENTS_PYTHON names one to try."""
    for python in (os.environ.get("QWENSTACK_CLIENTS_PYTHON"), sys.executable):
        if (
            python
            and not subprocess.run(
                [
                    python,
                    "-c",
                    "import importlib.util as u, sys; "
                    "sys.exit(not all(u.find_spec(each) for each in sys.argv[1:]))",
                    *packages,
                ]
            ).returncode
        ):
            return python
    pytest.skip(f"no {' or '.join(packages)}: set QWENSTACK_CLIENTS_PYTHON to a Python with them")


def test_transformers_pushes_a_model_and_loads_the_same_one(
    hub: RunningHub, tmp_path: Path
) -> None:
    script = """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
    shape = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                 num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    model = Qwen3ForCausalLM(Qwen3Config(**shape))
    model.push_to_hub("acme/tiny-qwen3")
    again = AutoModelForCausalLM.from_pretrained("acme/tiny-qwen3")
    pairs = zip(model.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(one, other) for one, other in pairs)
    try:
        AutoConfig.from_pretrained("acme/none")
        raise AssertionError("a repo that isn't there was loaded")
    except OSError:
        pass
    """
    run(hub, tmp_path, script, PYTHON=_python_with("torch", "transformers"))


def test_datasets_loads_what_it_pushed_and_a_plain_csv(hub: RunningHub, tmp_path: Path) -> None:
    script = """
    import datasets
    api.create_repo("acme/csv", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"a,b\\n1,2\\n3,4\\n", path_in_repo="train.csv",
                    repo_id="acme/csv", repo_type="dataset")
    assert datasets.load_dataset("acme/csv")["train"][1] == {"a": 3, "b": 4}
    datasets.Dataset.from_dict({"x": list(range(100))}).push_to_hub("acme/parquet")
    assert datasets.load_dataset("acme/parquet", split="train")[99] == {"x": 99}
    streamed = datasets.load_dataset("acme/parquet", split="train", streaming=True)
    assert next(iter(streamed)) == {"x": 0}
    """
    run(hub, tmp_path, script, PYTHON=_python_with("datasets"))


def test_llama_cpps_own_downloader_finds_and_reads_every_file(
    hub: RunningHub, tmp_path: Path
) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to call llama.cpp's downloader with")
    library = tmp_path / "downloader.so"
    source = Path(__file__).with_name("llama_downloader.cpp")
    # The wheel is built with GCC's old strings, as manylinux prescribes.
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-D_GLIBCXX_USE_CXX11_ABI=0", "-o", library, source],
        check=True,
    )
    script = """
    import ctypes, hashlib, subprocess
    import gguf, numpy
    writer = gguf.GGUFWriter("tiny.gguf", "qwen3")
    writer.add_tensor("token_embd.weight", numpy.random.rand(500, 256).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = Path("tiny.gguf").read_bytes()
    api.create_repo("acme/tiny-gguf", private=True)
    for path, content in {"tiny-Q8_0.gguf": tensors, "sub/a b.txt": b"text"}.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="acme/tiny-gguf")
    call = '''
    import ctypes, os, sys
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    import xllamacpp
    library = ctypes.CDLL(os.environ["LIBRARY"])
    library.download_repo(b"acme/tiny-gguf", os.environ["HF_TOKEN"].encode())
    '''
    import textwrap
    call = [sys.executable, "-c", textwrap.dedent(call)]
    done = subprocess.run(call, capture_output=True, text=True)
    rows = [line.split("\\t") for line in done.stdout.splitlines() if line.count("\\t") == 2]
    places = {path: place for status, path, place in rows if status == "200"}
    assert set(places) == {".gitattributes", "tiny-Q8_0.gguf", "sub/a b.txt"}, done
    assert Path(places["tiny-Q8_0.gguf"]).read_bytes() == tensors
    assert Path(places["sub/a b.txt"]).read_bytes() == b"text"
    """
    run(hub, tmp_path, script, LIBRARY=str(library))
