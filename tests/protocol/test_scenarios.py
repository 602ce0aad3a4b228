"""Whole conversations between two connectors, each message ordered by a person on either side: both always agree.

N is the provider, S the consumer; `N:agree=AGREED` reads: N is told to agree, then both sides are in AGREED.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from connector.errors import ConnectorError, WrongState
from tests.support.pair import Pair, Side, announced, emptied, pair, settled

NEGOTIATIONS = {
    "agreed at once": "S:request=REQUESTED N:agree=AGREED S:verify=VERIFIED N:finalize=FINALIZED",
    "offered first": "S:request=REQUESTED N:offer=OFFERED S:accept=ACCEPTED N:agree=AGREED S:verify=VERIFIED "
    "N:finalize=FINALIZED",
    "haggled": "S:request=REQUESTED N:offer=OFFERED S:counter=REQUESTED N:offer=OFFERED S:counter=REQUESTED "
    "N:agree=AGREED S:verify=VERIFIED N:finalize=FINALIZED",
    # A consumer's negotiation is automatic unless it was begun otherwise: it verifies what it has accepted.
    "provider begins": "N:propose=OFFERED S:accept=ACCEPTED N:agree=VERIFIED N:finalize=FINALIZED",
    "provider begins, consumer counters": "N:propose=OFFERED S:counter=REQUESTED N:agree=VERIFIED N:finalize=FINALIZED",
    "approved": "S:request=REQUESTED N:approve=AGREED S:verify=FINALIZED",
    "approved by both": "S:request=REQUESTED N:offer=OFFERED S:approve=ACCEPTED N:approve=FINALIZED",
}
REACHED = {
    "REQUESTED": "S:request=REQUESTED",
    "OFFERED": "S:request=REQUESTED N:offer=OFFERED",
    "ACCEPTED": "S:request=REQUESTED N:offer=OFFERED S:accept=ACCEPTED",
    "AGREED": "S:request=REQUESTED N:agree=AGREED",
    "VERIFIED": "S:request=REQUESTED N:agree=AGREED S:verify=VERIFIED",
}
NEGOTIATIONS |= {
    f"ended by {who} in {state}": f"{path} {who}:terminate=TERMINATED"
    for state, path in REACHED.items()
    for who in "NS"
}
TRANSFERS = {
    "completed by the consumer": "S:request=REQUESTED N:start=STARTED S:complete=COMPLETED",
    "completed by the provider": "S:request=REQUESTED N:start=STARTED N:complete=COMPLETED",
    "suspended and resumed by the provider": "S:request=REQUESTED N:start=STARTED N:suspend=SUSPENDED N:resume=STARTED "
    "S:complete=COMPLETED",
    "suspended and resumed by the consumer": "S:request=REQUESTED N:start=STARTED S:suspend=SUSPENDED S:resume=STARTED "
    "N:complete=COMPLETED",
    "suspended by the consumer, resumed by the provider": "S:request=REQUESTED N:start=STARTED S:suspend=SUSPENDED "
    "N:resume=STARTED S:complete=COMPLETED",
    "suspended twice": "S:request=REQUESTED N:start=STARTED S:suspend=SUSPENDED S:resume=STARTED N:suspend=SUSPENDED "
    "N:resume=STARTED N:complete=COMPLETED",
}
RUNNING = {
    "REQUESTED": "S:request=REQUESTED",
    "STARTED": "S:request=REQUESTED N:start=STARTED",
    "SUSPENDED": "S:request=REQUESTED N:start=STARTED N:suspend=SUSPENDED",
}
TRANSFERS |= {
    f"ended by {who} in {state}": f"{path} {who}:terminate=TERMINATED"
    for state, path in RUNNING.items()
    for who in "NS"
}


class Talk:
    """One conversation: carries out a script, and checks after each line that both sides are where it says."""

    def __init__(self, two: Pair, kind: str, agreement_id: str = "") -> None:
        self.two, self.kind, self.agreement_id = two, kind, agreement_id
        self.pids: dict[str, str] = {}

    def side(self, letter: str) -> Side:
        return self.two.north if letter == "N" else self.two.south

    async def play(self, script: str) -> None:
        for line in script.split():
            who, _, rest = line.partition(":")
            command, _, state = rest.partition("=")
            await self.order(who, command)
            await self.both(state, line)

    async def order(self, who: str, command: str) -> None:
        service = getattr(self.side(who), f"{self.kind}s")
        if command == "propose":
            south = self.two.south
            row = await service.propose(
                counterparty=south.participant, address=south.base, offer_id="offer:urn:hanse:north:air", by="test"
            )
        elif command == "request" and self.kind == "negotiation":
            row = await self.two.ask("offer:urn:hanse:north:air", decide="manual")
        elif command == "request":
            row = await service.request(agreement_id=self.agreement_id, by="test")
        else:
            row = await service.command(self.pids[who], command, by="test", reason=f"{command} by {who}")
        self.pids[who] = row.id

    async def both(self, state: str, line: str) -> None:
        for who in sorted("NS", key=lambda letter: letter not in self.pids):
            if who not in self.pids:
                other = "S" if who == "N" else "N"
                first = await settled(self.side(other), self.kind, self.pids[other], state)
                self.pids[who] = first.peer_pid
            try:
                await settled(self.side(who), self.kind, self.pids[who], state)
            except AssertionError as error:
                raise AssertionError(f"after {line}: {error}") from error


@pytest.mark.parametrize("script", NEGOTIATIONS.values(), ids=NEGOTIATIONS.keys())
async def test_negotiations(tmp_path: Path, script: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        await Talk(two, "negotiation").play(script)
        await emptied(two)


@pytest.mark.parametrize("script", TRANSFERS.values(), ids=TRANSFERS.keys())
async def test_transfers(tmp_path: Path, script: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        talk = Talk(two, "negotiation")
        await talk.play(NEGOTIATIONS["agreed at once"])
        agreed = await two.south.negotiation(talk.pids["S"])
        transfer = Talk(two, "transfer", agreed.agreement_id)
        await transfer.play(script)
        here, there = await two.south.transfer(transfer.pids["S"]), await two.north.transfer(transfer.pids["N"])
        assert (here.state == "STARTED") == bool(here.data_address)
        assert there.data_address == {}, "a provider keeps no ticket"
        await emptied(two)


ILLEGAL = {
    "REQUESTED": "N:finalize S:accept S:verify S:counter",
    "OFFERED": "N:offer N:agree N:finalize S:verify",
    "ACCEPTED": "N:offer N:finalize S:accept S:counter S:verify",
    "AGREED": "N:agree N:offer N:finalize S:accept S:counter",
    "VERIFIED": "N:agree N:offer S:verify S:accept S:counter",
}


@pytest.mark.parametrize("state", ILLEGAL)
async def test_a_command_that_the_state_does_not_allow_sends_nothing(tmp_path: Path, state: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        talk = Talk(two, "negotiation")
        await talk.play(REACHED[state])
        calls = len(two.cable.calls)
        for line in ILLEGAL[state].split():
            who, _, command = line.partition(":")
            with pytest.raises(WrongState):
                await talk.side(who).negotiations.command(talk.pids[who], command, by="test")
        await talk.both(state, "the illegal commands")
        assert len(two.cable.calls) == calls


async def test_the_other_sides_commands_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        talk = Talk(two, "negotiation")
        await talk.play("S:request=REQUESTED")
        for who, command in (("N", "verify"), ("S", "agree"), ("S", "dance")):
            with pytest.raises(ConnectorError):
                await talk.side(who).negotiations.command(talk.pids[who], command, by="test")
        with pytest.raises(ConnectorError):
            await two.north.negotiations.command("urn:uuid:nowhere", "agree", by="test")


async def test_every_order_of_a_person_is_recorded_with_its_name(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        await Talk(two, "negotiation").play(NEGOTIATIONS["agreed at once"])
        orders = [(event.actor, event.detail["command"]) for event in two.north.events if event.kind == "DecisionTaken"]
        assert orders == [("test", "agree"), ("test", "finalize")]


async def test_events_tell_every_state_once_on_both_sides(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(decide="manual")
        await Talk(two, "negotiation").play(NEGOTIATIONS["offered first"])
        states = ["REQUESTED", "OFFERED", "ACCEPTED", "AGREED", "VERIFIED", "FINALIZED"]
        for side in (two.north, two.south):
            assert await announced(side, states) == states
            assert [event.kind for event in side.events].count("AgreementConcluded") == 1
