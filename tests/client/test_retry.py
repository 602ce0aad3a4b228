"""Which failures a reader waits out, and which end it at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hanse.errors import (
    AccessRevoked,
    Broken,
    Busy,
    HanseError,
    StreamFailed,
    StreamIncomplete,
    Unreachable,
    error_from_end,
    error_from_problem,
)
from hanse.retry import Patience, is_temporary

from tests.client.support import Asked, owned


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StreamFailed("x", code="worker_crashed"), True),
        (StreamFailed("x", code="file_unavailable"), True),
        (StreamFailed("x", code="busy"), True),
        (error_from_problem(500, {"code": "worker_crashed", "detail": "try again"}, where="owner"), True),
        (error_from_problem(500, {"code": "engine_failed", "detail": "no"}, where="owner"), False),
        (Broken("not the protocol"), False),
        (StreamIncomplete("it stopped"), True),
        (Busy("later"), True),
        (error_from_problem(429, {"code": "quota_spent", "detail": "no more"}, where="owner"), False),
        (AccessRevoked("over", code="revoked"), False),
        (error_from_end({"status": "refused", "code": "not_in_force", "reason": "the agreement ended"}), False),
        (error_from_end({"status": "lease_expired"}), True),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_what_a_second_attempt_may_not_have_is_waited_out(error: HanseError, expected: bool) -> None:
    assert is_temporary(error) is expected


@pytest.mark.parametrize("patience", [5.0, 30.0, 120.0, 150.0, 240.0, 600.0])
def test_silence_and_all_attempts_together_are_the_patience(patience: float) -> None:
    clock = [0.0]

    def pass_by(seconds: float) -> None:
        clock[0] += seconds

    waiting = Patience(patience, sleep=pass_by, now=lambda: clock[0])

    def asked() -> None:
        silent = waiting.silence
        assert silent <= 120
        pass_by(silent)
        raise Unreachable("nothing").after(silent)

    with pytest.raises(Unreachable):
        waiting.retry(asked)
    assert patience <= clock[0] < patience + 1


def test_what_ends_its_process_each_time_is_given_up_on() -> None:
    patience, crashed = Patience(sleep=lambda _: None), StreamFailed("x", code="worker_crashed")
    for _ in range(4):
        patience.pause_or_raise(crashed)
    patience.reset()  # a row came
    for _ in range(4):
        patience.pause_or_raise(crashed)
        patience.pause_or_raise(Busy("later"))
    with pytest.raises(StreamFailed):
        patience.pause_or_raise(crashed)


@pytest.mark.parametrize(
    ("told", "least", "most"), [(5, 5.0, 6.25), (0, 0.0, 0.05), ("5", 0.0, 0.05), (True, 0.0, 0.05), (1e9, 100, 100)]
)
def test_a_pause_is_as_long_as_the_server_asks_and_no_longer_than_the_patience(
    told: Any, least: float, most: float
) -> None:
    pauses: list[float] = []
    refused = error_from_problem(429, {"code": "queries_max", "detail": "later", "retry_after": told}, where="owner")
    Patience(100, sleep=pauses.append, now=lambda: 0.0).pause_or_raise(refused)
    assert least <= pauses[0] <= most


def test_who_has_no_patience_still_waits_for_an_answer() -> None:
    assert Patience(0.0, idle=120.0).silence == 120


def test_an_attempt_that_follows_has_what_is_left_of_the_patience_and_a_row_gives_all_of_it_back() -> None:
    clock = [0.0]
    waiting = Patience(100, sleep=lambda _: None, now=lambda: clock[0])
    waiting.pause_or_raise(Unreachable("down"))
    clock[0] = 70.0
    assert waiting.silence == 30
    assert waiting.reset()
    assert waiting.silence == 100
    assert not waiting.reset()


def test_an_owner_that_accepts_and_says_nothing_is_borne_for_as_long_as_was_asked_for() -> None:
    over = threading.Event()

    def silent(_: Asked) -> Any:
        over.wait(60)
        return 503, {"code": "busy", "detail": "no"}

    with owned(silent, rows=[3]) as dataset:
        plan = dataset.plan()
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            dataset.read(plan, [0], patience=0.4)
        assert 0.4 <= time.monotonic() - begun < 50  # it was two minutes and more, whatever was asked for
        over.set()
