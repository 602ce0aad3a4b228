"""Some of `make random-streams`: random data, policies and requests against plain DuckDB."""

from __future__ import annotations

from tests.load.random_streams import EACH, run

DATASETS = (11, 17, 21, 28, 30)  # that show much in their first seeds
SEEDS = [EACH * number + seed for number in DATASETS for seed in range(5)]
MET = (
    "places, whole", "places, by blocks", "values left in files, after the engine", "several readers", "a cursor",
    "values left in files, rows as they are", "prepared", "alternatives in filters", "mask hash", "codec zstd",
    "over Flight", "several endpoints",
)  # fmt: skip


async def test_random_streams_are_what_plain_duckdb_says() -> None:
    counted = await run(SEEDS)
    assert counted["different"] == 0
    assert counted["equal"] > 0.8 * len(SEEDS)
    assert [word for word in MET if not counted[word]] == []
