"""What people read about a policy: explanations, the enforceability report, problems, differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.authoring import convert
from policies.contracts.contract import Column, TableSchema
from policies.evaluation import evaluate
from policies.evaluation.facts import Fact, Facts
from policies.model import HANSE, ConflictStrategy, Kind, Policy
from policies.odrl import reader
from policies.review import diff, explain, lint, report
from policies.vocabulary import ENFORCERS, Phase

NOW = 1.8e9
SCHEMA = TableSchema(
    (
        Column("person_id", "BIGINT"),
        Column("age", "INTEGER"),
        Column("country", "VARCHAR"),
        Column("consent", "VARCHAR"),
        Column("value", "DOUBLE"),
    )
)


def form(lines: str) -> Policy:
    return convert.to_policy(convert.read_form(f"offer: x\ndataset: urn:d\n{lines}"))


def raw(**wire: Any) -> Policy:
    return reader.read({"@id": "urn:x", "@type": "Offer", **wire})


def atom(left: str, operator: str, right: Any) -> dict[str, Any]:
    return {"leftOperand": left, "operator": operator, "rightOperand": right}


# --- explanations ----------------------------------------------------------------------------------------

SENTENCES = [
    ("may: query", "The party may query the data.", "technical"),
    ("may: train", "The party may train models on the data.", "contractual"),
    ("may: query\nwho: {membership: active}", "the party's membership in the data space is active.", "attested"),
    ("may: query\nwho: {country: [EEA, CH]}", "the party's country lies in EEA or CH.", "attested"),
    ("may: query\nfor: [dpv:Marketing]", "the declared purpose is dpv:Marketing.", "declared"),
    ("may: query\nuntil: 2027-12-31", "the time of use is no later than 2027-12-31.", "technical"),
    ("may: query\nlasts: P1Y2M", "the time since the agreement is at most 1 year 2 months.", "technical"),
    ("may: query\nlimits: {rows: 5M}", "the number of rows that leave the owner is at most 5,000,000.", "technical"),
    ("may: query\nrows: a = 1 or b != 2", "in every row a is 1, or in every row b is not 2.", "technical"),
    ("may: query\nrows: xone(a = 1, b < 2)", "exactly one of these holds: in every row a is 1; in every", "technical"),
    ("may: query\ncolumns: {hide: [a, b]}", "these columns cannot be read: a and b.", "technical"),
    ("may: query\ncolumns: {hash: [a, b]}", "returns a and b replaced by a keyed hash in every answer.", "technical"),
    ("may: query\ncolumns: {mask: {a: {round: 2}}}", "returns a rounded to 2 digits in every answer.", "technical"),
    ("may: query\nnot: distribute", "The party must not distribute the data to third parties.", "contractual"),
    ("may: query\nnot: stream", "The party must not stream the data.", "technical"),
    (
        "may: query\nthen: {delete: 30d after end}",
        "delete all copies within 30 days after the agreement ends.",
        "contractual",
    ),
    ("may: query\nthen: {delete: 1h after revoked}", "within 1 hour after access is revoked.", "contractual"),
    ("may: query\nfirst: {compensate: {amount: 5}}", "Before use, the party must pay an amount of 5.", "contractual"),
]


@pytest.mark.parametrize(("lines", "says", "tier"), SENTENCES, ids=[says for _, says, _ in SENTENCES])
def test_each_term_is_one_sentence_with_its_tier(lines: str, says: str, tier: str) -> None:
    found = [one for one in explain.sentences(form(lines)) if says in one.text]
    assert [one.tier for one in found] == [tier]
    assert found[0].text[0].isupper()
    assert found[0].text.endswith(".")


def test_every_rule_and_constraint_has_a_line_at_its_path() -> None:
    policy = form(
        "who: {membership: active}\nmay: [query, stream]\nrows: a = 1 or b = 2\ncolumns: {hash: [c]}\n"
        "not: distribute\nthen: {log: true}"
    )
    paths = [line.path for line in report.enforceability(policy)]
    one = ["/permission/{}", "/permission/{}/constraint/0", "/permission/{}/constraint/1", "/permission/{}/duty/0"]
    expected = [path.format(index) for index in (0, 1) for path in one] + ["/prohibition/0", "/obligation/0"]
    assert paths == expected


def test_the_report_names_what_enforces_each_technical_term() -> None:
    for name in convert.TEMPLATES:
        for line in report.enforceability(convert.to_policy(convert.read_form(convert.template(name)))):
            assert line.tier in ("technical", "attested", "declared", "contractual")
            parts = line.enforced_by.split("; ")
            if line.tier == "technical":
                assert all(part in ENFORCERS.values() for part in parts), line


def test_a_group_is_as_weak_as_its_weakest_member() -> None:
    mixed = {"or": [atom("ds:membership", "eq", "active"), atom("odrl:dateTime", "lteq", "2027-01-01")]}
    lines = report.enforceability(raw(permission=[{"action": "use", "constraint": [mixed]}]))
    assert lines[1].tier == "attested"
    assert "clock" in lines[1].enforced_by
    assert "member register" in lines[1].enforced_by


def test_what_nobody_understands_is_reported_as_refused() -> None:
    policy = raw(
        profile="https://x.example/p",
        permission=[{"action": "odrl:teleport", "constraint": [atom("https://x.example/mood", "eq", "good")]}],
        obligation=[{"action": "odrl:delete", "constraint": [atom("https://x.example/when", "eq", "soon")]}],
    )
    refused = [line.path for line in report.enforceability(policy) if line.tier == report.REFUSED]
    assert refused == ["/profile", "/permission/0", "/permission/0/constraint/0", "/obligation/0/constraint/0"]
    assert report.to_json(report.enforceability(policy))[0]["tier"] == "refused"


def test_a_decision_is_told_with_verdict_reasons_and_findings() -> None:
    policy = evaluate.as_granting_set(form("may: query\nwho: {membership: active}\nfor: [dpv:ScientificResearch]"))
    facts = Facts.of(
        {"ds:membership": Fact(("active",), "credential 7 of did:web:ds.example"), "odrl:purpose": "dpv:X"}
    )
    made = evaluate.evaluate(policy, facts, action="ds:query", phase=Phase.TRANSFER, now=NOW)
    told = explain.decision(made)
    assert told[0] == "Refused to ds:query (transfer)."
    assert "observed dpv:X" in told[1]
    assert any("credential 7" in line for line in told)


def test_personal_facts_are_hashed_wherever_they_are_shown() -> None:
    policy = evaluate.as_granting_set(form("may: query\nwho: {permit: FI-1}"))
    facts = Facts({"ds:permit": Fact(("FI-SECRET",), "permit", personal=True)})
    made = evaluate.evaluate(policy, facts, action="ds:query", phase=Phase.TRANSFER, now=NOW)
    told = str(made.to_json()) + str(explain.decision(made)) + str(facts.to_json()) + repr(facts)
    assert "FI-SECRET" not in told
    assert "sha256:" in told


def test_a_stale_fact_is_unknown_and_a_fresh_one_counts() -> None:
    policy = evaluate.as_granting_set(form("may: query\nwho: {membership: active}"))
    for valid_until, permitted in ((None, True), (NOW + 1, True), (NOW, False), (NOW - 1, False)):
        facts = Facts({"ds:membership": Fact(("active",), "credential", valid_until)})
        assert evaluate.permits(policy, facts, action="ds:query", phase=Phase.QUERY, now=NOW) is permitted


def test_an_offer_grants_nothing_and_an_agreement_only_to_its_assignee() -> None:
    offer = form("may: query")
    made = evaluate.evaluate(offer, Facts(), action="ds:query", phase=Phase.TRANSFER, now=NOW)
    assert "an offer grants nothing" in made.reasons[0]
    assert evaluate.permits(offer, Facts(), action="ds:query", phase=Phase.NEGOTIATION, now=NOW)
    agreement = replace(offer, kind=Kind.AGREEMENT, assigner="did:web:p", assignee="did:web:c")
    for participant, permitted in (("did:web:c", True), ("did:web:cc", False), (None, False)):
        facts = Facts.of({"ds:participant": participant}) if participant else Facts()
        made = evaluate.evaluate(agreement, facts, action="ds:query", phase=Phase.TRANSFER, now=NOW)
        assert made.permitted is permitted
        assert evaluate.permits(agreement, facts, action="ds:query", phase=Phase.TRANSFER, now=NOW) is permitted


def test_an_offer_is_shown_when_any_of_its_permissions_could_be_active() -> None:
    offer = raw(
        permission=[
            {"action": "ds:query", "constraint": [atom("ds:role", "eq", "hospital")]},
            {"action": "ds:stream", "constraint": [atom("ds:membership", "eq", "active")]},
        ]
    )
    member = evaluate.evaluate_offer(offer, Facts.of({"ds:membership": "active"}), phase=Phase.CATALOGUE, now=NOW)
    assert (member.permitted, member.permission) == (True, "/permission/1")
    nobody = evaluate.evaluate_offer(offer, Facts(), phase=Phase.CATALOGUE, now=NOW)
    assert not nobody.permitted
    assert {name for name in ("ds:role", "ds:membership") if name in str(nobody.reasons)} == {
        "ds:role",
        "ds:membership",
    }
    empty = evaluate.evaluate_offer(raw(prohibition=[{"action": "use"}]), Facts(), phase=Phase.CATALOGUE, now=NOW)
    assert not empty.permitted


MEMBER, DANE = atom("ds:membership", "eq", "active"), atom("ds:participantCountry", "eq", "DK")
RESEARCH = atom("odrl:purpose", "eq", "dpv:ScientificResearch")
NO_MARKETING = [{"action": "use", "constraint": [atom("odrl:purpose", "eq", "dpv:Marketing")]}]
SWEDE = {"ds:participantCountry": "SE"}
# The constraints of each permission, the prohibitions, what is known; for each permission that only lacks facts, which.
LACKING: dict[str, tuple[list[list[Any]], list[Any], dict[str, str], list[set[str]]]] = {
    "one fact": ([[MEMBER]], [], {}, [{"ds:membership"}]),
    "two facts": ([[MEMBER, RESEARCH]], [], {}, [{"ds:membership", "odrl:purpose"}]),
    "what is known is not lacking": ([[MEMBER, RESEARCH]], [], {"ds:membership": "active"}, [{"odrl:purpose"}]),
    "one that is ruled out lacks nothing": ([[MEMBER, DANE]], [], SWEDE, []),
    "one that is ruled out beside one that is not": ([[DANE], [RESEARCH]], [], SWEDE, [{"odrl:purpose"}]),
    "each by itself": ([[MEMBER], [RESEARCH]], [], {}, [{"ds:membership"}, {"odrl:purpose"}]),
    "an alternative that is ruled out beside one that is not": (
        [[{"or": [DANE, MEMBER]}]], [], SWEDE, [{"ds:membership"}]
    ),
    "a prohibition that is not known to be met": ([[MEMBER]], NO_MARKETING, {}, [{"ds:membership", "odrl:purpose"}]),
    "a prohibition that is not met": (
        [[MEMBER]], NO_MARKETING, {"odrl:purpose": "https://w3id.org/dpv#ScientificResearch"}, [{"ds:membership"}]
    ),
    "a prohibition that is met": ([[MEMBER]], NO_MARKETING, {"odrl:purpose": "https://w3id.org/dpv#Marketing"}, []),
    "a prohibition without condition": ([[MEMBER]], [{"action": "use"}], {}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_what_each_permission_lacks(case: str) -> None:
    permissions, prohibitions, facts, expected = LACKING[case]
    made = raw(
        permission=[{"action": "use", "constraint": one} for one in permissions],
        **({"prohibition": prohibitions} if prohibitions else {}),
    )
    agreed = evaluate.as_granting_set(made, at=NOW)
    found = evaluate.evaluate_offer(agreed, Facts.of(facts), phase=Phase.TRANSFER, now=NOW)
    assert not found.permitted
    assert sorted(map(sorted, found.lacking)) == sorted(map(sorted, expected))


def test_a_refusal_says_of_each_permission_what_stands_against_it_the_nearest_first() -> None:
    made = raw(permission=[{"action": "use", "constraint": one} for one in ([DANE, MEMBER], [MEMBER], [DANE])])
    found = evaluate.evaluate_offer(made, Facts.of(SWEDE), phase=Phase.CATALOGUE, now=NOW)
    assert [reason.partition(" /")[2].partition(":")[0] for reason in found.reasons] == [
        "permission/1", "permission/2", "permission/0"
    ]  # fmt: skip
    assert [reason.startswith("or ") for reason in found.reasons] == [False, True, True]
    assert "observed SE" not in found.reasons[0]
    assert found.lacking == (frozenset({"ds:membership"}),)


def test_one_reason_that_stands_against_all_permissions_is_said_once() -> None:
    made = raw(permission=[{"action": "use"}, {"action": "ds:query"}], prohibition=[{"action": "use"}])
    found = evaluate.evaluate_offer(made, Facts(), phase=Phase.CATALOGUE, now=NOW)
    assert [reason.partition(" to ")[0] for reason in found.reasons] == ["/prohibition/0 forbids"]


def test_one_permission_is_asked_about_without_what_the_others_permit() -> None:
    policy = raw(
        permission=[
            {"action": "use", "constraint": [atom("ds:role", "eq", "hospital")]},
            {"action": "use", "constraint": [atom("ds:membership", "eq", "active")]},
        ],
        prohibition=[{"action": "use", "constraint": [atom("ds:participantCountry", "eq", "US")]}],
    )
    tried, at = evaluate.as_granting_set(policy), {"action": "ds:query", "phase": Phase.TRANSFER, "now": NOW}
    for country, allowed in (("FI", {"": True, "/permission/0": False, "/permission/1": True}), ("US", {})):
        facts = Facts.of({"ds:membership": "active", "ds:role": "insurer", "ds:participantCountry": country})
        for one in ("", "/permission/0", "/permission/1", "/permission/2"):
            made = evaluate.evaluate(tried, facts, permission=one, **at)  # type: ignore[arg-type]  # one table for both
            assert made.permitted is allowed.get(one, False), (country, one)
            assert evaluate.permits(tried, facts, permission=one, **at) is made.permitted  # type: ignore[arg-type]
            looked_at = {finding.rule for finding in made.findings if finding.rule.startswith("/permission")}
            assert looked_at == ({one} & {"/permission/0", "/permission/1"} if one else looked_at)


def test_an_offer_for_later_can_be_agreed_now_and_a_past_one_not() -> None:
    for line, permitted in (
        ("from: 2030-01-01T00:00:00Z", True),
        ("until: 2030-01-01T00:00:00Z", True),
        ("until: 2020-01-01T00:00:00Z", False),
    ):
        made = evaluate.evaluate_offer(form(f"may: query\n{line}"), Facts(), phase=Phase.NEGOTIATION, now=NOW)
        assert made.permitted is permitted, line


def test_an_offer_is_tried_as_if_it_were_signed_at_a_moment() -> None:
    offer = form("may: query\nlasts: 30d")
    for at, permitted in ((None, False), (NOW, True), (NOW - 31 * 86_400, False)):
        tried = evaluate.as_granting_set(offer, at=at)
        assert evaluate.permits(tried, Facts(), action="ds:query", phase=Phase.TRANSFER, now=NOW) is permitted


# --- problems --------------------------------------------------------------------------------------------


def use(*constraints: dict[str, Any]) -> Policy:
    return raw(permission=[{"action": "use", "constraint": list(constraints)}])


def owing(action: str, *constraints: dict[str, Any]) -> Policy:
    return raw(permission=[{"action": "use", "duty": [{"action": action, "constraint": list(constraints)}]}])


def owed(action: str, *constraints: dict[str, Any]) -> Policy:
    return raw(permission=[{"action": "use"}], obligation=[{"action": action, "constraint": list(constraints)}])


GOOD = "may: query\nwho: {membership: active}\n"
PROBLEMS: list[tuple[str, Policy, str, str]] = [
    ("no permission", raw(prohibition=[{"action": "use"}]), "error", "nothing_permitted"),
    (
        "unknown operand",
        raw(permission=[{"action": "use", "constraint": [atom("x:y", "eq", "1")]}]),
        "error",
        "operand_unknown",
    ),
    ("unknown action", raw(permission=[{"action": "fly"}]), "error", "action_unknown"),
    ("unknown profile", raw(profile="urn:p", permission=[{"action": "use"}]), "error", "profile_unknown"),
    ("misplaced action", raw(permission=[{"action": "ds:registerModel"}]), "error", "action_misplaced"),
    (
        "misplaced operand",
        use(atom("ds:method", "eq", "hash")),
        "error",
        "operand_misplaced",
    ),
    (
        "no zone",
        use(atom("dateTime", "lteq", "2027-01-01T00:00:00")),
        "error",
        "zone_missing",
    ),
    (
        "group size under or",
        use({"or": [atom("ds:minGroupSize", "gteq", "10"), atom("ds:row/a", "eq", "1")]}),
        "error",
        "alternative_not_enforceable",
    ),
    (
        "rows and facts under or",
        use({"or": [atom("ds:membership", "eq", "active"), atom("ds:row/a", "eq", "1")]}),
        "error",
        "alternative_not_enforceable",
    ),
    (
        "mask without a method",
        raw(
            permission=[
                {"action": "use", "duty": [{"action": "ds:mask", "constraint": [atom("ds:column", "eq", "a")]}]}
            ]
        ),
        "error",
        "mask_incomplete",
    ),
    (
        "mask without its number",
        owing("ds:mask", atom("ds:column", "eq", "a"), atom("ds:method", "eq", "round")),
        "error",
        "mask_incomplete",
    ),
    (
        "mask by an unknown method",
        owing("ds:mask", atom("ds:column", "eq", "a"), atom("ds:method", "eq", "blur")),
        "error",
        "mask_unknown",
    ),
    (
        "duty under a prohibition",
        raw(permission=[{"action": "use"}], prohibition=[{"action": "distribute", "duty": [{"action": "compensate"}]}]),
        "error",
        "duty_misplaced",
    ),
    (
        "detail of a mask in another duty",
        owed("anonymize", atom("ds:column", "eq", "a"), atom("ds:method", "eq", "null")),
        "error",
        "operand_misplaced",
    ),
    (
        "two delays of one duty",
        owed("delete", atom("odrl:delayPeriod", "lteq", "P1D"), atom("odrl:delayPeriod", "lteq", "P300D")),
        "error",
        "detail_twice",
    ),
    (
        "either of two details",
        owed("delete", {"or": [atom("odrl:event", "eq", "ds:event/end")]}),
        "error",
        "detail_grouped",
    ),
    ("an event that nobody tells", owed("delete", atom("odrl:event", "eq", "ds:event/over")), "error", "event_unknown"),
    ("a duty after a time", owed("delete", atom("dateTime", "gt", "2027-01-01T00:00:00Z")), "error", "operator_unfit"),
    (
        "delete as a duty",
        raw(permission=[{"action": "use", "duty": [{"action": "delete"}]}]),
        "error",
        "duty_never_met",
    ),
    ("forbidden again", form("may: query\nnot: use"), "error", "permission_void"),
    ("void", replace(form("may: use\nnot: distribute"), conflict=ConflictStrategy.INVALID), "error", "policy_void"),
    ("perm", replace(form("may: use\nnot: distribute"), conflict=ConflictStrategy.PERM), "warning", "permission_wins"),
    (
        "two roles at once",
        use(atom("ds:role", "eq", "a"), atom("ds:role", "eq", "b")),
        "error",
        "contradiction",
    ),
    ("ends before it begins", form("may: query\nfrom: 2028-01-01\nuntil: 2027-01-01"), "error", "contradiction"),
    ("tiny groups", form(GOOD + "limits: {min_group: 3 per a}\ngrid: {group_by: {b: 1}}"), "error", "group_too_small"),
    (
        "groups of rows",
        form(GOOD + "limits: {min_group: 10}\ngrid: {group_by: {b: 1}}"),
        "warning",
        "group_counts_rows",
    ),
    ("nothing to group by", form(GOOD + "limits: {min_group: 10 per a}"), "warning", "no_dimension"),
    ("a stream of groups", form("may: stream\nlimits: {min_group: 10 per a}"), "warning", "stream_of_groups"),
    (
        "columns kept apart, and rows",
        use(atom("ds:notTogether", "isNoneOf", ["a", "b"])),
        "warning",
        "together_by_order",
    ),
    ("a sum of flags", form(GOOD + "grid: {measure: {a: 0..1}}"), "warning", "measure_is_flag"),
    (
        "two sums of groups",
        form(GOOD + "limits: {min_group: 10 per a}\ngrid: {group_by: {b: 1}, measure: {c: 0..9, d: 0..9}}"),
        "warning",
        "measures_alike",
    ),
    ("a sum without bounds", form(GOOD + "grid: {measure: {a: free}}"), "warning", "measure_unbounded"),
    ("twice the same", raw(permission=[{"action": "use"}, {"action": "use"}]), "warning", "repeated"),
    ("a privacy budget of rows", form(GOOD + "limits: {epsilon: 1.0}"), "warning", "budget_of_rows"),
    ("on trust", form(GOOD + "not: distribute"), "warning", "on_trust"),
    (
        "a purpose that is no IRI",
        use(atom("purpose", "eq", "research")),
        "error",
        "not_an_iri",
    ),
    (
        "a purpose with a slip",
        form(GOOD.replace("query", "query\nfor: [dpv:SientificResearch]")),
        "warning",
        "purpose_unknown",
    ),
]


@pytest.mark.parametrize("said", ["ScientificResearch", "dpv:SientificResearch"])
def test_a_purpose_that_is_none_is_asked_about_where_it_is_refused(said: str) -> None:
    made = evaluate.as_granting_set(form("may: query\nfor: [dpv:ScientificResearch]"))
    facts = Facts.of({"odrl:purpose": said}, source="request")
    (reason,) = evaluate.evaluate_offer(made, facts, phase=Phase.TRANSFER, now=NOW).reasons
    assert reason.endswith(f"observed {said} (did you mean dpv:ScientificResearch?)")


def test_lint_asks_about_a_purpose_without_its_prefix() -> None:
    policy = use(atom("purpose", "eq", "ScientificResearch"))
    (problem,) = (one for one in lint.lint(policy) if one.code == "not_an_iri")
    assert problem.message.endswith("write its prefix or IRI (did you mean dpv:ScientificResearch?)")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (form("may: query\nwho: {membership: ACTIVE}"), "active"),
        (use(atom(HANSE + "membership", "neq", "suspendet")), "suspended"),
        (use(atom(HANSE + "resultKind", "eq", "agregate")), "aggregate"),
    ],
)
def test_a_word_that_stands_in_no_list_is_refused_with_the_one_that_was_meant(said: Policy, meant: str) -> None:
    (problem,) = (one for one in lint.lint(said) if one.level == "error")
    assert (problem.code, problem.message.partition("; ")[2]) == ("value_unreadable", f"did you mean {meant}?")


def test_permissions_that_lack_the_same_are_told_once() -> None:
    made = form("who: {membership: active}\nmay: [query, stream]")
    (reason,) = evaluate.evaluate_offer(made, Facts(), phase=Phase.NEGOTIATION, now=NOW).reasons
    assert reason.startswith("/permission/0/constraint/0: ")


@pytest.mark.parametrize(("name", "policy", "level", "code"), PROBLEMS, ids=[name for name, *_ in PROBLEMS])
def test_a_problem_is_found_with_its_code(name: str, policy: Policy, level: str, code: str) -> None:
    found = lint.lint(policy)
    assert (level, code) in [(problem.level, problem.code) for problem in found], found
    assert all(problem.message and problem.path.startswith("/") for problem in found)
    assert found == sorted(found, key=lambda problem: problem.level)


def test_a_sound_offer_has_no_problem() -> None:
    assert (
        lint.lint(form(GOOD + "until: 2028-01-01T00:00:00Z\nrows: country in (DE, FR) or consent = broad"), SCHEMA)
        == []
    )


@pytest.mark.parametrize("name", convert.TEMPLATES)
def test_templates_have_no_errors(name: str) -> None:
    found = lint.lint(convert.to_policy(convert.read_form(convert.template(name))))
    assert [problem for problem in found if problem.level == "error"] == []


@pytest.mark.parametrize(
    "lines",
    [
        "rows: city = Bonn",
        "rows: age = old",
        "columns: {hash: [name]}",
        "columns: {mask: {country: {round: 1}}}",
        "limits: {min_group: 10 per visit}",
        "grid: {measure: {country: 0..1}}",
        "columns: {only: [name]}",
    ],
)
def test_what_does_not_fit_the_table_is_an_error_with_a_schema(lines: str) -> None:
    policy = form(GOOD + lines)
    assert [problem for problem in lint.lint(policy) if problem.level == "error"] == []
    errors = [problem for problem in lint.lint(policy, SCHEMA) if problem.level == "error"]
    assert errors
    assert not any(problem.message.startswith("/") for problem in errors)  # its place stands beside it


def test_a_rule_for_a_part_of_a_column_says_that_rules_are_for_whole_ones() -> None:
    schema = TableSchema((Column("patient", "STRUCT(id VARCHAR, zip VARCHAR)"),))
    found = lint.lint(form(GOOD + "columns: {hide: [patient.zip]}"), schema)
    (told,) = {problem.message for problem in found if problem.level == "error"}
    assert told == "patient.zip is part of the column patient; name the whole column"


# --- differences -----------------------------------------------------------------------------------------


def test_the_same_meaning_differs_in_nothing() -> None:
    policy = form("may: [query, stream]\nwho: {membership: active}")
    turned = replace(policy, permissions=tuple(reversed(policy.permissions)), id="urn:other")
    assert diff.diff(policy, turned, now=NOW) == diff.PolicyDifference(same=True)


@pytest.mark.parametrize(
    ("before", "after", "key", "value", "becomes"),
    [
        ("may: query", "may: query\nwho: {membership: active}", "ds:membership", "(missing)", False),
        ("may: query\nwho: {country: EU}", "may: query\nwho: {country: EEA}", "ds:participantCountry", "NO", True),
        ("may: query\nlimits: {queries: 10}", "may: query\nlimits: {queries: 5}", "odrl:count", "9", False),
        ("may: query\nfirst: {compensate: true}", "may: query", "ds:fulfilled", "(missing)", True),
        ("may: query\nfor: [dpv:A]", "may: query\nfor: [dpv:A, dpv:B]", "odrl:purpose", "dpv:B", True),
    ],
)
def test_a_request_whose_outcome_changes_is_found(before: str, after: str, key: str, value: str, becomes: bool) -> None:
    found = diff.diff(form(before), form(after), now=NOW, limit=100)
    assert not found.same
    changes = [dict(change.facts).get(key) for change in found.requests if change.after is becomes]
    assert value in changes
    assert all(change.before is not change.after for change in found.requests)
    assert found.added or found.removed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("may: stream\nlasts: 30d", "may: stream\nlasts: 60d"),
        ("may: stream\nuntil: 2028-01-01", "may: stream\nuntil: 2028-06-01"),
        ("may: stream\nfrom: 2028-01-01", "may: stream"),
    ],
)
def test_a_change_in_time_is_found_around_its_boundaries(before: str, after: str) -> None:
    found = diff.diff(form(before), form(after), now=NOW)
    assert found.requests
    assert all(change.after and change.now != 0 for change in found.requests)
    assert found.to_json()["requests"][0]["before"] == "refused"


def test_a_changed_condition_on_the_answer_shows_as_a_changed_sentence() -> None:
    found = diff.diff(form("may: query\nlimits: {min_group: 10}"), form("may: query\nlimits: {min_group: 25}"), now=NOW)
    assert not found.requests
    assert [("10" in one, "25" in two) for one, two in zip(found.removed, found.added, strict=True)] == [(True, True)]


def test_a_search_over_many_facts_ends() -> None:
    many = "who: {membership: active, role: [a, b, c], country: [EEA, CH], permit: [p, q], framework: [f, g]}"
    found = diff.diff(
        form(f"may: [query, stream]\n{many}"), form(f"may: [query]\n{many}"), now=NOW, limit=5, tries=3_000
    )
    assert 1 <= len(found.requests) <= 5
    assert all(change.action == HANSE + "stream" for change in found.requests)
