"""Terms of offers and agreements in protocol messages: read them, compare them, and turn an offer into an agreement.

Works on values and knows no state machine. `policies` interprets the policies.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from connector.datasets import stored_policies
from connector.datasets.registry import published_schema
from connector.dsp.jsonld import Json
from connector.errors import Denied, MessageInvalid
from connector.infra.concurrency.recent_keys import put_recent
from connector.store import Transaction
from connector.store.tables import Offer
from connector.usage.fact_collector import PURPOSE, with_declared
from policies.contracts import compile as compiler
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.evaluation.evaluate import Facts
from policies.evaluation.values import instant
from policies.model import Kind, Policy
from policies.odrl import reader, strictjson
from policies.odrl.assignee import restrict_to_party
from policies.review import unknown_terms
from policies.vocabulary import Phase, ds, expand, operand

TIME_ENDED = "the time that was agreed has ended"
REPLACED = "never concluded; replaced by another one"
REFUSED = "never concluded; its consumer refused it"
# Reasons for an agreement's end that are no revocation. They are stored with agreements, so their wording stays.
LAPSED = frozenset({TIME_ENDED, REPLACED, REFUSED})
_OFFER_MAX = 64 * 2**10  # characters of another party's offer, which is stored as long as its negotiation
_SHORT = 4 * 2**10  # characters
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2000, 9999))
_COMPILES_MAX = 1_024
_LISTED_MAX = 10  # offers whose purposes a refusal lists
_compiles: OrderedDict[tuple[str, str], bool] = OrderedDict()  # (policy digest, version) to: gives exact aggregates


def read_offer(wire: Json) -> Policy:
    """The offer in a message. MessageInvalid if it cannot be read, or has no id or no rule."""
    return _read(wire, Kind.OFFER)


def read_requested_offer(wire: Json) -> Policy:
    """The offer in a consumer's request, also with lists of values in the form of EDC 0.15."""
    return read_offer(_parse_lists(wire))


_LIST_AS_TEXT = re.compile(r'\[\s*\{\s*"@value"')


def _parse_lists(wire: Any) -> Any:
    """The offer with its lists of values as lists; other values unchanged.

    EDC 0.15 sends `["a", "b"]` back as the text `[{"@value":"a"},{"@value":"b"}]`.
    """
    if isinstance(wire, list):
        return [_parse_lists(each) for each in wire]
    if not isinstance(wire, dict):
        return wire
    return {
        key: _parse_list(value) if key.endswith("rightOperand") else _parse_lists(value) for key, value in wire.items()
    }


def _parse_list(right: Any) -> Any:
    inner = right[0] if isinstance(right, list) and len(right) == 1 else right
    text = inner.get("@value") if isinstance(inner, dict) else inner
    if not isinstance(text, str) or not _LIST_AS_TEXT.match(text):
        return right
    try:
        values = strictjson.loads(text)
    except (ValueError, RecursionError):
        return right
    return values if all(isinstance(each, dict) and each.keys() <= {"@value", "@type"} for each in values) else right


def read_offers(wires: Sequence[Json]) -> list[Policy]:
    """All offers that can be read. MessageInvalid, for the first of them, if none can."""
    offers: list[Policy] = []
    errors: list[MessageInvalid] = []
    for wire in wires:
        try:
            offers.append(read_offer(wire))
        except MessageInvalid as error:
            errors.append(error)
    if not offers:
        raise errors[0]
    return offers


def read_agreement(wire: Json) -> Policy:
    """The agreement in a message."""
    return _read(wire, Kind.AGREEMENT)


def _read(wire: Json, kind: Kind) -> Policy:
    try:
        policy = reader.read(wire, kind=kind)
    except PolicyError as error:
        raise MessageInvalid(f"the {kind.lower()} cannot be read: {error}", rule=error.rule) from error
    if not policy.id or len(policy.id) > 255 or len(policy.target) > 255:
        raise MessageInvalid(f"expected the {kind.lower()} to have an @id and a target, each of at most 255 characters")
    if not policy.permissions and not policy.prohibitions:
        raise MessageInvalid(f"expected the {kind.lower()} to have a permission or prohibition, got none")
    return policy


def offer_wire(policy: Policy, *, target: str, assigner: str = "") -> Json:
    """An offer as JSON-LD for a message. `assigner`: its provider, where the provider itself sends the offer."""
    return _write(replace(policy, kind=Kind.OFFER, target=target, assigner=assigner or policy.assigner))


def in_published_words(asked: Policy, wire: Json, *, published: Policy, consumer: str) -> Policy:
    """A request for a published offer in the wording that the agreement will have. `wire`: the request as received.

    A request with the published rules gets the published wording, order and profile. Consumers such as EDC compare the
    agreement with the catalogue's offer word for word, and send only part of it (EDC 0.15 leaves out `profile` and
    `odrl:conflict`). A member that the request leaves out is as published. Other rules keep the consumer's wording,
    with the published profile where they name none.
    """
    named = asked if asked.profile else replace(asked, profile=published.profile)
    silent = not any(key.endswith("conflict") for key in wire)
    filled = replace(named, conflict=published.conflict) if silent else named
    if has_same_rules(filled, published, consumer=consumer):
        return replace(published, id=asked.id)
    return named


def received_offer_wire(policy: Policy, *, target: str, compared_with: Json) -> Json:
    """A counterparty's offer as we store it.

    Raises:
        MessageInvalid: it is more than 64 KiB larger than the offer that it is `compared_with`.
    """
    wire = offer_wire(policy, target=target)
    size = _size(wire)
    if size > _OFFER_MAX and size > _OFFER_MAX + _size(compared_with):
        raise MessageInvalid(
            f"expected an offer of at most {_OFFER_MAX} characters as JSON, got {size}; name groups instead of each "
            "of their members, or make several offers",
            code="offer_too_large",
        )
    return wire


def shorten_offer(wire: Json) -> Json:
    """The part of another party's refused terms that is stored: of more than 4 KiB as JSON, only id and target."""
    return wire if _size(wire) <= _SHORT else {name: wire[name] for name in ("@type", "@id", "target") if name in wire}


def _size(wire: Json) -> int:
    return len(json.dumps(wire))


def _write(policy: Policy) -> Json:
    try:
        wire: Json = reader.write(policy, in_message=True)
    except PolicyError as error:
        raise MessageInvalid(str(error), rule=error.rule) from error
    return wire


def read_published(row: Offer) -> Policy:
    """A published offer with its own id and target. Denied where its policy is not understood any more."""
    return replace(stored_policies.read_offer_policy(row), id=row.id, target=row.dataset_id)


def digest_of(policy: Policy) -> str:
    """The digest of a policy's rules, independent of their wording."""
    return reader.digest(policy)


def has_same_rules(policy: Policy, other: Policy, *, consumer: str) -> bool:
    """Whether both policies have the same rules for `consumer`, independent of their wording.

    An assignee that only one of them names makes no difference, as an agreement is for its assignee anyway.
    """
    return reader.digest(restrict_to_party(policy, consumer)) == reader.digest(restrict_to_party(other, consumer))


_COUNTED = frozenset({"grant", "batch"})  # the places that enforce what can be used up
_EPSILON = ds("epsilonBudget")


def quantities(policy: Policy) -> tuple[bool, bool]:
    """Whether a policy has quantities that a second agreement would double, and whether a privacy budget is one.

    Quantities are reads, rows, bytes, reads at the same time, and a privacy budget.
    """
    rules = [(f"/permission/{index}", rule.constraints) for index, rule in enumerate(policy.permissions)]
    names = [operand(atom.left) for path, members in rules for _, atom in unknown_terms.walk_atoms(members, path)]
    operands = [known for known in names if known is not None]
    private = any(each.name == _EPSILON for each in operands)
    return private or any(each.enforced_by in _COUNTED for each in operands), private


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy permits its party anything.

    lacking: for each permission that lacks only unknown facts, those facts.
    rule: the permission that is nearest to being satisfied.
    """

    permitted: bool
    reasons: tuple[str, ...]
    lacking: tuple[frozenset[str], ...] = ()
    rule: str = ""

    def waits_for(self, facts: AbstractSet[str]) -> bool:
        """Whether some permission lacks only facts among these."""
        return any(missing <= facts for missing in self.lacking)


def judge(policy: Policy, facts: Facts, *, phase: Phase, now: float) -> Verdict:
    """Evaluate `policy` with the facts of a party."""
    decision = evaluate.evaluate_offer(policy, facts, phase=phase, now=now)
    rule = next((one.rule for one in decision.findings if one.rule.startswith("/permission")), "")
    return Verdict(decision.permitted, decision.reasons, decision.lacking, rule)


def sign(policy: Policy, *, agreement_id: str, target: str, assigner: str, assignee: str, now: float) -> Policy:
    """The agreement with an offer's rules, unchanged (DSP 2025-1, section 5)."""
    return replace(
        policy,
        kind=Kind.AGREEMENT,
        id=agreement_id,
        target=target,
        assigner=assigner,
        assignee=assignee,
        timestamp=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def first_for(purpose: str, offers: Sequence[Policy], *, consumer: str, now: float) -> Policy:
    """The first of these offers that allows `purpose`.

    Raises:
        Denied: none of them does; names the purposes of each.
    """
    refused: list[tuple[str, Verdict]] = []
    for offer in offers:
        if (against := _refuse_purpose(offer, purpose, consumer=consumer, now=now)) is None:
            return offer
        refused.append((offer.id, against))
    if len(refused) == 1:
        ((_, only),) = refused
        why, rule = f"this offer is for other purposes, so it was not requested: {'; '.join(only.reasons)}", only.rule
    else:
        each = ". ".join(f"{name}: {'; '.join(against.reasons)}" for name, against in refused[:_LISTED_MAX])
        why, rule = f"none of {len(refused)} offers is for this purpose, so none was requested. {each}", ""
    raise Denied(why, code="purpose_not_agreed", rule=rule)


def _refuse_purpose(offer: Policy, purpose: str, *, consumer: str, now: float) -> Verdict | None:
    """The verdict against `purpose` under this offer, if only another purpose could satisfy it; else None."""
    agreed = sign(
        offer, agreement_id=offer.id, target=offer.target, assigner=offer.assigner, assignee=consumer, now=now
    )
    party = Facts.of({"ds:participant": consumer}, source="signature")
    declared, undeclared = (
        judge(agreed, with_declared(party, purpose=each), phase=Phase.TRANSFER, now=now) for each in (purpose, "")
    )
    if declared.permitted or declared.lacking or not any(PURPOSE in missing for missing in undeclared.lacking):
        return None
    return replace(declared, reasons=tuple(why for why in declared.reasons if why not in undeclared.reasons))


_IS = frozenset({"eq", "isA", "isAnyOf", "isPartOf"})


def only_purpose(policy: Policy) -> str:
    """The purpose for which a policy permits use, where all its purpose constraints name the same one; else empty."""
    rules = [(f"/permission/{index}", rule.constraints) for index, rule in enumerate(policy.permissions)]
    atoms = [atom for path, members in rules for _, atom in unknown_terms.walk_atoms(members, path)]
    stated = [atom for atom in atoms if atom.left == expand(PURPOSE)]
    named = {value.text for atom in stated for value in atom.right}
    return named.pop() if len(named) == 1 and all(atom.operator in _IS for atom in stated) else ""


def agreement_wire(policy: Policy) -> Json:
    """An agreement as JSON-LD for a message."""
    return _write(policy)


def check_agreement(agreement: Policy, *, terms: Policy, target: str, assigner: str, assignee: str) -> None:
    """Check a received agreement as its consumer (DSP 2025-1, section 7.4).

    1. It is for us, 2. from the party with which we negotiate, 3. about the requested dataset, 4. with the agreed
    rules, 5. with a timestamp from the year 2000 to 9998: periods are counted from it.

    Raises:
        MessageInvalid: one of these does not hold.
    """
    expected = (
        ("assignee", agreement.assignee, assignee),  # 1
        ("assigner", agreement.assigner, assigner),  # 2
        ("target", agreement.target, target),  # 3
    )
    for name, got, wanted in expected:
        if got != wanted:
            raise MessageInvalid(f"expected {name} {wanted} in the agreement, got {got[:255] or 'none'}", rule=name)
    if not has_same_rules(agreement, terms, consumer=assignee):  # 4
        raise MessageInvalid("expected the agreed rules in the agreement, got other ones; send them unchanged")
    if not _EARLIEST <= signed_at(agreement, now=_EARLIEST) < _LATEST:  # 5
        raise MessageInvalid(
            f"expected a timestamp from the year 2000 to 9998, got {agreement.timestamp[:40]!r}", rule="timestamp"
        )


class EnforceableVersion(NamedTuple):
    """The version of a dataset on which a policy can be enforced, and whether the policy gives exact aggregates."""

    version: str
    exact: bool


def check_compiles(tx: Transaction, policy: Policy, *, dataset_id: str) -> EnforceableVersion:
    """Check that every rule of `policy` can be enforced on the dataset as it is now; Refused names the rule."""
    dataset = tx.datasets.of(dataset_id)
    key = (reader.digest(policy), dataset.version)
    if key in _compiles:
        return EnforceableVersion(dataset.version, _compiles[key])
    try:
        unknown_terms.refuse_unclear(policy)
        schema = published_schema(tx.datasets.get_current(dataset))
        contracts = compiler.compile_contracts(policy, schema, concluded=tx.now, new=True)
    except PolicyError as error:
        raise Denied(f"this policy cannot be enforced here: {error}", code=error.code, rule=error.rule) from error
    exact = any(compiler.is_exact(contract) for contract in contracts)
    put_recent(_compiles, key, exact, most=_COMPILES_MAX)
    return EnforceableVersion(dataset.version, exact)


def signed_at(policy: Policy, *, now: float) -> float:
    """An agreement's timestamp in UTC seconds, in any form that peers write; `now` where it is unreadable."""
    try:
        return instant(policy.timestamp).start / 1e9
    except ValueError:
        return now
