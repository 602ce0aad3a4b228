"""For whom a policy is: ODRL's `assignee` of an offer, as the one condition that every later phase decides.

Parties do not travel on catalogue offers and do not count in the digest; a condition does both, so that an offer
for one party stays one. Must not know how policies are read or written.
"""

from __future__ import annotations

from dataclasses import replace

from policies.model import HANSE, Atom, Literal, Policy, Rule


def restrict_to_party(policy: Policy, party: str) -> Policy:
    """The policy with each of its permissions for `party` alone; prohibitions go on forbidding everybody."""
    only = Atom(HANSE + "participant", "eq", (Literal(party),))
    return replace(policy, permissions=tuple(_add_constraint(rule, only) for rule in policy.permissions))


def _add_constraint(rule: Rule, only: Atom) -> Rule:
    # At the end: the paths of what the author wrote stay as they are.
    return rule if only in rule.constraints else replace(rule, constraints=(*rule.constraints, only))
