"""Terms of duties and obligations: delete, inform, attribute, compensate, log; with deadline, recipient and event.

What happens after use is an obligation. Only what can be done before use (pay, accept) can be a duty of a permission.
"""

from __future__ import annotations

from policies.vocabulary.terms import (
    ANY,
    DUTY,
    EQ,
    LT,
    LTEQ,
    Action,
    Operand,
    Phase,
    Tier,
    ValueType,
    ds,
    odrl,
)


def _duty_operand(name: str, type_: ValueType, ops: frozenset[str], help_: str, sentence: str) -> Operand:
    """A detail of a duty: tracked in the ledger, never decided inside a query."""
    return Operand(
        name=name,
        type=type_,
        ops=ops,
        phase=Phase.AFTER,
        tier=Tier.CONTRACTUAL,
        enforced_by="ledger",
        where=frozenset({DUTY}),
        help=help_,
        sentence=sentence,
    )


ONE = frozenset({EQ})

OPERANDS: tuple[Operand, ...] = (
    _duty_operand(
        odrl("delayPeriod"),
        ValueType.DURATION,
        frozenset({EQ, LT, LTEQ}),
        "How long after the event (the end of the agreement unless odrl:event names another).",
        "within {value}",
    ),
    _duty_operand(
        odrl("event"),
        ValueType.IRI,
        frozenset({EQ, ANY}),
        "The event that makes it due: ds:event/end, revoked, transferStarted, transferCompleted, breach.",
        "when {value} happens",
    ),
    _duty_operand(ds("informedParty"), ValueType.IRI, frozenset({EQ, ANY}), "The party to inform.", "to {value}"),
    _duty_operand(
        ds("attributionText"), ValueType.TEXT, ONE, "The words of the attribution.", "with the words “{value}”"
    ),
    _duty_operand(odrl("payAmount"), ValueType.DECIMAL, ONE, "The amount to pay.", "an amount of {value}"),
    _duty_operand(ds("currency"), ValueType.TEXT, ONE, "Currency of the amount (ISO 4217).", "in {value}"),
    _duty_operand(ds("every"), ValueType.DURATION, ONE, "How often it falls due again.", "every {value}"),
    _duty_operand(ds("policy"), ValueType.IRI, ONE, "The policy to pass on.", "under the policy {value}"),
)


def _duty_action(name: str, help_: str, phrase: str, *, use: bool = False, enforced_by: str = "ledger") -> Action:
    return Action(
        name=name,
        parent=odrl("use"),
        help=help_,
        phrase=phrase,
        enforced_by=enforced_by,
        duty=True,
        use=use,
    )


ACTIONS: tuple[Action, ...] = (
    _duty_action(odrl("delete"), "Delete all copies.", "delete all copies", use=True),
    _duty_action(odrl("inform"), "Inform a party of an event.", "give notice"),
    _duty_action(odrl("attribute"), "Name the source in what is published.", "name the source"),
    _duty_action(odrl("compensate"), "Pay, once or per period.", "pay"),
    _duty_action(odrl("anonymize"), "Anonymise the data.", "anonymise the data", use=True),
    _duty_action(odrl("nextPolicy"), "Pass the policy on with the data.", "pass this policy on to any recipient"),
    _duty_action(odrl("obtainConsent"), "Obtain consent.", "obtain consent"),
    _duty_action(odrl("acceptTracking"), "Accept that use is tracked.", "accept that use is tracked"),
    _duty_action(ds("log"), "Keep a record of each use.", "keep a record of each use"),
    Action(
        name=ds("mask"),
        parent=odrl("use"),
        help="Mask columns in every answer: null, keyed hash, truncate, round, generalise.",
        phrase="mask columns in every answer",
        tier=Tier.TECHNICAL,
        enforced_by="gate",
        duty=True,
        use=False,
        by_engine=True,
    ),
)
