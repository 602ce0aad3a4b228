"""A question over several owners: the answer, its account, and every way in which an owner can fail."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from connector import acting
from connector.acting import Acting
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import HELD, IN_PLACE, LOADED, Job
from connector.errors import (
    ConnectorError,
    Denied,
    Limited,
    PeerFailed,
    PeerNonsense,
    PeerUnreachable,
    QueryInvalid,
    VersionChanged,
)
from connector.federation import answer_batching, coordinator, execution, owner_client
from connector.federation.coordinator import Question
from connector.federation.planner.model import Bearer, GridInfo
from tests.support import owners
from tests.support.asking import Asked
from tests.support.waiting import removed_by, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNTS = 'SELECT ward, count(*) AS n, avg(age) AS age FROM "all".patients WHERE age >= 10 GROUP BY ward ORDER BY ward'


def noted(monkeypatch: pytest.MonkeyPatch, method: str) -> list[Job]:
    """The jobs that a method of the pool is given from now on, besides those of shapes, which are kept."""
    jobs: list[Job] = []
    real = getattr(Pool, method)

    def noting(pool: Pool, job: Job, **limit: Any) -> Any:
        if job.kind != "shapes":
            jobs.append(job)
        return real(pool, job, **limit)

    monkeypatch.setattr(Pool, method, noting)
    return jobs


async def test_a_question_over_three_owners_is_answered_from_partial_results(asked: Asked) -> None:
    rows, end = await asked.rows(COUNTS)
    assert [row["ward"] for row in rows] == ["w0", "w1", "w2"]
    ages = [(n * 7 + k) % 90 for k in range(3) for n in range(50 + k)]
    assert sum(row["n"] for row in rows) == sum(age >= 10 for age in ages)
    assert end["status"] == "complete"
    assert end["rows"] == 3
    assert {one["owner"]: one["rows"] for one in end["owners"]} == {"north": 3, "south": 3, "west": 3}
    assert all(one["bytes"] > 0 and one["agreement"] == f"{one['owner']}-patients" for one in end["owners"])


async def test_each_owner_is_named_the_job_that_asks(asked: Asked) -> None:
    for job, named in (("run-17", "run-17"), ("caf\u00e9", ""), ("", "")):
        acting.set_current(Acting("trainer", job=job))
        try:
            await asked.rows(COUNTS)
        finally:
            acting.set_current(None)
        assert {owner.jobs[-1] for owner in asked.owners.of.values()} == {named}


async def test_a_join_over_two_owners_reads_both_sides_and_two_agreements_of_one_owner_travel_together(
    asked: Asked,
) -> None:
    rows, _ = await asked.rows(
        "SELECT p.ward, sum(w.beds) AS beds FROM south.patients p JOIN north.wards w ON w.ward = p.ward GROUP BY p.ward"
    )
    assert {row["ward"]: row["beds"] for row in rows} == {"w0": 0, "w1": 170, "w2": 340}
    rows, end = await asked.rows("SELECT count(*) AS n FROM north.patients p JOIN north.wards w ON w.ward = p.ward")
    assert rows == [{"n": 50}]
    assert [one["agreement"] for one in end["owners"]] == ["north-patients,north-wards"]


async def test_a_ticket_goes_to_no_other_participant_than_its_own(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ticket(agreement: str, purpose: str) -> Bearer:
        bearer = await asked.owners.ticket(agreement, purpose)
        return bearer._replace(participant="did:web:west") if agreement == "north-wards" else bearer

    monkeypatch.setattr(asked.coordinator._means.remote, "ticket", ticket)
    with pytest.raises(Denied, match="north-wards with did:web:west") as caught:
        await asked.rows("SELECT count(*) AS n FROM north.patients p JOIN north.wards w ON w.ward = p.ward")
    assert caught.value.code == "other_participant"
    assert asked.owners.of["north"].asked == []


async def test_an_owner_is_asked_by_its_identifier(asked: Asked) -> None:
    for dataset in ("patients", "wards"):
        info = asked.owners.tables.pop(("north", dataset))
        asked.owners.tables["did:web:north", dataset] = replace(info, owner="did:web:north")
    rows, end = await asked.rows(
        'SELECT count(*) AS n FROM "did:web:north".patients p JOIN "DID:web:North".wards w ON w.ward = p.ward'
    )
    assert rows == [{"n": 50}]
    rows, end = await asked.rows(COUNTS)
    assert sorted(one["owner"] for one in end["owners"]) == ["did:web:north", "south", "west"]
    assert sum(row["n"] for row in rows) == 135


async def test_keys_of_one_owner_narrow_what_another_sends(asked: Asked) -> None:
    asked.owners.publish("north", "many", shares_keys=True, takes_keys=True)
    asked.owners.add("south", "few", "SELECT range * 1000 AS id FROM range(5)", shares_keys=True, takes_keys=True)
    rows, end = await asked.rows("SELECT count(*) AS n FROM south.few f JOIN north.many m ON m.id = f.id")
    assert rows == [{"n": 5}]
    assert {one["owner"]: one["rows"] for one in end["owners"]} == {"south": 5, "north": 5}
    (envelope,) = asked.owners.of["north"].asked
    assert [table["columns"] for table in envelope["keys"]] == [["k"]]


@pytest.mark.parametrize(("small", "jobs"), [(2**17, ["read_answers"]), (0, ["check_arrow", "unite_keys"])])
async def test_keys_of_several_owners_are_united_for_another(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, small: int, jobs: list[str]
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    begun = noted(monkeypatch, "ask")
    for number, owner in enumerate(("south", "west", "north")):
        few = f"SELECT range * 1000 + {number} AS id FROM range(5) WHERE {number} < 2"  # north has none of it
        asked.owners.add(owner, "few", few, shares_keys=True, takes_keys=True)
    asked.owners.publish("north", "many", shares_keys=True, takes_keys=True)
    rows, end = await asked.rows('SELECT count(*) AS n FROM "all".few f JOIN north.many m ON m.id = f.id')
    assert rows == [{"n": 10}]
    assert next(one["rows"] for one in end["owners"] if one["dataset"] == "many") == 10
    assert list(dict.fromkeys(job.kind for job in begun)) == jobs


@pytest.mark.parametrize(
    ("sql", "share", "taken"),
    [
        ("SELECT count(*) FROM south.patients p JOIN north.wards w ON w.ward = p.ward", 4, {HELD, LOADED}),
        ("SELECT count(*) FROM south.patients p JOIN north.wards w ON w.ward = p.ward", 2**40, {IN_PLACE}),  # too much
        (COUNTS, 4, {IN_PLACE}),  # one table, however many owners have it
    ],
)
async def test_answers_that_are_joined_are_taken_in_so_that_the_engine_knows_their_rows(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, sql: str, share: int, taken: set[str]
) -> None:
    monkeypatch.setattr(execution, "_LOADED_SHARE", share)
    jobs = noted(monkeypatch, "run")
    await asked.rows(sql)
    assert {relation.taken for relation in jobs[-1].relations.values()} == taken


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT Ward, count(*) AS n FROM north.patients GROUP BY ward ORDER BY ward DESC", [("w2", 16), ("w1", 17)]),
        ("SELECT ward FROM north.patients WHERE age > 1000", []),
        ("SELECT CAST('12:30:00' AS TIME) AS at FROM north.wards", [(datetime.time(12, 30),)]),  # through the engine
    ],
)
async def test_what_one_owner_answers_whole_is_passed_on_as_it_came(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, sql: str, rows: list[tuple[Any, ...]]
) -> None:
    jobs = noted(monkeypatch, "run")
    found, end = await asked.rows(sql)
    assert jobs[-1].passed
    assert [tuple(row.values()) for row in found][: len(rows) or None] == rows
    assert end["status"] == "complete"
    assert end["rows"] == len(found)
    if found:
        assert tuple(found[0]) == tuple(jobs[-1].passed)


async def test_keys_are_not_sent_where_an_agreement_does_not_allow_it(asked: Asked) -> None:
    asked.owners.publish("north", "many", takes_keys=True)
    asked.owners.add("south", "few", "SELECT range * 1000 AS id FROM range(5)")
    rows, end = await asked.rows("SELECT count(*) AS n FROM south.few f JOIN north.many m ON m.id = f.id")
    assert rows == [{"n": 5}]
    assert {one["owner"]: one["rows"] for one in end["owners"]} == {"south": 5, "north": 40000}
    assert asked.owners.of["north"].asked[0]["keys"] == []
    assert any("policy" in line for line in end["stayed"])


async def test_the_log_has_a_record_with_totals_under_each_agreement_and_the_files_are_gone(asked: Asked) -> None:
    await asked.rows(COUNTS, purpose="https://w3id.org/dpv#ScientificResearch")
    (event,) = asked.recorded
    assert (event.outcome, event.actor) == ("ok", "tester")
    assert event.purpose == "https://w3id.org/dpv#ScientificResearch"
    owners = ("north", "south", "west")
    assert [(one.agreement, one.dataset) for one in asked.under] == [(f"{o}-patients", f"{o}/patients") for o in owners]
    assert event.detail["agreements"] == [f"{one}-patients" for one in owners]
    assert event.detail["rows"] == 3
    assert [one["rows"] for one in event.detail["owners"]] == [3, 3, 3]
    whole = {"agreement": "north-patients", "agreements": 3}
    for one, owner in zip(asked.under[1:], owners[1:], strict=True):  # the others have their own part
        assert [(part["owner"], part["agreements"]) for part in one.detail["owners"]] == [(owner, [one.agreement])]
        assert (one.detail["whole"], one.detail["rows"], "agreements" in one.detail) == (whole, 3, False)
    assert list(asked.folder.iterdir()) == []


async def test_the_record_of_a_question_that_failed_has_no_rows_that_nobody_had_counted(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None at all would contradict what the owners' logs say, and do so of honest ones."""

    def late(*_: Any, **__: Any) -> Any:
        raise Limited("it took too long", code="time_limit")

    monkeypatch.setattr(Pool, "run", late)
    with pytest.raises(Limited):
        await asked.rows(COUNTS)
    (event,) = asked.recorded
    assert [(one["bytes"] > 0, "rows" in one) for one in event.detail["owners"]] == [(True, False)] * 3


BROKEN = [
    ("down", PeerUnreachable, "peer_unreachable", "asking"),
    ("cut", PeerNonsense, "peer_nonsense", "checking"),
    ("no_end", PeerNonsense, "peer_nonsense", "checking"),
    ("lie", PeerNonsense, "peer_nonsense", "checking"),
    ("other", PeerNonsense, "peer_nonsense", "checking"),
    ("stopped", Denied, "revoked", "answering"),
    ("over", Denied, "not_in_force", "answering"),
    ("damaged", PeerFailed, "arrow_invalid", "checking"),
    ("refuse:revoked", Denied, "revoked", "asking"),
]


@pytest.mark.parametrize("small", [2**17, 0])
@pytest.mark.parametrize(("how", "kind", "code", "stage"), BROKEN, ids=[how for how, *_ in BROKEN])
async def test_an_owner_that_fails_is_an_error_that_names_it_and_never_a_short_answer(
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    kind: type[ConnectorError],
    code: str,
    stage: str,
    small: int,
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    asked.owners.break_("south", how)
    with pytest.raises(kind) as failure:
        await asked.rows(COUNTS)
    assert failure.value.code == code
    assert (failure.value.facts["owner"], failure.value.facts["stage"]) == ("south", stage)
    assert '"south" (f0.south: patients)' in failure.value.message
    (event,) = asked.recorded
    assert event.outcome == ("refused" if kind is Denied else "failed")
    assert list(asked.folder.iterdir()) == []


@pytest.mark.parametrize("status", ["revoked", "quota", "error", "scope_missing"])
async def test_an_owner_chooses_no_code_title_or_type_of_our_problem(asked: Asked, status: str) -> None:
    """By its end record."""
    end = {"status": status, "rows": "ROWS", "digest": "DIGEST", "code": "scope_missing", "reason": "log in again"}
    end |= {"title": "Log in", "type": "https://evil.example/", "detail": "d"}
    asked.owners.break_("south", f"says:{json.dumps(end)}")
    with pytest.raises(PeerNonsense) as failure:
        await asked.rows(COUNTS)
    shown = failure.value.problem()
    assert (shown["code"], shown["status"], shown["title"]) == ("peer_nonsense", 502, "peer nonsense")
    assert shown["type"].endswith("/peer_nonsense")
    assert shown["detail"].endswith("scope_missing: log in again")
    assert asked.recorded[-1].code == "peer_nonsense"


async def test_nor_by_its_refusal(asked: Asked) -> None:
    asked.owners.break_("south", "refuse:scope_missing")
    with pytest.raises(PeerNonsense, match="scope_missing: because of") as failure:
        await asked.rows(COUNTS)
    assert failure.value.code == "peer_nonsense"


@pytest.mark.parametrize("small", [2**17, 0])
async def test_one_byte_that_changes_on_the_way_never_makes_another_answer(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Anywhere: in a schema, in buffers, in the end record. Padding says nothing, and may change."""
    monkeypatch.setattr(owner_client, "_SMALL", small)
    expected, _ = await asked.rows(COUNTS)
    codes = []
    for at in range(0, 1000, 23):
        asked.owners.break_("south", f"flip:{at}")
        try:
            rows, _ = await asked.rows(COUNTS)
        except ConnectorError as error:
            codes.append(error.code)
        else:
            assert rows == expected, at
    assert len(codes) > 25
    assert "digest_mismatch" in codes


@pytest.mark.parametrize("small", [2**17, 0])
async def test_the_digest_of_each_part_is_computed_and_recorded(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    sent: list[bytes] = []
    real = owners._framed
    monkeypatch.setattr(owners, "_framed", lambda *given: sent.append(real(*given)) or sent[-1])
    await asked.rows(COUNTS)
    (event,) = asked.recorded
    assert sorted(one["digest"] for one in event.detail["owners"]) == sorted(
        json.loads(text[: text.index(b"}") + 1])["digest"] for text in (one[one.index(b'{"status"') :] for one in sent)
    )


@pytest.mark.parametrize("small", [2**17, 0])
@pytest.mark.parametrize("how", ["down", "cut", "no_end", "lie", "flip:500"])
async def test_a_fragment_that_broke_off_is_asked_once_more_from_the_start(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, how: str, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    asked.owners.break_("south", how, times=1)
    rows, end = await asked.rows(COUNTS)
    assert sum(row["n"] for row in rows) > 0
    assert {one["owner"]: one["rows"] for one in end["owners"]}["south"] == 3
    assert len(asked.owners.of["south"].asked) == 2


async def test_small_answers_are_read_by_the_job_that_joins_them(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = noted(monkeypatch, "_begin")
    joined = "SELECT p.ward, count(*) AS n FROM south.patients p JOIN north.wards w ON w.ward = p.ward GROUP BY p.ward"
    for sql, rows in ((COUNTS, [3, 3, 3]), (joined, [51, 3])):
        jobs.clear()
        _, end = await asked.rows(sql)
        assert [job.kind for job in jobs] == ["query"]
        assert [one["rows"] for one in end["owners"]] == rows
        assert [one["rows"] for one in asked.recorded[-1].detail["owners"]] == rows


async def test_an_answer_that_waits_in_vain_for_others_is_read_alone_and_shown(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_batching, "_PATIENCE_S", 0.05)
    asked.owners.break_("north", "slow")
    asking = asyncio.ensure_future(asked.rows(COUNTS))
    await until(lambda: any(len(one.owners) == 2 for one in asked.coordinator.recent()))
    (progress,) = asked.coordinator.recent()
    assert {one["owner"]: one["rows"] for one in progress.to_json()["owners"]} == {"south": 3, "west": 3}
    assert [one["owner"] for one in progress.to_json()["waiting"]] == ["north"]
    asking.cancel()
    await asyncio.wait([asking])


async def test_what_is_wrong_with_an_answer_is_said_while_others_still_work(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_batching, "_PATIENCE_S", 0.05)
    asked.owners.break_("north", "slow")
    asked.owners.break_("south", "stopped")
    with pytest.raises(Denied, match="revoked"):
        await asked.rows(COUNTS)
    assert asked.owners.of["north"].cancelled == 1


async def test_words_about_an_answer_that_fill_the_end_record_are_left_out(asked: Asked) -> None:
    asked.owners.break_("south", "talkative")
    rows, end = await asked.rows(COUNTS)
    assert [row["ward"] for row in rows] == ["w0", "w1", "w2"]
    assert end["status"] == "complete"
    assert [one["policy"] for one in end["owners"]] == [[], [], []]


async def test_an_end_record_is_whole_however_long_the_question(asked: Asked) -> None:
    some = ", ".join(map(str, range(3000)))
    rows, end = await asked.rows(f'SELECT ward, count(*) AS n FROM "all".patients WHERE id IN ({some}) GROUP BY ward')
    assert sum(row["n"] for row in rows) == 153
    assert end["status"] == "complete"
    assert [one["rows"] for one in end["owners"]] == [3, 3, 3]


@pytest.mark.parametrize("kind", ["BIGINT", "DOUBLE"])
async def test_small_answers_that_unfold_to_much_are_joined_all_the_same(asked: Asked, kind: str) -> None:
    for owner in ("south", "west"):
        many = f"SELECT CAST(7 AS {kind}) AS id FROM range(1_200_000)"
        asked.owners.add(owner, "few", many, shares_keys=True, takes_keys=True)
    lots = f"SELECT CAST(range AS {kind}) AS id FROM range(4_000_000)"
    asked.owners.add("north", "lots", lots, shares_keys=True, takes_keys=True)
    rows, end = await asked.rows('SELECT count(f.id) AS n FROM "all".few f JOIN north.lots m ON m.id = f.id')
    assert rows == [{"n": 2_400_000}]
    assert end["status"] == "complete"


@pytest.mark.parametrize("depth", [20, 960])
async def test_of_an_end_record_that_is_nested_only_what_is_flat_counts(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(owners, "NESTED", depth)
    asked.owners.break_("south", "nested")
    _, end = await asked.rows(COUNTS)
    assert end["status"] == "complete"
    assert [one["policy"] for one in end["owners"]] == [[], [], []]


async def test_an_end_record_that_no_parser_takes_is_its_owner_s_fault(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "NESTED", 100_000)
    asked.owners.break_("south", "nested")
    with pytest.raises(PeerFailed) as failure:
        await asked.rows(COUNTS)
    assert (failure.value.code, failure.value.facts["owner"]) == ("arrow_invalid", "south")


ODD = ["NaN", "-Infinity", "1e400", r'"\ud800"', r'["\ud800"]', r'"\u0000"', "7" * 4000, r'1,"\udfff":2']


@pytest.mark.parametrize("small", [2**17, 0])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[:12])
async def test_what_no_json_can_say_in_an_end_record_is_left_out(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, odd: str, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    asked.owners.break_("south", f'says:{{"status":"complete","rows":ROWS,"digest":"DIGEST","x":{odd}}}')
    _, end = await asked.rows(COUNTS)
    assert end["status"] == "complete"


@pytest.mark.parametrize("small", [2**17, 0])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[:12])
async def test_a_revocation_stands_whatever_else_its_end_record_says(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, odd: str, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    asked.owners.break_(
        "south", rf'says:{{"status":"revoked","rows":ROWS,"digest":"DIGEST","reason":"so it is\ud800","x":{odd}}}'
    )
    with pytest.raises(Denied, match=r"so it is\\ud800$"):
        await asked.rows('SELECT count(*) AS n FROM "all".patients', partial=True)


async def test_a_failure_that_nobody_foresaw_is_recorded_as_one(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("of ours")

    for where, at in ((asked.owners, "stream"), (asked.coordinator, "_tables_for")):
        monkeypatch.setattr(where, at, broken)
        with pytest.raises(AttributeError):
            await asked.rows(COUNTS)
        (event,) = asked.recorded
        asked.events.clear()
        assert (event.outcome, event.code) == ("failed", "internal")
        assert event.reason == "the connector failed unexpectedly; see its log"
        newest = asked.coordinator.recent()[0]
        assert (newest.state, newest.code, newest.reason) == ("failed", "internal", event.reason)


async def test_a_version_that_changes_while_an_answer_is_asked_for_again_is_planned_anew(asked: Asked) -> None:
    asked.owners.break_("south", "moving", times=1)
    rows, end = await asked.rows(COUNTS)
    assert [row["ward"] for row in rows] == ["w0", "w1", "w2"]
    assert end["status"] == "complete"
    assert len(asked.owners.of["south"].asked) == 3


async def test_a_refusal_is_not_repeated_and_keeps_the_owners_rule(asked: Asked) -> None:
    asked.owners.break_("west", "refuse:purpose_not_agreed")
    with pytest.raises(Denied) as refused:
        await asked.rows(COUNTS)
    assert (refused.value.code, refused.value.rule) == ("purpose_not_agreed", "/permission/0")
    assert len(asked.owners.of["west"].asked) == 1


async def test_the_first_failure_cancels_what_the_others_still_do(asked: Asked) -> None:
    asked.owners.break_("north", "slow")
    asked.owners.break_("south", "refuse:revoked")
    async with asyncio.timeout(60):
        with pytest.raises(Denied):
            await asked.rows(COUNTS)
    assert asked.owners.of["north"].cancelled == 1


async def test_the_deadline_names_the_owner_that_was_waited_for(asked: Asked) -> None:
    asked.owners.break_("north", "slow")
    with pytest.raises(Limited) as late:
        await asked.late(COUNTS, answered=2)
    assert late.value.code == "time_limit"
    assert (late.value.facts["owner"], late.value.facts["stage"]) == ("north", "asking")
    assert '"north" (f0.north: patients)' in late.value.message
    assert asked.owners.of["north"].cancelled == 1


async def test_an_owner_is_told_to_end_while_there_is_still_time_to_merge(asked: Asked) -> None:
    asked.owners.publish("north", "many", shares_keys=True, takes_keys=True)
    asked.owners.add("south", "few", "SELECT range * 1000 AS id FROM range(5)", shares_keys=True, takes_keys=True)
    await asked.rows("SELECT count(*) AS n FROM south.few f JOIN north.many m ON m.id = f.id", seconds=2_000)
    first, second = (asked.owners.of[name].asked[0]["limits"]["deadline_ms"] for name in ("south", "north"))
    assert first <= 1_600_000  # a tenth each is kept for the fragment that waits for its keys, and for merging
    assert 1_600_000 < second <= 1_800_000


async def test_a_question_is_planned_anew_once_where_an_owner_has_another_version_by_then(asked: Asked) -> None:
    await asked.rows(COUNTS)
    asked.owners.version("south", "patients")
    rows, end = await asked.rows(COUNTS)
    assert sum(row["n"] for row in rows) > 0
    assert end["status"] == "complete"
    stated = [envelope["datasets"] for envelope in asked.owners.of["south"].asked]
    assert stated == [{"urn:hanse:south:patients": version} for version in ("v0", "v0", "v1")]


async def test_an_owner_whose_versions_change_all_the_time_is_an_error_that_says_to_ask_again(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.owners.break_("south", "changing")
    by = removed_by(monkeypatch, execution)
    with pytest.raises(VersionChanged) as changed:
        await asked.rows(COUNTS)
    assert (changed.value.code, changed.value.facts["owner"]) == ("snapshot_changed", "south")
    assert len(asked.owners.of["south"].asked) == 2
    assert asked.recorded[0].outcome == "failed"
    assert list(asked.folder.iterdir()) == []
    assert len(by) == 2
    assert threading.main_thread() not in by


async def test_every_fragment_of_a_question_reads_the_same_version(asked: Asked) -> None:
    asked.owners.publish("north", "many", shares_keys=True, takes_keys=True, version="v7")
    asked.owners.add("south", "few", "SELECT range * 1000 AS id FROM range(5)", shares_keys=True, takes_keys=True)
    await asked.rows(
        "SELECT count(*) AS n FROM south.few f JOIN north.many m ON m.id = f.id, north.many o WHERE o.id = f.id + 1"
    )
    stated = [envelope["datasets"] for envelope in asked.owners.of["north"].asked]
    assert len(stated) == 2
    assert all(one == {"urn:hanse:north:many": "v7"} for one in stated)


async def test_a_running_question_can_be_cancelled_and_stops_at_its_owners(asked: Asked) -> None:
    asked.owners.break_("north", "slow")
    running = asyncio.ensure_future(asked.rows(COUNTS))
    await asked.owners.of["north"].waiting.wait()
    (progress,) = asked.coordinator.recent()
    assert progress.state == "asking"
    assert asked.coordinator.cancel(progress.query_id)
    with pytest.raises(Denied) as cancelled:
        await running
    assert cancelled.value.code == "cancelled"
    assert asked.owners.of["north"].cancelled == 1
    assert asked.recorded[0].code == "cancelled"
    assert not asked.coordinator.cancel(progress.query_id)


async def test_a_client_that_leaves_in_mid_answer_counts_as_broken_off(asked: Asked) -> None:
    answer = await asked.coordinator.ask(Question(sql='SELECT id FROM "north".many'), by="tester")
    async with contextlib.aclosing(answer.parts()) as parts:
        await anext(parts)
    await answer.close()
    assert asked.recorded[0].outcome == "broken"
    assert list(asked.folder.iterdir()) == []


async def test_the_bytes_of_all_owners_together_are_limited(asked: Asked) -> None:
    with pytest.raises(Limited) as large:
        await asked.rows("SELECT p.id, m.id FROM north.many m JOIN south.patients p ON p.id = m.id", nbytes=1000)
    assert large.value.code == "bytes_limit"


async def test_the_rows_of_the_answer_are_limited_and_the_end_record_says_so(asked: Asked) -> None:
    _, end = await asked.rows('SELECT id FROM "north".many', rows=10)
    assert (end["status"], end["code"]) == ("error", "rows_limit")
    assert asked.recorded[0].outcome == "failed"


WRONG = [
    ("SELECT 1", "dataset_missing", "expected a dataset, got none"),
    ("SELECT * FROM patients", "owner_missing", '"<participant>".patients'),
    ('SELECT * FROM "east".patients', "agreement_missing", "negotiate an agreement"),
    ('SELECT nothing FROM "north".patients', "column_unknown", "nothing"),
    ('SELECT nothing FROM "north".patients', "column_unknown", "readable columns: id, age, ward"),
    ("SELECT * FROM read_parquet('/etc/passwd')", "function_not_allowed", "table function"),
    ('DELETE FROM "north".patients', "syntax_not_allowed", ""),
    ('SELECT 1 FROM "north".patients; SELECT 2 FROM "north".patients', "one_statement", "exactly one"),
]


@pytest.mark.parametrize(("sql", "code", "words"), WRONG, ids=[code for _, code, _ in WRONG])
async def test_a_wrong_question_is_refused_with_what_to_do_and_recorded(
    asked: Asked, sql: str, code: str, words: str
) -> None:
    with pytest.raises(QueryInvalid) as wrong:
        await asked.rows(sql)
    assert words in wrong.value.message
    assert wrong.value.code in (code, "statement_not_allowed")
    assert [(event.outcome, event.code) for event in asked.recorded] == [("refused", wrong.value.code)]
    assert not any(owner.asked for owner in asked.owners.of.values())


def _grids(asked: Asked, *owners: str) -> None:
    for owner in owners:
        asked.owners.publish(owner, "patients", grid=GridInfo(("ward",), ("age",), 5, "id"))


async def test_groups_that_one_owner_withholds_are_flagged_and_the_rest_is_answered(asked: Asked) -> None:
    _grids(asked, "north", "south", "west")
    asked.owners.break_("west", "refuse:min_group_size")
    rows, end = await asked.rows('SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward')
    assert sum(row["n"] for row in rows) == 101
    assert end["withheld"] == "some"
    said = {one["owner"]: one["withheld"] for one in end["owners"]}
    assert said == {"north": "possibly", "south": "possibly", "west": "some"}


async def test_where_every_owner_withholds_its_groups_the_refusal_stands(asked: Asked) -> None:
    _grids(asked, "north", "south", "west")
    for owner in asked.owners.of:
        asked.owners.break_(owner, "refuse:min_group_size")
    with pytest.raises(Denied) as small:
        await asked.rows('SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward')
    assert (small.value.code, small.value.rule) == ("min_group_size", "/permission/0")


async def test_a_plan_that_takes_too_long_is_given_up(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(coordinator, "_make_plan", lambda *_: go_on.wait(30))
    with pytest.raises(Limited) as late:
        await asked.coordinator.plan(Question(sql=COUNTS, seconds=0.1), by="tests")
    go_on.set()
    assert late.value.code == "time_limit"
    assert asked.recorded[-1].code == "time_limit"
