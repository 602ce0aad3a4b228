"""The operator's rules about credentials, in one YAML file (HANSE_CREDENTIAL_RULES).

The file is read once, at the start:

    issuers:                          # who may issue which types of credentials; all others are refused
      did:web:office.example: [MembershipCredential]
    scopes: [MembershipCredential]    # what a caller must present; a type, or a whole scope
    credentials: required             # of every caller. optional: only of callers that send an access token
    facts:                            # what policies can use of verified credentials
      ds:membership: {credential: MembershipCredential, value: active}
      ds:participantCountry: {credential: MembershipCredential, path: address.country}
      ds:frameworkAgreement: {credential: GovernanceCredential, path: contractVersion, prefix: "governance:"}
    mapping: tractus-x                # ready-made scopes and facts of a data space, for those that the file leaves out
    presentation_seconds: 60          # how long a presentation counts for further requests; 0: ask with each
    facts_seconds: 3600               # how long a presented credential counts without a new request of its holder
    peers:                            # exceptions for single participants
      did:web:edc.example:
        credentials: never            # required, optional, never
        keys_for_all_purposes: true   # its DID document lists no key for any purpose: each counts for all
        presentation_without_audience: true
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from connector.errors import Invalid
from connector.identity.credentials.ready_mappings import READY
from connector.identity.credentials.scopes import BY_TYPE, Scope, read_scope
from connector.json_number import JSON_NUMBER
from connector.setting_types import did

_FILE_MAX = 2**20
_TYPE = re.compile(r"[^\s:]{1,200}")
Required = Literal["required", "optional", "never"]


def _scope(value: object) -> object:
    if not isinstance(value, str):
        return value
    return read_scope(value if ":" in value else f"{BY_TYPE}:{value}")


def _credential_type(value: str) -> str:
    if not _TYPE.fullmatch(value):
        raise ValueError(f"expected the type of a credential, such as MembershipCredential, got {value[:100]!r}")
    return value


Did = Annotated[str, Field(min_length=1), AfterValidator(did)]
CredentialType = Annotated[str, AfterValidator(_credential_type)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class FactRule(_Part):
    """Where a fact comes from: a credential's type, and a path in its subject, or a value that the type alone means.

    `prefix`: text before what stands at the path.
    """

    credential: CredentialType
    path: str = Field("", pattern=r"^([^.\s]+(\.[^.\s]+)*)?$")
    value: str = ""
    prefix: str = Field("", max_length=200)

    @model_validator(mode="after")
    def check_source(self) -> FactRule:
        if bool(self.path) == bool(self.value):
            raise ValueError("expected either `path` (in the credential's subject) or `value`")
        if self.prefix and not self.path:
            raise ValueError("expected `prefix` with `path` alone")
        return self


class PeerRule(_Part):
    """Exceptions for one participant; without `credentials` the rule for all holds."""

    credentials: Required | None = None
    keys_for_all_purposes: bool = False
    presentation_without_audience: bool = False


class CredentialRules(_Part):
    """The whole file; see the module's docstring."""

    issuers: Mapping[Did, tuple[CredentialType, ...]] = Field(min_length=1)
    scopes: tuple[Annotated[Scope, BeforeValidator(_scope)], ...] = Field(min_length=1, max_length=16)
    credentials: Required = "required"
    facts: Mapping[str, FactRule] = {}
    mapping: str = ""
    presentation_seconds: Annotated[int, Field(ge=0, le=60), JSON_NUMBER] = 60
    facts_seconds: Annotated[int, Field(ge=1, le=86_400), JSON_NUMBER] = 3600
    peers: Mapping[Did, PeerRule] = {}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, rules: Any) -> Any:
        if not isinstance(rules, Mapping) or not (name := rules.get("mapping")):
            return rules
        if not isinstance(name, str) or name not in READY:
            raise ValueError(f"expected a mapping among {', '.join(READY)}, got {str(name)[:100]!r}")
        return READY[name].complete(rules)

    def peer(self, participant: str) -> PeerRule:
        return self.peers.get(participant) or PeerRule()

    def required_of(self, participant: str) -> Required:
        """Whether a participant must present credentials."""
        return self.peer(participant).credentials or self.credentials

    def trusts(self, issuer: str, kind: str) -> bool:
        """Whether an issuer may issue credentials of this type."""
        return kind in self.issuers.get(issuer, ())


def load_rules(path: Path) -> CredentialRules:
    """The rules in a file. Raises: Invalid, which says what is wrong with it."""
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_MAX + 1)
        if len(text) > _FILE_MAX:
            raise Invalid(f"HANSE_CREDENTIAL_RULES: expected a file of at most {_FILE_MAX} bytes, got more in {path}")
        return CredentialRules.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise Invalid(f"HANSE_CREDENTIAL_RULES: {path} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, RecursionError):
        raise Invalid(f"HANSE_CREDENTIAL_RULES: expected YAML in {path}; check its indentation") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Invalid(f"HANSE_CREDENTIAL_RULES: {path}: {where}: {first['msg']}") from None
