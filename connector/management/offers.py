"""Offers and their policies on the management API: publish, withdraw, lint, explain, evaluate for a participant."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from connector.datasets import stored_policies
from connector.errors import Absent, Denied, Invalid, PolicyInvalid
from connector.events import OfferPublished, RawDataViewed
from connector.infra.http.strict_routes import StrictRoute
from connector.json_number import JSON_NUMBER
from connector.management.sign_on.auth import Caller, Tokens
from connector.offers.offers import Offers, problem_json
from connector.offers.preview import OwnersView
from connector.store.tables import Offer
from connector.usage.fact_collector import FactCollector, with_counters, with_declared
from policies import vocabulary
from policies.authoring import convert
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.model import Policy
from policies.odrl import reader as policy_reader
from policies.review import diff, explain, lint, report


class PolicyText(BaseModel):
    """A policy, in the short YAML form or as an ODRL offer."""

    model_config = ConfigDict(extra="forbid")

    form: str = Field("", max_length=64 * 1024, description="The YAML form.")
    policy: dict[str, Any] | None = Field(None, description="An ODRL offer, as in the Dataspace Protocol.")
    dataset: str = Field("", max_length=255, description="Name or id of the dataset, where the form does not say it.")


class NewOffer(PolicyText):
    """An offer to publish."""

    id: str = Field("", max_length=255, description="Identifier of the offer (IRI); empty: from the form, or made.")
    decide: str = Field("", max_length=16, description="Who answers a request: auto, manual, rules or four_eyes.")
    accept: bool = Field(False, description="Also with a purpose that is nearly one of the vocabulary, and none.")
    publish_left_out: bool = Field(
        False,
        description="Tell those who agree which share of rows and of groups is left out, in steps of ten per cent. "
        "Refused where a single group decides about it.",
    )


class PolicyCase(PolicyText):
    """A request to evaluate: the participant, the time and the purpose."""

    offer: str = Field("", max_length=255, description="Id of a published offer, instead of form or policy.")
    participant: str = Field(max_length=2048, description="DID of the party that would ask.")
    action: str = Field("ds:query", max_length=200)
    purpose: str = Field("", max_length=200)
    application: str = Field("", max_length=1_024)
    at: Annotated[float, JSON_NUMBER] | None = Field(None, description="UTC seconds since the epoch; empty: now.")


class PolicyComparison(BaseModel):
    """Two policies, each as a text or as the id of a published offer."""

    model_config = ConfigDict(extra="forbid")

    before: PolicyText | None = None
    after: PolicyText | None = None
    before_offer: str = Field("", max_length=255)
    after_offer: str = Field("", max_length=255)
    at: Annotated[float, JSON_NUMBER] | None = Field(None, description="UTC seconds since the epoch; empty: now.")


class QuerySimulation(PolicyText):
    """A query to simulate under an offer."""

    offer: str = Field("", max_length=255, description="Id of a published offer, instead of form or policy.")
    sql: str = Field(min_length=1, max_length=65_536)
    action: str = Field("ds:query", max_length=200)
    purpose: str = Field("", max_length=1_024)


class OfferView(BaseModel):
    id: str
    dataset: str
    policy: dict[str, Any]
    form: str
    decide: str
    created_at: float
    withdrawn_at: float | None
    left_out: dict[str, Any] | None = Field(None, description="What is published of what its groups leave out.")
    sentences: list[dict[str, str]]
    report: list[dict[str, Any]]
    problems: list[dict[str, str]] = Field(default_factory=list)


def view(row: Offer, problems: list[dict[str, str]] | None = None) -> OfferView:
    """Return an offer in words. An offer that is no longer understood has no sentences, and a problem that says so."""
    read: Policy | None = None
    found = list(problems or [])
    try:
        read = stored_policies.read_offer_policy(row)
    except Denied as refused:
        path = str(refused.facts["rule"])
        found.append({"level": "error", "path": path, "code": refused.code, "message": refused.message})
    return OfferView(
        id=row.id,
        dataset=row.dataset_id,
        policy=row.policy,
        form=row.form,
        decide=row.decide,
        created_at=row.created_at,
        withdrawn_at=row.withdrawn_at,
        left_out=row.left_out,
        sentences=[] if read is None else sentences(read),
        report=[] if read is None else report.to_json(report.enforceability(read)),
        problems=found,
    )


def sentences(policy: Policy) -> list[dict[str, str]]:
    return [{"path": s.path, "text": s.text, "tier": str(s.tier)} for s in explain.sentences(policy)]


def router(offers: Offers, tokens: Tokens, *, known: FactCollector, view_of: OwnersView) -> APIRouter:
    routes = APIRouter(tags=["offers"], route_class=StrictRoute)
    owner = Depends(tokens.require("owner"))
    reader = Depends(tokens.require("read"))
    viewer = Depends(tokens.require_raw("owner", RawDataViewed))
    publisher = Depends(tokens.require_raw("owner", OfferPublished, RawDataViewed))

    @routes.post("/offers", status_code=201, summary="Publish an offer for a dataset")
    async def publish(new: NewOffer, caller: Caller = publisher) -> OfferView:
        left_out = None
        if new.publish_left_out:
            meant = await offers.check(form=new.form, policy=new.policy, dataset=new.dataset, offer_id=new.id)
            left_out = await view_of.left_out(meant, by=caller.name)
        row, checked = await offers.publish(
            by=caller.name,
            form=new.form,
            policy=new.policy,
            dataset=new.dataset,
            decide=new.decide,
            offer_id=new.id,
            accept=new.accept,
            left_out=left_out,
        )
        return view(row, [problem_json(problem) for problem in checked.problems])

    @routes.get("/offers", summary="Offers, the newest first")
    async def list_offers(
        dataset: Annotated[str, Query(max_length=255, description="Name or id of what they are for.")] = "",
        withdrawn: Annotated[bool, Query(description="Withdrawn ones too.")] = True,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        _: Caller = reader,
    ) -> list[OfferView]:
        found = await offers.page(dataset=dataset, withdrawn=withdrawn, limit=limit, offset=offset)
        return [view(row) for row in found]

    @routes.get("/offers/{offer_id:path}", summary="One offer")
    async def get(offer_id: str, _: Caller = reader) -> OfferView:
        return view(await offers.get(offer_id))

    @routes.delete("/offers/{offer_id:path}", status_code=204, summary="Withdraw an offer; agreements stay")
    async def withdraw(offer_id: str, caller: Caller = owner) -> None:
        await offers.withdraw(offer_id, by=caller.name)

    @routes.post("/policies/lint", summary="Problems of a policy; with a dataset, held against its schema too")
    async def check(text: PolicyText, _: Caller = reader) -> dict[str, Any]:
        try:
            policy = _policy(text)
        except PolicyError as error:
            found = {"level": "error", "path": error.rule, "code": error.code, "message": str(error)}
            return {"problems": [found], "sentences": []}
        problems = [problem_json(problem) for problem in lint.lint(policy, absent=offers.absent)]
        if text.dataset or policy.target:
            try:
                problems = [
                    problem_json(p)
                    for p in (await offers.check(form=text.form, policy=text.policy, dataset=text.dataset)).problems
                ]
            except Absent as error:
                problems.append({"level": "warning", "path": "/target", "code": error.code, "message": error.message})
            except PolicyInvalid as error:
                problems = error.facts.get("problems") or [
                    {
                        "level": "error",
                        "path": error.facts.get("rule", ""),
                        "code": error.code,
                        "message": error.message,
                    }
                ]
        return {"problems": problems, "sentences": sentences(policy)}

    @routes.post("/policies/withheld", summary="What the groups of an aggregate-only offer would leave out, before it")
    async def withheld(text: PolicyText, caller: Caller = viewer) -> list[dict[str, Any]]:
        """It counts over raw rows with any row filter and any size of group: for the owner only, and recorded."""
        checked = await offers.check(form=text.form, policy=text.policy, dataset=text.dataset)
        return await view_of.withheld(checked, by=caller.name)

    @routes.post("/policies/explain", summary="A policy in plain words, with who enforces what")
    async def explained(text: PolicyText, _: Caller = reader) -> dict[str, Any]:
        policy = _policy(text)
        return {
            "sentences": sentences(policy),
            "report": report.to_json(report.enforceability(policy)),
            "policy": policy_reader.write(policy, in_catalog=True),
            "form": convert.write_form(convert.from_policy(policy)),
        }

    @routes.post("/policies/test", summary="What would be decided for this party, now or then, for this purpose")
    async def tested(case: PolicyCase, _: Caller = reader) -> dict[str, Any]:
        check_party(case.participant)
        policy, dataset = await _read_case(offers, case)
        fresh = with_counters(await known.of(case.participant), uses=0, uses_today=0, running=0)
        if dataset:
            fresh = fresh.adding(await known.of_dataset(dataset))
        facts = with_declared(fresh, purpose=vocabulary.expand(case.purpose), application=case.application)
        now = time.time() if case.at is None else case.at
        decision = evaluate.evaluate(
            evaluate.as_granting_set(policy, at=now),
            facts,
            action=vocabulary.expand(case.action),
            phase=vocabulary.Phase.QUERY,
            now=now,
        )
        lines = explain.decision(decision)
        for name, why in offers.absent.items():
            who = vocabulary.SOURCES[name]
            lines = [line.replace(who, f"{who} ({why})") for line in lines]
        return {"decision": decision.to_json(), "explanation": lines}

    @routes.post("/policies/diff", summary="What changes from one policy to another: requests and sentences")
    async def compare(two: PolicyComparison, _: Caller = reader) -> dict[str, Any]:
        before = await _read_one_policy(offers, two.before, two.before_offer, "before")
        after = await _read_one_policy(offers, two.after, two.after_offer, "after")
        now = time.time() if two.at is None else two.at
        return diff.diff(before, after, now=now).to_json()

    @routes.post("/policies/simulate", summary="What the gate makes of a query under an offer, without running it")
    async def simulate(case: QuerySimulation, caller: Caller = viewer) -> dict[str, Any]:
        if case.offer:
            row = await offers.get(case.offer)
            checked = await offers.check(policy=row.policy, dataset=row.dataset_id)
        else:
            checked = await offers.check(form=case.form, policy=case.policy, dataset=case.dataset)
        about = {"action": case.action, "purpose": case.purpose}
        return await view_of.simulate(checked, case.sql, **about, by=caller.name)

    @routes.get("/policies/templates", summary="Ready-made offers in the YAML form")
    async def templates(_: Caller = reader) -> dict[str, str]:
        return {name: convert.template(name) for name in convert.TEMPLATES}

    return routes


def check_party(text: str) -> str:
    """Return the id of a participant.

    Raises: Invalid for a text that is not a DID: nothing would be known of it, so everything would be refused.
    """
    if ":" not in text:
        raise Invalid(f"expected the DID of a party, got {text[:100]!r}; `hanse members` lists those of members")
    return text


async def _read_one_policy(offers: Offers, text: PolicyText | None, offer: str, which: str) -> Policy:
    if (text is None) == (not offer):
        raise PolicyInvalid(f"expected either `{which}` or `{which}_offer`, came both or neither")
    return stored_policies.read_offer_policy(await offers.get(offer)) if text is None else _policy(text)


async def _read_case(offers: Offers, case: PolicyCase) -> tuple[Policy, str]:
    """Return the policy of a case, and the id of its dataset if it is registered here."""
    if case.offer:
        row = await offers.get(case.offer)
        return stored_policies.read_offer_policy(row), row.dataset_id
    policy = _policy(case)
    return policy, await offers.dataset_id(case.dataset or policy.target)


def _policy(text: PolicyText) -> Policy:
    if bool(text.form) == (text.policy is not None):
        raise PolicyInvalid("expected either `form` (the YAML form) or `policy` (ODRL as JSON), came both or neither")
    if text.form:
        return convert.to_policy(convert.read_form(text.form))
    return policy_reader.read({"@type": "Offer", **(text.policy or {})})
