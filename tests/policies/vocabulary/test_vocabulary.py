"""The vocabulary as data: each entry whole, the tree of actions, and words that plugins bring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from connector.infra.html.wording import TIERS
from policies import plugins, vocabulary
from policies.authoring import convert, form
from policies.evaluation import evaluate
from policies.evaluation.facts import Facts
from policies.model import HANSE, Atom, Kind, Literal
from policies.odrl import reader
from policies.review import explain, lint, phrases
from policies.review.report import REFUSED
from policies.vocabulary import ACTIONS, OPERANDS, Action, Operand, Phase, Tier, ValueType, docs_page, ds, odrl


@pytest.fixture
def plain_vocabulary() -> Iterator[None]:
    """Whatever a test adds is taken away again."""
    operands, actions, families = dict(OPERANDS), dict(ACTIONS), dict(vocabulary._FAMILIES)
    yield
    for table, before in ((OPERANDS, operands), (ACTIONS, actions), (vocabulary._FAMILIES, families)):
        table.clear()
        table.update(before)
    vocabulary._ABOVE.clear()


@pytest.mark.parametrize("operand", OPERANDS.values(), ids=lambda operand: vocabulary.compact(operand.name))
def test_an_operand_says_all_there_is_to_know(operand: Operand) -> None:
    assert operand.ops <= vocabulary.OPERATORS
    assert operand.help.endswith(".")
    assert operand.enforced_by in vocabulary.ENFORCERS or operand.tier is not Tier.TECHNICAL
    assert operand.by_engine or operand.fact or operand.counting or operand.phase is Phase.AFTER
    assert vocabulary.expand(vocabulary.compact(operand.name)) == operand.name
    name = operand.name + "age" if operand.parameter else operand.name
    said = phrases.ENGLISH.atom(Atom(name, sorted(operand.ops)[0], (Literal("1"),)))
    assert "{" not in said
    assert "unknown" not in said


@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: vocabulary.compact(action.name))
def test_an_action_has_a_root_and_a_phrase(action: Action) -> None:
    assert vocabulary.action_includes(odrl("use"), action.name) or vocabulary.action_includes(
        odrl("transfer"), action.name
    )
    assert action.phrase
    assert action.use or action.duty
    assert not action.parent or action.parent in ACTIONS


@pytest.mark.parametrize(
    ("broad", "narrow", "covers"),
    [
        (odrl("use"), odrl("use"), True),
        (odrl("use"), ds("query"), True),
        (odrl("use"), ds("trainGenerative"), True),
        (odrl("use"), odrl("distribute"), True),
        (odrl("use"), odrl("sell"), False),
        (odrl("transfer"), odrl("sell"), True),
        (ds("mining"), ds("train"), True),
        (ds("train"), ds("trainGenerative"), True),
        (ds("trainGenerative"), ds("train"), False),
        (ds("query"), ds("stream"), False),
        (odrl("reproduce"), odrl("copy"), True),
        (odrl("copy"), odrl("extract"), True),
        (odrl("modify"), odrl("write"), True),
        (odrl("use"), "https://x.example/unheard-of", False),
        ("https://x.example/unheard-of", "https://x.example/unheard-of", True),
    ],
)
def test_an_action_covers_what_is_below_it(broad: str, narrow: str, covers: bool) -> None:
    assert vocabulary.action_includes(broad, narrow) is covers


@pytest.mark.parametrize("column", ["age", "person id", "größe", "a/b", "100%", "x#y"])
def test_a_column_stays_itself_inside_an_iri(column: str) -> None:
    iri = vocabulary.column_term("row", column)
    assert vocabulary.column_of(iri) == column
    assert not any(character.isspace() for character in iri)
    assert vocabulary.operand(iri) is OPERANDS[ds("row/")]
    assert vocabulary.operand(ds("row/")) is None
    assert vocabulary.operand(ds("row")) is None


def test_a_word_without_enforcement_cannot_claim_to_be_technical() -> None:
    with pytest.raises(ValueError, match="is declared technical"):
        _operand("https://x.example/w", tier=Tier.TECHNICAL, enforced_by="")
    with pytest.raises(ValueError, match="is declared technical"):
        Action(name="https://x.example/w", parent=odrl("use"), help="x", phrase="x", tier=Tier.TECHNICAL)


def _operand(name: str, *, tier: Tier = Tier.ATTESTED, enforced_by: str = "identity") -> Operand:
    return Operand(
        name=name,
        type=ValueType.TEXT,
        ops=frozenset({"eq", "isAnyOf"}),
        phase=Phase.CATALOGUE,
        tier=tier,
        fact=name,
        enforced_by=enforced_by,
        help="A word of a plugin.",
        sentence="the mood of the party {op} {value}",
    )


@pytest.mark.usefixtures("plain_vocabulary")
def test_a_plugins_word_decides_as_soon_as_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "https://x.example/mood"
    policy = reader.read(
        {
            "@id": "urn:x",
            "@type": "Set",
            "permission": [
                {"action": "use", "constraint": [{"leftOperand": name, "operator": "eq", "rightOperand": "good"}]}
            ],
        },
        kind=Kind.SET,
    )
    facts = Facts.of({name: "good"})
    arguments = {"action": odrl("use"), "phase": Phase.TRANSFER, "now": 1.8e9}
    assert not evaluate.permits(policy, facts, **arguments)  # type: ignore[arg-type]  # one table for both calls
    plugin = SimpleNamespace(OPERANDS=(_operand(name),), ACTIONS=())
    point = SimpleNamespace(name="mood", load=lambda: plugin)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "hanse.policy_terms" else [])
    assert plugins.load_plugins() == ["mood"]
    assert plugins.load_plugins() == ["mood"]
    assert evaluate.permits(policy, facts, **arguments)  # type: ignore[arg-type]  # one table for both calls


@pytest.mark.usefixtures("plain_vocabulary")
@pytest.mark.parametrize("place", ["permission", "prohibition"])
def test_what_is_still_deferred_in_the_last_phase_denies(place: str) -> None:
    name = "https://x.example/afterthought"
    vocabulary.register(operands=[replace(_operand(name), phase=Phase.AFTER)])
    atom = {"leftOperand": name, "operator": "eq", "rightOperand": "good"}
    wire = {"@id": "urn:x", "@type": "Set", "permission": [{"action": "use"}]}
    wire[place] = [{"action": "use", "constraint": [atom]}]
    policy, facts = reader.read(wire), Facts.of({name: "good"})
    for phase, permitted in ((Phase.QUERY, True), (Phase.BATCH, False)):
        made = evaluate.evaluate(policy, facts, action=odrl("use"), phase=phase, now=1.8e9)
        assert made.permitted is permitted
        assert evaluate.permits(policy, facts, action=odrl("use"), phase=phase, now=1.8e9) is permitted
        assert made.reasons


@pytest.mark.usefixtures("plain_vocabulary")
def test_a_word_cannot_be_taken_twice() -> None:
    with pytest.raises(ValueError, match="registered already"):
        vocabulary.register(operands=[_operand(ds("membership"))])
    with pytest.raises(ValueError, match="registered already"):
        vocabulary.register(new_actions=[Action(name=ds("query"), parent=odrl("use"), help="x", phrase="x")])


def test_the_examples_of_the_reference_page_are_read() -> None:
    page = docs_page.write_page()
    table = page.split("## The short form")[1].split("| where |")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]+ \| (.*)\|$", table, re.M)
    told = {word for names, _ in rows for word in re.findall(r"`(\w+)`", names)}
    assert told == set(form.KEYS)
    for names, shown in rows:
        for name, example in zip(re.findall(r"`(\w+)`", names), re.findall(r"`([^`]+)`", shown), strict=False):
            lines = {"offer": "offer: x", "may": "may: [query]", name: f"{name}: {example}"}
            convert.read_form("\n".join(lines.values()))


def test_the_reference_page_is_current() -> None:
    written = (Path(__file__).parents[3] / "docs" / "policy-words.md").read_text(encoding="utf-8")
    assert written == docs_page.write_page(), "run: python -m policies.vocabulary.docs_page > docs/policy-words.md"
    assert all(f"`{vocabulary.compact(name)}" in written for name in (*OPERANDS, *ACTIONS, *vocabulary.ACTION_ALIASES))


def test_our_own_words_stand_in_our_own_namespace() -> None:
    assert HANSE == "https://w3id.org/hanse/policy/1/"
    assert all(name.startswith((HANSE, odrl(""))) for name in (*OPERANDS, *ACTIONS))


def test_the_offer_in_odrl_on_the_page_is_one() -> None:
    _, _, after = docs_page.write_page().partition("```yaml\n")
    written = convert.to_policy(convert.read_form(after.partition("```")[0]))
    assert [one for one in lint.lint(written) if one.level == "error"] == []
    assert "role is research, or the party's country lies in EU" in " ".join(s.text for s in explain.sentences(written))


def test_only_what_somebody_else_vouches_for_is_attested() -> None:
    """What comes with the request is the word of whoever asks, and the pages say so."""
    for operand in OPERANDS.values():
        assert (operand.sources == ("request",)) == (operand.tier is Tier.DECLARED), operand.name
    assert set(TIERS) == {*Tier, REFUSED}
