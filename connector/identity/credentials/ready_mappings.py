"""Ready-made mappings of a data space's credentials to facts, which a line of the rules' file switches on (`mapping`).

Sources: the credential types and claims of Tractus-X (tractusx-edc, `edc-extensions/cx-policy`; tractusx-profiles,
`cx/credentials`), in the namespace https://w3id.org/catenax/credentials/. A framework agreement is a type of credential
with the claim `contractVersion`; its constraint compares both as `DataExchangeGovernance:1.0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ReadyMapping:
    """The scopes that callers must present and the facts, as the rules' file writes them.

    A plain list of issuers in the file stands for issuers of all these types.
    """

    scopes: tuple[str, ...]
    facts: Mapping[str, Mapping[str, str]]

    def complete(self, rules: Mapping[str, Any]) -> dict[str, Any]:
        """Return rules with what they leave open; their own scopes, and their own facts by name, go before."""
        facts = rules.get("facts") or {}
        merged = {**self.facts, **facts} if isinstance(facts, Mapping) else facts
        issuers = rules.get("issuers")
        if isinstance(issuers, list):
            issuers = {issuer: list(self.scopes) for issuer in issuers if isinstance(issuer, str)}
        return {**rules, "scopes": rules.get("scopes") or list(self.scopes), "facts": merged, "issuers": issuers}


_MEMBERSHIP, _GOVERNANCE = "MembershipCredential", "DataExchangeGovernanceCredential"
READY: Mapping[str, ReadyMapping] = {
    "tractus-x": ReadyMapping(
        scopes=(_MEMBERSHIP, _GOVERNANCE),
        facts={
            "ds:membership": {"credential": _MEMBERSHIP, "value": "active"},
            "ds:businessPartnerNumber": {"credential": _MEMBERSHIP, "path": "holderIdentifier"},
            "ds:frameworkAgreement": {
                "credential": _GOVERNANCE,
                "path": "contractVersion",
                "prefix": "DataExchangeGovernance:",
            },
        },
    ),
}
