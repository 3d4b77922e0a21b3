"""What the documents show is what the program takes."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from qwenstack.cli.groups import LazyGroup
from qwenstack.cli.main import qwenstack
from qwenstack.studio import settings as settings_module
from qwenstack.studio.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"(?:^|[`\s])(?:\.venv/bin/)?qwenstack ([a-z][^`\n]*)")


def shown_commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            for match in COMMAND.finditer(line):
                words = match[1].split("#")[0].rstrip(" .,;:)|")
                if re.match(r"(and|is|serves|puts|does|with|was|has|to)\b", words):
                    continue
                yield document.name, words


def help_examples(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    for line in (command.help or "").splitlines():
        match = re.match(r"\s*(?:\w+=\S+ )*qwenstack (.+)", line)
        if match:
            yield f"{name} --help", re.split(r"\s{2,}", match[1].strip())[0]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from help_examples(found, f"{name} {child}")


CASES = sorted({*shown_commands(), *help_examples(qwenstack, "qwenstack")})


@pytest.mark.parametrize(("where", "words"), CASES)
def test_every_command_shown_exists_with_its_options(where: str, words: str) -> None:
    command: click.Command = qwenstack
    context = click.Context(qwenstack)
    rest = shlex.split(words)
    while rest and isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        if found is None and isinstance(command, LazyGroup) and command.default:
            rest.insert(0, command.default)
            found = command.get_command(context, rest[0])
        assert found is not None, f"{where} shows `qwenstack {words}`"
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    for word in rest:
        if word.startswith("--"):
            name = word.split("=")[0]
            assert name in options | {"--help"}, f"{where} shows `qwenstack {words}`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_there_are_examples_to_check() -> None:
    assert len(CASES) > 25


def test_every_command_explains_itself_and_prints_json_where_it_prints() -> None:
    def walk(command: click.Command) -> Iterator[click.Command]:
        yield command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None
                yield from walk(found)

    for command in walk(qwenstack):
        assert command.help, f"{command.name} has no help"


def toml_of(document: str) -> str:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    return str(blocks[0])


def test_the_documented_configuration_loads(tmp_path: Path) -> None:
    path = tmp_path / "qwenstack.toml"
    path.write_text(toml_of("configuration.md"))
    assert len(load_settings(path).deployments) == 3


def test_every_setting_is_documented_with_its_default() -> None:
    shown = tomllib.loads(toml_of("configuration.md"))
    for section in msgspec.structs.fields(Settings):
        if section.name == "deployments":
            continue
        defaults = msgspec.to_builtins(section.default)
        for name, default in defaults.items():
            assert shown[section.name][name] == default or default == (), f"{section.name}.{name}"
    documented = {key for each in shown["deployments"] for key in (*each, *each["engine"])}
    for kind in (
        settings_module.DeploymentSettings,
        settings_module.LlamaCppSettings,
        settings_module.OpenVinoSettings,
        settings_module.RemoteSettings,
    ):
        for field in msgspec.structs.fields(kind):
            assert field.name in documented, f"{kind.__name__}.{field.name}"
