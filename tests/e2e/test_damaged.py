"""Two connectors behind relays that damage one byte: what comes of a stream, a question over owners, and a push."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import hanse
import pytest
from hanse.agreement import Name, TransferAccess
from hanse.audit.match import AGREE, DIFFER, match
from hanse.client import Dataset

from tests.support.link import Link
from tests.support.ports import free_range
from tests.support.processes import Process

ROWS = 50_000
IDS = [struct.pack("<q", number) for number in range(1_000, ROWS, 5_000)]  # as they lie in a batch


@contextmanager
def relayed(directory: Path) -> Iterator[tuple[Process, Process, Link, Link]]:
    """A provider and a consumer, each reached through a relay."""
    first = free_range(4)
    with ExitStack() as stack:
        made: list[Process] = []
        links: list[Link] = []
        for name, port in (("north", first), ("south", first + 2)):
            links.append(stack.enter_context(closing(Link(port))))
            one = Process(name, directory / name, port, port + 1, front_port=links[-1].port, forked=True)
            stack.callback(one.kill)
            one.start()
            made.append(one)
        yield made[0], made[1], links[0], links[1]


def once(*marks: bytes, at: int = 0) -> Callable[[bytes], bytes]:
    """Changes the byte `at` of the first mark that passes, and nothing after that."""
    done = False

    def alter(data: bytes) -> bytes:
        nonlocal done
        found = [place for mark in marks if (place := data.find(mark)) >= 0 and place + at < len(data)]
        if done or not found:
            return data
        done = True
        place = found[0] + at
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return alter


def exported(one: Process, path: Path) -> Path:
    path.write_bytes(one.api().call("GET", "/audit/export"))
    return path


def of_kind(one: Process, kind: str, number: int) -> list[dict[str, Any]]:
    """The newest records of a kind, once there are so many."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        found = [row["body"] for row in one.api().get(f"/audit/events?kind={kind}&limit=100")["records"]]
        if len(found) >= number:
            return found
        time.sleep(0.1)
    raise AssertionError(f"expected {number} records of {kind}, got {len(found)}")


def test_one_damaged_byte_is_found_by_each_reader_and_by_the_auditor(tmp_path: Path) -> None:
    with relayed(tmp_path) as (north, south, before_north, before_south):
        dataset, offer = north.publish("air", rows=ROWS)
        agreement, transfer = south.agree(north, dataset, offer)
        with hanse.connect(f"http://127.0.0.1:{south.management_port}", south.token) as space:
            air = Dataset(
                space, TransferAccess(Name("north", "air"), dataset, agreement, transfer, "", north.participant)
            )
            assert air.stream().to_arrow().num_rows == ROWS
            before_north.alter = once(*IDS)
            with pytest.raises(hanse.DigestMismatch):
                air.stream().to_arrow()

            question = 'SELECT sum(id) AS s FROM "north".air WHERE id % 3 = 0'
            expected = [{"s": sum(range(0, ROWS, 3))}]
            before_north.alter = once(b"ARROW", b"\xff\xff\xff\xff", at=200)  # in what follows the head of the answer
            assert space.query(question).to_arrow().to_pylist() == expected
            asked = [one["process"] for one in of_kind(north, "ReadEnded", 4)]
            assert {name.split(".")[2] for name in asked if ".f0." in name} == {"1", "2"}  # attempts

            before_south.alter = once(*IDS)
            pushed = south.api().post("/transfers", {"agreement_id": agreement, "format": "HttpData-PUSH"})
            refused = of_kind(south, "DataRefused", 1)[0]
            assert (refused["code"], refused["process"]) == ("digest_mismatch", pushed["id"])
            assert not [path for path in (south.directory / "received").rglob("*") if path.is_file()]

        (damaged, whole) = of_kind(south, "ReadTaken", 2)
        assert (damaged["outcome"], damaged["code"]) == ("broken", "digest_mismatch")
        assert damaged["detail"]["digest"] != damaged["detail"]["told"]["digest"]
        assert whole["detail"]["digest"] == whole["detail"]["told"]["digest"]
        found = match(exported(south, tmp_path / "south.zip"), exported(north, tmp_path / "north.zip"))
        assert found.counts[DIFFER] == 1
        assert found.counts[AGREE] >= 2
        (differs,) = [read for read in found.reads if read.verdict == DIFFER]
        assert (differs.read, "digest of the received bytes" in differs.why) == (damaged["process"], True)
