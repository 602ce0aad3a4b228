"""A running read gets fresh tickets in time, at a pace, and goes on when none can be had."""

from __future__ import annotations

from dataclasses import dataclass, field

from hanse._transport.read_renewal import ReadRenewal
from hanse.errors import Busy


@dataclass
class Owner:
    """Grants tickets that last for `life` seconds of a clock that a test moves."""

    life: float = 900.0
    now: float = 1_000.0
    down: bool = False
    calls: list[float] = field(default_factory=list)

    def renew(self) -> float:
        self.calls.append(self.now)
        if self.down:
            raise Busy("runs elsewhere")
        return self.now + self.life

    def renewal(self, *, expires: float | None = None) -> ReadRenewal:
        ends = self.now + self.life if expires is None else expires
        return ReadRenewal(self.renew, ends, clock=lambda: self.now, now=lambda: self.now)

    def read(self, renewal: ReadRenewal, seconds: int) -> None:
        for _ in range(seconds):
            renewal()
            self.now += 1


def test_it_is_renewed_once_shortly_before_each_end() -> None:
    owner = Owner()
    owner.read(owner.renewal(), 3_000)
    assert [at - 1_000 for at in owner.calls] == [850, 1_700, 2_550]


def test_a_short_ticket_is_renewed_at_half_of_its_time() -> None:
    owner = Owner(life=10)
    owner.read(owner.renewal(), 26)
    assert [at - 1_000 for at in owner.calls] == [5, 10, 15, 20, 25]


def test_an_owner_that_does_not_renew_is_asked_at_a_pace_and_nothing_is_raised() -> None:
    owner = Owner(down=True)
    owner.read(owner.renewal(), 880)
    assert [at - 1_000 for at in owner.calls] == [850, 855, 860, 865, 870, 875]


def test_a_connector_that_returns_the_same_ticket_is_asked_at_a_pace() -> None:
    owner = Owner(life=0)
    owner.read(owner.renewal(expires=1_100.0), 70)
    assert [at - 1_000 for at in owner.calls] == [50, 55, 60, 65]


def test_a_ticket_whose_end_is_unknown_is_not_renewed() -> None:
    owner = Owner()
    owner.read(owner.renewal(expires=0.0), 100_000)
    assert owner.calls == []
