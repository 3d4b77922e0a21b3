"""huggingface_hub's own tests, unmodified, against a hub of ours on loopback.

    pip download --no-binary :all: --no-deps huggingface_hub==2.4.0
    python -m benchmarks.hub_client_suite huggingface_hub-2.4.0.tar.gz --python CLIENT/bin/python
    python -m benchmarks.hub_client_suite SOURCES --python CLIENT/bin/python test_hf_api -k commit

CLIENT is an environment with huggingface_hub of the same version, hf-xet, pytest, pytest-mock,
pytest-timeout, jedi, jinja2, numpy and pillow. The modules run as they are in the sources; beside
them lie our conftest (theirs is not published with the sources) and their constants, in which the
endpoint, the accounts and the tokens are those of the hub. Prints a Markdown table: a line for each
module, and below it why tests failed. `--json` prints every test instead.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwenstack.hub.accounts.directory import create_account, set_role
from qwenstack.hub.accounts.tokens import create_token
from tests.hub import RunningHub, running_hub

MODULES = (
    "test_hf_api",
    "test_commit_api",
    "test_file_download",
    "test_snapshot_download",
    "test_cache_layout",
    "test_hf_file_system",
    "test_upload_pipeline",
    "test_copy_files",
    "test_commit_scheduler",
    "test_lfs",
    "test_xet_upload",
    "test_xet_download",
    "test_repocard",
    "test_hub_mixin",
    "test_cli_discussions",
    "test_cli",
    "test_utils_errors",
    "test_utils_http",
    "test_utils_pagination",
    "test_tree_cache",
    "test_verification",
    "test_auth",
    "test_shared_blobs",
    "test_cache_no_symlinks",
    "test_xet_progress_reporting",
    "test_utils_cache",
    "test_local_folder",
    "test_offline_utils",
    "test_repocard_data",
    "test_eval_results",
)
USER, OTHER_USER, ENTERPRISE_USER = "DUMMY_HUB_USER", "DVUser", "EnterpriseAdmin"
ORGANISATIONS = (
    ("valid_org_hub", "Dummy Hub Org", USER),
    ("EnterpriseOrgPrivate", "Enterprise", ENTERPRISE_USER),
)
TEST_SECONDS_MAX = 120
OURS = "a gap of this hub"
_AWAY_WHEN_SKIPPED = ("needs the production hub", "needs Git over HTTP")


@dataclass(frozen=True)
class Rule:
    """Why some failures are no gap: patterns to find in the test's name and in its report."""

    result: str
    reason: str
    test: str = ""
    message: str = ""


AWAY, CHOSEN = "not applicable", "by design"
RULES = (
    Rule(AWAY, "runs as root, whom no permission stops", test="folder_with_wrong_permission"),
    Rule(CHOSEN, "a licence that is not known is a warning", test="test_validate_repocard"),
    Rule(AWAY, "needs the production hub", message="Name or service not known|name resolution"),
    Rule(AWAY, "buckets", message="/api/buckets|buckets are not"),
    Rule(AWAY, "collections", message="/api/collections"),
    Rule(AWAY, "webhooks", message="/api/settings/webhooks"),
    Rule(AWAY, "Spaces", message="models and datasets, no spaces"),
    Rule(AWAY, "the sources on PyPI lack tests/fixtures", message="tests/fixtures/cards"),
    Rule(AWAY, "expects that HF_ENDPOINT is not set", test=r"test_fix_hf_endpoint_in_url.*None"),
    Rule(AWAY, "a plan's setting: private by default", test="create_repo_private_by_default"),
    Rule(
        CHOSEN, "the upload scan refuses pickles and broken safetensors", message="does not publish"
    ),
    Rule(CHOSEN, "no path with a backslash is taken (400)", message="holds a backslash"),
    Rule(
        CHOSEN, "412, in other words", test="test_create_commit_conflict", message='in "Client err'
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How a test ended: passed, failed, not applicable, by design, or skipped; and why."""

    module: str
    test: str
    result: str
    reason: str = ""
    message: str = ""


def unpacked(source: Path, folder: Path) -> Path:
    """The folder with the client's test modules, of a source archive or of a checkout."""
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        roots = [each for each in folder.iterdir() if each.is_dir()]
        if len(roots) != 1:
            raise SystemExit(f"{source.name} must hold one folder, not {len(roots)}")
        source = roots[0]
    if not (source / "tests" / "testing_constants.py").is_file():
        raise SystemExit(f"{source} has no tests/testing_constants.py: give the client's sources")
    return source / "tests"


def lay_out(modules: Path, fixtures: Path | None, folder: Path, constants: dict[str, str]) -> None:
    """The modules as they are, our conftest, and their constants with those of the hub."""
    shutil.copytree(modules, folder / "tests")
    beside = Path(__file__).with_name("hub_client_suite_conftest.py")
    shutil.copy(beside, folder / "tests" / "conftest.py")
    (folder / "tests" / "__init__.py").touch()
    if fixtures is not None:
        shutil.copytree(fixtures, folder / "tests" / "fixtures", dirs_exist_ok=True)
    with (folder / "tests" / "testing_constants.py").open("a") as file:
        file.writelines(f"\n{name} = {value!r}" for name, value in constants.items())
    marks = ("api", "transfer", "inference", "xet", "no_xet", "production", "deprecated", "git_lfs")
    lines = ["[pytest]", "asyncio_mode = strict", "markers =", *(f"    {mark}:" for mark in marks)]
    (folder / "pytest.ini").write_text("\n".join(lines) + "\n")


def people(running: RunningHub) -> dict[str, str]:
    """Make the accounts and organisations that the tests name; the constants that name them."""
    hub = running.open()
    with hub.database.begin() as connection:
        for name in (USER, OTHER_USER, ENTERPRISE_USER):
            full_name = "Dummy User" if name == USER else name
            create_account(connection, name=name, full_name=full_name, email=f"{name}@example.org")
        for name, full_name, admin in ORGANISATIONS:
            create_account(connection, name=name, kind="organisation", full_name=full_name)
            set_role(connection, name, admin, "admin")
        tokens = [
            create_token(connection, account=name, name="tests", role="write").secret
            for name in (USER, OTHER_USER, ENTERPRISE_USER)
        ]
    return {
        "ENDPOINT_STAGING": running.url,
        "USER": USER,
        "TOKEN": tokens[0],
        "OTHER_TOKEN": tokens[1],
        "ENTERPRISE_TOKEN": tokens[2],
    }


def client_environment(hub: RunningHub, folder: Path) -> dict[str, str]:
    """Of the client's process: the endpoint, no token, no proxy, no setting of this shell."""
    ours = hub.environment(folder / "client", token="")
    kept = {name: value for name, value in ours.items() if not name.lower().endswith("_proxy")}
    # Otherwise the client's staging mode would lead it elsewhere than HF_ENDPOINT says.
    return kept | {"HUGGINGFACE_CO_STAGING": "0", "HF_XET_CACHE": str(folder / "xet")}


def run(
    folder: Path, module: str, environment: dict[str, str], python: str, more: Sequence[str]
) -> list[Outcome]:
    """Run a module with the client's Python; every test's outcome."""
    report = folder / f"{module}.xml"
    command = [
        *(python, "-m", "pytest", f"tests/{module}.py", "-q", "-p", "no:cacheprovider"),
        *("-W", "error::FutureWarning", f"--timeout={TEST_SECONDS_MAX}"),
        *(f"--junitxml={report}", "-o", "junit_logging=no", *more),
    ]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    (folder / f"{module}.log").write_text(ended.stdout + ended.stderr)
    if not report.exists():
        return [Outcome(module, module, "failed", "does not start", ended.stdout[-300:])]
    return [outcome(module, case) for case in ElementTree.parse(report).iter("testcase")]


def outcome(module: str, case: ElementTree.Element) -> Outcome:
    """What the report says of one test."""
    owner = case.get("classname", "").rpartition(".")[2]
    test = "::".join(part for part in (owner, case.get("name", "")) if part and part != module)
    skipped = case.find("skipped")
    if skipped is not None:
        why = skipped.get("message", "")
        result = AWAY if why in _AWAY_WHEN_SKIPPED else "skipped"
        return Outcome(module, test, result, why)
    fault = case.find("failure")
    fault = case.find("error") if fault is None else fault
    if fault is None:
        return Outcome(module, test, "passed")
    message = f"{fault.get('message', '')}\n{fault.text or ''}"
    for rule in RULES:
        if re.search(rule.test, f"{module}::{test}") and re.search(rule.message, message):
            return Outcome(module, test, rule.result, rule.reason, message)
    return Outcome(module, test, "failed", OURS, message)


def table(outcomes: Iterable[Outcome]) -> str:
    """Modules by results, then the reasons, then each test that failed."""
    results = ("passed", "failed", CHOSEN, AWAY, "skipped")
    counts: dict[str, collections.Counter[str]] = {}
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    failed = []
    for each in outcomes:
        counts.setdefault(each.module, collections.Counter())[each.result] += 1
        if each.result != "passed":
            reasons[each.result, each.reason] += 1
        if each.result == "failed":
            line = each.message.strip().partition("\n")[0][:140]
            failed.append(f"- `{each.module}::{each.test}`: {line}")
    total = sum(counts.values(), collections.Counter())
    lines = [f"| module | {' | '.join(results)} |", "|---|" + "--:|" * len(results)]
    for module, count in [*counts.items(), ("all", total)]:
        cells = " | ".join(str(count[result]) for result in results)
        lines.append(f"| {f'`{module}`' if module in counts else module} | {cells} |")
    lines += ["", "| why not passed | tests | |", "|---|--:|---|"]
    lines += [f"| {why} | {n} | {result} |" for (result, why), n in reasons.most_common()]
    return "\n".join([*lines, "", *failed])


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a hub, run the modules, print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the client's sources: a .tar.gz or a folder")
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE")
    parser.add_argument("--python", default=sys.executable, help="of the client's environment")
    parser.add_argument("--fixtures", type=Path, help="tests/fixtures of a checkout, for the cards")
    parser.add_argument("-k", dest="only", default="", help="only the tests that pytest -k selects")
    parser.add_argument("--keep", type=Path, help="keep pytest's logs and the hub in this folder")
    parser.add_argument("--json", action="store_true", help="every test and its outcome")
    given = parser.parse_intermixed_args(arguments)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="client-suite-") as scratch:
        folder = given.keep or Path(scratch)
        modules = unpacked(given.source, Path(scratch) / "sources")
        with running_hub(folder / "hub") as hub:
            lay_out(modules, given.fixtures, folder / "suite", people(hub))
            environment = client_environment(hub, folder)
            more = ["-k", given.only] if given.only else []
            for name in given.modules:
                module = Path(name).stem
                outcomes += run(folder / "suite", module, environment, given.python, more)
                print(f"{module}: done", file=sys.stderr, flush=True)
    print(
        json.dumps([asdict(each) for each in outcomes], indent=1) if given.json else table(outcomes)
    )


if __name__ == "__main__":
    main()
