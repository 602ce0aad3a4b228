"""Reads tests/cases/policies: each case as a policy, facts, a moment and what is expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from policies.evaluation import values
from policies.model import Kind, Policy
from policies.odrl import reader

FOLDER = Path(__file__).parent.parent / "cases" / "policies"
USUAL = "2027-03-01T12:00:00Z"
EVALUATED = ("party", "quantity", "shape", "training", "time", "rules")


@dataclass(frozen=True)
class Case:  # one row of a table
    file: str
    pattern: str
    name: str
    policy: Policy
    action: str
    phase: str
    now: float
    facts: dict[str, Any]
    permitted: bool
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.file}: {self.pattern}: {self.name}"


def seconds(text: str) -> float:
    return values.instant(text).start / values.SECOND


def load(name: str) -> list[dict[str, Any]]:
    loaded = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, list)
    return loaded


def policy(entry: dict[str, Any]) -> Policy:
    wire: dict[str, Any] = {"@id": "urn:case", "@type": "Set"}
    permissions = entry.get("permissions") or ([entry["permission"]] if "permission" in entry else [])
    wire |= {"permission": permissions, "prohibition": entry.get("prohibitions", [])}
    for key, name in (("timestamp", "timestamp"), ("profile", "profile")):
        if key in entry:
            wire[name] = entry[key]
    if "conflict" in entry:
        wire["odrl:conflict"] = {"@id": f"odrl:{entry['conflict']}"}
    return reader.read(wire, kind=Kind.SET)


def cases() -> Iterator[Case]:
    for file in EVALUATED:
        for entry in load(file):
            yield from _cases(file, entry)


def _cases(file: str, entry: dict[str, Any]) -> Iterator[Case]:
    read = policy(entry)

    def case(name: str, facts: dict[str, Any], permitted: bool, **extra: Any) -> Case:
        return Case(
            file,
            entry["pattern"],
            name,
            read,
            extra.get("action") or entry.get("action", "ds:query"),
            extra.get("phase") or entry.get("phase", "transfer"),
            seconds(extra.get("now") or entry.get("now", USUAL)),
            facts,
            permitted,
            extra,
        )

    if "positive" in entry:
        yield case("positive", entry["positive"], True)
        yield case("negative", entry["negative"], False)
        yield case("missing fact", {}, False)
    for moment, permitted in entry.get("moments", {}).items():
        yield case(moment, {}, permitted, now=moment)
    for one in entry.get("cases", []):
        extra = {key: value for key, value in one.items() if key not in ("name", "facts", "permitted")}
        yield case(one["name"], one.get("facts", {}), one["permitted"], **extra)
