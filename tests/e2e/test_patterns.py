"""Every pattern of the usage-policy reference through two real connectors, from offer to answer or refusal, as data."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hanse.errors import HanseError

from policies.vocabulary import expand
from tests.e2e.conftest import Running

CASES = Path(__file__).parent.parent / "cases" / "policies" / "end_to_end.yaml"
ENTRIES: list[dict[str, Any]] = yaml.safe_load(CASES.read_text(encoding="utf-8"))
Json = dict[str, Any]

# What section 6 of the reference lists.
PATTERNS = """consumer; connector; application; role; membership; business partner number; participant country;
security level; framework agreement; interval; duration; number of uses; rows; bytes; queries per day; concurrency;
share of the asset; row filter; column list; columns that cannot be read; mask null; mask keyed hash; mask truncate;
mask round; forbidden column combination; aggregate only; minimum group size by rows;
minimum group size by distinct entity; allowed joins; approved query templates; differential-privacy budget;
delete after; delete by a date; log; inform; attribute; pass the policy on; compensate once, before use;
compensate per period; purpose; train; reservation of mining; register models; delete models on revocation;
health-data permit; altruism with consent per subject"""


def test_no_pattern_is_left_out() -> None:
    wanted = {" ".join(name.split()) for name in PATTERNS.split(";")}
    assert {entry["pattern"] for entry in ENTRIES} == wanted
    said_no = {e["pattern"] for e in ENTRIES if "unpublished" in e or any(map(withholds, e.get("steps", ())))}
    said_no |= {e["pattern"] for e in ENTRIES if any(not t["permitted"] for t in e.get("test", ()))}
    # These wait for somebody to act and refuse nothing by themselves; the ledger says where they stand.
    owed = {e["pattern"] for e in ENTRIES if any("duties" in step for step in e.get("steps", ()))}
    assert wanted - said_no - owed == set()


def withholds(step: Json) -> bool:
    """Whether something is refused, cut short, or not there."""
    return "refused" in step or "ends" in step or step.get("answer") == [] or step.get("rows") == 0


def table() -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "person": f"p{n % 30:02d}",
                "country": ("DE", "FR", "US")[n % 3],
                "consent": ("broad", "none")[n % 2],
                "value": n,
                "name": f"name-{n}",
            }
            for n in range(60)
        ]
    )


@dataclass
class Pair:
    """A provider and a consumer over HTTP, as their operators and programs reach them."""

    running: Running
    owner: Any = field(init=False)
    consumer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.owner, self.consumer = self.running.story.api("north"), self.running.story.api("forge")

    @property
    def did(self) -> str:
        return self.running.space.members["forge"].did

    def filled(self, value: Any) -> Any:
        if isinstance(value, str):
            member = self.running.space.members["forge"]
            for name, said in (("{consumer}", member.did), ("{consumer_url}", member.url), ("{owner}", "north")):
                value = value.replace(name, said)
            return value
        return [self.filled(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def pair(running: Running) -> Pair:
    made = Pair(running)
    path = running.space.directory / "data" / "north" / "patterns.parquet"
    pq.write_table(table(), path)
    made.owner.post("/datasets", {"name": "patterns", "path": str(path)})
    return made


def constraint(pair: Pair, one: Any) -> Json:
    if isinstance(one, dict):
        ((connective, members),) = one.items()
        return {connective: [constraint(pair, member) for member in members]}
    left, operator, right = (pair.filled(part) for part in one)
    right = [expand(text) for text in right] if isinstance(right, list) else expand(str(right))
    return {"leftOperand": left, "operator": operator, "rightOperand": right}


def rule(pair: Pair, action: str, conditions: list[Any]) -> Json:
    made: Json = {"action": action}
    return {**made, "constraint": [constraint(pair, one) for one in conditions]} if conditions else made


def mask(pair: Pair, column: str, method: str, argument: str = "") -> Json:
    said = [["ds:column", "eq", column], ["ds:method", "eq", method]]
    return rule(pair, "ds:mask", said + ([["ds:argument", "eq", argument]] if argument else []))


def policy_of(pair: Pair, entry: Json, number: int) -> Json:
    permission = rule(pair, entry.get("action", "use"), entry.get("if", []))
    duties = [mask(pair, *one) for one in entry.get("masks", ())]
    duties += [rule(pair, one["action"], one.get("if", [])) for one in entry.get("duty", ())]
    owed = [rule(pair, one["action"], one.get("if", [])) for one in entry.get("obligation", ())]
    made: Json = {
        "@type": "Offer",
        "@id": f"urn:hanse:offer:north:pattern-{number}",
        "odrl:conflict": {"@id": "odrl:prohibit"},
        "permission": [{**permission, **({"duty": duties} if duties else {})}],
    }
    if owed:
        made["obligation"] = owed
    if "prohibit" in entry:
        made["prohibition"] = [{"action": name} for name in entry["prohibit"]]
    return made


@dataclass
class Walk:
    """One entry under way: its agreement and transfer, made when the first step needs them."""

    pair: Pair
    offer: Json
    agreement: str = ""
    transfer: str = ""

    def negotiated(self, until: str = "FINALIZED") -> Json:
        body = {"participant": "north", "dataset": "urn:hanse:north:patterns", "policy": self.offer}
        row = self.pair.consumer.post("/negotiations", body)
        return dict(self.pair.consumer.get(f"/negotiations/{quote(row['id'], safe='')}", wait=60, until=until))

    def agreed(self) -> str:
        if not self.agreement:
            row = self.negotiated()
            assert row["state"] == "FINALIZED", row["reason"]
            self.agreement = row["agreement_id"]
        return self.agreement

    def started(self) -> Json:
        row = self.pair.consumer.post("/transfers", {"agreement_id": self.agreed(), "format": "HttpData-PULL"})
        return dict(self.pair.consumer.get(f"/transfers/{quote(row['id'], safe='')}", wait=60, until="STARTED"))

    def address(self) -> Json:
        if not self.transfer:
            row = self.started()
            assert row["state"] == "STARTED", row["reason"]
            self.transfer = row["id"]
        return dict(self.pair.consumer.get(f"/transfers/{quote(self.transfer, safe='')}/address"))


def step_read(walk: Walk, step: Json) -> None:
    address = walk.address()
    if "query" in step:
        said = {"sql": walk.pair.filled(step["query"]), "purpose": step.get("purpose", "")}
        said |= {"epsilon": step["epsilon"]} if "epsilon" in step else {}
        got = fetch(f"{address['endpoint']}/query", address["ticket"], body=said)
    else:
        given = {name: text for name, text in step["read"].items() if text}
        got = fetch(f"{address['endpoint']}/datasets/patterns/rows?{urlencode(given)}", address["ticket"])
    if "refused" in step:
        assert isinstance(got, dict), f"expected {step['refused']}, got {got}"
        assert step["refused"] in ("*", got["code"]), got
        assert step.get("says", "") in got["detail"], got["detail"]
        return
    assert isinstance(got, tuple), got
    rows, end = got
    if "ends" in step:
        assert end["status"] == step["ends"]
        return
    assert end["status"] == "complete", end
    if "answer" in step:
        assert [list(row.values()) for row in rows.to_pylist()] == step["answer"]
    if "rows" in step:
        assert rows.num_rows == step["rows"]
    if "columns" in step:
        assert rows.column_names == step["columns"]


def fetch(url: str, ticket: str, *, body: Json | None = None) -> Json | tuple[pa.Table, Json]:
    """The rows and the end record, or the problem object."""
    headers = {"authorization": f"Bearer {ticket}"}
    request = urllib.request.Request(url, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            reader = pa.ipc.open_stream(answer.read())
            batches, end = [], {}
            while True:
                try:
                    batch, metadata = reader.read_next_batch_with_custom_metadata()
                except StopIteration:
                    break
                told = dict(metadata or {})
                end = next((json.loads(value) for value in told.values() if value.strip().startswith(b"{")), end)
                batches.append(batch)
            return pa.Table.from_batches(batches, schema=reader.schema), end
    except urllib.error.HTTPError as error:
        return dict(json.loads(error.read()))


def step_elsewhere(walk: Walk, step: Json) -> None:
    """A refusal before anything is read."""
    if step["at"] == "negotiation":
        if "waits" in step:
            assert walk.negotiated("REQUESTED")["state"] == "REQUESTED"
            records = walk.pair.owner.get("/audit/events", kind="DecisionNeeded", limit=50)["records"]
            assert any(step["waits"] in json.dumps(record) for record in records), records[:1]
            return
        row = walk.negotiated()
        assert row["state"] == "TERMINATED", row["state"]
        assert row["code"] == step["refused"] or step["refused"] in row["reason"], (row["code"], row["reason"])
        return
    row = walk.started()
    assert row["state"] == "TERMINATED", row["state"]
    assert row["code"] == step["refused"], (row["code"], row["reason"])
    assert any(part in row["reason"] for part in step["says"].split("|")), row["reason"]


def step_of_people(walk: Walk, step: Json) -> None:
    """What the owner or the consumer's people do, and what the ledger says afterwards."""
    pair = walk.pair
    if "record" in step:
        fact, value = step["record"]
        pair.owner.post("/facts", {"subject": pair.did, "fact": fact, "values": [value]})
    elif "forget" in step:
        pair.owner.delete("/facts", subject=pair.did, fact=step["forget"])
    elif "revoke" in step:
        pair.owner.post(f"/agreements/{quote(walk.agreed(), safe='')}/revoke", {"reason": step["revoke"]})
    elif "duties" in step:
        found = pair.owner.get(f"/agreements/{quote(walk.agreed(), safe='')}/duties")
        assert {one["path"]: one["state"] for one in found} == step["duties"], found
    else:
        who, path = (pair.consumer, step["report"]) if "report" in step else (pair.owner, step["done"])
        given = {"path": path, "evidence": "invoice 17, seen by the auditor"}
        try:
            told = who.post(f"/agreements/{quote(walk.agreed(), safe='')}/duties", given)
        except HanseError as error:
            if "refused" not in step:
                raise
            assert error.code == step["refused"]  # noqa: PT017  # some steps are to be refused, most are not
            return
        assert "refused" not in step
        assert told["told"] is True, told


@pytest.mark.parametrize("number", range(len(ENTRIES)), ids=[entry["pattern"] for entry in ENTRIES])
def test_a_pattern_decides_from_offer_to_answer(pair: Pair, number: int) -> None:
    entry = ENTRIES[number]
    policy = policy_of(pair, entry, number)
    body = {"policy": policy, "dataset": "patterns", "decide": entry.get("decide", "auto")}
    for fact, value in entry.get("facts", ()):
        pair.owner.post("/facts", {"subject": pair.did, "fact": fact, "values": [value]})
    if "unpublished" in entry:
        with pytest.raises(HanseError) as refused:
            pair.owner.post("/offers", body)
        assert entry["unpublished"] in {one["code"] for one in refused.value.facts["problems"]}
        return
    made = pair.owner.post("/offers", body)
    for case in entry.get("test", ()):
        try_out(pair, made["id"], case)
    walk = Walk(pair, {**policy, "target": made["dataset"]})
    try:
        for step in entry.get("steps", ()):
            if "at" in step:
                step_elsewhere(walk, step)
            elif "read" in step or "query" in step:
                step_read(walk, step)
            else:
                step_of_people(walk, step)
    finally:
        over(walk, made["id"])


def over(walk: Walk, offer: str) -> None:
    """Nothing stands on the dataset any more: groups of the next pattern would be refused beside those of this one."""
    walk.pair.owner.delete(f"/offers/{quote(offer, safe='')}")
    if walk.agreement:
        with suppress(HanseError):  # a pattern may have ended it
            walk.pair.owner.post(f"/agreements/{quote(walk.agreement, safe='')}/revoke", {"reason": "the test is over"})


def try_out(pair: Pair, offer: str, case: Json) -> None:
    """An action that no connector serves (training): what would be decided, by the management API."""
    if "reserve" in case:
        pair.owner.delete("/facts", subject="patterns", fact="ds:miningReserved") if case[
            "reserve"
        ] == "false" else None
        pair.owner.post("/facts", {"subject": "patterns", "fact": "ds:miningReserved", "values": [case["reserve"]]})
    asked = {"offer": offer, "participant": pair.did, "action": case["action"], "purpose": case.get("purpose", "")}
    found = pair.owner.post("/policies/test", asked)
    assert found["decision"]["permitted"] is case["permitted"], found
    assert case.get("says", "") in " ".join(found["explanation"]), found["explanation"]
