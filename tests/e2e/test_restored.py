"""A database that is put back from a copy is not gone on with unless somebody says so, and then little of it holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZipFile

import pytest
from hanse.audit.verify import verify

from tests.support.ports import free_range
from tests.support.processes import Client, Failed, Process, two


def stop(one: Process) -> None:
    """As an operator does, before the files are copied."""
    assert one.running is not None
    one.running.send_signal(signal.SIGTERM)
    one.running.wait()
    one.running = None


def put_back(one: Process, copy: Path | None) -> None:
    for path in one.directory.glob("connector.db*"):
        path.unlink()
    if copy is not None:
        shutil.copy2(copy, one.directory / "connector.db")


def restored(one: Process, *words: str) -> subprocess.CompletedProcess[str]:
    asked = [sys.executable, "-m", "connector", "restored", *words]
    return subprocess.run(asked, env=one.environ(), capture_output=True, text=True, timeout=120, check=False)


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def evidence(one: Process, path: Path) -> str:
    """The whole log in a file; the key that it must be verified with."""
    path.write_bytes(one.api().call("GET", "/audit/export"))
    return one.api().call("GET", "/audit/key").decode().strip()


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    """The details of the records of a kind in an evidence file."""
    lines = [json.loads(line)["body"] for line in ZipFile(path).read("events.jsonl").splitlines()]
    return [body["detail"] for body in lines if body["kind"] == kind]


def test_where_no_connector_was_none_is_made(tmp_path: Path) -> None:
    for url in ("", f"sqlite:///{tmp_path}/other.db"):
        told = restored(Process("north", tmp_path / "north", 1, 2, url), "--yes")
        assert told.returncode == 1
        assert "run this with the settings that the connector is served with" in told.stderr
        assert not list(tmp_path.iterdir())


def test_an_older_database_is_refused_and_gone_on_with_by_an_operators_word_alone(tmp_path: Path) -> None:
    with two(tmp_path, forked=True) as (north, south):
        (agreement, _), (kept, _) = (south.agree(north, *north.publish(name)) for name in ("air", "sea"))
        stop(north)
        copy = Path(shutil.copy2(north.directory / "connector.db", tmp_path / "copy.db"))
        north.start()
        north.api().post(f"/agreements/{quote(agreement, safe='')}/revoke", {"reason": "a patient has objected"})
        before = evidence(north, tmp_path / "before.zip")
        old_token = north.token
        assert restored(north, "--yes").returncode == 1  # it serves
        stop(north)

        for older in (copy, None):
            put_back(north, older)
            with pytest.raises(RuntimeError, match="`hanse connector restored` ends all agreements"):
                north.start()
        put_back(north, copy)
        told = restored(north, "--yes")
        assert told.returncode == 0, told.stderr
        assert f"restored: the database sqlite:///{north.directory}/connector.db with the data directory" in told.stdout
        assert "ended: 2 agreements, 0 negotiations, 1 tokens\nwithdrawn: 2 offers\n" in told.stdout

        for _ in range(2):
            north.start()
            assert north.api().get(f"/agreements/{quote(agreement, safe='')}")["state"] == "ended"
            assert north.api().get("/offers?withdrawn=false") == []
            with pytest.raises(Failed, match="401"):
                Client(north.management_port, token=old_token, prefix="/api/v1").get("/offers")
            after = evidence(north, tmp_path / "after.zip")
            stop(north)
        assert before != after
        assert after in told.stdout
        assert verify(tmp_path / "before.zip", key=before).ok
        assert verify(tmp_path / "after.zip", key=after).ok
        (said,) = records(tmp_path / "after.zip", "DatabaseRestored")
        assert said["key"] == before
        assert int(said["head"].splitlines()[1]) > said["size"]
        north.start()
        until(lambda: south.api().get(f"/agreements/{quote(kept, safe='')}")["state"] == "ended")  # it is told


def test_a_copy_from_before_the_last_time_is_known_for_one(tmp_path: Path) -> None:
    first = free_range(2)
    north = Process("north", tmp_path / "north", first, first + 1, forked=True)
    try:
        north.start()
        keys = [evidence(north, tmp_path / "before.zip")]
        stop(north)
        copy = Path(shutil.copy2(north.directory / "connector.db", tmp_path / "copy.db"))
        for _ in range(2):
            put_back(north, copy)
            assert restored(north, "--yes").returncode == 0
            north.start()
            keys.append(evidence(north, tmp_path / "after.zip"))
            stop(north)
            put_back(north, copy)
            with pytest.raises(RuntimeError, match="the database is an older copy, or another one"):
                north.start()
    finally:
        north.kill()
    assert len(set(keys)) == 3
    assert verify(tmp_path / "after.zip", key=keys[-1]).ok
    (said,) = records(tmp_path / "after.zip", "DatabaseRestored")
    assert said["key"] == keys[0]


def test_a_process_ends_whose_database_goes_back_while_it_serves(tmp_path: Path) -> None:
    first = free_range(2)
    north = Process("north", tmp_path / "north", first, first + 1, forked=True)
    try:
        north.start()
        evidence(north, tmp_path / "before.zip")
        with closing(sqlite3.connect(north.directory / "connector.db")) as database, database:
            for table in ("audit_event", "audit_tile", "audit_checkpoint"):
                database.execute(f"DELETE FROM {table}")
        assert north.running is not None
        until(lambda: north.running.poll() is not None)  # type: ignore[union-attr]  # it runs
        assert north.running.poll() == 1
        assert "the database is an older copy, or another one" in (north.directory / "log").read_text().splitlines()[-1]
    finally:
        north.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_what_root_makes_is_the_connectors(tmp_path: Path) -> None:
    first = free_range(2)
    north = Process("north", tmp_path / "north", first, first + 1, forked=True)
    try:
        north.start()
        stop(north)
    finally:
        north.kill()
    for path in (north.directory, *north.directory.rglob("*")):
        os.chown(path, 65534, 65533)
    told = restored(north, "--yes")
    assert told.returncode == 0, told.stderr
    made = {path.name for path in north.directory.rglob("*")}
    assert {"log.head", "log.key"} < made
    assert {(path.stat().st_uid, path.stat().st_gid) for path in north.directory.rglob("*")} == {(65534, 65533)}
