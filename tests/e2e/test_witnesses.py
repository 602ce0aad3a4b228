"""Members and the catalogue are witnesses of each other's logs: what an operator rewrites is refused and found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
from hanse.audit.verify import verify
from hanse.audit.witnesses import read_policy

from connector.audit.record import Record, canonical
from connector.identity.keys import load_witness_keys
from connector.witness.notes import Cosigner, read_checkpoint
from tests.support.processes import Client, Process
from tests.support.waiting import eventually
from tests.support.witnessing import (
    NAMES,
    WitnessedSpace,
    copy_state,
    export,
    forged_export,
    grow,
    log_lines,
    put_state,
    rewrite,
    stop,
    witnessed_space,
)

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WitnessedSpace]:
    with witnessed_space(tmp_path_factory.mktemp("space")) as running:
        yield running


def change_third(records: list[Record]) -> list[Record]:
    """History with another third record."""
    body = {**json.loads(records[2].text), "actor": "did:web:somebody-else.example"}
    return [replace(one, text=canonical(body)) if one.idx == 2 else one for one in records]


def ended_by_itself(process: Process) -> bool:
    if process.running is None or process.running.poll() is None:
        return False
    process.running = None
    return True


def test_all_vouch_and_an_export_carries_their_cosignatures(space: WitnessedSpace, tmp_path: Path) -> None:
    policy = read_policy(space.policy("north", least=3))
    grow(space.members["north"])
    report = verify(export(space.members["north"], tmp_path / "north.zip"), policy=policy)
    assert report.ok, report.problem
    assert report.key_given
    assert sum(one["cosigned_at"] is not None for one in report.witnesses) == 2 * len(NAMES)  # Ed25519 and ML-DSA-44


def test_the_commands_of_the_docs_verify_by_a_policy(space: WitnessedSpace, tmp_path: Path) -> None:
    north = space.members["north"]
    eventually(lambda: space.all_vouch("north"), seconds=60)
    _, commands = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    env = {name: value for name, value in os.environ.items() if not name.startswith("HANSE_")}
    env |= {"HANSE_URL": f"http://127.0.0.1:{north.management_port}", "HANSE_TOKEN": north.token, "COLUMNS": "200"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("vouches, cosigned") == 2 * len(NAMES)


@pytest.mark.parametrize(("way", "name"), [("fork", "south"), ("rollback", "west"), ("truncated", "forge")])
def test_rewritten_history_is_refused_by_all_and_ends_the_connector(
    space: WitnessedSpace, tmp_path: Path, way: str, name: str
) -> None:
    member = space.members[name]
    eventually(lambda: space.all_vouch(name), seconds=60)
    policy = read_policy(space.policy(name))
    stop(member)
    old = copy_state(member, tmp_path / "old")
    member.start()
    grow(member, 10)
    eventually(lambda: space.all_vouch(name), seconds=60)
    honest = export(member, tmp_path / "honest.zip")
    assert verify(honest, policy=policy).ok
    stop(member)
    newest = copy_state(member, tmp_path / "newest")
    if way == "rollback":
        put_state(member, old)
    else:
        rewrite(member, change_third if way == "fork" else lambda records: records[:-5])
    forged = forged_export(member, tmp_path / "forged.zip")
    assert verify(forged, verify(honest, policy=policy).key).ok  # the log's own key has signed all of it
    found = verify(forged, policy=policy, after=honest)
    assert not found.ok
    # An old copy was vouched for in its time, which the report says; only a later file shows that records are gone.
    assert ("records are gone" if way == "rollback" else "does not vouch") in found.problem
    member.start(wait=False)
    eventually(lambda: ended_by_itself(member), seconds=60)
    assert "cosigned by did:web:" in log_lines(member)
    others = [space.catalogue, *(one for one in space.members.values() if one is not member)]
    eventually(lambda: any(was_told(one, member) for one in others), seconds=30)
    put_state(member, newest)
    member.start()
    eventually(lambda: space.all_vouch(name), seconds=60)


def was_told(witness: Process, member: Process) -> bool:
    """Whether a witness's log and metrics say that it refused a head of the member."""
    lines = [
        line
        for line in log_lines(witness).splitlines()
        if "checkpoint_refused" in line and f":{member.public_port}/" in line
    ]
    if not lines:
        return False
    client = Client(witness.management_port, token=witness.token)
    metrics = client.call("GET", "/metrics").decode()
    client.close()
    return any(
        f'hanse_witness_answers_total{{outcome="{one}"}}' in metrics for one in ("behind", "fork", "inconsistent")
    )


def test_an_equivocating_witness_is_not_enough_and_is_found(space: WitnessedSpace, tmp_path: Path) -> None:
    """Two auditors get two histories with one head size; the cosignatures of one witness under both convict it."""
    north, liar = space.members["north"], space.members["south"]
    eventually(lambda: space.all_vouch("north"), seconds=60)
    text = space.policy("north")
    first = export(north, tmp_path / "first.zip")
    stop(north)
    kept = copy_state(north, tmp_path / "kept")
    size = verify(first, policy=read_policy(text)).size
    rewrite(north, lambda records: change_third(records[:size]))
    cosigner = Cosigner(f"127.0.0.1:{liar.public_port}/witness", *load_witness_keys(liar.directory / "keys"))
    second = forged_export(north, tmp_path / "second.zip", cosigners=[cosigner])
    put_state(north, kept)
    north.start()
    assert verify(first, policy=read_policy(text)).ok
    refused = verify(second, policy=read_policy(text))
    assert not refused.ok
    vouching = {one["key_name"] for one in refused.witnesses if one["cosigned_at"]}
    assert vouching == {cosigner.keys[0].name}
    heads = [read_checkpoint(ZipFile(path).read("checkpoint").decode()) for path in (first, second)]
    assert heads[0].size == heads[1].size
    assert heads[0].root != heads[1].root
    assert all(cosigner.keys[0].find(head) is not None for head in heads)  # the proof against the witness
    # An auditor who trusts this one witness alone is deceived, which is why a policy names several.
    alone = read_policy(f"witness w {cosigner.keys[0]}\nquorum w\n".encode())
    assert verify(second, policy=alone).ok


def test_a_witness_that_was_away_is_caught_up_with(space: WitnessedSpace, tmp_path: Path) -> None:
    north, west = space.members["north"], space.members["west"]
    eventually(lambda: space.all_vouch("north"), seconds=60)
    west.kill()
    grow(north, 20)
    report = verify(export(north, tmp_path / "north.zip"), policy=read_policy(space.policy("north", least=2)))
    assert report.ok, report.problem  # the catalogue and two of the other members are enough
    assert {one["cosigned_at"] is None for one in report.witnesses if f"%3A{west.public_port}#" in one["name"]} == {
        True
    }
    grow(north, 20)
    west.start()
    eventually(lambda: space.all_vouch("north"), seconds=120)
