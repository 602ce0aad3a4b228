"""From a name to a started transfer, step by step and without I/O: scripted answers, and the calls they bring."""

from __future__ import annotations

from typing import Any

import pytest
from hanse import agreement, errors
from hanse.agreement import DPV, Call, Name, TransferAccess

ID = "urn:hanse:north:flights"
RESEARCH = DPV + "ScientificResearch"
NORTH, OTHER_NORTH = "did:web:north.example", "did:web:shop.example"  # which calls itself north, too
CATALOG = {
    "participantId": NORTH,
    "dataset": [{"@id": ID, "hasPolicy": [{"@id": "offer:1"}]}, {"@id": "urn:hanse:north:planes"}],
}
ACTIVE = {"id": "agr:1", "dataset": ID, "counterparty": NORTH, "state": "active", "signed_at": 5.0}
STARTED = {"id": "trf:1", "agreement_id": "agr:1", "state": "STARTED", "purpose": RESEARCH}
FINALIZED = {"id": "neg:1", "state": "FINALIZED", "agreement_id": "agr:1"}


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def play(answers: dict[str, Any], **options: Any) -> tuple[TransferAccess, list[str]]:
    """Run `agree` against answers by `METHOD /path`; a list is one answer after the other, an exception is thrown."""
    clock = Clock()
    given: dict[str, Any] = {"purpose": RESEARCH, "offer": "", "seconds": 60.0, **options}
    steps = agreement.agree(Name("north", "flights"), now=clock, **given)
    said: list[str] = []
    scripts = {
        key: list(value) if isinstance(value, list) and key.count("/") else [value] for key, value in answers.items()
    }
    try:
        call: Call = next(steps)
        while True:
            said.append(f"{call.method} {call.path}")
            script = scripts.get(said[-1], [[]])
            answer = script.pop(0) if len(script) > 1 else script[0]
            clock.time += call.query.get("wait", 0)
            call = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as done:
        return done.value, said


LISTS: dict[str, Any] = {"GET /agreements": [[]], "GET /negotiations": [[]], "GET /transfers": [[]]}
FRESH: dict[str, Any] = {
    "GET /catalog": CATALOG,
    **LISTS,
    "POST /negotiations": {"id": "neg:1", "state": "REQUESTED"},
    "GET /negotiations/neg%3A1": [{"id": "neg:1", "state": "AGREED"}, FINALIZED],
    "POST /transfers": {"id": "trf:1", "state": "REQUESTED"},
    "GET /transfers/trf%3A1": STARTED,
}


def test_without_an_agreement_it_negotiates_and_starts() -> None:
    access, said = play(FRESH)
    assert access == TransferAccess(Name("north", "flights"), ID, "agr:1", "trf:1", RESEARCH, NORTH)
    assert said == [
        "GET /catalog",
        "GET /agreements",
        "GET /negotiations",
        "GET /agreements",
        "POST /negotiations",
        "GET /negotiations/neg%3A1",
        "GET /negotiations/neg%3A1",
        "GET /transfers",
        "POST /transfers",
        "GET /transfers/trf%3A1",
    ]


@pytest.mark.parametrize("purpose", [RESEARCH, "dpv:ScientificResearch"])
def test_a_started_transfer_under_an_agreement_that_holds_is_used_again(purpose: str) -> None:
    """However its purpose was typed."""
    started = {**STARTED, "purpose": purpose}
    access, said = play({**FRESH, "GET /agreements": [[ACTIVE]], "GET /transfers": [[started]]})
    assert access.transfer_id == "trf:1"
    assert not any(call.startswith("POST") for call in said)


def test_an_agreement_that_holds_needs_a_transfer_only() -> None:
    _, said = play({**FRESH, "GET /agreements": [[ACTIVE]]})
    assert [call for call in said if call.startswith("POST")] == ["POST /transfers"]


@pytest.mark.parametrize(
    "row",
    [
        {**ACTIVE, "state": "ended"},
        {**ACTIVE, "state": "pending"},
        {**ACTIVE, "dataset": "urn:hanse:north:planes"},
        {**ACTIVE, "counterparty": OTHER_NORTH, "signed_at": 9e9},  # of another who has the same name and ids
    ],
)
def test_an_agreement_that_ended_or_is_for_something_else_is_not_used(row: dict[str, Any]) -> None:
    _, said = play({**FRESH, "GET /agreements": [[row]]})
    assert "POST /negotiations" in said


def test_a_push_that_is_under_way_is_no_transfer_to_read_from() -> None:
    """It has no address to read at."""
    pushing = {**STARTED, "format": "HttpData-PUSH", "id": "trf:0"}
    access, said = play({**FRESH, "GET /agreements": [[ACTIVE]], "GET /transfers": [[pushing]]})
    assert access.transfer_id == "trf:1"
    assert "POST /transfers" in said


def test_of_two_datasets_that_end_in_one_name_neither_is_taken_for_the_other() -> None:
    """It was the first in the owner's list, which is in the order of ids."""
    twice = [{"@id": f"urn:north:{group}:flights", "hasPolicy": [{"@id": f"offer:{group}"}]} for group in ("a", "b")]
    catalog = {"GET /catalog": {**CATALOG, "dataset": twice}}
    with pytest.raises(errors.BadInput, match="north/<id>: urn:north:a:flights, urn:north:b:flights") as caught:
        play({**FRESH, **catalog})
    assert caught.value.code == "dataset_ambiguous"
    steps = agreement.find(agreement.parse_name("north/urn:north:b:flights"))
    next(steps)
    with pytest.raises(StopIteration) as done:
        steps.send(catalog["GET /catalog"])
    assert done.value.value.dataset_id == "urn:north:b:flights"


@pytest.mark.parametrize(
    ("ids", "meant"),
    [
        (["https://north.test/flights", "urn:hanse:north:flights"], "urn:hanse:north:flights"),
        (
            ["urn:hanse:south:flights", "urn:hanse:north:a:flights", "urn:hanse:north:flights"],
            "urn:hanse:north:flights",
        ),
        (["flights", "https://north.test/flights"], "flights"),
        (["flights", "urn:hanse:north:flights"], ""),
    ],
)
def test_a_name_is_that_of_the_dataset_whose_path_it_is_whatever_else_ends_in_it(ids: list[str], meant: str) -> None:
    """The catalogue shows it as the path of this one; where an owner answers with its whole list it was refused."""
    steps = agreement.find(agreement.parse_name("north/flights"))
    next(steps)
    with pytest.raises(StopIteration if meant else errors.BadInput) as done:
        steps.send({**CATALOG, "dataset": [{"@id": one} for one in ids]})
    assert not meant or done.value.value.dataset_id == meant


def test_a_transfer_for_another_purpose_is_not_used() -> None:
    other = {**STARTED, "purpose": DPV + "Marketing"}
    _, said = play({**FRESH, "GET /agreements": [[ACTIVE]], "GET /transfers": [[other]]})
    assert "POST /transfers" in said


def test_the_newest_agreement_is_tried_first() -> None:
    newer = {**ACTIVE, "id": "agr:2", "signed_at": 9.0}
    answers = {**FRESH, "GET /agreements": [[ACTIVE, newer]], "POST /transfers": {"id": "trf:1", "state": "STARTED"}}
    access, _ = play(answers)
    assert access.agreement_id == "agr:2"


def test_an_agreement_that_the_owner_honours_no_more_leads_to_a_new_negotiation() -> None:
    answers = {
        **FRESH,
        "GET /agreements": [[ACTIVE]],
        "POST /transfers": [errors.Refused("ended", code="agreement_ended"), {"id": "trf:1", "state": "STARTED"}],
    }
    _, said = play(answers)
    assert said.count("POST /transfers") == 2
    assert "POST /negotiations" in said


FOR_RESEARCH = errors.Refused("for research only", code="purpose_not_agreed", rule="/permission/0")


@pytest.mark.parametrize("offer", ["", "offer:1"])
def test_an_offer_whose_agreement_is_for_other_purposes_is_not_agreed_on_again(offer: str) -> None:
    held = {**ACTIVE, "offer_id": "offer:1"}
    again = {"POST /negotiations": AssertionError("asked again"), "POST /transfers": FOR_RESEARCH}
    with pytest.raises(errors.Refused, match="for research only"):
        play({**FRESH, "GET /agreements": [[held]], **again}, offer=offer)


TWO = {**CATALOG, "dataset": [{"@id": ID, "hasPolicy": [{"@id": "offer:1"}, {"@id": "offer:2"}]}]}
OPEN = {"id": "neg:1", "dataset": ID, "counterparty": NORTH, "offer_id": "offer:1", "state": "REQUESTED"}


@pytest.mark.parametrize(("purpose", "told"), [("dpv:Marketing", True), (RESEARCH, False), ("", False)])
def test_an_open_negotiation_for_another_purpose_is_told_as_that(purpose: str, *, told: bool) -> None:
    row = {**OPEN, "purpose": purpose}
    waiting = {**FRESH, "GET /negotiations": [[row]], "GET /negotiations/neg%3A1": row}
    with pytest.raises(errors.NegotiationPending) as pending:
        play(waiting)
    said = "neg:1 for dpv:Marketing, not for dpv:ScientificResearch, REQUESTED" in str(pending.value)
    assert (said, "`hanse reject neg:1` ends it" in str(pending.value)) == (told, told)


ENDED = {**OPEN, "peer_pid": "urn:1", "state": "TERMINATED", "code": "terminated", "reason": "not for shops"}
FOR_SHOPS = {**ENDED, "id": "neg:2", "purpose": DPV + "Marketing"}


@pytest.mark.parametrize(
    "rows",
    [
        [ENDED],
        [{**ENDED, "code": ""}],  # codes are the other side's own
        [{**ENDED, "code": "rejected"}],
        [{**ENDED, "purpose": "dpv:ScientificResearch"}],
        [{**FOR_SHOPS, "state": "FINALIZED"}, ENDED],  # what came of another purpose takes no no back
    ],
)
def test_a_no_that_came_after_the_wait_is_told_and_nobody_is_asked_anew(rows: list[dict[str, Any]]) -> None:
    asked = {**FRESH, "GET /negotiations": [rows], "POST /negotiations": AssertionError("asked anew")}
    for _ in range(2):
        with pytest.raises(
            errors.NegotiationFailed, match=r"not for shops; .* `hanse negotiate north/flights --again`"
        ):
            play(asked)


@pytest.mark.parametrize(
    ("rows", "again"),
    [
        ([ENDED], True),
        ([{**ENDED, "code": "undeliverable"}], False),  # nobody's no
        ([{**ENDED, "code": "not_answered"}], False),
        ([{**ENDED, "code": "request_withdrawn"}], False),  # by ourselves
        ([{**ENDED, "peer_pid": "", "code": "too_many_new"}], False),  # our request was not taken
        ([FOR_SHOPS], False),
        ([{**ENDED, "state": "FINALIZED"}, ENDED], False),  # of an agreement that has ended since
    ],
)
def test_it_is_asked_anew_on_a_wish_or_where_nobody_said_no(rows: list[dict[str, Any]], *, again: bool) -> None:
    _, said = play({**FRESH, "GET /negotiations": [rows]}, again=again)
    assert "POST /negotiations" in said


def test_beside_an_agreement_for_other_purposes_another_offer_is_taken() -> None:
    lists = {
        "GET /agreements": [[{**ACTIVE, "offer_id": "offer:1"}]],
        "GET /negotiations": [[{**OPEN, "offer_id": "offer:2", "state": "AGREED"}]],
    }
    _, said = play({**FRESH, "GET /catalog": TWO, **lists, "POST /transfers": [FOR_RESEARCH, STARTED]})
    assert "POST /negotiations" not in said  # the open one about the other offer is gone on with


def test_of_several_offers_the_first_that_is_for_the_purpose_is_agreed_on() -> None:
    asked = [FOR_RESEARCH, {"id": "neg:1", "state": "REQUESTED"}]
    _, said = play({**FRESH, "GET /catalog": TWO, "POST /negotiations": asked})
    assert said.count("POST /negotiations") == 2
    with pytest.raises(errors.Refused, match="for research only"):
        play({**FRESH, "GET /catalog": TWO, "POST /negotiations": asked}, offer="offer:1")
    with pytest.raises(errors.Refused, match="for research only"):
        play({**FRESH, "GET /catalog": TWO, "POST /negotiations": FOR_RESEARCH})
    with pytest.raises(errors.Refused, match="not for you"):
        play({**FRESH, "GET /catalog": TWO, "POST /negotiations": [errors.Refused("not for you", code="x"), asked[1]]})


def test_a_negotiation_that_ends_between_two_looks_is_not_begun_again() -> None:
    access, said = play({**FRESH, "GET /agreements": [[], [ACTIVE]]})
    assert "POST /negotiations" not in said
    assert access.agreement_id == ACTIVE["id"]


def test_an_open_negotiation_is_gone_on_with() -> None:
    _, said = play({**FRESH, "GET /negotiations": [[OPEN]]})
    assert "POST /negotiations" not in said


@pytest.mark.parametrize(
    "row",
    [
        {**OPEN, "state": "TERMINATED", "peer_pid": ""},
        {**OPEN, "state": "FINALIZED"},
        {**OPEN, "offer_id": "offer:9"},
        {**OPEN, "dataset": "urn:hanse:north:planes"},
        {**OPEN, "counterparty": OTHER_NORTH, "state": "OFFERED"},  # unasked, by whoever likes
    ],
)
def test_a_negotiation_that_is_over_or_about_something_else_is_left_alone(row: dict[str, Any]) -> None:
    _, said = play({**FRESH, "GET /negotiations": [[row]]})
    assert "POST /negotiations" in said


NEGOTIATION, TRANSFER = "GET /negotiations/neg%3A1", "GET /transfers/trf%3A1"
OTHER = {**CATALOG, "dataset": [{"@id": "urn:hanse:north:planes"}]}
REFUSALS: list[tuple[str, dict[str, Any], dict[str, Any], type[errors.HanseError], str]] = [
    ("an unknown dataset", {"GET /catalog": OTHER}, {}, errors.NotFound, "planes"),
    ("an empty catalog", {"GET /catalog": {"participantId": NORTH}}, {}, errors.NotFound, "it shows nothing"),
    ("nobody's catalog", {"GET /catalog": {}}, {}, errors.Broken, "participantId"),
    ("no offer", {"GET /catalog": {**CATALOG, "dataset": {"@id": ID}}}, {}, errors.Refused, "no offer for this part"),
    ("another offer", {}, {"offer": "offer:7"}, errors.NotFound, "it has offer:1"),
    ("the owner says no", {NEGOTIATION: {"id": "neg:1", "state": "TERMINATED", "reason": "not members"}},
     {}, errors.NegotiationFailed, "not members"),
    ("nobody answers", {NEGOTIATION: {"id": "neg:1", "state": "REQUESTED"}}, {},
     errors.NegotiationPending, "the negotiation stays open"),
    ("we do not answer", {NEGOTIATION: {"id": "neg:1", "state": "OFFERED", "waits_for": "us", "reason": "unasked"}},
     {}, errors.ApprovalNeeded, "waits for approval here, not at north .unasked.; .*`hanse approve neg:1`"),
    ("no transfer", {TRANSFER: {"id": "trf:1", "state": "TERMINATED", "code": "purpose_not_agreed"}}, {},
     errors.Refused, "does not start the transfer"),
    ("a slow transfer", {TRANSFER: {"id": "trf:1", "state": "REQUESTED"}}, {},
     errors.NegotiationPending, "not started the transfer yet"),
    ("nonsense", {"POST /negotiations": {"id": "neg:1"}, NEGOTIATION: {"id": "neg:1"}}, {},
     errors.Broken, "id and state"),
    ("an unknown member", {"GET /catalog": errors.NotFound("no member")}, {}, errors.NotFound, "member"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "options", "kind", "text"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_what_stands_in_the_way_is_said(
    answers: dict[str, Any], options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        play({**FRESH, **answers}, **options)


def test_an_agreement_without_an_offer_left_reports_why_it_was_refused() -> None:
    answers = {
        "GET /catalog": {**CATALOG, "dataset": [{"@id": ID}]},
        **LISTS,
        "GET /agreements": [[ACTIVE]],
        "POST /transfers": errors.Refused("not for this purpose", code="purpose_not_agreed", rule="/permission/0"),
    }
    with pytest.raises(errors.Refused, match="not for this purpose") as caught:
        play(answers)
    assert caught.value.rule == "/permission/0"


def test_waiting_ends_when_the_time_is_up() -> None:
    clock = Clock()
    steps = agreement.poll_until(
        "/negotiations", {"id": "n", "state": "REQUESTED"}, "FINALIZED", deadline=45.0, now=clock
    )
    waits, state = [], ""
    try:
        call = next(steps)
        while True:
            waits.append(call.query["wait"])
            clock.time += call.query["wait"]
            call = steps.send({"id": "n", "state": "REQUESTED"})
    except StopIteration as done:
        state = done.value["state"]
    assert state == "REQUESTED"
    assert waits == [20.0, 20.0, 5.0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("north/flights", Name("north", "flights")),
        (' "north".flights ', Name("north", "flights")),
        ('"clinic-a"."patients"', Name("clinic-a", "patients")),
        ("north.flights", Name("north", "flights")),
        ('"did:web:clinic.example".patients', Name("did:web:clinic.example", "patients")),
    ],
)
def test_names_are_read_as_people_and_as_sql_write_them(text: str, name: Name) -> None:
    assert agreement.parse_name(text) == name


@pytest.mark.parametrize("text", ["", "flights", "/", "north/", "/flights", '""/x'])
def test_a_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(errors.BadInput, match="north/flights"):
        agreement.parse_name(text)


@pytest.mark.parametrize(("purpose", "full"), [("dpv:X", DPV + "X"), ("", ""), ("https://x/y", "https://x/y")])
def test_purposes_travel_in_full(purpose: str, full: str) -> None:
    assert agreement.expand_purpose(purpose) == full
