"""The editor of offers: fields and YAML in step, checks while writing, a trial as a partner, publishing.

A posted form has the fields, the YAML, and the YAML as the page showed it (`before`). If the YAML was edited it counts;
otherwise the fields do, and words without a field stay as the YAML has them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Form, PageRenderer, read_form
from connector.console.view import field_problems, offer_fields
from connector.console.view.field_problems import PlacedProblem
from connector.console.view.formatting import did_of, path_of
from connector.console.view.offer_fields import OfferFields
from connector.datasets.registry import Registry
from connector.errors import Absent, ConnectorError, Invalid, PolicyInvalid
from connector.events import RawDataViewed
from connector.management import datasets as datasets_api
from connector.management.sign_on.auth import Caller
from connector.offers.offers import CheckedOffer, Offers, problem_json
from connector.offers.preview import OwnersView
from connector.usage.fact_collector import with_counters, with_declared
from policies import vocabulary
from policies.authoring import convert
from policies.authoring.fill_template import ColumnFigures, fill_template, measure_range
from policies.authoring.form import DECIDE, OfferForm
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from policies.odrl import reader
from policies.review import explain, report
from policies.vocabulary.purpose_texts import purpose_texts, title_of

_FORM_MAX = 64 * 1024
_FIELDS_MAX = 10_000  # a tick for each visible column
_ACTIONS = ("ds:query", "ds:stream", "ds:train")
_CHANGED = "the dataset, its columns or the kind of answer changed; look at the fields as they are now, then publish"
_BOTH_EDITED = "expected changes in the fields or in the YAML, got both; the YAML counts: look at it, then publish"
_DEFAULT_PROBLEM = "the offer is empty; choose a template, or fill in a name and what partners may do"


@dataclass(frozen=True, slots=True)
class TermChanges:
    """How the terms differ from those of the offer that this one replaces, as sentences."""

    replaced: str
    added: list[str]
    removed: list[str]


@dataclass(slots=True)
class Draft:
    """An offer while it is written: its YAML and fields, and what the editor says about it."""

    text: str
    dataset: str
    columns: list[ColumnFigures]
    fields: OfferFields = field(default_factory=lambda: OfferFields(uses={}))
    form: OfferForm | None = None
    policy: Policy | None = None
    problems: list[PlacedProblem] = field(default_factory=list)
    report: list[dict[str, Any]] = field(default_factory=list)
    checked: CheckedOffer | None = None
    verdict: dict[str, Any] | None = None
    withheld: list[dict[str, Any]] = field(default_factory=list)
    changes: TermChanges | None = None
    both_edited: bool = False

    @property
    def drawn(self) -> str:
        """Digest of what decides which data each field is about; a form returns it, so that only what was shown is
        published."""
        columns = [(one.name, one.type) for one in self.columns]
        shown = (self.dataset, self.fields.about_groups, self.has_fields, columns)
        return sha256(repr(shown).encode(errors="surrogatepass")).hexdigest()[:32]

    @property
    def can_publish(self) -> bool:
        return self.checked is not None

    @property
    def has_fields(self) -> bool:
        """Whether fields can show the offer: its YAML can be read, and has no rules in ODRL."""
        return not self.text or (self.form is not None and self.form.odrl is None)

    @property
    def shape(self) -> str:
        """What decides which fields there are; the page draws them anew when it changes."""
        shown = (self.drawn, self.fields.answers, self.fields.purposes)
        return repr((shown, self.form is not None and offer_fields.words_without_field(self.form)))

    def show_problems(self, problems: list[dict[str, str]]) -> None:
        self.problems = field_problems.place_problems(problems, text=self.text, policy=self.policy)

    def problems_of(self, name: str) -> list[PlacedProblem]:
        return [one for one in self.problems if one.field == name]


def router(
    pages: PageRenderer,
    *,
    offers: Offers,
    registry: Registry,
    owners_view: OwnersView,
    facts_of: Callable[[str], Awaitable[Facts]],
) -> APIRouter:
    routes = pages.router()

    async def _find_dataset(dataset: str) -> tuple[str, list[ColumnFigures]]:
        """Return the name of a dataset (or id), as the page lists it, and its columns with their figures; none if there
        is no such dataset."""
        try:
            row, version = await registry.get(dataset)
        except Absent:
            return dataset, []
        found = datasets_api.view(row, version, raw=True).columns
        return row.name, [_column_figures(one.name, one.type, one.statistics or {}) for one in found]

    async def _open(text: str, dataset: str, based: str = "") -> Draft:
        """Return the draft of a text: its fields, meaning and problems."""
        draft = Draft(text=text, dataset=dataset, columns=[])
        try:
            draft.form = convert.read_form(text) if text else None
        except PolicyError as error:
            draft.show_problems([_problem(str(error), path=error.rule, code=error.code)])
        if draft.form is not None:
            draft.dataset = dataset or draft.form.dataset
        draft.dataset, draft.columns = await _find_dataset(draft.dataset)
        names = [one.name for one in draft.columns]
        if draft.form is None:
            draft.fields = OfferFields(uses={}, seen=tuple(names))
            return draft
        draft.fields = offer_fields.form_fields(draft.form, names)
        await _check(draft, draft.form, offers)
        draft.changes = await _compare(draft, based, offers)
        return draft

    async def _open_posted(said: Form) -> Draft:
        """Return the draft of a posted form: of its YAML where that was edited, otherwise of its fields."""
        text, before, dataset = said.get("form"), said.get("before"), said.get("dataset")
        _check_length(text, before)
        if (written := _dataset_in(text)) != _dataset_in(before):  # edited there: the YAML counts
            dataset = written or dataset
        if not said.get("fields") or _lines(text) != _lines(before):
            draft = await _open(text, dataset, said.get("based"))
            draft.both_edited = bool(said.get("fields")) and await _are_fields_edited(said, before)
            return draft
        shown = await _open(text, dataset)
        names = [one.name for one in shown.columns]
        posted = offer_fields.posted_fields(said, names)
        if said.get("shown") != shown.dataset:  # the columns of another dataset were ticked
            return await _open(_fit_text(text, shown), dataset, said.get("based"))
        try:
            made = offer_fields.apply_fields(posted, shown.form or OfferForm(offer=""), names)
        except ValueError as error:
            problem = PlacedProblem("error", "duration", f"{error}; write a duration such as 30d", "lasts")
            return replace(shown, fields=posted, problems=[problem], policy=None, checked=None, report=[])
        except ConnectorError as error:
            problem = PlacedProblem("error", error.code, error.message, "columns")
            return replace(shown, fields=posted, problems=[problem], policy=None, checked=None, report=[])
        made = replace(made, offer=made.offer or f"{dataset or 'new'}-offer", dataset=dataset or made.dataset)
        if shown.form == made:
            return await _open(text, dataset, said.get("based"))
        draft = await _open(convert.write_form(made), dataset, said.get("based"))
        draft.fields = posted  # as it was typed: `5M` stays `5M`
        return draft

    async def _are_fields_edited(said: Form, before: str) -> bool:
        """Return whether the fields say something else than the YAML of which they were drawn."""
        shown = await _open(before, said.get("shown"))
        names = [one.name for one in shown.columns]
        if shown.form is None or said.get("dataset") != said.get("shown"):
            return bool(before)
        base = offer_fields.spell_columns(shown.form, names)
        try:
            return offer_fields.apply_fields(offer_fields.posted_fields(said, names), base, names) != base
        except (ValueError, ConnectorError):
            return True

    @routes.get("/offers/new")
    async def editor(
        request: Request,
        dataset: str = "",
        template: str = "",
        based: str = "",
        caller: Caller = pages.may_raw("owner"),
    ) -> Response:
        text = ""
        if based:
            text = (await offers.get(based)).form
        elif template:
            form = convert.read_form(convert.template(template))
            _, columns = await _find_dataset(dataset)
            text = convert.write_form(fill_template(form, columns, dataset=dataset or form.dataset))
        return await _render(request, await _open(text, dataset, based), Form({"based": [based]}))

    async def _render(request: Request, draft: Draft, said: Form, status: int = 200) -> Response:
        shown = await _context(draft, said)
        return await pages.render(request, "offer_new.html", status=status, where="offers", trial=said, **shown)

    async def _context(draft: Draft, said: Form) -> dict[str, Any]:
        names = [row.name for row, _ in await registry.page(limit=1000)]
        return {"draft": draft, "based": said.get("based"), "datasets": names, **_choices(draft)}

    @routes.post("/offers/new")
    async def act(request: Request, caller: Caller = pages.may_raw("owner", RawDataViewed)) -> Response:
        """Handle the buttons of the form: check, try as a partner, publish."""
        said = await read_form(request, most=_FIELDS_MAX)
        draft = await _open_posted(said)
        do = said.get("do")
        if do == "check" and draft.checked is not None:
            draft.withheld = await owners_view.withheld(draft.checked, by=caller.name)
        if do in ("try", "publish") and draft.policy is None:
            if not draft.problems:
                draft.show_problems([_problem(_DEFAULT_PROBLEM)])
            return await _render(request, draft, said, 400)
        if do == "publish" and (unseen := _find_unseen(draft, said)):
            draft.problems = [*draft.problems, PlacedProblem("error", "not_shown", unseen)]
            return await _render(request, draft, said, 400)
        try:
            if do == "try":
                await _try(draft, said, did_of(said.get("partner"), await pages.names()))
            if do == "publish":
                return await _publish(draft, said, caller)
        except ConnectorError as error:
            draft.show_problems(_list_problems(error))
            return await _render(request, draft, said, error.status)
        return await _render(request, draft, said)

    async def _try(draft: Draft, said: Form, partner: str) -> None:
        facts = await facts_of(partner)
        draft.verdict = _decide(draft.text, said, partner, facts)
        if draft.verdict["permitted"] and draft.checked is not None:
            draft.verdict["columns"] = _list_columns(draft.checked, said.get("action"))

    async def _publish(draft: Draft, said: Form, caller: Caller) -> Response:
        """Publish the draft; then withdraw the offer that it replaces, where the form says so."""
        row, _ = await offers.publish(
            by=caller.name,
            form=draft.text,
            dataset=draft.dataset,
            accept=bool(said.get("accept")),
        )
        if said.get("withdraw") and said.get("based"):
            await offers.withdraw(said.get("based"), by=caller.name)
        return RedirectResponse(path_of("/offers", row.id), status_code=303)

    @routes.post("/offers/check")
    async def check(request: Request, caller: Caller = pages.may_raw("owner")) -> Response:
        """Return the parts of the page that follow from an unfinished offer: fields, YAML and meaning."""
        said = await read_form(request, most=_FIELDS_MAX)
        draft = await _open_posted(said)
        return await pages.render(request, "offer_parts.html", **await _context(draft, said))

    return routes


def _choices(draft: Draft) -> dict[str, Any]:
    """Return what can be chosen in the fields, with its titles."""
    return {
        "templates": convert.TEMPLATES,
        "decide": DECIDE,
        "actions": _ACTIONS,
        "purposes": purpose_texts(),
        "title_of": title_of,
        "measure_range": measure_range,
        "may_words": offer_fields.ACTIONS,
        "never_words": offer_fields.NEVER,
        "others": offer_fields.words_without_field(draft.form) if draft.form is not None else [],
    }


def _column_figures(name: str, kind: str, figures: dict[str, Any]) -> ColumnFigures:
    def text(word: str) -> str | None:
        return None if figures.get(word) is None else str(figures[word])

    return ColumnFigures(name, kind, figures.get("distinct"), text("min"), text("max"))


def _find_unseen(draft: Draft, said: Form) -> str:
    """Return why the person has not seen what would be published; empty if it was shown."""
    if draft.both_edited:
        return _BOTH_EDITED
    return _CHANGED if said.get("fields") and said.get("drawn") != draft.drawn else ""


def _dataset_in(text: str) -> str:
    """Return the dataset that a YAML names; empty if it names none or cannot be read."""
    try:
        return convert.read_form(text).dataset if text else ""
    except PolicyError:
        return ""


def _check_length(*texts: str) -> None:
    """Raises: Invalid. A text that is cut would lose rules."""
    if (longest := max(map(len, texts))) > _FORM_MAX:
        raise Invalid(f"expected an offer of at most {_FORM_MAX} characters as YAML, got {longest}; name fewer columns")


def _lines(text: str) -> list[str]:
    """Return the lines without their ends: a browser sends them as it likes."""
    return text.strip().splitlines()


def _fit_text(text: str, draft: Draft) -> str:
    """Return the YAML for the columns of another dataset."""
    if draft.form is None or draft.form.odrl is not None:
        return text
    return convert.write_form(fill_template(draft.form, draft.columns, dataset=draft.dataset))


async def _check(draft: Draft, form: OfferForm, offers: Offers) -> None:
    """Add the meaning of a draft as far as it can be read, and every problem with its place."""
    try:
        draft.policy = convert.to_policy(form)
    except PolicyError as error:
        draft.show_problems([_problem(str(error), path=error.rule, code=error.code)])
        return
    draft.report = report.to_json(report.enforceability(draft.policy))
    try:
        draft.checked = await offers.check(form=draft.text, dataset=draft.dataset)
        draft.show_problems([problem_json(one) for one in draft.checked.problems])
    except ConnectorError as error:
        draft.show_problems(_list_problems(error))


async def _compare(draft: Draft, based: str, offers: Offers) -> TermChanges | None:
    """Compare the terms with those of the offer that the draft replaces."""
    if not based or draft.policy is None:
        return None
    row = await offers.get(based)
    before = [line["text"] for line in report.to_json(report.enforceability(reader.read(row.policy)))]
    after = [line["text"] for line in draft.report]
    added = [one for one in dict.fromkeys(after) if one not in before]
    return TermChanges(row.id, added, [one for one in dict.fromkeys(before) if one not in after])


def _list_problems(error: ConnectorError) -> list[dict[str, str]]:
    listed = error.facts.get("problems") if isinstance(error, PolicyInvalid) else None
    return listed or [_problem(error.message, path=str(error.facts.get("rule", "")), code=error.code)]


def _problem(message: str, *, path: str = "", code: str = "unreadable") -> dict[str, str]:
    return {"level": "error", "path": path, "code": code, "message": message}


def _decide(text: str, said: Form, partner: str, known: Facts) -> dict[str, Any]:
    """Evaluate the policy for a partner at a time; return the decision and its explanation."""
    policy: Policy = reader.read(reader.write(convert.to_policy(convert.read_form(text)), in_catalog=True))
    facts = with_declared(known, purpose=vocabulary.expand(said.get("purpose")))
    facts = with_counters(facts, uses=0, uses_today=0, running=0)  # as for a first use
    decision = evaluate.evaluate(
        evaluate.as_granting_set(policy),
        facts,
        action=vocabulary.expand(said.get("action") or _ACTIONS[0]),
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
        raise Invalid(f"at: expected a time such as 2027-06-30T12:00, got {text[:40]!r}") from None
