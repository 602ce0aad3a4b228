"""An owner that sends other blocks than it was asked for, or other rows: never passed over, never given as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hanse import plan
from hanse.client import Dataset
from hanse.errors import Broken, Conflict

from tests.client.support import Asked, Raw, batch, chunked, complete, ipc, owned

ROWS = (2, 3, 1)
Sent = Sequence[tuple[int, tuple[int, ...]]]  # blocks, and ages of the people in them

WHOLE: Sent = [(0, (1, 2)), (1, (3, 4)), (1, (5,)), (2, (6,))]
OTHERS: dict[str, tuple[Sent, str]] = {
    "the last one is missing": (WHOLE[:3], "expected 1 rows of block 2, got 0"),
    "the first one is missing": (WHOLE[1:], "expected 2 rows of block 0, got 0"),
    "all are missing": ([], "expected 2 rows of block 0, got 0"),
    "one is missing between": ([WHOLE[0], WHOLE[3]], "expected 3 rows of block 1, got 0"),
    "a part is missing": ([WHOLE[0], WHOLE[1], WHOLE[3]], "expected 3 rows of block 1, got 2"),
    "a part comes twice": ([*WHOLE[:3], *WHOLE[1:]], "expected 3 rows of block 1, got 5"),
    "one comes twice": ([WHOLE[0], *WHOLE], "expected 2 rows of block 0, got 4"),
    "one comes twice at the end": ([*WHOLE, WHOLE[3]], "expected 1 rows of block 2, got 2"),
    "one comes again later": ([*WHOLE, WHOLE[0]], "in their order"),
    "another order": (WHOLE[::-1], "expected 2 rows of block 0, got 0"),
    "one that was not asked for": ([(7, (1, 2)), *WHOLE], "in their order"),
}


def sent(blocks: Sent, *, end: bool = True) -> Raw:
    places = [{"block": block, "cursor": f"{block}/{ages[-1]}"} for block, ages in blocks]
    rows = sum(len(ages) for _, ages in blocks)
    return chunked(ipc([batch(*ages) for _, ages in blocks], complete(rows) if end else None, places=places))


def of_loader(dataset: Dataset) -> Iterator[int]:
    for one in dataset.loader():
        yield from one.column("age").to_pylist()


def of_read(dataset: Dataset) -> Iterator[int]:
    with dataset.read(dataset.plan(), range(len(ROWS))) as stream:
        for one in stream:
            yield from one.column("age").to_pylist()


@pytest.mark.parametrize("way", [of_loader, of_read])
@pytest.mark.parametrize("name", OTHERS)
def test_other_blocks_or_rows_than_the_plan_says_are_broken(name: str, way: Callable[[Dataset], Any]) -> None:
    blocks, text = OTHERS[name]
    with owned(sent(blocks), rows=ROWS) as dataset, pytest.raises(Broken, match=text):
        list(way(dataset))


@pytest.mark.parametrize("way", [of_loader, of_read])
def test_what_was_planned_comes_and_so_does_what_only_the_owner_can_count(way: Callable[[Dataset], Any]) -> None:
    with owned(sent(WHOLE), rows=ROWS) as dataset:
        assert list(way(dataset)) == [1, 2, 3, 4, 5, 6]
    with owned(sent([WHOLE[0], WHOLE[2]]), rows=ROWS, otherwise={"exact": False}) as dataset:
        assert list(way(dataset)) == [1, 2, 5]


def test_rows_that_come_again_after_a_break_are_not_given_again() -> None:
    def answer(asked: Asked) -> Raw:
        again = asked.query.get("after")
        return sent(WHOLE[1:] if again else WHOLE[:2], end=bool(again))

    given = []
    with owned(answer, rows=ROWS) as dataset, pytest.raises(Broken, match="expected 3 rows of block 1, got 4"):
        given += [age for one in dataset.loader() for age in one.column("age").to_pylist()]


@pytest.mark.parametrize("lost", [None, (0, 3), (1, 0), (1, 2), (1, 9), (2, 1)], ids=str)
@pytest.mark.parametrize("after", [0, 1])
def test_more_blocks_than_an_owner_takes_are_asked_for_in_parts(
    monkeypatch: pytest.MonkeyPatch, after: int, lost: tuple[int, int] | None
) -> None:
    """`lost`: the request that is answered with so many rows and no end."""
    monkeypatch.setattr(plan, "BLOCKS_MAX", 3)
    rows, order = (2, 3, 1, 2, 4, 2, 1, 2), [7, 0, 3, 5, 1, 4, 6]
    asked_for: list[list[int]] = []

    def answer(asked: Asked) -> Raw:
        blocks = [int(text) for text in asked.query["blocks"].split(",")]
        block, row = map(int, asked.query.get("after", f"{blocks[0]}/-1").split("/"))
        assert block == blocks[0]
        due = [(one, (at,)) for one in blocks for at in range(rows[one]) if one != block or at > row]
        asked_for.append(blocks)
        if lost is not None and len(asked_for) - 1 == lost[0]:
            return sent(due[: lost[1]], end=False)
        return sent(due)

    with owned(answer, rows=rows) as dataset:
        cursor = f"7/{after - 1}" if after else ""
        with dataset.read(dataset.plan(), order, after=cursor, before=after) as stream:
            given = [((stream.place or {})["block"], one.column("age")[0].as_py()) for one in stream]
    assert given == [(one, at) for one in order for at in range(rows[one]) if one != 7 or at >= after]
    assert max(map(len, asked_for)) == 3
    assert len(asked_for) == 3 + (lost is not None)


def test_a_state_within_a_block_is_gone_on_from_with_what_is_left_of_it() -> None:
    def answer(asked: Asked) -> Raw:
        after = {"": 0, "0/2": 1, "1/4": 2, "1/5": 3}[asked.query.get("after", "")]
        return sent([one for one in WHOLE[after:] if str(one[0]) in asked.query["blocks"].split(",")])

    with owned(answer, rows=ROWS) as dataset:
        for stop in range(1, 7):
            loader = dataset.loader(batch_size=1)
            given = [age for _, one in zip(range(stop), loader, strict=False) for age in one.column("age").to_pylist()]
            rest = dataset.loader(batch_size=1)
            rest.load_state_dict(loader.state_dict())
            assert given + [age for one in rest for age in one.column("age").to_pylist()] == [1, 2, 3, 4, 5, 6]


def of_stream(dataset: Dataset) -> Iterator[int]:
    for one in dataset.stream():
        yield from one.column("age").to_pylist()


def test_rows_of_another_version_than_those_before_are_a_conflict() -> None:
    def answer(asked: Asked) -> Raw:
        again = asked.query.get("after")
        end = complete(1) if again else None
        place = {"block": -1, "cursor": "2" if again else "1"}
        return chunked(ipc([batch(1)], end, places=[place]), extra=f"hanse-snapshot: v{2 if again else 1}\r\n")

    with owned(answer) as dataset:
        rows = of_stream(dataset)
        assert next(rows) == 1
        with pytest.raises(Conflict, match="version v1, got some of v2") as caught:
            next(rows)
    assert caught.value.code == "snapshot_changed"


def test_a_version_of_which_no_row_was_given_binds_nobody() -> None:
    asked: list[Asked] = []
    given: list[tuple[list[pa.RecordBatch], dict[str, Any] | None]] = [([], None), ([batch(1)], None)]
    given.append(([batch(2)], complete(1)))

    def answer(request: Asked) -> Raw:
        asked.append(request)
        (batches, end), number = given[len(asked) - 1], len(asked)
        places = [{"block": -1, "cursor": str(number)}] if batches else []
        version = f"hanse-snapshot: v{min(number, 2)}\r\n"  # the owner publishes while nothing has come yet
        return chunked(ipc(batches, end, places=places), extra=version)

    with owned(answer) as dataset:
        assert list(of_stream(dataset)) == [1, 2]
    assert [one.query.get("snapshot") for one in asked] == [None, None, "v2"]


@pytest.mark.parametrize("way", [of_loader, of_read])
def test_rows_of_another_version_than_the_plan_is_of_are_a_conflict(way: Callable[[Dataset], Any]) -> None:
    for version, kind in (("s", Broken), ("t", Conflict)):
        answer = chunked(ipc([batch(1)], complete(2)), extra=f"hanse-snapshot: {version}\r\n")
        with owned(answer, rows=ROWS) as dataset, pytest.raises(kind, match=r"^north/people: "):
            list(way(dataset))


@pytest.mark.parametrize("way", [of_loader, of_read, of_stream])
def test_rows_that_end_where_they_were_to_begin_are_broken(way: Callable[[Dataset], Any]) -> None:
    """Else they come again with each attempt: without end, as a row gives all of the patience back."""
    asked_for: list[str] = []

    def answer(asked: Asked) -> Raw:
        asked_for.append(asked.query.get("after", ""))
        return sent(WHOLE[:1], end=len(asked_for) > 5)

    with owned(answer, rows=ROWS, otherwise={"exact": False}) as dataset:
        with pytest.raises(Broken, match="got rows that end there"):
            list(way(dataset))
        assert asked_for == ["", "0/2"]
        with pytest.raises(Broken, match="got rows that end there"):
            list(dataset.read(dataset.plan(), [0], after="0/2"))


def test_a_place_without_a_cursor_is_broken() -> None:
    """It would be gone on from at the beginning."""
    answer = chunked(ipc([batch(1)], None, places=[{"block": -1, "cursor": ""}]))
    with owned(answer) as dataset, pytest.raises(Broken, match="cursor of 1 to"):
        list(of_stream(dataset))


@pytest.mark.parametrize("rows", [None, "6", 6.0, True, [6]], ids=str)
@pytest.mark.parametrize("way", [of_loader, of_read, of_stream])
def test_an_end_that_does_not_say_how_many_came_is_broken_at_once(way: Callable[[Dataset], Any], rows: Any) -> None:
    asked_for: list[Asked] = []
    places = [{"block": block, "cursor": f"{block}/{ages[-1]}"} for block, ages in WHOLE]
    answer = chunked(ipc([batch(*ages) for _, ages in WHOLE], {"status": "complete", "rows": rows}, places=places))

    def answered(asked: Asked) -> Raw:
        asked_for.append(asked)
        return answer

    with owned(answered, rows=ROWS) as dataset, pytest.raises(Broken, match="expected the number of rows"):
        list(way(dataset))
    assert len(asked_for) == 1
