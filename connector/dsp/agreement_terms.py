"""Offers and agreements as the protocol carries them: reading, comparing, signing, and checking what the other side
signed. Decides on values; knows no state machine. What a policy means is the business of `policies`.
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
from connector.errors import MessageInvalid, Refused
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
from policies.vocabulary import Phase, ds, operand

TIME_ENDED = "the time that was agreed has ended"
REPLACED = "never concluded; replaced by another one"
LAPSED = frozenset({TIME_ENDED, REPLACED})  # reasons for an agreement's end; any other is somebody's no
_OFFER_MAX = 64 * 2**10  # of others: anybody may send one, and each is kept as long as its negotiation
_SHORT = 4 * 2**10
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2000, 9999))
_COMPILES_MAX = 1_024
_TOLD_MAX = 10  # offers of which a refusal says what they are for
_compiles: OrderedDict[tuple[str, str], bool] = OrderedDict()  # whether it gives exact aggregates


def read_offer(wire: Json) -> Policy:
    """The offer in a message, with its id, at least one rule, and no rule that is not understood as JSON."""
    return _read(wire, Kind.OFFER)


def read_asked(wire: Json) -> Policy:
    """The offer in a consumer's request. A list of values is read in the form of EDC 0.15, too."""
    return read_offer(_with_lists(wire))


_LIST_AS_TEXT = re.compile(r'\[\s*\{\s*"@value"')


def _with_lists(wire: Any) -> Any:
    """The offer with its lists of values as lists: EDC 0.15 sends `["a", "b"]` back as the one text
    `[{"@value":"a"},{"@value":"b"}]`. What is no such text stays as it is."""
    if isinstance(wire, list):
        return [_with_lists(one) for one in wire]
    if not isinstance(wire, dict):
        return wire
    return {key: _list_of(value) if key.endswith("rightOperand") else _with_lists(value) for key, value in wire.items()}


def _list_of(right: Any) -> Any:
    inner = right[0] if isinstance(right, list) and len(right) == 1 else right
    text = inner.get("@value") if isinstance(inner, dict) else inner
    if not isinstance(text, str) or not _LIST_AS_TEXT.match(text):
        return right
    try:
        found = strictjson.loads(text)
    except (ValueError, RecursionError):
        return right
    return found if all(isinstance(one, dict) and one.keys() <= {"@value", "@type"} for one in found) else right


def readable(wires: Sequence[Json]) -> list[Policy]:
    """Those of these offers that can be read; MessageInvalid, as for the first, where none can."""
    found: list[Policy] = []
    refused: list[MessageInvalid] = []
    for wire in wires:
        try:
            found.append(read_offer(wire))
        except MessageInvalid as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def read_agreement(wire: Json) -> Policy:
    """The agreement in a message."""
    return _read(wire, Kind.AGREEMENT)


def _read(wire: Json, kind: Kind) -> Policy:
    try:
        policy = reader.read(wire, kind=kind)
    except PolicyError as error:
        raise MessageInvalid(f"the {kind.lower()} cannot be read: {error}", rule=error.rule) from error
    if not policy.id or len(policy.id) > 255 or len(policy.target) > 255:
        raise MessageInvalid(f"expected the {kind.lower()} to have an @id and a target of at most 255 characters")
    if not policy.permissions and not policy.prohibitions:
        raise MessageInvalid(f"expected the {kind.lower()} to have a permission or prohibition, came none")
    return policy


def offer_wire(policy: Policy, *, target: str, assigner: str = "") -> Json:
    """An offer as a message carries it. `assigner`: its provider, where the provider itself makes the offer."""
    return _write(replace(policy, kind=Kind.OFFER, target=target, assigner=assigner or policy.assigner))


def as_published(asked: Policy, wire: Json, *, published: Policy, consumer: str) -> Policy:
    """A request for a published offer in the words that the agreement will have. `wire`: the request as it came.

    Where the request has the published rules, these are the published words, in their order and with their profile: a
    consumer such as EDC compares the agreement with the offer of the catalogue word for word, and does not send all of
    it (EDC 0.15 leaves out `profile` and `odrl:conflict`). What a request does not say is as published. Other rules
    stay in the consumer's words, with the published profile where they name none.
    """
    named = asked if asked.profile else replace(asked, profile=published.profile)
    silent = not any(key.endswith("conflict") for key in wire)
    filled = replace(named, conflict=published.conflict) if silent else named
    if same_rules(filled, published, consumer=consumer):
        return replace(published, id=asked.id)
    return named


def taken_wire(policy: Policy, *, target: str, beside: Json) -> Json:
    """A counterparty's offer as we keep it. MessageInvalid where it is much larger than what it is held against:
    the published one, or the one on the table."""
    wire = offer_wire(policy, target=target)
    size = _size(wire)
    if size > _OFFER_MAX and size > _OFFER_MAX + _size(beside):
        raise MessageInvalid(
            f"expected an offer of at most {_OFFER_MAX} characters as JSON, came {size}; name groups instead of each "
            "of their members, or make several offers",
            code="offer_too_large",
        )
    return wire


def come_to_nothing(wire: Json) -> Json:
    """Terms of others that nobody agreed on, as they are kept: of more than 4 KiB as JSON only what they were about."""
    return wire if _size(wire) <= _SHORT else {name: wire[name] for name in ("@type", "@id", "target") if name in wire}


def _size(wire: Json) -> int:
    return len(json.dumps(wire))


def _write(policy: Policy) -> Json:
    try:
        wire: Json = reader.write(policy, in_message=True)
    except PolicyError as error:
        raise MessageInvalid(str(error), rule=error.rule) from error
    return wire


def published(row: Offer) -> Policy:
    """A published offer with its own id and target. Refused where it is not understood any more."""
    return replace(stored_policies.offered(row), id=row.id, target=row.dataset_id)


def digest_of(policy: Policy) -> str:
    """The digest of a policy's meaning."""
    return reader.digest(policy)


def same_rules(one: Policy, two: Policy, *, consumer: str) -> bool:
    """Whether both say the same to `consumer`, however they are spelled.

    "For you alone", said by one of them, is no other rule: some name their assignee in an offer and some do not,
    and an agreement is for its assignee anyway.
    """
    return reader.digest(restrict_to_party(one, consumer)) == reader.digest(restrict_to_party(two, consumer))


_COUNTED = frozenset({"grant", "batch"})  # who enforces what is used up
_EPSILON = ds("epsilonBudget")


def quantities(policy: Policy) -> tuple[bool, bool]:
    """Whether a policy lets out so much and no more (reads, rows, bytes, reads at once), and whether it has a privacy
    budget: a second agreement of the same party would double it."""
    rules = [(f"/permission/{index}", rule.constraints) for index, rule in enumerate(policy.permissions)]
    names = [operand(atom.left) for path, members in rules for _, atom in unknown_terms.walk_atoms(members, path)]
    found = [one for one in names if one is not None]
    private = any(one.name == _EPSILON for one in found)
    return private or any(one.enforced_by in _COUNTED for one in found), private


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy gives its party anything. `lacking`: for each permission against which nothing stands but facts
    that are not known, which these are. `rule`: the permission against which the least stands.
    """

    permitted: bool
    reasons: tuple[str, ...]
    lacking: tuple[frozenset[str], ...] = ()
    rule: str = ""

    def waits_for(self, facts: AbstractSet[str]) -> bool:
        """Whether some permission lacks nothing but these facts."""
        return any(missing <= facts for missing in self.lacking)


def judge(policy: Policy, facts: Facts, *, phase: Phase, now: float) -> Verdict:
    """What the facts say about `policy` for their party."""
    decision = evaluate.evaluate_offer(policy, facts, phase=phase, now=now)
    rule = next((one.rule for one in decision.findings if one.rule.startswith("/permission")), "")
    return Verdict(decision.permitted, decision.reasons, decision.lacking, rule)


def sign(policy: Policy, *, agreement_id: str, target: str, assigner: str, assignee: str, now: float) -> Policy:
    """The agreement over an offer's rules, unchanged (DSP 2025-1, section 5)."""
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
    """The first of these offers under which an agreement would not be for other purposes. Refused, with what each is
    for, where there is none."""
    found: list[tuple[str, Verdict]] = []
    for offer in offers:
        if (against := _other_purposes(offer, purpose, consumer=consumer, now=now)) is None:
            return offer
        found.append((offer.id, against))
    if len(found) == 1:
        ((_, only),) = found
        told, rule = f"this offer is for other purposes, so it was not asked for: {'; '.join(only.reasons)}", only.rule
    else:
        each = ". ".join(f"{name}: {'; '.join(against.reasons)}" for name, against in found[:_TOLD_MAX])
        told, rule = f"none of {len(found)} offers is for this purpose, so none was asked for. {each}", ""
    raise Refused(told, code="purpose_not_agreed", rule=rule)


def _other_purposes(offer: Policy, purpose: str, *, consumer: str, now: float) -> Verdict | None:
    """What stands against an agreement under this offer where it would be for other purposes, whatever else is known
    by then; None where it would not."""
    agreed = sign(
        offer, agreement_id=offer.id, target=offer.target, assigner=offer.assigner, assignee=consumer, now=now
    )
    party = Facts.of({"ds:participant": consumer}, source="signature")
    said, unsaid = (
        judge(agreed, with_declared(party, purpose=one), phase=Phase.TRANSFER, now=now) for one in (purpose, "")
    )
    if said.permitted or said.lacking or not any(PURPOSE in missing for missing in unsaid.lacking):
        return None
    return replace(said, reasons=tuple(reason for reason in said.reasons if reason not in unsaid.reasons))


def agreement_wire(policy: Policy) -> Json:
    """An agreement as a message carries it."""
    return _write(policy)


def check_agreement(agreement: Policy, *, terms: Policy, target: str, assigner: str, assignee: str) -> None:
    """What a consumer demands of an agreement (DSP 2025-1, section 7.4); the numbers stand beside the code.

    1. it is for us, 2. from the party we negotiate with, 3. about what we asked for, 4. with the agreed rules,
    5. at a moment of our time: periods are counted from it, and every calendar has its ends.
    """
    expected = (
        ("assignee", agreement.assignee, assignee),  # 1
        ("assigner", agreement.assigner, assigner),  # 2
        ("target", agreement.target, target),  # 3
    )
    for name, came, wanted in expected:
        if came != wanted:
            raise MessageInvalid(f"expected {name} {wanted} in the agreement, came {came[:255] or 'none'}", rule=name)
    if not same_rules(agreement, terms, consumer=assignee):  # 4
        raise MessageInvalid("the rules of the agreement are not those that were agreed on; send them unchanged")
    if not _EARLIEST <= signed_at(agreement, now=_EARLIEST) < _LATEST:  # 5
        raise MessageInvalid(
            f"expected a timestamp from the year 2000 to 9998, came {agreement.timestamp[:40]!r}", rule="timestamp"
        )


class Fits(NamedTuple):
    """The version of a dataset on which a policy can be kept, and whether it gives exact aggregates of it."""

    version: str
    exact: bool


def check_compiles(tx: Transaction, policy: Policy, *, dataset_id: str) -> Fits:
    """Refused, naming the rule, unless everything in `policy` can be enforced on the dataset as it is now."""
    dataset = tx.datasets.of(dataset_id)
    key = (reader.digest(policy), dataset.version)
    if key in _compiles:
        return Fits(dataset.version, _compiles[key])
    try:
        unknown_terms.refuse_unclear(policy)
        schema = published_schema(tx.datasets.get_current(dataset))
        made = compiler.compile_contracts(policy, schema, concluded=tx.now, new=True)
    except PolicyError as error:
        raise Refused(f"this policy cannot be enforced here: {error}", code=error.code, rule=error.rule) from error
    exact = any(compiler.is_exact(one) for one in made)
    put_recent(_compiles, key, exact, most=_COMPILES_MAX)
    return Fits(dataset.version, exact)


def signed_at(policy: Policy, *, now: float) -> float:
    """An agreement's timestamp, read as leniently as peers write it; `now` where it says nothing readable."""
    try:
        return instant(policy.timestamp).start / 1e9
    except ValueError:
        return now
