"""Reads stored policies of agreements and offers. A newer version may refuse what an older one accepted.

The only module that reads a stored policy. A policy that is not understood is refused with advice, for that agreement
or offer alone.
"""

from __future__ import annotations

from connector.datasets.registry import published_schema
from connector.errors import Denied
from connector.store.tables import Agreement, DatasetVersion, Offer
from policies.contracts import compile
from policies.contracts.contract import DataContract
from policies.errors import PolicyError
from policies.model import Kind, Policy
from policies.odrl import reader
from policies.review import unknown_terms

_END = "its provider ends it (`hanse revoke`), and a new one is negotiated"


def read_agreement_policy(row: Agreement) -> Policy:
    """Return the policy of an agreement.

    Raises: Denied (`agreement_unreadable`) where it is no longer understood.
    """
    try:
        return reader.read(row.policy)
    except PolicyError as error:
        raise Denied(
            f"the policy of agreement {row.id} is not understood here any more: {error}. Nothing is served under it: "
            f"{_END}",
            code="agreement_unreadable",
            rule=error.rule,
        ) from error


def compile_agreement(row: Agreement, policy: Policy, version: DatasetVersion) -> tuple[DataContract, ...]:
    """Return the contracts of an agreement on the current schema of its dataset.

    Raises: Denied with the rule that cannot be enforced, or that has an unknown term that could matter.
    """
    try:
        made: tuple[DataContract, ...] = compile.compile_contracts(policy, published_schema(version))
    except PolicyError as error:
        raise Denied(
            f"the policy of agreement {row.id} cannot be kept on its dataset as it is now: {error}. Nothing is served "
            f"under it: the dataset gets back what the rule looks at, or {_END}",
            code=error.code,
            rule=error.rule,
        ) from error
    _check_understood(row, policy)
    return made


def _check_understood(row: Agreement, policy: Policy) -> None:
    if found := unknown_terms.find_blocking(policy):
        told = "; ".join(f"{one.path}: {one.message}" for one in found[:5])
        raise Denied(
            f"the policy of agreement {row.id} has rules that are not understood here: {told}. Nothing is served under "
            f"it: {_END}",
            code="contract_undecided",
            rule=found[0].path,
        )


def read_offer_policy(row: Offer) -> Policy:
    """Return the policy of an offer.

    Raises: Denied (`offer_unreadable`) where it is no longer understood.
    """
    try:
        return reader.read(row.policy, kind=Kind.OFFER)
    except PolicyError as error:
        raise Denied(
            f"the policy of offer {row.id} is not understood here any more: {error}. It is hidden from consumers: "
            "its owner withdraws it (`hanse offer withdraw`) and publishes it anew",
            code="offer_unreadable",
            rule=error.rule,
        ) from error
