"""The terms of policies in German: the same groups as in English, with words, numbers and days of that language."""

from __future__ import annotations

import pytest

from connector.infra.html.languages import DEFAULT, translations
from connector.infra.html.wording import find_phrases
from policies.authoring.convert import TEMPLATES, template, to_policy
from policies.authoring.read_yaml import read_form
from policies.model import Policy
from policies.odrl import reader
from policies.review.grouped_terms import TermGroup, group_terms, texts

GERMAN = find_phrases("de")


def in_german(permission: object, **rules: object) -> list[TermGroup]:
    return group_terms(reader.read({"@type": "Set", "permission": [permission], **rules}), GERMAN)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_term_of_a_template_is_translated_and_keeps_its_group_and_tier(name: str) -> None:
    policy: Policy = to_policy(read_form(template(name)))
    english, german = group_terms(policy, find_phrases(DEFAULT)), group_terms(policy, GERMAN)
    assert english == group_terms(policy)
    assert [[(group.kind, one.tier) for one in group.terms] for group in german] == [
        [(group.kind, one.tier) for one in group.terms] for group in english
    ]
    ours = {one.text for group in english for one in group.terms}
    assert not ours & {one.text for group in german for one in group.terms}


def test_numbers_days_and_lists_are_written_as_in_german() -> None:
    constraints = [
        {"leftOperand": "ds:rowQuota", "operator": "lteq", "rightOperand": "5000"},
        {"leftOperand": "dateTime", "operator": "lteq", "rightOperand": "2027-12-31"},
        {"leftOperand": "purpose", "operator": "isAnyOf", "rightOperand": ["dpv:ScientificResearch", "dpv:Marketing"]},
        {"leftOperand": "elapsedTime", "operator": "lteq", "rightOperand": "P1M2D"},
    ]
    found = [one.text for group in in_german({"action": "use", "constraint": constraints}) for one in group.terms]
    assert found == [
        "die Daten nutzen",
        "die Zahl der Zeilen, die den Anbieter verlassen, ist höchstens 5.000",
        "der Zeitpunkt der Nutzung ist spätestens 31. Dezember 2027",
        "der erklärte Zweck ist wissenschaftliche Forschung oder Marketing",
        "die Zeit seit der Vereinbarung ist höchstens 1 Monat 2 Tage",
    ]


def test_what_a_partner_writes_is_not_translated() -> None:
    """A role that is called like a fragment stays as it is."""
    role = {"leftOperand": "ds:role", "operator": "eq", "rightOperand": "year"}
    found = [one.text for group in in_german({"action": "use", "constraint": [role]}) for one in group.terms]
    assert found[1] == "die Rolle des Partners ist year"


def test_the_fragments_have_a_translation_of_their_own() -> None:
    gettext = translations("de").gettext
    same = {text for text in texts() if gettext(text) == text}
    assert same <= {"in {value}", "have {}"}
