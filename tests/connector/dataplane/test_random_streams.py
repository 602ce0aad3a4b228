"""Some of `make random-streams`: random data, policies and requests against plain DuckDB."""

from __future__ import annotations

from tests.load.random_streams import EACH, run
from tests.support import postgres

CASES = {  # by kind, the datasets that show much in their first seeds, and how many of these
    "http": {49: 5, 51: 5, 6: 5, 33: 4, 45: 2, 41: 1, 1000: 2, 1180: 2, 1099: 2, 1132: 2, 1146: 2},
    "flight": {49: 3, 33: 3},
    "budget": {51: 2, 33: 2},
    "broken": {49: 3, 33: 3},
    "loader": {51: 2, 33: 3},
    "formats": {51: 5, 33: 5},
    "several": {51: 2, 33: 3},
    "between": {51: 3, 33: 3},
    "woven": {51: 1, 33: 2},
    "together": {51: 2, 33: 3},
}
SEEDS = sorted(  # those of a dataset in a row: it is written once
    (EACH * number + seed, kind) for kind, most in CASES.items() for number in most for seed in range(most[number])
)
MET = (
    "places, whole", "places, by blocks", "values left in files, after the engine", "several readers", "a cursor",
    "values left in files, rows as they are", "prepared", "alternatives in filters", "mask hash", "codec zstd",
    "over Flight", "several endpoints", "files: arrow_ipc", "files: hive", "ended as quota",
    "gone on after breaks", "revoked", "other readers go on", "prepared blocks", "prepared blocks and others",
    "two consumers", "other forms", "format csv", "format parquet",
    "csv ended as quota", "version between passes", "a cursor of another consumer",
    "together: refused quota_spent", "over TLS", "made as coded", "made as groups", "made as texts", "made as wide",
    *(["made as postgres"] if postgres.binaries() else []),
)  # fmt: skip


async def test_random_streams_are_what_plain_duckdb_says() -> None:
    counted = await run(SEEDS)
    assert counted["different"] == 0
    assert counted["equal"] > 0.8 * len(SEEDS)
    assert [word for word in MET if not counted[word]] == []
