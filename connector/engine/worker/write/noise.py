"""Differentially private noise on the answer of a private statement.

Runs in a worker: true counts never leave this process. Discrete Laplace noise by OpenDP, which is proved safe for
floats; each column gets an equal share of the answer's epsilon. The existence of a group depends on data, so groups of
too few units are left out by their noisy count (OpenDP's threshold release). The true number of groups decides nothing:
groups are read batch by batch, and the limit counts the groups that noise has selected, which costs no privacy
(decision 10).
Knows nothing of budgets or SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import SystemRandom
from typing import Any

import pyarrow as pa

from connector.engine.pool.error_codes import Coded

_LARGEST = 2**62
_TRIES = 64
UNITS = "units"


def add(schema: pa.Schema, batches: Iterable[pa.RecordBatch], plan: Mapping[str, Any]) -> pa.Table:
    """Return the rows with noise in their counted columns, without too small groups, in one shuffled batch.

    `plan`: `columns` (name -> L1 sensitivity, whole), `keys` (whether rows are groups that data has made), `rows` (how
    many rows of one unit count), `epsilon` and `delta` of this answer, `groups` (the most that it may have). Neither
    order nor number of batches reveals the groups that are left out. Raises: Coded("groups_max") for too many groups.
    """
    columns: dict[str, int] = dict(plan["columns"])
    share = float(plan["epsilon"]) / len(columns)
    if plan["keys"]:
        batches = _chosen(batches, plan, epsilon=share)
        columns.pop(UNITS)
    table = pa.Table.from_batches(batches, schema)
    for name, sensitivity in columns.items():
        table = _with(table, name, _noisy(table.column(name).to_pylist(), sensitivity, epsilon=share))
    order = list(range(table.num_rows))
    SystemRandom().shuffle(order)
    return table.take(pa.array(order, pa.int64())).combine_chunks()


def _opendp() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError:
        raise Coded("noise_unavailable") from None
    dp.enable_features("contrib")
    return dp


def _noisy(values: list[int], sensitivity: int, *, epsilon: float) -> list[int]:
    """Return each value with discrete Laplace noise; all together cost at most epsilon."""
    if not values:
        return []
    dp = _opendp()
    domain = dp.vector_domain(dp.atom_domain(T=dp.i64))
    scale = sensitivity / epsilon
    for _ in range(_TRIES):
        release = dp.m.make_laplace(domain, dp.l1_distance(T=dp.i64), scale=scale)
        if release.map(sensitivity) <= epsilon:
            return [max(-_LARGEST, min(_LARGEST, value)) for value in release(values)]
        scale *= 1 + 2**-40  # the quotient was rounded down
    raise Coded("noise_unavailable")


def _chosen(batches: Iterable[pa.RecordBatch], plan: Mapping[str, Any], *, epsilon: float) -> list[pa.RecordBatch]:
    """Return the groups that are shown, with noisy counts of units. Spends at most epsilon and the plan's delta.

    Each group is chosen by itself, by the same noise and threshold, so that they can come in parts.
    """
    release = _release(int(plan["rows"]), epsilon=epsilon, delta=float(plan["delta"]))
    kept: list[pa.RecordBatch] = []
    groups = 0
    for batch in batches:
        found = release(dict(enumerate(batch.column(UNITS).to_pylist())))
        groups += len(found)
        if groups > plan["groups"]:
            raise Coded("groups_max", most=plan["groups"])
        if found:
            shown = batch.take(pa.array(list(found), pa.int64()))
            kept.append(_with(shown, UNITS, list(found.values())))
    return kept


def _release(rows: int, *, epsilon: float, delta: float) -> Any:
    """Return the measurement from unit counts by group index to noisy counts of the groups that are shown."""
    dp = _opendp()
    space = (
        dp.map_domain(dp.atom_domain(T=dp.i64), dp.atom_domain(T=dp.i64)),
        dp.l01inf_distance(dp.absolute_distance(T=dp.i64)),
    )
    scale, reach = rows / epsilon, (rows, rows, 1)  # groups that one unit touches, their sum, each by one
    for _ in range(_TRIES):
        threshold = _threshold(dp, space, scale, reach, delta=delta)
        release = dp.m.make_laplace_threshold(*space, scale=scale, threshold=threshold)
        if release.map(reach)[0] <= epsilon:
            return release
        scale *= 1 + 2**-40
    raise Coded("noise_unavailable")


def _threshold(dp: Any, space: Any, scale: float, reach: tuple[int, int, int], *, delta: float) -> int:
    """Return the smallest threshold at which a group of one unit shows with a probability of at most delta.

    One more than OpenDP 0.16 says: it lets a count through that equals the threshold, and its delta is that of counts
    above it (measured: 3 % shown where it says 1.9 %).
    """

    def holds(threshold: int) -> bool:
        return bool(dp.m.make_laplace_threshold(*space, scale=scale, threshold=threshold).map(reach)[1] <= delta)

    low, high = 1, 2
    while not holds(high):
        low, high = high, high * 2
        if high > _LARGEST:
            raise Coded("noise_unavailable")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high + 1


def _with(rows: Any, name: str, values: list[int]) -> Any:
    return rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.int64()))
