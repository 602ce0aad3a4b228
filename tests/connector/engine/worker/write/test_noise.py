"""The noise itself: its size and shape against theory, over many draws; which groups are shown."""

from __future__ import annotations

import functools
import math

import pyarrow as pa
import pytest

from connector.engine.pool.error_codes import Coded
from connector.engine.worker.write import noise

DRAWS = 20_000


def plan(**more: object) -> dict[str, object]:
    usual = {"columns": {"rows": 1}, "keys": False, "rows": 1, "epsilon": 1.0, "delta": 1e-6, "groups": 100_000}
    return usual | more


def noised(table: pa.Table, plan: dict[str, object], *, at_once: int = 1_000) -> pa.Table:
    return noise.add(table.schema, table.to_batches(max_chunksize=at_once), plan)


def drawn(value: int, sensitivity: int, epsilon: float) -> list[int]:
    table = pa.table({"rows": pa.array([value] * DRAWS, pa.int64())})
    found = noised(table, plan(columns={"rows": sensitivity}, epsilon=epsilon))
    return [int(one) - value for one in found["rows"].to_pylist()]


def distance(values: list[int], scale: float) -> float:
    """The largest gap between the observed distribution and the discrete Laplace one (Kolmogorov and Smirnov)."""
    ratio = math.exp(-1 / scale)

    def below(number: int) -> float:  # P(X <= number)
        tail = ratio ** abs(number) / (1 + ratio)
        return 1 - ratio * tail if number >= 0 else tail

    ordered = sorted(values)
    seen = {value: index + 1 for index, value in enumerate(ordered)}
    return max(abs(count / len(ordered) - below(value)) for value, count in seen.items())


@pytest.mark.parametrize(("sensitivity", "epsilon"), [(1, 1.0), (3, 0.1), (30_000, 0.5)])
def test_noise_has_the_shape_and_size_that_epsilon_asks_for(sensitivity: int, epsilon: float) -> None:
    scale = sensitivity / epsilon
    values = drawn(1_000_000, sensitivity, epsilon)
    assert distance(values, scale) < 2.5 / math.sqrt(DRAWS)  # exceeded by chance less than once in 100,000 runs
    assert distance(values, scale * 1.2) > 2.5 / math.sqrt(DRAWS)  # the measure tells a wrong size from the right one


def test_epsilon_is_shared_by_all_columns_of_an_answer() -> None:
    rows = [1_000] * DRAWS
    table = pa.table({"rows": pa.array(rows, pa.int64()), "sum 0": pa.array(rows, pa.int64())})
    found = noised(table, plan(columns={"rows": 1, "sum 0": 1}, epsilon=1.0))
    for name in ("rows", "sum 0"):
        assert distance([one - 1_000 for one in found[name].to_pylist()], 2.0) < 2.5 / math.sqrt(DRAWS)


def test_groups_of_one_unit_do_not_show_and_large_ones_do() -> None:
    table = pa.table(
        {"town": [f"t{n}" for n in range(5_000)], "units": pa.array([1] * 4_990 + [500] * 10, pa.int64()),
         "rows": pa.array([1] * 4_990 + [700] * 10, pa.int64())}
    )  # fmt: skip
    found = noised(table, plan(columns={"units": 1, "rows": 1}, keys=True, epsilon=1.0, delta=1e-7))
    assert set(found["town"].to_pylist()) == {f"t{n}" for n in range(4_990, 5_000)}
    assert all(abs(count - 500) < 200 for count in found["units"].to_pylist())
    assert all(abs(count - 700) < 200 for count in found["rows"].to_pylist())


def test_a_threshold_lets_a_group_of_one_unit_through_as_rarely_as_delta_says() -> None:
    """With a large delta the probability can be seen: 2 % here, of 20,000 groups."""
    table = pa.table({"town": list(range(DRAWS)), "units": pa.array([1] * DRAWS, pa.int64())})
    found = noised(table, plan(columns={"units": 1}, keys=True, epsilon=0.5, delta=0.02))
    assert 0 < found.num_rows <= 0.02 * DRAWS + 5 * math.sqrt(0.02 * DRAWS)


def test_an_empty_answer_stays_empty_and_a_total_of_nothing_is_answered() -> None:
    empty = pa.table({"town": pa.array([], pa.string()), "units": pa.array([], pa.int64())})
    assert noised(empty, plan(columns={"units": 1}, keys=True)).num_rows == 0
    nothing = pa.table({"rows": pa.array([0], pa.int64())})
    assert noised(nothing, plan()).num_rows == 1


def towns(counts: list[int]) -> pa.Table:
    return pa.table({"town": list(range(len(counts))), "units": pa.array(counts, pa.int64())})


def refused_at(counts: list[int], *, most: int, delta: float) -> bool:
    try:
        noised(towns(counts), plan(columns={"units": 1}, keys=True, delta=delta, groups=most), at_once=3)
    except Coded as refusal:
        return refusal.code == "groups_max"
    return False


def test_more_groups_than_are_answered_are_refused() -> None:
    assert refused_at([10_000] * 11, most=10, delta=1e-12)
    assert not refused_at([10_000] * 10, most=10, delta=1e-12)


# Two tables that differ in one row, and the limit that their true groups keep and exceed.
NEIGHBOURS = {
    "one group of one more": ([1] * 10, [1] * 11, 10),
    "one of one beside ten that are always shown": ([10_000] * 10, [10_000] * 10 + [1], 10),
    "one unit more in a group that noise decides on": ([7] * 11, [7] * 10 + [8], 10),
    "one group of one more where noise decides": ([7] * 10, [7] * 10 + [1], 9),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_refusal_for_many_groups_tells_of_one_row_no_more_than_epsilon_and_delta(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 draws are within 0.12 of their probability but once in 10^12 times (Hoeffding)."""
    monkeypatch.setattr(noise, "_release", functools.cache(noise._release))
    *tables, most = NEIGHBOURS[name]
    rates = [sum(refused_at(table, most=most, delta=0.02) for _ in range(1_000)) / 1_000 for table in tables]
    for one, other in (rates, reversed(rates)):
        assert one <= math.e * other + 0.02 + 0.12 * (1 + math.e)
    if "decide" in name:
        assert all(0.1 < rate < 0.9 for rate in rates)


def test_order_and_batches_of_an_answer_tell_of_no_group_that_is_left_out() -> None:
    counts = [1_000] * 20
    for gone in range(1, 20):
        counts[gone:gone] = [1] * 50
    table = noised(towns(counts), plan(columns={"units": 1}, keys=True, delta=1e-12), at_once=7)
    shown = table["town"].to_pylist()
    assert (len(shown), table["town"].num_chunks) == (20, 1)
    assert shown != sorted(shown)  # by chance in order once in 10^18 times
