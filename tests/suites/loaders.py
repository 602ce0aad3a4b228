"""What every loader must pass: one `Case` a loader, run where its library is there.

The data are twelve blocks with what training data are made of: numbers, text, images as bytes, nested lists, vectors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse.client import Dataset
from hanse.errors import HanseError
from hanse.loaders.epoch_order import Order

from tests.support.served import Owner

BLOCKS, BLOCK_ROWS = 12, 250
ROWS = BLOCKS * BLOCK_ROWS
WIDTH = 6


def table() -> pa.Table:
    """Every row's content follows from its id, so that a mixed-up row shows."""
    chance = random.Random(11)
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "label": pa.array([n % 7 for n in range(ROWS)], pa.int8()),
            "caption": [f"caption {n}" for n in range(ROWS)],
            "image": pa.array([chance.randbytes(20 + n % 50) for n in range(ROWS)], pa.binary()),
            "tokens": pa.array([list(range(n % 5)) for n in range(ROWS)], pa.list_(pa.int32())),
            "boxes": pa.array([[[n * 0.5, 1.0]] * (n % 3) for n in range(ROWS)], pa.list_(pa.list_(pa.float32()))),
            "vector": pa.array([[n + 0.25 * k for k in range(WIDTH)] for n in range(ROWS)], pa.list_(pa.float32())),
        }
    )


def write(folder: Path) -> Path:
    """Twelve files, each of them a block."""
    folder.mkdir()
    whole = table()
    for number in range(BLOCKS):
        pq.write_table(whole.slice(number * BLOCK_ROWS, BLOCK_ROWS), folder / f"part-{number:02d}.parquet")
    return folder


def sequence(seed: int | None, epoch: int = 0) -> list[int]:
    """The ids in the order that the seed says."""
    blocks = Order("", BLOCKS, seed, epoch).permutation()
    return [row for block in blocks for row in range(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)]


Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A loader. `rows` reads everything by it (columns and condition as given); `ordered`: it takes a seed."""

    name: str
    rows: Callable[..., Rows]
    ordered: bool = False


def check(case: Case, dataset: Dataset, owner: Owner) -> None:
    """The whole suite for one loader."""
    expected = {row["id"]: row for row in table().to_pylist()}
    _every_row_once_and_whole(case, dataset, expected)
    _columns_and_condition(case, dataset)
    if case.ordered:
        _order_of_the_seed(case, dataset)
    _refusal(case, owner)


def _every_row_once_and_whole(case: Case, dataset: Dataset, expected: Mapping[int, Any]) -> None:
    found = case.rows(dataset)
    assert sorted(int(row["id"]) for row in found) == list(range(ROWS)), case.name
    for row in found:
        assert _plain(row) == expected[int(row["id"])], (case.name, row["id"])


def _columns_and_condition(case: Case, dataset: Dataset) -> None:
    found = case.rows(dataset, columns=["caption", "id"], where="id % 100 = 7")
    assert sorted(int(row["id"]) for row in found) == list(range(7, ROWS, 100)), case.name
    assert {tuple(sorted(row)) for row in found} == {("caption", "id")}, case.name


def _order_of_the_seed(case: Case, dataset: Dataset) -> None:
    for seed, epoch in ((3, 0), (3, 1), (None, 0)):
        found = case.rows(dataset, columns=["id"], seed=seed, epoch=epoch)
        assert [int(row["id"]) for row in found] == sequence(seed, epoch), (case.name, seed, epoch)


def _refusal(case: Case, owner: Owner) -> None:
    """An agreement that was revoked is said so, with the owner's reason, however deep the framework buries it."""
    revoked = owner.dataset(name="training")
    owner.call(owner.provider.revoke(revoked.agreement_id, "the study was closed"))
    with pytest.raises(Exception, match="study was closed") as caught:
        case.rows(revoked)
    assert (
        isinstance(caught.value, HanseError) or "hanse" in str(caught.value) or "hanse" in repr(caught.value.__cause__)
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Arrow gives them to Python: bytes, lists and numbers, whatever the framework wraps them in."""
    return {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return [_value(one) for one in value] if isinstance(value, list | tuple) else value
