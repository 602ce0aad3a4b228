"""A new version under standing agreements: what its owner is told beforehand, and what is served of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import pytest_asyncio

from connector.offers.preview import OwnersView
from connector.offers.version_effects import VersionChecks
from connector.store.tables import DatasetVersion
from connector.usage.fact_collector import FactCollector
from policies.model import Policy
from tests.connector.dataplane.http.test_routes import ask
from tests.support import data, gate, provider
from tests.support.gate import atom
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADULTS = gate.agreement(atom("ds:row/age", "gteq", "18"), action="odrl:use")
MASKED = gate.agreement(duties=[gate.mask("truncate", "age", argument="1")], action="odrl:use")
UNITS = (
    atom("ds:entityKey", "eq", "pid"),
    atom("ds:dimension/g", "eq", "exact"),
    atom("ds:measure/m", "eq", "0..1000"),
)
CELLS = gate.agreement(atom("ds:minGroupSize", "gteq", "10"), *UNITS, action="odrl:use")
ROWS = gate.agreement(atom("ds:minGroupSize", "gteq", "10"), *UNITS[1:], action="odrl:use")  # each row is a unit
NOISE = gate.agreement(atom("ds:epsilonBudget", "lteq", "1"), *UNITS, action="odrl:use")
AGES = "SELECT i AS pid, CAST(i AS {}) AS age FROM range(100) r(i)"
COSTS = "SELECT {} AS pid, 'A' AS g, (CASE WHEN i = 100 THEN 777.0 ELSE 10.0 END)::{} AS m{} FROM range({}) r(i)"
FIRST = COSTS.format("i", "DOUBLE", "", 100)
OTHERS = "SELECT i AS pid, 'A' AS g, (CASE WHEN i < {} THEN 777.0 ELSE 10.0 END)::DOUBLE AS m FROM range({}, 100) r(i)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("versions")) as started:
        yield started


def written(folder: Path, name: str, rows: str) -> Path:
    path = folder / f"{name}.parquet"
    duckdb.connect().execute(f"COPY ({rows}) TO '{path}'")
    return path


async def following(
    running: Provider, path: Path, dataset: str, *, after: float = 10, digest: str = "v2"
) -> DatasetVersion:
    """The version that these files would be, registered so many seconds from now."""
    relation = data.relation("parquet", path, path.parent)
    profile = await running.profile(relation)
    return DatasetVersion(
        dataset_id=f"urn:hanse:{provider.OWNER}:{dataset}", digest=digest, source=provider._source(relation),
        created_at=time.time() + after, profile={"rows": profile["rows"], "columns": {}},
        schema=[{"name": one["name"], "type": one["type"]} for one in profile["columns"]],
    )  # fmt: skip


def view(running: Provider) -> OwnersView:
    known: Any = FactCollector.__new__(FactCollector)  # no question of these asks who somebody is
    return OwnersView(running.store, running.pool, known, name="clinic", mask_secret=b"m" * 32, memory_mb=512)


async def told(running: Provider, name: str, after: DatasetVersion) -> list[dict[str, str]]:
    """What the owner is told of a version that would follow the current one."""
    dataset = await running.store.read(lambda tx: tx.datasets.of(name))
    before = await running.store.read(lambda tx: tx.datasets.get_current(dataset))
    return await VersionChecks(running.store, view(running)).effects(dataset, before, after)


async def codes(running: Provider, folder: Path, policy: Policy, old: str, new: str) -> list[str]:
    """The same of a version with these rows, errors only."""
    name = f"d_{folder.name[-12:].strip('_').replace('-', '_').lower()}"
    await running.agree(policy, name=name, path=written(folder, "old", old))
    found = await told(running, name, await following(running, written(folder, "new", new), name))
    return [one["code"] for one in found if one["level"] == "error"]


CHANGES: dict[str, tuple[Policy, str, str, list[str]]] = {
    "a filtered column becomes a text": (ADULTS, AGES.format("INTEGER"), AGES.format("VARCHAR"), ["type_changed"]),
    "a filtered column becomes longer": (ADULTS, AGES.format("INTEGER"), AGES.format("BIGINT"), []),
    "one person more": (CELLS, FIRST, COSTS.format("i", "DOUBLE", "", 101), ["difference_too_small"]),
    "one person fewer": (CELLS, FIRST, COSTS.format("i", "DOUBLE", "", 99), ["difference_too_small"]),
    "six rows fewer": (ROWS, OTHERS.format(0, 0), OTHERS.format(0, 6), ["difference_too_small"]),
    "six rows with other values": (ROWS, OTHERS.format(0, 0), OTHERS.format(6, 0), ["difference_too_small"]),
    "ten rows with other values": (ROWS, OTHERS.format(0, 0), OTHERS.format(10, 0), []),
    "six persons with other values": (CELLS, OTHERS.format(0, 0), OTHERS.format(6, 0), ["difference_too_small"]),
    "ten persons with other values": (CELLS, OTHERS.format(0, 0), OTHERS.format(10, 0), []),
    "one person more, and other values for all": (
        CELLS, FIRST, COSTS.format("i", "DOUBLE", "", 101).replace("10.0", "11.0"), ["difference_too_small"]
    ),
    "one person more, under other ids": (
        CELLS, FIRST, COSTS.format("i + 1000", "DOUBLE", "", 101), ["difference_too_small"]
    ),
    "ten persons with other values, one of them much": (
        CELLS, OTHERS.format(0, 0), OTHERS.format(10, 0).replace("777.0", "10.0 + (i = 3)::INT * 900"),
        ["difference_too_small"],
    ),
    "one person and a column more": (
        CELLS, FIRST, COSTS.format("i", "DOUBLE", ", 1 AS extra", 101), ["difference_too_small"]
    ),
    "one person more, and a measure shorter": (
        CELLS, FIRST, COSTS.format("i", "DECIMAL(9,2)", "", 101), ["difference_too_small"]
    ),
    "units get names": (
        CELLS, FIRST, COSTS.format("'p' || i", "DOUBLE", "", 101), ["type_changed", "difference_unknown"]
    ),
    "units get names under noise": (NOISE, FIRST, COSTS.format("'p' || i", "DOUBLE", "", 101), ["type_changed"]),
    "a column more": (CELLS, FIRST, COSTS.format("i", "DOUBLE", ", 1 AS extra", 100), []),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
async def test_the_owner_is_told_what_a_version_would_do(running: Provider, tmp_path: Path, change: str) -> None:
    policy, old, new, expected = CHANGES[change]
    assert await codes(running, tmp_path, policy, old, new) == expected


async def test_a_version_is_held_against_all_before_it(running: Provider, tmp_path: Path) -> None:
    """A mistake that is taken back brings the first version again, and with it one person more."""
    first = written(tmp_path, "first", FIRST)
    await running.agree(CELLS, name="taken_back", path=first)
    mistake = await following(
        running, written(tmp_path, "mistake", COSTS.format("i", "DOUBLE", "", 90)), "taken_back", digest="mistake"
    )

    def renew(tx: Any) -> None:
        tx.datasets.add(mistake)
        tx.datasets.of("taken_back").version = "mistake"

    await running.store.write(renew)
    same = await following(running, first, "taken_back", after=20, digest="v1")
    assert [one for one in await told(running, "taken_back", same) if one["level"] == "error"] == []
    better_rows = COSTS.format("i", "DOUBLE", "", 101).replace("777.0", "11.0")  # or he would be most of the difference
    path = written(tmp_path, "better", better_rows)
    better = await following(running, path, "taken_back", after=20, digest="v3")
    (found,) = [one for one in await told(running, "taken_back", better) if one["level"] == "error"]
    assert found["code"] == "difference_too_small"
    assert "1 groups" in found["message"]
    first.unlink()
    (found,) = [one for one in await told(running, "taken_back", better) if one["code"] == "difference_unknown"]
    assert found["level"] == "warning"


SINCE: dict[str, tuple[Policy, str, float]] = {  # policy, the version that the agreement names, when the next came
    "filter": (ADULTS, "v1", 10),
    "mask": (MASKED, "v1", 10),
    "in the second of signing": (ADULTS, "v1", 0),
    "signed for a version that is gone": (ADULTS, "v0", 10),
    "signed before versions were kept": (ADULTS, "", 10),
}


@pytest.mark.parametrize("case", SINCE)
async def test_a_rule_is_not_kept_over_a_column_of_another_kind(running: Provider, tmp_path: Path, case: str) -> None:
    """Compared as texts, '9' is above '18': rows would be shown that the rule hides."""
    policy, signed_for, after = SINCE[case]
    name = f"ages_{case.replace(' ', '_')}"
    agreement = await running.agree(policy, name=name, path=written(tmp_path, "old", AGES.format("INTEGER")))
    asked = f'SELECT count(*) AS n FROM "clinic".{name}'
    assert (await ask(running, running.ticket(agreement), asked)).status_code == 200
    later = await following(running, written(tmp_path, "new", AGES.format("VARCHAR")), name, after=after)

    def renew(tx: Any) -> None:
        tx.agreements.of(agreement, role="provider").version = signed_for
        tx.datasets.add(later)
        tx.datasets.of(name).version = "v2"

    await running.store.write(renew)
    refused = await ask(running, running.ticket(agreement), asked)
    assert (refused.status_code, refused.json()["code"]) == (403, "schema_changed")
    gone = signed_for == "v0"
    assert ("is unknown here" if gone else "age is VARCHAR and was") in refused.json()["detail"]


async def test_the_same_rows_in_other_files_are_read_from_these(running: Provider, tmp_path: Path) -> None:
    """The owner has moved them and registered them again: the version is the same, and where it lies is not."""
    path = written(tmp_path, "before", AGES.format("INTEGER"))
    agreement = await running.agree(ADULTS, name="moved", path=path)
    asked = 'SELECT count(*) AS n FROM "clinic".moved'
    assert (await ask(running, running.ticket(agreement), asked)).status_code == 200
    moved = path.rename(tmp_path / "after.parquet")
    source = provider._source(data.relation("parquet", moved, tmp_path))

    def renew(tx: Any) -> None:
        tx.datasets.get_current(tx.datasets.of("moved")).source = source

    await running.store.write(renew)
    answer = await ask(running, running.ticket(agreement), asked)
    assert answer.status_code == 200, answer.text


async def test_a_group_whose_figure_is_made_of_few_now_is_told_as_lost(running: Provider, tmp_path: Path) -> None:
    few = FIRST.replace("10.0", "CASE WHEN i < 3 THEN 10.0 ELSE 0 END")
    await running.agree(CELLS, name="few", path=written(tmp_path, "all", FIRST))
    coming = await following(running, written(tmp_path, "few", few), "few")
    assert "in one of their figures" in next(
        one["message"] for one in await told(running, "few", coming) if one["code"] == "all_withheld"
    )
