"""An owner may publish with an offer which share its groups leave out, rounded; those who agree are shown it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.dataplane.contract_routes import summary
from connector.federation.planner.model import TableInfo
from connector.federation.planner.planner import plan
from connector.federation.tables import table_of
from tests.connector.console.support import Console

FORM = """offer: urn:hanse:offer:north:towns
dataset: towns
who: {membership: active}
may: [query]
for: [dpv:ScientificResearch]
until: 2099-12-31T23:59:59+01:00
limits: {min_group: 5 per patient}
grid: {group_by: {town: exact}, measure: {age: 0..120}}
"""
SAID = (
    "north reports that its groups leave out 0 to 10 per cent of all its rows and 10 to 20 per cent of all its groups"
)


def people(path: Path, *, large: int, small: int) -> None:
    """So many towns of twenty people, and so many of four."""
    towns = [f"t{town}" for town in range(large) for _ in range(20)]
    towns += [f"s{town}" for town in range(small) for _ in range(4)]
    ages = [30 + number % 20 for number in range(len(towns))]
    pq.write_table(pa.table({"patient": range(len(towns)), "town": towns, "age": ages}), path)


async def published(desk: Console, path: Path, **more: Any) -> tuple[int, dict[str, Any]]:
    owner = {"authorization": f"Bearer {await desk.token('owner', 'read')}"}
    async with desk.parts.pool:
        made = await desk.http.post("/api/v1/datasets", json={"name": "towns", "path": str(path)}, headers=owner)
        assert made.status_code == 201
        answer = await desk.http.post("/api/v1/offers", json={"form": FORM, **more}, headers=owner)
    return answer.status_code, answer.json()


async def shown(desk: Console) -> TableInfo:
    """What a party that has agreed to the offer is shown of the dataset."""
    row = await desk.parts.store.read(lambda tx: tx.datasets.get_offer("urn:hanse:offer:north:towns"))
    assert row is not None
    checked = await desk.parts.offers.check(form=FORM, offer_id=row.id)
    agreement: Any = SimpleNamespace(digest=row.digest, id="a")
    held: Any = SimpleNamespace(
        agreement=agreement, dataset=checked.dataset, version=checked.version, contracts=checked.contracts,
        passed_on=frozenset(),
    )  # fmt: skip
    told: Mapping[str, Any] = summary(held, owner="north", left_out=await desk.parts.reads.grants.left_out(held))
    holding: Any = SimpleNamespace(id="a", provider="did:web:north", dataset_id=checked.dataset.id)
    return table_of(told, holding, "https://w3id.org/dpv#ScientificResearch")


async def test_what_is_published_is_in_the_plan_of_those_who_ask(desk: Console, tmp_path: Path) -> None:
    people(tmp_path / "towns.parquet", large=85, small=15)
    status, offer = await published(desk, tmp_path / "towns.parquet", publish_left_out=True)
    assert (status, offer["left_out"]["shares"]) == (201, {"/permission/0": {"rows": 0, "groups": 10}})
    tables = {("north", "towns"): await shown(desk)}
    made = plan("SELECT count(*) AS n FROM north.towns", tables)
    assert (made.withheld, made.left_out()[-1]) == ("some", SAID)
    filtered = plan("SELECT count(*) AS n FROM north.towns WHERE town = 't1'", tables)
    assert filtered.withheld == "possibly"  # whether any group of those is left out, the share does not say
    record = (await desk.parts.store.read(lambda tx: tx.datasets.get_offer(offer["id"]))).left_out
    assert record == offer["left_out"]


async def test_nothing_is_published_unasked(desk: Console, tmp_path: Path) -> None:
    people(tmp_path / "towns.parquet", large=85, small=15)
    status, offer = await published(desk, tmp_path / "towns.parquet")
    assert (status, offer["left_out"]) == (201, None)
    made = plan("SELECT count(*) AS n FROM north.towns", {("north", "towns"): await shown(desk)})
    assert (made.withheld, len(made.left_out())) == ("possibly", 1)


@pytest.mark.parametrize(("large", "small"), [(9, 1), (11, 2), (30, 3)])
async def test_a_share_that_one_group_decides_is_refused(desk: Console, tmp_path: Path, large: int, small: int) -> None:
    people(tmp_path / "towns.parquet", large=large, small=small)
    status, problem = await published(desk, tmp_path / "towns.parquet", publish_left_out=True)
    assert (status, problem["code"]) == (400, "left_out_tells")
    assert await desk.parts.store.read(lambda tx: tx.datasets.get_offer("urn:hanse:offer:north:towns")) is None
