"""Errors of this package, for policies and for queries that are checked against a contract.

    PolicyError                 base class
    ├── PolicyUnreadable        the text or JSON is not a policy
    ├── TermUnknown             an operand, operator, action or profile is not registered
    ├── ContractUndecided       a rule can be neither enforced nor decided when compiling
    └── QueryRefused            a query is not covered by its contract

Each error has a stable `code` for machines, a sentence for people (expected, got, what to do) and, where one applies, a
`rule`: a JSON pointer into the policy, or the step of the query gate.
"""

from __future__ import annotations


class PolicyError(Exception):
    """Base class: `code` for machines, `str(error)` for people, `rule` for the part of the policy at fault."""

    code = "policy_error"

    def __init__(self, message: str, *, rule: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        if code is not None:
            self.code = code


class PolicyUnreadable(PolicyError):
    """The text or JSON is not a policy, or a value in it cannot be read."""

    code = "policy_unreadable"


class TermUnknown(PolicyError):
    """An operand, operator, action or profile is not registered."""

    code = "term_unknown"


class ContractUndecided(PolicyError):
    """A rule cannot be made part of a contract for this table."""

    code = "contract_undecided"


class QueryRefused(PolicyError):
    """A query is not covered by the contract; `rule` names the policy rule or the gate step."""

    code = "query_refused"
