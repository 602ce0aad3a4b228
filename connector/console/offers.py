"""Offer pages: list, editor with checks and trial decisions, publishing, preview and withdrawal."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Form, Numbered, PageRenderer, page_slice, read_form
from connector.console.view.formatting import did_of, path_of
from connector.datasets.registry import Registry
from connector.errors import BadInput, HanseError, PolicyInvalid
from connector.events import RawDataViewed, ReadEnded, ReadStarted
from connector.management import offers as offers_api
from connector.management.sign_on.auth import Caller
from connector.offers.offers import CheckedOffer, Offers, problem_json
from connector.offers.preview import OwnersView, PreviewRequest
from connector.store.tables import Offer
from connector.usage.fact_collector import with_counters, with_declared
from policies import vocabulary
from policies.authoring import convert
from policies.authoring.form import DECIDE
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
    """What the editor shows next to the text: problems, meaning, and the result of a trial decision."""

    problems: list[dict[str, str]] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    checked: CheckedOffer | None = None
    verdict: dict[str, Any] | None = None
    withheld: list[dict[str, Any]] = field(default_factory=list)

    @property
    def can_publish(self) -> bool:
        return self.checked is not None


def router(
    pages: PageRenderer,
    *,
    offers: Offers,
    registry: Registry,
    owners_view: OwnersView,
    facts_of: Callable[[str], Awaitable[evaluate.Facts]],
) -> APIRouter:
    routes = pages.router()

    @routes.get("/offers")
    async def list_offers(request: Request, page: Numbered = 1, caller: Caller = pages.may("read")) -> Response:
        rows = await offers.page(**page_slice(page, _LISTED))
        found = [offers_api.view(row) for row in rows[:_LISTED]]
        return await pages.render(
            request, "offers.html", where="offers", offers=found, page=page, more=len(rows) > _LISTED
        )

    @routes.get("/offers/new")
    async def editor(
        request: Request, dataset: str = "", template: str = "", based: str = "", caller: Caller = pages.may("owner")
    ) -> Response:
        text = ""
        if based:
            text = (await offers.get(based)).form
        elif template:
            text = _fill_template(convert.template(template), dataset)
        draft = await _check_draft(offers, text, dataset) if text else Draft()
        return await _render_editor(request, text, dataset, draft)

    async def _render_editor(
        request: Request, text: str, dataset: str, draft: Draft, trial: Form | None = None, status: int = 200
    ) -> Response:
        known = [row.name for row, _ in await registry.page(limit=1000)]
        return await pages.render(
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
    async def act(request: Request, caller: Caller = pages.may_raw("owner", RawDataViewed)) -> Response:
        """Handle the three buttons of the form: check, try as a partner, publish."""
        said = await read_form(request)
        text, dataset = said.get("form")[:_FORM_MAX], said.get("dataset")
        draft = await _check_draft(offers, text, dataset)
        if said.get("do") == "check" and draft.checked is not None:
            draft.withheld = await owners_view.withheld(draft.checked, by=caller.name)
        if said.get("do") in ("try", "publish") and not (draft.report and text):
            return await _render_editor(request, text, dataset, draft, said, 400)
        if said.get("do") == "try":
            try:
                draft.verdict = await _try_policy(
                    text, said, did_of(said.get("partner"), await pages.names()), facts_of
                )
            except HanseError as error:
                draft.problems = _list_problems(error)
                return await _render_editor(request, text, dataset, draft, said, error.status)
            if draft.verdict["permitted"] and draft.checked is not None:
                draft.verdict["columns"] = _list_columns(draft.checked, said.get("action"))
        if said.get("do") != "publish":
            return await _render_editor(request, text, dataset, draft, said)
        try:
            row, _ = await offers.publish(
                by=caller.name,
                form=text,
                dataset=dataset,
                decide=said.get("decide"),
                accept=bool(said.get("accept")),
            )
        except HanseError as error:
            draft.problems = _list_problems(error)
            return await _render_editor(request, text, dataset, draft, said, error.status)
        return RedirectResponse(path_of("/offers", row.id), status_code=303)

    @routes.post("/offers/check")
    async def check(request: Request, caller: Caller = pages.may("owner")) -> Response:
        """Return the page fragment that explains an unfinished text."""
        said = await read_form(request)
        draft = await _check_draft(offers, said.get("form")[:_FORM_MAX], said.get("dataset"))
        return await pages.render(request, "offer_meaning.html", draft=draft)

    async def _render_offer(
        request: Request, row: Offer, asked: PreviewRequest = _ASKED, seen: dict[str, Any] | None = None
    ) -> Response:
        dataset = await registry.get(row.dataset_id) if row.withdrawn_at is None else None
        return await pages.render(
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
        caller: Caller = pages.may_raw("owner", RawDataViewed, ReadStarted, ReadEnded),
    ) -> Response:
        """Show an offer with the data that a partner would see."""
        row, did = await offers.get(offer), did_of(partner.strip(), await pages.names())
        asked = PreviewRequest(participant=did, offer=row.id, purpose=purpose, action=action)
        fits = did and row.withdrawn_at is None
        seen = await owners_view.preview(row.dataset_id, asked, by=caller.name) if fits else None
        return await _render_offer(request, row, asked, seen)

    @routes.get("/offers/{offer_id:path}")
    async def view_offer(request: Request, offer_id: str, caller: Caller = pages.may("read")) -> Response:
        return await _render_offer(request, await offers.get(offer_id))

    @routes.post("/offers/withdraw")
    async def withdraw(request: Request, caller: Caller = pages.may("owner")) -> Response:
        offer_id = (await read_form(request)).get("offer")
        await offers.withdraw(offer_id, by=caller.name)
        return RedirectResponse(path_of("/offers", offer_id), status_code=303)

    return routes


async def _check_draft(offers: Offers, text: str, dataset: str) -> Draft:
    """Check a text; return its meaning as far as it parses, and every problem with its place."""
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
        draft.problems = _list_problems(error)
    return draft


def _list_problems(error: HanseError) -> list[dict[str, str]]:
    listed = error.facts.get("problems") if isinstance(error, PolicyInvalid) else None
    return listed or [_problem(error.message, path=str(error.facts.get("rule", "")), code=error.code)]


def _problem(message: str, *, path: str = "", code: str = "unreadable") -> dict[str, str]:
    return {"level": "error", "path": path, "code": code, "message": message}


async def _try_policy(
    text: str, said: Form, partner: str, facts_of: Callable[[str], Awaitable[evaluate.Facts]]
) -> dict[str, Any]:
    """Evaluate the policy for a partner at a time; return the decision and its explanation."""
    policy: Policy = reader.read(reader.write(convert.to_policy(convert.read_form(text)), in_catalog=True))
    purpose = said.get("purpose")
    facts = with_declared(await facts_of(partner), purpose=vocabulary.expand(purpose))
    facts = with_counters(facts, uses=0, uses_today=0, running=0)  # as for a first use
    action = said.get("action") or _ACTIONS[0]
    decision = evaluate.evaluate(
        evaluate.as_granting_set(policy),
        facts,
        action=vocabulary.expand(action),
        phase=vocabulary.Phase.QUERY,
        now=_parse_time(said.get("at")),
    )
    return {"permitted": decision.permitted, "lines": explain.decision(decision), "partner": partner, "columns": []}


def _list_columns(checked: CheckedOffer, action: str) -> list[str]:
    """List the columns that the action's contract permits, in the table's order."""
    wanted = vocabulary.expand(action or _ACTIONS[0])
    return list(next((one.columns for one in checked.contracts if wanted in one.actions), ()))


def _parse_time(text: str) -> float:
    if not text:
        return time.time()
    try:
        return datetime.fromisoformat(text if text.endswith("Z") or "+" in text else f"{text}+00:00").timestamp()
    except ValueError:
        raise BadInput(f"at: expected a time such as 2027-06-30T12:00, got {text[:40]!r}") from None


def _fill_template(template: str, dataset: str) -> str:
    """Fill the dataset into a template."""
    return template.replace("urn:example:dataset", dataset) if dataset else template
