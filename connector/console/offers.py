"""Offers: the list, the editor with its checks and the trial as a partner, publishing, withdrawing."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Desk, Form, Numbered, form_of, part_of
from connector.console.view.formatting import did_of, path_of
from connector.datasets.registry import Registry
from connector.errors import BadInput, HanseError, PolicyInvalid
from connector.events import RawDataViewed, ReadEnded, ReadStarted
from connector.management import offers as offers_api
from connector.management.auth import Caller
from connector.offers.offers import DECIDE, CheckedOffer, Offers, problem_json
from connector.offers.preview import OwnersView, PreviewRequest
from connector.store.tables import Offer
from connector.usage.fact_collector import with_counters, with_declared
from policies import vocabulary
from policies.authoring import convert
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.model import Policy
from policies.odrl import reader
from policies.review import explain, lint, report

_LISTED = 50
_FORM_MAX = 64 * 1024
_ACTIONS = ("ds:query", "ds:stream", "ds:train")
_ASKED = PreviewRequest(participant="")


@dataclass(slots=True)
class Draft:
    """What the editor shows beside the text: problems, meaning, and the verdict of a trial."""

    problems: list[dict[str, str]] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    checked: CheckedOffer | None = None
    verdict: dict[str, Any] | None = None
    withheld: list[dict[str, Any]] = field(default_factory=list)

    @property
    def can_publish(self) -> bool:
        return self.checked is not None


def router(
    desk: Desk,
    *,
    offers: Offers,
    registry: Registry,
    owners_view: OwnersView,
    facts_of: Callable[[str], Awaitable[evaluate.Facts]],
) -> APIRouter:
    routes = desk.router()

    @routes.get("/offers")
    async def listed(request: Request, page: Numbered = 1, caller: Caller = desk.may("read")) -> Response:
        rows = await offers.page(**part_of(page, _LISTED))
        found = [offers_api.view(row) for row in rows[:_LISTED]]
        return await desk.page(
            request, "offers.html", where="offers", offers=found, page=page, more=len(rows) > _LISTED
        )

    @routes.get("/offers/new")
    async def editor(
        request: Request, dataset: str = "", template: str = "", based: str = "", caller: Caller = desk.may("owner")
    ) -> Response:
        text = ""
        if based:
            text = (await offers.get(based)).form
        elif template:
            text = _for(convert.template(template), dataset)
        draft = await _draft(offers, text, dataset) if text else Draft()
        return await _editor(request, text, dataset, draft)

    async def _editor(
        request: Request, text: str, dataset: str, draft: Draft, trial: Form | None = None, status: int = 200
    ) -> Response:
        known = [row.name for row, _ in await registry.page(limit=1000)]
        return await desk.page(
            request,
            "offer_new.html",
            status=status,
            where="offers",
            text=text,
            dataset=dataset,
            datasets=known,
            draft=draft,
            trial=trial or Form({}),
            templates=convert.TEMPLATES,
            decide=DECIDE,
            actions=_ACTIONS,
        )

    @routes.post("/offers/new")
    async def act(request: Request, caller: Caller = desk.may_raw("owner", RawDataViewed)) -> Response:
        """One form with three buttons: check, try as a partner, publish."""
        said = await form_of(request)
        text, dataset = said.get("form")[:_FORM_MAX], said.get("dataset")
        draft = await _draft(offers, text, dataset)
        if said.get("do") == "check" and draft.checked is not None:
            draft.withheld = await owners_view.withheld(draft.checked, by=caller.name)
        if said.get("do") in ("try", "publish") and not (draft.report and text):
            return await _editor(request, text, dataset, draft, said, 400)
        if said.get("do") == "try":
            try:
                draft.verdict = await _verdict(text, said, did_of(said.get("partner"), await desk.names()), facts_of)
            except HanseError as error:
                draft.problems = _problems_of(error)
                return await _editor(request, text, dataset, draft, said, error.status)
            if draft.verdict["permitted"] and draft.checked is not None:
                draft.verdict["columns"] = _columns(draft.checked, said.get("action"))
        if said.get("do") != "publish":
            return await _editor(request, text, dataset, draft, said)
        try:
            row, _ = await offers.publish(
                by=caller.name,
                form=text,
                dataset=dataset,
                decide=said.get("decide"),
                accept=bool(said.get("accept")),
            )
        except HanseError as error:
            draft.problems = _problems_of(error)
            return await _editor(request, text, dataset, draft, said, error.status)
        return RedirectResponse(path_of("/offers", row.id), status_code=303)

    @routes.post("/offers/check")
    async def check(request: Request, caller: Caller = desk.may("owner")) -> Response:
        """The meaning of a text that is being written, as the part of the page that shows it."""
        said = await form_of(request)
        draft = await _draft(offers, said.get("form")[:_FORM_MAX], said.get("dataset"))
        return await desk.page(request, "offer_meaning.html", draft=draft)

    async def _shown(
        request: Request, row: Offer, asked: PreviewRequest = _ASKED, seen: dict[str, Any] | None = None
    ) -> Response:
        dataset = await registry.get(row.dataset_id) if row.withdrawn_at is None else None
        return await desk.page(
            request,
            "offer.html",
            where="offers",
            offer=offers_api.view(row),
            dataset=dataset[0] if dataset else None,
            seen=seen,
            actions=_ACTIONS[:2],
            asked={"as": asked.participant, "purpose": asked.purpose, "action": asked.action},
        )

    @routes.get("/offers/preview")
    async def preview(
        request: Request,
        offer: Annotated[str, Query(max_length=255)],
        partner: Annotated[str, Query(alias="as", max_length=2_048)] = "",
        purpose: Annotated[str, Query(max_length=1_024)] = "",
        action: Annotated[str, Query(max_length=200)] = _ACTIONS[0],
        caller: Caller = desk.may_raw("owner", RawDataViewed, ReadStarted, ReadEnded),
    ) -> Response:
        """An offer with what a partner would see through it."""
        row, did = await offers.get(offer), did_of(partner.strip(), await desk.names())
        asked = PreviewRequest(participant=did, offer=row.id, purpose=purpose, action=action)
        fits = did and row.withdrawn_at is None
        seen = await owners_view.preview(row.dataset_id, asked, by=caller.name) if fits else None
        return await _shown(request, row, asked, seen)

    @routes.get("/offers/{offer_id:path}")
    async def one(request: Request, offer_id: str, caller: Caller = desk.may("read")) -> Response:
        return await _shown(request, await offers.get(offer_id))

    @routes.post("/offers/withdraw")
    async def withdraw(request: Request, caller: Caller = desk.may("owner")) -> Response:
        offer_id = (await form_of(request)).get("offer")
        await offers.withdraw(offer_id, by=caller.name)
        return RedirectResponse(path_of("/offers", offer_id), status_code=303)

    return routes


async def _draft(offers: Offers, text: str, dataset: str) -> Draft:
    """What a text means, as far as it can be read; every problem with its place."""
    if not text:
        return Draft([_problem("the form is empty; start from a template, or write `offer`, `dataset` and `may`")])
    try:
        policy = convert.to_policy(convert.read_form(text))
    except PolicyError as error:
        return Draft([_problem(str(error), path=error.rule, code=error.code)])
    found = lint.lint(policy, absent=offers.absent)
    draft = Draft([problem_json(one) for one in found], report.to_json(report.enforceability(policy)))
    try:
        draft.checked = await offers.check(form=text, dataset=dataset)
        draft.problems = [problem_json(one) for one in draft.checked.problems]
    except HanseError as error:
        draft.problems = _problems_of(error)
    return draft


def _problems_of(error: HanseError) -> list[dict[str, str]]:
    listed = error.facts.get("problems") if isinstance(error, PolicyInvalid) else None
    return listed or [_problem(error.message, path=str(error.facts.get("rule", "")), code=error.code)]


def _problem(message: str, *, path: str = "", code: str = "unreadable") -> dict[str, str]:
    return {"level": "error", "path": path, "code": code, "message": message}


async def _verdict(
    text: str, said: Form, partner: str, facts_of: Callable[[str], Awaitable[evaluate.Facts]]
) -> dict[str, Any]:
    """What would be decided for this partner, now or then; what it knows of the partner is said too."""
    policy: Policy = reader.read(reader.write(convert.to_policy(convert.read_form(text)), in_catalog=True))
    purpose = said.get("purpose")
    facts = with_declared(await facts_of(partner), purpose=vocabulary.expand(purpose))
    facts = with_counters(facts, uses=0, uses_today=0, running=0)  # as for its first use
    action = said.get("action") or _ACTIONS[0]
    decision = evaluate.evaluate(
        evaluate.as_granting_set(policy),
        facts,
        action=vocabulary.expand(action),
        phase=vocabulary.Phase.QUERY,
        now=_when(said.get("at")),
    )
    return {"permitted": decision.permitted, "lines": explain.decision(decision), "partner": partner, "columns": []}


def _columns(checked: CheckedOffer, action: str) -> list[str]:
    """The columns that the action's contract shows, in the table's order."""
    wanted = vocabulary.expand(action or _ACTIONS[0])
    return list(next((one.columns for one in checked.contracts if wanted in one.actions), ()))


def _when(text: str) -> float:
    if not text:
        return time.time()
    try:
        return datetime.fromisoformat(text if text.endswith("Z") or "+" in text else f"{text}+00:00").timestamp()
    except ValueError:
        raise BadInput(f"at: expected a time such as 2027-06-30T12:00, came {text[:40]!r}") from None


def _for(template: str, dataset: str) -> str:
    """A template made out for a dataset."""
    return template.replace("urn:example:dataset", dataset) if dataset else template
