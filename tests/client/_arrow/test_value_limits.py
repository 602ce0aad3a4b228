"""What a batch becomes in Python is bounded: a few bytes that say one value many times, or values of no width."""

from __future__ import annotations

import array
import io
import random
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hanse._arrow import value_limits
from hanse._arrow.value_limits import refuse_oversized
from hanse._transport import http_stream
from hanse.cli import query
from hanse.errors import BadInput, Broken
from hanse.loaders.torch.tensors import list_values, tensors, to_array
from hanse.stream import Stream

from tests.client.support import chunked, complete, connector, ipc

COUNT, LONG = 10_000, 1_000_000
SAME = pa.array(bytes(COUNT), pa.int8())
TEXT = pa.array(["x" * LONG])


def views(kind: pa.DataType) -> pa.Array:
    """One text, named again and again: its length, how it begins, in which buffer it is, and where."""
    view = LONG.to_bytes(4, "little") + b"xxxx" + bytes(8)
    return pa.Array.from_buffers(kind, COUNT, [None, pa.py_buffer(view * COUNT), TEXT.buffers()[2]])


def places(value: int, count: int = COUNT) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), count, [None, pa.py_buffer(array.array("i", [value] * count))])


def of_no_width(kind: pa.DataType, *children: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(kind, 50_000_000, [None], children=list(children))


BOMBS = {
    "views": views(pa.string_view()),
    "views of bytes": views(pa.binary_view()),
    "a dictionary": pa.DictionaryArray.from_arrays(SAME, TEXT),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([COUNT], pa.int32()), TEXT),
    "views of lists": pa.ListViewArray.from_arrays(places(0), places(LONG), pa.array(bytes(LONG), pa.int8())),
    "a list of a dictionary": pa.ListArray.from_arrays(
        pa.array([0, COUNT], pa.int32()), pa.DictionaryArray.from_arrays(SAME, TEXT)
    ),
    "a struct of views": pa.StructArray.from_arrays([views(pa.string_view())], ["a"]),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), views(pa.string_view())),
    "a union": pa.UnionArray.from_dense(SAME, places(0), [TEXT]),
    "lists without a width": of_no_width(pa.list_(pa.int8(), 0), pa.array([], pa.int8())),
    "structs of nothing": of_no_width(pa.struct([])),
}


@pytest.fixture(params=BOMBS.values(), ids=BOMBS)
def bomb(request: pytest.FixtureRequest) -> pa.Array:
    return request.param


def test_what_would_take_gigabytes_is_refused(bomb: pa.Array) -> None:
    with pytest.raises(Broken, match="expected a batch whose values take at most"):
        refuse_oversized([bomb])
    refuse_oversized([bomb.slice(1, 20)])


def test_without_numpy_it_is_refused_as_well(bomb: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "np", None)
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 20 * LONG)  # it is slow
    with pytest.raises(Broken, match="expected a batch whose values take at most"):
        refuse_oversized([bomb])
    refuse_oversized([bomb.slice(1, 0)])


HONEST = [
    pa.array(["a", None, "b" * 1000], pa.string_view()),
    pa.array(["a", "b", None, "a"]).dictionary_encode(),
    pa.array([[1.5] * 1000] * 500),
    pa.array([], pa.string()),
    pa.array([], pa.string()).dictionary_encode(),
    pa.array([None, None], pa.dictionary(pa.int8(), pa.string())),
    pa.array([[], None, [("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int8()))),
    pa.nulls(1_000_000),
    pa.array([{"a": "x", "b": [{"c": 1, "d": None}]}, None], pa.struct([
        ("a", pa.string_view()), ("b", pa.list_(pa.struct([("c", pa.int8()), ("d", pa.string())])))
    ])),
]  # fmt: skip


@pytest.mark.parametrize("column", HONEST, ids=lambda column: f"{len(column)} {column.type}")
def test_what_is_there_may_be_made(column: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    for numpy in (value_limits.np, None):
        monkeypatch.setattr(value_limits, "np", numpy)
        refuse_oversized([column])
        refuse_oversized([column.slice(1)])


@pytest.mark.parametrize("dense", [True, False])
def test_unions_that_came_and_are_empty_end_no_process(dense: bool) -> None:
    codes, parts = pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])]
    made = pa.UnionArray
    union = (made.from_dense(codes, places(0, 1), parts) if dense else made.from_sparse(codes, parts)).slice(0, 0)
    lists = pa.record_batch({"l": pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), union)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, lists.schema) as written:
        written.write_batch(lists)
    (batch,) = pa.ipc.open_stream(sink.getvalue())
    refuse_oversized(batch.columns)
    refuse_oversized([batch.column(0).values])


def test_what_came_may_be_made_however_much_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 1000)
    refuse_oversized([pa.array([b"a" * 100_000] * 10, pa.large_binary())])


def _taken(value: Any) -> int:
    """Bytes of a value and what is in it, each counted where it is named."""
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return sys.getsizeof(value) + sum(map(_taken, inside))


def test_what_is_reckoned_is_about_what_it_takes() -> None:
    rng = random.Random(3)
    words = ["x" * rng.randint(0, 2000) for _ in range(50)]
    kinds: list[tuple[pa.DataType, Callable[[], Any]]] = [
        (pa.string(), lambda: rng.choice(words)),
        (pa.binary_view(), lambda: rng.choice(words).encode()),
        (pa.int64(), lambda: rng.randrange(10**9, 10**12)),
        (pa.list_view(pa.float64()), lambda: [rng.random() for _ in range(rng.randint(0, 50))]),
        (pa.struct([("a", pa.large_list(pa.string()))]), lambda: {"a": rng.sample(words, 3)}),
        (pa.run_end_encoded(pa.int32(), pa.string()), lambda: rng.choice(words)),
        (pa.dictionary(pa.int8(), pa.string()), lambda: rng.choice(words)),
        (pa.list_(pa.string_view(), 2), lambda: rng.sample(words, 2)),
    ]
    for kind, drawn in kinds:
        values = [drawn() if rng.random() < 0.9 else None for _ in range(1000)]
        if pa.types.is_run_end_encoded(kind):
            column = pa.compute.run_end_encode(pa.array(values))
        else:
            column = pa.array(values, kind)
        for one in (column, column.slice(100, 700)):
            reckoned = value_limits._sum(value_limits._sizes(one, 2**40, False), len(one))
            taken = sum(map(_taken, one.to_pylist())) + 8 * len(one)
            assert 0.5 * taken < reckoned < 2 * taken, kind


@pytest.mark.parametrize("dense", [True, False])
def test_a_union_that_was_cut_is_reckoned_from_where_it_was_cut(dense: bool) -> None:
    codes, parts = pa.array([0, 0, 1, 1], pa.int8()), [pa.array([1] * 4), pa.array(["x" * LONG] * 4)]
    made = pa.UnionArray
    union = made.from_dense(codes, pa.array(range(4), pa.int32()), parts) if dense else made.from_sparse(codes, parts)
    whole = value_limits._sizes(union, 2**40, False)
    assert value_limits._sizes(union.slice(1), 2**40, False).tolist() == whole[1:].tolist()


@pytest.mark.parametrize(
    ("form", "name"),
    [("csv", "a dictionary"), ("csv", "views of bytes"), ("json", "a dictionary"), ("parquet", "views of lists")],
)
def test_files_of_a_question_are_bounded(form: str, name: str) -> None:
    with _answer(BOMBS[name]) as stream, pytest.raises(Broken, match="take at most"):
        query._WRITERS[form](stream.schema, iter(stream), io.BytesIO())


def test_a_table_has_as_many_letters_as_can_be_laid_out(capsys: pytest.CaptureFixture[str]) -> None:
    with _answer(BOMBS["a dictionary"]) as stream:
        query._table(stream, iter(stream))
    told = capsys.readouterr()
    assert LONG <= told.out.count("x") <= query._LETTERS_MAX
    assert f"and {COUNT - told.out.count('x') // LONG:,} rows more" in " ".join(told.err.split())


@pytest.mark.parametrize("name", ["views", "a dictionary", "runs", "a struct of views"])
def test_values_that_no_tensor_fits_are_bounded(name: str) -> None:
    with pytest.raises(Broken, match="take at most"):
        list_values([BOMBS[name]], "bytes")


def test_tensors_of_bytes_are_bounded_by_what_a_tensor_takes() -> None:
    column = pa.array([b""] * 5_000_000, pa.binary())
    refuse_oversized([column])
    with pytest.raises(Broken, match="take at most"):
        list_values([column], "tensors")
    with pytest.raises(Broken, match="take at most"):
        list_values([BOMBS["views of bytes"]], "tensors")


def test_columns_without_a_tensor_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([COUNT], pa.int32()), pa.array(["x" * 1000]))
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 1500 * COUNT)
    assert len(tensors(pa.record_batch([runs], ["a"]))["a"]) == COUNT
    for blobs in ("bytes", "tensors"):
        with pytest.raises(Broken, match="take at most"):
            tensors(pa.record_batch([runs, runs], ["a", "b"]), blobs=blobs)


LAST = pa.array([2**63 - 1])
UNHELD = {
    "a moment in a list": pa.ListArray.from_arrays([0, 1], LAST.cast(pa.timestamp("us"))),
    "a moment in a part": pa.StructArray.from_arrays([LAST.cast(pa.timestamp("us", "UTC"))], ["a"]),
    "a day in a list": pa.ListArray.from_arrays([0, 1], pa.array([2**31 - 1], pa.int32()).cast(pa.date32())),
    "a duration in a list": pa.ListArray.from_arrays([0, 1], LAST.cast(pa.duration("s"))),
}


@pytest.mark.parametrize("name", UNHELD)
def test_what_python_has_no_form_for_is_said_by_its_column(name: str) -> None:
    batch = pa.record_batch([pa.array(["x"]), UNHELD[name]], ["fine", "late"])
    with pytest.raises(BadInput, match=r"in column late that Python can represent.*leave the column out"):
        tensors(batch)
    assert tensors(batch.slice(1)) == {"fine": [], "late": []}


def test_what_pandas_has_no_form_for_is_said_by_its_column() -> None:
    days = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    with _answer(days) as stream, pytest.raises(BadInput, match="in column c that Python can represent"):
        stream.to_pandas()
    with _answer(pa.array(["x"])) as stream, pytest.raises(pa.ArrowInvalid, match="zero copy"):
        stream.to_pandas(zero_copy_only=True)  # what the caller asks for
    moments = LAST.cast(pa.timestamp("us"))
    with _answer(moments) as stream, pytest.raises(BadInput, match=r"column c .*out of bounds"):
        stream.to_pandas(coerce_temporal_nanoseconds=True)
    assert len(stream.to_pandas()) == 1


def _no_mapping(kind: pa.DataType) -> None:
    raise ValueError(f"nothing for {kind}")


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"zero_copy_only": True}, "zero copy"),
    ({"date_as_object": False, "types_mapper": _no_mapping}, "nothing for date32"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=["no copies", "a mapping of types"])
def test_no_column_is_blamed_for_the_options_of_the_caller(options: dict[str, Any], said: str) -> None:
    days = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    with _answer(days) as stream, pytest.raises(ValueError, match=said):
        stream.to_pandas(**options)


def test_lists_of_one_length_are_bounded() -> None:
    with pytest.raises(Broken, match="take at most"):
        to_array("c", BOMBS["views of lists"], (LONG,))


def test_a_frame_is_bounded() -> None:
    with _answer(BOMBS["views of bytes"]) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()
    with _answer(BOMBS["a dictionary"]) as stream:
        assert len(stream.to_pandas()) == COUNT  # names its values by their places, too


def test_a_frame_is_bounded_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 15 * LONG)
    some = views(pa.binary_view()).slice(0, 10)
    with _answer(some) as stream:
        assert len(stream.to_pandas()) == 10
    with _answer(some, some) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()


ORDINARY = [
    pa.array(["ab"] * COUNT),
    pa.array(["ab"] * COUNT, pa.string_view()),
    pa.array([f"{number}" for number in range(COUNT)]).dictionary_encode(),
    pa.array(range(COUNT), pa.int32()).cast(pa.date32()),
    pa.array([["a", "b"]] * COUNT),
    pa.array([{"a": 1, "review": "b"}] * COUNT),
]


@pytest.mark.parametrize("column", ORDINARY, ids=lambda column: str(column.type))
def test_a_frame_may_have_any_number_of_ordinary_values(column: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 5 * value_limits._OBJECT * COUNT)
    with _answer(*[column] * 10) as stream:
        assert len(stream.to_pandas()) == 10 * COUNT


@pytest.mark.parametrize("column", [pa.nulls(COUNT), pa.array([{}] * COUNT)], ids=lambda column: str(column.type))
def test_a_frame_is_bounded_in_values_of_no_width(column: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 5 * value_limits._NAME * COUNT)
    with _answer(*[column] * 10) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()


def test_a_frame_is_bounded_in_the_words_of_a_dictionary() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), views(pa.binary_view()))
    with _answer(words) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()


@pytest.mark.parametrize("kind", [pa.list_(pa.int16()), pa.large_list(pa.uint8()), pa.list_(pa.int8(), 1000)], ids=str)
def test_images_and_volumes_take_what_came(kind: pa.DataType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers in lists NumPy makes no objects."""
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 40 * COUNT)
    column = pa.array([[1] * 1000] * 50, kind)
    assert to_array("c", column, (10, 100)).shape == (50, 10, 100)
    with _answer(column) as stream:
        assert stream.to_pandas()["c"][49].sum() == 1000
    with pytest.raises(Broken, match="take at most"):
        refuse_oversized([pa.array([[1] * 1000] * 50, pa.list_(pa.float64()))])


def _answer(*parts: pa.Array) -> Stream:
    """One column, each part of it in a batch."""
    schema = pa.schema([("c", parts[0].type)])
    batches = [pa.record_batch([part], schema) for part in parts]
    pieces = ipc(batches, complete(sum(map(len, parts))), schema=schema, codec="zstd")
    with connector({("GET", "/"): chunked(pieces)}) as served:
        return Stream(http_stream.open_stream(http_stream.HttpRequest("GET", served.url)))
