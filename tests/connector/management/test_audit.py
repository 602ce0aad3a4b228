"""The auditor's API over HTTP: who may read, what a page holds, proofs, tiles and evidence that hold for outsiders."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpx2
import pytest
from fastapi import FastAPI
from hanse.audit.verify import verify, verify_consistency, verify_proof

from connector.audit import merkle, signed_note
from connector.audit.log import AuditLog, Filter
from connector.errors import Absent, Invalid
from connector.events import ReadRefused
from connector.infra.http import problem_json
from connector.management import audit
from connector.management.sign_on.auth import Tokens
from connector.store import Store, Transaction
from connector.store.tables import Agreement, RegisteredDataset
from tests.connector.audit.support import SIGNER, cosigning_of, log_over, story
from tests.support.admin import issued


@dataclass
class Auditor:
    http: httpx2.AsyncClient
    log: AuditLog
    store: Store


@pytest.fixture
async def auditor(sqlite_store: Store, tmp_path: Path) -> AsyncIterator[Auditor]:
    tokens, log, app = Tokens(sqlite_store), log_over(sqlite_store), FastAPI()
    problem_json.install(app)
    app.include_router(audit.router(log, tokens=tokens, signer=SIGNER, cosigning=cosigning_of(log), data_dir=tmp_path))
    token = await issued(tokens, "ada", ["audit"])
    await sqlite_store.write(story(40))
    await log.sequencer.settle()
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://t", headers={"authorization": f"Bearer {token}"}
    ) as http:
        yield Auditor(http, log, sqlite_store)


async def test_a_page_holds_the_newest_that_fit_and_says_where_the_next_begins(auditor: Auditor) -> None:
    first = (await auditor.http.get("/audit/events", params={"agreement": "urn:agreement:1", "limit": 15})).json()
    rest = await auditor.http.get("/audit/events", params={"agreement": "urn:agreement:1", "before": first["next"]})
    both = first["records"] + rest.json()["records"]
    assert [record["body"]["detail"]["rows"] for record in both] == [i * 1000 for i in range(39, 0, -2)]
    assert rest.json()["next"] is None


async def test_every_reading_of_what_happened_is_a_record_itself(auditor: Auditor) -> None:
    for path in ("/audit/events?outcome=refused", "/audit/events/3", "/audit/export"):
        assert (await auditor.http.get(path)).status_code == 200
    readings = (await auditor.http.get("/audit/events", params={"kind": "LogRead"})).json()["records"]
    assert [(r["body"]["actor"], r["body"]["detail"]) for r in reversed(readings)] == [
        ("ada", {"what": "list", "terms": {"outcome": "refused"}}),
        ("ada", {"what": "record", "terms": {"idx": 3}}),
        ("ada", {"what": "export"}),
        ("ada", {"what": "list", "terms": {"kind": "LogRead"}}),
    ]


async def test_one_record_comes_with_a_proof_that_holds(auditor: Auditor) -> None:
    record = (await auditor.http.get("/audit/events/17")).json()
    key = (await auditor.http.get("/audit/key")).text.strip()
    assert record["key"] == key
    assert verify_proof(record["proof"], record["leaf"].encode(), key) == 17


async def test_an_export_holds_offline(auditor: Auditor, tmp_path: Path) -> None:
    for terms, kind in (({}, "whole"), ({"outcome": "refused"}, "extract")):
        answer = await auditor.http.get("/audit/export", params=terms)
        assert answer.headers["content-type"] == "application/zip"
        (tmp_path / "evidence.zip").write_bytes(answer.content)  # a test of its own
        report = verify(tmp_path / "evidence.zip", key=SIGNER.vkey)
        assert (report.ok, report.kind, report.problem) == (True, kind, "")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"kind": "ReadRefusd"}, ["kind: expected one of ", "ReadRefused, ReadStarted", "got 'ReadRefusd'"]),
        ({"outcome": "nope"}, ["outcome: expected one of broken, failed, ok, refused, got 'nope'"]),
    ],
)
async def test_what_no_record_can_be_is_refused_with_what_they_are(
    auditor: Auditor, asked: dict[str, str], says: list[str]
) -> None:
    for path in ("/audit/export", "/audit/events"):
        answer = await auditor.http.get(path, params=asked)
        assert answer.status_code == 400
        assert all(text in answer.json()["detail"] for text in says)


async def test_a_dataset_is_found_by_its_name_and_with_what_was_refused_under_its_agreements(auditor: Auditor) -> None:
    for number, dataset in enumerate(("urn:hanse:north:rivers", "urn:hanse:south:rivers", "urn:hanse:south:lakes")):
        await auditor.store.write(partial(signed, id_=f"urn:agreement:on {number}", dataset=dataset))
    early = ReadRefused(actor="did:web:early.example", agreement="urn:agreement:on 2", outcome="refused")
    late = replace(early, actor="did:web:late.example")
    await auditor.store.write(lambda tx: tx.publish(early))  # as it was written before a refusal named its dataset
    await auditor.store.record_refusal(late)
    for name in ("lakes", "urn:hanse:south:lakes"):
        found = await auditor.http.get("/audit/events", params={"dataset": name, "outcome": "refused"})
        told = [(record["body"]["actor"], record["body"].get("dataset")) for record in found.json()["records"]]
        assert told == [(late.actor, "urn:hanse:south:lakes"), (early.actor, None)]
    assert len((await auditor.http.get("/audit/events", params={"dataset": "flights"})).json()["records"]) == 40
    several = await auditor.http.get("/audit/events", params={"dataset": "rivers"})
    assert several.status_code == 400
    assert "use an id: urn:hanse:north:rivers, urn:hanse:south:rivers" in several.json()["detail"]


OURS, THEIRS = "urn:hanse:north:flights", "did:web:stranger.example"


@pytest.mark.parametrize(
    ("registered", "name", "called", "told"),
    [
        (True, "flights", "flights", {OURS, "flights"}),  # a stranger calls its dataset as ours is named
        (True, "flights", "urn:x:flights", {OURS}),
        (True, "north/flights", "north/flights", {OURS, "north/flights"}),
        (True, OURS, f"x:{OURS}", {OURS}),
        (True, '"flights"', "flights", {"flights"}),
        (False, "flights", "flights", {OURS, "flights"}),
        (False, OURS, f"x:{OURS}", {OURS}),
    ],
)
async def test_what_others_call_a_dataset_leaves_out_nothing_of_ours(
    auditor: Auditor, *, registered: bool, name: str, called: str, told: set[str]
) -> None:
    if registered:
        await auditor.store.write(register)
    await auditor.store.write(lambda tx: tx.publish(ReadRefused(actor=THEIRS, dataset=called, outcome="refused")))
    records = (await auditor.http.get("/audit/events", params={"dataset": name})).json()["records"]
    assert {record["body"]["dataset"] for record in records} == told
    assert sum(record["body"]["actor"] != THEIRS for record in records) == (40 if OURS in told else 0)
    with ZipFile(BytesIO((await auditor.http.get("/audit/export", params={"dataset": name})).content)) as evidence:
        assert len(evidence.read("events.jsonl").splitlines()) == len(records)
        asked = json.loads(evidence.read("manifest.json"))["filter"]
    assert set(asked.values()) == told


async def test_of_several_that_others_name_the_one_that_has_just_the_name_can_be_said(auditor: Auditor) -> None:
    for number, dataset in enumerate(("urn:hanse:south:rivers", "urn:hanse:west:rivers", "rivers")):
        await auditor.store.write(partial(signed, id_=f"urn:agreement:on {number}", dataset=dataset))
    several = await auditor.http.get("/audit/events", params={"dataset": "rivers"})
    assert several.status_code == 400
    assert several.json()["detail"].endswith('use an id: urn:hanse:south:rivers, urn:hanse:west:rivers, "rivers"')
    assert (await auditor.http.get("/audit/events", params={"dataset": '"rivers"'})).status_code == 200


@pytest.mark.parametrize("name", ["FLIGHTS", "Flights", "north/FLIGHTS", "lights", "north:flights"])
async def test_a_name_is_no_other_that_is_like_it(auditor: Auditor, name: str) -> None:
    assert (await auditor.http.get("/audit/events", params={"dataset": name})).status_code == 404


async def test_what_no_record_can_hold_is_no_failure_of_a_database(store: Store) -> None:
    for name in ("dataset", "agreement", "actor"):
        with pytest.raises(Invalid, match=f"{name}: expected a text without NUL"):
            await log_over(store).resolve_dataset(Filter(**{name: "a\0b"}))
    with pytest.raises(Absent, match="no dataset 'lights'"):
        await log_over(store).resolve_dataset(Filter(dataset="lights"))


def register(tx: Transaction) -> None:
    """The dataset of `story`, named and offered here."""
    about = {"title": "", "description": "", "theme": "", "license": "", "version": "1"}
    tx.datasets.add(RegisteredDataset(id=OURS, name="flights", keywords=[], created_at=tx.now, **about))


@pytest.mark.parametrize("asked", [{"dataset": "flihgts"}, {"dataset": "%"}, {"agreement": "urn:agreement:9"}])
async def test_what_there_is_nothing_of_is_refused_by_name(auditor: Auditor, asked: dict[str, str]) -> None:
    for path in ("/audit/export", "/audit/events"):
        answer = await auditor.http.get(path, params=asked)
        assert (answer.status_code, repr(*asked.values()) in answer.json()["detail"]) == (404, True)


def signed(tx: Transaction, *, id_: str, dataset: str) -> None:
    """An agreement on a dataset."""
    parties = {"provider": "did:web:north.example", "consumer": "did:web:south.example", "address": "http://south"}
    row = Agreement(id=id_, role="provider", negotiation_id=id_, dataset_id=dataset, policy={}, digest="", **parties)
    row.signed_at = tx.now
    tx.agreements.add(row)


async def test_an_outside_monitor_rebuilds_the_root_from_tiles_and_entries(auditor: Auditor) -> None:
    await auditor.store.write(story(300))
    await auditor.log.sequencer.settle()
    _, size, root = signed_note.read_head((await auditor.http.get("/audit/checkpoint")).text)
    rest = size - 256
    tiles = (await auditor.http.get("/audit/tile/0/000")).content
    tiles += (await auditor.http.get(f"/audit/tile/0/001.p/{rest}")).content
    bundles = (await auditor.http.get("/audit/tile/entries/000")).content
    bundles += (await auditor.http.get(f"/audit/tile/entries/001.p/{rest}")).content
    hashes = [tiles[at : at + 32] for at in range(0, len(tiles), 32)]
    entries = []
    while bundles:
        length = int.from_bytes(bundles[:2], "big")
        entries.append(bundles[2 : 2 + length])
        bundles = bundles[2 + length :]
    assert [merkle.leaf_hash(entry) for entry in entries] == hashes
    rebuilt: merkle.Tiles = merkle.append(lambda _, __: None, 0, hashes)
    assert merkle.root(lambda level, n: rebuilt.get((level, n)), size) == root


async def test_a_later_head_is_proven_to_continue_an_earlier_one(auditor: Auditor) -> None:
    old = (await auditor.http.get("/audit/checkpoint")).text
    await auditor.store.write(story(30))
    await auditor.log.sequencer.settle()
    new = (await auditor.http.get("/audit/checkpoint")).text
    sizes = {"old": signed_note.read_head(old)[1], "new": signed_note.read_head(new)[1]}
    answer = (await auditor.http.get("/audit/consistency", params=sizes)).json()
    verify_consistency(old, new, [base64.b64decode(step) for step in answer["hashes"]], SIGNER.vkey)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/audit/events/60", 404),
        ("/audit/events/-1", 404),
        ("/audit/events/99999999999999999999999", 404),
        ("/audit/events/x", 400),
        ("/audit/events?since=yesterday", 400),
        ("/audit/events?since=2026-01-01T00:00:00", 400),
        ("/audit/events?outcome=perhaps", 400),
        ("/audit/export?kind=ReadRefusd", 400),
        ("/audit/events?limit=0", 400),
        ("/audit/events?limit=100000", 400),
        ("/audit/events?before=-1", 400),
        ("/audit/tile/0/000", 404),
        ("/audit/tile/0/000.p/60", 404),
        ("/audit/tile/0/000.p/0", 404),
        ("/audit/tile/0/000.p/256", 404),
        ("/audit/tile/0/x000/000.p/1", 404),
        ("/audit/tile/0/0.p/1", 404),
        ("/audit/tile/64/000.p/1", 404),
        ("/audit/tile/-1/000.p/1", 404),
        ("/audit/tile/0/x999/x999/x999/x999/x999/x999/x999/x999/999", 404),
        ("/audit/tile/0/x999/x999/x999/x999/x999/x999/999", 404),
        ("/audit/tile/entries/x099/x999/x999/x999/x999/x999/999", 404),
        ("/audit/tile/entries/000.p/99", 404),
        ("/audit/consistency?old=0&new=1", 400),
        ("/audit/consistency?old=5&new=4", 404),
        ("/audit/consistency?old=5&new=4000", 404),
    ],
)
async def test_what_is_not_there_or_not_sensible_is_a_clear_refusal(auditor: Auditor, path: str, status: int) -> None:
    answer = await auditor.http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["events", "events/1", "export", "key", "checkpoint", "tile/0/000", "tile/entries/000"]
)
async def test_nothing_is_read_without_a_token(auditor: Auditor, path: str) -> None:
    answer = await auditor.http.get(f"/audit/{path}", headers={"authorization": "Bearer nonsense"})
    assert answer.status_code == 401
