"""A dataset as columns, a schema, its first rows and a frame: what is asked, what is bounded, what is refused how."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hanse import errors
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset, Space
from hanse.notebook.short_cache import ShortCache

from tests.client.support import SCHEMA, Asked, batch, chunked, complete, connector, ipc, owned

ROWS = [batch(1, 2), batch(3)]
CONTRACT = ("GET", "/agreements/a/contract")
ADVICE = r"ask for figures with dataset\.query\(\).*dataset\.contract\(\)"
AGGREGATES = (403, {"code": "aggregate_only", "detail": "it has no rows to stream", "rule": "/permission/0"})


@pytest.fixture
def people() -> Iterator[Dataset]:
    with owned(chunked(ipc(ROWS, complete(3))), rows=[2, 1]) as dataset:
        yield dataset


def test_columns_are_those_of_all_contracts_and_are_asked_for_once() -> None:
    asked: list[Asked] = []

    def contract(one: Asked) -> Any:
        asked.append(one)
        return {"contracts": [{"columns": [{"name": "age"}, {"name": "name"}]}, {"columns": [{"name": "age"}]}]}

    access = TransferAccess(Name("north", "people"), "urn:people", "a", "t", "")
    with connector({CONTRACT: contract}) as served, Space(served.url, "token") as space:
        dataset = Dataset(space, access)
        assert dataset.columns == ["age", "name"]
        dataset.columns.append("mine")
        assert dataset.columns == ["age", "name"]
    assert len(asked) == 1


def test_a_schema_is_read_without_a_row(people: Dataset) -> None:
    assert people.schema == SCHEMA
    assert people.schema == SCHEMA


def test_a_schema_of_rows_that_cannot_be_divided_takes_one_row() -> None:
    def rows(asked: Asked) -> Any:
        assert asked.query == {"limit_rows": "1"}
        return chunked(ipc([batch(1)], complete(1)))

    refusal = (400, {"code": "not_divisible", "detail": "it cannot be divided"})
    with connector({("POST", "/owner/streams"): refusal, ("GET", "/owner"): rows}) as served:
        address = {"endpoint": f"{served.url}/owner", "ticket": "t", "expires": time.time() + 3600}
        served.routes["GET", "/transfers/t/address"] = address
        with Space(served.url, "token") as space:
            assert Dataset(space, TransferAccess(Name("n", "p"), "urn:p", "a", "t", "")).schema == SCHEMA


def test_the_first_rows_are_asked_for_by_their_number() -> None:
    def rows(asked: Asked) -> Any:
        assert asked.query == {"columns": "age,name", "where": "age > 0", "limit_rows": "2"}
        return chunked(ipc([batch(1, 2)], complete(2)))

    with owned(rows) as dataset:
        assert dataset.head(2, columns=["age", "name"], where="age > 0").to_pylist()[1] == {"age": 2, "name": "n2"}


@pytest.mark.parametrize("number", [0, 10_001, "5", True])
def test_a_head_of_nothing_or_too_much_is_refused(people: Dataset, number: Any) -> None:
    with pytest.raises(errors.BadInput, match=f"1 to 10,000 rows, got {number!r}"):
        people.head(number)


def test_a_dataset_becomes_a_frame(people: Dataset) -> None:
    expected = {"age": [1, 2, 3], "name": ["n1", "n2", "n3"]}
    pd.testing.assert_frame_equal(people.to_pandas(), pd.DataFrame(expected), check_dtype=False)
    assert people.to_polars().equals(pl.DataFrame(expected))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_more_rows_than_fit_end_with_what_to_do(people: Dataset, library: str) -> None:
    with pytest.raises(errors.BadInput, match=r"north/people: .* 10 bytes .*bytes_max=") as caught:
        getattr(people, f"to_{library}")(bytes_max=10)
    assert caught.value.code == "memory_limit"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_missing_library_is_named_with_its_extra_and_nothing_is_asked(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Asked] = []
    with owned(asked.append) as dataset:
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ModuleNotFoundError, match=rf"pip install '{library}>=[\d.]+'"):
            getattr(dataset, f"to_{library}")()
    assert asked == []


@pytest.mark.parametrize("act", [Dataset.to_pandas, Dataset.to_polars, Dataset.head], ids=lambda act: act.__name__)
@pytest.mark.parametrize("code", ["aggregate_only", "action_not_agreed"])
def test_a_dataset_without_rows_says_what_to_do(act: Any, code: str) -> None:
    with (
        owned((403, {**AGGREGATES[1], "code": code})) as dataset,
        pytest.raises(errors.Refused, match=ADVICE) as caught,
    ):
        act(dataset)
    assert (caught.value.code, caught.value.rule) == (code, "/permission/0")
    assert str(caught.value).count("dataset.contract()") == 1


def test_another_refusal_is_left_as_it_is() -> None:
    with owned((403, {"code": "revoked", "detail": "it has ended"})) as dataset:
        with pytest.raises(errors.AccessRevoked) as caught:
            dataset.head()
        assert "figures" not in str(caught.value)


def test_a_dataset_is_pickled_without_what_it_remembers(people: Dataset) -> None:
    assert people.schema == SCHEMA
    assert pickle.loads(pickle.dumps(people)).name == people.name


def test_a_value_is_loaded_again_once_it_is_old() -> None:
    clock, loaded = [0.0], iter("abc")
    cache = ShortCache[str](seconds=10, now=lambda: clock[0])
    assert [cache.get(lambda: next(loaded)) for _ in range(2)] == ["a", "a"]
    clock[0] = 11
    assert cache.get(lambda: next(loaded)) == "b"


def test_a_failed_load_is_not_kept() -> None:
    cache = ShortCache[int](seconds=10)
    with pytest.raises(ZeroDivisionError):
        cache.get(lambda: 1 // 0)
    assert cache.get(lambda: 2) == 2
