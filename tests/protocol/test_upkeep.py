"""What time and lost facts bring: reminders told once, ends and suspensions over the protocol, and back again."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hanse.cli import output

from connector.console.view import formatting
from connector.dsp.duty_upkeep import DutyLedger, Upkeep
from connector.errors import Absent, Denied, Invalid, Limited, Unavailable, WrongState
from connector.events import DutyChanged, NegotiationAdvanced
from connector.infra.html import wording
from connector.infra.net.http_client import Reply
from connector.store import Transaction
from connector.store.tables import Agreement, Transfer
from connector.usage import duty_ledger
from policies.evaluation.evaluate import Facts
from tests.protocol.test_transfers import agreed, constrained, started
from tests.support.counterparty import Counterparty
from tests.support.minted import minting
from tests.support.pair import Json, Side, pair, settled

LOG: Json = {"permission": [{"action": "use"}], "obligation": [{"action": "ds:log"}]}
PAY: Json = {"permission": [{"action": "use", "duty": [{"action": "odrl:compensate"}]}]}
ERASE: Json = {
    "permission": [{"action": "use"}],
    "obligation": [
        {
            "action": "odrl:delete",
            "constraint": [{"leftOperand": "odrl:delayPeriod", "operator": "lteq", "rightOperand": "P30D"}],
        }
    ],
}


def upkeep(side: Side) -> Upkeep:
    async def facts_of(who: str) -> Facts:
        return side.facts.get(who) or Facts.of({"ds:participant": who}, source="signature")

    parts: Json = {"negotiations": side.negotiations, "agreements": side.agreements, "transfers": side.transfers}
    return Upkeep(side.store, **parts, facts_of=facts_of)


def known(side: Side, who: Side, **facts: Any) -> None:
    given = {f"ds:{name}": value for name, value in facts.items()}
    side.facts[who.participant] = Facts.of({"ds:participant": who.participant, **given}, source="register")


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()


def two_hours_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the upkeep alone: what it sees as over, nobody else keeps from going on."""
    monkeypatch.setattr("connector.dsp.duty_upkeep.time", SimpleNamespace(time=lambda: time.time() + 7_200))


def reminders(side: Side) -> list[tuple[str, str]]:
    return [(one.detail["role"], one.detail["state"]) for one in side.events if isinstance(one, DutyChanged)]


async def test_a_duty_is_told_when_it_falls_due_and_only_then(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=LOG)
        for side, role in ((two.north, "provider"), (two.south, "consumer")):
            for _ in range(3):
                await upkeep(side).look()
            assert reminders(side) == [(role, "due")]
        ledger = DutyLedger(two.south.store, two.cable, minting("Bearer none"))
        made = await ledger.report(agreement, "/obligation/0", evidence="kept in our log", by="test")
        assert made.standing.state == "fulfilled"
        assert not made.told  # nobody takes reports at the other end of this cable, and that is said
        assert made.why
        await upkeep(two.south).look()
        assert reminders(two.south) == [("consumer", "due"), ("consumer", "fulfilled")]


async def test_evidence_goes_where_http_is_spoken_also_where_rows_come_over_flight(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=LOG)
        here, _ = await started(two, agreement)
        flight = {"@type": "DataAddress", "endpointType": "t", "endpoint": "grpc+tcp://203.0.113.9:1",
                  "endpointProperties": [{"name": "http", "value": "https://203.0.113.9/data/v1"}]}  # fmt: skip

        def leads(tx: Transaction) -> None:
            row = tx.transfers.get(here.id)
            assert row is not None
            row.data_address = flight

        await two.south.store.write(leads)
        calls = []

        async def call(method: str, url: str, **_: Any) -> Reply:
            calls.append((method, url))
            return Reply(200, {}, b"")

        ledger = DutyLedger(two.south.store, SimpleNamespace(call=call), minting())  # type: ignore[arg-type]  # a fake
        assert (await ledger.report(agreement, "/obligation/0", evidence="in our log", by="test")).told
        assert calls == [("POST", "https://203.0.113.9/data/v1/duties")]


@pytest.mark.parametrize("signed_at", [-1e18, -62_135_647_200.0, 253_402_352_999.0, 1e18])
async def test_an_agreement_of_another_calendar_that_is_kept_keeps_nobody_from_the_duties(
    tmp_path: Path, signed_at: float
) -> None:
    """Such a one is refused now, and was not always."""
    monthly = [{"leftOperand": "odrl:delayPeriod", "operator": "lteq", "rightOperand": "P1M"}]
    policy = {**ERASE, "obligation": [{"action": "odrl:delete", "constraint": monthly}]}
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=policy)

        def dated(tx: Transaction) -> None:
            tx.agreements.of(agreement, role="consumer").signed_at = signed_at

        await two.south.store.write(dated)
        ledger = DutyLedger(two.south.store, two.cable, minting())
        assert [one.path for one in await ledger.of(agreement, role="consumer")] == ["/obligation/0"]
        await ledger.list_open()
        for shown in (wording.format_moment, wording.format_day, formatting.instant, output.format_time):
            assert shown(signed_at)


async def test_what_is_not_done_in_time_is_overdue_and_stays_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=ERASE)
        await upkeep(two.north).look()
        assert reminders(two.north) == []
        await two.north.agreements.revoke(agreement, reason="over", by="test")

        def later(tx: Transaction) -> list[str]:
            row = tx.agreements.of(agreement, role="provider")
            states = [
                duty_ledger.look(tx, row, now=tx.now)[0].state,
                duty_ledger.look(tx, row, now=tx.now + 40 * 86_400)[0].state,
            ]
            return [str(state) for state in states]

        assert await two.north.store.write(later) == ["due", "violated"]
        assert reminders(two.north) == [("provider", "due"), ("provider", "violated")]


async def test_what_follows_from_a_revocation_and_found_no_database_comes_with_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("the database stayed contended")

    async with pair(tmp_path) as two:
        agreement = await agreed(two)
        here, there = await started(two, agreement)
        with monkeypatch.context() as patched:
            patched.setattr(two.north.transfers, "terminate_under", away)
            await two.north.agreements.revoke(agreement, reason="over", by="owner")
        assert agreement in await two.north.store.read(lambda tx: tx.agreements.read_end_reasons([agreement]))
        assert (await two.north.transfer(there.id)).state == "STARTED"
        for _ in range(2):
            await upkeep(two.north).look()
        assert (await settled(two.south, "transfer", here.id, "TERMINATED")).reason == "over"
        row, grant = await two.north.agreements.get(agreement)
        assert grant is not None
        assert (grant.revoked_at, grant.reason, grant.generation) == (row.ended_at, "over", 1)


async def test_only_the_owners_word_fulfils_a_duty_before_use(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=PAY)
        row = await two.south.transfers.request(agreement_id=agreement, by="test")
        refused = await settled(two.south, "transfer", row.id, "TERMINATED")
        assert "no evidence of it is recorded" in refused.reason
        north = DutyLedger(two.north.store, two.cable, minting())
        path = "/permission/0/duty/0"
        told = await north.on_report(agreement, path, evidence="we paid", consumer=two.south.participant)
        assert told.state == "due"
        with pytest.raises(Absent):
            await north.on_report(agreement, path, evidence="we paid", consumer="did:web:stranger.example")
        with pytest.raises(Absent):
            await north.report(agreement, "/permission/0/duty/7", evidence="paid", by="test")
        with pytest.raises(Invalid):
            await north.report(agreement, path, evidence="  ", by="test")
        made = await north.report(agreement, path, evidence="on our account", by="test", role="provider")
        assert (made.standing.state, made.told) == ("fulfilled", True)
        with pytest.raises(WrongState):
            await north.report(agreement, path, evidence="again", by="test", role="provider")
        await started(two, agreement)


async def test_reports_that_leave_a_duty_as_it_was_are_kept_once_and_not_without_end(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement, path = await agreed(two, policy=PAY), "/permission/0/duty/0"
        north = DutyLedger(two.north.store, two.cable, minting())

        async def said(evidence: str) -> int:
            told = await north.on_report(agreement, path, evidence=evidence, consumer=two.south.participant)
            return len(told.evidence)

        assert [await said(f"paid, receipt {number}") for number in range(10)] == list(range(1, 11))
        with pytest.raises(WrongState, match="kept already"):
            await said("paid, receipt 3")
        with pytest.raises(Limited, match="at most 10 reports of the consumer"):
            await said("paid, receipt 10")
        made = await north.report(agreement, path, evidence="on our account", by="test", role="provider")
        assert (made.standing.state, len(made.standing.evidence)) == ("fulfilled", 11)


async def test_a_duty_that_falls_due_again_is_reported_as_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duty_ledger, "_UNCHANGED_MAX", 1)
    daily = [{"leftOperand": "ds:every", "operator": "eq", "rightOperand": "P1D"}]
    policy = {**LOG, "obligation": [{"action": "ds:log", "constraint": daily}]}
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=policy)
        start, days = time.time(), iter(range(1, 9))
        clock = SimpleNamespace(time=lambda: start + next(days) * 90_000, sleep=time.sleep, monotonic=time.monotonic)
        monkeypatch.setattr("connector.store.engine.time", clock)
        north = DutyLedger(two.north.store, two.cable, minting())
        for number in range(1, 4):
            made = await north.report(
                agreement, "/obligation/0", evidence="kept in our log", by="test", role="provider"
            )
            assert (made.standing.state, len(made.standing.evidence)) == ("fulfilled", number)


async def test_an_agreement_whose_time_is_over_ends_over_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=constrained("odrl:dateTime", "lteq", in_an_hour()))
        here, there = await started(two, agreement)
        await upkeep(two.north).look()
        assert (await two.north.transfer(there.id)).state == "STARTED"
        two_hours_later(monkeypatch)
        await upkeep(two.north).look()
        ended = await settled(two.south, "transfer", here.id, "TERMINATED")
        assert "time that was agreed has ended" in ended.reason
        row, _ = await two.south.agreements.get(agreement, role="consumer")
        assert row.ended_at is not None


async def test_an_agreement_that_cannot_be_read_any_more_keeps_no_other_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two, policy=constrained("odrl:dateTime", "lteq", in_an_hour()))

        def spoil(tx: Any) -> None:
            row = Agreement(id="a", role="provider", negotiation_id="n", dataset_id="urn:x", provider="p", consumer="c")
            row.policy = {"@type": "Agreement", "permission": [{"action": "use", "constraints": []}]}
            row.address, row.digest, row.signed_at, row.finalized, row.ended_at = "", "", 1.0, True, None
            tx.agreements.add(row)

        await two.north.store.write(spoil)
        two_hours_later(monkeypatch)
        await upkeep(two.north).look()
        row, _ = await two.north.agreements.get(agreement, role="provider")
        assert row.ended_at is not None


async def test_a_transfer_rests_while_its_party_is_no_member_and_goes_on_after(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        known(two.north, two.south, membership="active")
        agreement = await agreed(two, policy=constrained("ds:membership", "eq", "active"))
        here, there = await started(two, agreement)
        two.north.facts[two.south.participant] = Facts.of({"ds:participant": two.south.participant})
        await upkeep(two.north).look()  # unknown is refused at the next read, and may be known again in a moment
        assert (await two.north.transfer(there.id)).state == "STARTED"
        known(two.north, two.south, membership="suspended")
        await upkeep(two.north).look()
        await settled(two.south, "transfer", here.id, "SUSPENDED")
        rests = await settled(two.north, "transfer", there.id, "SUSPENDED")
        assert rests.suspended_by == "facts"
        await upkeep(two.north).look()
        assert (await two.north.transfer(there.id)).state == "SUSPENDED"
        known(two.north, two.south, membership="active")
        await upkeep(two.north).look()
        await settled(two.south, "transfer", here.id, "STARTED")


async def test_the_oldest_of_many_transfers_rests_as_well(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        known(two.north, two.south, membership="active")
        _, there = await started(two, await agreed(two, policy=constrained("ds:membership", "eq", "active")))
        about = {name: value for name, value in vars(there).items() if name in Transfer.__mapper__.columns}

        def newer(tx: Transaction) -> None:
            for n in range(100):
                tx.transfers.add(Transfer(**{**about, "id": f"new-{n}", "peer_pid": f"new-{n}", "created_at": tx.now}))

        await two.north.store.write(newer)
        two.cable.tamper = lambda call: asyncio.sleep(0, Reply(200, {}, b""))
        known(two.north, two.south, membership="suspended")
        await upkeep(two.north).look()
        await settled(two.north, "transfer", there.id, "SUSPENDED")


async def test_evidence_goes_where_the_oldest_of_many_transfers_says(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here, _ = await started(two, agreement := await agreed(two, policy=LOG))
        about = {name: value for name, value in vars(here).items() if name in Transfer.__mapper__.columns}
        over = {**about, "data_address": {}, "state": "TERMINATED"}

        def later(tx: Transaction) -> None:
            tx.transfers.get(here.id).data_address = {**here.data_address, "endpoint": "http://203.0.113.1/moved"}
            for n in range(100):
                tx.transfers.add(Transfer(**{**over, "id": f"new-{n}", "peer_pid": f"new-{n}", "created_at": tx.now}))

        await two.south.store.write(later)
        two.cable.tamper = lambda call: asyncio.sleep(0, Reply(200, {}, b""))
        ledger = DutyLedger(two.south.store, two.cable, minting("Bearer none"))
        assert (await ledger.report(agreement, "/obligation/0", evidence="kept in our log", by="test")).told
        assert two.cable.calls[-1].url == "http://203.0.113.1/moved/duties"


async def test_what_the_owner_suspended_time_does_not_resume(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement = await agreed(two)
        here, there = await started(two, agreement)
        await two.north.transfers.command(there.id, "suspend", by="test", reason="a question")
        await settled(two.south, "transfer", here.id, "SUSPENDED")
        await settled(two.north, "transfer", there.id, "SUSPENDED")
        await upkeep(two.north).look()
        assert (await two.north.transfer(there.id)).state == "SUSPENDED"


async def test_an_agreement_that_is_not_understood_holds_up_its_own_transfers_alone(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        lost = await agreed(two, policy=LOG)
        here, there = await started(two, lost)
        row = await two.south.negotiations.request(
            counterparty=two.north.participant, address=two.north.base, dataset_id="urn:hanse:north:other",
            offer={"@id": await two.north.publish("urn:hanse:north:other"), "permission": [{"action": "use"}]},
            by="test",
        )  # fmt: skip
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        await settled(two.north, "negotiation", done.peer_pid, "FINALIZED")
        _, sound = await started(two, done.agreement_id)

        def rewrite(tx: Transaction, **members: Any) -> None:
            policy = dict(tx.agreements.of(lost, role="provider").policy)
            policy.pop("permissionn", None)
            tx.agreements.of(lost, role="provider").policy = {**policy, **members}

        await two.north.store.write(lambda tx: rewrite(tx, permissionn=[]))
        keeping = upkeep(two.north)
        for _ in range(2):
            await keeping.look()
            await settled(two.north, "transfer", there.id, "SUSPENDED")
            assert "hanse revoke" in (await settled(two.south, "transfer", here.id, "SUSPENDED")).reason
            assert (await two.north.transfer(sound.id)).state == "STARTED"
        ledger = DutyLedger(two.north.store, two.cable, minting())
        assert await ledger.list_open() == []
        with pytest.raises(Denied, match="not understood here any more"):
            await ledger.of(lost, role="provider")
        await two.north.store.write(rewrite)
        await keeping.look()
        await settled(two.north, "transfer", there.id, "STARTED")


IDLE = [  # our role, state, days without a word, membership of the other side: whether it goes on
    ("provider", "AGREED", 8, "none", False),
    ("provider", "AGREED", 8, "suspended", False),
    ("provider", "AGREED", 6, "none", True),
    ("provider", "AGREED", 8, "active", True),
    ("provider", "AGREED", 8, "", True),
    ("provider", "OFFERED", 31, "active", False),
    ("provider", "REQUESTED", 99, "none", True),
    ("provider", "VERIFIED", 99, "none", True),
    ("consumer", "REQUESTED", 8, "none", True),
    ("consumer", "REQUESTED", 31, "none", False),
    ("consumer", "OFFERED", 99, "none", True),
]


async def test_a_negotiation_waits_so_long_for_its_other_side_and_for_us_as_long_as_we_like(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        rows = []
        for number, (role, state, days, membership, _) in enumerate(IDLE):
            peer = Counterparty(two.north, participant=f"did:web:{number}.example")
            rows.append(row := await peer.negotiation(role=role, state=state))
            facts = {"ds:membership": membership} if membership else {}
            two.north.facts[peer.participant] = Facts.of(facts, source="register")
            await two.north.store.write(partial(aged, pid=row.id, days=days))
        asked = await Counterparty(two.north).negotiation(role="consumer", state="REQUESTED", pending="")
        await two.north.store.write(partial(aged, pid=asked.id, days=31, peer_pid=""))
        await upkeep(two.north).look()
        open_still = [(await two.north.negotiation(row.id)).state != "TERMINATED" for row in rows]
        assert open_still == [goes_on for *_, goes_on in IDLE]
        assert (await two.north.negotiation(asked.id)).state == "TERMINATED", "also where its pid was never told"


async def test_an_abandoned_negotiation_is_ended_at_both_sides_and_says_why(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here = await two.ask(await two.north.publish(), decide="manual")
        await settled(two.south, "negotiation", here.id, "AGREED")
        there = await settled(two.north, "negotiation", (await two.north.only("negotiations")).id, "AGREED")
        await two.north.store.write(partial(aged, pid=there.id, days=31))
        await upkeep(two.north).look()
        ended = await settled(two.south, "negotiation", here.id, "TERMINATED")
        assert ended.code == "not_answered"
        assert ended.reason.startswith("did:web:south.example has not answered since 20")
        last = [one for one in two.north.events if isinstance(one, NegotiationAdvanced)][-1]
        assert (last.actor, last.code, last.detail["state"]) == ("clock", "not_answered", "TERMINATED")


def aged(tx: Transaction, *, pid: str, days: int, **more: str) -> None:
    row = tx.negotiations.get(pid)
    assert row is not None
    for name, value in {**more, "updated_at": tx.now - days * 86_400.0}.items():
        setattr(row, name, value)
