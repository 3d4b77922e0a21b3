"""`qwenstack hub push` and `hub pull`: the client library's own transfer, aimed at this hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwenstack.cli.context import json_option, print_json
from qwenstack.cli.hub_context import endpoint_option

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KINDS = click.Choice(["model", "dataset"])


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("repo")
@click.option("--kind", type=_KINDS, default="model", show_default=True)
@click.option("--revision", default="main", show_default=True, help="The branch to push to.")
@click.option("--private", is_flag=True, help="Make the repo private, if it is made.")
@click.option("--message", "-m", help="The commit's title.")
@endpoint_option
@json_option
def push(
    folder: Path,
    repo: str,
    kind: str,
    revision: str,
    private: bool,
    message: str | None,
    endpoint: str,
    as_json: bool,
) -> None:
    """Publish FOLDER (or one file) as REPO, namespace/name; the repo is made if it is missing.

    Needs a token in HF_TOKEN.

    \b
    Examples:
      qwenstack hub push ./my-model alice/my-model
      qwenstack hub push ./data alice/set --kind dataset --private
    """
    api = _api(endpoint)
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if revision != "main":
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        if folder.is_dir():
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                repo_type=kind,
                revision=revision,
                commit_message=message,
            )
        else:
            commit = api.upload_file(
                path_or_fileobj=folder,
                path_in_repo=folder.name,
                repo_id=repo,
                repo_type=kind,
                revision=revision,
                commit_message=message,
            )
    except HfHubHTTPError as error:
        raise _failed(error) from error
    if as_json:
        print_json({"repo": repo, "commit": commit.oid, "url": commit.commit_url})
    else:
        click.echo(f"{repo} is at {commit.oid[:12]}: {endpoint}/{_path(repo, kind)}")


@click.command()
@click.argument("repo")
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--kind", type=_KINDS, default="model", show_default=True)
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--include", multiple=True, help="Only files that match; may be repeated.")
@endpoint_option
@json_option
def pull(
    repo: str,
    folder: Path | None,
    kind: str,
    revision: str,
    include: tuple[str, ...],
    endpoint: str,
    as_json: bool,
) -> None:
    """Fetch REPO into FOLDER; without one, into the client library's cache.

    \b
    Examples:
      qwenstack hub pull alice/my-model ./my-model
      qwenstack hub pull alice/my-model --revision v1.0 --include "*.gguf"
    """
    api = _api(endpoint)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # Asked first: with a folder at hand the library would take its content for the answer.
        api.repo_info(repo, repo_type=kind, revision=revision)
        path = api.snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(include) or None,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise _failed(error) from error
    if as_json:
        print_json({"repo": repo, "revision": revision, "folder": path})
    else:
        click.echo(path)


def _api(endpoint: str) -> HfApi:
    # Some of its calls read the address of the environment and not the object's.
    os.environ["HF_ENDPOINT"] = endpoint
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, library_name="qwenstack")


def _failed(error: Exception) -> click.ClickException:
    return click.ClickException(
        f"{' '.join(str(error).split())}\nIs the hub up, and HF_TOKEN a token that may do this?"
    )


def _path(repo: str, kind: str) -> str:
    return f"datasets/{repo}" if kind == "dataset" else repo
