"""Offers: policies attached to a dataset. A policy is linted, compiled and explained before it is published.

A policy that is not understood, or that cannot be enforced or decided, is refused with the name of the rule.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from connector.datasets.registry import published_schema
from connector.errors import Absent, AlreadyExists, ConnectorError, PolicyInvalid
from connector.events import OfferPublished, OfferWithdrawn, RequestRefused
from connector.offers import offer_conflicts
from connector.store import Store, Transaction
from connector.store.tables import DatasetVersion, Json, Offer, RegisteredDataset
from policies.authoring import convert
from policies.authoring.form import DECIDE
from policies.contracts import compile, coverage
from policies.contracts.conflicts import ActivePolicy
from policies.contracts.contract import DataContract
from policies.errors import PolicyError
from policies.model import Kind, Policy
from policies.odrl import reader
from policies.review import explain, lint, report


@dataclass(frozen=True, slots=True)
class CheckedOffer:
    """An offer that may be published: its policy, the compiled contracts, and the problems found."""

    dataset: RegisteredDataset
    version: DatasetVersion
    policy: Policy
    decide: str
    form: str
    contracts: tuple[DataContract, ...]
    problems: tuple[lint.LintProblem, ...]

    def as_active(self, offer_id: str) -> ActivePolicy:
        """Return the offer as an active policy of its dataset."""
        return ActivePolicy(f"offer {offer_id}" if offer_id else "this offer", self.policy, self.contracts)

    def meaning(self) -> dict[str, Any]:
        """Return the offer's sentences, enforceability report and problems, for people and programs."""
        return {
            "sentences": [
                {"path": s.path, "text": s.text, "tier": str(s.tier)} for s in explain.sentences(self.policy)
            ],
            "report": report.to_json(report.enforceability(self.policy)),
            "problems": [problem_json(problem) for problem in self.problems],
        }


class Offers:
    """The offers of one owner. `absent`: sources of facts that this connector lacks, each with the reason."""

    def __init__(self, store: Store, *, absent: Mapping[str, str] = MappingProxyType({})) -> None:
        self._store = store
        self.absent = absent

    async def check(
        self,
        *,
        form: str = "",
        policy: Mapping[str, Any] | None = None,
        dataset: str = "",
        decide: str = "",
        offer_id: str = "",
    ) -> CheckedOffer:
        """Read, lint and compile an offer, and compare it with other policies of its dataset, without publishing it.

        Raises: PolicyInvalid with the problems.
        """
        try:
            read, target, chosen = _read_policy(form, policy, dataset, decide)
            row, version = await self._store.read(lambda tx: _find_dataset(tx, target))
            schema = published_schema(version)
            read = replace(read, target=row.id)
            problems = tuple(lint.lint(read, schema, absent=self.absent))
            if errors := [problem for problem in problems if problem.level == "error"]:
                raise PolicyInvalid(
                    "; ".join(dict.fromkeys(problem.message for problem in errors[:5])),
                    problems=[problem_json(problem) for problem in problems],
                )
            contracts = compile.compile_contracts(read, schema, concluded=version.created_at)
            _check_noise_available(contracts)
        except PolicyError as error:
            raise PolicyInvalid(str(error), code=error.code, rule=error.rule) from error
        checked = CheckedOffer(row, version, read, chosen, form, contracts, problems)
        mine = checked.as_active(offer_id or read.id)
        beside = await self._store.read(
            lambda tx: offer_conflicts.find_problems(tx, mine, version, but=offer_id or read.id)
        )
        offer_conflicts.refuse_errors(beside)
        return replace(checked, problems=(*problems, *beside))

    async def publish(
        self,
        *,
        by: str,
        form: str = "",
        policy: Mapping[str, Any] | None = None,
        dataset: str = "",
        decide: str = "",
        offer_id: str = "",
        accept: bool = False,
        left_out: Json | None = None,
    ) -> tuple[Offer, CheckedOffer]:
        """Publish an offer for its dataset. Consumers see it as far as the policy allows.

        `accept`: publish also with an unknown purpose that is similar to one of the vocabulary. `left_out`: the share
        that its groups leave out, published with it.
        """
        try:
            checked = await self.check(form=form, policy=policy, dataset=dataset, decide=decide, offer_id=offer_id)
            if not accept:
                _refuse_slips(checked.problems)
            identifier = offer_id or checked.policy.id or f"urn:uuid:{uuid.uuid4()}"
            named = replace(checked.policy, id=identifier, kind=Kind.OFFER)
            return await self._store.write(lambda tx: _insert(tx, named, checked, by, left_out)), checked
        except ConnectorError as error:
            await self._record_refusal(error, by)
            raise

    async def withdraw(self, offer_id: str, *, by: str) -> None:
        """Withdraw an offer, so that it is no longer shown. Signed agreements stay in force."""

        def work(tx: Transaction) -> None:
            row = tx.datasets.get_offer(offer_id)
            if row is None or row.withdrawn_at is not None:
                raise Absent(f"no offer {offer_id!r} is in force; list them with `hanse offer list`")
            row.withdrawn_at = tx.now
            tx.publish(OfferWithdrawn(actor=by, dataset=row.dataset_id, detail={"offer": row.id}))

        await self._store.write(work)

    async def get(self, offer_id: str) -> Offer:
        row = await self._store.read(lambda tx: tx.datasets.get_offer(offer_id))
        if row is None:
            raise Absent(f"no offer {offer_id!r}; list them with `hanse offer list`")
        return row

    async def dataset_id(self, key: str) -> str:
        """Return the id of a dataset by name or id; empty if there is no such dataset."""
        row = await self._store.read(lambda tx: tx.datasets.find(key)) if key else None
        return "" if row is None else row.id

    async def page(
        self, *, dataset: str = "", withdrawn: bool = True, limit: int = 100, offset: int = 0
    ) -> list[Offer]:
        """Return offers, the newest first. `dataset`: name or id of their dataset, which may have been removed."""

        def read(tx: Transaction) -> list[Offer]:
            found = tx.datasets.find(dataset) if dataset else None
            about = found.id if found else dataset
            return list(tx.datasets.list_offers(dataset_id=about, withdrawn=withdrawn, limit=limit, offset=offset))

        return await self._store.read(read)

    async def _record_refusal(self, error: ConnectorError, by: str) -> None:
        refused = RequestRefused(
            actor=by,
            outcome="refused",
            code=error.code,
            reason=error.message[:1000],
            rule=str(error.facts.get("rule", "")),
            detail={"request": "publish offer"},
        )
        await self._store.write(lambda tx: tx.publish(refused))


def _refuse_slips(problems: Sequence[lint.LintProblem]) -> None:
    """Refuse purposes that are probably misspelt: the offer would then grant nothing for the intended purpose.

    Raises: PolicyInvalid.
    """
    if slips := [problem for problem in problems if problem.code == "purpose_unknown"]:
        raise PolicyInvalid(
            f"{slips[0].message} If it is meant as it is, take it so (`hanse offer add --accept`, `accept` in the API)",
            code="purpose_unknown",
            problems=[problem_json(problem) for problem in slips],
        )


def problem_json(problem: lint.LintProblem) -> dict[str, str]:
    return {
        "level": str(problem.level),
        "path": problem.path,
        "code": problem.code,
        "message": problem.message,
    }


def _check_noise_available(contracts: Sequence[DataContract]) -> None:
    """Check that the library for noise is installed, before an offer with a privacy budget is published.

    Raises: PolicyInvalid.
    """
    for contract in contracts:
        if contract.grid is not None and contract.grid.privacy is not None and find_spec("opendp") is None:
            raise PolicyInvalid(
                "a privacy budget needs noise, and this connector cannot draw it; install hanse-server[privacy]",
                code="noise_unavailable",
                rule=coverage.rule_path(contract, "epsilonBudget"),
            )


def _read_policy(form: str, policy: Mapping[str, Any] | None, dataset: str, decide: str) -> tuple[Policy, str, str]:
    """Return the policy, its dataset, and who decides on requests."""
    if bool(form) == (policy is not None):
        raise PolicyInvalid("expected either `form` (the YAML form) or `policy` (ODRL as JSON), came both or neither")
    if form:
        written = convert.read_form(form, now=time.time())
        read, target, chosen = convert.to_policy(written), dataset or written.dataset, decide or written.decide
    else:
        read = reader.read({"@type": "Offer", **(policy or {})})
        target, chosen = dataset or read.target, decide or "manual"
    if not target:
        raise PolicyInvalid("expected the dataset that the offer is for, came none; add `dataset: <name>`")
    if chosen not in DECIDE:
        raise PolicyInvalid(f"expected decide to be one of {', '.join(DECIDE)}, came {chosen!r}")
    return read, target, chosen


def _find_dataset(tx: Transaction, key: str) -> tuple[RegisteredDataset, DatasetVersion]:
    row = tx.datasets.of(key)
    return row, tx.datasets.get_current(row)


def _insert(tx: Transaction, policy: Policy, checked: CheckedOffer, by: str, left_out: Json | None) -> Offer:
    if tx.datasets.get_offer(policy.id) is not None:
        raise AlreadyExists(f"an offer {policy.id!r} exists; withdraw it and give the new one another name")
    offer_conflicts.check_offer(tx, checked.as_active(policy.id), checked.version)
    row = Offer(
        id=policy.id,
        dataset_id=checked.dataset.id,
        policy=reader.write(policy, in_catalog=True),
        form=checked.form,
        digest=reader.digest(policy),
        decide=checked.decide,
        created_at=tx.now,
        withdrawn_at=None,
        left_out=left_out,
    )
    tx.datasets.add(row)
    detail = {"offer": row.id, "policy": row.digest, **({"left_out": left_out} if left_out else {})}
    tx.publish(OfferPublished(actor=by, dataset=row.dataset_id, detail=detail))
    return row
