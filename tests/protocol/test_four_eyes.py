"""Under an offer with `decide: four_eyes`, another person than the one who asked approves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connector import acting
from connector.acting import Acting
from connector.dsp.auto_decisions import SamePerson
from tests.support.pair import USE, Pair, pair, settled

ADA, BO = "https://idp.example#ada", "https://idp.example#bo"


@contextmanager
def person(subject: str) -> Iterator[None]:
    """The block is a request of this person; empty: of a token without a person."""
    before = acting.current()
    acting.set_current(Acting("someone (clinic)" if subject else "admin", subject=subject))
    try:
        yield
    finally:
        acting.set_current(before)


async def approve(two: Pair, pid: str, subject: str, command: str = "approve") -> None:
    with person(subject):
        await two.north.negotiations.command(pid, command, by=subject or "admin")


async def ask_oneself(two: Pair, subject: str) -> str:
    """Ask for an agreement with ourselves; return the id of the negotiation as provider."""
    offer_id = await two.north.publish(decide="four_eyes")
    with person(subject):
        begun = await two.north.negotiations.request(
            counterparty=two.north.participant, address=two.north.base, dataset_id="urn:hanse:north:air",
            offer={"@id": offer_id, **USE}, by="test",
        )  # fmt: skip
    row = await settled(two.north, "negotiation", begun.id, "REQUESTED")
    return str(row.peer_pid)


@pytest.mark.parametrize("command", ["approve", "agree"])
async def test_who_asked_as_the_same_connector_may_not_approve_and_another_may(tmp_path: Path, command: str) -> None:
    async with pair(tmp_path) as two:
        pid = await ask_oneself(two, ADA)
        with pytest.raises(SamePerson, match="another person approves"):
            await approve(two, pid, ADA, command)
        assert (await two.north.negotiation(pid)).state == "REQUESTED"
        [refused] = [event for event in two.north.events if event.kind == "RequestRefused"]
        assert (refused.code, refused.process, refused.subject) == ("four_eyes", pid, ADA)
        await approve(two, pid, BO)
        await settled(two.north, "negotiation", pid, "FINALIZED")


async def test_a_token_without_a_person_neither_asks_nor_approves(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        pid = await ask_oneself(two, "")
        for subject, reason in (("", "expected a person who logged in"), (BO, "ask again as a person")):
            with pytest.raises(SamePerson, match=reason):
                await approve(two, pid, subject)
        with person(ADA):  # to refuse it needs no second person
            await two.north.negotiations.command(pid, "terminate", by="Ada", reason="no")
        await settled(two.north, "negotiation", pid, "TERMINATED")


async def test_who_proposed_it_or_sent_a_counter_offer_may_not_approve(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        offer_id = await two.north.publish(decide="four_eyes")
        with person(ADA):
            row = await two.north.negotiations.propose(
                counterparty=two.south.participant, address=two.south.base, offer_id=offer_id, by="Ada"
            )
        there = await settled(two.north, "negotiation", row.id, "OFFERED")
        await settled(two.south, "negotiation", there.peer_pid, "OFFERED")
        await two.south.negotiations.command(there.peer_pid, "accept", by="south")
        await settled(two.north, "negotiation", row.id, "ACCEPTED")
        with pytest.raises(SamePerson):
            await approve(two, row.id, ADA)
        await approve(two, row.id, BO)
        await settled(two.north, "negotiation", row.id, "FINALIZED")


async def test_a_request_of_another_participant_is_approved_by_one_person(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        asked = await two.ask(await two.north.publish(decide="four_eyes"))
        here = await settled(two.south, "negotiation", asked.id, "REQUESTED")
        with pytest.raises(SamePerson, match="token without a person"):
            await approve(two, here.peer_pid, "")
        await approve(two, here.peer_pid, ADA)
        await settled(two.south, "negotiation", asked.id, "FINALIZED")
