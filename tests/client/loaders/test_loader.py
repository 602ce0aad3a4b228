"""The loader over real owners: order, shares, states, broken connections, tickets that end, revocation."""

from __future__ import annotations

import inspect
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import hanse
import hanse.plan
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse import options as known
from hanse.client import Dataset
from hanse.errors import AccessRevoked, BadInput, Conflict, HanseError, QuotaSpent, Unreachable
from hanse.loaders import Loader, merge, prefetch, throughput
from hanse.loaders.epoch_order import Order

from connector.errors import Unavailable
from connector.usage import grants
from tests.client.support import batch, chunked, ipc, owned
from tests.support import gate, served
from tests.support.gate import atom
from tests.support.link import Link
from tests.support.own_name import changed
from tests.support.served import Owner

ROWS = 210_000
_LARGE = 6_000_000
BORDERS = [(0, 100_000), (100_000, 200_000), (200_000, 210_000)]
FILTERED = gate.agreement(atom("ds:row/gap", "eq", "2"), action="odrl:use")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    with served.owner(tmp_path_factory.mktemp("owner"), rows=ROWS) as running:
        yield running


@pytest.fixture(scope="module")
def numbers(owner: Owner) -> Dataset:
    return owner.dataset()


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than lies between owner and reader."""
    path = tmp_path_factory.mktemp("large") / "large.parquet"
    pq.write_table(pa.table({"id": np.arange(_LARGE)}), path, row_group_size=100_000)
    return path


@pytest.fixture(scope="module")
def large(owner: Owner, large_file: Path) -> Dataset:
    return owner.dataset(name="large", path=large_file)


@pytest.fixture
def link(owner: Owner) -> Iterator[Link]:
    yield owner.link
    owner.link.cut_after = None


def ids(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch.column("id").to_numpy().tolist()]


def sequence(seed: int | None, epoch: int = 0, *, window: int = 0, shown: Any = None) -> list[int]:
    """The global sequence as the documentation defines it, from the data alone."""
    order = Order("", 3, seed, epoch, window)
    found: list[int] = []
    for block in order.permutation():
        rows = [row for row in range(*BORDERS[block]) if shown is None or shown(row)]
        for number, start in enumerate(range(0, len(rows), window or ROWS)):
            run = rows[start : start + (window or ROWS)]
            found += [run[at] for at in order.within(block, number, len(run)) or range(len(run))]
    return found


def two(row: int) -> bool:
    return row % 10 != 0 and row % 5 == 2


OPTIONS = [
    {"seed": None},
    {"seed": 5},
    {"seed": 5, "epoch": 3},
    {"seed": 5, "window": 1000},
]


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": -1}, {"window": -1, "seed": 1}, {"prefetch_bytes": -1}, {"patience": -1}],
    ids=str,
)
def test_batches_without_rows_are_not_asked_for(numbers: Dataset, wrong: dict[str, int]) -> None:
    """They would never end."""
    with pytest.raises(
        BadInput, match=f"expected (a )?{next(iter(wrong))} of at least .*, got {next(iter(wrong.values()))}"
    ):
        numbers.loader(**wrong)


@pytest.mark.parametrize("way", ["loader", "to_torch", "to_hf", "to_ray", "to_spark"])
def test_an_option_that_is_none_is_told_with_those_there_are(numbers: Dataset, way: str) -> None:
    given = (None,) if way == "to_spark" else ()
    with pytest.raises(BadInput, match=r"expected options among columns, where, .*; got batchsize"):
        getattr(numbers, way)(*given, batchsize=1)


@pytest.mark.parametrize(
    ("way", "library"), [("torch", "torch"), ("hf", "datasets"), ("ray", "ray"), ("spark", "pyspark")]
)
def test_who_has_not_installed_an_extra_is_told_which(
    numbers: Dataset, monkeypatch: pytest.MonkeyPatch, way: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    given = (None,) if way == "spark" else ()
    with pytest.raises(ImportError, match=rf"expected {library}\b.*, .*pip install .*'{library}[\[>]") as caught:
        getattr(numbers, f"to_{way}")(*given)
    assert str(caught.value.name).split(".")[0] == library


def test_notebooks_show_what_there_is_and_no_token(numbers: Dataset) -> None:
    with numbers.stream(columns=["id"]) as stream:
        shown = f"<Stream {numbers.name}, columns id"
        assert repr(stream) == f"{shown}, open, 0 rows read>"
        stream.to_arrow()
        assert repr(stream) == f"{shown}, complete, 210,000 rows read>"
    loader = numbers.loader(part=1, parts=2, epoch=4)
    assert repr(loader) == f"<Loader {numbers.name}, 210,000 rows in 3 blocks, reader 1 of 2, epoch 4>"
    found = numbers.plan(where="id < 5")
    assert repr(found) == f"<Plan of about {found.rows:,} rows in 3 blocks, snapshot {found.snapshot}>"
    space = numbers._space
    assert repr(space) == f"<Space {space.api.url}>"
    assert space.api.token not in "".join(map(repr, (space, numbers, stream, loader, found)))


@pytest.mark.parametrize(
    ("names", "todo"), [("ab", r"leave it out with columns=\['b'\]"), ("a", "it is the only column")]
)
def test_a_column_that_a_library_does_not_have_is_never_left_out_with_all(names: str, todo: str) -> None:
    schema = pa.schema([(name, pa.int64()) for name in names])
    assert re.search(f"got a of int64: {todo}", str(known.unfit_error("a library", schema, schema.field("a"))))


def test_what_is_given_in_place_of_a_dataset_is_told_without_a_row_of_it(owner: Owner, numbers: Dataset) -> None:
    first = numbers.loader()
    before = len(owner.provider.of_kind("ReadStarted"))
    rows = pa.table({"id": [4711]})
    for given, told in ((first, "<Loader"), ([first], "<Loader"), (rows, "a Table$"), (rows.to_batches(), "a Rec.*h$")):
        with pytest.raises(BadInput, match=f"^expected a dataset as `agree` .*, got {told}"):
            Loader(given)
    assert len(owner.provider.of_kind("ReadStarted")) == before
    for several in ((numbers,), {"a": numbers}.values(), iter([numbers]), {numbers}):
        assert Loader(several).datasets == (numbers,)


def test_what_is_no_dataset_is_told_so(numbers: Dataset) -> None:
    with numbers.stream() as stream:
        for given in ("north/numbers", stream, [stream], [numbers, "north/numbers"], None):
            with pytest.raises(
                BadInput, match=r"^expected a dataset as `agree` .*, got ('north/numbers'|<Stream|None)"
            ):
                Loader(given)


def test_the_former_name_of_iter_slices_warns_and_reads_the_same(numbers: Dataset) -> None:
    with pytest.warns(DeprecationWarning, match=r"use Loader\.iter_slices"):
        slices = list(numbers.loader(columns=["id"]).in_slices())
    assert [[stop - first for _, first, stop in one] for one in slices] == [
        [stop - first for _, first, stop in one] for one in numbers.loader(columns=["id"]).iter_slices()
    ]


def test_editors_know_each_option_of_a_loader() -> None:
    named = list(inspect.signature(Loader.__init__).parameters)[2:]
    assert sorted(known.LoaderOptions.__annotations__) == sorted(named)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"part": 2, "parts": 2}, "expected part to be from 0 to 1, as parts is 2; got 2"),
        ({"part": -1, "parts": 2}, "expected part to be from 0 to 1, as parts is 2; got -1"),
        ({"part": 0, "parts": 0}, "expected parts to be at least 1, got 0"),
        ({"part": True, "parts": 2}, "expected part to be a whole number, got True"),
    ],
    ids=str,
)
def test_a_reader_that_is_none_of_all_is_refused(numbers: Dataset, wrong: dict[str, int], said: str) -> None:
    """Its rows would be another's, and some nobody's."""
    with pytest.raises(BadInput, match=said):
        numbers.loader(**wrong)
    with pytest.raises(BadInput, match=said):
        numbers.loader().divide(**wrong)


@pytest.mark.parametrize("alone", [{"parts": 2}, {"part": 0}], ids=str)
def test_which_reader_and_how_many_are_said_together(numbers: Dataset, alone: dict[str, int]) -> None:
    """All who forget which one they are would have the same rows."""
    with pytest.raises(BadInput, match=r"expected part and parts together, or neither; got part=\w+, parts=\w+"):
        numbers.loader(**alone)


@pytest.mark.parametrize("name", ["seed", "epoch", "window", "batch_size", "part", "parts", "prefetch_bytes"])
@pytest.mark.parametrize("wrong", [1.0, "1", True])
def test_numbers_that_are_none_are_refused(numbers: Dataset, name: str, wrong: object) -> None:
    """A seed of 7.0 would be of another order than one of 7."""
    with pytest.raises(BadInput, match=f"expected {name} to be a whole number, got {wrong!r}"):
        numbers.loader(**{"seed": 1, "part": 0, "parts": 1, name: wrong})


@pytest.mark.parametrize("name", ["seed", "epoch"])
def test_a_number_that_is_too_large_for_an_order_is_refused(numbers: Dataset, name: str) -> None:
    for wrong in (2**63, -(2**63), 10**5000):
        with pytest.raises(BadInput, match=f"expected {name} from .* got a number of {wrong.bit_length()} bits"):
            numbers.loader(**{name: wrong})
    assert numbers.loader(**{name: 2**63 - 1}).rows == ROWS


@pytest.mark.parametrize("rows", [0, -1])
def test_batches_of_a_stream_have_a_row_at_least(numbers: Dataset, rows: int) -> None:
    with pytest.raises(BadInput, match=f"expected batch_rows to be .*at least 1, got .?{rows}"):
        numbers.stream(batch_rows=rows)


def test_an_agreement_for_questions_alone_says_what_to_send_in_place_of_a_loader(owner: Owner) -> None:
    asked = owner.dataset(gate.agreement(action="ds:query"))
    with pytest.raises(hanse.Refused, match=r"ds:stream is not agreed; agreed: ds:query.*send a query"):
        asked.loader()


@pytest.mark.parametrize("way", ["stream", "loader"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"columns": [1]}, r"expected columns as a list of names such as .*, got \[1\]"),
        ({"columns": None}, r"expected columns as a list of names such as .*, or \[\] for all, got None"),
        ({"where": 5}, "expected where as a text such as .*, got 5"),
    ],
    ids=str,
)
def test_columns_and_conditions_that_are_no_texts_are_refused(
    numbers: Dataset, way: str, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        getattr(numbers, way)(**wrong)


@pytest.mark.parametrize("name", ["patience", "idle_seconds"])
@pytest.mark.parametrize("wrong", ["1", None, True])
def test_seconds_that_are_none_are_refused(numbers: Dataset, name: str, wrong: object) -> None:
    with pytest.raises(BadInput, match=f"expected {name} to be a number of seconds, got {wrong!r}"):
        numbers.stream(**{name: wrong})
    with pytest.raises(BadInput, match="expected idle_seconds to be a number of seconds"):
        numbers.query("SELECT 1", idle_seconds=wrong)  # type: ignore[arg-type]  # that is the point


def test_columns_may_be_anything_that_has_names(numbers: Dataset) -> None:
    found = numbers.stream(columns=pa.table({"id": [1]}).to_pandas().columns)  # type: ignore[arg-type]  # as people do
    assert next(iter(found)).schema.names == ["id"]


@pytest.mark.parametrize("columns", [["id", "x", "id"], ["id", "ID"]])
def test_a_column_that_is_named_twice_is_refused(numbers: Dataset, columns: list[str]) -> None:
    """A dict of columns would have one of them."""
    with pytest.raises(BadInput, match=r"expected each column once, .*got \['id'\] repeatedly"):
        numbers.loader(columns=columns)


@pytest.mark.parametrize("way", ["stream", "loader"])
def test_a_condition_may_be_longer_than_an_address(numbers: Dataset, way: str) -> None:
    many = ",".join(f"'日本語日本{number}'" for number in range(1200))
    found = getattr(numbers, way)(columns=["id"], where=f"id < 7 AND name NOT IN ({many})")
    assert ids(found) == list(range(7))


ARRIVES = [
    (pa.int8(), pa.int8()),
    (pa.uint64(), pa.uint64()),
    (pa.decimal128(20, 4), pa.decimal128(20, 4)),
    (pa.date32(), pa.date32()),
    (pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.time64("ns"), pa.time64("ns")),
    (pa.timestamp("s"), pa.timestamp("us")),
    (pa.timestamp("ms"), pa.timestamp("us")),
    (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
    (pa.time32("ms"), pa.time64("us")),
    (pa.duration("us"), pa.int64()),
    (pa.duration("ns"), pa.int64()),
    (pa.float16(), pa.float32()),
    (pa.list_(pa.float32(), 3), pa.list_(pa.float32())),
    (pa.large_list(pa.int32()), pa.list_(pa.int32())),
    (pa.fixed_shape_tensor(pa.float32(), (2, 2)), pa.list_(pa.float32())),
    (pa.binary(4), pa.binary()),
    (pa.large_binary(), pa.binary()),
    (pa.binary_view(), pa.binary()),
    (pa.large_string(), pa.string()),
    (pa.string_view(), pa.string()),
    (pa.json_(), pa.string()),
    (pa.uuid(), pa.string()),
    (pa.dictionary(pa.int32(), pa.string()), pa.string()),
]


@pytest.mark.parametrize("columns", [["a,b"], [" c"], ["d ", "a"], ["\u00a0e"], ["a", "b"], []], ids=str)
@pytest.mark.parametrize("read", ["stream", "loader"])
def test_a_column_is_asked_for_by_its_whole_name(owner: Owner, tmp_path: Path, columns: list[str], read: str) -> None:
    table = pa.table({name: [at] for at, name in enumerate(["a", "b", "a,b", " c", "d ", "\u00a0e"])})
    pq.write_table(table, tmp_path / "names.parquet")
    dataset = owner.dataset(name=tmp_path.name, path=tmp_path / "names.parquet")
    batches = getattr(dataset, read)(columns=columns)
    assert pa.Table.from_batches(list(batches)).to_pydict() == table.select(columns or table.column_names).to_pydict()


@pytest.mark.parametrize("read", ["stream", "loader"])
def test_a_column_without_a_name_is_none_that_is_there(numbers: Dataset, read: str) -> None:
    with pytest.raises(HanseError, match="a name has 1 to"):
        list(getattr(numbers, read)(columns=[""]))


def test_columns_of_parquet_arrive_as_the_guide_says(owner: Owner, tmp_path: Path) -> None:
    columns = {str(number): _nulls(kind) for number, (kind, _) in enumerate(ARRIVES)}
    pq.write_table(pa.table(columns), tmp_path / "kinds.parquet")
    schema = owner.dataset(name="kinds", path=tmp_path / "kinds.parquet").plan().schema
    assert [one.type for one in schema] == [kind for _, kind in ARRIVES]


def _nulls(kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(2, kind.storage_type))
    return pa.nulls(2, kind)


def test_numbers_of_another_library_are_taken_for_what_they_are(numbers: Dataset) -> None:
    options = {"seed": 7, "epoch": 2, "window": 1000, "batch_size": 5000, "part": 0, "parts": 2}
    loader = numbers.loader(columns=["id"], **{name: np.int64(value) for name, value in options.items()})
    same = numbers.loader(columns=["id"], **options)
    assert json.dumps(loader.state_dict()) == json.dumps(same.state_dict())
    assert ids(loader) == ids(same)
    loader.set_epoch(np.int32(3))
    assert json.loads(json.dumps(loader.state_dict()))["epoch"] == 3
    with pytest.raises(BadInput, match="expected epoch to be a whole number"):
        loader.set_epoch(3.9)  # type: ignore[arg-type]  # that is what is refused


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_epoch_is_the_sequence_that_the_seed_says(numbers: Dataset, options: dict[str, Any]) -> None:
    loader = numbers.loader(columns=["id"], batch_size=7001, **options)
    batches = list(loader)
    assert ids(batches) == sequence(**options)
    assert [batch.num_rows for batch in batches] == [7001] * 29 + [ROWS - 29 * 7001]
    assert loader.throughput.rows == ROWS


def test_a_row_filter_of_the_owner_leaves_the_order_as_it_is(owner: Owner) -> None:
    loader = owner.dataset(FILTERED).loader(columns=["id"], batch_size=999, seed=2, window=500)
    assert ids(loader) == sequence(2, window=500, shown=two)


@pytest.mark.parametrize("options", [{"seed": 5}, {"seed": 5, "window": 1000}], ids=str)
@pytest.mark.parametrize("policy", [None, FILTERED], ids=["open", "filtered"])
def test_a_state_taken_after_any_batch_gives_exactly_the_rest(
    owner: Owner, numbers: Dataset, options: dict[str, Any], policy: Any
) -> None:
    dataset = numbers if policy is None else owner.dataset(policy)
    made = {"columns": ["id"], "batch_size": 1234, **options}
    expected = sequence(**options, shown=None if policy is None else two)
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for pause in (1, 17, 0, 9):  # the second, third and fourth resume go on, none begins anew
        loader = dataset.loader(**made)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        for _ in range(pause):
            seen += ids([next(batches)])
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        batches.close()
    last = dataset.loader(**made)
    last.load_state_dict(state)
    assert seen + ids(last) == expected


def test_what_is_left_is_dealt_out_alike_whether_or_not_a_reader_looked_for_its_end(numbers: Dataset) -> None:
    def state(part: int, *, batches: int, looks: bool = False) -> dict[str, Any]:
        loader = numbers.loader(columns=["id"], batch_size=1234, seed=5, part=part, parts=2)
        found = iter(loader)
        for _ in range(batches):
            next(found)
        assert not looks or next(found, None) is None
        return loader.state_dict()

    all_of_them = len(list(numbers.loader(columns=["id"], batch_size=1234, seed=5, part=0, parts=2)))
    other = state(1, batches=3)
    looked, unaware = (merge([state(0, batches=all_of_them, looks=looks), other]) for looks in (True, False))
    for mark in [*looked["base"]["open"].values(), *unaware["base"]["open"].values()]:
        mark["cursor"] = mark["cursor"] != ""  # each read has its own for the same place
    assert looked == unaware


@pytest.mark.parametrize("batches", [1, 20, 30])
def test_what_is_set_during_an_iteration_is_for_the_next_one(numbers: Dataset, batches: int) -> None:
    options: dict[str, Any] = {"columns": ["id"], "batch_size": 7001, "seed": 5, "window": 1000}
    loader = numbers.loader(**options)
    found = iter(loader)
    given = ids(next(found) for _ in range(batches))
    state = loader.state_dict()
    loader.set_epoch(1)
    assert given + ids(found) == sequence(5, window=1000)
    other = numbers.loader(**options)
    other.load_state_dict(loader.state_dict())
    assert ids(other) == ids(loader) == sequence(5, 1, window=1000)

    found = iter(loader)
    next(found)
    loader.load_state_dict(merge([state]))
    assert len(ids(found)) == ROWS - 7001
    assert given + ids(loader) == sequence(5, window=1000)


def test_rows_that_were_only_prefetched_are_not_in_the_state(numbers: Dataset) -> None:
    loader = numbers.loader(columns=["id"], batch_size=100, prefetch_bytes=2**24)
    batches = iter(loader)
    first = ids([next(batches)])
    state = loader.state_dict()
    batches.close()
    assert state["mark"]["row"] == len(first) == 100


def _end_of_last_read(owner: Owner) -> Any:
    """The record of the end of the read that started last; it is written a moment after the last byte."""
    last = owner.provider.of_kind("ReadStarted")[-1]
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for event in owner.provider.of_kind("ReadEnded"):
            if event.process == last.process:
                return event
        time.sleep(0.02)
    raise AssertionError("the read has no end in the log")


def test_going_on_reads_no_more_than_the_batch_that_the_state_was_in(owner: Owner, numbers: Dataset) -> None:
    loader = numbers.loader(batch_size=1000, prefetch_bytes=1)
    batches = iter(loader)
    for _ in range(190):
        next(batches)
    state = loader.state_dict()
    batches.close()
    resumed = numbers.loader(batch_size=1000)
    resumed.load_state_dict(state)
    found = sum(batch.num_rows for batch in resumed)
    ended = _end_of_last_read(owner)
    assert found == ROWS - 190_000
    assert found <= ended.detail["rows"] < found + 60_000


@pytest.mark.parametrize("how", ["broken off", "end of the process"])
def test_who_leaves_an_owner_that_says_nothing_does_not_wait_for_it(
    large: Dataset, link: Link, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(prefetch, "_END_SECONDS", 120.0)  # no machine stands still for half of it
    batches = iter(large.loader(batch_size=1_000_000, prefetch_bytes=2**30))
    next(batches)
    link.hang()
    time.sleep(0.5)  # what was on its way has come, and is waited for no longer
    begun = time.monotonic()
    try:
        if how == "broken off":
            batches.close()
        else:
            prefetch._stop_all()
        assert time.monotonic() - begun < prefetch._END_SECONDS / 2
    finally:
        link.resume()
        batches.close()


@pytest.mark.parametrize("how", ["does not answer", "cannot be reached"])
def test_who_leaves_while_a_stream_is_opened_waits_for_no_answer_and_no_pause(
    numbers: Dataset, link: Link, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    long = changed(random, uniform=lambda *_: 100.0)
    monkeypatch.setattr(prefetch, "_END_SECONDS", 120.0)  # no machine stands still for half of it
    monkeypatch.setattr("hanse.retry.random", long)  # a first pause of five seconds
    batches = iter(numbers.loader(patience=60))
    reading = threading.Thread(target=lambda: list(batches), daemon=True)
    before = link.connections
    if how == "does not answer":
        link.hang()
    else:
        link.cut_after = 0
    reading.start()
    try:
        until = time.monotonic() + 30
        while link.connections == before and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        (prefetching,) = prefetch._RUNNING
        asked, begun = link.connections, time.monotonic()
        prefetch._stop_all()
        assert time.monotonic() - begun < prefetch._END_SECONDS / 2
        assert not prefetching.is_alive()
        link.cut_after = None
        link.resume()
        time.sleep(0.5)
        assert link.connections == asked  # nobody asks on for who has left
    finally:
        link.cut_after = None
        link.resume()


def test_every_later_epoch_is_whole(numbers: Dataset) -> None:
    loader = numbers.loader(columns=["id"], seed=1)
    batches = iter(loader)
    next(batches)
    loader.load_state_dict(loader.state_dict())
    batches.close()
    assert len(ids(loader)) < ROWS
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        assert ids(loader) == sequence(1, epoch)
    assert ids(loader) == sequence(1, 2)  # again, without set_epoch


def test_an_epoch_that_is_set_before_the_first_batch_is_for_the_next_iteration(numbers: Dataset) -> None:
    loader = numbers.loader(batch_size=1000, seed=1)
    begun = iter(loader)
    loader.set_epoch(1)
    assert (ids(begun), ids(loader)) == (sequence(1), sequence(1, 1))


@pytest.mark.parametrize("read", [1, None], ids=["broken off", "to its end"])
@pytest.mark.parametrize("left", [lambda state: state, lambda state: merge([state])], ids=["a reader's", "merged"])
def test_a_state_is_gone_on_from_once(numbers: Dataset, left: Any, read: int | None) -> None:
    made = {"columns": ["id"], "batch_size": 4000, "seed": 1}
    first = numbers.loader(**made)
    seen = ids(itertools.islice(first, 3))
    loader = numbers.loader(**made)
    loader.load_state_dict(left(first.state_dict()))
    rest = ids(itertools.islice(loader, read))
    assert (seen + rest) == sequence(1)[: len(seen + rest)]
    assert ids(loader) == ids(loader) == sequence(1)


def test_a_bar_goes_from_where_its_reader_is_to_where_its_share_ends(
    numbers: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float | None, float]] = []

    def close(bar: Any) -> None:
        told.append((bar._bar.tasks[0].total, bar._bar.tasks[0].completed))
        bar._bar.stop()

    monkeypatch.setattr(throughput.ThroughputBar, "close", close)
    options: dict[str, Any] = {"columns": ["id"], "batch_size": 1000, "progress": True, "part": 0, "parts": 2}
    loader = numbers.loader(**options)
    for _ in itertools.islice(iter(loader), 30):
        state = loader.state_dict()
    again = numbers.loader(**options)
    again.load_state_dict(state)
    assert sum(batch.num_rows for batch in again) == 80_000
    list(numbers.loader(**options, where="id < 5"))  # of which nobody knows how many these are: two blocks
    assert told == [(110_000, 30_000), (110_000, 110_000), (2, 2)]


def test_readers_share_an_epoch_and_their_number_may_change_in_it(numbers: Dataset) -> None:
    made = {"columns": ["id"], "batch_size": 4000, "seed": 8}
    seen: list[int] = []
    states = []
    for part, pause in ((0, 11), (1, 3)):
        loader = numbers.loader(**made, part=part, parts=2)
        batches = iter(loader)
        for _ in range(pause):
            seen += ids([next(batches)])
        states.append(loader.state_dict())
        batches.close()
    merged = merge(states)
    for part in range(5):
        loader = numbers.loader(**made, part=part, parts=5)
        loader.load_state_dict(merged)
        seen += ids(loader)
    assert sorted(seen) == list(range(ROWS))


def test_a_state_of_another_reader_seed_or_condition_is_refused(numbers: Dataset) -> None:
    state = numbers.loader(columns=["id"], seed=1, part=1, parts=2).state_dict()
    for other, said in (
        ({"seed": 1, "part": 0, "parts": 2}, "merge"),
        ({"seed": 2, "part": 1, "parts": 2}, "got one with others"),
        ({"seed": 1, "part": 1, "parts": 2, "where": "id > 5"}, "got one with others"),
    ):
        with pytest.raises(BadInput, match=said):
            numbers.loader(columns=["id"], **other).load_state_dict(state)


@pytest.mark.parametrize(("policy", "most"), [(None, 100_000), (FILTERED, 110_000)], ids=["open", "filtered"])
def test_a_state_of_more_rows_than_a_block_has_is_refused(owner: Owner, policy: Any, most: int) -> None:
    """All that is left of it would be left out."""
    loader = owner.dataset(policy).loader(columns=["id"]) if policy else owner.dataset().loader(columns=["id"])
    state = loader.state_dict()
    mark = {"emitted": 0, "cursor": "", "cursor_row": 0}
    for wrong in (most + 1, 10**9):
        for damage in (
            {"mark": mark | {"row": wrong}},
            {"base": {"below": 1, "open": {"0": mark | {"row": wrong}}}},
            {"kind": "epoch", "base": {"below": 1, "open": {"0": mark | {"row": wrong}}}},
        ):
            with pytest.raises(BadInput, match=f"got one of {wrong} rows of a block that has 100000"):
                loader.load_state_dict(state | damage)
    loader.load_state_dict(state | {"mark": mark | {"row": most}})


OTHERS = {
    "rows": gate.agreement(atom("ds:row/gap", "eq", "3"), action="odrl:use"),
    "all rows": None,
    "masks": gate.agreement(atom("ds:row/gap", "eq", "2"), duties=[gate.mask("null", "name")], action="odrl:use"),
}


@pytest.mark.parametrize("after", [1, 150], ids=["in the first batch that came", "later"])
@pytest.mark.parametrize("policy", OTHERS.values(), ids=OTHERS.keys())
def test_a_state_from_within_a_block_is_nothing_to_terms_that_show_something_else(
    owner: Owner, policy: Any, after: int
) -> None:
    """So many rows of a block are others there: some would never come, or twice."""
    mine = owner.dataset(FILTERED)
    other = owner.dataset(policy) if policy else owner.dataset()
    for one, another in ((mine, other), (other, mine)):
        loader, fresh = (made.loader(columns=["id"], batch_size=100, seed=5) for made in (one, another))
        with closing(iter(loader)) as batches:
            for _ in range(after):
                next(batches)
            state = loader.state_dict()
        assert after > 1 or not state["mark"]["cursor"]  # the owner could not say so
        for taken in (state, merge([state]), {name: value for name, value in state.items() if name != "shown"}):
            with pytest.raises(BadInput, match=r"terms that show the same rows and columns.*begin the epoch anew"):
                fresh.load_state_dict(taken)
        assert fresh.state_dict()["done"] == 0


def test_a_state_from_between_epochs_goes_on_under_other_terms(owner: Owner, numbers: Dataset) -> None:
    options: dict[str, Any] = {"columns": ["id"], "batch_size": 70_000, "seed": 5}
    first, then = numbers.loader(**options), owner.dataset(FILTERED).loader(**options)
    then.load_state_dict(first.state_dict())
    assert ids(then) == sequence(5, shown=two)
    assert len(ids(first)) == ROWS
    then.load_state_dict(first.state_dict())
    assert ids(then) == []  # that epoch is over
    then.set_epoch(1)
    assert ids(then) == sequence(5, 1, shown=two)


def test_a_state_goes_on_under_an_agreement_that_was_renewed(owner: Owner) -> None:
    options: dict[str, Any] = {"columns": ["id"], "batch_size": 100, "seed": 5}
    renewed = gate.agreement(
        atom("ds:row/gap", "eq", "2"), atom("odrl:dateTime", "lt", "2099-01-01T00:00:00Z"), action="odrl:use"
    )
    first, then = (owner.dataset(policy).loader(**options) for policy in (FILTERED, renewed))
    with closing(iter(first)) as batches:
        seen = ids([next(batches)])
        then.load_state_dict(first.state_dict())
    assert seen + ids(then) == sequence(5, shown=two)


def test_lost_connections_cost_no_row_and_double_none(numbers: Dataset, link: Link) -> None:
    loader = numbers.loader(batch_size=10_000, seed=4, window=3000)
    link.cut_after = 5_000_000
    before = link.cuts
    assert ids(loader) == sequence(4, window=3000)
    assert link.cuts > before
    assert loader.throughput.reopened >= 1


def test_a_connection_that_is_made_anew_is_counted_as_it_happens_and_for_its_iteration(
    large: Dataset, link: Link
) -> None:
    loader = large.loader(batch_size=10_000, prefetch_bytes=1)
    with closing(iter(loader)) as batches:
        seen = [next(batches)]
        counted = loader.throughput
        link.drop()
        with closing(iter(loader)) as others:
            next(others)
            while not counted.reopened:
                seen.append(next(batches))
            assert counted.rows == sum(map(len, seen)) < _LARGE
            assert (loader.throughput.reopened, loader.throughput.rows) == (0, 10_000)


def test_a_connection_that_is_made_anew_in_vain_is_counted(large: Dataset, link: Link) -> None:
    loader = large.loader(batch_size=10_000, prefetch_bytes=1, patience=4)
    sizes = iter([1_000_000, 1_000])  # of the second nothing comes but what a stream begins with
    link.cut_after = lambda: next(sizes, 0)
    with pytest.raises(Unreachable):
        list(loader)
    assert loader.throughput.reopened == 1


def test_a_loader_waits_for_an_owner_that_does_not_answer_yet(numbers: Dataset, link: Link) -> None:
    short = iter([0, 0, 0])
    link.cut_after = lambda: next(short, None)
    with pytest.raises(Unreachable):
        numbers.plan()
    assert sum(len(batch) for batch in Loader(numbers, columns=["gap"])) == ROWS
    assert next(short, None) is None


def test_a_plain_stream_bears_lost_connections_too(numbers: Dataset, link: Link) -> None:
    link.cut_after = 3_000_000
    with numbers.stream(batch_rows=20_000) as stream:
        assert ids(stream) == list(range(ROWS))
        assert stream.reopened >= 2
        assert stream.end["status"] == "complete"


def test_a_ticket_that_ends_in_the_middle_is_renewed(owner: Owner, large_file: Path) -> None:
    dataset = owner.dataset(name="short", path=large_file, seconds=30)  # near its end from the beginning
    with dataset.stream(batch_rows=50_000) as stream:
        found = []
        for number, batch in enumerate(stream):
            found.append(batch)
            if number == 3:
                for grant in (grant for one in owner.provider.reads.live.values() for grant in one.grants):
                    grant.lease.deadline = 0.0
    assert ids(found) == list(range(_LARGE))
    assert stream.reopened >= 1


def test_a_loader_goes_on_after_its_owner_could_not_ask_whether_it_may(
    owner: Owner, large: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose database is away for a moment: nobody has revoked anything."""
    there, away = owner.provider.store.read, threading.Event()

    async def read(work: Any) -> Any:
        if away.is_set():
            raise Unavailable("the database does not answer now")
        return await there(work)

    monkeypatch.setattr(owner.provider.store, "read", read)
    monkeypatch.setattr(grants, "_POLL_SECONDS", 0.01)  # in half a second all may be on its way
    loader = large.loader(batch_size=100_000, prefetch_bytes=1)
    seen = []
    for one in loader:
        seen.append(one.column("id").to_numpy())
        if len(seen) == 1:
            (under_way,) = owner.provider.reads.live.values()
            monkeypatch.setattr(grants, "_BLIND_SECONDS", 0.0)  # not before: a slow disk would count as well
            away.set()
            deadline = time.monotonic() + 60
            while not under_way.over and time.monotonic() < deadline:
                time.sleep(0.01)
            monkeypatch.setattr(grants, "_BLIND_SECONDS", 5.0)
            away.clear()
    assert np.array_equal(np.concatenate(seen), np.arange(_LARGE))
    assert loader.throughput.reopened >= 1


def test_revocation_raises_its_own_exception_with_the_reason(owner: Owner, large: Dataset) -> None:
    agreement, stopped = large.agreement_id, threading.Event()

    def stop() -> None:
        owner.provider.grants.stop(agreement_id=agreement, reason="the study was closed")
        stopped.set()

    with pytest.raises(AccessRevoked, match="study was closed"):  # noqa: PT012  it is raised in mid-iteration
        for number, _ in enumerate(large.loader(batch_size=10_000, prefetch_bytes=1)):
            if number == 0:
                owner.loop.call_soon_threadsafe(stop)
                assert stopped.wait(60)


@pytest.mark.parametrize(
    ("status", "kind", "most"),
    [("revoked", AccessRevoked, 1), ("quota", QuotaSpent, 4)],
    ids=str,
)
def test_rows_that_wait_are_not_given_after_a_revocation_and_are_after_other_ends(
    status: str, kind: type[HanseError], most: int
) -> None:
    places = [{"block": block, "cursor": "c"} for block in range(2)]
    answer = chunked(
        ipc([batch(1, 2), batch(3, 4)], {"status": status, "reason": "the study was closed"}, places=places)
    )
    with owned(answer, rows=(2, 2, 2)) as dataset:
        loader = dataset.loader(batch_size=1)
        batches, seen = iter(loader), []
        with pytest.raises(kind, match=f"^{dataset.name}: the study was closed$") as caught:  # noqa: PT012  in the middle
            for one in batches:
                for reading in list(prefetch._RUNNING):
                    reading.join(60)
                seen += one["age"].to_pylist()
    about = {"dataset": dataset.name, "agreement": dataset.agreement_id}
    assert about.items() <= pickle.loads(pickle.dumps(caught.value)).facts.items()
    assert loader.error is caught.value
    assert seen == [1, 2, 3, 4][: len(seen)]
    assert len(seen) == most or (most == 1 and not seen)  # it may be heard before the first one
    state = loader.state_dict()
    assert 2 * state["done"] + (state["mark"] or {"row": 0})["row"] == len(seen)


def test_another_version_is_a_conflict_and_never_other_rows(owner: Owner, numbers: Dataset) -> None:
    plan = numbers.plan(columns=["id"])
    stale = hanse.plan.Plan("sha256:old/1", plan.digest, plan.schema, plan.blocks, plan.rows, plan.exact, ("id",))
    with pytest.raises(Conflict, match="another version") as caught:
        numbers.read(stale, [0])
    assert caught.value.facts["agreement"] == numbers.agreement_id


@pytest.mark.parametrize(
    "begun",
    [
        lambda numbers: iter(numbers.loader(batch_size=1000, prefetch_bytes=2**16)),
        lambda numbers: iter(numbers.loader(batch_size=1000, progress=True)),
        lambda numbers: iter(numbers.stream(batch_rows=1000)),
    ],
    ids=["read ahead a little", "read ahead to the end", "a stream"],
)
def test_what_another_process_has_begun_to_read_is_refused_before_any_row(numbers: Dataset, begun: Any) -> None:
    batches = begun(numbers)
    rows = next(batches).num_rows
    ours, childs = multiprocessing.Pipe(duplex=False)
    with childs:
        if not (child := os.fork()):
            try:
                childs.send(next(batches).num_rows)
            except BadInput as error:
                childs.send(str(error))
            os._exit(0)
    try:
        assert ours.poll(30)
        assert f"in process {os.getpid()}, which opened the stream" in str(ours.recv())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert rows + sum(one.num_rows for one in batches) == ROWS


def test_a_plan_of_terms_that_show_something_else_is_a_conflict(numbers: Dataset) -> None:
    with pytest.raises(Conflict, match="Make a new plan and start again"):
        numbers.read(replace(numbers.plan(), shown="ab" * 16), [0])


def test_datasets_of_two_owners_are_mixed_block_by_block(
    owner: Owner, numbers: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served.owner(tmp_path_factory.mktemp("second"), rows=120_000) as other:
        loader = Loader([numbers, other.dataset()], columns=["id"], batch_size=5000, seed=9)
        batches = iter(loader)
        found = [next(batches) for _ in range(30)]
        state = loader.state_dict()
        batches.close()
        again = Loader([numbers, other.dataset()], columns=["id"], batch_size=5000, seed=9)
        again.load_state_dict(state)
        found += list(again)
    borders = [*BORDERS, (0, 100_000), (100_000, 120_000)]
    assert ids(found) == [row for block in Order("", 5, 9).permutation() for row in range(*borders[block])]


@pytest.mark.parametrize("make", ["stream", "loader"])
def test_streams_and_loaders_go_to_plain_libraries_as_they_are(numbers: Dataset, make: str) -> None:
    def opened() -> Any:
        return getattr(numbers, make)(columns=["id", "x"], where="id < 50")

    expected = list(range(50))
    frame = polars.DataFrame(opened())
    assert frame["id"].to_list() == expected
    assert pa.table(opened())["id"].to_pylist() == expected
    assert opened().to_reader().read_pandas()["id"].tolist() == expected
    rows = opened()
    assert duckdb.connect().sql("SELECT sum(id), count(*) FROM rows").fetchall() == [(sum(expected), 50)]
    assert rows is not None


def test_a_dataset_and_its_plan_can_be_sent_to_a_worker(numbers: Dataset) -> None:
    dataset, plan = pickle.loads(pickle.dumps((numbers, numbers.plan(columns=["id"], where="id % 2 = 0"))))
    assert ids(dataset.read(plan, [2])) == list(range(200_000, 210_000, 2))


def test_a_batch_comes_as_the_slices_that_it_is_made_of(numbers: Dataset) -> None:
    options: dict[str, Any] = {"batch_size": 70_000, "seed": 3}
    whole, loader = list(numbers.loader(**options)), numbers.loader(**options)
    found = list(loader.iter_slices())
    rows = [[batch.slice(start, stop - start) for batch, start, stop in slices] for slices in found]
    assert max(map(len, rows)) > 1
    assert [pa.Table.from_batches(one) for one in rows] == [pa.Table.from_batches([one]) for one in whole]
    assert loader.throughput.batches == len(whole)
    assert loader.throughput.nbytes == pytest.approx(sum(batch.nbytes for batch in whole), rel=0.01)


def test_the_state_is_of_the_slices_that_were_given_last(numbers: Dataset) -> None:
    loader, again = (numbers.loader(batch_size=1000, seed=3) for _ in range(2))
    slices = loader.iter_slices()
    given = [number for _ in range(7) for batch, start, stop in next(slices) for number in ids([batch])[start:stop]]
    again.load_state_dict(loader.state_dict())
    slices.close()
    assert given + ids(again) == sequence(3)
