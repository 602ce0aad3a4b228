"""The assignee of an offer, kept as a constraint of each permission.

Catalogue offers carry no parties, and digests ignore them. A constraint survives both, so an offer for one party stays
limited to that party. Must not import the reader or the writer.
"""

from __future__ import annotations

from dataclasses import replace

from policies.model import HANSE, Atom, Literal, Policy, Rule


def restrict_to_party(policy: Policy, party: str) -> Policy:
    """Return the policy with every permission limited to `party` (a DID). Prohibitions stay as they are.

    The constraint `ds:participant eq <party>` is added once, after the author's own constraints.
    """
    only = Atom(HANSE + "participant", "eq", (Literal(party),))
    return replace(policy, permissions=tuple(_add_constraint(rule, only) for rule in policy.permissions))


def _add_constraint(rule: Rule, only: Atom) -> Rule:
    # Last, so that paths of the author's constraints stay the same.
    return rule if only in rule.constraints else replace(rule, constraints=(*rule.constraints, only))
