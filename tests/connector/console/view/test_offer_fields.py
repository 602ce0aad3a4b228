"""Fields of the offer editor: nothing is lost between YAML and fields, and problems are at what can be corrected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from connector.console.page import Form
from connector.console.view.field_problems import LABELS, place_problems
from connector.console.view.offer_fields import (
    FIELD_OF_WORD,
    OfferFields,
    apply_fields,
    field_of_line,
    form_fields,
    posted_fields,
    words_without_field,
)
from connector.errors import Invalid
from policies.authoring import convert
from policies.authoring.form import ColumnRules, MaskLine, OfferForm
from policies.review import lint

EVERYTHING = """offer: everything
dataset: patients
who: {membership: active, participant: ["did:web:a.example", "did:web:b.example"], country: [DE, FR], security: high}
may: [query, stream]
for: [dpv:ScientificResearch]
from: 2027-01-01T08:00:00+01:00
until: 2028-12-31T23:59:59+01:00
lasts: 30d
rows: consent = broad
columns: {hide: [name, address.street], hash: [patient], mask: {age: {round: 1}}}
limits: {rows: 5M, bytes: 2G, queries_per_day: 5, concurrency: 1}
first: {obtainConsent: true}
not: [sell, distribute]
then: {inform: {to: "did:web:x.example", on: breach}, delete: 30d after end}
decide: rules
"""
COLUMNS = ["patient", "age", "name", "consent", "region", "value"]


def columns_of(form: OfferForm) -> list[str]:
    named = [
        *dict(form.group_by),
        *dict(form.measure),
        *form.columns.hide,
        *(mask.column for mask in form.columns.masks),
    ]
    return list(dict.fromkeys([*COLUMNS, *(name for name in named if "." not in name)]))


@pytest.mark.parametrize("text", [EVERYTHING, *map(convert.template, convert.TEMPLATES)])
def test_unchanged_fields_change_nothing(text: str) -> None:
    form = convert.read_form(text)
    columns = columns_of(form)
    assert apply_fields(form_fields(form, columns), form, columns) == form
    assert apply_fields(form_fields(form, []), form, []) == form  # the dataset is not known


def posted(form: OfferForm, **changes: Any) -> OfferForm:
    """The form after these fields were sent as a browser sends them."""
    shown = form_fields(form, COLUMNS)
    shown = replace(shown, **changes)
    sent: dict[str, list[str]] = {}
    for name in OfferFields.__dataclass_fields__:
        value = getattr(shown, name)
        if name == "uses":
            sent |= {f"use:{column}": [use] for column, (use, _) in value.items()}
            sent |= {f"how:{column}": [how] for column, (_, how) in value.items()}
        else:
            sent[name] = [value] if isinstance(value, str) else list(value)
    return apply_fields(posted_fields(Form(sent), COLUMNS), form, COLUMNS)


HIDDEN = ("name", "address.street", "patient", "consent", "value")
USES = {"region": ("group", ""), "value": ("measure", "0..9")}
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "other"}, {"offer": "other"}),
    ({"may": ("train",)}, {"may": ("train",)}),
    ({"purposes": ("dpv:Marketing", "")}, {"purposes": ("https://w3id.org/dpv#Marketing",)}),
    ({"until": "2029-06-30"}, {"until": "2029-06-30T23:59:59Z"}),
    ({"until": ""}, {"until": ""}),
    ({"since": "2027-01-02"}, {"not_before": "2027-01-02T00:00:00Z"}),
    ({"lasts": "6 months"}, {"lasts": "P6M"}),
    ({"filter": "region = north"}, {"rows": "region = north"}),
    ({"decide": "auto"}, {"decide": "auto"}),
    ({"never": ("train",)}, {"forbidden": ("train",)}),
    (
        {"seen": ("age", "region"), "hashed": ()},
        {"columns": ColumnRules((), HIDDEN, (MaskLine("age", "round", "1"),))},
    ),
    (
        {"seen": ("region", "value"), "hashed": (), "later_hidden": "yes"},
        {"columns": ColumnRules(("region", "value"), ("address.street",), (MaskLine("age", "round", "1"),))},
    ),
    (
        {"answers": "aggregate", "min_group": "10", "per": "patient", "uses": USES},
        {"answers": "aggregate", "group_by": (("region", "exact"),), "measure": (("value", "0..9"),)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "meant"), CHANGES, ids=lambda one: ",".join(one))
def test_a_changed_field_changes_its_word_and_no_other(changes: dict[str, Any], meant: dict[str, Any]) -> None:
    form = convert.read_form(EVERYTHING)
    made = posted(form, **changes)
    assert {name: getattr(made, name) for name in meant} == meant
    others = {name for name in OfferForm.__dataclass_fields__ if name not in (*meant, "limits")}
    assert {name: getattr(made, name) for name in others} == {name: getattr(form, name) for name in others}


def form_of(lines: str) -> OfferForm:
    return convert.read_form(f"offer: o\ndataset: d\nmay: [query]\n{lines}")


def test_a_column_in_another_case_is_the_same_column() -> None:
    form = form_of("columns: {only: [Age, NAME], hide: [Region], hash: [Name]}\n")
    assert form_fields(form, COLUMNS).seen == ("age", "name")
    assert form_fields(form, COLUMNS).hashed == ("name",)
    assert posted(form, lasts="30d").columns == ColumnRules(("age", "name"), (), (MaskLine("name", "hash"),))
    both = form_of("columns: {hide: [age]}\n")
    assert form_fields(both, ["age", "Age"]).seen == ("Age",)


def test_a_hash_of_a_part_of_a_column_stays() -> None:
    form = form_of("columns: {hash: [address.street]}\n")
    assert posted(form, hashed=(), lasts="30d").columns == form.columns
    assert words_without_field(form) == ["address.street"]


def test_a_column_that_is_hidden_and_ticked_again_keeps_its_mask() -> None:
    form = form_of("columns: {mask: {age: {round: 1}}}\n")
    hidden = posted(form, seen=tuple(name for name in COLUMNS if name != "age"))
    assert posted(hidden, seen=tuple(COLUMNS)).columns == form.columns


def test_a_space_at_the_end_of_a_name_makes_another_column() -> None:
    columns = ["id", "id ", " id"]
    sent = posted_fields(Form({"seen": ["id "], "hashed": [" id"]}), columns)
    assert apply_fields(sent, OfferForm(offer="o"), columns).columns.hide == ("id", " id")
    assert sent.hashed == (" id",)


def test_no_ticked_column_never_means_all_of_them() -> None:
    with pytest.raises(Invalid, match="expected a column to show"):
        posted(form_of("columns: {only: [age]}\n"), seen=())


@pytest.mark.parametrize("who", ["{role: [data scientist, analyst]}", "{membership: none}"])
def test_who_may_ask_stays_as_narrow(who: str) -> None:
    form = form_of(f"who: {who}\n")
    assert posted(form, lasts="30d").who == form.who


def test_words_without_a_field_are_named() -> None:
    assert words_without_field(convert.read_form(EVERYTHING)) == [
        "security",
        "address.street",
        "round",
        "bytes",
        "first",
        "inform",
    ]


def test_a_duration_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="duration"):
        posted(convert.read_form(EVERYTHING), lasts="a while")


def test_each_line_of_the_yaml_has_its_field() -> None:
    lines = EVERYTHING.splitlines()
    for number, line in enumerate(lines, 1):
        assert field_of_line(EVERYTHING, number) == FIELD_OF_WORD.get(line.partition(":")[0], ""), line
    assert field_of_line("offer: x\ncolumns:\n  hide: [a]\n", 3) == "columns"
    assert set(FIELD_OF_WORD.values()) <= set(LABELS)


BROKEN = [
    ("until: 2028-12-31T23:59:59+01:00", "until: 2028-12-31T23:59:59", "until"),
    ("rows: consent = broad", "rows: consent =", "filter"),
    ("lasts: 30d", "lasts: a while", "lasts"),
    ("may: [query, stream]", "may: [query, fly]", "may"),
]


@pytest.mark.parametrize(("line", "broken", "field"), BROKEN)
def test_a_mistake_in_the_yaml_is_at_its_field(line: str, broken: str, field: str) -> None:
    text = EVERYTHING.replace(line, broken)
    with pytest.raises(convert.PolicyUnreadable) as raised:
        convert.read_form(text)
    problem = {"level": "error", "path": raised.value.rule, "code": "x", "message": str(raised.value)}
    (placed,) = place_problems([problem], text=text)
    assert (placed.field, placed.line) == (field, text.splitlines().index(broken) + 1)
    assert not placed.message.startswith("line")


def test_no_problem_of_a_policy_shows_a_path() -> None:
    """Each problem that the linter finds in a form with fields has a field."""
    text = "offer: x\ndataset: d\nwho: {security: high}\nmay: [train]\nfor: [dpv:Nonsense]\nnot: [train]\n"
    policy = convert.to_policy(convert.read_form(text))
    found = place_problems([one.to_json() for one in lint.lint(policy)], text=text, policy=policy)
    assert {one.field for one in found} == {"may", "never", "who"}
    assert all(one.label and "/permission" not in one.label for one in found)
