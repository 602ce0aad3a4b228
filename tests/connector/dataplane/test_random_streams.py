"""Some of `make random-streams`: random data, policies and requests against plain DuckDB."""

from __future__ import annotations

from tests.load.random_streams import EACH, run
from tests.support import postgres

CASES = {  # by kind, the datasets and which of their seeds: each shows what no other of these does, or is quick
    "http": {
        6: "12", 33: "023", 41: "0", 45: "01", 49: "124", 51: "01234", 1000: "1", 1099: "1", 1132: "1", 1146: "1",
        1180: "1",
    },
    "flight": {33: "1", 49: "1"},
    "budget": {33: "01", 51: "0"},
    "broken": {33: "0", 49: "01"},
    "loader": {33: "2", 51: "1"},
    "formats": {33: "234", 51: "234"},
    "several": {33: "012", 51: "0"},
    "between": {33: "012", 51: "2"},
    "woven": {33: "01", 51: "0"},
    "together": {33: "012", 51: "01"},
}  # fmt: skip
SEEDS = sorted(  # those of a dataset in a row: it is written once
    (EACH * number + int(seed), kind)
    for kind, some in CASES.items()
    for number, seeds in some.items()
    for seed in seeds
)
MET = (
    "rows as they are", "rows by the engine", "several readers", "a cursor",
    "prepared", "alternatives in filters", "mask hash", "codec zstd",
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
