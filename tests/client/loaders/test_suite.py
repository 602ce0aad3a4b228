"""The loader suite for everything that needs no framework."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest
from hanse.client import Dataset

from tests.suites import loaders
from tests.suites.loaders import Case, Rows
from tests.support import served
from tests.support.served import Owner


def _stream(dataset: Dataset, **options: Any) -> Rows:
    return [row for batch in dataset.stream(**options) for row in batch.to_pylist()]


def _loader(dataset: Dataset, **options: Any) -> Rows:
    return [row for batch in dataset.loader(batch_size=101, **options) for row in batch.to_pylist()]


def _polars(dataset: Dataset, **options: Any) -> Rows:
    return polars.DataFrame(dataset.loader(**options)).to_dicts()


def _pandas(dataset: Dataset, **options: Any) -> Rows:
    frame: pandas.DataFrame = dataset.loader(**options).to_reader().read_pandas()
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _duckdb(dataset: Dataset, **options: Any) -> Rows:
    rows = dataset.loader(**options)
    found: pa.Table = duckdb.connect().sql("SELECT * FROM rows").to_arrow_table()
    assert rows.throughput.rows == found.num_rows
    return list(found.to_pylist())


CASES = (
    Case("stream", _stream),
    Case("loader", _loader, ordered=True),
    Case("polars", _polars, ordered=True),
    Case("pandas", _pandas, ordered=True),
    Case("duckdb", _duckdb, ordered=True),
)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    with served.owner(tmp_path_factory.mktemp("owner"), rows=10) as running:
        yield running


@pytest.fixture(scope="module")
def training(owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return owner.dataset(name="training", path=loaders.write(tmp_path_factory.mktemp("data") / "training"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loader_passes_the_suite(case: Case, training: Dataset, owner: Owner) -> None:
    loaders.check(case, training, owner)
