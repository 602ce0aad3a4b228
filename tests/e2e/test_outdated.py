"""Agreements and offers that an older connector took and this one does not understand: refused one by one, with what
to do, by a connector that starts and serves all others."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.processes import Failed, Process, two
from tests.support.waiting import eventually

Json = dict[str, Any]
DS = "https://w3id.org/hanse/policy/1/"
END = "hanse revoke"  # what a refusal says can be done
# What is stored, the code under which a read is refused, and what a new transfer's refusal says.
SPOILT: dict[str, tuple[Json, str, str]] = {
    "unknown_member": ({"permissionn": []}, "agreement_unreadable", END),
    "doubled_member": ({"odrl:permission": [{"action": "use"}]}, "agreement_unreadable", END),
    "unknown_context": ({"@context": "https://example.org/of/others.jsonld"}, "agreement_unreadable", END),
    "reading_prohibited": (
        {"permission": [{"action": f"{DS}query"}], "prohibition": [{"action": "odrl:read"}]},
        "contract_undecided",
        "/prohibition/0 forbids",
    ),
    "unknown_condition": (
        {"permission": [{"action": "use", "constraint": [
            {"leftOperand": f"{DS}moonPhase", "operator": "eq", "rightOperand": "full"}]}]},
        "contract_undecided",
        "moonPhase is not registered",
    ),
    "unknown_word": (
        {"permission": [{"action": "use", "constraint": [
            {"leftOperand": f"{DS}membership", "operator": "neq", "rightOperand": "expelled"}]}]},
        "contract_undecided",
        "expected one of active, suspended, none, got 'expelled'",
    ),
}  # fmt: skip
UNREADABLE = [name for name, (_, code, _) in SPOILT.items() if code == "agreement_unreadable"]
OVER = {"transfer_not_started", "ticket_replaced"}  # the transfer may have been suspended by now
SOUND = "sound"


@dataclass
class Outdated:
    """Both sides after the start, and what stood before it: agreement, transfer, offer, address by dataset."""

    north: Process
    south: Process
    agreements: dict[str, str]
    transfers: dict[str, str]
    offers: dict[str, str]
    addresses: dict[str, Json]

    def fetch(self, name: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """What a consumer's program is answered: its status, and a problem object where there is one."""
        address = self.addresses[name]
        headers = {"authorization": f"Bearer {address['ticket']}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{address['endpoint']}{path}", headers=headers, data=data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return int(answer.status), {}
        except urllib.error.HTTPError as error:
            return error.code, dict(json.loads(error.read()))


@pytest.fixture(scope="module")
def outdated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outdated]:
    with two(tmp_path_factory.mktemp("outdated"), forked=True, UPKEEP_SECONDS="0.5") as (north, south):
        made = Outdated(north, south, {}, {}, {}, {})
        api = south.api()
        for name in (SOUND, *SPOILT):
            dataset, made.offers[name] = north.publish(name)
            made.agreements[name], made.transfers[name] = south.agree(north, dataset, made.offers[name])
            made.addresses[name] = api.get(f"/transfers/{made.transfers[name]}/address")
        api.close()
        north.kill()
        for name, (members, _, _) in SPOILT.items():
            spoil(north.directory, "agreement", made.agreements[name], members)
            spoil(north.directory, "offer", made.offers[name], members)
        north.start()
        yield made


def spoil(directory: Path, table: str, key: str, members: Json) -> None:
    """The stored policy as an older connector may have taken it."""
    (database,) = directory.glob("*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute(f"SELECT policy FROM {table} WHERE id = ?", [key]).fetchall()
        policy = json.dumps({**json.loads(found[0][0]), **members})
        connection.execute(f"UPDATE {table} SET policy = ? WHERE id = ?", [policy, key])
    connection.close()


@pytest.mark.parametrize("name", SPOILT)
def test_reads_are_refused_with_what_to_do(outdated: Outdated, name: str) -> None:
    status, problem = outdated.fetch(name, f"/datasets/{name}/rows")
    assert (status, problem["code"]) == (403, SPOILT[name][1]), problem
    assert END in problem["detail"]
    asked: tuple[tuple[str, Json | None], ...] = (
        ("/contract", None), ("/query", {"sql": f"SELECT count(*) AS n FROM north.{name}"}), ("/streams", {}),
    )  # fmt: skip
    for path, body in asked:
        status, problem = outdated.fetch(name, path, body)
        assert (status, problem["code"] in {SPOILT[name][1]} | OVER) == (403, True), (path, problem)


def test_the_owner_s_list_says_which_are_dead_and_why(outdated: Outdated) -> None:
    api = outdated.north.api()
    listed = {one["id"]: one["problem"] for one in api.get("/agreements")}
    told = {name: listed[id_] for name, id_ in outdated.agreements.items()}
    assert {name for name, problem in told.items() if END in problem} == set(SPOILT), told
    assert "expelled" in told["unknown_word"]
    api._prefix = ""
    assert api.call("GET", "/agreements").decode().count("Not served") == len(SPOILT)
    api.close()


def test_other_agreements_go_on(outdated: Outdated) -> None:
    for path, body in ((f"/datasets/{SOUND}/rows", None), ("/query", {"sql": f"SELECT id FROM north.{SOUND}"})):
        assert outdated.fetch(SOUND, path, body) == (200, {})


@pytest.mark.parametrize("name", SPOILT)
def test_transfers_are_refused(outdated: Outdated, name: str) -> None:
    api = outdated.south.api()
    begun = api.post("/transfers", {"agreement_id": outdated.agreements[name], "format": "HttpData-PULL"})
    ended = api.get(f"/transfers/{begun['id']}?wait=60&until=TERMINATED")
    api.close()
    assert (ended["state"], SPOILT[name][2] in ended["reason"]) == ("TERMINATED", True), ended["reason"]


@pytest.mark.parametrize("name", UNREADABLE)
def test_running_transfers_are_suspended_with_the_reason_and_others_are_not(outdated: Outdated, name: str) -> None:
    api = outdated.south.api()
    held = eventually(
        lambda: (row := api.get(f"/transfers/{outdated.transfers[name]}"))["state"] == "SUSPENDED" and row
    )
    assert "not understood here any more" in held["reason"]
    assert api.get(f"/transfers/{outdated.transfers[SOUND]}")["state"] == "STARTED"
    api.close()


@pytest.mark.parametrize("name", SPOILT)
def test_their_owner_is_shown_them_with_the_problem(outdated: Outdated, name: str) -> None:
    api, key = outdated.north.api(), quote(outdated.agreements[name], safe="")
    assert END in api.get(f"/agreements/{key}")["problem"]
    api._prefix = ""
    page = api.call("GET", f"/agreements/{key}").decode()
    assert "Nothing is served under it" in page
    api.close()


def test_lists_hold_them_and_all_others(outdated: Outdated) -> None:
    api = outdated.north.api()
    assert {row["id"] for row in api.get("/agreements")} == set(outdated.agreements.values())
    problems = {row["id"]: [one["code"] for one in row["problems"]] for row in api.get("/offers")}
    expected = {outdated.offers[name]: ["offer_unreadable"] for name in UNREADABLE}
    assert problems == {offer: expected.get(offer, []) for offer in outdated.offers.values()}
    assert api.get("/duties") == []
    api._prefix = ""
    for page in (
        "/",
        "/offers",
        "/agreements",
        *(f"/offers/{quote(one, safe='')}" for one in outdated.offers.values()),
    ):
        assert b"</html>" in api.call("GET", page), page
    api.close()


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_told_of_them_is_refused_by_name(outdated: Outdated, name: str) -> None:
    api = outdated.north.api()
    with pytest.raises(Failed, match="agreement_unreadable"):
        api.get(f"/agreements/{quote(outdated.agreements[name], safe='')}/duties")
    with pytest.raises(Failed, match="offer_unreadable"):
        api.get(f"/datasets/{name}/preview?as={quote(outdated.south.participant)}")
    path = outdated.north.directory / f"{name}_more.parquet"
    pq.write_table(pa.table({"id": [1, 2], "value": [0.5, 1.0]}), path)
    made = api.post(f"/datasets/{name}/versions", {"path": str(path)})
    api.close()
    assert {one["code"] for one in made["affected"]} == {"agreement_unreadable", "offer_unreadable"}


@pytest.mark.parametrize("name", SPOILT)
def test_nobody_new_agrees_to_them(outdated: Outdated, name: str) -> None:
    south = outdated.south.api()
    asked = {"counter_party_id": outdated.north.participant, "counter_party_address": outdated.north.base}
    policy = {"@id": outdated.offers[name], "permission": [{"action": "use"}]}
    dataset = f"urn:hanse:north:{name}"
    begun = south.post("/negotiations", {**asked, "dataset": dataset, "policy": policy})
    ended = south.get(f"/negotiations/{begun['id']}?wait=60&until=TERMINATED")
    south.close()
    assert ended["state"] == "TERMINATED"


def test_they_can_be_ended_and_the_log_knows_no_failure(outdated: Outdated) -> None:
    api, south = outdated.north.api(), outdated.south.api()
    for name in SPOILT:
        api.post(f"/agreements/{quote(outdated.agreements[name], safe='')}/revoke", {"reason": "made anew"})
        ended = south.get(f"/transfers/{outdated.transfers[name]}?wait=60&until=TERMINATED")
        assert ended["state"] == "TERMINATED"
        api.call("DELETE", f"/offers/{quote(outdated.offers[name], safe='')}")
    outdated.north.kill()
    outdated.north.start()
    assert outdated.fetch(SOUND, f"/datasets/{SOUND}/rows") == (200, {})
    log = (outdated.north.directory / "log").read_text()
    for word in ("Traceback", "unforeseen", "delivery_failed"):
        assert word not in log, log[-4_000:]
    assert log.count("agreement_unreadable") >= len(UNREADABLE)
    api.close()
    south.close()
