"""The short form: what each word becomes, what survives, and how mistakes are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.authoring import convert, row_filter
from policies.errors import PolicyUnreadable
from policies.model import HANSE, Kind
from policies.odrl import reader
from policies.review import unknown_terms
from policies.vocabulary import compact

FULL = """
offer: readings-for-research
dataset: urn:example:dataset:readings
who: {membership: active, country: [EEA, NO], role: [research, hospital]}
may: [query, stream]
for: [dpv:ScientificResearch]
from: 2027-01-01
until: 2027-12-31T23:59:59+01:00
lasts: 90d
rows: country in (DE, FR) or consent = broad
columns:
  only: [age, country, name, salary]
  hide: [phone]
  hash: [name]
  mask: {salary: {round: -2}, country: {truncate: 1}, visited: {generalise: month}, note: null}
limits: {min_group: 25 per person_id, rows: 5M, bytes: 2 GiB, queries: 1_000, queries_per_day: 50, concurrency: 2}
answers: aggregate
grid: {group_by: {age: 10, country: exact}, measure: {salary: 0..100000}}
joins: ["urn:example:dataset:other"]
templates: ["SELECT age, count(*) FROM readings GROUP BY age"]
first: {compensate: {amount: 100, currency: EUR}}
not: [distribute, trainGenerative]
then:
  delete: 30d after end
  deleteModel: on revoked
  inform: {to: "did:web:p.example", on: transferStarted, within: 1h}
  log: true
decide: rules
"""


def wire(text: str) -> dict[str, Any]:
    return reader.write(convert.to_policy(convert.read_form(text)))


def short(text: str) -> list[str]:
    """Constraints of the first permission, short."""
    return [
        f"{compact(one['leftOperand'])} {one['operator']} {one['rightOperand']}"
        for one in wire(text)["permission"][0].get("constraint", [])
    ]


def test_every_word_of_the_form_survives_to_odrl_and_back() -> None:
    form = convert.read_form(FULL)
    policy = convert.to_policy(form)
    unknown_terms.refuse_unclear(policy)
    back = convert.from_policy(policy, decide="rules")
    assert back == form
    assert back.odrl is None
    assert convert.read_form(convert.write_form(form)) == form


def test_an_agreement_comes_back_as_the_form_of_its_offer() -> None:
    policy = convert.to_policy(convert.read_form(FULL))
    agreement = replace(policy, kind=Kind.AGREEMENT, assigner="a", assignee="b", timestamp="2027-01-01T00:00:00Z")
    form = convert.from_policy(agreement)
    assert form.odrl is None
    assert reader.rules_equal(convert.to_policy(form), policy)
    assert convert.to_policy(convert.read_form(convert.write_form(form))).kind is Kind.OFFER


@pytest.mark.parametrize(
    ("line", "constraint"),
    [
        ("who: {membership: active}", "ds:membership eq active"),
        ("who: {country: [EEA, CH]}", f"ds:participantCountry isPartOf ['{HANSE}region/EEA', 'CH']"),
        ("who: {country: NO}", "ds:participantCountry isPartOf ['NO']"),
        ("who: {security: trust}", "ds:securityLevel gteq trust"),
        ("for: dpv:Marketing", "odrl:purpose isAnyOf ['https://w3id.org/dpv#Marketing']"),
        ("lasts: 3 months", "odrl:elapsedTime lteq P3M"),
        ("lasts: 12h", "odrl:elapsedTime lteq PT12H"),
        ("lasts: P1DT2H", "odrl:elapsedTime lteq P1DT2H"),
        ("limits: {rows: 5M}", "ds:rowQuota lteq 5000000"),
        ("limits: {bytes: 2 GiB}", "ds:byteQuota lteq 2147483648"),
        ("limits: {queries: 1_000}", "odrl:count lteq 1000"),
        ("limits: {epsilon: 0.5}", "ds:epsilonBudget lteq 0.5"),
        ("limits: {epsilon: 0.5 per b}", "ds:entityKey eq b"),
        ("limits: {epsilon: 1, delta: 0.0001}", "ds:deltaBudget lteq 0.0001"),
        ("limits: {epsilon: 1 per b, rows_per_entity: 3}", "ds:rowsPerEntity lteq 3"),
        ("limits: {min_group: 10}", "ds:minGroupSize gteq 10"),
        ("rows: a = 1", "ds:row/a eq 1"),
        ("rows: '\"person id\" not in (x, ''y z'')'", "ds:row/person%20id isNoneOf ['x', 'y z']"),
        ("grid: {group_by: {age: 10}}", "ds:dimension/age eq 10"),
        ("grid: {measure: {time: free}}", "ds:measure/time eq free"),
        ("columns: {hide: [a, b]}", "ds:columnDeny isNoneOf ['a', 'b']"),
    ],
)
def test_a_word_becomes_its_constraint(line: str, constraint: str) -> None:
    assert constraint in short(f"offer: x\nmay: query\n{line}\n")


def test_times_carry_their_datatype() -> None:
    found = wire("offer: x\nmay: query\nfrom: 2027-01-01\nuntil: 2027-12-31T23:59:59+01:00\n")
    first, second = (one["rightOperand"] for one in found["permission"][0]["constraint"])
    assert first == {"@value": "2027-01-01", "@type": "xsd:date"}
    assert second == {"@value": "2027-12-31T23:59:59+01:00", "@type": "xsd:dateTime"}


def test_masks_with_one_method_stand_in_one_duty() -> None:
    found = wire("offer: x\nmay: query\ncolumns: {hash: [a, b], mask: {c: {round: 2}}}\n")
    assert [len(duty["constraint"]) for duty in found["permission"][0]["duty"]] == [2, 3]


def test_a_policy_beyond_the_short_words_is_carried_whole() -> None:
    policy = reader.read(
        {
            "@id": "urn:hanse:offer:odd",
            "@type": "Offer",
            "target": "urn:d",
            "permission": [
                {
                    "action": "use",
                    "constraint": [
                        {"xone": [{"leftOperand": "ds:role", "operator": "neq", "rightOperand": 'a: "b" # c\n'}]}
                    ],
                },
                {"action": "ds:query"},
            ],
        }
    )
    form = convert.from_policy(policy, decide="auto")
    assert form.odrl is not None
    text = convert.write_form(form)
    again = convert.read_form(text)
    assert again.decide == "auto"
    assert convert.to_policy(again) == policy


MISTAKES = [
    *(
        (f"offer: o\nmay: query\n{word}: {{}}\n", "line 3: expected at least one word, got an empty mapping; leave")
        for word in ("who", "limits", "columns", "grid", "then", "first")
    ),
    ("offer: o\nmay: query\nthen: []\n", "line 3: expected at least one duty, got an empty list; leave"),
    ("", "empty text"),
    ("offer: [", "line 1: expected YAML"),
    ("- a\n- b", "line 1: expected a mapping"),
    ("may: [query]", "expected a name for the offer"),
    ("offer: x", "line 1: expected may"),
    ("offer: a b\nmay: use", "line 1: expected a name or IRI without spaces"),
    ("offer: x\noffer: y\nmay: use", "line 2: expected offer once"),
    ("offer: x\nmayy: [query]", "line 2: .*did you mean may?"),
    ("offer: x\nmay: [qery]", "line 2: .*did you mean query?"),
    ("offer: x\nmay: [registerModel]", "line 2: expected an action"),
    ("offer: x\nmay: []", "at least one action"),
    ("offer: x\nmay: {a: b}", "line 2: expected a list"),
    ("offer: x\nmay: use\nwho: {membershp: a}", "line 3: .*did you mean membership?"),
    ("offer: x\nmay: use\nwho: {country: Europe}", "line 3: expected a country of two letters or one of BENELUX"),
    ("offer: x\nmay: use\nfor: [research]", "such as dpv:ScientificResearch"),
    ("offer: x\nmay: use\nfor: [ScientificResearch]", "'ScientificResearch' .did you mean dpv:ScientificResearch"),
    ("offer: x\nmay: use\nuntil: 2027-12-31T00:00:00", "line 3: expected a time with its zone"),
    ("offer: x\nmay: use\nuntil: next year", "line 3: expected a time such as"),
    ("offer: x\nmay: use\nlasts: a while", "line 3: expected a duration such as 30d"),
    ("offer: x\nmay: use\nrows: country in DE", r"line 3: row filter, character 12: expected '\('"),
    ("offer: x\nmay: use\ncolumns: {mask: {a: {round: two}}}", "line 3: expected a number"),
    ("offer: x\nmay: use\ncolumns: {mask: {a: round}}", "a number with round"),
    ("offer: x\nmay: use\ncolumns: {mask: {a: {hash: 3}}}", "hash alone"),
    ("offer: x\nmay: use\ncolumns: {mask: {a: blur}}", "expected a mask"),
    ("offer: x\nmay: use\ncolumns: {mask: {a: round 1}}", "such as {round: 2}"),
    ("offer: x\nmay: use\ncolumns: {round: {a: 1}}", "write mask: {<column>: {round: 2}}"),
    ("offer: x\nmay: use\ncolumns: {hash: [a], mask: {a: null}}", "one mask per column"),
    ("offer: x\nmay: use\ncolumns: {show: [a]}", "expected a word under columns"),
    ("offer: x\nmay: use\nlimits: {rows: many}", "expected a whole number such as 5000000"),
    ("offer: x\nmay: use\nlimits: {row: 5}", "did you mean rows?"),
    ("offer: x\nmay: use\nlimits: {min_group: some}", "a number per column"),
    ("offer: x\nmay: use\ngrid: {group_by: {a: fine}}", "expected exact or a bin width above 0 such as 10, got 'fine'"),
    ("offer: x\nmay: use\ngrid: {measure: {a: 5}}", "expected free or low..high"),
    ("offer: x\nmay: use\nthen: {delete: {witin: 3d}}", "did you mean within?"),
    ("offer: x\nmay: use\nthen: {distribute: true}", "expected an action"),
    ("offer: x\nmay: use\ndecide: maybe", "expected a choice: one of auto, four_eyes, manual, rules"),
    ("offer: x\nmay: use\nodrl: {permission: []}", "only offer, dataset and decide next to odrl"),
    ("offer: &a x\nmay: use", "line 1: expected plain values, got an anchor"),
    ("offer: !!python/object:os.system x\nmay: use", "line 1: expected plain values, got a tag"),
    ("offer: x\nmay: " + "[" * 60 + "]" * 60, "40 deep"),
    ("offer: x\nmay: [" + "a, " * 11_000 + "]", "at most 10000 values"),
    ("x" * 300_000, "at most 256000 characters"),
    ("offer: \x00", "expected YAML"),
]


@pytest.mark.parametrize(
    ("text", "says"), MISTAKES, ids=[f"{number}-{says[:40]}" for number, (_, says) in enumerate(MISTAKES)]
)
def test_a_mistake_is_named_with_its_line_and_remedy(text: str, says: str) -> None:
    with pytest.raises(PolicyUnreadable, match=says.replace("?", r"\?")):
        convert.read_form(text)


def test_an_offer_that_has_ended_already_is_refused_when_the_time_is_given() -> None:
    text = "offer: x\nmay: use\nuntil: 2027-01-01T00:00:00Z\n"
    convert.read_form(text, now=1.79e9)
    with pytest.raises(PolicyUnreadable, match="a time in the future"):
        convert.read_form(text, now=1.9e9)


def test_an_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(PolicyUnreadable, match="open, members-only"):
        convert.template("opne")


@pytest.mark.parametrize(
    "text",
    [
        "country in (DE, FR) or consent = broad",
        "a = 1 and (b != 2 or c < 3) and d >= 2027-01-01",
        "\"a b\" = 'it''s' or \"c\"\"d\" not in (1, '')",
        "xone(a = 1, b = 2 and c = 3)",
        "grün = ja",
        "(a = 1 or b = 2) and (c = 3 or d = 4)",
        "\"and\" = 'or'",
    ],
)
def test_a_row_filter_comes_back_as_it_was(text: str) -> None:
    assert row_filter.render(row_filter.parse(text)) == text
    assert row_filter.parse(row_filter.render(row_filter.parse(text))) == row_filter.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a column, got 'the end'"),
        ("a", "expected one of ="),
        ("a not = 1", "expected in"),
        ("a in ()", "expected a value"),
        ("a in (1", "expected ')'"),
        ("a = 1 or", "expected a column"),
        ("a = 1 b = 2", "expected and, or, or the end"),
        ("= 1", "expected a column"),
        ("1a = 1", "expected a column"),
        ("'a' = 1", "expected a column"),
        ("a = 'b", "expected a column, a value or a sign"),
        ("a = 1; drop table x", "expected and, or, or the end"),
        ("(" * 30 + "a = 1" + ")" * 30, "brackets at most"),
        ("a = 1 or " * 2_000 + "a = 1", "at most 16000 characters"),
    ],
)
def test_a_row_filter_that_makes_no_sense_says_where(text: str, says: str) -> None:
    with pytest.raises(PolicyUnreadable) as caught:
        row_filter.parse(text)
    assert says in str(caught.value)
