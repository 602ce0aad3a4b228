"""What can go wrong with a policy, and with a query held against its contract.

    PolicyError                 every problem of this package
    ├── PolicyUnreadable        the text or JSON is not a policy (where, expected, came)
    ├── TermUnknown             an operand, operator, action or profile nobody registered
    ├── ContractUndecided       compiling left something that nobody enforces or decides
    └── QueryRefused            a query does not fit its contract; carries the rule that refused it

Each carries `code` (stable, for machines), the sentence (what was expected, what came, what to do)
and, where there is one, the `rule` (a JSON-pointer path into the policy, or the gate step).
"""

from __future__ import annotations


class PolicyError(Exception):
    """Base of every policy problem: `code` for machines, `str(error)` for people, `rule` for the reason."""

    code = "policy_error"

    def __init__(self, message: str, *, rule: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        if code is not None:
            self.code = code


class PolicyUnreadable(PolicyError):
    code = "policy_unreadable"


class TermUnknown(PolicyError):
    code = "term_unknown"


class ContractUndecided(PolicyError):
    code = "contract_undecided"


class QueryRefused(PolicyError):
    code = "query_refused"
