"""Generates the reference page of all terms: `python -m policies.vocabulary.docs_page > docs/policy-words.md`.

A test compares the page in `docs/` with the output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from policies import vocabulary
from policies.authoring import form
from policies.evaluation import values
from policies.vocabulary import Action, Operand, compact
from policies.vocabulary.terms import RULE, ValueType

_HEAD = """# Words of a policy

Written by `python -m policies.vocabulary.docs_page`; do not edit. `ds:` stands for
`https://w3id.org/hanse/policy/1/`, on the wire these words travel as full IRIs.
A word that is in no table here is refused by name. Tiers: *technical*, the owner's connector enforces it alone;
*attested*, it rests on a claim by a third party; *declared*, on a declaration by the party itself;
*contractual*, it is recorded and followed up.
"""


_FORM = """An offer in YAML. `offer` and one of `may` and `not` are required; anything else is unlimited by default.

| word | meaning | for example |
|---|---|---|
| `offer`, `dataset` | its name; the dataset's | `readings`, `patients` |
| `who` | conditions on the party | `{membership: active, country: EU}` |
| `may`, `not` | actions permitted and prohibited | `[query, stream]`, `[distribute]` |
| `for` | purposes, any of them | `[dpv:ScientificResearch]` |
| `from`, `until`, `lasts` | when: a moment with its zone, or a day; a time from the signature | `2027-01-01`, \
`2027-12-31T23:59:59+01:00`, `30d` |
| `rows` | the rows that can be read | `age >= 18 and ward in (A, B) or consent = 'broad'` |
| `columns` | `only` these, or `hide` some; `hash` or `null` some; `mask` each by its method | `{hide: [name], \
hash: [patient], mask: {zip: {truncate: 2}, weight: {round: 1}, age: {generalise: 10}, seen: {generalise: month}}}` |
| `limits` | quantities, in the table below | `{min_group: 10 per patient, rows: 5M, bytes: 2 GiB}` |
| `answers`, `grid` | `aggregate` or `rows`; what answers group by and measure | `aggregate`, \
`{group_by: {age: 10, ward: exact}, measure: {cost: 0..5000}}` |
| `joins`, `templates` | the only datasets to join it with, by their ids; the only queries that run | \
`["urn:hanse:north:labs"]` |
| `first`, `then` | duties before use, and after it | `{attribute: {text: "Clinic North"}}`, \
`{delete: 30d after end, inform: {to: "did:web:dpo.example", on: breach}}` |
| `decide` | who decides: the connector (`auto`), a person (`manual`, the default), a person unless the facts \
permit it (`rules`), or a person who did not ask (`four_eyes`) | `auto` |
| `odrl` | in place of the rules: the policy in ODRL, where these words cannot express it | below |

For example, these words cannot express that either of two conditions on the party suffices:
```yaml
offer: readings
dataset: readings
odrl:
  permission:
    - action: ds:query
      constraint:
        - or:
            - {leftOperand: ds:role, operator: eq, rightOperand: research}
            - {leftOperand: ds:participantCountry, operator: isPartOf, rightOperand: EU}
        - {leftOperand: dateTime, operator: lteq, rightOperand: {"@value": "2027-12-31", "@type": xsd:date}}
  prohibition:
    - action: distribute
```
"""

_OWN = """## Words of your own

A plugin is one file in an installed distribution, named by the entry point `hanse.policy_terms`. It may hold any of:

| name | what it is |
|---|---|
| `OPERANDS` | `policies.vocabulary.Operand` entries: name (an IRI of yours), type, operators, phase, tier, `sources` |
| `ACTIONS` | `policies.vocabulary.Action` entries; an action of a plugin rests on the contract, so none is technical |
| `LOWER` | operand IRI to a function of (draft, atom, path): makes a condition on the answer part of the contract |
| `MASKS` | `policies.contracts.masks.MaskWord` entries: its columns, how its argument is read, its SQL |
| `SOURCES` | name of a source of facts to its description in refusals |

A word that is declared technical without code that enforces it is refused when the connector starts, and so is a
technical word that rests on claims of others: declare it attested. `tests/policies/test_plugins.py` has a whole plugin.

## A source of facts of your own

A source of facts about participants is an object named by the entry point `hanse.fact_sources`, with `NAME`, `HELP`,
`SUPPLIES` (the words it may supply, and no others) and `async def facts(participant)`, which gives
`policies.evaluation.evaluate.Fact` values with their source and expiry. A source that fails or takes over two seconds
supplies nothing. Plugins cannot supply membership, identity, purpose, time and counters.
"""

# Known to a connector with rules for credentials only (`connector.usage.credential_facts`).
_CREDENTIAL = "credential"
_CREDENTIAL_ROW = (
    f"| {_CREDENTIAL} | a credential that the party presents, of an issuer that the owner lists | words of `register` "
    "or `owner` that `HANSE_CREDENTIAL_RULES` names |"
)


def write_page() -> str:
    """Return the whole page as Markdown."""
    operands, actions = vocabulary.OPERANDS.values(), vocabulary.ACTIONS.values()
    parts = [
        _HEAD,
        _section(
            "Conditions of a permission or prohibition", _operand_rows(one for one in operands if RULE in one.where)
        ),
        _section("Details of a duty or obligation", _operand_rows(one for one in operands if RULE not in one.where)),
        _section("Actions that are permitted or prohibited", _action_rows(one for one in actions if one.use)),
        f"Other names: {', '.join(_alias_rows())}.\n",
        _section("Actions of duties", _action_rows(one for one in actions if one.duty)),
        _section("The short form", _form_rows()),
        f"Regions: {', '.join(values.known_regions())}.\n",
        _section("Where facts come from", _source_rows()),
        _OWN,
    ]
    return "\n".join(parts)


def _section(title: str, rows: Iterable[str]) -> str:
    return f"## {title}\n\n" + "\n".join(rows) + "\n"


def _operand_rows(operands: Iterable[Operand]) -> Iterator[str]:
    yield "| word | value | operators | decided at | tier | fact | meaning |"
    yield "|---|---|---|---|---|---|---|"
    for one in operands:
        name = compact(one.name) + ("&lt;column&gt;" if one.parameter else "")
        between = " < " if one.type is ValueType.LEVEL else ", "
        kind = f"{one.type.value}: {between.join(one.levels)}" if one.levels else one.type.value
        ops = " ".join(op for op in form.OPERATOR_ORDER if op in one.ops)
        fact = f"`{one.fact}`" if one.fact and not one.parameter else ""
        yield f"| `{name}` | {kind} | {ops} | {one.phase.value} | {one.tier.value} | {fact} | {one.help} |"


def _source_rows() -> Iterator[str]:
    yield (
        "Where several sources supply a fact, the owner's own record counts. "
        "Lint refuses a condition whose fact no source supplies."
    )
    yield ""
    yield "| source | who | words |"
    yield "|---|---|---|"
    for name, who in vocabulary.SOURCES.items():
        if name == _CREDENTIAL:
            continue
        words = [compact(one.name) for one in vocabulary.OPERANDS.values() if name in one.sources]
        words += [key for key, names in vocabulary.OTHER_FACTS.items() if name in names]
        yield f"| {name} | {who} | {', '.join(f'`{word}`' for word in words)} |"
    yield _CREDENTIAL_ROW


def _action_rows(actions: Iterable[Action]) -> Iterator[str]:
    yield "| word | below | tier | meaning |"
    yield "|---|---|---|---|"
    for one in actions:
        parent = f"`{compact(one.parent)}`" if one.parent else ""
        yield f"| `{compact(one.name)}` | {parent} | {one.tier.value} | {one.help} |"


def _alias_rows() -> Iterator[str]:
    for name, meant in vocabulary.ACTION_ALIASES.items():
        yield f"`{compact(name)}` is `{compact(meant)}`"


def _form_rows() -> Iterator[str]:
    yield _FORM
    yield "| where | word | stands for |"
    yield "|---|---|---|"
    for where, table in (("who", form.PARTY_WORDS), ("limits", form.LIMITS), ("then, first", form.DETAILS)):
        for word, (left, operator) in table.items():
            yield f"| {where} | `{word}` | `{compact(left)} {operator}` |"


if __name__ == "__main__":
    sys.stdout.write(write_page())
