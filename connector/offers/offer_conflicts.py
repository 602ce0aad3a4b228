"""Compares a new policy with the offers in force and the agreements on the same dataset.

Compiles the stored policies. The rules on which two policies conflict are in `policies.contracts.conflicts`.
"""

from __future__ import annotations

from collections.abc import Iterator

from connector.datasets.registry import published_schema
from connector.errors import Denied, PolicyInvalid
from connector.store import Transaction
from connector.store.tables import DatasetVersion, Json
from policies.contracts import compile, conflicts
from policies.contracts.conflicts import ActivePolicy
from policies.contracts.contract import DataContract, TableSchema
from policies.errors import PolicyError
from policies.model import Policy
from policies.odrl import reader
from policies.review.lint import LintProblem


def find_problems(tx: Transaction, mine: ActivePolicy, version: DatasetVersion, *, but: str = "") -> list[LintProblem]:
    """Return what conflicts with a policy on the dataset of `version`. The offer `but` is left out."""
    lost: list[str] = []
    found = list(conflicts.find_conflicts(mine, _list_active(tx, version, but, lost)))
    if lost and any(one.grid is not None for one in mine.contracts):
        said = (
            f"{', '.join(lost[:3])}{' and more' if len(lost) > 3 else ''} cannot be kept on the dataset as it is now: "
            "nothing is served under it, and this policy was not held against it. Withdraw or revoke it"
        )
        found.append(LintProblem("warning", "", "not_compared", said))
    return found


def check_offer(tx: Transaction, mine: ActivePolicy, version: DatasetVersion) -> None:
    """Check a new offer, and lock the dataset until the transaction ends.

    Raises: PolicyInvalid where it conflicts with another policy.
    """
    tx.datasets.lock(version.dataset_id)
    refuse_errors(find_problems(tx, mine, version))


def refuse_errors(found: list[LintProblem]) -> None:
    """Refuse if there are errors among the problems.

    Raises: PolicyInvalid with the first error.
    """
    if error := next((one for one in found if one.level == "error"), None):
        listed = [one.to_json() for one in found]
        raise PolicyInvalid(error.message, code=error.code, rule=error.path, problems=listed)


def check_agreement(tx: Transaction, policy: Policy, *, dataset_id: str, consumer: str) -> None:
    """Check negotiated terms, unless they are a published offer, which was checked when it was published.

    Raises: Denied where the terms count other groups or rows than another policy. The message says nothing of other
    agreements.
    """
    tx.datasets.lock(dataset_id)
    digest = reader.digest(policy)
    if any(offer.digest == digest for offer in tx.datasets.list_offers_in_force([dataset_id])):
        return
    version = tx.datasets.get_current(tx.datasets.of(dataset_id))
    contracts = compile.compile_contracts(policy, published_schema(version), concluded=tx.now)
    found = find_problems(tx, ActivePolicy("these terms", policy, contracts, holder=consumer), version)
    if error := next((one for one in found if one.level == "error"), None):
        raise Denied(
            "these terms count other groups or other rows than what is offered or agreed on this dataset, and the "
            "difference of two answers shows single units; take the terms that are offered, or its owner withdraws and "
            "revokes what is in the way",
            code=error.code,
            rule=error.path,
            private=error.message,
        )


def _list_active(tx: Transaction, version: DatasetVersion, but: str, lost: list[str]) -> Iterator[ActivePolicy]:
    schema = published_schema(version)
    for offer in tx.datasets.list_offers_in_force([version.dataset_id]):
        if offer.id != but:
            name, meant = f"offer {offer.id}", _compile_stored(offer.policy, schema, now=tx.now)
            if meant is None:
                lost.append(name)
            else:
                yield ActivePolicy(name, *meant)
    known: dict[str, _CompiledPolicy] = {}  # many agreements have the policy of one offer
    for row, reads in tx.agreements.iterate_by_dataset(version.dataset_id):
        name, over = f"agreement {row.id} with {row.consumer}", row.ended_at is not None
        if over and not reads:
            continue
        meant = known.get(row.digest) or _compile_stored(row.policy, schema, now=row.signed_at)
        if meant is not None:
            known[row.digest] = meant
            yield ActivePolicy(name, *meant, holder=row.consumer, over=over)
        elif not over:
            lost.append(name)


_CompiledPolicy = tuple[Policy, tuple[DataContract, ...]]


def _compile_stored(wire: Json, schema: TableSchema, *, now: float) -> _CompiledPolicy | None:
    """Return the policy and its contracts; None where it cannot be enforced, so that nothing is served under it."""
    try:
        policy = reader.read(wire)
        return policy, compile.compile_contracts(policy, schema, concluded=now)
    except PolicyError:
        return None
