"""Which failures a reader waits out, and which end it at once."""

from __future__ import annotations

import pytest
from hanse.errors import AccessRevoked, Broken, Busy, HanseError, StreamFailed, StreamIncomplete, of_problem
from hanse.patience import passes


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StreamFailed("x", code="worker_crashed"), True),
        (StreamFailed("x", code="file_unavailable"), True),
        (StreamFailed("x", code="busy"), True),
        (of_problem(500, {"code": "worker_crashed", "detail": "try again"}, where="owner"), True),
        (of_problem(500, {"code": "engine_failed", "detail": "no"}, where="owner"), False),
        (Broken("not the protocol"), False),
        (StreamIncomplete("it stopped"), True),
        (Busy("later"), True),
        (of_problem(429, {"code": "quota_spent", "detail": "no more"}, where="owner"), False),
        (AccessRevoked("over", code="revoked"), False),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_what_a_second_attempt_may_not_have_is_waited_out(error: HanseError, expected: bool) -> None:
    assert passes(error) is expected
