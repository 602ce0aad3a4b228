"""A real PostgreSQL for tests: a cluster of our own in a temporary directory, on a Unix socket, gone afterwards.

`python -m tests.support.postgres` installs Debian's package where it is missing and that is possible.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tests.support.link import Link

_INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]


def binaries() -> Path | None:
    """Where initdb and postgres are; None where there is no PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def ensure() -> bool:
    """Install PostgreSQL with apt-get where it is missing and we may. Whether it is there now."""
    if binaries() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        print("installing PostgreSQL for the store tests ...", flush=True)
        subprocess.run(["apt-get", "update"], env=env, timeout=300, **quiet)
        subprocess.run(_INSTALL, env=env, timeout=600, **quiet)
    return binaries() is not None


def _as_server_user(directory: Path) -> list[str]:
    """How to run the server's programs: it refuses root, so root becomes `postgres` or `nobody` for them."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(directory, account.pw_uid, account.pw_gid)
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    raise RuntimeError("PostgreSQL needs a user other than root, and neither `postgres` nor `nobody` exists")


@contextmanager
def cluster(*, fsync: bool = False) -> Iterator[Cluster]:
    """Start a server; stop it and remove everything afterwards. `fsync` where durability is what is measured."""
    bin_dir = binaries()
    if bin_dir is None:
        raise RuntimeError("no PostgreSQL here: install Debian's `postgresql`")
    directory = Path(tempfile.mkdtemp(prefix="hanse-pg-"))
    become = _as_server_user(directory)
    data = directory / "data"
    init = [*become, str(bin_dir / "initdb"), "-D", str(data), "-U", "hanse", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd="/")
    options = f"-c listen_addresses='' -c fsync={'on' if fsync else 'off'} -c max_connections=200 -k {directory}"
    control = [*become, str(bin_dir / "pg_ctl"), "-D", str(data), "-l", str(directory / "log"), "-w", "-t", "60"]
    running = Cluster(directory, [*control, "-o", options])
    running.control("start")
    try:
        yield running
    finally:
        running.control("-m", "immediate", "stop", check=False)
        shutil.rmtree(directory, ignore_errors=True)


class Cluster:
    def __init__(self, sockets: Path, control: list[str]) -> None:
        self._sockets = sockets
        self._control = control

    def control(self, *words: str, check: bool = True) -> None:
        """What `pg_ctl` is told of it: start, stop, restart, promote."""
        subprocess.run([*self._control, *words], check=check, stdout=subprocess.DEVNULL, cwd="/")

    def remember(self) -> None:
        """What it holds now is what it goes back to."""
        self.control("-m", "fast", "stop")
        subprocess.run(["cp", "-a", str(self._sockets / "data"), str(self._sockets / "kept")], check=True)
        self.control("start")

    def go_back(self, *, standby: bool = False) -> None:
        """Lose all since `remember`, as a crash loses what is not written yet, or where a standby that is behind takes
        over. Only as a `standby` it may hear of it yet."""
        self.control("-m", "immediate", "stop")
        shutil.rmtree(self._sockets / "data")
        (self._sockets / "kept").rename(self._sockets / "data")
        if standby:
            (self._sockets / "data" / "standby.signal").touch()
        self.control("start")

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A new database; its SQLAlchemy URL. Dropped afterwards."""
        name = f"t{uuid.uuid4().hex}"
        self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self.url(name)
        finally:
            self._admin(f'DROP DATABASE "{name}" WITH (FORCE)')

    def create(self, name: str) -> str:
        """A new database that lives as long as the server; its SQLAlchemy URL."""
        self._admin(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://hanse@/{database}?host={self._sockets}"

    @contextmanager
    def linked(self, url: str) -> Iterator[tuple[str, Link]]:
        """A database of this server as over a network: its URL there, and what it goes through."""
        link = Link(self._sockets / ".s.PGSQL.5432")
        try:
            yield f"postgresql+psycopg://hanse@127.0.0.1:{link.port}/{make_url(url).database}", link
        finally:
            link.close()

    def _admin(self, statement: str) -> None:
        with psycopg.connect(host=str(self._sockets), user="hanse", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]  # names are ours, made above


if __name__ == "__main__":
    if not ensure():
        print("=" * 78)
        print("PostgreSQL IS LEFT OUT: it is not installed and could not be. The store tests run on SQLite only.")
        print("Install Debian's package `postgresql` and run again for the whole suite.")
        print("=" * 78)
        sys.exit(3)
