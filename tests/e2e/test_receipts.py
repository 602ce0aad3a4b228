"""An owner and a reader, each a process with a log of its own: what both say of the same reads, and of a forged one."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hanse
import pytest
from hanse._transport import http_stream
from hanse.agreement import Name, TransferAccess
from hanse.audit.match import AGREE, CUT, DIFFER, NO_RECEIPT, NO_RECORD, Match, match
from hanse.cli import main
from hanse.client import Dataset

from connector.audit.signed_note import Signer, origin_of
from connector.identity import keys
from tests.support.forged import Body, rewritten
from tests.support.processes import Process, two

ROWS = 200_000


def exported(one: Process, path: Path, query: str = "") -> Path:
    path.write_bytes(one.api().call("GET", f"/audit/export{query}"))
    return path


def of_kind(one: Process, kind: str) -> list[dict[str, Any]]:
    return [row["body"] for row in one.api().get(f"/audit/events?kind={kind}&limit=1000")["records"]]


def receipts(reader: Process, number: int) -> list[dict[str, Any]]:
    """Once there are so many: they come a moment after the end."""
    ends = time.monotonic() + 30
    while len(found := of_kind(reader, "ReadTaken")) < number and time.monotonic() < ends:
        time.sleep(0.1)
    assert len(found) == number, found
    return found


def worked(of: Dataset) -> None:
    """In a worker, which ends as soon as it has read."""
    assert of.stream(columns=["id"]).to_arrow().num_rows == ROWS


def by_hand(owner: Process, reader: Process, transfer: str) -> None:
    """A whole read without the SDK."""
    address = reader.api().get(f"/transfers/{transfer}/address")
    http_stream.open_stream(
        http_stream.HttpRequest("GET", f"{owner._url}/data/v1", {"authorization": f"Bearer {address['ticket']}"})
    ).body.read_rest(2**30)


def counts(found: Match) -> dict[str, int]:
    return {verdict: count for verdict, count in found.counts.items() if count}


def cli(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    code = 0
    try:
        main(["audit", "match", *map(str, args)])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_both_logs_say_the_same_of_each_read_and_a_forged_one_is_contradicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two(tmp_path, forked=True) as (north, south):
        dataset, offer = north.publish("air", rows=ROWS)
        agreement, transfer = south.agree(north, dataset, offer)
        with hanse.connect(f"http://127.0.0.1:{south.management_port}", south.token) as space:
            air = Dataset(
                space, TransferAccess(Name("north", "air"), dataset, agreement, transfer, "", north.participant)
            )
            assert air.stream().to_arrow().num_rows == ROWS
            assert sum(one.num_rows for one in air.loader(seed=7, batch_size=10_000)) == ROWS
            assert air.query('SELECT count(*) AS n FROM "north".air').to_arrow().to_pylist() == [{"n": ROWS}]
            with air.stream(batch_rows=1_000) as left:
                assert next(iter(left)).num_rows == 1_000
            for method in ("fork", "spawn"):
                worker = multiprocessing.get_context(method).Process(target=worked, args=(air,))
                worker.start()
                worker.join(60)
                assert worker.exitcode == 0
            assert space.query('SELECT id FROM "north".air WHERE id < 100').to_arrow().num_rows == 100
        told = receipts(south, 6)
        assert sorted(one["detail"]["rows"] for one in told) == [1, 1_000, *[ROWS] * 4]
        assert {one["detail"]["counterparty"] for one in told} == {north.participant}
        ours, theirs = (exported(one, tmp_path / f"{one.name}.zip") for one in (south, north))

        found = match(ours, theirs)
        assert counts(found) == {AGREE: 7}, found.reads  # and the question over owners
        keyed = [f"--key={one.api().call('GET', '/audit/key').decode().strip()}" for one in (north, south)]
        code, out, err = cli(capsys, theirs, ours, *keyed)
        assert (code, "7 agree" in err, "200,000" in out) == (0, True, True), (out, err)
        assert cli(capsys, ours, ours)[0] == 1
        assert "to be signed with a given key" in cli(capsys, theirs, ours, keyed[0])[2]

        signer = Signer(origin_of(north._url, north.name), keys.load_log_key(north.directory / "keys", new=False))
        for number, (change, expected) in enumerate(FORGERIES):
            forged = rewritten(theirs, tmp_path / f"forged{number}.zip", signer, change)
            found = match(ours, forged)
            assert counts(found) == expected, (number, found.reads)
            code, out, err = cli(capsys, ours, forged, *keyed)
            assert (code, "logs_contradict" in err) == (6, True), err
        rows = json.loads(cli(capsys, ours, tmp_path / "forged0.zip", "--json")[1])
        assert (rows["counts"][DIFFER], rows["reads"][0]["verdict"]) == (1, DIFFER)

        extract = exported(north, tmp_path / "extract.zip", f"?agreement={agreement}&kind=ReadEnded")
        assert counts(match(extract, ours)) == {AGREE: 7}
        by_hand(north, south, transfer)
        theirs = exported(north, tmp_path / "later.zip")
        ours = exported(south, tmp_path / "ours-later.zip")
        assert counts(match(ours, theirs)) == {AGREE: 7, NO_RECEIPT: 1}
        assert [cli(capsys, ours, theirs, *more)[0] for more in (keyed, ())] == [0, 7]
        assert "receipts_missing" in cli(capsys, ours, theirs, "--strict")[2]


def _whole(body: Body) -> bool:
    return body["kind"] == "ReadEnded" and body["detail"]["rows"] == ROWS


def _first(change: Callable[[Body], None]) -> Callable[[list[Body]], Sequence[Body]]:
    def changed(bodies: list[Body]) -> Sequence[Body]:
        change(next(filter(_whole, bodies)))
        return bodies

    return changed


def _dropped(bodies: list[Body]) -> Sequence[Body]:
    bodies.remove(next(filter(_whole, bodies)))
    return _going_on(bodies)


def _never_was(bodies: list[Body]) -> Sequence[Body]:
    gone = next(filter(_whole, bodies))["process"]
    return _going_on([body for body in bodies if body.get("process") != gone])


def _going_on(bodies: list[Body]) -> list[Body]:
    """As of a file that is exported some time after: an end that is missing could come until then."""
    return [*bodies[:-1], bodies[-1] | {"time": bodies[-1]["time"].replace("20", "21", 1)}]


FORGERIES: list[tuple[Callable[[list[Body]], Sequence[Body]], dict[str, int]]] = [
    (_first(lambda body: body["detail"].update(rows=2 * ROWS)), {DIFFER: 1, AGREE: 6}),
    (_first(lambda body: body["detail"].update(rows=0)), {DIFFER: 1, AGREE: 6}),
    (_dropped, {DIFFER: 1, AGREE: 6}),
    (_never_was, {NO_RECORD: 1, AGREE: 6}),
]


def test_a_read_that_is_resumed_has_a_receipt_of_each_part(tmp_path: Path) -> None:
    with two(tmp_path, forked=True) as (north, south):
        dataset, offer = north.publish("air", rows=ROWS)
        agreement, transfer = south.agree(north, dataset, offer)
        with hanse.connect(f"http://127.0.0.1:{south.management_port}", south.token) as space:
            air = Dataset(
                space, TransferAccess(Name("north", "air"), dataset, agreement, transfer, "", north.participant)
            )
            with air.stream(batch_rows=500) as stream:
                batches = iter(stream)
                rows = next(batches).num_rows
                north.kill()
                north.start()
                rows += sum(one.num_rows for one in batches)
            assert (rows, stream.reopened > 0) == (ROWS, True)
        told = receipts(south, 1 + stream.reopened)
        assert sum(one["detail"]["rows"] for one in told) == ROWS
        found = match(exported(south, tmp_path / "south.zip"), exported(north, tmp_path / "north.zip"))
        assert found.contradictions == 0, found.reads
        assert found.counts[AGREE] + found.counts[CUT] == len(told)
