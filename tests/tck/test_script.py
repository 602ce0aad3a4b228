"""The harness's own parts that need no kit: the table, the player, and how a missing kit is told from a failing one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.support.own_name import changed
from tests.tck import run, script
from tests.tck.script import Change, Player, Step

TABLE = script.load(Path(__file__).parent / "cases.yaml")
COMMANDS = {
    "negotiation": {"offer", "agree", "finalize", "accept", "verify", "counter", "terminate"},
    "transfer": {"start", "suspend", "resume", "complete", "terminate"},
}


def test_table_has_the_kits_67_cases_and_only_known_commands() -> None:
    assert len(TABLE.cases) == 67
    for case in TABLE.cases.values():
        kind = "transfer" if case.agreement else "negotiation"
        assert {step.command for step in case.play} <= COMMANDS[kind], case.id


def test_no_two_cases_share_a_dataset() -> None:
    datasets = [case.dataset for case in TABLE.cases.values() if case.dataset]
    assert len(datasets) == len(set(datasets))


async def _played(steps: tuple[Step, ...], *states: str) -> list[str]:
    sent: list[str] = []

    async def command(kind: str, pid: str, name: str) -> None:
        sent.append(name)

    player = Player(command, after=0.0)
    player.assign("negotiation", "ds", steps)
    for state in states:
        player.on(Change("negotiation", "pid", "ds", state))
        await asyncio.sleep(0.01)
    return sent


@pytest.mark.parametrize(
    ("steps", "states", "sent"),
    [
        ((Step("REQUESTED", "offer"), Step("REQUESTED", "terminate")), ("REQUESTED",), ["offer"]),
        (
            (Step("REQUESTED", "offer"), Step("REQUESTED", "terminate")),
            ("REQUESTED", "OFFERED", "REQUESTED", "REQUESTED"),
            ["offer", "terminate"],
        ),
        ((Step("ACCEPTED", "agree"),), ("REQUESTED", "OFFERED"), []),
        ((), ("REQUESTED", "TERMINATED"), []),
    ],
)
async def test_each_step_is_played_once_and_in_order(
    steps: tuple[Step, ...], states: tuple[str, ...], sent: list[str]
) -> None:
    assert await _played(steps, *states) == sent


def _maven(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    done = subprocess.CompletedProcess(["mvn"], 1, stdout=said, stderr="")
    monkeypatch.setattr(run, "subprocess", changed(subprocess, run=lambda *_, **__: done))


def test_a_kit_that_no_registry_carries_is_not_reachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _maven(monkeypatch, "[ERROR] Could not find artifact org.example:kit:jar:1 in central")
    with pytest.raises(run.NotReachable):
        run.class_path(tmp_path)


def test_any_other_trouble_of_maven_breaks_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _maven(monkeypatch, "[ERROR] Non-parseable POM")
    with pytest.raises(RuntimeError, match="Non-parseable"):
        run.class_path(tmp_path)
