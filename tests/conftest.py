"""Fixtures for everybody. Store tests run on SQLite and on a real PostgreSQL; leaving one out is said loudly."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings
from sqlalchemy import event
from sqlalchemy.pool import Pool

from connector.store import Store
from tests.support import migrated, postgres

_HAS_POSTGRES = postgres.binaries() is not None
DATABASES = ["sqlite", "postgresql"] if _HAS_POSTGRES else ["sqlite"]
# The Flight listener sets it before it loads gRPC, which tests load earlier: with gRPC's fork handlers a child process
# now and then crashes before it starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@event.listens_for(Pool, "checkout")
def _without_waiting_for_the_disk(connection: Any, record: Any, _: Any) -> None:
    """SQLite in the tests' own processes, as PostgreSQL here: no test cuts the power, and a busy disk takes seconds."""
    if isinstance(connection, sqlite3.Connection) and "synchronous" not in record.info:
        connection.execute("PRAGMA synchronous=OFF")
        record.info["synchronous"] = "OFF"


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[postgres.Cluster]:
    with postgres.cluster() as running:
        yield running


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with request.getfixturevalue("postgres_cluster").database() as url:
            yield url


@pytest.fixture(params=DATABASES)
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        yield migrated.sqlite(tmp_path / "store.db")
    else:
        with migrated.postgresql(request.getfixturevalue("postgres_cluster")) as url:
            yield url


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A migrated store on each kind of database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A migrated store on SQLite, for tests whose subject is not the store."""
    opened = Store(migrated.sqlite(tmp_path / "store.db"))
    yield opened
    opened.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests first: theirs are the long ones, and one that begins last keeps everybody waiting."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage: what looks for some, as some tests ask it to, need not look through them."""
    gc.collect()
    gc.freeze()


class FailuresAtOnce:
    """Says what failed when it fails: a run that is cut off before its summary has told by then."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            why = report.longreprtext.strip().splitlines()[-12:]
            self._reporter.ensure_newline()
            self._reporter.write_line("\n".join([f"{report.when} of {report.nodeid} failed:", *why]))


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    reporter = plugins.get_plugin("terminalreporter")
    if reporter is not None:  # none in the processes among which the tests are shared out
        plugins.register(FailuresAtOnce(reporter))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, one worker for all stories of the running data space: so it is started once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneSpace(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "the data space" if _of_the_space(config.rootpath / file) else file

    return OneSpace(config, log)


@cache
def _of_the_space(file: Path) -> bool:
    return "from tests.e2e.conftest import" in file.read_text()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _HAS_POSTGRES:
        terminalreporter.section("PostgreSQL LEFT OUT", sep="=", red=True, bold=True)
        terminalreporter.line("No PostgreSQL on this machine: every store test ran on SQLite only.")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    said = f"{item.nodeid} has set up logging for every test after it in this process"
    assert not structlog.get_config()["cache_logger_on_first_use"], said


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(20_000, 20, 20)  # as Python has it, looking for garbage takes a sixth of a test with many values
    settings.register_profile("hanse", deadline=None)  # a busy machine is no finding
    settings.load_profile("hanse")
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])  # the other takes seconds each
    for name in [name for name in os.environ if name.startswith("HANSE_")]:
        del os.environ[name]  # a developer's own settings must not decide how tests go
    # No test goes out: one authority, whose key nobody has, is read in no time, and 150 are not, for each client anew.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "support" / "nobody.pem")
