"""Reading and writing policies: what is refused, what is kept, what has the same digest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from policies import vocabulary
from policies.errors import PolicyUnreadable, TermUnknown
from policies.evaluation.evaluate import Facts, evaluate_offer
from policies.model import HANSE, Atom, ConflictStrategy, Kind, Policy
from policies.odrl import reader
from policies.odrl.assignee import restrict_to_party
from policies.review import unknown_terms
from policies.vocabulary import Phase, ValueType, odrl

SPEC = {
    "@type": "Offer",
    "@id": "urn:uuid:6f0c3c1e-5b8e-4f63-9a53-0f6f5f9a7c11",
    "target": "urn:example:dataset:readings",
    "odrl:conflict": {"@id": "odrl:prohibit"},
    "permission": [
        {
            "action": "ds:query",
            "constraint": [
                {"leftOperand": "ds:membership", "operator": "eq", "rightOperand": "active"},
                {
                    "leftOperand": "odrl:dateTime",
                    "operator": "lteq",
                    "rightOperand": {"@value": "2027-12-31T22:59:59Z", "@type": "xsd:dateTime"},
                },
                {
                    "or": [
                        {"leftOperand": "ds:row/country", "operator": "isAnyOf", "rightOperand": ["DE", "FR"]},
                        {"leftOperand": "ds:row/consent", "operator": "eq", "rightOperand": "broad"},
                    ]
                },
            ],
        }
    ],
    "prohibition": [{"action": "odrl:distribute"}],
}
USE = {"@type": "Offer", "@id": "urn:x", "permission": [{"action": "use"}]}


def offer(**more: Any) -> dict[str, Any]:
    return {**USE, **more}


def constrained(**atom: Any) -> dict[str, Any]:
    return offer(permission=[{"action": "use", "constraint": [atom]}])


def with_rule(**members: Any) -> dict[str, Any]:
    return offer(permission=[{"action": "use", **members}])


def test_the_specifications_example_is_read_and_written_in_strict_form() -> None:
    policy = reader.read(SPEC)
    written = reader.write(policy, in_message=True)
    assert written["permission"][0]["action"] == HANSE + "query"
    assert written["permission"][0]["constraint"][0]["leftOperand"] == HANSE + "membership"
    assert written["permission"][0]["constraint"][1]["rightOperand"]["@type"] == "xsd:dateTime"
    assert written["odrl:conflict"] == {"@id": "odrl:prohibit"}
    assert reader.read(written) == policy
    assert reader.read(json.dumps(written)) == policy


def test_expanded_json_ld_reads_the_same() -> None:
    expanded = [
        {
            "@id": "urn:x",
            "@type": [odrl("Offer")],
            odrl("target"): [{"@id": "urn:data"}],
            odrl("permission"): [
                {
                    odrl("action"): [{"@id": odrl("use")}],
                    odrl("constraint"): [
                        {
                            odrl("leftOperand"): [{"@id": odrl("count")}],
                            odrl("operator"): [{"@id": odrl("lteq")}],
                            odrl("rightOperand"): [{"@value": "10"}],
                        }
                    ],
                }
            ],
        }
    ]
    compacted = {
        **constrained(leftOperand="count", operator="lteq", rightOperand=10),
        "target": "urn:data",
    }
    assert reader.digest(reader.read(expanded)) == reader.digest(reader.read(compacted))
    assert reader.read(expanded).target == "urn:data"


def test_prefixes_of_an_inline_context_are_used_and_documents_never_fetched() -> None:
    wire = {
        "@context": ["https://w3id.org/dspace/2025/1/context.jsonld", {"h": HANSE, "o": {"@id": odrl("")}}],
        **constrained(leftOperand="h:membership", operator="o:eq", rightOperand="active"),
    }
    (atom,) = reader.read(wire).permissions[0].constraints
    assert isinstance(atom, Atom)
    assert (atom.left, atom.operator) == (HANSE + "membership", "eq")


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ("nonsense", "expected a policy as JSON"),
        ("[1]", "expected one policy object"),
        ([USE, USE], "expected one policy object"),
        ({}, "expected @type"),
        ({"@type": "Dataset"}, "expected @type"),
        (offer(permission="use"), "expected objects"),
        (offer(permission=[{}]), "expected an action"),
        (offer(target=["a", "b"]), "expected one value, got 2"),
        (offer(**{"odrl:permission": []}), "given twice"),
        (offer(inheritFrom="urn:parent"), "inheritFrom is not carried"),
        (offer(**{"odrl:conflict": {"@id": "odrl:maybe"}}), "expected conflict"),
        (with_rule(remedy=[{"action": "delete"}]), "remedy is not carried"),
        (with_rule(duty=[{"action": "odrl:inform", "consequence": []}]), "consequence is not carried"),
        (with_rule(action={"@id": "use", "refinement": []}), "expected an action as a name"),
        (with_rule(constraint=[{"leftOperand": "count", "operator": "lteq"}]), "expected leftOperand, operator"),
        (with_rule(constraint=[{"and": [], "or": []}]), "expected leftOperand, operator"),
        (with_rule(constraint=[{"and": []}]), "at least one constraint under and"),
        (constrained(leftOperand="count", operator="lteq", rightOperand=[]), "at least one value"),
        (constrained(leftOperand="count", operator="lteq", rightOperand=1e300), "expected a plain number"),
        (constrained(leftOperand="count", operator="lteq", rightOperand=None), "at least one value"),
        (constrained(leftOperand="count", operator="lteq", rightOperand={"x": 1}), "expected @value or @id"),
        (constrained(leftOperand="count", operator="lteq", rightOperand="1", unit="x"), "unit is not carried"),
        (
            constrained(leftOperand="count", operator="lteq", **{"odrl:rightOperandReference": {"@id": "http://x"}}),
            "rightOperandReference is not carried",
        ),
        (constrained(leftOperand="count", operator="lteq", rightOperand="x" * 20_001), "expected a text of at most"),
        (constrained(leftOperand="count", operator="lteq", rightOperand=["x"] * 10_001), "at most 10000 values"),
        (offer(permission=[{"action": "use"}] * 5_001), "at most 5000 rules"),
        (with_rule(target="urn:other") | {"target": "urn:mine"}, "expected the policy's own target"),
        (
            offer(permission=[{"action": "use", "assignee": "did:web:a"}, {"action": "ds:query"}]),
            "none on /permission/1",
        ),
        (offer(prohibition=[{"action": "ds:stream", "assignee": "did:web:a"}]), "none on /permission/0"),
        (with_rule(duty=[{"action": "odrl:inform", "assignee": "did:web:a"}]), "none on /permission/0"),
        (with_rule(assignee="did:web:a") | {"obligation": [{"action": "delete"}]}, "none on /obligation/0"),
        (with_rule(assignee="did:web:a") | {"assignee": "did:web:b"}, "expected the policy's own assignee"),
    ],
)
def test_what_would_lose_its_meaning_is_refused_with_a_reason(wire: Any, says: str) -> None:
    with pytest.raises(PolicyUnreadable, match=says):
        reader.read(wire)


STREAM = [{"action": "ds:stream"}]
DENY = {"leftOperand": "ds:columnDeny", "operator": "isNoneOf", "rightOperand": ["ssn"]}


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (with_rule(constraints=[DENY]), "the member constraints"),
        (with_rule(duties=[]), "the member duties"),
        (with_rule(maxRows=5), "the member maxRows"),
        (offer(prohibitions=STREAM), "the member prohibitions"),
        (offer(Prohibition=STREAM), "the member Prohibition"),
        (with_rule(**{"dspace:constraint": [DENY]}), "the member dspace:constraint"),
        (offer(**{"ds:prohibition": STREAM}), "the member ds:prohibition"),
        (offer(**{"ODRL:prohibition": STREAM}), "the member ODRL:prohibition"),
        (offer(**{"https://www.w3.org/ns/odrl/2/prohibition": STREAM}), "the member https://www.w3.org"),
        (offer(**{"http://W3.org/ns/odrl/prohibition": STREAM}), "the member http://W3.org"),
        (offer(**{"@nest": {"prohibition": STREAM}}), "the member @nest"),
        (with_rule(**{"@reverse": {"prohibition": STREAM}}), "the member @reverse"),
        (with_rule(**{"@context": {"ds": "http://x.example/"}}), "the member @context"),
        (offer(**{"@context": {"forbid": {"@id": "odrl:prohibition"}}, "forbid": STREAM}), "only prefixes .* forbid"),
        (offer(**{"@context": [{"forbid": odrl("prohibition")}], "forbid": STREAM}), "only prefixes .* forbid"),
        (offer(**{"@context": {"permission": "http://x.example/"}}), "only prefixes .* permission"),
        (offer(**{"@context": {"@vocab": "http://x.example/"}}), "only prefixes .* @vocab"),
        (offer(**{"@context": "https://unreachable.invalid/context.jsonld"}), "a context that is known here"),
        ({"@graph": [USE], "prohibition": STREAM}, "expected one of @graph, prohibition alone"),
        (offer(**{"@context": {"p": "odrl:"}, "p:prohibition": [], "prohibition": STREAM}), "given twice"),
        (offer(permission=[{"@set": [], "action": "use"}]), "expected one of @set, action alone"),
        (with_rule(constraint=[{"@set": [], **DENY}]), "expected one of @set, leftOperand"),
        (constrained(**{**DENY, "rightOperand": {"@list": ["a"], "@set": ["b"]}}), "expected one of @list, @set alone"),
        (constrained(**{**DENY, "rightOperand": {"@id": "a", "@value": "b"}}), "expected @value or @id"),
        (constrained(**{**DENY, "rightOperand": {"@value": "a", "@language": "en"}}), "expected @value or @id"),
        (constrained(**{**DENY, "leftOperand": {"@id": "a", "uid": "b"}}), "expected one of @id, uid alone"),
        (with_rule(action={"@id": "use", "@value": "odrl:read"}), "expected one of @id, @value alone"),
        (with_rule(assignee={"@id": "did:web:a", "source": "urn:x"}), "expected one of @id, source alone"),
        (with_rule(**{"@type": "odrl:Prohibition"}), "expected @type Permission"),
        ('{"@type":"Offer","permission":[{"action":"use"}],"prohibition":[{"action":"ds:stream"}],"prohibition":[]}',
         "'prohibition' twice"),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_part_of_a_rule_is_refused_by_name(wire: Any, says: str) -> None:
    with pytest.raises(PolicyUnreadable, match=says):
        reader.read(wire)


def test_nesting_has_an_end() -> None:
    node: dict[str, Any] = {"leftOperand": "count", "operator": "lteq", "rightOperand": "1"}
    for _ in range(2_000):
        node = {"and": [node]}
    with pytest.raises(PolicyUnreadable, match="nested at most"):
        reader.read(with_rule(constraint=[node]))


ONE = {
    "@id": "urn:r",
    "action": "use",
    "constraint": [{"leftOperand": "count", "operator": "lteq", "rightOperand": "1"}],
}


@pytest.mark.parametrize(
    "wire",
    [
        offer(permission=[ONE, {"@id": "urn:r", "action": "use"}]),
        offer(permission=[ONE, {"uid": "urn:r", "action": "use"}]),
        offer(permission=[ONE], prohibition=[{"id": {"@id": "urn:r"}, "action": "distribute"}]),
        offer(**{"@context": {"u": "urn:"}, "permission": [ONE, {"@id": "u:r", "action": "use"}]}),
        offer(**{"@id": "urn:r", "permission": [ONE]}),
        constrained(**{"@id": "_:a", "or": [{**ONE["constraint"][0], "@id": "_:a"}]}),
    ],
)
def test_two_nodes_of_one_id_are_refused_as_others_read_them_as_one(wire: dict[str, Any]) -> None:
    """In RDF the second permission has the first one's condition; read one by one it has none."""
    with pytest.raises(PolicyUnreadable, match="each @id once"):
        reader.read(wire)


def test_annotations_of_other_vocabularies_are_ignored() -> None:
    noted = offer(**{"dct:title": "x", "version": "2", "@context": "https://w3id.org/dspace/2025/1/context.jsonld"})
    noted["permission"] = [{"action": "use", "rdfs:label": "free", "id": "r1", "@type": "Permission"}]
    assert reader.rules_equal(reader.read(noted), reader.read(USE))


def test_rules_may_name_target_and_parties_in_the_policys_stead() -> None:
    policy = reader.read(with_rule(target="urn:data", assigner={"@id": "did:web:p"}))
    assert (policy.target, policy.assigner) == ("urn:data", "did:web:p")


@pytest.mark.parametrize("wire", [offer(assignee="did:web:a"), with_rule(assignee={"@id": "did:web:a"})])
def test_an_offer_for_one_party_is_for_nobody_else(wire: dict[str, Any]) -> None:
    policy = reader.read(wire)
    for phase in (Phase.CATALOGUE, Phase.NEGOTIATION):
        for party in ("did:web:a", "did:web:b"):
            facts = Facts.of({"ds:participant": party}, source="signature")
            assert evaluate_offer(policy, facts, phase=phase, now=1.8e9).permitted is (party == "did:web:a")
    assert reader.digest(policy) != reader.digest(reader.read(USE))
    assert reader.read(reader.write(policy, in_catalog=True)) == policy
    assert reader.rules_equal(policy, restrict_to_party(reader.read(USE), "did:web:a"))


def test_several_actions_of_a_rule_stand_for_one_rule_each() -> None:
    policy = reader.read(with_rule(action=["use", {"@id": "odrl:read"}]))
    assert [rule.action for rule in policy.permissions] == [odrl("use"), odrl("read")]


@pytest.mark.parametrize(
    ("wire", "name"),
    [
        (constrained(leftOperand="https://x.example/mood", operator="eq", rightOperand="a"), "https://x.example/mood"),
        (constrained(leftOperand="Membership", operator="eq", rightOperand="a"), "Membership"),
        (constrained(leftOperand="ds:membership", operator="like", rightOperand="a"), "like"),
        (with_rule(action="odrl:teleport"), "odrl:teleport"),
        (offer(profile="https://x.example/profile"), "https://x.example/profile"),
        (offer(profile=[HANSE, "https://x.example/p2"]), "https://x.example/p2"),
    ],
)
def test_unknown_words_are_kept_written_back_and_refused_by_name(wire: dict[str, Any], name: str) -> None:
    policy = reader.read(wire)
    assert reader.read(reader.write(policy)) == policy
    with pytest.raises(TermUnknown, match=name):
        unknown_terms.refuse_unclear(policy)


NUMERIC = [one for one in vocabulary.OPERANDS.values() if one.type in (ValueType.DECIMAL, ValueType.INTEGER)]
NO_NUMBERS = [
    True,
    False,
    {"@value": True},
    {"@value": True, "@type": "xsd:decimal"},
    {"@value": "true", "@type": "xsd:boolean"},
    {"@value": "5", "@type": "xsd:boolean"},
    {"@value": 5, "@type": "xsd:date"},
    {"@value": "5", "@type": "http://www.w3.org/2001/XMLSchema#anyURI"},
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
@pytest.mark.parametrize("operand", NUMERIC, ids=lambda one: one.name)
def test_a_boolean_is_no_number_of_a_policy(operand: vocabulary.Operand, value: Any) -> None:
    atom = {"leftOperand": operand.name, "operator": sorted(operand.ops)[0], "rightOperand": value}
    duty = {"action": "compensate", "constraint": [atom]}
    wire = constrained(**atom) if unknown_terms.RULE in operand.where else with_rule(duty=[duty])
    (found,) = unknown_terms.find_unclear(reader.read(wire))
    assert (found.code, "expected a" in found.message) == ("value_unreadable", True)


@pytest.mark.parametrize(
    "datatype", ["xsd:decimal", "xsd:integer", "xsd:nonNegativeInteger", "xsd:double", "xsd:string"]
)
def test_a_number_of_a_policy_has_any_datatype_of_numbers(datatype: str) -> None:
    """JSON-LD writes a typed number as a text, and other connectors write every value as one."""
    for value in (5, "5", {"@value": "5", "@type": datatype}, {"@value": 5, "@type": datatype}):
        policy = reader.read(constrained(leftOperand="ds:epsilonBudget", operator="lteq", rightOperand=value))
        assert not unknown_terms.find_unclear(policy)


def test_a_foreign_profile_and_a_foreign_value_change_the_digest() -> None:
    assert reader.digest(reader.read(offer(profile=HANSE))) == reader.digest(reader.read(USE))
    assert reader.digest(reader.read(offer(profile="https://x.example/p"))) != reader.digest(reader.read(USE))


def test_the_digest_ignores_who_when_and_where_but_not_what() -> None:
    policy = reader.read(SPEC)
    dressed = replace(
        policy, id="urn:other", target="urn:t", assigner="a", assignee="b", timestamp="2027-01-01T00:00:00Z"
    )
    assert reader.digest(dressed) == reader.digest(policy)
    assert reader.digest(replace(policy, prohibitions=())) != reader.digest(policy)
    assert reader.digest(replace(policy, conflict=ConflictStrategy.PERM)) != reader.digest(policy)
    lonely = replace(policy, prohibitions=())
    assert reader.digest(replace(lonely, conflict=ConflictStrategy.PERM)) == reader.digest(lonely)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"and": [{"and": ["A", "B"]}, "C"]}, {"and": ["C", "B", "A"]}),
        ({"or": [{"or": ["A", "B"]}, "A"]}, {"or": ["B", "A"]}),
        ({"xone": ["A"]}, {"and": ["A"]}),
        ({"andSequence": ["A", "B"]}, {"and": ["B", "A"]}),
    ],
)
def test_logic_that_means_the_same_has_one_digest(one: Any, other: Any) -> None:
    assert _digest(one) == _digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"or": ["A", "B"]}, {"and": ["A", "B"]}),
        ({"xone": ["A", "B"]}, {"or": ["A", "B"]}),
        ({"xone": ["A", "A"]}, {"xone": ["A"]}),
        ({"and": [{"or": ["A", "B"]}, "C"]}, {"or": [{"and": ["A", "C"]}, "B"]}),
    ],
)
def test_logic_that_differs_has_two_digests(one: Any, other: Any) -> None:
    assert _digest(one) != _digest(other)


def _digest(logic: Any) -> str:
    def spelled(node: Any) -> Any:
        if isinstance(node, str):
            return {"leftOperand": "ds:role", "operator": "eq", "rightOperand": node}
        return {key: [spelled(one) for one in members] for key, members in node.items()}

    return reader.digest(reader.read(with_rule(constraint=[spelled(logic)])))


@pytest.mark.parametrize(
    ("policy", "arguments", "says"),
    [
        (Policy(Kind.OFFER, "", ()), {}, "expected @id"),
        (Policy(Kind.OFFER, "urn:x", ()), {}, "at least one permission or prohibition"),
        (reader.read(USE), {"in_message": True}, "expected target"),
        (replace(reader.read(USE), kind=Kind.AGREEMENT), {}, "expected target, assigner, assignee, timestamp"),
    ],
)
def test_an_incomplete_policy_is_not_sent(policy: Policy, arguments: dict[str, bool], says: str) -> None:
    with pytest.raises(PolicyUnreadable, match=says):
        reader.write(policy, **arguments)


def test_the_kind_is_assumed_where_missing_and_demanded_where_given() -> None:
    untyped = {key: value for key, value in USE.items() if key != "@type"}
    assert reader.read(untyped, kind=Kind.OFFER).kind is Kind.OFFER
    assert reader.read({**untyped, "@type": "Policy"}).kind is Kind.SET
    with pytest.raises(PolicyUnreadable, match="expected @type Agreement"):
        reader.read(USE, kind=Kind.AGREEMENT)
