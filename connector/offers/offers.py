"""Offers: a policy attached to a dataset. Linted, compiled and explained before it is published.

What is not understood, or could not be enforced or decided, is refused by name and never published.
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
from connector.errors import AlreadyExists, HanseError, NotFound, PolicyInvalid
from connector.events import OfferPublished, OfferWithdrawn, RequestRefused
from connector.offers import offer_conflicts
from connector.store import Store, Transaction
from connector.store.tables import DatasetVersion, Json, Offer, RegisteredDataset
from policies.authoring import convert
from policies.contracts import compile, coverage
from policies.contracts.conflicts import ActivePolicy
from policies.contracts.contract import DataContract
from policies.errors import PolicyError
from policies.model import Kind, Policy
from policies.odrl import reader
from policies.review import explain, lint, report

DECIDE = ("auto", "manual", "rules")


@dataclass(frozen=True, slots=True)
class Checked:
    """An offer that could be published: the policy, what it means, and what was noticed."""

    dataset: RegisteredDataset
    version: DatasetVersion
    policy: Policy
    decide: str
    form: str
    contracts: tuple[DataContract, ...]
    problems: tuple[lint.LintProblem, ...]

    def standing(self, offer_id: str) -> ActivePolicy:
        """As it would stand on its dataset."""
        return ActivePolicy(f"offer {offer_id}" if offer_id else "this offer", self.policy, self.contracts)

    def meaning(self) -> dict[str, Any]:
        """For people and machines: sentences, the enforceability report, problems."""
        return {
            "sentences": [
                {"path": s.path, "text": s.text, "tier": str(s.tier)} for s in explain.sentences(self.policy)
            ],
            "report": report.to_json(report.enforceability(self.policy)),
            "problems": [problem_json(problem) for problem in self.problems],
        }


class Offers:
    """The offers of one owner. `absent`: sources of facts that it does not have, each with why."""

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
    ) -> Checked:
        """Read, lint and compile an offer against its dataset's schema, and hold it against what else stands there,
        without publishing it."""
        try:
            read, target, chosen = _read(form, policy, dataset, decide)
            row, version = await self._store.read(lambda tx: _with_version(tx, target))
            schema = published_schema(version)
            read = replace(read, target=row.id)
            problems = tuple(lint.lint(read, schema, absent=self.absent))
            if errors := [problem for problem in problems if problem.level == "error"]:
                raise PolicyInvalid(
                    "; ".join(dict.fromkeys(problem.message for problem in errors[:5])),
                    problems=[problem_json(problem) for problem in problems],
                )
            contracts = compile.compile_contracts(read, schema, concluded=version.created_at)
            _can_draw_noise(contracts)
        except PolicyError as error:
            raise PolicyInvalid(str(error), code=error.code, rule=error.rule) from error
        checked = Checked(row, version, read, chosen, form, contracts, problems)
        mine = checked.standing(offer_id or read.id)
        beside = await self._store.read(lambda tx: offer_conflicts.problems(tx, mine, version, but=offer_id or read.id))
        offer_conflicts.refuse(beside)
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
    ) -> tuple[Offer, Checked]:
        """Attach an offer to its dataset; from now on others see it, as far as the policy lets them.

        `accept`: also with a purpose that nobody declares, as it is nearly one of the vocabulary, and none. `left_out`:
        what is published with it of what its groups leave out.
        """
        try:
            checked = await self.check(form=form, policy=policy, dataset=dataset, decide=decide, offer_id=offer_id)
            if not accept:
                _refuse_slips(checked.problems)
            identifier = offer_id or checked.policy.id or f"urn:uuid:{uuid.uuid4()}"
            named = replace(checked.policy, id=identifier, kind=Kind.OFFER)
            return await self._store.write(lambda tx: _insert(tx, named, checked, by, left_out)), checked
        except HanseError as error:
            await self._refused(error, by)
            raise

    async def withdraw(self, offer_id: str, *, by: str) -> None:
        """Take an offer back: nobody sees it any more. Agreements that were signed stay in force."""

        def work(tx: Transaction) -> None:
            row = tx.datasets.get_offer(offer_id)
            if row is None or row.withdrawn_at is not None:
                raise NotFound(f"no offer {offer_id!r} is in force; list them with `hanse offer list`")
            row.withdrawn_at = tx.now
            tx.publish(OfferWithdrawn(actor=by, dataset=row.dataset_id, detail={"offer": row.id}))

        await self._store.write(work)

    async def get(self, offer_id: str) -> Offer:
        row = await self._store.read(lambda tx: tx.datasets.get_offer(offer_id))
        if row is None:
            raise NotFound(f"no offer {offer_id!r}; list them with `hanse offer list`")
        return row

    async def dataset_id(self, key: str) -> str:
        """The id of a dataset of ours by name or id; empty for none."""
        row = await self._store.read(lambda tx: tx.datasets.find(key)) if key else None
        return "" if row is None else row.id

    async def page(
        self, *, dataset: str = "", withdrawn: bool = True, limit: int = 100, offset: int = 0
    ) -> list[Offer]:
        """The newest first; `dataset`: name or id of the one that they are for, which may have been removed."""

        def read(tx: Transaction) -> list[Offer]:
            found = tx.datasets.find(dataset) if dataset else None
            about = found.id if found else dataset
            return list(tx.datasets.list_offers(dataset_id=about, withdrawn=withdrawn, limit=limit, offset=offset))

        return await self._store.read(read)

    async def _refused(self, error: HanseError, by: str) -> None:
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
    """PolicyInvalid for a purpose that is nearly one of the vocabulary: nobody would be let in for the one meant."""
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


def _can_draw_noise(contracts: Sequence[DataContract]) -> None:
    """A privacy budget needs its library here: better said when the offer is made than when somebody asks."""
    for contract in contracts:
        if contract.grid is not None and contract.grid.privacy is not None and find_spec("opendp") is None:
            raise PolicyInvalid(
                "a privacy budget needs noise, and this connector cannot draw it; install hanse-server[privacy]",
                code="noise_unavailable",
                rule=coverage.rule_path(contract, "epsilonBudget"),
            )


def _read(form: str, policy: Mapping[str, Any] | None, dataset: str, decide: str) -> tuple[Policy, str, str]:
    """The policy, the dataset it is for, and who decides."""
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


def _with_version(tx: Transaction, key: str) -> tuple[RegisteredDataset, DatasetVersion]:
    row = tx.datasets.of(key)
    return row, tx.datasets.get_current(row)


def _insert(tx: Transaction, policy: Policy, checked: Checked, by: str, left_out: Json | None) -> Offer:
    if tx.datasets.get_offer(policy.id) is not None:
        raise AlreadyExists(f"an offer {policy.id!r} exists; withdraw it and give the new one another name")
    offer_conflicts.check_offer(tx, checked.standing(policy.id), checked.version)
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
