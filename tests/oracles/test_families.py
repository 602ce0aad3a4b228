"""Some seeds of each family; `make random-queries` and its like try many more."""

from __future__ import annotations

import pytest

from tests.oracles import federated, name_worlds, secrets, streams, versions
from tests.oracles.outcome import Outcome
from tests.support import postgres

# Of those that tell of few in coarser groups than cells alone there is one among 250.
TELLING = [*range(50), 190, 336, 488, 868]


def test_random_queries_meet_no_secret() -> None:
    outcome = Outcome()
    secrets.run(range(300), outcome)
    assert outcome.found == []
    assert outcome.ended["answered"] >= 200, outcome.ended  # most of the grammar must really run
    assert outcome.ended["compared"] >= 150, outcome.ended


@pytest.mark.parametrize(("world", "count", "equal"), [("gate", 300, 30), ("shut", 300, 30), ("owners", 400, 40)])
def test_random_questions_about_names_are_answered_and_recorded_as_the_engine_reads_them(
    world: str, count: int, equal: int
) -> None:
    outcome = Outcome()
    name_worlds.run(range(count), outcome, over=[world])
    assert outcome.found == []
    assert outcome.ended["equal"] >= equal, outcome.ended


def test_random_questions_are_answered_like_one_database_with_all_the_data() -> None:
    outcome = Outcome()
    federated.run(range(80), outcome)
    assert outcome.found == []
    assert outcome.ended["equal"] >= 60, outcome.ended


def test_what_tells_of_few_is_always_found() -> None:
    outcome = Outcome()
    versions.run(TELLING, outcome)
    assert outcome.found == []
    assert outcome.ended["tells of few, found"] >= 8, outcome.ended
    assert outcome.ended["tells of few nowhere, nothing found"] >= 8, outcome.ended


STREAMS = {  # seeds by kind: each shows what no other of these does, or is quick
    "http": "90 95 99 120 274 275 440 560 564 3250 3251",
    "formats": "124 129 278 442",
    "flight": "52 126 127 277 338 561",
    "budget": "135 337 392",
    "broken": "97 121 123 393 562",
    "loader": "91 174 273 3255",
    "several": "128 276 391 398",
    "between": "98 248 271 399 441",
    "woven": "122 125 333",
    "together": "272 279 394 951",
}
MET = (
    "rows as they are", "rows by the engine", "several readers", "a cursor", "prepared",
    "alternatives in filters", "mask hash", "codec zstd",
    "over flight", "over sql", "several endpoints", "files: arrow_ipc", "files: hive", "ended as quota",
    "gone on after breaks", "revoked between passes", "other readers go on", "prepared blocks",
    "prepared blocks and others", "two consumers", "other forms", "over csv", "over parquet", "csv ended as quota",
    "version between passes", "a cursor of another consumer", "together: refused quota_spent", "over TLS",
    "names of places", "made as coded", "made as groups", "made as csv", "made as wide",
    *(["made as postgres"] if postgres.binaries() else []),
)  # fmt: skip


def test_random_streams_are_what_plain_duckdb_says() -> None:
    seeds = sorted((int(seed), kind) for kind, some in STREAMS.items() for seed in some.split())
    outcome = Outcome()
    streams.run_kinds(seeds, outcome)  # those of a dataset in a row: it is written once
    assert outcome.found == []
    assert outcome.ended["equal"] > 0.8 * len(seeds)
    assert [word for word in MET if not outcome.ended[word]] == []
