"""Evidence files out of a real store: what they hold, and that memory stays bounded."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hanse.audit.verify import MEMBERS, Report, verify
from hanse.cli.audit import verify as show_evidence

from connector.audit.log import Filter
from connector.errors import Absent, Unavailable
from connector.events import AgreementConcluded
from connector.store import Store
from tests.connector.audit.support import SIGNER, evidence, log_over, story


async def report_of(store: Store, directory: Path, count: int, which: Filter | None = None) -> Report:
    log = log_over(store)
    await store.write(story(count))
    path = directory / "evidence.zip"
    path.write_bytes(await evidence(log, directory, which))  # a test of its own
    return verify(path, key=SIGNER.vkey)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700])
async def test_a_whole_export_holds_for_the_verifier(sqlite_store: Store, tmp_path: Path, count: int) -> None:
    report = await report_of(sqlite_store, tmp_path, count)
    assert (report.ok, report.problem) == (True, "")
    assert (report.kind, report.records, report.size, report.key_given) == ("whole", count, count, True)


async def test_both_databases_export_what_the_verifier_accepts(store: Store, tmp_path: Path) -> None:
    assert (await report_of(store, tmp_path, 40)).ok


@pytest.mark.parametrize(
    ("which", "records"),
    [
        (Filter(agreement="urn:agreement:1"), 150),
        (Filter(outcome="refused"), 75),
        (Filter(kind="ReadEnded", actor="did:web:consumer0.example"), 25),
        (Filter(dataset="urn:hanse:north:flights", since=1.0), 300),
        (Filter(until=1.0), 0),
        (Filter(actor="nobody"), 0),
    ],
)
async def test_an_extract_proves_each_of_its_records(
    sqlite_store: Store, tmp_path: Path, which: Filter, records: int
) -> None:
    report = await report_of(sqlite_store, tmp_path, 300, which)
    assert (report.ok, report.problem) == (True, "")
    assert (report.kind, report.records, report.size) == ("extract", records, 300)


async def test_the_members_can_be_read_with_ordinary_tools(sqlite_store: Store, tmp_path: Path) -> None:
    await report_of(sqlite_store, tmp_path, 4, Filter(outcome="refused"))
    with ZipFile(tmp_path / "evidence.zip") as container:
        assert tuple(container.namelist()) == MEMBERS
        assert container.testzip() is None
        manifest = json.loads(container.read("manifest.json"))
        record = json.loads(container.read("events.jsonl"))
    assert manifest["filter"] == {"outcome": "refused"}
    assert (record["idx"], record["body"]["reason"]) == (3, "Zeilen über dem Limit")


async def test_exports_that_take_long_keep_nobody_from_the_database(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    async def settled() -> None:
        """So that all of them are at their writing when somebody else asks."""

    def lasts(*_: Any, **__: Any) -> None:
        assert over.wait(60)

    monkeypatch.setattr("connector.audit.export.write", lasts)
    log = log_over(sqlite_store)
    await sqlite_store.write(story(4))
    await log.sequencer.settle()
    monkeypatch.setattr(log.sequencer, "settle", settled)
    exports = [asyncio.ensure_future(evidence(log, tmp_path)) for _ in range(20)]
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(30):
            assert await sqlite_store.read(lambda tx: tx.audit.read_size()) == 4
    finally:
        over.set()
        await asyncio.gather(*exports)


async def test_an_empty_log_has_nothing_to_export(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(Absent, match="no record yet"):
        await evidence(log_over(sqlite_store), tmp_path)


async def test_a_directory_that_cannot_be_written_is_a_clear_refusal(sqlite_store: Store, tmp_path: Path) -> None:
    await sqlite_store.write(story(1))
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(Unavailable, match="make room"):
        await evidence(log_over(sqlite_store), blocked)


async def test_an_export_leaves_nothing_behind(sqlite_store: Store, tmp_path: Path) -> None:
    await sqlite_store.write(story(3))
    await evidence(log_over(sqlite_store), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("which", [Filter(), Filter(kind="AgreementConcluded")])
async def test_the_verifier_shows_who_was_verified_when_an_agreement_was_made(
    sqlite_store: Store, tmp_path: Path, which: Filter, capsys: pytest.CaptureFixture[str]
) -> None:
    credential = {
        "id": "urn:uuid:1",
        "issuer": "did:web:i.example",
        "types": ["M"],
        "status_checked_at": 0,
        "key": "k2",
    }
    verified = {"holder": "did:web:south.example", "key": "k1", "credentials": [credential]}

    def conclude(tx: Any) -> None:
        for detail in ({"verified": verified}, {}, {"verified": "nonsense"}):
            tx.publish(AgreementConcluded(actor="us", agreement="urn:a", detail=detail))

    log, path = log_over(sqlite_store), tmp_path / "evidence.zip"
    await sqlite_store.write(conclude)
    path.write_bytes(await evidence(log, tmp_path, which))
    report = verify(path, key=SIGNER.vkey)
    assert (report.ok, report.identities) == (True, ({"record": 0, "agreement": "urn:a", **verified},))
    show_evidence(path, key=SIGNER.vkey)
    shown = " ".join(capsys.readouterr().out.split())
    assert "urn:a was concluded with did:web:south.example, key k1" in shown
    assert "M urn:uuid:1 of did:web:i.example, signed with k2, status checked 1970-01-01 00:00:00Z" in shown
