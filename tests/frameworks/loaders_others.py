"""Hugging Face, Ray and Spark for real, each through the loader suite; Spark and Ray beside DuckDB on twelve splits."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from datetime import time as time_of_day
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import duckdb
import hanse
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from hanse.client import Dataset
from hanse.errors import BadInput, QuotaSpent, Unreachable
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.suites import loaders
from tests.suites.loaders import BLOCK_ROWS, BLOCKS, ROWS, Case, Rows
from tests.support.gate import agreement, atom
from tests.support.served import Owner

QUESTION = "SELECT label, count(*) AS n, sum(id) AS total, max(caption) AS last FROM rows GROUP BY label ORDER BY label"


@pytest.fixture(scope="module")
def expected() -> list[tuple[Any, ...]]:
    rows = loaders.table()
    found = duckdb.connect().sql(QUESTION).fetchall()
    assert rows.num_rows == ROWS
    return found


def _hf(dataset: Dataset, **options: Any) -> Rows:
    return list(dataset.to_hf(**options))


def test_hugging_face_passes_the_suite(training: Dataset, owner: Owner) -> None:
    loaders.check(Case("hf", _hf, ordered=True), training, owner)


def test_hugging_face_goes_on_from_its_state_twice_with_every_row_once(training: Dataset) -> None:
    seen: list[int] = []
    state = None
    for pause in (13, 1, 777):
        dataset = training.to_hf(columns=["id"], seed=2)
        if state is not None:
            dataset.load_state_dict(state)
        examples = iter(dataset)
        seen += [next(examples)["id"] for _ in range(pause)]
        state = dataset.state_dict()
    dataset = training.to_hf(columns=["id"], seed=2)
    dataset.load_state_dict(state)
    seen += [example["id"] for example in dataset]
    assert seen == loaders.sequence(2)


HF = {"columns": ["id"], "seed": 3}


@pytest.mark.parametrize(
    ("taken", "loaded"),
    [
        ({**HF, "epoch": 3}, HF),
        ({**HF, "seed": 4}, HF),
        ({**HF, "where": "id < 1500"}, HF),
        ({"seed": 3}, HF),
        ({"columns": ["id"]}, HF),
    ],
    ids=["epoch", "seed", "condition", "columns", "stored order"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_hugging_face_refuses_a_state_of_another_order(
    training: Dataset, taken: dict[str, Any], loaded: dict[str, Any], wrapped: bool
) -> None:
    """Numbers of blocks and examples alone would fit, and rows be lost and doubled."""

    def made(options: dict[str, Any]) -> Any:
        found = training.to_hf(**options)
        return found.map(lambda row: row).batch(2) if wrapped else found

    other, dataset = made(taken), made(loaded)
    next(iter(other))
    dataset.load_state_dict(other.state_dict())
    with pytest.raises(BadInput, match=r"expected a state of .*'seed': .*, got one of .*with the columns"):
        list(dataset)


@pytest.mark.parametrize("wrapped", [False, True])
def test_hugging_face_refuses_a_state_of_terms_that_show_other_rows(
    training: Dataset, owner: Owner, wrapped: bool
) -> None:
    """So many examples of a block would be others; what wraps it begins with an earlier state and counts itself."""

    def made(of: Dataset) -> Any:
        return of.to_hf(**HF).batch(2) if wrapped else of.to_hf(**HF)

    filtered = owner.dataset(agreement(atom("ds:row/label", "eq", "2"), action="odrl:use"), name="training")
    for taken, loaded in ((training, filtered), (filtered, training)):
        other, dataset = made(taken), made(loaded)
        next(iter(other))
        dataset.load_state_dict(other.state_dict())
        with pytest.raises(BadInput, match="under terms that show the same"):
            list(dataset)


@pytest.mark.parametrize(
    "wrong", [{"shard_example_idx": BLOCK_ROWS + 1}, {"shard_example_idx": -5}, {"shard_idx": "1"}]
)
def test_hugging_face_refuses_a_state_of_a_place_that_is_none(training: Dataset, wrong: dict[str, Any]) -> None:
    dataset = training.to_hf(**HF)
    next(iter(dataset))
    state = dataset.state_dict()
    state["examples_iterable"].update(wrong)
    dataset.load_state_dict(state)
    with pytest.raises(BadInput, match="expected"):
        list(dataset)


def test_hugging_face_names_a_column_of_days_that_python_has_not(owner: Owner, tmp_path: Path) -> None:
    late = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"id": [1], "late": late}), tmp_path / "late.parquet")
    dataset = owner.dataset(name="late", path=tmp_path / "late.parquet")
    assert list(dataset.to_hf(columns=["id"])) == [{"id": 1}]
    with pytest.raises(BadInput, match="in column late that Python can represent"):
        list(dataset.to_hf())


def test_hugging_face_refuses_a_state_of_other_blocks(training: Dataset) -> None:
    whole = training.to_hf(**HF)
    parts = [split_dataset_by_node(whole, rank=rank, world_size=2) for rank in range(2)]
    shuffled = [whole.shuffle(seed=seed, buffer_size=1) for seed in range(2)]
    generated = datasets.IterableDataset.from_generator(
        lambda at: ({"id": one} for one in at), gen_kwargs={"at": [*"ab"]}
    )
    for other, dataset in [tuple(parts), tuple(shuffled), (parts[0], whole), (generated, whole)]:
        next(iter(other))
        dataset.load_state_dict(other.state_dict())
        with pytest.raises(BadInput, match="expected a state of"):
            list(dataset)


def test_hugging_face_reads_an_epoch_with_one_read(owner: Owner) -> None:
    once = owner.dataset(agreement(atom("odrl:count", "lteq", "1"), action="odrl:use"), name="training")
    examples = once.to_hf(columns=["id"], seed=2)
    assert [example["id"] for example in examples] == loaders.sequence(2)
    with pytest.raises(QuotaSpent):
        next(iter(examples))


@pytest.mark.parametrize("world", [2, 5, 13], ids=["even", "uneven", "more than blocks"])
def test_ranks_of_hugging_face_read_their_own_blocks_alone(owner: Owner, world: int) -> None:
    """As many rows as there are may leave: who reads another's takes them from it."""
    whole = owner.dataset(agreement(atom("ds:rowQuota", "lteq", str(ROWS)), action="odrl:use"), name="training")
    dataset = whole.to_hf(columns=["id"], seed=2, world=world)
    parts = [list(split_dataset_by_node(dataset, rank=rank, world_size=world)) for rank in range(world)]
    expected = loaders.sequence(2)
    blocks = [expected[at : at + BLOCK_ROWS] for at in range(0, ROWS, BLOCK_ROWS)]
    for rank, part in enumerate(parts):
        assert [example["id"] for example in part] == [row for block in blocks[rank::world] for row in block]


def test_ranks_of_hugging_face_that_would_read_all_rows_are_told(training: Dataset) -> None:
    with pytest.warns(UserWarning, match=r"each of 5 ranks will read all rows .*to_hf\(world=5\)"):
        split_dataset_by_node(training.to_hf(**HF), rank=1, world_size=5)
    with pytest.raises(BadInput, match="expected world to be at least 1, got 0"):
        training.to_hf(world=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"where": "id % 500 < 100 AND id > 700"}], ids=["", "blocks without rows"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_ranks_of_hugging_face_go_on_from_their_states(
    training: Dataset, workers: int, options: dict[str, Any], epoch: int
) -> None:
    seen: list[int] = []
    for rank in range(5):

        def made(rank: int = rank) -> Any:
            dataset = split_dataset_by_node(training.to_hf(**HF, **options, world=5), rank=rank, world_size=5)
            dataset.set_epoch(epoch)
            return StatefulDataLoader(dataset, batch_size=7, num_workers=workers)

        loader = made()
        given = [number for batch in itertools.islice(loader, 11) for number in batch["id"].tolist()]
        then = made()
        then.load_state_dict(loader.state_dict())
        seen += given + [number for batch in then for number in batch["id"].tolist()]
    expected = [n for n in range(ROWS) if not options or (n % 500 < 100 and n > 700)]
    assert sorted(seen) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_error_knows_comes_from_hugging_face_in_a_worker_too(owner: Owner, workers: int) -> None:
    once = owner.dataset(agreement(atom("odrl:count", "lteq", "1"), action="odrl:use"), name="training")
    examples = once.to_hf(columns=["id"])
    assert len(list(examples)) == ROWS
    with pytest.raises(QuotaSpent) as caught:
        list(DataLoader(examples, batch_size=10, num_workers=workers))
    assert (caught.value.code, caught.value.rule) == ("count_spent", "/permission/0/constraint/0")
    assert caught.value.facts["dataset"] == once.name
    assert len(str(caught.value).splitlines()) == 1


def test_an_example_of_hugging_face_that_cannot_be_sent_is_an_error_in_the_loop(training: Dataset) -> None:
    examples = training.to_hf(columns=["id"]).map(lambda _: {"look": lambda: None})
    with pytest.raises(BadInput, match="expected a batch that can be pickled"):
        list(DataLoader(examples, batch_size=None, num_workers=1, timeout=60))


@pytest.mark.parametrize("workers", [0, 3])
def test_hugging_face_goes_on_in_epochs_and_parts_of_its_own(training: Dataset, workers: int) -> None:
    def made() -> Any:
        dataset = split_dataset_by_node(training.to_hf(**HF), rank=1, world_size=2)
        dataset.set_epoch(2)
        return StatefulDataLoader(dataset, batch_size=10, num_workers=workers)

    whole = [batch["id"].tolist() for batch in made()]
    assert len({number for batch in whole for number in batch}) == ROWS // 2
    first = made()
    given = [batch["id"].tolist() for _, batch in zip(range(40), first, strict=False)]
    then = made()
    then.load_state_dict(first.state_dict())
    assert sorted(given + [batch["id"].tolist() for batch in then]) == sorted(whole)


def test_hugging_face_gives_every_row_once_in_epochs_of_its_own_and_ours_anew(training: Dataset) -> None:
    dataset = training.to_hf(columns=["id"], seed=2)
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        assert sorted(example["id"] for example in dataset) == list(range(ROWS))
        ours = training.to_hf(columns=["id"], seed=2, epoch=epoch)
        assert [example["id"] for example in ours] == loaders.sequence(2, epoch)


def test_hugging_face_has_no_examples_of_a_dataset_without_rows(owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    pq.write_table(loaders.table().slice(0, 0), path)
    assert list(owner.dataset(name="none", path=path).to_hf()) == []


def test_hugging_face_names_a_column_of_a_type_that_it_does_not_have(owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "map.parquet"
    pq.write_table(pa.table({"id": [1], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "x": [2]}), path)
    dataset = owner.dataset(name="map", path=path)
    said = r"got m of map<string, int64.*leave it out with columns=\['id', 'x'\]"
    with pytest.raises(BadInput, match=said):
        dataset.to_hf()
    assert list(dataset.to_hf(columns=["id", "x"])) == [{"id": 1, "x": 2}]


@pytest.mark.parametrize("ask", ["hf", "ray", "spark", "a task of ray", "a partition of spark"])
def test_an_owner_that_is_down_is_waited_for_as_long_as_was_said(training: Dataset, ask: str) -> None:
    from hanse.loaders import ray, spark

    plan, down = training.plan(), Dataset(hanse.connect("http://127.0.0.1:1", "token"), training._access)
    session = SimpleNamespace(dataSource=SimpleNamespace(register=id))
    asked: dict[str, Callable[[], Any]] = {
        "hf": lambda: down.to_hf(patience=0.3),
        "ray": lambda: down.to_ray(patience=0.3),
        "spark": lambda: down.to_spark(session, patience=0.3),
        "a task of ray": lambda: list(ray.RayDatasource(down, plan, patience=0.3).get_read_tasks(1)[0]()),
        "a partition of spark": lambda: list(spark.Reader(down, plan, 0.3, 1).read(spark.BlockPartition((0,)))),
    }
    since = time.monotonic()
    with pytest.raises(Unreachable):
        asked[ask]()
    assert 0.2 < time.monotonic() - since < 20


@pytest.mark.parametrize(
    ("ask", "given", "told"),
    [
        ("to_ray", {"tasks": -1}, "expected tasks to be at least 0, got -1"),
        ("to_ray", {"tasks": 2.0}, "expected tasks to be a whole number, got 2.0"),
        ("to_spark", {"partitions": 0}, "expected partitions to be at least 1, got 0"),
        ("to_spark", {"partitions": "8"}, "expected partitions to be a whole number, got '8'"),
    ],
)
def test_a_number_of_tasks_that_is_none_is_told_before_anything_is_asked(
    training: Dataset, ask: str, given: dict[str, Any], told: str
) -> None:
    nobody = Dataset(hanse.connect("http://127.0.0.1:1", "token"), training._access)
    session = () if ask == "to_ray" else (None,)
    with pytest.raises(hanse.errors.BadInput, match=told):
        getattr(nobody, ask)(*session, **given)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": _environment()})
    yield ray
    ray.shutdown()


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": os.getcwd()}


def _ray(dataset: Dataset, **options: Any) -> Rows:
    return [dict(row) for row in dataset.to_ray(tasks=4, **options).iter_rows()]


def test_ray_passes_the_suite(ray_session: Any, training: Dataset, owner: Owner) -> None:
    loaders.check(Case("ray", _ray), training, owner)


def test_ray_reads_twelve_splits_and_agrees_with_duckdb(
    ray_session: Any, training: Dataset, expected: list[tuple[Any, ...]]
) -> None:
    from hanse.loaders.ray import RayDatasource

    source = RayDatasource(training, training.plan(), tasks=12)
    assert len(source.get_read_tasks(1)) == BLOCKS
    found = ray_session.data.read_datasource(source)
    rows = found.to_arrow_refs() if hasattr(found, "to_arrow_refs") else []

    rows = pa.concat_tables(ray_session.get(rows))
    assert duckdb.connect().sql(QUESTION).fetchall() == expected
    assert rows.num_rows == ROWS


def test_ray_knows_the_columns_of_what_has_no_rows(
    ray_session: Any, training: Dataset, owner: Owner, tmp_path: Path
) -> None:
    path = tmp_path / "none.parquet"
    pq.write_table(loaders.table().slice(0, 0), path)
    nothing = owner.dataset(name="ray-none", path=path)
    for found in (nothing.to_ray(), nothing.to_ray(tasks=3), training.to_ray(where="id < 0", tasks=3)):
        assert found.schema().names == loaders.table().column_names
        assert found.count() == found.sort("id").count() == found.select_columns(["id"]).count() == 0


def test_a_task_of_ray_gives_the_same_pieces_where_its_stream_was_reopened(
    training: Dataset, owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hanse.loaders.ray import RayDatasource

    path = tmp_path / "uneven.parquet"
    texts = ["x" * (number % 997) for number in range(60_000)]
    pq.write_table(pa.table({"id": range(60_000), "text": texts}), path, row_group_size=1_000)
    dataset = owner.dataset(name="ray-uneven", path=path)
    task = RayDatasource(dataset, dataset.plan()).get_read_tasks(1)[0]
    whole = [(piece.num_rows, piece.nbytes) for piece in task()]
    for after in (200_000, 1_700_000, 9_000_000):
        cuts = iter([after])
        monkeypatch.setattr(owner.link, "cut_after", lambda cuts=cuts: next(cuts, None))
        assert [(piece.num_rows, piece.nbytes) for piece in task()] == whole
    assert len(whole) > 1


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    place = tmp_path_factory.mktemp("spark")
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.getcwd(), "SPARK_LOCAL_DIRS": str(place)}
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.task.maxFailures", "1")
        .config("spark.sql.warehouse.dir", str(place / "warehouse"))
        .getOrCreate()
    )
    yield session
    session.stop()


def test_spark_passes_the_suite(spark: Any, training: Dataset, owner: Owner) -> None:
    def rows(dataset: Dataset, **options: Any) -> Rows:
        return [row.asDict() for row in dataset.to_spark(spark, partitions=4, **options).collect()]

    loaders.check(Case("spark", rows), training, owner)


def test_spark_reads_twelve_splits_and_agrees_with_duckdb(
    spark: Any, training: Dataset, expected: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    frame = training.to_spark(spark, partitions=12)
    assert frame.rdd.getNumPartitions() == BLOCKS
    frame.createOrReplaceTempView("rows")
    assert [tuple(row) for row in spark.sql(QUESTION).collect()] == expected


MOMENTS = {
    "id": pa.array([1, 2], pa.int64()),
    "ns": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
    "zone": pa.array([1_700_000_000_123, None], pa.timestamp("ms", tz="Europe/Berlin")),
    "time": pa.array([3_600_000_001, None], pa.time64("us")),
    "in": pa.array([[{"at": 1_700_000_000_123_456_789}], None], pa.list_(pa.struct([("at", pa.timestamp("ns"))]))),
}


def test_spark_has_moments_of_every_unit(spark: Any, owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "moments.parquet"
    pq.write_table(pa.table(MOMENTS), path)
    dataset = owner.dataset(name="spark-moments", path=path)
    moment = datetime(2023, 11, 14, 22, 13, 20, 123456)  # of no zone
    first, second = sorted(dataset.to_spark(spark).collect(), key=lambda row: row["id"])
    assert (first["ns"], first["in"][0]["at"], first["time"]) == (moment, moment, time_of_day(1, 0, 0, 1))
    assert first["zone"].timestamp() == 1_700_000_000.123
    assert [second[name] for name in MOMENTS] == [2, None, None, None, None]


NS = pa.timestamp("ns")


@pytest.mark.parametrize(
    "kind",
    [
        NS,
        pa.timestamp("ns", tz="Europe/Berlin"),
        pa.list_(NS),
        pa.struct([("at", NS), pa.field("no", pa.int32(), nullable=False)]),
        pa.map_(NS, pa.list_(pa.struct([("at", NS)]))),
    ],
    ids=str,
)
def test_moments_before_1970_are_cut_to_microseconds_as_those_after_it_are(kind: pa.DataType) -> None:
    """As DuckDB does, and Python with Hugging Face's examples."""
    from hanse.loaders.spark import to_spark_types

    numbers = [None, -1, -999, -1000, 0, None, 999, 1000, 1_700_000_000_123_456_789, -(2**63), 2**63 - 1]
    cut = [number if number is None else number // 1000 for number in numbers]
    whole = pa.record_batch({"t": _holding(kind, numbers)})
    for batch, expected in [(whole, cut), (whole.slice(3, 4), cut[3:7]), (whole.slice(1, 0), [])]:
        found = to_spark_types(batch)["t"]
        found.validate(full=True)
        assert found.equals(_holding(found.type, expected))
        assert "ns" not in str(found.type)


def _holding(kind: pa.DataType, numbers: list[int | None]) -> pa.Array:
    """Values of a type that has moments in it, each of one of these."""

    def value(of: pa.DataType, number: int | None) -> Any:
        if pa.types.is_list(of):
            return [value(of.value_type, number)] * 2
        if pa.types.is_struct(of):
            return {one.name: value(one.type, number) for one in of}
        return number if pa.types.is_timestamp(of) else 7

    if pa.types.is_map(kind):
        made = [None if one is None else [(one, value(kind.item_type, one))] for one in numbers]
    else:
        made = [None if one is None else value(kind, one) for one in numbers]
    return pa.array(made, kind)


def test_spark_has_no_rows_of_a_dataset_without_any(spark: Any, owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    pq.write_table(loaders.table().slice(0, 0), path)
    frame = owner.dataset(name="spark-none", path=path).to_spark(spark)
    assert (frame.columns, frame.collect(), frame.count()) == (loaders.table().column_names, [], 0)


def test_a_column_that_spark_has_no_type_for_is_named_before_anything_runs(
    spark: Any, owner: Owner, tmp_path: Path
) -> None:
    path = tmp_path / "unsigned.parquet"
    pq.write_table(pa.table({"id": [1], "big": pa.array([2**64 - 1], pa.uint64())}), path)
    dataset = owner.dataset(name="spark-unsigned", path=path)
    with pytest.raises(BadInput, match=r"got big of uint64: leave it out with columns=\['id'\]"):
        dataset.to_spark(spark)
    assert dataset.to_spark(spark, columns=["id"]).collect() == [(1,)]
