"""HttpData-PUSH between two real connectors, and nothing else: ordered, pushed, checked, fetched, removed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.processes import POLICY, Failed, Process, two
from tests.support.waiting import eventually

ROWS = 250_000
LARGE = 48 * 2**20  # bytes of one row, and batch
FORM = "HttpData-PUSH"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    with two(tmp_path_factory.mktemp("push"), forked=True) as made:
        path = made[0].directory / "rows.parquet"
        table = pa.table({"id": range(ROWS), "word": [f"word {n % 97}" for n in range(ROWS)]})
        pq.write_table(table, path, row_group_size=70_000)
        yield made


def agreed(pair: tuple[Process, Process], name: str, policy: Json = POLICY) -> str:
    """The agreement; its first transfer is one that pulls."""
    north, south = pair
    return south.agree(north, *north.offer(name, north.directory / "rows.parquet", policy))[0]


def hanse(south: Process, *words: str) -> subprocess.CompletedProcess[str]:
    where = {"HANSE_URL": f"http://127.0.0.1:{south.management_port}", "HANSE_TOKEN": south.token}
    command = [str(Path(sys.executable).with_name("hanse")), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **where}, timeout=180)


def files(one: Process) -> list[Path]:
    return [path for path in (one.directory / "received").rglob("*") if path.is_file()]


def test_a_push_is_ordered_received_fetched_and_removed_with_commands_alone(
    pair: tuple[Process, Process], tmp_path: Path
) -> None:
    north, south = pair
    begun = hanse(south, "transfer", "start", agreed(pair, "rows"), "--format", FORM, "--json")
    assert begun.returncode == 0, begun.stderr
    row = json.loads(begun.stdout)
    assert (row["state"], row["received"]["rows"], row["received"]["whole"]) == ("COMPLETED", ROWS, True)
    (file,) = files(south)
    assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, row["received"]["bytes"])

    target = tmp_path / "rows.arrows"
    fetched = hanse(south, "transfer", "receive", row["id"], "-o", str(target), "--remove")
    assert fetched.returncode == 0, fetched.stderr
    with pa.ipc.open_stream(target.read_bytes()) as reader:
        table = reader.read_all()
    expected = duckdb.connect().sql(f"SELECT * FROM '{north.directory / 'rows.parquet'}'").to_arrow_table()
    assert table.equals(expected.cast(table.schema))
    assert not files(south)
    api = south.api()
    assert api.get(f"/transfers/{row['id']}")["received"]["removed_at"]
    kinds = [one["kind"] for one in api.get("/audit/events?limit=100")["records"]]
    assert {"DataReceived", "DataRemoved"} <= set(kinds)
    with pytest.raises(Failed, match="removed"):
        api.get(f"/transfers/{row['id']}/received")
    api.close()


def test_an_agreement_that_is_revoked_in_mid_push_leaves_nothing(pair: tuple[Process, Process]) -> None:
    north, south = pair
    path = north.directory / "many.parquet"
    duckdb.connect().sql(f"COPY (SELECT i AS id, hash(i) AS h, hash(i + 1) AS k FROM range(30000000) t(i)) TO '{path}'")
    agreement = south.agree(north, *north.offer("many", path))[0]
    api, owner = south.api(), north.api()
    begun = api.post("/transfers", {"agreement_id": agreement, "format": FORM})["id"]
    eventually(lambda: (api.get(f"/transfers/{begun}").get("received") or {}).get("bytes"))
    assert files(south)
    owner.post(f"/agreements/{agreement}/revoke", {"reason": "the study was closed"})
    ended = api.get(f"/transfers/{begun}?wait=60&until=TERMINATED")
    assert (ended["state"], ended["reason"]) == ("TERMINATED", "the study was closed")
    eventually(lambda: not files(south))
    with pytest.raises(Failed, match="nothing"):
        api.get(f"/transfers/{begun}/received")
    kinds = eventually(
        lambda: [one for one in api.get("/audit/events?limit=50")["records"] if one["kind"] == "DataRefused"]
    )
    assert kinds[0]["body"]["process"] == begun
    api.close()
    owner.close()


def test_a_consumer_that_is_killed_in_mid_push_gets_all_of_it_after_its_return(pair: tuple[Process, Process]) -> None:
    north, south = pair
    path = north.directory / "more.parquet"
    duckdb.connect().sql(f"COPY (SELECT i AS id, hash(i) AS h, hash(i + 1) AS k FROM range(10000000) t(i)) TO '{path}'")
    agreement = south.agree(north, *north.offer("more", path))[0]
    api = south.api()
    begun = api.post("/transfers", {"agreement_id": agreement, "format": FORM})["id"]
    eventually(lambda: (api.get(f"/transfers/{begun}").get("received") or {}).get("bytes"))
    south.kill()
    left = files(south)
    south.start()
    api = south.api()
    done = api.get(f"/transfers/{begun}?wait=60&until=COMPLETED")
    assert (done["state"], done["received"]["rows"]) == ("COMPLETED", 10_000_000)
    assert left
    assert not set(left) & set(files(south))
    api.close()


def test_an_owner_pushes_to_no_private_address_that_its_operator_has_not_listed(pair: tuple[Process, Process]) -> None:
    north, south = pair
    agreement = agreed(pair, "guarded")
    with socket.create_server(("127.0.0.2", 0)) as sink:  # listed is 127.0.0.1
        sink.settimeout(0.2)
        to = {"endpoint": f"http://127.0.0.2:{sink.getsockname()[1]}/sink"}
        api, owner = south.api(), north.api()
        before = [row["id"] for row in owner.get("/transfers")]
        begun = api.post("/transfers", {"agreement_id": agreement, "format": FORM, "data_address": to})["id"]
        told = api.get(f"/transfers/{begun}?wait=60&until=TERMINATED")
        assert (told["state"], told["code"]) == ("TERMINATED", "message_invalid")
        assert (
            "cannot be called from here; give a publicly reachable address" in told["reason"]
        )  # what is in there is the owner's affair
        assert [row["id"] for row in owner.get("/transfers")] == before
        with pytest.raises(TimeoutError):
            sink.accept()
    api.close()
    owner.close()


def test_an_owner_sees_why_a_push_is_sent_again_and_a_slow_consumer_gets_all_of_it(tmp_path: Path) -> None:
    with two(tmp_path, CALL_TIMEOUT="2") as (north, south), socket.create_server(("127.0.0.1", 0)) as sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        path = north.directory / "large.parquet"
        pq.write_table(pa.table({"image": [b"a" * LARGE]}), path, use_dictionary=False)
        agreement = south.agree(north, *north.offer("large", path))[0]
        api, owner = south.api(), north.api()
        to = {"endpoint": f"http://127.0.0.1:{sink.getsockname()[1]}/sink"}
        begun = api.post("/transfers", {"agreement_id": agreement, "format": FORM, "data_address": to})["id"]
        assert taken(sink, 503, most=2**18) >= 2**18
        pid = api.get(f"/transfers/{begun}?wait=60&until=STARTED")["peer_pid"]
        again = eventually(lambda: row if (row := owner.get(f"/transfers/{pid}"))["code"] else None)
        assert (again["state"], again["code"], "answered 503" in again["reason"]) == ("STARTED", "push_again", True)
        assert taken(sink, 200, pause=0.03) > LARGE
        for side, known in ((owner, pid), (api, begun)):
            done = side.get(f"/transfers/{known}?wait=60&until=COMPLETED")
            assert (done["state"], done["code"], done["reason"]) == ("COMPLETED", "", "")
        api.close()
        owner.close()


def taken(sink: socket.socket, status: int, *, most: int = 2**40, pause: float = 0.0) -> int:
    """Take one push, or as much of it, and answer; how many bytes came. With a pause after each quarter megabyte."""
    sink.settimeout(60)
    connection, _ = sink.accept()
    with connection:
        connection.settimeout(60)
        came, last = 0, b""
        while came < most and not last.endswith(b"\r\n0\r\n\r\n"):
            data = connection.recv(2**18, socket.MSG_WAITALL if came + 2**20 < LARGE else 0)
            came, last = came + len(data), (last + data)[-8:]
            time.sleep(pause)
        connection.sendall(b"HTTP/1.1 %d answered\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**18):  # else what was sent meanwhile has the answer thrown away
            pass
    return came


def test_where_nothing_is_received_a_push_is_not_ordered(tmp_path: Path) -> None:
    with two(tmp_path, forked=True, RECEIVED_MB="0") as (north, south):
        agreement = south.agree(north, *north.publish("rows"))[0]
        begun = hanse(south, "transfer", "start", agreement, "--format", FORM)
        assert (begun.returncode, "HANSE_RECEIVED_MB" in begun.stderr) == (1, True)
        api = south.api()
        assert [one["format"] for one in api.get("/transfers")] == ["HttpData-PULL"]
        api.close()
