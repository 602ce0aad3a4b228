"""Prints what deciding costs on this machine: decisions per second, without and with explanation, and the steps
before them (reading, digest, first use, linting, compiling). CPU time, so that a busy machine
measures the same; median of five rounds; judges nothing.

    python -m benchmarks.bench_policies
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from policies.authoring import convert
from policies.contracts import compile
from policies.contracts.contract import Column, TableSchema
from policies.evaluation import evaluate
from policies.evaluation.compiled_policy import CompiledPolicy
from policies.evaluation.facts import Facts
from policies.model import Kind, Policy
from policies.odrl import reader
from policies.review import lint
from policies.vocabulary import Phase, ds

ROUNDS = 5
SECONDS = 0.4
NOW = 1.8e9
OFFER = """
offer: readings-for-research
dataset: urn:example:dataset:readings
who: {membership: active, country: EEA}
may: [query]
for: [dpv:ScientificResearch]
until: 2027-12-31T23:59:59+01:00
rows: country in (DE, FR) or consent = broad
limits: {min_group: 25 per person_id, queries: 1000}
grid: {group_by: {age: 10}, measure: {value: 0..1000}}
not: [distribute]
then: {delete: 30d after end}
"""
SCHEMA = TableSchema(
    (
        Column("person_id", "BIGINT"),
        Column("age", "INTEGER"),
        Column("country", "VARCHAR"),
        Column("consent", "VARCHAR"),
        Column("value", "DOUBLE"),
    )
)
FACTS = Facts.of(
    {
        "ds:participant": "did:web:c.example",
        "ds:membership": "active",
        "ds:participantCountry": "NO",
        "odrl:purpose": "https://w3id.org/dpv#ScientificResearch",
        "odrl:count": 17,
    },
    source="bench",
)


def agreement() -> Policy:
    """An agreement with a dozen constraints, as a hospital would write it."""
    return replace(
        convert.to_policy(convert.read_form(OFFER)),
        kind=Kind.AGREEMENT,
        assigner="did:web:p.example",
        assignee="did:web:c.example",
        timestamp="2027-01-01T00:00:00Z",
    )


def per_second(work: Callable[[], object]) -> float:
    """Median calls per second over the rounds."""
    work()
    return statistics.median(_round(work) for _ in range(ROUNDS))


def _round(work: Callable[[], object]) -> float:
    done, started = 0, time.process_time()
    while (spent := time.process_time() - started) < SECONDS:
        for _ in range(64):
            work()
        done += 64
    return done / spent


def main() -> None:
    """Print the table."""
    policy, refused = agreement(), FACTS.without("ds:membership")
    wire = reader.write(policy)
    form = convert.write_form(convert.from_policy(policy))
    action, phase = ds("query"), Phase.TRANSFER
    # One that is decided from facts alone, as in a catalogue of plain offers.
    small = evaluate.as_granting_set(convert.to_policy(convert.read_form(convert.template("members-only"))))

    def decide(asked: Policy, facts: Facts, *, explained: bool) -> Callable[[], object]:
        decide_ = evaluate.evaluate if explained else evaluate.permits
        return lambda: decide_(asked, facts, action=action, phase=phase, now=NOW)

    rows: list[tuple[str, Callable[[], object], str]] = [
        ("decision, permitted", decide(policy, FACTS, explained=False), "100,000/s"),
        ("decision, refused", decide(policy, refused, explained=False), "100,000/s"),
        ("decision, members only", decide(small, FACTS, explained=False), "100,000/s"),
        ("decision with explanation, permitted", decide(policy, FACTS, explained=True), "30,000/s"),
        ("decision with explanation, refused", decide(policy, refused, explained=True), "30,000/s"),
        ("decision with explanation, members only", decide(small, FACTS, explained=True), "30,000/s"),
        ("facts of a request", lambda: Facts.of({key: FACTS[key].values for key in FACTS}), ""),
        ("policy to plan (first use)", lambda: CompiledPolicy(policy), ""),
        ("read from JSON-LD", lambda: reader.read(wire), ""),
        ("write as JSON-LD", lambda: reader.write(policy), ""),
        ("digest", lambda: reader.digest(policy), ""),
        ("read the YAML form", lambda: convert.read_form(form), ""),
        ("lint with a schema", lambda: lint.lint(policy, SCHEMA), ""),
        ("compile to contracts", lambda: compile.compile_contracts(policy, SCHEMA), "50/s (20 ms)"),
    ]
    print(f"policies on one core of {platform.machine()}, Python {platform.python_version()}")
    print(f"{'what':<42}{'per second':>12}{'each':>12}   aim")
    for name, work, aim in rows:
        rate = per_second(work)
        print(f"{name:<42}{rate:>12,.0f}{1e6 / rate:>9,.1f} us   {aim}")


if __name__ == "__main__":
    main()
