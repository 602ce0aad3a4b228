"""What a batch becomes in Python is bounded: a few bytes that say one value many times, or values of no width."""

from __future__ import annotations

import array
import base64
import io
import random
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hanse._arrow import value_limits
from hanse._arrow.value_limits import refuse_oversized, refuse_types
from hanse._transport import http_stream
from hanse.cli import query
from hanse.errors import BadInput, Broken
from hanse.loaders.torch.tensors import tensors, to_array
from hanse.plan import Plan
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


REFUSED = {
    "views": views(pa.string_view()),
    "views of bytes": views(pa.binary_view()),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([COUNT], pa.int32()), TEXT),
    "views of lists": pa.ListViewArray.from_arrays(places(0), places(LONG), pa.array(bytes(LONG), pa.int8())),
    "large views of lists": pa.array([[1]], pa.large_list_view(pa.int8())),
    "views in a list": pa.ListArray.from_arrays(pa.array([0, COUNT], pa.int32()), views(pa.string_view())),
    "a struct of views": pa.StructArray.from_arrays([views(pa.string_view())], ["a"]),
    "a map of views": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string_view())),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), views(pa.string_view())),
    "a dense union": pa.UnionArray.from_dense(SAME, places(0), [TEXT]),
    "views in a union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [views(pa.string_view()).slice(0, 1)]),
    "a dictionary of views": pa.DictionaryArray.from_arrays(SAME, views(pa.string_view())),
    "a dictionary of lists": pa.DictionaryArray.from_arrays(SAME, pa.array([["x" * LONG]])),
    "lists without a width": of_no_width(pa.list_(pa.int8(), 0), pa.array([], pa.int8())),
    "structs of nothing": of_no_width(pa.struct([])),
    "bytes without a width": pa.array([b""], pa.binary(0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_types_whose_values_share_bytes_are_refused_before_any_batch(name: str) -> None:
    """Arrow would validate each text of a view where it is named: of a few megabytes, for hours."""
    schema = pa.schema([("fine", pa.int64()), ("c", REFUSED[name].type)])
    with pytest.raises(Broken, match="views, run ends, dense unions or types without a width in c"):
        _opened([schema.serialize().to_pybytes()])
    said = base64.b64encode(schema.serialize().to_pybytes()).decode()
    answer = {"snapshot": "s", "plan": "p", "shown": "m", "blocks": [], "rows": 0, "exact": True, "schema": said}
    with pytest.raises(Broken, match="in c; leave them out"):
        Plan.read(answer, columns=(), where="")


BOMBS = {
    "a dictionary": pa.DictionaryArray.from_arrays(SAME, TEXT),
    "a dictionary of bytes": pa.DictionaryArray.from_arrays(SAME, TEXT.cast(pa.large_binary())),
    "a list of a dictionary": pa.ListArray.from_arrays(
        pa.array([0, COUNT], pa.int32()), pa.DictionaryArray.from_arrays(SAME, TEXT)
    ),
    "a struct of a dictionary": pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(SAME, TEXT)], ["a"]),
    "a union": pa.UnionArray.from_sparse(SAME, [pa.DictionaryArray.from_arrays(SAME, TEXT)]),
    "small structs": pa.StructArray.from_arrays([pa.array(bytes(30_000_000), pa.int8())], ["a"]),
    "small lists": pa.ListArray.from_arrays(
        pa.array([0, 60_000_000], pa.int32()), pa.array(bytes(60_000_000), pa.int8())
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_gigabytes_is_refused(name: str) -> None:
    with pytest.raises(Broken, match="expected a batch whose values take at most"):
        refuse_oversized([BOMBS[name]])
    refuse_oversized([BOMBS[name].slice(1, 20)])


def _decimals(value: int) -> pa.Array:
    return pa.Array.from_buffers(
        pa.decimal128(5, 2), 1, [None, pa.py_buffer(value.to_bytes(16, "little", signed=True))]
    )


def _text(data: bytes, *offsets: int) -> pa.Array:
    buffers = [None, pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


WRONG = {
    "not UTF-8": _text(b"ab\xffcd", 0, 2, 5),
    "a cut letter": _text("ü".encode(), 0, 1, 2),
    "backwards": _text(b"abcd", 0, 3, 2, 4),
    "far and back": _text(b"abcd", 0, 1 << 30, 4),
    "not UTF-8 in a list": pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), _text(b"ab\xffcd", 0, 2, 5)),
    "a decimal too large by one": _decimals(100_000),
    "a decimal too small by one": _decimals(-100_000),
    "the widest decimal": _decimals(2**127 - 1),
    "a word that is not there": pa.DictionaryArray.from_arrays(pa.array([7], pa.int8()), ["a"], safe=False),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_is_not_what_it_says_is_refused(name: str) -> None:
    with _answer(WRONG[name]) as stream, pytest.raises(Broken, match="expected an Arrow stream"):
        list(stream)


HONEST = [
    pa.array(["a", "b", None, "a"]).dictionary_encode(),
    pa.array([[1.5] * 1000] * 500),
    pa.array([], pa.string()),
    pa.array([], pa.string()).dictionary_encode(),
    pa.array([None, None], pa.dictionary(pa.int8(), pa.string())),
    pa.array([[], None, [("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int8()))),
    pa.nulls(1_000_000),
    pa.array([{"a": "x", "b": [{"c": 1, "d": None}]}, None], pa.struct([
        ("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.int8()), ("d", pa.string())])))
    ])),
]  # fmt: skip


@pytest.mark.parametrize("column", HONEST, ids=lambda column: f"{len(column)} {column.type}")
def test_what_is_there_may_be_made(column: pa.Array) -> None:
    refuse_types(pa.schema([("c", column.type)]))
    refuse_oversized([column])
    refuse_oversized([column.slice(1)])


def test_unions_that_came_and_are_empty_end_no_process() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])]).slice(0, 0)
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
        (pa.binary(), lambda: rng.choice(words).encode()),
        (pa.int64(), lambda: rng.randrange(10**9, 10**12)),
        (pa.list_(pa.float64()), lambda: [rng.random() for _ in range(rng.randint(0, 50))]),
        (pa.struct([("a", pa.large_list(pa.string()))]), lambda: {"a": rng.sample(words, 3)}),
        (pa.dictionary(pa.int8(), pa.string()), lambda: rng.choice(words)),
        (pa.list_(pa.string(), 2), lambda: rng.sample(words, 2)),
    ]
    for kind, drawn in kinds:
        values = [drawn() if rng.random() < 0.9 else None for _ in range(1000)]
        column = pa.array(values, kind)
        for one in (column, column.slice(100, 700)):
            reckoned = value_limits._size(one, False)
            taken = sum(map(_taken, one.to_pylist())) + 8 * len(one)
            assert 0.5 * taken < reckoned < 2 * taken, kind


@pytest.mark.parametrize("form", ["csv", "json"])
def test_files_of_a_question_are_bounded(form: str) -> None:
    with _answer(BOMBS["a dictionary"]) as stream, pytest.raises(Broken, match="take at most"):
        query._WRITERS[form](stream.schema, iter(stream), io.BytesIO())


def test_a_table_has_as_many_letters_as_can_be_laid_out(capsys: pytest.CaptureFixture[str]) -> None:
    with _answer(BOMBS["a dictionary"]) as stream:
        query._print_answer_table(stream, iter(stream))
    told = capsys.readouterr()
    assert LONG <= told.out.count("x") <= query._LETTERS_MAX
    assert f"and {COUNT - told.out.count('x') // LONG:,} rows more" in " ".join(told.err.split())


@pytest.mark.parametrize("name", BOMBS)
def test_values_that_no_tensor_fits_are_bounded(name: str) -> None:
    with pytest.raises(Broken, match="take at most"):
        tensors(pa.record_batch([BOMBS[name]], ["a"]))


def test_tensors_of_bytes_are_bounded_by_what_a_tensor_takes() -> None:
    column = pa.array([b""] * 5_000_000, pa.binary())
    refuse_oversized([column])
    with pytest.raises(Broken, match="take at most"):
        tensors(pa.record_batch([column], ["a"]), blobs="tensors")


def test_columns_without_a_tensor_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    words = pa.DictionaryArray.from_arrays(SAME, ["x" * 1000])
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 1500 * COUNT)
    assert len(tensors(pa.record_batch([words], ["a"]))["a"]) == COUNT
    for blobs in ("bytes", "tensors"):
        with pytest.raises(Broken, match="take at most"):
            tensors(pa.record_batch([words, words], ["a", "b"]), blobs=blobs)


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


def test_a_frame_is_bounded() -> None:
    with _answer(BOMBS["a list of a dictionary"]) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()
    with _answer(BOMBS["a dictionary"]) as stream:
        assert len(stream.to_pandas()) == COUNT  # names its values by their places, too


def test_a_frame_is_bounded_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 15 * LONG)
    some = pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(SAME, TEXT)], ["a"]).slice(0, 10)
    with _answer(some) as stream:
        assert len(stream.to_pandas()) == 10
    with _answer(some, some) as stream, pytest.raises(Broken, match="take at most"):
        stream.to_pandas()


ORDINARY = [
    pa.array(["ab"] * COUNT),
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


def test_a_frame_is_bounded_in_values_of_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_limits, "_GROWTH_MAX", 5 * value_limits._NAME * COUNT)
    with _answer(*[pa.nulls(COUNT)] * 10) as stream, pytest.raises(Broken, match="take at most"):
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
    return _opened(ipc(batches, complete(sum(map(len, parts))), schema=schema, codec="zstd"))


def _opened(pieces: list[bytes]) -> Stream:
    with connector({("GET", "/"): chunked(pieces)}) as served:
        return Stream(http_stream.open_stream(http_stream.HttpRequest("GET", served.url)))
