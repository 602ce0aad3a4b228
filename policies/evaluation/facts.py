"""Facts: an immutable snapshot of what is known, from whom and until when; and the moment of a decision.

Collects nothing and decides nothing. An absent fact is unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias

from policies.evaluation import values
from policies.vocabulary import compact, expand

Observed: TypeAlias = str | int | float | Decimal | bool | date | None


@dataclass(frozen=True, slots=True)
class Fact:
    """The values known under one key, their source, and until when (UTC seconds). `personal` values are shown as
    hashes.
    """

    values: tuple[Observed, ...]
    source: str = ""
    valid_until: float | None = None
    personal: bool = False


class Facts(Mapping[str, Fact]):
    """An immutable snapshot of facts by short key (`ds:membership`, `odrl:purpose`). An absent fact is unknown.

    Further keys: `ds:fulfilled` (paths or actions of fulfilled duties), `ds:enforced` (paths or operands of permissions
    that a compiled contract enforces), `ds:start` (start of elapsed time when the policy has no timestamp),
    `ds:miningReserved` (whether the asset reserves mining). Counting facts (`odrl:count`, `ds:queriesPerDay`,
    `ds:concurrency`) state earlier use.
    """

    __slots__ = ("_facts",)

    def __init__(self, facts: Mapping[str, Fact] | None = None) -> None:
        self._facts: dict[str, Fact] = {compact(expand(key)): fact for key, fact in (facts or {}).items()}

    @classmethod
    def of(cls, given: Mapping[str, Observed | Iterable[Observed] | Fact], *, source: str = "") -> Facts:
        """Return facts from plain values: `Facts.of({"ds:membership": "active", "odrl:purpose": ["dpv:X"]})`."""
        return cls({key: _to_fact(value, source) for key, value in given.items()})

    def adding(self, more: Mapping[str, Fact]) -> Facts:
        """Return these facts with `more` added; a newer fact replaces an older one."""
        return Facts({**self._facts, **more})

    def without(self, key: str) -> Facts:
        """Return these facts without the fact `key`."""
        return Facts({name: fact for name, fact in self._facts.items() if name != compact(expand(key))})

    @property
    def raw(self) -> dict[str, Fact]:
        """The facts as a plain dictionary; read-only."""
        return self._facts

    def __getitem__(self, key: str) -> Fact:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __repr__(self) -> str:
        return f"Facts({sorted(self._facts)})"

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot for the audit log, with personal values as hashes."""
        return {
            key: {
                "values": [format_observed(value, personal=fact.personal) for value in fact.values],
                "source": fact.source,
                **({} if fact.valid_until is None else {"validUntil": fact.valid_until}),
            }
            for key, fact in sorted(self._facts.items())
        }


def _to_fact(value: Observed | Iterable[Observed] | Fact, source: str) -> Fact:
    if isinstance(value, Fact):
        return value
    if value is None or isinstance(value, str | int | float | Decimal | date):
        return Fact((value,), source)
    return Fact(tuple(value), source)


def format_observed(value: Observed, *, personal: bool) -> str:
    """Return a value as explanations show it; a personal value as a hash."""
    text = "null" if value is None else str(value)
    if personal:
        return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
    return compact(text)


class Moment:
    """The inputs of a compiled check: facts, phase and time."""

    __slots__ = ("enforced", "facts", "fulfilled", "now", "ns", "phase", "start")

    def __init__(self, facts: Facts, *, phase: int, now: float, start: int | None) -> None:
        self.facts = facts.raw
        self.phase = phase
        self.now = now
        self.ns = values.nanoseconds(now)
        self.start = start if start is not None else self._stated_start()
        self.fulfilled = self._expanded_values("ds:fulfilled")
        self.enforced = self._expanded_values("ds:enforced")

    def fresh(self, key: str) -> Fact | None:
        """Return the fact, or None when it is missing, empty or expired."""
        fact = self.facts.get(key)
        if fact is None or not fact.values or (fact.valid_until is not None and self.now >= fact.valid_until):
            return None
        return fact

    def _expanded_values(self, key: str) -> frozenset[str]:
        fact = self.fresh(key) if key in self.facts else None
        return frozenset(expand(str(value)) for value in fact.values) if fact else frozenset()

    def _stated_start(self) -> int | None:
        fact = self.fresh("ds:start") if "ds:start" in self.facts else None
        return parse_start(str(fact.values[0])) if fact and len(fact.values) == 1 else None


def parse_start(text: str) -> int | None:
    """Return a timestamp in nanoseconds; None when it is unreadable, a whole day, or without a zone."""
    try:
        moment = values.instant(text)
    except ValueError:
        return None
    return moment.start if moment.start == moment.end else None
