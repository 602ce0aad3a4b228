"""What owners see before others do: what groups leave out, what a partner would see, what a new version changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse.errors import BadInput, Conflict, HanseError

from tests.e2e.conftest import Running

FORM = """
offer: urn:hanse:offer:north:visits
dataset: visits
who: {membership: active, country: NORDIC}
may: [query]
for: [dpv:ResearchAndDevelopment]
until: 2099-12-31T23:59:59+01:00
columns: {hide: [name]}
limits: {min_group: 5 per person}
grid: {group_by: {town: exact, age: 10}, measure: {cost: 0..100}}
decide: auto
"""
ROWS = """
offer: urn:hanse:offer:north:visits-rows
dataset: visits
who: {country: NORDIC}
may: [query, stream]
rows: town in (Lund, Visby)
columns: {hide: [name], hash: [person]}
decide: auto
"""


def visits(*, extra: int = 0, cost: int = 50) -> pa.Table:
    """Lund has forty persons, Visby eight, Kiruna three; `extra` more in Lund."""
    towns = ["Lund"] * (40 + extra) + ["Visby"] * 8 + ["Kiruna"] * 3
    return pa.Table.from_pylist(
        [
            {
                "person": f"p{n:03d}" if n < 200 else "",
                "town": town,
                "age": 30 + n % 20,
                "cost": cost + n % 10,
                "name": "x",
            }
            for n, town in enumerate(towns)
        ]
    )


@pytest.fixture(scope="module")
def owner(running: Running) -> Any:
    api = running.story.api("north")
    pq.write_table(visits(), folder(running) / "visits.parquet")
    api.post("/datasets", {"name": "visits", "path": str(folder(running) / "visits.parquet")})
    return api


def folder(running: Running) -> Path:
    return running.space.directory / "data" / "north"


def test_publication_says_what_the_groups_leave_out(owner: Any) -> None:
    (found,) = owner.post("/policies/withheld", {"form": FORM})
    # Lund in its thirties and forties, Visby and Kiruna likewise: of 51 rows the groups under five go.
    assert (found["rows"], found["min_group"], found["unit"]) == (51, 5, "person")
    by_town = next(one for one in found["dimensions"] if one["column"] == "town")
    assert (by_town["alone"]["groups"], by_town["alone"]["groups_lost"], by_town["alone"]["rows_lost"]) == (3, 1, 3)
    assert by_town["without"]["rows_lost"] == 0
    assert found["rows_lost"] >= 3
    assert f"{found['rows_lost']:,} of 51 rows" in found["says"]


def test_a_preview_shows_what_a_partner_would_see_and_is_recorded(owner: Any, running: Running) -> None:
    owner.post("/offers", {"form": ROWS})
    forge, south = (running.space.members[name].did for name in ("forge", "south"))
    seen = owner.get("/datasets/visits/preview", **{"as": forge})
    assert seen["permitted"] is True
    assert seen["hidden"] == ["name"]
    assert {one["name"]: one["mask"] for one in seen["columns"]}["person"] == "hash"
    assert seen["columns_shown"] == ["person", "town", "age", "cost"]
    assert len(seen["rows"]) == 20
    assert all(len(row[0]) == 64 and row[1] in ("Lund", "Visby") for row in seen["rows"])
    stands = {one["path"]: one["result"] for one in seen["rules"]}
    assert stands["/permission/0/constraint/0"] == "satisfied"
    italy = owner.get("/datasets/visits/preview", **{"as": south})
    assert (italy["permitted"], italy["rows"]) == (False, [])
    assert sum("observed IT" in line for line in italy["explanation"] if line.startswith("Because")) == 1
    with pytest.raises(BadInput, match="the DID of a party, got 'forge'"):
        owner.get("/datasets/visits/preview", **{"as": "forge"})
    with pytest.raises(BadInput, match="the DID of a party, got 'forge'"):
        owner.post("/policies/test", {"form": ROWS, "participant": "forge"})
    events = owner.get("/audit/events", kind="ReadStarted", limit=20)["records"]
    assert any(forge in str(record) and "preview" in str(record) for record in events)


def test_a_preview_of_an_aggregate_only_offer_shows_groups(owner: Any, running: Running) -> None:
    owner.post("/offers", {"form": FORM})
    asked = {"as": running.space.members["forge"].did, "offer": "urn:hanse:offer:north:visits"}
    seen = owner.get("/datasets/visits/preview", **asked, purpose="dpv:ScientificResearch")
    assert (seen["permitted"], seen["aggregate"]) == (True, True)
    assert {row[0] for row in seen["rows"]} <= {"Lund", "Visby"}
    refused = owner.get("/datasets/visits/preview", **asked, purpose="dpv:Marketing")
    assert (refused["permitted"], refused["rows"]) == (False, [])


def renewed(owner: Any, running: Running, name: str, table: pa.Table, **more: Any) -> Any:
    path = folder(running) / f"{name}.parquet"
    pq.write_table(table, path)
    return owner.post("/datasets/visits/versions", {"path": str(path), **more})


def test_a_version_is_held_against_what_stands_on_the_dataset(owner: Any, running: Running) -> None:
    assert {one["dataset"] for one in owner.get("/offers")} >= {"urn:hanse:north:visits"}
    with pytest.raises(Conflict) as refused:
        renewed(owner, running, "one-more", visits(extra=1))
    problems = refused.value.facts["problems"]
    few = [one for one in problems if one["code"] == "difference_too_small"]
    assert [(one["on"], one["id"], one["level"]) for one in few] == [("offer", "urn:hanse:offer:north:visits", "error")]
    with pytest.raises(HanseError) as gone:
        renewed(owner, running, "no-town", visits().drop_columns(["town"]))
    named = {one["id"] for one in gone.value.facts["problems"] if one["level"] == "error"}
    assert named == {"urn:hanse:offer:north:visits", "urn:hanse:offer:north:visits-rows"}
    assert "town" in " ".join(one["message"] for one in gone.value.facts["problems"])
    dear = renewed(owner, running, "dear", visits(cost=500), accept=True)
    assert "out_of_bounds" in {one["code"] for one in dear["affected"]}
