"""The check before each batch: order of the checks, and nothing counted for a refused batch."""

from __future__ import annotations

import pytest

from policies.contracts.batch_gate import BYTES_SPENT, EXPIRED, REVOKED, ROWS_SPENT, UNLIMITED, Lease, check


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("lease", "batch", "reason"),
    [
        ({}, (10, 1000), None),
        ({"rows": 10}, (10, 0), None),
        ({"rows": 9}, (10, 0), ROWS_SPENT),
        ({"rows": 0}, (0, 0), None),
        ({"rows": 0}, (1, 0), ROWS_SPENT),
        ({"bytes": 999}, (10, 1000), BYTES_SPENT),
        ({"bytes": 1000}, (10, 1000), None),
        ({"deadline": 100.0}, (1, 1), EXPIRED),
        ({"deadline": 99.0}, (1, 1), EXPIRED),
        ({"revoked": True}, (1, 1), REVOKED),
        ({"revoked": True, "deadline": 0.0, "rows": 0}, (1, 1), REVOKED),
        ({"deadline": 0.0, "rows": 0}, (1, 1), EXPIRED),
    ],
)
def test_batch_leaves_or_the_reason_is_named(
    lease: dict[str, object], batch: tuple[int, int], reason: str | None
) -> None:
    made = Lease(**{"deadline": 200.0, "clock": Clock(), **lease})  # type: ignore[arg-type]  # a row of the table
    before = (made.rows, made.bytes)
    assert check(made, *batch) == reason
    spent = (before[0] - made.rows, before[1] - made.bytes)
    assert spent == (batch if reason is None else (0, 0))


def test_revocation_and_deadline_are_seen_by_the_next_check() -> None:
    clock = Clock()
    lease = Lease(deadline=101.0, clock=clock)
    assert check(lease, 1, 1) is None
    clock.now = 101.0
    assert check(lease, 1, 1) == EXPIRED
    lease.deadline = 110.0
    assert check(lease, 1, 1) is None
    lease.revoked = True
    assert check(lease, 1, 1) == REVOKED


def test_rows_run_out_exactly_and_can_be_filled_up() -> None:
    lease = Lease(deadline=200.0, rows=25, clock=Clock())
    assert [check(lease, 10, 0) for _ in range(3)] == [None, None, ROWS_SPENT]
    assert lease.rows == 5
    lease.rows += 20
    assert check(lease, 25, 0) is None
    assert lease.rows == 0


def test_the_real_clock_is_the_monotonic_one() -> None:
    assert check(Lease(deadline=float("inf")), 1, 1) is None
    assert check(Lease(deadline=0.0), 1, 1) == EXPIRED
    assert UNLIMITED > 10**18
