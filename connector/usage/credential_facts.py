"""Facts from verified credentials, as the operator's rules map them: source `credential`.

A fact counts until the credential ends, its status must be checked again, or its holder has presented nothing for the
time that the rules allow. A value that the fact cannot have is left out, and unknown never permits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from connector.errors import Invalid
from connector.identity.credentials.rules import FactRule
from connector.identity.credentials.verifier import Verifier
from connector.identity.principal import VerifiedCredential
from connector.telemetry import logger
from connector.usage.fact_collector import check_value
from policies import vocabulary
from policies.evaluation.evaluate import Fact
from policies.odrl.strictjson import list_of

_SUPPLIERS = {"register", "owner"}  # a credential can say what one of these can; never identity, purpose or counters
_VALUES_MAX = 64
_log = logger("facts")


class CredentialFacts:
    """A `FactSource` of what participants presented. Raises: Invalid for a fact that credentials cannot supply."""

    NAME = "credential"
    HELP = "a credential that the party presents, of an issuer that the owner lists"

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._rules = {_announce(key): rule for key, rule in verifier.rules.facts.items()}
        self.SUPPLIES = tuple(self._rules)

    async def facts(self, participant: str) -> Mapping[str, Fact]:
        """The facts that the participant's credentials prove now."""
        credentials = await self._verifier.find_current(participant)
        found = {key: _fact(key, rule, credentials) for key, rule in self._rules.items()}
        return {key: fact for key, fact in found.items() if fact is not None}


def _announce(fact: str) -> str:
    """Register `credential` as a source of a fact; returns its short key. Raises: Invalid."""
    word = vocabulary.operand(vocabulary.expand(fact))
    if word is None or _SUPPLIERS.isdisjoint(word.sources):
        raise Invalid(f"HANSE_CREDENTIAL_RULES: facts.{fact}: expected a fact that a register or an owner can supply")
    vocabulary.register(sources={CredentialFacts.NAME: CredentialFacts.HELP})
    if CredentialFacts.NAME not in word.sources:
        vocabulary.OPERANDS[word.name] = replace(word, sources=(*word.sources, CredentialFacts.NAME))
    return vocabulary.compact(word.name)


def _fact(key: str, rule: FactRule, credentials: tuple[VerifiedCredential, ...]) -> Fact | None:
    proving = [one for one in credentials if rule.credential in one.types]
    values = tuple(dict.fromkeys(value for one in proving for value in _values(key, rule, one)))
    return Fact(values, CredentialFacts.NAME, min(one.until for one in proving)) if values else None


def _values(key: str, rule: FactRule, credential: VerifiedCredential) -> Iterator[str]:
    texts = (
        [rule.value] if rule.value else [text for subject in credential.subjects for text in _at(subject, rule.path)]
    )
    for text in texts[:_VALUES_MAX]:
        try:
            yield check_value(key, rule.prefix + text)
        except Invalid as error:
            _log.info("credential_value_left_out", credential=credential.id, fact=key, why=error.message)


def _at(subject: Mapping[str, Any], path: str) -> list[str]:
    """The texts at a dotted path in a subject; numbers and other values are not texts."""
    value: Any = subject
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return [text for text in list_of(value) if isinstance(text, str)]
