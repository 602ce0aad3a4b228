"""What the benchmarks print of a loaded machine: ratios to a fixed piece of work, which hold there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_federated as bench
from benchmarks.yardstick import yardstick


@pytest.mark.parametrize("load", [1.0, 20.0], ids=["idle", "loaded"])
@pytest.mark.parametrize(("plan_ms", "status"), [(7.0, 0), (8.0, 1)])
def test_planning_is_judged_by_its_ratio_to_a_fixed_piece_of_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float,
    plan_ms: float,
    status: int,
) -> None:
    monkeypatch.setattr(bench, "_planned", lambda *_: plan_ms * load)
    monkeypatch.setattr(bench, "yardstick", lambda: 5.0 * load)
    assert bench.plans(tmp_path, ["vertical"], ["q06"], repeat=3) == status
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.split()[0] == f"{plan_ms / 5:.2f}"
    assert said.endswith("(at most 1.5: MISSED)" if status else "(at most 1.5)")


def test_a_plan_is_compared_with_work_right_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that begins in the middle of a run changes both times of each later pair."""
    load = iter([1, 1, 1, 1, 9, 9, 9, 9, 9, 9])
    monkeypatch.setattr(bench, "_planned", lambda *_: 4.0 * next(load))
    monkeypatch.setattr(bench, "yardstick", lambda: 5.0 * next(load))
    assert bench._ratio("", {}, 5).times == pytest.approx(0.8)


def test_the_fixed_piece_of_work_takes_processor_time() -> None:
    assert yardstick() > 0
