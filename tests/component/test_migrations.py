"""A database of an earlier release is brought up to date with its rows, and lacks nothing then."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from qwenstack.storage.database import MIGRATIONS, connect, open_database
from qwenstack.storage.tables import metadata

REPO = """INSERT INTO hub_repos (id, kind, name, key, private, gated, created_by, created_us,
 updated_us, downloads, likes, summary)
 VALUES ('repo_1', 'model', 'a/b', 'model:a/b', false, '', 'a', 1, 1, 0, 0, '{}')"""
CONTENT = "INSERT INTO hub_repo_contents (repo_id, sha256) VALUES ('repo_1', 'aa')"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.db'}"
    found: str = request.getfixturevalue("empty_postgres_url")
    return found


def test_rows_of_an_earlier_release_survive_and_no_table_is_missing(url: str) -> None:
    old = connect(url)
    with old.begin() as connection:
        configuration = Config()
        configuration.set_main_option("script_location", str(MIGRATIONS))
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "0002")
        connection.execute(text(REPO))
        connection.execute(text(CONTENT))
    old.dispose()
    database = open_database(url)
    with database.connect() as connection:
        published = connection.execute(text("SELECT published FROM hub_repo_contents"))
        assert [bool(row[0]) for row in published] == [True]
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
        assert differences == []
    database.dispose()
