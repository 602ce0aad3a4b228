"""PyTorch for real: DataLoader workers, ranks, StatefulDataLoader, zero copies, two owners."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import traceback
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hanse
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hanse.client import Dataset
from hanse.errors import BadInput
from hanse.loaders import merge
from hanse.loaders.row_slices import join_batches
from hanse.loaders.torch.batches import dataset as torch_dataset
from hanse.loaders.torch.columns import TensorColumns, _send
from hanse.loaders.torch.tensors import tensors
from hanse.options import BatchOptions, TorchOptions
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.suites import loaders
from tests.suites.loaders import BLOCK_ROWS, BLOCKS, ROWS, WIDTH, Case, Rows, sequence
from tests.support import served
from tests.support.gate import agreement, atom
from tests.support.own_name import changed
from tests.support.served import Owner

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def as_rows(batches: Any) -> Rows:
    """Dicts of columns as a list of rows."""
    found: Rows = []
    for batch in batches:
        columns = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found


def _here(dataset: Dataset, **options: Any) -> Rows:
    return as_rows(dataset.to_torch(batch_size=64, **options))


def _workers(dataset: Dataset, **options: Any) -> Rows:
    return as_rows(DataLoader(dataset.to_torch(batch_size=64, **options), batch_size=None, num_workers=3))


@pytest.mark.parametrize("case", [Case("torch", _here, ordered=True), Case("workers", _workers)], ids=lambda c: c.name)
def test_pytorch_passes_the_suite(case: Case, training: Dataset, owner: Owner) -> None:
    loaders.check(case, training, owner)


def test_numbers_and_vectors_are_tensors_over_the_memory_that_came_from_the_wire(training: Dataset) -> None:
    batch = next(iter(training.loader(columns=["id", "vector", "image"], batch_size=100)))
    made = tensors(batch, shapes={"vector": (2, 3)})
    assert made["id"].data_ptr() == batch.column("id").buffers()[1].address + 8 * batch.column("id").offset
    assert made["vector"].shape == (100, 2, 3)
    values = batch.column("vector").flatten()
    assert made["vector"].data_ptr() == values.buffers()[1].address + 4 * values.offset
    assert made["image"][0] == batch.column("image")[0].as_py()


def test_the_python_of_the_guide_runs(training: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanse, "connect", lambda: SimpleNamespace(agree=lambda *_, **__: training))
    states = [training.to_torch(batch_size=256, seed=7, rank=rank, world=2).state_dict() for rank in range(2)]
    names: dict[str, Any] = {"state_of_rank_0": states[0], "state_of_rank_1": states[1]}
    for code in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        exec(code, names)
    assert [row["id"] for row in as_rows(names["dataset"])] == sequence(7)


def test_a_rank_without_their_number_is_refused(training: Dataset) -> None:
    for half in ({"rank": 1}, {"world": 2}):
        with pytest.raises(BadInput, match="rank and world together"):
            training.to_torch(**half)


@pytest.mark.parametrize(
    ("rank", "world", "said"),
    [
        (1, 1, "rank to be from 0 to 0, as world is 1; got 1"),
        (2, 2, "rank to be from 0 to 1, as world is 2; got 2"),
        (-1, 2, "got -1"),
        (0, 0, "expected world to be at least 1, got 0"),
    ],
)
def test_a_rank_that_is_none_of_all_is_refused(training: Dataset, rank: int, world: int, said: str) -> None:
    """Counted from one, the first block would be nobody's."""
    with pytest.raises(BadInput, match=said):
        training.to_torch(rank=rank, world=world)


@pytest.mark.parametrize(("workers", "started"), [(0, None), (1, "fork"), (1, "spawn")])
@pytest.mark.parametrize(
    ("rank", "world", "said"),
    [
        ("5", "2", "expected RANK to be from 0 to 1, as WORLD_SIZE is 2; got 5"),
        ("x", "2", "expected whole numbers for both RANK and WORLD_SIZE .*got RANK=x, WORLD_SIZE=2"),
        (None, "2", "got RANK=None, WORLD_SIZE=2"),
    ],
)
def test_an_environment_of_which_no_rank_follows_is_refused(
    training: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    rank: str | None,
    world: str,
    said: str,
    workers: int,
    started: str | None,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    made = training.to_torch(columns=["id"])
    with pytest.raises(BadInput, match=said):
        list(DataLoader(made, batch_size=None, num_workers=workers, multiprocessing_context=started))
    assert ids(training.to_torch(columns=["id"], rank=0, world=1)) == list(range(ROWS))
    sent = pickle.loads(pickle.dumps(made))  # to a process that knows more
    monkeypatch.setenv("RANK", "0")
    assert len(ids(sent)) == ROWS // 2


def test_a_shape_of_a_column_that_is_not_there_is_refused(training: Dataset) -> None:
    with pytest.raises(BadInput, match="vektor"):
        training.to_torch(shapes={"vektor": (6,)})


def test_tensors_of_all_kinds() -> None:
    batch = pa.record_batch(
        {
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.float32()), 4),
            "shaped": pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.int16(), (2, 2)),
                pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int16()), 4),
            ),
            "gaps": pa.array([1.0, None, 3.0]),
            "yes": pa.array([True, False, True]),
            "when": pa.array([1, 2, 3], pa.timestamp("us")),
        }
    )
    made = tensors(batch)
    assert made["fixed"].shape == (3, 4)
    assert made["shaped"].shape == (3, 2, 2)
    assert made["gaps"].isnan().tolist() == [False, True, False]
    assert made["yes"].dtype == torch.bool
    assert made["when"].tolist() == [1, 2, 3]
    with pytest.raises(BadInput, match="nulls"):
        tensors(pa.record_batch({"n": pa.array([1, None])}))
    with pytest.raises(BadInput, match="every list"):
        tensors(pa.record_batch({"v": pa.array([[1], [1, 2]])}), shapes={"v": (2,)})


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.date32(), pa.time64("us"), pa.duration("s"), pa.int8()], ids=str
)
def test_nulls_that_have_no_number_are_told_with_the_type_that_came(kind: pa.DataType) -> None:
    with pytest.raises(BadInput, match=re.escape(f"expected column n without nulls, which {kind} cannot hold")):
        tensors(pa.record_batch({"n": pa.nulls(2, kind)}))


BYTES = [pa.binary(), pa.large_binary(), pa.binary(3)]


def _as_bytes(column: list[Any]) -> list[bytes | None]:
    return [one if one is None else bytes(one.numpy()) for one in column]


@pytest.mark.parametrize("kind", BYTES, ids=str)
def test_bytes_are_tensors_for_whoever_asks(kind: pa.DataType) -> None:
    batch = pa.record_batch({"b": pa.array([b"abc", None, b"", b"xyz"] if kind != BYTES[-1] else [b"abc", None], kind)})
    for part in (batch, batch.slice(1), batch.slice(0, 1), batch.slice(1, 1), batch.slice(0, 0)):
        assert _as_bytes(tensors(part, blobs="tensors")["b"]) == part["b"].to_pylist()
    both = tensors(batch.slice(1), batch.slice(0, 1), blobs="tensors")
    assert _as_bytes(both["b"]) == [*batch["b"].to_pylist()[1:], b"abc"]
    assert tensors(batch)["b"] == batch["b"].to_pylist()


def test_tensors_of_bytes_lie_where_the_batch_does_and_are_saved_alone() -> None:
    batch = pa.record_batch({"b": pa.array([b"abc", b"defgh"])})
    second = tensors(batch, blobs="tensors")["b"][1]
    assert second.data_ptr() == batch["b"].buffers()[2].address + 3
    assert second.untyped_storage().nbytes() == 5


@pytest.mark.parametrize(("workers", "started"), [(0, None), (2, "fork"), (2, "spawn")])
@pytest.mark.parametrize("gaps", [False, True])
def test_tensors_of_bytes_come_from_workers_however_many_they_are(
    workers: int, started: str | None, gaps: bool, owner: Owner, tmp_path: Path
) -> None:
    """Each with a descriptor of its own, as PyTorch sends them, would be more than a process may have."""
    values = [None if gaps and number % 7 == 3 else b"%d" % number * (number % 5) for number in range(6000)]
    pq.write_table(pa.table({"id": range(6000), "b": pa.array(values, pa.binary())}), tmp_path / "b.parquet")
    dataset = owner.dataset(name=f"bytes-{workers}-{started}-{gaps}", path=tmp_path / "b.parquet")
    rows = dataset.to_torch(batch_size=3000, blobs="tensors")
    found = list(DataLoader(rows, batch_size=None, num_workers=workers, multiprocessing_context=started))
    assert [batch["id"].tolist() for batch in found] == [[*range(3000)], [*range(3000, 6000)]]
    assert [one for batch in found for one in _as_bytes(batch["b"])] == values


@pytest.mark.parametrize("shape", [3, (), (-1,), (2.0, 3), "ab", None])
def test_a_shape_that_is_none_is_refused_before_anything_is_asked(training: Dataset, shape: Any) -> None:
    with pytest.raises(BadInput, match=re.escape("the shape of column vector as whole numbers such as (6,)")):
        training.to_torch(shapes={"vector": shape})


def test_a_shape_may_be_a_list_of_whatever_whole_numbers(training: Dataset) -> None:
    batch = next(iter(training.to_torch(columns=["vector"], batch_size=4, shapes={"vector": [np.int64(2), 3]})))
    assert batch["vector"].shape == (4, 2, 3)


def test_batches_say_what_they_are_of(training: Dataset) -> None:
    made = training.to_torch(columns=["id", "label"], batch_size=64)
    assert (made.rows, made.schema.names) == (ROWS, ["id", "label"])
    assert sum(len(batch["id"]) for batch in made) == made.throughput.rows == ROWS
    with pytest.raises(TypeError):
        len(DataLoader(made, batch_size=None))  # PyTorch would hold the loop to it, and it hangs on the workers
    named = {*inspect.signature(torch_dataset).parameters} - {"datasets", "options"}
    assert named | {*BatchOptions.__annotations__} == {*TorchOptions.__annotations__}


def test_an_epoch_that_is_none_is_refused_and_changes_nothing(training: Dataset) -> None:
    made = training.to_torch(columns=["id"], seed=6)
    with pytest.raises(BadInput, match="expected epoch to be a whole number"):
        made.set_epoch(1.9)
    assert ids(made) == sequence(6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": 3}, "expected form to be a function of an Arrow batch, got 3"),
        ({"blobs": "views"}, "bytes, tensors, got 'views'"),
        ({"blobs": "tensors", "form": list}, "got both"),
        ({"shapes": {"vector": (6,)}, "form": list}, "got both"),
    ],
)
def test_what_bytes_become_is_said_in_one_way(training: Dataset, options: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        training.to_torch(**options)


def test_texts_and_other_values_stay_what_they_are_beside_tensors_of_bytes() -> None:
    batch = pa.record_batch({"t": ["a", None], "l": [[1], []], "d": pa.array([b"a", None]).dictionary_encode()})
    assert tensors(batch, blobs="tensors") == {name: batch[name].to_pylist() for name in "tld"}


def test_pieces_that_cannot_be_one_batch_become_what_they_are() -> None:
    words = [[f"{letter}{n}" for n in range(100)] for letter in "ab"]  # more than one byte can number
    kind = pa.dictionary(pa.int8(), pa.string())
    pieces = [pa.record_batch({"n": pa.array(range(100)), "word": pa.array(each, kind)}) for each in words]
    with pytest.raises(BadInput, match="in column word of a batch"):
        join_batches(pieces)
    made = tensors(*pieces)
    assert (made["n"].tolist(), made["word"]) == ([*range(100)] * 2, words[0] + words[1])


def test_pieces_of_a_batch_become_what_they_would_together() -> None:
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(8), pa.float32()), 2)
    gaps = pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2))  # in one piece, in one not
    batch = pa.record_batch({"n": range(4), "x": [1.0, None, 2.0, 3.0], "p": pairs, "g": gaps, "t": [*"abcd"]})
    made = tensors(batch.slice(2), batch.slice(0, 2))
    _is({**made, "x": made["x"].nan_to_num(7.0)}, {
        "n": torch.tensor([2, 3, 0, 1]), "x": torch.tensor([2.0, 3.0, 1.0, 7.0], dtype=torch.float64),
        "p": torch.tensor([[4.0, 5.0], [6.0, 7.0], [0.0, 1.0], [2.0, 3.0]]),
        "g": [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0], None], "t": [*"cdab"],
    })  # fmt: skip


@pytest.mark.parametrize("values", [[1, 2], ["a", "b"], [["a"], ["b"]], [[[1]], [[2]]]])
def test_a_shape_of_what_is_no_list_of_numbers_is_refused(values: list[Any]) -> None:
    with pytest.raises(BadInput, match="lists of numbers in column v"):
        tensors(pa.record_batch({"v": pa.array(values)}), shapes={"v": (1,)})


LISTS = [pa.list_, pa.large_list, lambda of: pa.list_(of, 2)]


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("drawn", [[[1, 0], [0, 1], [1, 1]], [[True, False], [False, True], [True, True]]])
def test_a_shape_takes_lists_of_every_kind_of_numbers_and_of_truth(listed: Any, drawn: list[list[int]]) -> None:
    batch = pa.record_batch({"v": pa.array(drawn, listed(pa.array(drawn).type.value_type))})
    assert tensors(batch.slice(1), shapes={"v": (1, 2)})["v"].tolist() == [[drawn[1]], [drawn[2]]]


NUMBERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64(),
           pa.float16(), pa.float32(), pa.float64()]  # fmt: skip


@pytest.mark.parametrize("kind", [*NUMBERS, pa.bool_(), pa.date32(), pa.timestamp("ms")], ids=str)
def test_a_slice_of_a_column_is_as_arrow_has_it(kind: pa.DataType) -> None:
    drawn = pa.array([number * 7 % 100 for number in range(40)], pa.uint8())
    whole = pa.record_batch({"n": drawn.cast(f"int{max(32, kind.bit_width)}").cast(kind)})
    for start, stop in ((0, 40), (3, 40), (9, 30), (40, 40)):
        batch = whole.slice(start, stop - start)
        plain = batch["n"] if kind in NUMBERS or kind == pa.bool_() else batch["n"].cast(f"int{kind.bit_width}")
        assert tensors(batch)["n"].tolist() == plain.to_pylist()
    assert tensors(pa.RecordBatch.from_arrays([pa.array([], kind)], ["n"]))["n"].tolist() == []


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_floats_that_are_missing_are_nan_and_others_as_they_are(kind: pa.DataType) -> None:
    batch = pa.record_batch({"n": pa.array([1.5, None, 2.5, None, -4.0], kind)})
    assert [value if value == value else None for value in tensors(batch.slice(1))["n"].tolist()] == [
        None, 2.5, None, -4.0
    ]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_that_ends_in_the_middle_ends_well_and_did_not_wait_for_pandas(
    training: Dataset, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "datasets").write_bytes(pickle.dumps([training]))
    command = [sys.executable, "-m", "tests.frameworks.leaving", str(tmp_path / "datasets"), str(workers)]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


LEFT = """
import os, pickle, sys, time
from torch.utils.data import DataLoader

def stuck(rows):
    print(os.getpid(), flush=True)
    time.sleep(600)

dataset = pickle.loads(open(sys.argv[1], "rb").read())
rows = dataset.to_torch(form=stuck) if sys.argv[2] == "torch" else dataset.to_hf().map(stuck)
next(iter(DataLoader(rows, batch_size=None, num_workers=1)))
"""


@pytest.mark.parametrize("way", ["torch", "hf"])
def test_a_worker_whose_loop_was_killed_ends_while_it_waits(training: Dataset, tmp_path: Path, way: str) -> None:
    """The other ranks wait for the sockets that it was forked with."""
    (tmp_path / "dataset").write_bytes(pickle.dumps(training))
    command = [sys.executable, "-c", LEFT, str(tmp_path / "dataset"), way]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        program.kill()
        try:
            program.communicate(timeout=30)  # the worker has it open, too
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def ids(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["id"].tolist()]


def stateful(dataset: Dataset, *, workers: int, persistent: bool = False, **options: Any) -> StatefulDataLoader:
    made = dataset.to_torch(columns=["id"], seed=6, **{"batch_size": 50, **options})
    return StatefulDataLoader(made, batch_size=None, num_workers=workers, persistent_workers=persistent)


def test_stateful_dataloader_resumes_twice_with_every_row_once(training: Dataset) -> None:
    seen: list[int] = []
    state = None
    for pause in (7, 1, 13):
        loader = stateful(training, workers=3)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        seen += ids(next(batches) for _ in range(pause))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
    last = stateful(training, workers=3)
    last.load_state_dict(state)
    seen += ids(last)
    assert sorted(seen) == list(range(ROWS))


def test_the_number_of_workers_may_change_in_the_middle_of_an_epoch(training: Dataset) -> None:
    loader = stateful(training, workers=3)
    batches = iter(loader)
    seen = ids(next(batches) for _ in range(17))
    state = merge(loader.state_dict())
    seen += ids(stateful(training, workers=2, state=state))
    assert sorted(seen) == list(range(ROWS))


def test_states_that_are_behind_what_was_given_are_not_merged(training: Dataset) -> None:
    made = training.to_torch(columns=["id"], batch_size=50, seed=6)
    loader = StatefulDataLoader(made, batch_size=None, num_workers=2, snapshot_every_n_steps=4)
    batches = iter(loader)
    seen = ids(next(batches) for _ in range(4))
    state = merge(loader.state_dict())
    next(batches)
    with pytest.raises(BadInput, match=r"of 1 batches before it.*snapshot_every_n_steps=1"):
        merge([loader.state_dict()])
    seen += ids(stateful(training, workers=0, state=state))
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent workers", "new workers"])
def test_every_later_epoch_is_whole_and_has_its_own_order(training: Dataset, kind: Any, persistent: bool) -> None:
    made = training.to_torch(columns=["id"], batch_size=50, seed=6)
    loader = kind(made, batch_size=None, num_workers=2, persistent_workers=persistent)
    orders = []
    for epoch in range(3):
        made.set_epoch(epoch)
        found = ids(loader)
        assert sorted(found) == list(range(ROWS))
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize(("workers", "started"), [(0, None), (3, "fork"), (2, "spawn")])
def test_an_epoch_that_is_set_when_an_iteration_has_begun_is_for_the_next_one(
    training: Dataset, kind: Any, workers: int, started: str | None
) -> None:
    def loaded(epoch: int = 0) -> Any:
        made = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6, epoch=epoch)
        return kind(made, batch_size=None, num_workers=workers, multiprocessing_context=started)

    loader, begun = loaded(), []
    for epoch in range(2):
        begun.append(iter(loader))
        loader.dataset.set_epoch(epoch + 1)
    assert [ids(one) for one in begun] == [ids(loaded(epoch)) for epoch in range(2)]


class _Late(IterableDataset[Any]):
    """A dataset whose second worker comes to it when it may."""

    def __init__(self, made: Any) -> None:
        self.made, self.may = made, multiprocessing.Event()

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        if info.id:
            assert self.may.wait(60)
        return iter(self.made)


def test_workers_of_an_iteration_that_would_have_different_epochs_are_an_error(training: Dataset) -> None:
    late = _Late(training.to_torch(columns=["id"], batch_size=50, seed=6))
    loader = DataLoader(late, batch_size=None, num_workers=2, persistent_workers=True, timeout=60)
    late.may.set()
    for epoch in range(3):
        late.made.set_epoch(epoch)
        assert sorted(ids(loader)) == list(range(ROWS))
    late.may.clear()
    begun = iter(loader)
    next(begun)
    late.made.set_epoch(3)
    late.may.set()
    with pytest.raises(BadInput, match="expected set_epoch before an iteration"):
        list(begun)
    assert sorted(ids(loader)) == list(range(ROWS))


@pytest.mark.parametrize("options", [{}, {"batch_size": 64, "drop_last": True}, {"where": "id < 2500"}], ids=str)
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_state_of_the_end_of_an_epoch_is_gone_on_from_with_the_next_one(
    training: Dataset, workers: int, persistent: bool, options: dict[str, Any]
) -> None:
    loader = stateful(training, workers=workers, persistent=persistent, **options)
    whole = ids(loader)
    state = loader.state_dict()
    for epoch in (None, 1):
        rest = stateful(training, workers=workers, persistent=persistent, **options)
        rest.load_state_dict(state)
        if epoch is not None:
            rest.dataset.set_epoch(epoch)
        found = ids(rest)
        assert found == ids(stateful(training, workers=workers, epoch=epoch or 0, **options))
        assert len(found) == len(whole)


@pytest.mark.parametrize("before", [None, 9], ids=["after an epoch", "after a part of one"])
@pytest.mark.parametrize("given", [0, 1, 5])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])
def test_a_state_of_the_beginning_of_a_later_iteration_is_gone_on_from_there(
    training: Dataset, workers: int, persistent: bool, given: int, before: int | None
) -> None:
    """Also of a worker that has given nothing yet: what it did in the one before is no part of the state."""
    loader = stateful(training, workers=workers, persistent=persistent)
    for _ in itertools.islice(loader, before):
        pass
    batches = iter(loader)
    seen = ids(next(batches) for _ in range(given))
    rest = stateful(training, workers=workers, persistent=persistent)
    rest.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert sorted(seen + ids(rest)) == list(range(ROWS))


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_after_the_rest_of_an_epoch_the_next_one_is_whole_without_set_epoch_too(
    training: Dataset, kind: Any, workers: int, persistent: bool
) -> None:
    first = training.to_torch(columns=["id"], batch_size=50, seed=6)
    seen = ids(itertools.islice(first, 17))
    state = merge(first.state_dict())
    rest = training.to_torch(columns=["id"], batch_size=50, seed=6, state=state)
    loader = kind(rest, batch_size=None, num_workers=workers, persistent_workers=persistent)
    for _ in range(1 if persistent else 2):  # workers that live on hear of no other state
        assert sorted(seen + ids(loader)) == list(range(ROWS))
        assert sorted(ids(loader)) == sorted(ids(loader)) == list(range(ROWS))
        rest.load_state_dict(state)


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("given", [1, -2], ids=["at its beginning", "when workers have ended"])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), *itertools.product((1, 2, 3), (False, True))])
def test_after_the_rest_of_an_epoch_is_broken_off_the_next_one_is_whole_for_all_workers(
    training: Dataset, kind: Any, workers: int, persistent: bool, given: int
) -> None:
    first = training.to_torch(columns=["id"], batch_size=50, seed=6)
    seen = ids(itertools.islice(first, 17))
    rest = training.to_torch(columns=["id"], batch_size=50, seed=6, state=merge(first.state_dict()))
    loader = kind(rest, batch_size=None, num_workers=workers, persistent_workers=persistent)
    torch.manual_seed(1)  # workers of the next iteration are seeded alike
    found = ids(itertools.islice(loader, given % ((ROWS - len(seen)) // 50)))
    assert len({*found, *seen}) == len(found + seen)
    torch.manual_seed(1)
    assert sorted(ids(loader)) == sorted(ids(loader)) == list(range(ROWS))
    assert sorted(ids(kind(rest, batch_size=None, num_workers=4))) == list(range(ROWS))


def test_ranks_have_parts_of_the_sequence_in_its_order(training: Dataset) -> None:
    parts = [ids(training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6, rank=r, world=2)) for r in (0, 1)]
    blocks = [part[at : at + BLOCK_ROWS] for at in range(0, ROWS // 2, BLOCK_ROWS) for part in parts]
    assert [row for block in blocks for row in block] == sequence(6)
    assert len(blocks) == BLOCKS


def test_ranks_with_workers_have_as_many_blocks_each_as_can_be(training: Dataset) -> None:
    """The blocks over a whole round are dealt out to the ranks, not to the workers of the first."""
    parts = []
    for rank in (0, 1):
        batches = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6, rank=rank, world=2)
        parts.append(ids(DataLoader(batches, batch_size=None, num_workers=4)))
    assert [len(part) for part in parts] == [BLOCKS // 2 * BLOCK_ROWS] * 2
    assert sorted(parts[0] + parts[1]) == list(range(ROWS))


def begin_group(monkeypatch: pytest.MonkeyPatch, *, rank: int, world: int) -> None:
    """Have the loader find a process group, in which this process has that rank."""
    group = {"is_initialized": lambda: True, "get_rank": lambda: rank, "get_world_size": lambda: world}
    distributed = changed(torch.distributed, **group)
    monkeypatch.setattr("hanse.loaders.torch.batches.torch", changed(torch, distributed=distributed))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataset_that_is_made_before_its_rank_is_known_is_of_that_rank(
    training: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int, method: str
) -> None:
    """As where ranks are spawned with a dataset, or the process group is begun after it."""
    made = pickle.dumps(training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6))
    parts = []
    for rank in range(2):
        begin_group(monkeypatch, rank=rank, world=2)
        context = method if workers else None
        loader = DataLoader(pickle.loads(made), batch_size=None, num_workers=workers, multiprocessing_context=context)
        parts.append(ids(loader))
    assert sorted(parts[0] + parts[1]) == list(range(ROWS))
    given = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6, rank=0, world=1)
    assert ids(given) == sequence(6)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_a_group_have_its_ranks_where_the_environment_counts_nodes(
    training: Dataset, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As in PyTorch's own example of ImageNet: a process group has a rank for each GPU, RANK and WORLD_SIZE are of
    nodes, and a worker that is spawned knows of no group."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6)
    parts = []
    for rank in range(4):
        begin_group(monkeypatch, rank=rank, world=4)
        parts.append(ids(DataLoader(made, batch_size=None, num_workers=1, multiprocessing_context=method)))
    assert sorted(itertools.chain(*parts)) == list(range(ROWS))


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_that_are_sent_a_dataset_have_an_epoch_each(training: Dataset, workers: int) -> None:
    """One that is ahead changes nothing for the others; memory that is shared would."""
    made = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6)
    sent = [ForkingPickler.loads(ForkingPickler.dumps(made)) for _ in range(2)]
    sent[0].set_epoch(1)
    assert [ids(DataLoader(one, batch_size=None, num_workers=workers)) for one in sent] == [
        sequence(6, epoch=1),
        sequence(6),
    ]


def test_a_group_of_one_has_all_rows(training: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = training.to_torch(columns=["id"], batch_size=BLOCK_ROWS, seed=6)
    begin_group(monkeypatch, rank=0, world=1)
    assert ids(made) == sequence(6)


@pytest.mark.timeout(300)  # two processes load PyTorch, and their eight workers share this machine with the owners
def test_two_ranks_with_four_workers_each_train_on_batches_of_two_owners(
    owner: Owner, training: Dataset, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served.owner(tmp_path_factory.mktemp("second"), rows=10) as other:
        second = other.dataset(name="training", path=loaders.write(tmp_path / "second"))
        (tmp_path / "datasets").write_bytes(pickle.dumps([training, second]))
        ranks = [_rank(number, tmp_path) for number in range(2)]
        for rank in ranks:
            assert rank.wait(280) == 0, (tmp_path / "log").read_text()[-3000:]
    said = [json.loads((tmp_path / f"rank-{number}").read_text()) for number in range(2)]
    assert sorted(said[0]["ids"] + said[1]["ids"]) == sorted([*range(ROWS)] * 2)
    assert said[0]["weights"] == said[1]["weights"]  # the gradients were shared
    assert said[0]["last"] < said[0]["first"]


def _rank(number: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RANK": str(number), "WORLD_SIZE": "2", "PYTHONPATH": os.getcwd()}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.frameworks.rank", str(folder), str(WIDTH)],
            env=environment,
            stdout=log,
            stderr=log,
        )


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_what_an_error_knows_comes_from_a_worker_too(owner: Owner, training: Dataset, kind: Any) -> None:
    once = owner.dataset(agreement(atom("odrl:count", "lteq", "1"), action="odrl:use"), name="training")
    batches = once.to_torch(columns=["id"], batch_size=50)
    assert len(ids(batches)) == ROWS
    told = []
    for workers in (0, 2):
        with pytest.raises(hanse.QuotaSpent) as caught:
            list(kind(batches, batch_size=None, num_workers=workers))
        told.append(_known(caught.value))
    assert told[0] == told[1]
    assert told[1][1:3] == ("count_spent", "/permission/0/constraint/0")
    assert "in DataLoader worker process" in "".join(traceback.format_exception(caught.value))
    assert _known(pickle.loads(pickle.dumps(caught.value))) == told[1]


class Unclear(BadInput):
    def __init__(self, *, picture: str) -> None:
        super().__init__(f"expected a picture, came {picture}", code="unclear", picture=picture)


def _unclear(_: pa.RecordBatch) -> Any:
    try:
        raise ValueError("nothing to be seen")
    except ValueError as error:
        told = Unclear(picture="a.png")
        told.add_note("look at it")
        raise told from error


def test_an_error_with_words_of_its_own_comes_from_a_worker_with_its_cause_and_notes(training: Dataset) -> None:
    batches = training.to_torch(columns=["id"], batch_size=50, form=_unclear)
    with pytest.raises(Unclear) as caught:
        list(DataLoader(batches, batch_size=None, num_workers=1))
    assert _known(caught.value) == ("expected a picture, came a.png", "unclear", "", {"picture": "a.png"})
    whole = "".join(traceback.format_exception(caught.value))
    assert "nothing to be seen" in whole
    assert whole.count("look at it") == 1


class _Open(BadInput):
    def __init__(self) -> None:
        super().__init__("expected what can be sent")
        self.look = lambda: None


def _open(_: pa.RecordBatch) -> Any:
    raise _Open


def test_an_error_that_cannot_be_sent_whole_ends_the_loop_all_the_same(training: Dataset) -> None:
    batches = training.to_torch(columns=["id"], batch_size=50, form=_open)
    with pytest.raises(RuntimeError, match="expected what can be sent"):  # PyTorch's: the class takes no text
        list(DataLoader(batches, batch_size=None, num_workers=1, timeout=60))


def test_a_state_of_another_reader_is_refused_by_its_sentence_in_a_worker_too(training: Dataset) -> None:
    batches = training.to_torch(columns=["id"], batch_size=50)
    batches.load_state_dict(batches.state_dict())
    with pytest.raises(BadInput) as caught:
        list(DataLoader(batches, batch_size=None, num_workers=2))
    assert re.fullmatch("expected a state of reader 0 of 2, got one of reader 0 of 1; .*", str(caught.value))


def _known(error: hanse.HanseError) -> tuple[str, str, str, dict[str, Any]]:
    return str(error), error.code, error.rule, error.facts


def _never(_: pa.RecordBatch) -> Any:
    raise ValueError("a picture that cannot be read")


def test_errors_that_are_not_ours_come_as_pytorch_brings_them(training: Dataset) -> None:
    batches = training.to_torch(columns=["id"], batch_size=50, form=_never)
    with pytest.raises(ValueError, match=r"(?s)worker process.*a picture that cannot be read"):
        list(DataLoader(batches, batch_size=None, num_workers=1))


def test_tensors_of_one_type_go_between_processes_as_one_and_come_as_they_were() -> None:
    made = {
        "text": ["a", None],
        "id": torch.arange(2),
        "more": [torch.arange(3), None, "broken", torch.tensor([], dtype=torch.int64)],
        "bytes": [b"x", b"yz"],
        "yes": torch.tensor([True, False]),
        "shaped": torch.arange(12, dtype=torch.int16).reshape(2, 2, 3),
        "every second": torch.arange(4.0)[::2],
        "none": torch.empty((0, 5)),
    }
    _, (_, numbers) = _send(TensorColumns(made))
    assert {kind: len(joined) for kind, joined in numbers.items()} == {
        torch.int64: 5, torch.bool: 2, torch.int16: 12, torch.float32: 2
    }  # fmt: skip
    found = _sent(TensorColumns(made))
    assert (type(found), list(found)) == (dict, list(made))
    _is(found, made)
    assert found["id"].untyped_storage().nbytes() == 16, "one that is saved takes no others along"


class Boxes(torch.Tensor):
    """As torchvision has them: a tensor that knows more."""


def _strange(batch: pa.RecordBatch) -> dict[str, Any]:
    boxes = torch.ones(2, 4).as_subclass(Boxes)
    boxes.canvas = (480, 640)
    return {
        "id": torch.tensor(batch["id"].to_pylist()),
        "decoded": [torch.tensor([1]), "broken", None, -1.0, torch.eye(2).to_sparse()],
        "sparse": torch.eye(3).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.quint8),
        "learned": torch.nn.Parameter(torch.ones(3)),
        "boxes": [boxes],
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of nested and quantized tensors
def test_what_is_no_plain_tensor_comes_from_a_worker_as_it_is_without(training: Dataset) -> None:
    made = training.to_torch(columns=["id"], batch_size=1000, form=_strange)
    found = list(DataLoader(made, batch_size=None, num_workers=1, timeout=60))
    for one, other in zip(found, made, strict=True):
        numbers, others = (batch.pop("quantized").int_repr() for batch in (one, other))  # PyTorch sends no more of it
        assert torch.equal(numbers, others)
        assert repr(one) == repr(other)
    assert [(type(batch["boxes"][0]), batch["boxes"][0].canvas) for batch in found] == [(Boxes, (480, 640))] * 3


def _open_columns(_: pa.RecordBatch) -> Any:
    return {"picture": torch.ones(1), "look": lambda: None}


def _open_pair(_: pa.RecordBatch) -> Any:
    return torch.ones(1), lambda: None


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("started", ["fork", "spawn"])
@pytest.mark.parametrize("form", [_open_columns, _open_pair])
def test_a_batch_that_cannot_be_sent_is_an_error_in_the_loop(
    training: Dataset, kind: Any, started: str, form: Any
) -> None:
    made = training.to_torch(columns=["id"], batch_size=1000, form=form)
    loader = kind(made, batch_size=None, num_workers=1, timeout=60, multiprocessing_context=started)
    with pytest.raises(BadInput, match=r"expected a batch that can be pickled.*_open_.*<lambda>.*num_workers=0"):
        list(loader)


FLAT = ["id", "image"]


def _loaded(dataset: Dataset, *, workers: int = 2, batch_size: int = 64, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset.to_torch(columns=FLAT, batch_size=batch_size),
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        **options,
    )


def test_batches_that_are_kept_stay_as_they_are(training: Dataset) -> None:
    here = list(training.to_torch(columns=FLAT, batch_size=64))
    kept = list(_loaded(training, workers=1))
    assert len(kept) == len(here) > 8
    assert as_rows(kept) == as_rows(here)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_of_start_give_the_same(training: Dataset, method: str) -> None:
    found = as_rows(_loaded(training, multiprocessing_context=method))
    assert sorted(row["id"] for row in found) == sorted(
        row["id"] for row in as_rows(training.to_torch(columns=FLAT, batch_size=64))
    )


def _shifted(batch: Any) -> Any:
    assert "id" in batch.keys()  # noqa: SIM118  as a loop's own code may ask
    return {"id": batch["id"] + 1, "images": len(batch["image"]), "columns": sorted(batch)}


def test_a_collate_function_in_the_worker_finds_the_columns(training: Dataset) -> None:
    found = list(_loaded(training, collate_fn=_shifted))
    assert sorted(number for batch in found for number in batch["id"].tolist()) == list(range(1, ROWS + 1))
    assert {"id", "image"} <= set(found[0]["columns"])


def _looked_at(batch: Any) -> Any:
    batch["id"] += 1
    return batch


def _copied(batch: Any) -> Any:
    copy.copy(batch)
    return batch


def test_workers_that_copy_their_batches_fill_different_memory_in_every_epoch(training: Dataset) -> None:
    made = training.to_torch(columns=FLAT, batch_size=64)
    loaders = [DataLoader(made, batch_size=None, num_workers=2, collate_fn=_copied, timeout=60) for _ in range(2)]
    here = as_rows(loaders[0])
    begun = [iter(loader) for loader in loaders]  # of the second epoch, by turns
    kept: list[list[Any]] = [[], []]
    for batches in itertools.zip_longest(*begun):
        for own, batch in zip(kept, batches, strict=True):
            own.append(batch)
    assert [as_rows(own) for own in kept] == [here, here]


def test_what_somebody_changed_in_the_worker_comes_changed(training: Dataset) -> None:
    found = list(_loaded(training, collate_fn=_looked_at))
    assert sorted(number for batch in found for number in batch["id"].tolist()) == list(range(1, ROWS + 1))


def test_a_copy_of_a_dataset_has_batches_of_its_own(training: Dataset) -> None:
    one = training.to_torch(columns=FLAT, batch_size=64)
    here = as_rows(one)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        theirs = iter(DataLoader(other, batch_size=None, num_workers=1))
        begun = [next(theirs) for _ in range(5)]  # so that the two are at different places
        assert as_rows(DataLoader(one, batch_size=None, num_workers=1)) == here
        assert as_rows([*begun, *theirs]) == here


class _Made(IterableDataset[Any]):
    """A dataset that makes ours where it runs."""

    def __init__(self, training: Dataset) -> None:
        self._training = training

    def __iter__(self) -> Any:
        yield from self._training.to_torch(columns=FLAT, batch_size=64, rank=0, world=1)


def test_a_dataset_that_is_made_in_a_worker_gives_the_same(training: Dataset) -> None:
    found = as_rows(DataLoader(_Made(training), batch_size=None, num_workers=1))
    assert found == as_rows(training.to_torch(columns=FLAT, batch_size=64))


class _Wide(IterableDataset[Any]):
    """Batches of more columns than a process may open files."""

    def __iter__(self) -> Any:
        names = [f"a column with a long name and the number {number}" for number in range(6000)]
        for start in range(12):
            yield TensorColumns(tensors(pa.record_batch([pa.array([start, start + 1])] * len(names), names)))


def test_a_wide_batch_comes_from_a_worker_as_any_other() -> None:
    found = list(DataLoader(_Wide(), batch_size=None, num_workers=1, timeout=60))
    assert [batch["a column with a long name and the number 5999"].tolist() for batch in found] == [
        [start, start + 1] for start in range(12)
    ]


def _sent(columns: TensorColumns) -> Any:
    """As by the queue from a worker."""
    return ForkingPickler.loads(ForkingPickler.dumps(columns))


def _is(made: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(made) == list(expected)
    for name, value in expected.items():
        listed = isinstance(value, list)
        for one, other in zip(made[name], value, strict=True) if listed else [(made[name], value)]:
            assert type(one) is type(other), name
            if isinstance(other, torch.Tensor):
                assert (one.dtype, one.shape) == (other.dtype, other.shape), name
                assert torch.equal(one, other), name
            else:
                assert one == other, name


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch)), _sent],
    ids=["copy", "deepcopy", "pickle", "queue"],
)
def test_a_copy_of_a_batch_has_its_values(copied: Any) -> None:
    made = tensors(pa.record_batch({"n": [1, 2], "x": [1.5, 2.5], "y": [0.5, 3.5], "t": ["a", "b"]}))
    found = copied(TensorColumns(made))
    _is(found, made)
    found["x"].mul_(2)  # in the loop each may be changed as a tensor of its own
    assert found["y"].tolist() == [0.5, 3.5]


def _joined(batch: Any) -> Any:
    return batch | {"more": 1} if "id" in batch else None


def test_a_batch_in_the_worker_is_joined_with_others_as_dicts_are(training: Dataset) -> None:
    found = list(_loaded(training, collate_fn=_joined))
    assert {batch["more"] for batch in found} == {1}
    assert sum(len(batch["id"]) for batch in found) == ROWS
    numbers = training.to_torch(columns=["id"], batch_size=50, drop_last=True)
    pairs = list(DataLoader(numbers, batch_size=2, num_workers=1, drop_last=True))
    assert pairs[0]["id"].shape == (2, 50)
